/* Top-k routing: the k likeliest experts of each token (Shazeer et al. 2017, equations 3 to 5, without their
 * noise), with the balance loss of Switch (Fedus et al. 2021, equation 4) over all k choices.
 *
 *   z_t = W x_t; T_t the k largest scores; g_{t,e} = exp(z_{t,e}) / sum over T_t of exp(z_{t,i}) for e in T_t
 *   y_t = x_t + sum over T_t of g_{t,e} (f_e(x_t) - x_t)
 * Without normalisation the gates are the probabilities softmax(z_t) over all experts.
 */
#include "softmax_scores.h"
#include "stablemoe/kernel.h"

typedef struct topk_options {
  int64_t k;
  bool normalise;
  double balance_weight;
} topk_options;

enum { MOST = 64 };

static const smoe_key keys[] = {
    {"router.topk.k", SMOE_KEY_INT, offsetof(topk_options, k), "2", 1, MOST, NULL, "experts",
     "Experts that each token visits; at most moe.experts."},
    {"router.topk.normalise", SMOE_KEY_BOOL, offsetof(topk_options, normalise), "true", 0, 0, NULL, "",
     "Make the gates of a token's experts add up to 1; with router.topk.k 1 the gate is 1 then, and only the "
     "balance loss trains the router."},
    {"router.topk.balance_weight", SMOE_KEY_REAL, offsetof(topk_options, balance_weight), "0.01", 0, 1e6,
     NULL, "", "Weight of the balance loss, which is 1 at an even load; 0: none."},
};

static const smoe_keyset keyset_topk = {keys, sizeof keys / sizeof *keys, sizeof(topk_options)};

enum { CENTROID };

static smoe_status check_topk(const smoe_config *config) {
  const topk_options *options = smoe_config_options(config, &keyset_topk);
  const smoe_settings *settings = smoe_config_settings(config);
  SMOE_CHECK(options->k <= settings->moe.experts, SMOE_ERR_CONFIG,
             "router.topk.k %lld is more than moe.experts %lld: a token cannot visit an expert twice",
             (long long)options->k, (long long)settings->moe.experts);
  return SMOE_OK;
}

static int slots_topk(const smoe_config *config) {
  const topk_options *options = smoe_config_options(config, &keyset_topk);
  return (int)options->k;
}

static smoe_router_scope scope_topk(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

static void declare_topk(smoe_router *router, smoe_params *params) {
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", router->layer);
}

/* Tape: probabilities [N, E]. */
static size_t tape_reals_topk(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts;
}

/* Scratch: gradient of the scores [N, E], shares of the load [E]. */
static size_t scratch_reals_topk(const smoe_router *router, size_t n) {
  return (n + 1) * (size_t)router->n_experts;
}

static void choose_topk(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  smoe_scores_forward(call->tape, call->x, smoe_params_shared(router->params, router->index[CENTROID]), n,
                      router->width, e);
  smoe_scores_top(call->expert, k, call->tape, call->token, n, e, k);
  smoe_scores_softmax(call->tape, call->token, n, e);
}

/* The gates of one token: probabilities of its choices, over their sum where normalised. */
static void gates_of(smoe_real *gate, const smoe_real *p, const int32_t *expert, size_t k, bool normalise) {
  smoe_real sum = 0;
  for (size_t j = 0; j < k; j++) {
    const int32_t a = smoe_slot_expert(expert[j]);
    gate[j] = a < 0 ? 0 : p[a];
    sum += gate[j];
  }
  for (size_t j = 0; j < k && normalise && sum > 0; j++) gate[j] /= sum;
}

static void gate_topk(const smoe_router *router, const smoe_route_call *call) {
  const topk_options *options = router->options;
  const size_t e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  for (size_t t = 0; t < call->n_tokens; t++)
    gates_of(call->gate + t * k, call->tape + t * e, call->expert + t * k, k, options->normalise);
}

static void losses_topk(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                        smoe_route_sums *sums) {
  const topk_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  if (!call->context->training) return;
  smoe_real *f = call->scratch + n * e;
  smoe_load_shares(f, loads, e);
  *smoe_route_term(router, sums, "balance") +=
      options->balance_weight * smoe_balance_sum(call->tape, f, n, e);
}

/* Gates that add up to 1 are a softmax over the choices: dz_j += g_j (dg_j - <g, dg>). */
static void normalised_backward(smoe_real *dz, const smoe_real *gate, const smoe_real *dgate,
                                const int32_t *expert, size_t k) {
  smoe_real mean = 0;
  for (size_t j = 0; j < k; j++) mean += gate[j] * dgate[j];
  for (size_t j = 0; j < k; j++) {
    const int32_t a = smoe_slot_expert(expert[j]);
    if (a >= 0) dz[a] += gate[j] * (dgate[j] - mean);
  }
}

static void backward_topk(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const topk_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts;
  const size_t k = (size_t)router->n_slots;
  smoe_real *dz = call->scratch, *f = call->scratch + n * e;
  const double weight = call->context->training ? options->balance_weight : 0;
  smoe_load_shares(f, loads, e);
  smoe_balance_backward(dz, f, (smoe_real)(weight / (double)call->context->n_targets), n, e);
  for (size_t s = 0; s < n * k && !options->normalise; s++) {
    const int32_t a = smoe_slot_expert(call->expert[s]);
    if (a >= 0) dz[s / k * e + (size_t)a] += dgate[s]; /* gate = p_e */
  }
  smoe_scores_softmax_backward(dz, call->tape, n, e);
  for (size_t t = 0; t < n && options->normalise; t++)
    normalised_backward(dz + t * e, call->gate + t * k, dgate + t * k, call->expert + t * k, k);
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                              NULL, dz, call->x, n, c, e);
  smoe_linear_backward_input(dx, dz, smoe_params_shared(router->params, router->index[CENTROID]), n, c, e,
                             true);
}

const smoe_router_ops smoe_router_topk = {
    .name = "topk",
    .title = "Top-k: the k likeliest experts, gates normalised over them, balance loss",
    .keyset = &keyset_topk,
    .check = check_topk,
    .scope = scope_topk,
    .slots = slots_topk,
    .declare = declare_topk,
    .tape_reals = tape_reals_topk,
    .scratch_reals = scratch_reals_topk,
    .choose = choose_topk,
    .gate = gate_topk,
    .losses = losses_topk,
    .backward = backward_topk,
};
