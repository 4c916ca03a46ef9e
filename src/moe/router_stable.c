/* The StableMoE router (Dai et al. 2022), section 3; equations by the paper's numbers.
 *
 * Stage 1: s_t = E x_t (5), a_t = argmax s_t (6), gate = sigmoid(s_{t,a}) (7),
 *   balance loss (8), and a router on token ids alone learns a_t (9, 10).
 * Stage 2: a_t = argmax of the frozen distilled router (12, 13), gate still
 *   sigmoid(E_a x_t) (14); only the task loss (15).
 * Evaluation routes by the distilled router in both stages (section 3.3).
 */
#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"
#include "stablemoe/router.h"

typedef struct stable_options {
  double balance_weight;
  double distill_weight;
  int64_t width; /* D of the distilled router's word embedding */
} stable_options;

static const smoe_key keys[] = {
    {"router.stable.balance_weight", SMOE_KEY_REAL, offsetof(stable_options, balance_weight), "0.3", 0, 1e6,
     NULL, "", "Weight of the balance loss in stage 1 (equation 8; the paper uses 0.3 everywhere)."},
    {"router.stable.distill_weight", SMOE_KEY_REAL, offsetof(stable_options, distill_weight), "1", 0, 1e6,
     NULL, "", "Weight of the distillation loss in stage 1 (equation 10; 1 in the paper, 0.3 in its code)."},
    {"router.stable.width", SMOE_KEY_INT, offsetof(stable_options, width), "50", 1, 65536, NULL, "",
     "Width of the distilled router's word embedding (section 4.2)."},
};

static const smoe_keyset keyset_stable = {keys, sizeof keys / sizeof *keys, sizeof(stable_options)};

enum { CENTROID, DISTILLED_EMBEDDING, DISTILLED_CENTROID };

static int slots_stable(const smoe_config *config) {
  return 1;
}

static void declare_stable(smoe_router *router, smoe_params *params) {
  const stable_options *options = router->options;
  const int64_t experts = router->n_experts, width = (int64_t)router->width;
  /* Initial values of the paper's code: orthogonal with gain 0.1, word embedding N(0, 1). */
  const smoe_init orthogonal = {SMOE_INIT_ORTHOGONAL, 0.1, false};
  router->index[CENTROID] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){experts, width, 0},
                                                orthogonal, true, "moe%d/router/centroid", router->layer);
  router->index[DISTILLED_EMBEDDING] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->vocabulary, options->width, 0},
      (smoe_init){SMOE_INIT_NORMAL, 1, false}, true, "moe%d/router/distilled/embedding", router->layer);
  router->index[DISTILLED_CENTROID] =
      smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){experts, options->width, 0}, orthogonal, true,
                          "moe%d/router/distilled/centroid", router->layer);
}

/* Tape of a call: scores [N, E]; distilled scores [N, E], which losses turns into probabilities;
 * the chosen expert before capacity may mark it as dropped [N], and its gate [N].
 */
typedef struct stable_tape {
  smoe_real *score;
  smoe_real *probability;
  int32_t *choice;
  smoe_real *gate;
} stable_tape;

static size_t tape_reals_stable(const smoe_router *router, size_t n) {
  return 2 * n * (size_t)router->n_experts + 2 * n;
}

static stable_tape tape_of(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  smoe_real *at = call->tape;
  return (stable_tape){at, at + n * e, (int32_t *)(at + 2 * n * e), at + 2 * n * e + n};
}

static size_t scratch_reals_stable(const smoe_router *router, size_t n) {
  const stable_options *options = router->options;
  return n * (size_t)(options->width + router->n_experts);
}

/* h_t = D(w_t): rows of the word embedding; zero for padding. */
static void gather_features(smoe_real *h, const smoe_real *table, const int32_t *token, size_t n, size_t d) {
  for (size_t t = 0; t < n; t++) {
    if (token[t] < 0)
      memset(h + t * d, 0, d * sizeof *h);
    else
      memcpy(h + t * d, table + (size_t)token[t] * d, d * sizeof *h);
  }
}

/* r = Ehat h (9), into r [N, E]; the features stay in call->scratch. */
static void distilled_scores(const smoe_router *router, const smoe_route_call *call, smoe_real *r) {
  const stable_options *options = router->options;
  const size_t d = (size_t)options->width;
  gather_features(call->scratch, smoe_params_shared(router->params, router->index[DISTILLED_EMBEDDING]),
                  call->token, call->n_tokens, d);
  smoe_linear_forward(r, call->scratch, smoe_params_shared(router->params, router->index[DISTILLED_CENTROID]),
                      NULL, call->n_tokens, d, (size_t)router->n_experts);
}

static bool learns(const smoe_route_call *call) {
  return call->context->training && call->context->stage == 1;
}

