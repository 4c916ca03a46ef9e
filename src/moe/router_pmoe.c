/* pMoE (Chowdhury et al. 2023): each expert takes the l patches of an image that its gating vector likes best.
 *
 *   g_{j,s} = <w_s, x_j>;  J_s = the l largest of the image's patches
 *   joint     gate = exp(g_{j,s}) / sum over J_s of exp(g_{i,s}); learned with the experts (equations 4, 19, 26)
 *   separate  gate = 1. Stage 1 learns w alone, by the linear loss -y <w_a - w_b, sum_j x_j> on pairs of classes
 *             (a, b), one expert for each class (Algorithm 1); stage 2 has it fixed and learns the experts
 * Sequences of other models take the place of images.
 */
#include "stablemoe/router_pmoe.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "softmax_scores.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"

typedef struct pmoe_options {
  int64_t patches;
  double deviation;
} pmoe_options;

static const smoe_key keys[] = {
    {"router.pmoe.patches", SMOE_KEY_INT, offsetof(pmoe_options, patches), "2", 1, 65536, NULL, "patches",
     "pmoe, pmoe_separate: patches that each expert takes of an image (l); at most model.context."},
    {"router.pmoe.deviation", SMOE_KEY_REAL, offsetof(pmoe_options, deviation), "1e-4", 0, 1000, NULL, "",
     "pmoe, pmoe_separate: standard deviation of the gating vectors' initial values."},
};

static const smoe_keyset keyset_pmoe = {keys, sizeof keys / sizeof *keys, sizeof(pmoe_options)};

enum { CENTROID };

static const pmoe_options *options_of(const smoe_config *config) {
  return smoe_config_options(config, &keyset_pmoe);
}

int smoe_pmoe_patches(const smoe_config *config) {
  return (int)options_of(config)->patches;
}

bool smoe_pmoe_separate(const smoe_config *config) {
  return strcmp(smoe_config_settings(config)->router.method, "pmoe_separate") == 0;
}

bool smoe_pmoe_chosen(const smoe_config *config) {
  return smoe_pmoe_separate(config) || strcmp(smoe_config_settings(config)->router.method, "pmoe") == 0;
}

static bool of_images(const smoe_settings *settings) {
  return strcmp(settings->model.family, "cnn") == 0 || strcmp(settings->model.family, "vision") == 0;
}

static smoe_status check_pmoe(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const int64_t l = options_of(config)->patches;
  SMOE_CHECK(
      l <= settings->model.context, SMOE_ERR_CONFIG,
      "router.pmoe.patches %lld: an expert cannot take more patches than an image has (model.context %lld)",
      (long long)l, (long long)settings->model.context);
  if (!of_images(settings))
    smoe_warn("pmoe: experts choose among whole sequences, so a language model looks at later tokens, in "
              "evaluation too");
  return SMOE_OK;
}

static smoe_status check_separate(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  SMOE_CHECK(
      settings->moe.experts % 2 == 0, SMOE_ERR_CONFIG,
      "moe.experts %lld: router.method pmoe_separate has one expert for each class and learns them in pairs; "
      "take an even number",
      (long long)settings->moe.experts);
  return check_pmoe(config);
}

static int slots_pmoe(const smoe_config *config) {
  return (int)smoe_config_settings(config)->moe.experts;
}

static smoe_router_scope scope_pmoe(const smoe_router *router) {
  return SMOE_SCOPE_ALL;
}

static void declare_pmoe(smoe_router *router, smoe_params *params) {
  router->index[CENTROID] =
      smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
                          (smoe_init){SMOE_INIT_NORMAL, options_of(router->config)->deviation, false}, true,
                          "moe%d/router/centroid", router->layer);
}

static void declare_separate(smoe_router *router, smoe_params *params) {
  declare_pmoe(router, params);
  smoe_terms_add(&router->terms, "router");
  router->shut_in_stage1 = true;
}

/* Tape: scores, then gates [N, E]. */
static size_t tape_reals_pmoe(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts;
}

/* Scratch: gradient of the scores [N, E]. */
static size_t scratch_reals_pmoe(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts;
}

/* Rows of an expert as a share of all. */
static double load_share_pmoe(const smoe_router *router) {
  return (double)options_of(router->config)->patches / (double)router->context;
}

/* ---- the choice ---- */

