/* Top-k routing: the k likeliest experts of each token (Shazeer et al. 2017, equations 3 to 5, without their
 * noise), with the balance loss of Switch (Fedus et al. 2021, equation 4) over all k choices.
 *
 *   z_t = W x_t; T_t the k largest scores; g_{t,e} = s_{t,e} / sum over T_t of s_{t,i} for e in T_t
 *   y_t = x_t + sum over T_t of g_{t,e} (f_e(x_t) - x_t),   s_t = softmax(z_t), or sigmoid of each z_{t,e}
 * Without normalisation the gates are s itself. With a bias b (Wang et al. 2024, DeepSeek-V3) T_t are the k
 * largest s_{t,e} + b_e, and after each update b_e grows or falls by a rate where expert e has had less or more
 * than its share. The z loss (Zoph et al. 2022, equation 5) is the squared logarithm of sum_e exp(z_{t,e}).
 */
#include <math.h>
#include <string.h>

#include "softmax_scores.h"
#include "stablemoe/kernel.h"

typedef struct topk_options {
  int64_t k;
  bool normalise;
  int scores; /* index into kinds */
  double balance_weight;
  int balance_over; /* smoe_balance_over */
  double bias_rate;
  double z_loss_weight;
  bool forced_balance;
} topk_options;

enum { MOST = 64 };
enum { SOFTMAX, SIGMOID };
static const char *const kinds[] = {"softmax", "sigmoid", NULL};

static const smoe_key keys[] = {
    {"router.topk.k", SMOE_KEY_INT, offsetof(topk_options, k), "2", 1, MOST, NULL, "experts",
     "Experts that each token visits; at most moe.experts."},
    {"router.topk.normalise", SMOE_KEY_BOOL, offsetof(topk_options, normalise), "true", 0, 0, NULL, "",
     "Make the gates of a token's experts add up to 1; with router.topk.k 1 the gate is 1 then, and only the "
     "balance loss trains the router."},
    {"router.topk.scores", SMOE_KEY_CHOICE, offsetof(topk_options, scores), "softmax", 0, 0, kinds, "",
     "What makes gates of scores: a softmax over all experts, or the sigmoid of each score by itself."},
    {"router.topk.balance_weight", SMOE_KEY_REAL, offsetof(topk_options, balance_weight), "0.01", 0, 1e6,
     NULL, "", "Weight of the balance loss, which is 1 at an even load; 0: none."},
    {"router.topk.balance_over", SMOE_KEY_CHOICE, offsetof(topk_options, balance_over), "batch", 0, 0,
     smoe_balance_overs, "",
     "Tokens whose loads the balance loss evens out: those of the micro-batch on all ranks, of a lane, or of "
     "each sequence."},
    {"router.topk.bias_rate", SMOE_KEY_REAL, offsetof(topk_options, bias_rate), "0", 0, 1, NULL, "",
     "Balancing without a loss: a bias of each expert, which counts for the choice alone, rises or falls by "
     "this much after each update whose load was below or above the mean; 0: no bias; DeepSeek-V3 has "
     "0.001."},
    {"router.topk.z_loss_weight", SMOE_KEY_REAL, offsetof(topk_options, z_loss_weight), "0", 0, 1e6, NULL, "",
     "Weight of the z loss, which keeps scores small: the squared logarithm of the sum of their "
     "exponentials; "
     "0: none; ST-MoE has 0.001."},
    {"router.topk.forced_balance", SMOE_KEY_BOOL, offsetof(topk_options, forced_balance), "false", 0, 0, NULL,
     "",
     "For benchmarks: send tokens to the experts in turn, whatever the scores are, so that all have alike."},
};

static const smoe_keyset keyset_topk = {keys, sizeof keys / sizeof *keys, sizeof(topk_options)};

enum { CENTROID, BIAS };

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

/* In turn means by place in the batch, which generation does not have. */
static smoe_router_scope scope_topk(const smoe_router *router) {
  const topk_options *options = router->options;
  return options->forced_balance ? SMOE_SCOPE_ALL : SMOE_SCOPE_TOKEN;
}

static void declare_topk(smoe_router *router, smoe_params *params) {
  const topk_options *options = router->options;
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", router->layer);
  if (options->bias_rate > 0) {
    router->index[BIAS] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){router->n_experts, 0},
                                              (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false,
                                              "moe%d/router/bias", router->layer);
    params->param[router->index[BIAS]].frozen = true;
  }
  if (options->z_loss_weight > 0) smoe_terms_add(&router->terms, "z_loss");
}