static void route_stable(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, c = router->width;
  const int e = router->n_experts;
  const smoe_real *centroid = smoe_params_shared(router->params, router->index[CENTROID]);
  const stable_tape tape = tape_of(router, call);
  const bool want_learned = learns(call) || call->learned;

  if (want_learned) {
    smoe_linear_forward(tape.score, call->x, centroid, NULL, n, c, (size_t)e); /* (5) */
    smoe_route_argmax(tape.choice, tape.score, call->token, n, e);             /* (6) */
    if (call->learned) memcpy(call->learned, tape.choice, n * sizeof *tape.choice);
  }
  distilled_scores(router, call, tape.probability);
  int32_t *distilled = learns(call) ? call->distilled : tape.choice;
  if (distilled) smoe_route_argmax(distilled, tape.probability, call->token, n, e); /* (12) */
  if (call->distilled && distilled != call->distilled)
    memcpy(call->distilled, distilled, n * sizeof *distilled);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = tape.choice[t];
    tape.gate[t] = 0;
    if (a >= 0) {
      /* The same product in both stages: a score of the GEMM would round otherwise. */
      const smoe_real s = smoe_dot(centroid + (size_t)a * c, call->x + t * c, c);
      tape.gate[t] = isfinite(s) ? smoe_sigmoid(s) : 0; /* (7), (14) */
    }
    call->gate[t] = tape.gate[t];
    call->expert[t] = a;
  }
}

/* c_i = (|A_i| - nbar) / nbar, nbar = tokens / E; a constant for the gradient (8). */
static double imbalance(const smoe_router *router, const smoe_route_loads *loads, int32_t expert) {
  const double mean = (double)loads->n_assigned / router->n_experts;
  return ((double)loads->load[expert] - mean) / mean;
}

static void losses_stable(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_route_sums *sums) {
  const stable_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  const stable_tape tape = tape_of(router, call);
  for (size_t t = 0; t < n; t++) {
    if (tape.choice[t] < 0) continue;
    sums->gate += (double)tape.gate[t];
    sums->n_gates += 1;
    if (call->learned && call->distilled) {
      sums->n_compared += 1;
      sums->n_agree += call->learned[t] == call->distilled[t];
    }
  }
  if (!learns(call)) return;

  smoe_softmax_forward(tape.probability, tape.probability, n, e);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = tape.choice[t];
    if (a < 0) continue;
    sums->balance += options->balance_weight * imbalance(router, loads, a) * (double)tape.gate[t]; /* (8) */
    const double p = (double)tape.probability[t * e + (size_t)a];
    sums->distill -= options->distill_weight * log(fmax(p, 1e-300)); /* (10) */
  }
}

/* dr_i = weight (softmax(r)_i - [i == a]); dEhat += dr^T h; D's row of w_t += dr Ehat (10). */
static void distill_backward(const smoe_router *router, const smoe_route_call *call, smoe_real *dr) {
  const stable_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, d = (size_t)options->width;
  const stable_tape tape = tape_of(router, call);
  const smoe_real weight = (smoe_real)(options->distill_weight / (double)call->context->n_targets);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = tape.choice[t];
    for (size_t i = 0; i < e; i++)
      dr[t * e + i] = a < 0 ? 0 : weight * (tape.probability[t * e + i] - (smoe_real)(i == (size_t)a));
  }
  smoe_real *h = call->scratch;
  const int embedding = router->index[DISTILLED_EMBEDDING], centroid = router->index[DISTILLED_CENTROID];
  gather_features(h, smoe_params_shared(router->params, embedding), call->token, n, d);
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, centroid, call->lane), NULL, dr, h, n, d,
                              e);
  smoe_linear_backward_input(h, dr, smoe_params_shared(router->params, centroid), n, d, e, false);
  smoe_real *dtable = smoe_params_lane_grad(router->params, embedding, call->lane);
  for (size_t t = 0; t < n; t++)
    if (call->token[t] >= 0) smoe_add(dtable + (size_t)call->token[t] * d, h + t * d, d);
}

static void backward_stable(const smoe_router *router, const smoe_route_call *call,
                            const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const stable_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width;
  const smoe_real *centroid = smoe_params_shared(router->params, router->index[CENTROID]);
  smoe_real *dcentroid = smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane);
  const stable_tape tape = tape_of(router, call);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = tape.choice[t];
    if (a < 0) continue;
    const smoe_real al = tape.gate[t];
    smoe_real dal = dgate[t];
    if (learns(call))
      dal += (smoe_real)(options->balance_weight * imbalance(router, loads, a) /
                         (double)call->context->n_targets);
    const smoe_real ds = al * (1 - al) * dal; /* gate = sigmoid(s) */
    smoe_add_rows_scaled(dcentroid + (size_t)a * c, &ds, 1, call->x + t * c, 1, c);
    smoe_add_rows_scaled(dx + t * c, &ds, 1, centroid + (size_t)a * c, 1, c);
  }
  if (learns(call)) distill_backward(router, call, call->scratch + n * (size_t)options->width);
}

static void freeze_stable(smoe_router *router, smoe_params *params) {
  char prefix[SMOE_NAME_MAX];
  snprintf(prefix, sizeof prefix, "moe%d/router/distilled/", router->layer);
  smoe_params_freeze(params, prefix, true);
}

const smoe_router_ops smoe_router_stable = {
    .name = "stable",
    .title = "StableMoE: learned greedy routing, distilled in stage 1, frozen in stage 2",
    .keyset = &keyset_stable,
    .two_stages = true,
    .slots = slots_stable,
    .declare = declare_stable,
    .tape_reals = tape_reals_stable,
    .scratch_reals = scratch_reals_stable,
    .route = route_stable,
    .losses = losses_stable,
    .backward = backward_stable,
    .freeze = freeze_stable,
};
