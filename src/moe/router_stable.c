/* The StableMoE router (Dai et al. 2022), section 3; equations by the paper's numbers.
 *
 * Stage 1: s_t = E x_t (5), a_t = argmax s_t (6), gate = sigmoid(s_{t,a}) (7),
 *   balance loss (8), and a router on token ids alone learns a_t (9, 10).
 * Stage 2: a_t = argmax of the frozen distilled router (12, 13), gate still
 *   sigmoid(E_a x_t) (14); only the task loss (15).
 * Evaluation routes by the distilled router in both stages (section 3.3).
 * Beyond the paper: an offset o of the gate, sigmoid(s_{t,a} + o_a), and a bias b of the choice, argmax (s_t + b).
 */
#include <math.h>
#include <string.h>

#include "distill.h"
#include "sigmoid_gate.h"
#include "stablemoe/kernel.h"
#include "stablemoe/router.h"

#define SECTION "router.stable."

typedef struct stable_options {
  double balance_weight, bias_rate, gate_start;
  smoe_distill_options distill;
} stable_options;

static const smoe_key keys[] = {
    {SECTION "balance_weight", SMOE_KEY_REAL, offsetof(stable_options, balance_weight), "0.3", 0, 1e6, NULL,
     "", "Weight of the balance loss in stage 1 (equation 8; the paper uses 0.3 everywhere)."},
    {SECTION "bias_rate", SMOE_KEY_REAL, offsetof(stable_options, bias_rate), "0", 0, 1, NULL, "",
     "Balancing without a loss, beyond the paper: a bias of each expert, which counts for the choice alone, "
     "rises or falls by this much after each update of stage 1 whose load was below or above the mean; 0: no "
     "bias."},
    {SECTION "gate_start", SMOE_KEY_REAL, offsetof(stable_options, gate_start), "0.5", 0.01, 0.99, NULL, "",
     "Gate that training begins with, beyond the paper: by an offset of each expert's score, which learns "
     "and counts for the gate alone; 0.5: no offset, as in the paper."},
    SMOE_DISTILL_KEYS(SECTION, stable_options, distill),
};

static const smoe_keyset keyset_stable = {keys, sizeof keys / sizeof *keys, sizeof(stable_options)};

enum { CENTROID, BIAS, OFFSET };

static const stable_options *options_of(const smoe_router *router) {
  return router->options;
}

static bool has_offset(const smoe_router *router) {
  return options_of(router)->gate_start != 0.5;
}

static const smoe_distill_options *distill_of(const smoe_router *router) {
  return &((const stable_options *)router->options)->distill;
}

static smoe_status check_stable(const smoe_config *config) {
  const stable_options *options = smoe_config_options(config, &keyset_stable);
  return smoe_distill_check(&options->distill, SECTION);
}

static int slots_stable(const smoe_config *config) {
  return 1;
}

static smoe_router_scope scope_stable(const smoe_router *router) {
  return smoe_distill_scope(distill_of(router));
}

static void declare_stable(smoe_router *router, smoe_params *params) {
  const int64_t experts = router->n_experts, width = (int64_t)router->width;
  router->index[CENTROID] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){experts, width, 0},
                                                (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true,
                                                "moe%d/router/centroid", router->layer);
  smoe_distill_declare(router, params, distill_of(router));
  const double start = options_of(router)->gate_start;
  if (has_offset(router))
    router->index[OFFSET] =
        smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){experts, 0},
                            (smoe_init){SMOE_INIT_CONSTANT, log(start / (1 - start)), false}, false,
                            "moe%d/router/gate_offset", router->layer);
  if (options_of(router)->bias_rate == 0) return;
  router->index[BIAS] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){experts, 0},
                                            (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false,
                                            "moe%d/router/bias", router->layer);
  params->param[router->index[BIAS]].frozen = true;
}

/* Tape: the distilled router's. */
static size_t tape_reals_stable(const smoe_router *router, size_t n) {
  return smoe_distill_tape(router, distill_of(router), n);
}

/* Scratch: the scores [N, E], and then what the distilled router needs. */
static size_t scratch_reals_stable(const smoe_router *router, size_t n) {
  const size_t scores = n * (size_t)router->n_experts;
  const size_t distill = smoe_distill_scratch(router, distill_of(router), n);
  return scores > distill ? scores : distill;
}

static bool learns(const smoe_route_call *call) {
  return call->context->training && call->context->stage == 1;
}

static size_t table_ints_stable(const smoe_router *router) {
  return smoe_distill_table(router, distill_of(router));
}

static bool from_ids_stable(const smoe_router *router, const smoe_pass *pass) {
  return pass->stage == 2;
}