/* Tape: s [N, E]: probabilities or sigmoids; with a z loss the scores [N, E] and their log sums [N]. */
typedef struct topk_tape {
  smoe_real *s;
  smoe_real *score, *log_sum; /* NULL: no z loss */
} topk_tape;

static bool has_z_loss(const smoe_router *router) {
  return ((const topk_options *)router->options)->z_loss_weight > 0;
}

static bool is_sigmoid(const smoe_router *router) {
  return ((const topk_options *)router->options)->scores == SIGMOID;
}

static size_t tape_reals_topk(const smoe_router *router, size_t n) {
  const size_t scores = n * (size_t)router->n_experts;
  return scores + (has_z_loss(router) ? scores + n : 0);
}

static topk_tape tape_of(const smoe_router *router, const smoe_route_call *call) {
  const size_t scores = call->n_tokens * (size_t)router->n_experts;
  smoe_real *more = has_z_loss(router) ? call->tape + scores : NULL;
  return (topk_tape){call->tape, more, more ? more + scores : NULL};
}

/* Scratch: gradient of the scores, or scores with bias [N, E]; shares of the load [E]; of sigmoids their shares of
 * a token's sum [N, E].
 */
typedef struct topk_scratch {
  smoe_real *dz, *f, *share;
} topk_scratch;

static size_t scratch_reals_topk(const smoe_router *router, size_t n) {
  return (n + 1) * (size_t)router->n_experts + (is_sigmoid(router) ? n * (size_t)router->n_experts : 0);
}

static topk_scratch scratch_of(const smoe_router *router, const smoe_route_call *call) {
  smoe_real *f = call->scratch + call->n_tokens * (size_t)router->n_experts;
  return (topk_scratch){call->scratch, f, f + router->n_experts};
}

/* What stands before s + b: 0, and minus infinity where a score is not finite. In scratch. */
static void begin_biased(const smoe_router *router, const smoe_route_call *call, const smoe_real *z) {
  for (size_t i = 0; i < call->n_tokens * (size_t)router->n_experts; i++)
    call->scratch[i] = isfinite(z[i]) ? 0 : -(smoe_real)INFINITY;
}

/* The k largest s + b. */
static void choose_biased(const smoe_router *router, const smoe_route_call *call, const smoe_real *s) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const smoe_real *bias = smoe_params_shared(router->params, router->index[BIAS]);
  for (size_t i = 0; i < n * e; i++) call->scratch[i] += s[i] + bias[i % e];
  smoe_scores_top(call->expert, k, call->scratch, call->token, n, e, k);
}

static void choose_topk(const smoe_router *router, const smoe_route_call *call) {
  const topk_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const topk_tape tape = tape_of(router, call);
  smoe_scores_forward(tape.s, call->x, smoe_params_shared(router->params, router->index[CENTROID]), n,
                      router->width, e);
  if (has_z_loss(router)) {
    if (n) memcpy(tape.score, tape.s, n * e * sizeof *tape.s);
    smoe_scores_log_sum(tape.log_sum, tape.score, call->token, n, e);
  }
  if (options->bias_rate > 0)
    begin_biased(router, call, tape.s);
  else
    smoe_scores_top(call->expert, k, tape.s, call->token, n, e, k);
  if (is_sigmoid(router))
    smoe_scores_sigmoid(tape.s, call->token, n, e);
  else
    smoe_scores_softmax(tape.s, call->token, n, e);
  if (options->bias_rate > 0) choose_biased(router, call, tape.s);
  if (options->forced_balance) smoe_scores_in_turn(router, call);
}

