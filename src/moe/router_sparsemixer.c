/* SparseMixer (Liu et al. 2023, arXiv 2310.00811) and SparseMixer-v2 of GRIN (Liu et al. 2024, arXiv 2409.12136):
 * sampled experts, and a gradient of the router that estimates the one of the expected loss.
 *
 *   z = W x + b;  experts with (z* - z_e) / max(|z_e|, z*) > 2 epsilon are left out;  p = softmax over the others
 *   D ~ p in training (Gumbel), argmax in evaluation;  s = 1 where D is the argmax or a coin says so, else 1/2 (v1)
 *   y = x + s p_D omega (f_D(x) - x);  backward: dp_D = c dL/dgate, whatever s was
 * With k > 1 this is repeated on what is left, without normalisation. doc/methods/sparsemixer.md has the table of
 * estimators, and why their mean is the gradient.
 */
#include <math.h>
#include <string.h>

#include "softmax_scores.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"
#include "stablemoe/random.h"

typedef struct mixer_options {
  int version; /* index into estimators */
  int64_t k;
  double epsilon;
  int mask; /* index into masks */
  bool best_whole, omega, bias;
  int expert_gradient; /* index into expert_gradients */
  double balance_weight;
  int balance_on;   /* index into balance_ons */
  int balance_over; /* smoe_balance_over */
  double z_loss_weight;
} mixer_options;

/* A sampled expert that is not the best counts whole with a probability, else by another factor; c multiplies the
 * gradient of its gate; temperature is on all scores. */
typedef struct estimator {
  double whole, other, c, temperature; /* other 0: uniform between 0 and 1 */
} estimator;

enum { V1, V1_FIRST, V1_UNIFORM, V2, V2_STAR, PLAIN };
static const char *const versions[] = {"v1", "v1_first", "v1_uniform", "v2", "v2_star", "plain", NULL};
static const estimator estimators[] = {
    [V1] = {0.5, 0.5, 2, 1},      [V1_FIRST] = {1, 1, 2, 1},          [V1_UNIFORM] = {0.5, 0, 2, 1},
    [V2] = {0.25, 1.0 / 3, 1, 1}, [V2_STAR] = {0.625, 1.0 / 3, 2, 2}, [PLAIN] = {1, 1, 1, 1}};

enum { MASK_CODE, MASK_PAPER };
static const char *const masks[] = {"code", "paper", NULL};
enum { BY_GATE, BY_ESTIMATOR };
static const char *const expert_gradients[] = {"gate", "estimator", NULL};
enum { ON_KEPT, ON_ALL };
static const char *const balance_ons[] = {"kept", "all", NULL};

enum { MOST = 64 };

#define KEY(member) offsetof(mixer_options, member)

