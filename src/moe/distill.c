#include "distill.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "distill_transformer.h"
#include "stablemoe/kernel.h"

const char *const smoe_distill_features[] = {"word", "bigram", "cnn", "transformer", NULL};

enum { EMBEDDING = SMOE_DISTILL_INDEX, CENTROID, MORE }; /* MORE: the taps, or the Transformer's first */

enum { TAPS = 5 };

smoe_status smoe_distill_check(const smoe_distill_options *options, const char *section) {
  SMOE_CHECK(options->features != SMOE_FEATURES_TRANSFORMER || options->width % options->heads == 0,
             SMOE_ERR_CONFIG, "%sheads %lld does not divide %swidth %lld", section, (long long)options->heads,
             section, (long long)options->width);
  return SMOE_OK;
}

void smoe_distill_declare(smoe_router *router, smoe_params *params, const smoe_distill_options *options) {
  /* Initial values of the paper's code: orthogonal with gain 0.1, word embedding N(0, 1). */
  router->index[EMBEDDING] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->vocabulary, options->width, 0},
      (smoe_init){SMOE_INIT_NORMAL, 1, false}, true, "moe%d/router/distilled/embedding", router->layer);
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, options->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/distilled/centroid", router->layer);
  if (options->features == SMOE_FEATURES_CNN)
    router->index[MORE] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){TAPS, 0},
                                              (smoe_init){SMOE_INIT_UNIFORM, 1 / sqrt(TAPS), false}, true,
                                              "moe%d/router/distilled/tap", router->layer);
  if (options->features == SMOE_FEATURES_TRANSFORMER)
    router->index[MORE] = smoe_distill_transformer_declare(router, params, options);
}

smoe_router_scope smoe_distill_scope(const smoe_distill_options *options) {
  return options->features == SMOE_FEATURES_WORD ? SMOE_SCOPE_TOKEN : SMOE_SCOPE_PREFIX;
}

size_t smoe_distill_tape(const smoe_router *router, const smoe_distill_options *options, size_t n) {
  const size_t more =
      options->features == SMOE_FEATURES_TRANSFORMER ? smoe_distill_transformer_tape(router, options, n) : 0;
  return n * (size_t)router->n_experts + more;
}

/* Features [N, D], gradients of scores [N, E], then what the Transformer needs. */
size_t smoe_distill_scratch(const smoe_router *router, const smoe_distill_options *options, size_t n) {
  const size_t more = options->features == SMOE_FEATURES_TRANSFORMER
                          ? smoe_distill_transformer_scratch(router, options, n)
                          : 0;
  return n * (size_t)(options->width + router->n_experts) + more;
}

static smoe_real *more_tape(const smoe_router *router, const smoe_route_call *call, const smoe_real *tape) {
  return (smoe_real *)tape + call->n_tokens * (size_t)router->n_experts;
}

static smoe_real *more_scratch(const smoe_router *router, const smoe_distill_options *options,
                               const smoe_route_call *call, smoe_real *scratch) {
  return scratch + call->n_tokens * (size_t)(options->width + router->n_experts);
}

/* The token `back` places before row's in its sequence; -1 where there is none. */
static int32_t token_before(const smoe_route_call *call, size_t row, size_t back) {
  return row % call->n_context < back ? -1 : call->token[row - back];
}

/* Up to TAPS tokens that a row's feature is the weighted sum of. Returns their number. */
static int parts_of(int32_t *token, smoe_real *weight, const smoe_distill_options *options,
                    const smoe_route_call *call, size_t row, const smoe_real *tap) {
  const int32_t own = call->token[row];
  if (own < 0) return 0;
  token[0] = own;
  weight[0] = 1;
  if (options->features == SMOE_FEATURES_WORD) return 1;
  if (options->features == SMOE_FEATURES_BIGRAM) {
    const int32_t before = token_before(call, row, 1);
    token[1] = before < 0 ? own : before; /* at the sequence's start the one before is itself */
    weight[0] = weight[1] = (smoe_real)0.5;
    return 2;
  }
  for (size_t j = 0; j < TAPS; j++) {
    token[j] = token_before(call, row, j); /* zero beyond the sequence's start */
    weight[j] = tap[j];
  }
  return TAPS;
}