/* The gates of one token: s of its choices, over their sum where normalised. */
static void gates_of(smoe_real *gate, const smoe_real *s, const int32_t *expert, size_t k, bool normalise) {
  smoe_real sum = 0;
  for (size_t j = 0; j < k; j++) {
    const int32_t a = smoe_slot_expert(expert[j]);
    gate[j] = a < 0 ? 0 : s[a];
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

/* What the balance loss takes for a token's probabilities: they add up to 1. */
static const smoe_real *probabilities(const smoe_router *router, const smoe_route_call *call) {
  if (!is_sigmoid(router)) return call->tape;
  smoe_real *share = scratch_of(router, call).share;
  smoe_scores_shares(share, call->tape, call->n_tokens, (size_t)router->n_experts);
  return share;
}

static void losses_topk(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                        smoe_route_sums *sums) {
  const topk_options *options = router->options;
  if (!call->context->training) return;
  *smoe_route_term(router, sums, "balance") +=
      options->balance_weight * smoe_balance_term(router, call, loads,
                                                  (smoe_balance_over)options->balance_over,
                                                  probabilities(router, call), scratch_of(router, call).f);
  if (has_z_loss(router))
    *smoe_route_term(router, sums, "z_loss") +=
        options->z_loss_weight * smoe_z_loss_sum(tape_of(router, call).log_sum, call->n_tokens);
}

/* Gates that add up to 1: of a softmax dz_j += g_j (dg_j - <g, dg>), of sigmoids that times 1 - s_j. */
static void normalised_backward(smoe_real *dz, const smoe_real *s, const smoe_real *gate,
                                const smoe_real *dgate, const int32_t *expert, size_t k, bool sigmoid) {
  smoe_real mean = 0;
  for (size_t j = 0; j < k; j++) mean += gate[j] * dgate[j];
  for (size_t j = 0; j < k; j++) {
    const int32_t a = smoe_slot_expert(expert[j]);
    if (a < 0) continue;
    const smoe_real d = gate[j] * (dgate[j] - mean);
    dz[a] += sigmoid ? d * (1 - s[a]) : d;
  }
}

/* dz of the balance loss and of gates that are s itself. */
static void scores_backward(const smoe_router *router, const smoe_route_call *call,
                            const smoe_route_loads *loads, const smoe_real *dgate) {
  const topk_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const double weight = call->context->training ? options->balance_weight : 0;
  const topk_scratch scratch = scratch_of(router, call);
  const smoe_real *s = call->tape;
  smoe_real *dz = scratch.dz;
  smoe_balance_slope(dz, router, call, loads, (smoe_balance_over)options->balance_over,
                     (smoe_real)(weight / (double)call->context->n_targets), scratch.f);
  if (is_sigmoid(router)) { /* of the shares s / sum s: times p (dp - <p, dp>) (1 - s) */
    smoe_scores_softmax_backward(dz, probabilities(router, call), n, e);
    for (size_t i = 0; i < n * e; i++) dz[i] *= 1 - s[i];
  }
  for (size_t i = 0; i < n * k && !options->normalise; i++) {
    const int32_t a = smoe_slot_expert(call->expert[i]);
    if (a < 0) continue;
    const size_t at = i / k * e + (size_t)a;
    dz[at] += is_sigmoid(router) ? s[at] * (1 - s[at]) * dgate[i] : dgate[i]; /* gate = s */
  }
  if (!is_sigmoid(router)) smoe_scores_softmax_backward(dz, s, n, e);
}

static void backward_topk(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const topk_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts;
  const size_t k = (size_t)router->n_slots;
  const topk_tape tape = tape_of(router, call);
  smoe_real *dz = call->scratch;
  scores_backward(router, call, loads, dgate);
  for (size_t t = 0; t < n && options->normalise; t++)
    normalised_backward(dz + t * e, tape.s + t * e, call->gate + t * k, dgate + t * k, call->expert + t * k,
                        k, is_sigmoid(router));
  if (has_z_loss(router) && call->context->training)
    smoe_z_loss_backward(dz, tape.score, tape.log_sum,
                         (smoe_real)(options->z_loss_weight / (double)call->context->n_targets), n, e);
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                              NULL, dz, call->x, n, c, e);
  smoe_linear_backward_input(dx, dz, smoe_params_shared(router->params, router->index[CENTROID]), n, c, e,
                             true);
}

/* b_e += rate sign(mean load - load of e). */
static void after_update_topk(smoe_router *router, smoe_params *params, const smoe_route_loads *loads) {
  const topk_options *options = router->options;
  if (options->bias_rate == 0) return;
  smoe_real *bias = smoe_params_shared(params, router->index[BIAS]);
  for (int e = 0; e < router->n_experts; e++) {
    const int64_t more = loads->load[e] * router->n_experts - loads->n_assigned;
    bias[e] += (smoe_real)(options->bias_rate * (double)((more < 0) - (more > 0)));
  }
}

const smoe_router_ops smoe_router_topk = {
    .name = "topk",
    .title = "Top-k: the k likeliest experts, gates normalised over them, balance loss or bias",
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
    .after_update = after_update_topk,
};
