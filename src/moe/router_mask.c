/* MaskMoE (Su et al. 2024): each token id sees a fixed set of experts in each MoE layer, few where it is rare.
 *
 *   m_{w,e} = 0 for visible experts of id w, minus infinity for the others; drawn before training, never changed
 *   p_t = softmax(W x_t + m_{w_t}); T_t the k largest p_t, or all visible ones where that is less
 *   y_t = x_t + sum over T_t of g_{t,a} (f_a(x_t) - x_t),  g = p, or p over its sum over T_t
 *   balance loss of Switch on the masked probabilities, over all choices.
 * Ids that see one expert have p = 1 and no router gradient: they are routed as in Hash layers. Ids that see all are
 * routed as in Switch, or for k > 1 as by top-k. doc/methods/mask.md says what the paper leaves open and how it is here.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hash_table.h"
#include "stablemoe/kernel.h"
#include "stablemoe/random.h"
#include "top_choice.h"

typedef struct mask_options {
  double frequent_share;
  int64_t frequent_count, frequent_visible, rare_visible, k;
  int draw; /* index into draws */
  bool rare_balance, normalise;
  double balance_weight;
} mask_options;

enum { RANDOM, BALANCED };
static const char *const draws[] = {"random", "balanced", NULL};

#define KEY(member) offsetof(mask_options, member)

static const smoe_key keys[] = {
    {"router.mask.frequent_share", SMOE_KEY_REAL, KEY(frequent_share), "0.8", 0, 1, NULL, "",
     "Token ids are frequent that together make up this share of the training split, most frequent first."},
    {"router.mask.frequent_count", SMOE_KEY_INT, KEY(frequent_count), "0", 0, INFINITY, NULL, "tokens",
     "Token ids are frequent that occur so often in the training split; 0: router.mask.frequent_share "
     "decides."},
    {"router.mask.frequent_visible", SMOE_KEY_INT, KEY(frequent_visible), "4", 1, 65536, NULL, "experts",
     "Experts that a frequent token id sees in each MoE layer; moe.experts if that is less."},
    {"router.mask.rare_visible", SMOE_KEY_INT, KEY(rare_visible), "1", 1, 65536, NULL, "experts",
     "Experts that any other token id sees; 1 routes it by a fixed table."},
    {"router.mask.k", SMOE_KEY_INT, KEY(k), "1", 1, SMOE_TOP_MOST, NULL, "experts",
     "Experts that each token visits, of those that its id sees; all of them where that is less."},
    {"router.mask.normalise", SMOE_KEY_BOOL, KEY(normalise), "false", 0, 0, NULL, "",
     "Make the gates of a token's experts add up to 1."},
    {"router.mask.draw", SMOE_KEY_CHOICE, KEY(draw), "random", 0, 0, draws, "",
     "First visible expert of each id: uniform, or balanced over the experts by how often ids occur."},
    {"router.mask.rare_balance", SMOE_KEY_BOOL, KEY(rare_balance), "true", 0, 0, NULL, "",
     "Tokens that see one expert have a part in the balance loss; their probabilities are constants of it."},
    {"router.mask.balance_weight", SMOE_KEY_REAL, KEY(balance_weight), "0.01", 0, 1e6, NULL, "",
     "Weight of the balance loss."},
};

static const smoe_keyset keyset_mask = {keys, sizeof keys / sizeof *keys, sizeof(mask_options)};

enum { VISIBLE, CENTROID };

static int64_t at_most(int64_t value, int64_t most) {
  return value < most ? value : most;
}

/* The most experts that any id sees. */
static int64_t most_visible(const mask_options *options, int64_t e) {
  const int64_t frequent = at_most(options->frequent_visible, e), rare = at_most(options->rare_visible, e);
  return frequent > rare ? frequent : rare;
}

static smoe_status check_mask(const smoe_config *config) {
  const mask_options *options = smoe_config_options(config, &keyset_mask);
  const int64_t most = most_visible(options, smoe_config_settings(config)->moe.experts);
  SMOE_CHECK(options->k <= most, SMOE_ERR_CONFIG,
             "router.mask.k %lld is more than any token id sees: %lld of moe.experts %lld "
             "(router.mask.frequent_visible, router.mask.rare_visible)",
             (long long)options->k, (long long)most, (long long)smoe_config_settings(config)->moe.experts);
  return SMOE_OK;
}