static const smoe_real *centroid_of(const smoe_router *router) {
  return smoe_params_shared(router->params, router->index[CENTROID]);
}

static void choose_learned(const smoe_router *router, const smoe_route_call *call, int32_t *expert) {
  const smoe_real *bias =
      options_of(router)->bias_rate > 0 ? smoe_params_shared(router->params, router->index[BIAS]) : NULL;
  smoe_linear_forward(call->scratch, call->x, centroid_of(router), bias, call->n_tokens, router->width,
                      (size_t)router->n_experts);                                           /* (5) */
  smoe_route_argmax(expert, call->scratch, call->token, call->n_tokens, router->n_experts); /* (6) */
}

/* While the router learns, its own choice, which is distilled; else the distilled one (12). */
static void choose_stable(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, bytes = n * sizeof *call->expert;
  const smoe_distill_options *distill = distill_of(router);
  if (!learns(call)) {
    smoe_distill_choose(router, distill, call, call->expert, call->tape, call->scratch);
    if (call->distilled) memcpy(call->distilled, call->expert, bytes);
    return;
  }
  choose_learned(router, call, call->expert);
  if (call->learned) memcpy(call->learned, call->expert, bytes);
  smoe_distill_scores(router, distill, call, call->tape, call->scratch);
  if (call->distilled) smoe_route_argmax(call->distilled, call->tape, call->token, n, router->n_experts);
}

static void gate_stable(const smoe_router *router, const smoe_route_call *call) {
  if (!learns(call) && call->learned) choose_learned(router, call, call->learned);
  smoe_sigmoid_gate_forward(call->gate, call->expert, centroid_of(router),
                            has_offset(router) ? smoe_params_shared(router->params, router->index[OFFSET])
                                               : NULL,
                            call->x, call->n_tokens, router->width); /* (7), (14) */
}

/* c_i = (|A_i| - nbar) / nbar, nbar = tokens / E; a constant for the gradient (8). */
static double imbalance(const smoe_router *router, const smoe_route_loads *loads, int32_t expert) {
  const double mean = (double)loads->n_assigned / router->n_experts;
  return ((double)loads->load[expert] - mean) / mean;
}

static void losses_stable(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_route_sums *sums) {
  const stable_options *options = router->options;
  double *balance = smoe_route_term(router, sums, "balance");
  if (!learns(call)) return;
  for (size_t t = 0; t < call->n_tokens; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    if (a < 0) continue;
    *balance += options->balance_weight * imbalance(router, loads, a) * (double)call->gate[t]; /* (8) */
  }
  smoe_distill_loss(router, &options->distill, call, call->expert, call->tape, sums); /* (10) */
}

static void backward_stable(const smoe_router *router, const smoe_route_call *call,
                            const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const stable_options *options = router->options;
  const size_t n = call->n_tokens;
  smoe_real *dal = call->scratch;
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    dal[t] = dgate[t];
    if (learns(call) && a >= 0)
      dal[t] += (smoe_real)(options->balance_weight * imbalance(router, loads, a) /
                            (double)call->context->n_targets);
  }
  smoe_sigmoid_gate_backward(
      dx, smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
      has_offset(router) ? smoe_params_lane_grad(router->params, router->index[OFFSET], call->lane) : NULL,
      dal, call->gate, call->expert, centroid_of(router), call->x, n, router->width);
  if (learns(call))
    smoe_distill_backward(router, &options->distill, call, call->expert, call->tape, call->scratch);
}

/* In stage 2 nothing is chosen with the bias, and what is logged as the learned choice stays comparable. */
static void after_update_stable(smoe_router *router, smoe_params *params, const smoe_route_loads *loads,
                                int stage) {
  const double rate = options_of(router)->bias_rate;
  if (rate > 0 && stage == 1)
    smoe_route_balance_bias(smoe_params_shared(params, router->index[BIAS]), rate, loads, router->n_experts);
}

static void freeze_stable(smoe_router *router, smoe_params *params) {
  smoe_distill_freeze(router, distill_of(router), params);
}

const smoe_router_ops smoe_router_stable = {
    .name = "stable",
    .title = "StableMoE: learned greedy routing, distilled in stage 1, frozen in stage 2",
    .keyset = &keyset_stable,
    .two_stages = true,
    .check = check_stable,
    .scope = scope_stable,
    .slots = slots_stable,
    .declare = declare_stable,
    .table_ints = table_ints_stable,
    .from_ids = from_ids_stable,
    .tape_reals = tape_reals_stable,
    .scratch_reals = scratch_reals_stable,
    .choose = choose_stable,
    .gate = gate_stable,
    .losses = losses_stable,
    .backward = backward_stable,
    .after_update = after_update_stable,
    .freeze = freeze_stable,
};
