/* SMILE (He et al. 2022): the node first, then the place on it, each by a softmax of its own.
 *
 *   P_t = softmax(W_node x_t) over n nodes,  i_t = argmax P_t
 *   Q_t = softmax(W_place x_t) over the m = E / n places of a node,  j_t = argmax Q_t
 *   a_t = i_t m + j_t,  y_t = x_t + P_{t,i} Q_{t,j} (f_a(x_t) - x_t)
 *   balance losses: node_weight n sum_i f_i P_i + place_weight m sum_j h_j Q_j, f and h shares of the load
 * W_place is shared by the nodes, or each node has its own. Nodes are those of moe.nodes, never of the ranks.
 * doc/methods/smile.md says what of this is known from the paper.
 */
#include <math.h>
#include <string.h>

#include "softmax_scores.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"

typedef struct smile_options {
  double node_weight, place_weight;
  int places, balance_over; /* indices into places_of, overs */
} smile_options;

enum { SHARED, PER_NODE };
static const char *const places_of[] = {"shared", "per_node", NULL};
enum { OVER_NODE, OVER_ALL };
static const char *const overs[] = {"node", "all", NULL};

static const smoe_key keys[] = {
    {"router.smile.balance_weight", SMOE_KEY_REAL, offsetof(smile_options, node_weight), "0.01", 0, 1e6, NULL,
     "", "Weight of the balance loss of the nodes."},
    {"router.smile.place_balance_weight", SMOE_KEY_REAL, offsetof(smile_options, place_weight), "0.01", 0,
     1e6, NULL, "", "Weight of the balance loss of the places on a node."},
    {"router.smile.places", SMOE_KEY_CHOICE, offsetof(smile_options, places), "shared", 0, 0, places_of, "",
     "Router of the places on a node: one for all nodes, which has the fewest parameters, or one of each "
     "node's own."},
    {"router.smile.place_balance_over", SMOE_KEY_CHOICE, offsetof(smile_options, balance_over), "node", 0, 0,
     overs, "",
     "Tokens whose places the second loss evens out: those of each node by themselves, or of all nodes "
     "together."},
};

static const smoe_keyset keyset_smile = {keys, sizeof keys / sizeof *keys, sizeof(smile_options)};

enum { NODE, PLACE };

static smoe_status check_smile(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  SMOE_CHECK(
      settings->moe.experts % settings->moe.nodes == 0, SMOE_ERR_CONFIG,
      "router.method smile: moe.nodes %lld does not divide moe.experts %lld: every node needs the same "
      "number of experts",
      (long long)settings->moe.nodes, (long long)settings->moe.experts);
  if (settings->moe.nodes == 1)
    smoe_warn("router.method smile: with moe.nodes 1 there is one level, and it routes as switch does");
  return SMOE_OK;
}

static int slots_smile(const smoe_config *config) {
  return 1;
}

static smoe_router_scope scope_smile(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

static size_t nodes_of(const smoe_router *router) {
  return (size_t)router->n_nodes;
}

static size_t places(const smoe_router *router) {
  return (size_t)(router->n_experts / router->n_nodes);
}

static void declare_smile(smoe_router *router, smoe_params *params) {
  const smile_options *options = router->options;
  const smoe_init init = {SMOE_INIT_ORTHOGONAL, 0.1, false};
  const int64_t c = (int64_t)router->width, n = (int64_t)nodes_of(router), m = (int64_t)places(router);
  router->index[NODE] = router->index[PLACE] = -1; /* one choice is none */
  if (n > 1)
    router->index[NODE] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){n, c, 0}, init, true,
                                              "moe%d/router/node", router->layer);
  if (m > 1)
    router->index[PLACE] =
        smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){options->places == SHARED ? m : n * m, c, 0},
                            init, true, "moe%d/router/place", router->layer);
  smoe_terms_add(&router->terms, "place_balance");
}

/* Tape: P [N, n], Q [N, m]. */
static size_t tape_reals_smile(const smoe_router *router, size_t n) {
  return n * (nodes_of(router) + places(router));
}

static smoe_real *places_tape(const smoe_router *router, const smoe_route_call *call) {
  return call->tape + call->n_tokens * nodes_of(router);
}

/* Scratch: gradients of the scores [N, n] and [N, m], shares of the load [n] and [n, m]. */
static size_t scratch_reals_smile(const smoe_router *router, size_t n) {
  return (n + 1) * (nodes_of(router) + places(router)) + (size_t)router->n_experts;
}

