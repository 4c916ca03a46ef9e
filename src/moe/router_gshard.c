/* The GShard router (Lepikhin et al. 2020), section 2.2 and algorithm 1.
 *
 *   p_t = softmax(W x_t); e1, e2 the two likeliest experts, g_k = p_{t,ek} / (p_{t,e1} + p_{t,e2})
 *   y_t = x_t + sum_k g_k (f_{ek}(x_t) - x_t); in training the second one only where 2 g_2 > u, u in [0, 1)
 *   balance loss weight E sum_e (c_e / S) m_e per group of tokens, which is a lane here: c_e first
 *   choices, m_e mean probability, S tokens of the lane.
 * doc/methods/gshard.md says where this differs from the paper.
 */
#include <string.h>

#include "softmax_scores.h"
#include "stablemoe/kernel.h"
#include "stablemoe/random.h"

typedef struct gshard_options {
  double balance_weight;
  int second; /* index into seconds */
} gshard_options;

enum { RANDOM, ALWAYS };
static const char *const seconds[] = {"random", "always", NULL};

static const smoe_key keys[] = {
    {"router.gshard.balance_weight", SMOE_KEY_REAL, offsetof(gshard_options, balance_weight), "0.01", 0, 1e6,
     NULL, "", "Weight of the balance loss, which is 1 at an even load."},
    {"router.gshard.second", SMOE_KEY_CHOICE, offsetof(gshard_options, second), "random", 0, 0, seconds, "",
     "Whether a token visits its second expert in training: at random with twice the second gate as "
     "probability, as in the paper, or always; evaluation always does."},
};

static const smoe_keyset keyset_gshard = {keys, sizeof keys / sizeof *keys, sizeof(gshard_options)};

enum { CENTROID };
enum { SLOTS = 2 };

static int slots_gshard(const smoe_config *config) {
  return SLOTS;
}