static const smoe_key keys[] = {
    {"router.sparsemixer.version", SMOE_KEY_CHOICE, KEY(version), "v1", 0, 0, versions, "",
     "Estimator of the router's gradient: SparseMixer, its forms of first order and with a uniform point, "
     "SparseMixer-v2 as GRIN was trained with it and as derived, or plainly that of the sampled gate."},
    {"router.sparsemixer.k", SMOE_KEY_INT, KEY(k), "1", 1, MOST, NULL, "experts",
     "Experts that each token visits, one drawn after the other; at most moe.experts; GRIN has 2."},
    {"router.sparsemixer.epsilon", SMOE_KEY_REAL, KEY(epsilon), "0.1", 0, 1e6, NULL, "",
     "Experts take part whose score is so near to the best one, relatively: that a factor between 1 - "
     "epsilon and 1 + epsilon on each could make it the best; 0: the best alone, with gate 1."},
    {"router.sparsemixer.mask", SMOE_KEY_CHOICE, KEY(mask), "code", 0, 0, masks, "",
     "Which experts those are: by the authors' code, (z* - z) / max(|z|, z*) <= 2 epsilon, or by the paper "
     "of GRIN, z* - z <= epsilon (|z| + |z*|)."},
    {"router.sparsemixer.best_whole", SMOE_KEY_BOOL, KEY(best_whole), "true", 0, 0, NULL, "",
     "A drawn expert that has the largest score always counts whole, so that it trains on what evaluation "
     "uses; costs the estimate a few per cent."},
    {"router.sparsemixer.expert_gradient", SMOE_KEY_CHOICE, KEY(expert_gradient), "gate", 0, 0,
     expert_gradients, "",
     "Factor on the gradient that goes into an expert: its gate in the pass, as in the authors' code, or the "
     "probability times the estimator's factor, as in the paper of GRIN."},
    {"router.sparsemixer.omega", SMOE_KEY_BOOL, KEY(omega), "true", 0, 0, NULL, "",
     "A learned factor on each dimension of what experts add; GRIN has none."},
    {"router.sparsemixer.bias", SMOE_KEY_BOOL, KEY(bias), "true", 0, 0, NULL, "",
     "A learned offset of each expert's score; GRIN has none."},
    {"router.sparsemixer.balance_weight", SMOE_KEY_REAL, KEY(balance_weight), "0.01", 0, 1e6, NULL, "",
     "Weight of the balance loss, which is 1 at an even load; 0: none."},
    {"router.sparsemixer.balance_on", SMOE_KEY_CHOICE, KEY(balance_on), "kept", 0, 0, balance_ons, "",
     "Probabilities in the balance loss: those of the first draw, or of all experts, as GRIN has it."},
    {"router.sparsemixer.balance_over", SMOE_KEY_CHOICE, KEY(balance_over), "batch", 0, 0, smoe_balance_overs,
     "",
     "Tokens whose loads the balance loss evens out: those of the micro-batch on all ranks, of a lane, or of "
     "each sequence."},
    {"router.sparsemixer.z_loss_weight", SMOE_KEY_REAL, KEY(z_loss_weight), "0", 0, 1e6, NULL, "",
     "Weight of the z loss, which keeps scores small: the squared logarithm of the sum of their "
     "exponentials; 0: none; ST-MoE has 0.001."},
};

static const smoe_keyset keyset_mixer = {keys, sizeof keys / sizeof *keys, sizeof(mixer_options)};

enum { CENTROID, OFFSET };

static smoe_status check_mixer(const smoe_config *config) {
  const mixer_options *options = smoe_config_options(config, &keyset_mixer);
  const smoe_settings *settings = smoe_config_settings(config);
  SMOE_CHECK(options->k <= settings->moe.experts, SMOE_ERR_CONFIG,
             "router.sparsemixer.k %lld is more than moe.experts %lld: a token cannot visit an expert twice",
             (long long)options->k, (long long)settings->moe.experts);
  if (options->epsilon == 0)
    smoe_warn("sparsemixer: with router.sparsemixer.epsilon 0 the best expert alone takes part, and only the "
              "balance loss trains the router");
  return SMOE_OK;
}

static int slots_mixer(const smoe_config *config) {
  const mixer_options *options = smoe_config_options(config, &keyset_mixer);
  return (int)options->k;
}

static smoe_router_scope scope_mixer(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

static void declare_mixer(smoe_router *router, smoe_params *params) {
  const mixer_options *options = router->options;
  const int m = router->layer;
  router->index[CENTROID] =
      smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
                          (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", m);
  if (options->bias)
    router->index[OFFSET] =
        smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){router->n_experts, 0},
                            (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false, "moe%d/router/offset", m);
  if (options->omega)
    router->omega =
        smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){(int64_t)router->width, 0},
                            (smoe_init){SMOE_INIT_CONSTANT, 1, false}, false, "moe%d/router/omega", m);
  if (options->z_loss_weight > 0) smoe_terms_add(&router->terms, "z_loss");
}

/* ---- memory ---- */