static int slots_mask(const smoe_config *config) {
  return (int)((const mask_options *)smoe_config_options(config, &keyset_mask))->k;
}

static smoe_router_scope scope_mask(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

/* Columns of the table. */
static size_t columns_of(const smoe_router *router) {
  return (size_t)most_visible(router->options, router->n_experts);
}

static void declare_mask(smoe_router *router, smoe_params *params) {
  router->index[VISIBLE] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->vocabulary, (int64_t)columns_of(router), 0},
      (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false, "moe%d/router/visible", router->layer);
  params->param[router->index[VISIBLE]].frozen = true;
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", router->layer);
}

/* ---- the masks ---- */

typedef struct ranked {
  int64_t count;
  size_t id;
} ranked;

static int by_count(const void *a, const void *b) {
  const ranked *x = a, *y = b;
  if (x->count != y->count) return x->count > y->count ? -1 : 1;
  return x->id < y->id ? -1 : x->id > y->id;
}

/* Most frequent first, until their share of all tokens is reached; ids that never occur are rare. */
static void find_frequent(bool *frequent, const int64_t *count, size_t v, const mask_options *options) {
  double all = 0, sum = 0;
  ranked *order = smoe_alloc(v * sizeof *order);
  for (size_t i = 0; i < v; i++) {
    order[i] = (ranked){count[i], i};
    all += (double)count[i];
  }
  qsort(order, v, sizeof *order, by_count);
  for (size_t i = 0; i < v; i++) {
    const bool many = options->frequent_count > 0 ? order[i].count >= options->frequent_count
                                                  : order[i].count > 0 && sum < options->frequent_share * all;
    frequent[order[i].id] = many;
    sum += (double)order[i].count;
  }
  smoe_free(order);
}

/* The first visible expert is that of a Hash layer; the others are drawn without repetition. */
static void prepare_mask(smoe_router *router, smoe_params *params, const smoe_route_facts *facts) {
  const mask_options *options = router->options;
  const size_t v = (size_t)router->vocabulary, columns = columns_of(router), e = (size_t)router->n_experts;
  const uint64_t seed = (uint64_t)smoe_config_settings(router->config)->run.seed;
  const uint32_t stream = smoe_hash_text("router/hash") + (uint32_t)router->layer;
  smoe_real *table = smoe_params_shared(params, router->index[VISIBLE]),
            *first = smoe_alloc(v * sizeof *first);
  bool *frequent = smoe_alloc(v * sizeof *frequent);
  if (options->draw == BALANCED)
    smoe_hash_balanced(first, facts->count, v, router->n_experts, seed, stream);
  else
    smoe_hash_random(first, v, router->n_experts, seed, stream);
  find_frequent(frequent, facts->count, v, options);
  for (size_t i = 0; i < v; i++) {
    const size_t sees =
        (size_t)at_most(frequent[i] ? options->frequent_visible : options->rare_visible, (int64_t)e);
    size_t n = 0;
    table[i * columns + n++] = first[i];
    for (size_t j = 0; j < e && n < sees; j++) {
      const uint64_t other =
          smoe_random_permute(seed, SMOE_RANDOM_ROUTER, stream + (uint32_t)i * 0x9e3779b1u, e, j);
      if ((smoe_real)other != first[i]) table[i * columns + n++] = (smoe_real)other;
    }
    while (n < columns) table[i * columns + n++] = -1;
  }
  smoe_free(frequent);
  smoe_free(first);
}

/* ---- routing ---- */

/* Tape: probabilities [N, E]. Scratch: gradient of the scores [N, E], shares of the load [E]. */
static size_t tape_reals_mask(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts;
}

static size_t scratch_reals_mask(const smoe_router *router, size_t n) {
  return (n + 1) * (size_t)router->n_experts;
}

static const smoe_real *visible_of(const smoe_router *router, int32_t token) {
  return smoe_params_shared(router->params, router->index[VISIBLE]) + (size_t)token * columns_of(router);
}