/* Rows of W_place that a token of that node is scored by. */
static size_t first_place(const smoe_router *router, size_t node) {
  const smile_options *options = router->options;
  return options->places == SHARED ? 0 : node * places(router);
}

static size_t node_of(const smoe_router *router, int32_t expert) {
  return (size_t)expert / places(router);
}

/* v [N, m] by the rows of each token's own node; call->expert has the nodes. */
static void own_place_scores(const smoe_router *router, const smoe_route_call *call, smoe_real *v) {
  const size_t c = router->width, m = places(router);
  const smoe_real *w = smoe_params_shared(router->params, router->index[PLACE]);
  for (size_t t = 0; t < call->n_tokens; t++)
    for (size_t j = 0; j < m; j++) {
      const size_t row = first_place(router, call->expert[t] < 0 ? 0 : (size_t)call->expert[t]) + j;
      const smoe_real z = smoe_dot(call->x + t * c, w + row * c, c);
      v[t * m + j] = isfinite(z) ? z : -(smoe_real)INFINITY;
    }
}

/* z [N, k] of the rows of one level's parameter, 0 where it has none. */
static void level_scores(const smoe_router *router, const smoe_route_call *call, int which, smoe_real *z,
                         size_t k) {
  const int index = router->index[which];
  if (index < 0)
    memset(z, 0, call->n_tokens * k * sizeof *z);
  else
    smoe_scores_forward(z, call->x, smoe_params_shared(router->params, index), call->n_tokens, router->width,
                        k);
}

static void choose_smile(const smoe_router *router, const smoe_route_call *call) {
  const smile_options *options = router->options;
  const size_t n = call->n_tokens, m = places(router);
  smoe_real *p = call->tape, *q = places_tape(router, call);
  int32_t *place = smoe_alloc((n + 1) * sizeof *place);
  level_scores(router, call, NODE, p, nodes_of(router));
  smoe_route_argmax(call->expert, p, call->token, n, router->n_nodes);
  if (options->places == SHARED || m == 1)
    level_scores(router, call, PLACE, q, m);
  else
    own_place_scores(router, call, q);
  smoe_route_argmax(place, q, call->token, n, (int)m);
  for (size_t t = 0; t < n; t++)
    if (call->expert[t] >= 0) call->expert[t] = call->expert[t] * (int32_t)m + place[t];
  smoe_scores_softmax(p, call->token, n, nodes_of(router));
  smoe_scores_softmax(q, call->token, n, m);
  smoe_free(place);
}

/* P_i and Q_j of a token's expert. */
static void gates_of(const smoe_router *router, const smoe_route_call *call, size_t t, int32_t expert,
                     smoe_real *node, smoe_real *place) {
  const size_t i = node_of(router, expert), m = places(router);
  *node = call->tape[t * nodes_of(router) + i];
  *place = places_tape(router, call)[t * m + (size_t)expert % m];
}

static void gate_smile(const smoe_router *router, const smoe_route_call *call) {
  for (size_t t = 0; t < call->n_tokens; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    smoe_real node = 0, place = 0;
    if (a >= 0) gates_of(router, call, t, a, &node, &place);
    call->gate[t] = node * place;
  }
}

/* f [n]: shares of the nodes; h [n, m]: of the places among the tokens that the loss evens out. */
static void load_shares(const smoe_router *router, const smoe_route_loads *loads, smoe_real *f,
                        smoe_real *h) {
  const smile_options *options = router->options;
  const size_t n = nodes_of(router), m = places(router);
  for (size_t i = 0; i < n; i++) {
    int64_t of_node = 0;
    for (size_t j = 0; j < m; j++) of_node += loads->load[i * m + j];
    f[i] = loads->n_assigned > 0 ? (smoe_real)((double)of_node / (double)loads->n_assigned) : 0;
    for (size_t j = 0; j < m; j++) {
      int64_t count = loads->load[i * m + j], all = of_node;
      if (options->balance_over == OVER_ALL) {
        count = 0, all = loads->n_assigned;
        for (size_t k = 0; k < n; k++) count += loads->load[k * m + j];
      }
      h[i * m + j] = all > 0 ? (smoe_real)((double)count / (double)all) : 0;
    }
  }
}