/* h [N, D]; zero for padding. */
static void features_forward(smoe_real *h, const smoe_router *router, const smoe_distill_options *options,
                             const smoe_route_call *call) {
  const size_t d = (size_t)options->width;
  const smoe_real *table = smoe_params_shared(router->params, router->index[EMBEDDING]);
  const smoe_real *tap =
      options->features == SMOE_FEATURES_CNN ? smoe_params_shared(router->params, router->index[MORE]) : NULL;
#pragma omp parallel for
  for (size_t t = 0; t < call->n_tokens; t++) {
    int32_t token[TAPS];
    smoe_real weight[TAPS];
    const int n = parts_of(token, weight, options, call, t, tap);
    memset(h + t * d, 0, d * sizeof *h);
    for (int j = 0; j < n; j++)
      if (token[j] >= 0) smoe_add_rows_scaled(h + t * d, &weight[j], 1, table + (size_t)token[j] * d, 1, d);
  }
}

/* h = sum_j k_j e(w_j): de(w_j) += k_j dh, dk_j += <dh, e(w_j)>. */
static void features_backward(const smoe_router *router, const smoe_distill_options *options,
                              const smoe_route_call *call, const smoe_real *dh) {
  const size_t d = (size_t)options->width;
  const smoe_real *table = smoe_params_shared(router->params, router->index[EMBEDDING]);
  smoe_real *dtable = smoe_params_lane_grad(router->params, router->index[EMBEDDING], call->lane);
  const bool cnn = options->features == SMOE_FEATURES_CNN;
  const smoe_real *tap = cnn ? smoe_params_shared(router->params, router->index[MORE]) : NULL;
  double dtap[TAPS] = {0};
  for (size_t t = 0; t < call->n_tokens; t++) {
    int32_t token[TAPS];
    smoe_real weight[TAPS];
    const int n = parts_of(token, weight, options, call, t, tap);
    for (int j = 0; j < n; j++) {
      if (token[j] < 0) continue;
      const size_t row = (size_t)token[j] * d;
      if (dtable) smoe_add_rows_scaled(dtable + row, &weight[j], 1, dh + t * d, 1, d);
      if (cnn) dtap[j] += (double)smoe_dot(dh + t * d, table + row, d);
    }
  }
  if (!cnn) return;
  smoe_real *sum = smoe_params_lane_grad(router->params, router->index[MORE], call->lane);
  for (int j = 0; j < TAPS && sum; j++) sum[j] += (smoe_real)dtap[j];
}

void smoe_distill_scores(const smoe_router *router, const smoe_distill_options *options,
                         const smoe_route_call *call, smoe_real *tape, smoe_real *scratch) {
  smoe_real *h = scratch;
  if (options->features == SMOE_FEATURES_TRANSFORMER)
    smoe_distill_transformer_forward(h, router, options, call, router->index[MORE],
                                     smoe_params_shared(router->params, router->index[EMBEDDING]),
                                     more_tape(router, call, tape),
                                     more_scratch(router, options, call, scratch));
  else
    features_forward(h, router, options, call);
  smoe_linear_forward(tape, h, smoe_params_shared(router->params, router->index[CENTROID]), NULL,
                      call->n_tokens, (size_t)options->width, (size_t)router->n_experts); /* (9) */
}

void smoe_distill_loss(const smoe_router *router, const smoe_distill_options *options,
                       const smoe_route_call *call, const int32_t *target, smoe_real *tape,
                       smoe_route_sums *sums) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  smoe_softmax_forward(tape, tape, n, e);
  double *sum = smoe_route_term(router, sums, "distill");
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(target[t]);
    if (a < 0) continue;
    const double p = (double)tape[t * e + (size_t)a];
    *sum -= options->weight * log(fmax(p, 1e-300)); /* (10) */
  }
}