static smoe_router_scope scope_gshard(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

static void declare_gshard(smoe_router *router, smoe_params *params) {
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", router->layer);
}

/* Tape: probabilities [N, E]; gates [N, 2], and integers: both choices [N, 2], with or without a visit to the
 * second.
 */
typedef struct gshard_tape {
  smoe_real *p;
  smoe_real *gate;
  int32_t *choice;
} gshard_tape;

static size_t tape_reals_gshard(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts + n * SLOTS;
}

static size_t tape_ints_gshard(const smoe_router *router, size_t n) {
  return n * SLOTS;
}

static gshard_tape tape_of(const smoe_router *router, const smoe_route_call *call) {
  return (gshard_tape){call->tape, call->tape + call->n_tokens * (size_t)router->n_experts, call->integers};
}

/* Scratch: gradient of the scores [N, E], shares of the first choices [E]. */
static size_t scratch_reals_gshard(const smoe_router *router, size_t n) {
  return (n + 1) * (size_t)router->n_experts;
}

static bool visits_second(const smoe_router *router, const smoe_route_call *call, size_t t, smoe_real gate) {
  const gshard_options *options = router->options;
  if (!call->context->training || options->second == ALWAYS) return true;
  return 2 * (double)gate > smoe_random_uniform(call->context->seed, SMOE_RANDOM_ROUTER,
                                                (uint32_t)call->context->update,
                                                smoe_route_index(router, call, t));
}

/* Whether the second expert is visited depends on the gates, which are computed here. */
static void choose_gshard(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  const gshard_tape tape = tape_of(router, call);
  smoe_scores_forward(tape.p, call->x, smoe_params_shared(router->params, router->index[CENTROID]), n,
                      router->width, e);
  smoe_scores_top(tape.choice, SLOTS, tape.p, call->token, n, e, SLOTS);
  smoe_scores_softmax(tape.p, call->token, n, e);
  for (size_t t = 0; t < n; t++) {
    const smoe_real *p = tape.p + t * e;
    const int32_t *choice = tape.choice + t * SLOTS;
    smoe_real *gate = tape.gate + t * SLOTS;
    const smoe_real p1 = choice[0] < 0 ? 0 : p[choice[0]], p2 = choice[1] < 0 ? 0 : p[choice[1]];
    gate[0] = p1 > 0 ? p1 / (p1 + p2) : 0;
    gate[1] = p1 > 0 ? p2 / (p1 + p2) : 0;
    const bool second = choice[1] >= 0 && visits_second(router, call, t, gate[1]);
    call->expert[t * SLOTS] = choice[0];
    call->expert[t * SLOTS + 1] = second ? choice[1] : -1;
  }
}

static void gate_gshard(const smoe_router *router, const smoe_route_call *call) {
  const smoe_real *gate = tape_of(router, call).gate;
  for (size_t s = 0; s < call->n_tokens * SLOTS; s++) call->gate[s] = call->expert[s] == -1 ? 0 : gate[s];
}

/* f_e = c_e / S of this lane: a group of GShard's, whose counts need no other lane. */
static void first_shares(const smoe_router *router, const smoe_route_call *call, smoe_real *f) {
  const int32_t *choice = tape_of(router, call).choice;
  smoe_real n = 0;
  memset(f, 0, (size_t)router->n_experts * sizeof *f);
  for (size_t t = 0; t < call->n_tokens; t++) {
    if (choice[t * SLOTS] < 0) continue;
    f[choice[t * SLOTS]] += 1;
    n += 1;
  }
  for (int i = 0; i < router->n_experts && n > 0; i++) f[i] /= n;
}

static void losses_gshard(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_route_sums *sums) {
  const gshard_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  const gshard_tape tape = tape_of(router, call);
  if (!call->context->training) return;
  smoe_real *f = call->scratch + n * e;
  first_shares(router, call, f);
  *smoe_route_term(router, sums, "balance") += options->balance_weight * smoe_balance_sum(tape.p, f, n, e);
}

static void backward_gshard(const smoe_router *router, const smoe_route_call *call,
                            const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const gshard_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts;
  const gshard_tape tape = tape_of(router, call);
  smoe_real *dz = call->scratch, *f = call->scratch + n * e;
  const double weight = call->context->training ? options->balance_weight : 0;
  first_shares(router, call, f);
  smoe_balance_backward(dz, f, (smoe_real)(weight / (double)call->context->n_targets), n, e);
  smoe_scores_softmax_backward(dz, tape.p, n, e);
  for (size_t t = 0; t < n; t++) {
    const int32_t *choice = tape.choice + t * SLOTS;
    if (choice[0] < 0 || choice[1] < 0) continue; /* a single gate is 1 whatever its score */
    /* g_1 = sigmoid(z_1 - z_2) = 1 - g_2, also where the second expert was not visited (its dgate is 0) */
    const smoe_real *gate = tape.gate + t * SLOTS, *dg = dgate + t * SLOTS;
    const smoe_real d = gate[0] * gate[1] * (dg[0] - dg[1]);
    dz[t * e + (size_t)choice[0]] += d;
    dz[t * e + (size_t)choice[1]] -= d;
  }
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                              NULL, dz, call->x, n, c, e);
  smoe_linear_backward_input(dx, dz, smoe_params_shared(router->params, router->index[CENTROID]), n, c, e,
                             true);
}

const smoe_router_ops smoe_router_gshard = {
    .name = "gshard",
    .title = "GShard: the two likeliest experts, the second at random in training, balance loss",
    .keyset = &keyset_gshard,
    .scope = scope_gshard,
    .slots = slots_gshard,
    .declare = declare_gshard,
    .tape_reals = tape_reals_gshard,
    .tape_ints = tape_ints_gshard,
    .scratch_reals = scratch_reals_gshard,
    .choose = choose_gshard,
    .gate = gate_gshard,
    .losses = losses_gshard,
    .backward = backward_gshard,
};