static const estimator *estimator_of(const smoe_router *router) {
  return &estimators[((const mixer_options *)router->options)->version];
}

/* Tape: scores [N, E]; probabilities of each draw [K, N, E]; factors s [N, K]; log sums [N] for a z loss. */
typedef struct mixer_tape {
  smoe_real *score, *p, *s, *log_sum;
} mixer_tape;

static size_t tape_reals_mixer(const smoe_router *router, size_t n) {
  const size_t e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  return n * (e + k * e + k + 1);
}

static mixer_tape tape_of(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  mixer_tape tape = {.score = call->tape};
  tape.p = tape.score + n * e;
  tape.s = tape.p + k * n * e;
  tape.log_sum = tape.s + n * k;
  return tape;
}

/* Scratch: gradients of the scores and of one softmax [N, E]; all experts' probabilities [N, E]; shares [E]. */
typedef struct mixer_scratch {
  smoe_real *dz, *dp, *all, *f;
} mixer_scratch;

static size_t scratch_reals_mixer(const smoe_router *router, size_t n) {
  return (3 * n + 1) * (size_t)router->n_experts;
}

static mixer_scratch scratch_of(const smoe_router *router, const smoe_route_call *call) {
  const size_t scores = call->n_tokens * (size_t)router->n_experts;
  return (mixer_scratch){call->scratch, call->scratch + scores, call->scratch + 2 * scores,
                         call->scratch + 3 * scores};
}

/* ---- one draw of one token ---- */

static int32_t best_of(const smoe_real *z, size_t e) {
  int32_t best = -1;
  for (size_t i = 0; i < e; i++)
    if (isfinite(z[i]) && (best < 0 || z[i] > z[best])) best = (int32_t)i;
  return best;
}

static bool is_kept(const mixer_options *options, double z, double most) {
  if (!isfinite(z)) return false;
  if (options->mask == MASK_PAPER) return most - z <= options->epsilon * (fabs(z) + fabs(most));
  return !((most - z) / fmax(fabs(z), most) > 2 * options->epsilon); /* 0 / 0: kept */
}

/* p [E] = softmax over the experts that take part, of scores over the temperature; 0 for the others. */
static void masked_softmax(const smoe_router *router, smoe_real *p, const smoe_real *z, int32_t best) {
  const mixer_options *options = router->options;
  const size_t e = (size_t)router->n_experts;
  const double most = (double)z[best];
  double sum = 0;
  for (size_t i = 0; i < e; i++) {
    const bool kept = is_kept(options, (double)z[i], most);
    const double weight = kept ? exp(((double)z[i] - most) / estimator_of(router)->temperature) : 0;
    p[i] = (smoe_real)weight;
    sum += weight;
  }
  for (size_t i = 0; i < e; i++) p[i] = (smoe_real)((double)p[i] / sum);
}

static double draw(const smoe_route_call *call, uint64_t index) {
  return smoe_random_uniform(call->context->seed, SMOE_RANDOM_ROUTER, (uint32_t)call->context->update, index);
}

/* Of the experts that take part, one with its probability: argmax of z / temperature - log e, e exponential. */
static int32_t sample(const smoe_router *router, const smoe_route_call *call, const smoe_real *p,
                      const smoe_real *z, uint64_t first) {
  int32_t chosen = -1;
  double most = 0;
  for (int32_t i = 0; i < router->n_experts; i++) {
    if (!(p[i] > 0)) continue;
    const double exponential = -log1p(-draw(call, first + (uint64_t)i));
    const double value = (double)z[i] / estimator_of(router)->temperature - log(exponential);
    if (chosen < 0 || value > most) {
      chosen = i;
      most = value;
    }
  }
  return chosen;
}

/* s: what a drawn expert counts. */
static double factor_of(const smoe_router *router, const smoe_route_call *call, bool is_best,
                        uint64_t index) {
  const mixer_options *options = router->options;
  const estimator *how = estimator_of(router);
  if (is_best && options->best_whole) return 1;
  if (draw(call, index) < how->whole) return 1;
  return how->other > 0 ? how->other : draw(call, index + 1);
}