/* dr_i = weight (softmax(r)_i - [i == a]); dEhat += dr^T h; dh = dr Ehat (10). */
void smoe_distill_backward(const smoe_router *router, const smoe_distill_options *options,
                           const smoe_route_call *call, const int32_t *target, const smoe_real *tape,
                           smoe_real *scratch) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, d = (size_t)options->width;
  const smoe_real weight = (smoe_real)(options->weight / (double)call->context->n_targets);
  const bool transformer = options->features == SMOE_FEATURES_TRANSFORMER;
  smoe_real *h = scratch, *dr = scratch + n * d;
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(target[t]);
    for (size_t i = 0; i < e; i++)
      dr[t * e + i] = a < 0 ? 0 : weight * (tape[t * e + i] - (smoe_real)(i == (size_t)a));
  }
  if (transformer)
    smoe_distill_transformer_recompute(h, router, options, call, router->index[MORE],
                                       more_tape(router, call, tape));
  else
    features_forward(h, router, options, call);
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                              NULL, dr, h, n, d, e);
  smoe_linear_backward_input(h, dr, smoe_params_shared(router->params, router->index[CENTROID]), n, d, e,
                             false);
  if (transformer)
    smoe_distill_transformer_backward(
        smoe_params_lane_grad(router->params, router->index[EMBEDDING], call->lane), h, router, options, call,
        router->index[MORE], more_tape(router, call, tape), more_scratch(router, options, call, scratch));
  else
    features_backward(router, options, call, h);
}

void smoe_distill_choose(const smoe_router *router, const smoe_distill_options *options,
                         const smoe_route_call *call, int32_t *expert, smoe_real *tape, smoe_real *scratch) {
  if (!router->compiled) {
    smoe_distill_scores(router, options, call, tape, scratch);
    smoe_route_argmax(expert, tape, call->token, call->n_tokens, router->n_experts); /* (12) */
    return;
  }
  for (size_t t = 0; t < call->n_tokens; t++)
    expert[t] = call->token[t] < 0 ? -1 : router->table[call->token[t]];
}

size_t smoe_distill_table(const smoe_router *router, const smoe_distill_options *options) {
  return options->features == SMOE_FEATURES_WORD ? (size_t)router->vocabulary : 0;
}

enum {
  ROWS = 256
}; /* of a product, whatever the model's shapes are, so that the table does not depend on them */

void smoe_distill_words(smoe_real *table, const smoe_real *word, const smoe_real *centroid, size_t v,
                        size_t d, int n_experts) {
  const size_t e = (size_t)n_experts;
  int32_t expert[ROWS];
  smoe_real *h = smoe_alloc(ROWS * d * sizeof *h), *score = smoe_alloc(ROWS * e * sizeof *score);
  for (size_t first = 0; first < v; first += ROWS) {
    const size_t n = v - first < ROWS ? v - first : ROWS;
    memset(h, 0, ROWS * d * sizeof *h);
    memcpy(h, word + first * d, n * d * sizeof *h);
    smoe_linear_forward(score, h, centroid, NULL, ROWS, d, e); /* (9) */
    smoe_route_argmax(expert, score, NULL, n, n_experts);      /* (12) */
    for (size_t i = 0; i < n; i++) table[first + i] = (smoe_real)expert[i];
  }
  smoe_free(h);
  smoe_free(score);
}

/* A word's features are its own, so each token id has one expert once nothing learns any more. */
static void compile(smoe_router *router, const smoe_distill_options *options) {
  int32_t token[ROWS], expert[ROWS];
  smoe_real *tape = smoe_alloc(smoe_distill_tape(router, options, ROWS) * sizeof *tape);
  smoe_real *scratch = smoe_alloc(smoe_distill_scratch(router, options, ROWS) * sizeof *scratch);
  for (int first = 0; first < router->vocabulary; first += ROWS) {
    for (int i = 0; i < ROWS; i++) token[i] = first + i < router->vocabulary ? first + i : -1;
    const smoe_route_call call = {.token = token, .n_tokens = ROWS, .n_sequences = 1, .n_context = ROWS};
    smoe_distill_choose(router, options, &call, expert, tape, scratch);
    for (int i = 0; i < ROWS && token[i] >= 0; i++) router->table[token[i]] = expert[i];
  }
  smoe_free(tape);
  smoe_free(scratch);
  router->compiled = true;
}

void smoe_distill_freeze(smoe_router *router, const smoe_distill_options *options, smoe_params *params) {
  char prefix[SMOE_NAME_MAX];
  snprintf(prefix, sizeof prefix, "moe%d/router/distilled/", router->layer);
  smoe_params_freeze(params, prefix, true);
  if (router->table && !router->compiled && smoe_distill_table(router, options) > 0) compile(router, options);
}