/* z_e = minus infinity for every expert that the token's id does not see. */
static void hide(const smoe_router *router, const smoe_route_call *call, smoe_real *z) {
  const size_t e = (size_t)router->n_experts, columns = columns_of(router);
  smoe_real *kept = smoe_alloc(columns * sizeof *kept);
  for (size_t t = 0; t < call->n_tokens; t++) {
    smoe_real *row = z + t * e;
    if (call->token[t] < 0) continue;
    const smoe_real *visible = visible_of(router, call->token[t]);
    for (size_t j = 0; j < columns; j++) kept[j] = visible[j] < 0 ? 0 : row[(size_t)visible[j]];
    for (size_t i = 0; i < e; i++) row[i] = -(smoe_real)INFINITY;
    for (size_t j = 0; j < columns; j++)
      if (visible[j] >= 0) row[(size_t)visible[j]] = kept[j];
  }
  smoe_free(kept);
}

static void choose_mask(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  smoe_real *z = call->tape;
  smoe_scores_forward(z, call->x, smoe_params_shared(router->params, router->index[CENTROID]), n,
                      router->width, e);
  hide(router, call, z);
  smoe_scores_top(call->expert, k, z, call->token, n, e, k);
  /* Where no visible score is finite the first choice is still a visible expert. */
  for (size_t t = 0; t < n; t++) {
    int32_t *first = call->expert + t * k;
    if (*first >= 0 && !isfinite(z[t * e + (size_t)*first]))
      *first = (int32_t)visible_of(router, call->token[t])[0];
  }
  smoe_scores_softmax(z, call->token, n, e);
}

static void gate_mask(const smoe_router *router, const smoe_route_call *call) {
  const mask_options *options = router->options;
  const size_t e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  for (size_t t = 0; t < call->n_tokens; t++)
    smoe_top_gates(call->gate + t * k, call->tape + t * e, call->expert + t * k, k, options->normalise);
}

/* Whether the token has a part in the balance loss. */
static bool balances(const smoe_router *router, const smoe_route_call *call, size_t t) {
  const mask_options *options = router->options;
  if (call->token[t] < 0) return false;
  return options->rare_balance || (columns_of(router) > 1 && visible_of(router, call->token[t])[1] >= 0);
}

static void losses_mask(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                        smoe_route_sums *sums) {
  const mask_options *options = router->options;
  const size_t e = (size_t)router->n_experts;
  if (!call->context->training) return;
  smoe_real *f = call->scratch + call->n_tokens * e;
  double sum = 0;
  smoe_load_shares(f, loads, e);
  for (size_t t = 0; t < call->n_tokens; t++)
    if (balances(router, call, t)) sum += (double)smoe_dot(call->tape + t * e, f, e);
  *smoe_route_term(router, sums, "balance") += options->balance_weight * ((double)e * sum);
}

static void backward_mask(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const mask_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts,
               k = (size_t)router->n_slots;
  const smoe_real *centroid = smoe_params_shared(router->params, router->index[CENTROID]);
  smoe_real *dz = call->scratch, *f = call->scratch + n * e;
  const double weight = call->context->training ? options->balance_weight : 0;
  smoe_load_shares(f, loads, e);
  smoe_balance_backward(dz, f, (smoe_real)(weight / (double)call->context->n_targets), n, e);
  for (size_t t = 0; t < n; t++)
    if (!balances(router, call, t)) memset(dz + t * e, 0, e * sizeof *dz);
  for (size_t i = 0; i < n * k && !options->normalise; i++) {
    const int32_t a = smoe_slot_expert(call->expert[i]);
    if (a >= 0) dz[i / k * e + (size_t)a] += dgate[i]; /* gate = p_a */
  }
  smoe_scores_softmax_backward(dz, call->tape, n, e); /* 0 for invisible experts: p is */
  for (size_t t = 0; t < n && options->normalise; t++)
    smoe_top_gates_backward(dz + t * e, call->tape + t * e, call->gate + t * k, dgate + t * k,
                            call->expert + t * k, k, false);
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                              NULL, dz, call->x, n, c, e);
  smoe_linear_backward_input(dx, dz, centroid, n, c, e, true);
}

const smoe_router_ops smoe_router_mask = {
    .name = "mask",
    .title = "MaskMoE: the likeliest of the experts that a token id sees; rare ids see one",
    .keyset = &keyset_mask,
    .check = check_mask,
    .scope = scope_mask,
    .slots = slots_mask,
    .declare = declare_mask,
    .prepare = prepare_mask,
    .tape_reals = tape_reals_mask,
    .scratch_reals = scratch_reals_mask,
    .choose = choose_mask,
    .gate = gate_mask,
    .losses = losses_mask,
    .backward = backward_mask,
};