/* One draw: the expert, or -1, and s. z [E] are the scores that are left. */
static int32_t draw_one(const smoe_router *router, const smoe_route_call *call, size_t t, size_t j,
                        const smoe_real *z, smoe_real *p, smoe_real *s) {
  const size_t e = (size_t)router->n_experts;
  /* Numbers of a draw: one for each expert, the coin, the point. */
  const uint64_t number = smoe_route_index(router, call, t) * (uint64_t)router->n_slots + j;
  const uint64_t first = number * (uint64_t)(e + 2);
  const int32_t best = call->token[t] < 0 ? -1 : best_of(z, e);
  memset(p, 0, e * sizeof *p);
  *s = 1;
  if (best < 0) return call->token[t] >= 0 && j == 0 ? 0 : -1;
  masked_softmax(router, p, z, best);
  if (!call->context->training) return best;
  const int32_t chosen = sample(router, call, p, z, first);
  *s = (smoe_real)factor_of(router, call, chosen == best, first + e);
  return chosen;
}

/* ---- the router ---- */

static void choose_mixer(const smoe_router *router, const smoe_route_call *call) {
  const mixer_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const mixer_tape tape = tape_of(router, call);
  smoe_scores_forward(tape.score, call->x, smoe_params_shared(router->params, router->index[CENTROID]), n,
                      router->width, e);
  if (options->bias) {
    const smoe_real *offset = smoe_params_shared(router->params, router->index[OFFSET]);
    for (size_t i = 0; i < n * e; i++) {
      tape.score[i] += offset[i % e];
      if (!isfinite(tape.score[i])) tape.score[i] = -(smoe_real)INFINITY;
    }
  }
  smoe_scores_log_sum(tape.log_sum, tape.score, call->token, n, e);
  smoe_real *left = call->scratch;
  for (size_t t = 0; t < n; t++) {
    memcpy(left, tape.score + t * e, e * sizeof *left);
    for (size_t j = 0; j < k; j++) {
      const int32_t chosen = draw_one(router, call, t, j, left, tape.p + (j * n + t) * e, tape.s + t * k + j);
      call->expert[t * k + j] = chosen;
      if (chosen >= 0) left[chosen] = -(smoe_real)INFINITY;
    }
  }
}

static void gate_mixer(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const mixer_tape tape = tape_of(router, call);
  for (size_t i = 0; i < n * k; i++) {
    const int32_t a = smoe_slot_expert(call->expert[i]);
    call->gate[i] = a < 0 ? 0 : tape.s[i] * tape.p[(i % k * n + i / k) * e + (size_t)a];
  }
}

/* Probabilities in the balance loss. */
static const smoe_real *balanced(const smoe_router *router, const smoe_route_call *call) {
  const mixer_options *options = router->options;
  const mixer_tape tape = tape_of(router, call);
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  if (options->balance_on == ON_KEPT) return tape.p;
  smoe_real *all = scratch_of(router, call).all;
  if (n) memcpy(all, tape.score, n * e * sizeof *all);
  smoe_scores_softmax(all, call->token, n, e);
  return all;
}

static void losses_mixer(const smoe_router *router, const smoe_route_call *call,
                         const smoe_route_loads *loads, smoe_route_sums *sums) {
  const mixer_options *options = router->options;
  if (!call->context->training) return;
  *smoe_route_term(router, sums, "balance") +=
      options->balance_weight * smoe_balance_term(router, call, loads,
                                                  (smoe_balance_over)options->balance_over,
                                                  balanced(router, call), scratch_of(router, call).f);
  if (options->z_loss_weight > 0)
    *smoe_route_term(router, sums, "z_loss") +=
        options->z_loss_weight * smoe_z_loss_sum(tape_of(router, call).log_sum, call->n_tokens);
}