/* Mark expert e in the first free slot of a token. */
static void take(int32_t *slot, int32_t e) {
  while (*slot >= 0) slot++;
  *slot = e;
}

/* The l best patches of one image for expert e: the lower one where scores are equal. */
static void choose_image(const smoe_router *router, const smoe_route_call *call, size_t first, size_t e) {
  const size_t n_experts = (size_t)router->n_experts, k = (size_t)router->n_slots, t = call->n_context;
  const size_t l = (size_t)options_of(router->config)->patches;
  const smoe_real *z = call->tape + first * n_experts + e;
  for (size_t chosen = 0; chosen < l; chosen++) {
    size_t best = t;
    for (size_t j = 0; j < t; j++) {
      if (call->token[first + j] < 0 || !isfinite(z[j * n_experts])) continue;
      if (best < t && !(z[j * n_experts] > z[best * n_experts])) continue;
      const int32_t *slot = call->expert + (first + j) * k;
      bool taken = false;
      for (size_t i = 0; i < k && slot[i] >= 0; i++) taken |= slot[i] == (int32_t)e;
      if (!taken) best = j;
    }
    if (best == t) return;
    take(call->expert + (first + best) * k, (int32_t)e);
  }
}

static void choose_pmoe(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  memset(call->expert, 0xff, n * k * sizeof *call->expert);
  smoe_scores_forward(call->tape, call->x, smoe_params_shared(router->params, router->index[CENTROID]), n,
                      router->width, e);
  for (size_t s = 0; s < call->n_sequences; s++)
    for (size_t i = 0; i < e; i++) choose_image(router, call, s * call->n_context, i);
}

/* Whether expert e has row t. */
static bool has(const smoe_router *router, const smoe_route_call *call, size_t t, size_t e) {
  const size_t k = (size_t)router->n_slots;
  for (size_t i = 0; i < k && call->expert[t * k + i] != -1; i++)
    if (smoe_slot_expert(call->expert[t * k + i]) == (int32_t)e) return true;
  return false;
}

/* The scores of one image and expert become gates: softmax over the patches that it has, 0 elsewhere. */
static void softmax_image(const smoe_router *router, const smoe_route_call *call, size_t first, size_t e) {
  const size_t n_experts = (size_t)router->n_experts, t = call->n_context;
  smoe_real *z = call->tape + first * n_experts + e;
  smoe_real top = (smoe_real)-INFINITY, sum = 0;
  for (size_t j = 0; j < t; j++)
    if (has(router, call, first + j, e) && z[j * n_experts] > top) top = z[j * n_experts];
  for (size_t j = 0; j < t; j++) {
    smoe_real *gate = &z[j * n_experts];
    *gate = has(router, call, first + j, e) ? (smoe_real)exp((double)(*gate - top)) : 0;
    sum += *gate;
  }
  for (size_t j = 0; j < t && sum > 0; j++) z[j * n_experts] /= sum;
}

static void gate_pmoe(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  for (size_t s = 0; s < call->n_sequences; s++)
    for (size_t i = 0; i < e; i++) softmax_image(router, call, s * call->n_context, i);
  for (size_t s = 0; s < n * k; s++) {
    const int32_t a = smoe_slot_expert(call->expert[s]);
    call->gate[s] = a < 0 ? 0 : call->tape[s / k * e + (size_t)a];
  }
}

/* ---- joint: the gradient of that softmax ---- */

static void backward_image(const smoe_router *router, const smoe_route_call *call, smoe_real *dz,
                           size_t first, size_t e) {
  const size_t n_experts = (size_t)router->n_experts, t = call->n_context, at = first * n_experts + e;
  const smoe_real *gate = call->tape + at;
  smoe_real *d = dz + at, mean = 0;
  for (size_t j = 0; j < t; j++) mean += gate[j * n_experts] * d[j * n_experts];
  for (size_t j = 0; j < t; j++) d[j * n_experts] = gate[j * n_experts] * (d[j * n_experts] - mean);
}

static void add_scores(const smoe_router *router, const smoe_route_call *call, smoe_real *dx,
                       const smoe_real *dz) {
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts;
  smoe_real *dw = smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane);
  smoe_linear_backward_weight(dw, NULL, dz, call->x, n, c, e);
  if (dx)
    smoe_linear_backward_input(dx, dz, smoe_params_shared(router->params, router->index[CENTROID]), n, c, e,
                               true);
}