/* Where in scratch the shares are. */
static smoe_real *shares_of(const smoe_router *router, const smoe_route_call *call) {
  return call->scratch + call->n_tokens * (nodes_of(router) + places(router));
}

static void losses_smile(const smoe_router *router, const smoe_route_call *call,
                         const smoe_route_loads *loads, smoe_route_sums *sums) {
  const smile_options *options = router->options;
  const size_t n = call->n_tokens, nodes = nodes_of(router), m = places(router);
  if (!call->context->training) return;
  smoe_real *f = shares_of(router, call), *h = f + nodes;
  const smoe_real *q = places_tape(router, call);
  double place = 0;
  load_shares(router, loads, f, h);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    if (a >= 0) place += (double)smoe_dot(q + t * m, h + node_of(router, a) * m, m);
  }
  *smoe_route_term(router, sums, "balance") +=
      options->node_weight * smoe_balance_sum(call->tape, f, n, nodes);
  *smoe_route_term(router, sums, "place_balance") += options->place_weight * ((double)m * place);
}

/* dW_place and dx by the rows of each token's own node. */
static void own_place_backward(const smoe_router *router, const smoe_route_call *call, smoe_real *dx,
                               const smoe_real *dv) {
  const size_t c = router->width, m = places(router);
  const smoe_real *w = smoe_params_shared(router->params, router->index[PLACE]);
  smoe_real *dw = smoe_params_lane_grad(router->params, router->index[PLACE], call->lane);
  for (size_t t = 0; t < call->n_tokens; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    for (size_t j = 0; j < m && a >= 0; j++) {
      const size_t row = first_place(router, node_of(router, a)) + j;
      const smoe_real d = dv[t * m + j];
      for (size_t i = 0; i < c; i++) dw[row * c + i] += d * call->x[t * c + i];
      for (size_t i = 0; i < c; i++) dx[t * c + i] += d * w[row * c + i];
    }
  }
}

static void linear_backward(const smoe_router *router, const smoe_route_call *call, int which, smoe_real *dx,
                            const smoe_real *dz, size_t rows) {
  const size_t n = call->n_tokens, c = router->width;
  if (router->index[which] < 0) return;
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[which], call->lane), NULL,
                              dz, call->x, n, c, rows);
  smoe_linear_backward_input(dx, dz, smoe_params_shared(router->params, router->index[which]), n, c, rows,
                             true);
}

static void backward_smile(const smoe_router *router, const smoe_route_call *call,
                           const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const smile_options *options = router->options;
  const size_t n = call->n_tokens, nodes = nodes_of(router), m = places(router);
  const double scale = call->context->training ? 1 / (double)call->context->n_targets : 0;
  smoe_real *du = call->scratch, *dv = du + n * nodes, *f = shares_of(router, call), *h = f + nodes;
  load_shares(router, loads, f, h);
  smoe_balance_backward(du, f, (smoe_real)(options->node_weight * scale), n, nodes);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    memset(dv + t * m, 0, m * sizeof *dv);
    if (a < 0) continue;
    const size_t i = node_of(router, a);
    smoe_real node, place;
    gates_of(router, call, t, a, &node, &place);
    smoe_balance_backward(dv + t * m, h + i * m, (smoe_real)(options->place_weight * scale), 1, m);
    du[t * nodes + i] += dgate[t] * place; /* gate = P_i Q_j */
    dv[t * m + (size_t)a % m] += dgate[t] * node;
  }
  smoe_scores_softmax_backward(du, call->tape, n, nodes);
  smoe_scores_softmax_backward(dv, places_tape(router, call), n, m);
  linear_backward(router, call, NODE, dx, du, nodes);
  if (options->places == SHARED || m == 1)
    linear_backward(router, call, PLACE, dx, dv, m);
  else
    own_place_backward(router, call, dx, dv);
}

const smoe_router_ops smoe_router_smile = {
    .name = "smile",
    .title = "SMILE: the likeliest node, then the likeliest place on it; a balance loss each",
    .keyset = &keyset_smile,
    .check = check_smile,
    .scope = scope_smile,
    .slots = slots_smile,
    .declare = declare_smile,
    .tape_reals = tape_reals_smile,
    .scratch_reals = scratch_reals_smile,
    .choose = choose_smile,
    .gate = gate_smile,
    .losses = losses_smile,
    .backward = backward_smile,
};