/* dz of draw j: dp_D = c dgate, through the softmax over the experts that took part. dp has what is added to it. */
static void draw_backward(const smoe_router *router, const smoe_route_call *call, const smoe_real *dgate,
                          size_t j) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const mixer_scratch scratch = scratch_of(router, call);
  const estimator *how = estimator_of(router);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t * k + j]);
    if (a >= 0) scratch.dp[t * e + (size_t)a] += (smoe_real)how->c * dgate[t * k + j];
  }
  smoe_scores_softmax_backward(scratch.dp, tape_of(router, call).p + j * n * e, n, e);
  for (size_t i = 0; i < n * e; i++) scratch.dz[i] += scratch.dp[i] / (smoe_real)how->temperature;
}

static void scores_backward(const smoe_router *router, const smoe_route_call *call,
                            const smoe_route_loads *loads, const smoe_real *dgate) {
  const mixer_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  const mixer_scratch scratch = scratch_of(router, call);
  const double per_target = 1 / (double)call->context->n_targets;
  const bool training = call->context->training, on_all = options->balance_on == ON_ALL;
  if (!n) return;
  memset(scratch.dz, 0, n * e * sizeof *scratch.dz);
  smoe_balance_slope(scratch.dp, router, call, loads, (smoe_balance_over)options->balance_over,
                     (smoe_real)(training ? options->balance_weight * per_target : 0), scratch.f);
  if (on_all) {
    smoe_scores_softmax_backward(scratch.dp, balanced(router, call), n, e);
    for (size_t i = 0; i < n * e; i++) scratch.dz[i] += scratch.dp[i];
  }
  for (size_t j = 0; j < (size_t)router->n_slots; j++) {
    if (j > 0 || on_all) memset(scratch.dp, 0, n * e * sizeof *scratch.dp);
    draw_backward(router, call, dgate, j);
  }
  if (options->z_loss_weight > 0 && training)
    smoe_z_loss_backward(scratch.dz, tape_of(router, call).score, tape_of(router, call).log_sum,
                         (smoe_real)(options->z_loss_weight * per_target), n, e);
}

static void backward_mixer(const smoe_router *router, const smoe_route_call *call,
                           const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const mixer_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts;
  const smoe_real *dz = scratch_of(router, call).dz;
  scores_backward(router, call, loads, dgate);
  smoe_linear_backward_weight(
      smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
      options->bias ? smoe_params_lane_grad(router->params, router->index[OFFSET], call->lane) : NULL, dz,
      call->x, n, c, e);
  smoe_linear_backward_input(dx, dz, smoe_params_shared(router->params, router->index[CENTROID]), n, c, e,
                             true);
}

/* c / s: the true gradient of a gate s p_D is s dp_D. */
static void estimate_mixer(const smoe_router *router, const smoe_route_call *call, smoe_real *factor) {
  const smoe_real *s = tape_of(router, call).s;
  for (size_t i = 0; i < call->n_tokens * (size_t)router->n_slots; i++)
    factor[i] = (smoe_real)estimator_of(router)->c / s[i];
}

static bool estimates_experts_mixer(const smoe_router *router) {
  return ((const mixer_options *)router->options)->expert_gradient == BY_ESTIMATOR;
}

const smoe_router_ops smoe_router_sparsemixer = {
    .name = "sparsemixer",
    .title = "SparseMixer: sampled experts, an estimate of the gradient of their expected loss",
    .keyset = &keyset_mixer,
    .check = check_mixer,
    .scope = scope_mixer,
    .slots = slots_mixer,
    .declare = declare_mixer,
    .tape_reals = tape_reals_mixer,
    .scratch_reals = scratch_reals_mixer,
    .choose = choose_mixer,
    .gate = gate_mixer,
    .losses = losses_mixer,
    .backward = backward_mixer,
    .estimate = estimate_mixer,
    .estimates_experts = estimates_experts_mixer,
};