static void backward_pmoe(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  smoe_real *dz = call->scratch;
  memset(dz, 0, n * e * sizeof *dz);
  for (size_t s = 0; s < n * k; s++) {
    const int32_t a = smoe_slot_expert(call->expert[s]);
    if (a >= 0) dz[s / k * e + (size_t)a] = dgate[s];
  }
  for (size_t s = 0; s < call->n_sequences; s++)
    for (size_t i = 0; i < e; i++) backward_image(router, call, dz, s * call->n_context, i);
  add_scores(router, call, dx, dz);
}

/* ---- separate ---- */

static bool learns_router(const smoe_route_call *call) {
  return call->context->training && call->context->stage == 1;
}

/* In stage 1 the experts get nothing to learn from. */
static void gate_separate(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens * (size_t)router->n_slots;
  const smoe_real one = learns_router(call) ? 0 : 1;
  for (size_t s = 0; s < n; s++) call->gate[s] = smoe_slot_expert(call->expert[s]) < 0 ? 0 : one;
}

static bool gates_learn_separate(const smoe_router *router) {
  return false;
}

/* Class of the image that a row belongs to; -1: padding. Its target stands at its first row. */
static int32_t class_of(const smoe_route_call *call, size_t row) {
  const int32_t *target = call->context->batch->target + (size_t)call->lane * call->n_tokens;
  return target[row / call->n_context * call->n_context];
}

/* -y <w_a - w_b, sum of the patches>, where y is 1 for class a and -1 for b. */
static void losses_separate(const smoe_router *router, const smoe_route_call *call,
                            const smoe_route_loads *loads, smoe_route_sums *sums) {
  const size_t e = (size_t)router->n_experts;
  if (!learns_router(call)) return;
  double sum = 0;
  for (size_t t = 0; t < call->n_tokens; t++) {
    const int32_t c = class_of(call, t);
    if (c >= 0) sum -= (double)call->tape[t * e + (size_t)c] - (double)call->tape[t * e + (size_t)(c ^ 1)];
  }
  *smoe_route_term(router, sums, "router") += sum;
}

static void backward_separate(const smoe_router *router, const smoe_route_call *call,
                              const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  smoe_real *dz = call->scratch;
  if (!learns_router(call)) return;
  const smoe_real one = (smoe_real)(1.0 / (double)call->context->n_targets);
  memset(dz, 0, n * e * sizeof *dz);
  for (size_t t = 0; t < n; t++) {
    const int32_t c = class_of(call, t);
    if (c < 0) continue;
    dz[t * e + (size_t)c] = -one;
    dz[t * e + (size_t)(c ^ 1)] = one;
  }
  /* The linear loss is of single patches, which are data here. */
  add_scores(router, call, NULL, dz);
}

static void freeze_separate(smoe_router *router, smoe_params *params) {
  char name[SMOE_NAME_MAX];
  snprintf(name, sizeof name, "moe%d/router/", router->layer);
  smoe_params_freeze(params, name, true);
}

const smoe_router_ops smoe_router_pmoe = {
    .name = "pmoe",
    .title = "patch-level MoE: each expert takes the patches of an image that it likes best, jointly trained",
    .keyset = &keyset_pmoe,
    .check = check_pmoe,
    .scope = scope_pmoe,
    .slots = slots_pmoe,
    .declare = declare_pmoe,
    .load_share = load_share_pmoe,
    .tape_reals = tape_reals_pmoe,
    .scratch_reals = scratch_reals_pmoe,
    .choose = choose_pmoe,
    .gate = gate_pmoe,
    .backward = backward_pmoe,
};

const smoe_router_ops smoe_router_pmoe_separate = {
    .name = "pmoe_separate",
    .title =
        "patch-level MoE whose router learns the classes of single patches first, then stays (family cnn)",
    .family = "cnn",
    .two_stages = true,
    .check = check_separate,
    .scope = scope_pmoe,
    .slots = slots_pmoe,
    .declare = declare_separate,
    .load_share = load_share_pmoe,
    .tape_reals = tape_reals_pmoe,
    .scratch_reals = scratch_reals_pmoe,
    .choose = choose_pmoe,
    .gate = gate_separate,
    .gates_learn = gates_learn_separate,
    .losses = losses_separate,
    .backward = backward_separate,
    .freeze = freeze_separate,
};
