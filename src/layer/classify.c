/* The head of a model of images: logits = W norm(scale sum of an image's rows) + b, or that sum itself; and the
 * objective with one target for each image, which stands at its first row. In training the gradients of all of it
 * at once, as in the head of language models. */
#include <math.h>
#include <string.h>

#include "stablemoe/layer.h"
#include "stablemoe/phase.h"

typedef struct classify {
  int gamma, beta, weight, bias; /* -1: none */
  smoe_real *pooled, *dpooled;   /* scratch [S, C] */
  smoe_real *normed, *dnormed;   /* scratch [S, C] */
  smoe_real *mean, *rstd;        /* scratch [S] */
  smoe_real *logits, *loss;      /* scratch [S, O], [S] */
  int32_t *target, *predicted;   /* scratch [S] */
} classify;

static void declare_classify(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  classify *h = layer->state;
  const int64_t c = (int64_t)spec->width, o = (int64_t)spec->vocabulary;
  const smoe_init one = {SMOE_INIT_CONSTANT, 1, false}, zero = {SMOE_INIT_CONSTANT, 0, false};
  h->gamma = h->beta = h->weight = h->bias = -1;
  if (spec->bare) return;
  if (spec->norm != SMOE_NORM_NONE)
    h->gamma = smoe_layer_declare(layer, "norm/gamma", (int64_t[]){c, 0}, one, false);
  if (spec->norm == SMOE_NORM_LAYER)
    h->beta = smoe_layer_declare(layer, "norm/beta", (int64_t[]){c, 0}, zero, false);
  h->weight = smoe_layer_declare(layer, "weight", (int64_t[]){o, c, 0},
                                 (smoe_init){SMOE_INIT_UNIFORM, 1 / sqrt((double)c), false}, true);
  h->bias = smoe_layer_declare(layer, "bias", (int64_t[]){o, 0}, zero, false);
}

static void layout_classify(smoe_layer *layer, const smoe_layer_memory *memory) {
  classify *h = layer->state;
  const size_t s = memory->shape[layer->spec.stream].lane_sequences, c = layer->spec.width;
  smoe_arena *scratch = memory->scratch;
  h->pooled = smoe_arena_reals(scratch, s * c);
  h->normed = smoe_arena_reals(scratch, s * c);
  h->mean = smoe_arena_reals(scratch, s);
  h->rstd = smoe_arena_reals(scratch, s);
  h->logits = smoe_arena_reals(scratch, s * layer->spec.vocabulary);
  h->loss = smoe_arena_reals(scratch, s);
  h->target = smoe_arena_ints(scratch, s);
  h->predicted = smoe_arena_ints(scratch, s);
  if (!memory->training) return;
  h->dpooled = smoe_arena_reals(scratch, s * c);
  h->dnormed = smoe_arena_reals(scratch, s * c);
}

/* pooled = scale times the sum of each image's rows, in their order. */
static void pool(const smoe_layer *layer, const smoe_layer_call *call) {
  const classify *h = layer->state;
  const size_t c = layer->spec.width, t = call->context;
  const smoe_real scale = (smoe_real)layer->spec.scale;
  for (size_t s = 0; s < call->n_sequences; s++) {
    smoe_real *to = h->pooled + s * c;
    memset(to, 0, c * sizeof *to);
    for (size_t r = 0; r < t; r++) smoe_add(to, call->x + (s * t + r) * c, c);
    for (size_t j = 0; j < c; j++) to[j] *= scale;
  }
}

static void pool_backward(const smoe_layer *layer, const smoe_layer_call *call, const smoe_real *dpooled) {
  const size_t c = layer->spec.width, t = call->context;
  const smoe_real scale = (smoe_real)layer->spec.scale;
  for (size_t s = 0; s < call->n_sequences; s++)
    for (size_t r = 0; r < t; r++)
      for (size_t j = 0; j < c; j++) call->dx[(s * t + r) * c + j] = scale * dpooled[s * c + j];
}

static void objective(const smoe_layer *layer, const smoe_layer_call *call) {
  const classify *h = layer->state;
  const size_t s = call->n_sequences;
  smoe_lane_sums *sums = (smoe_lane_sums *)call->sums;
  for (size_t i = 0; i < s; i++) h->target[i] = call->target[i * call->context];
  call->objective->rows(call->objective,
                        &(smoe_objective_call){.logits = h->logits,
                                               .loss = h->loss,
                                               .predicted = h->predicted,
                                               .sums = call->sums + sizeof(smoe_lane_sums) / sizeof(double),
                                               .target = h->target,
                                               .rows = s,
                                               .vocabulary = layer->spec.vocabulary,
                                               .copies = 1,
                                               .scale = (smoe_real)(1.0 / (double)call->pass->n_targets),
                                               .gradient = call->pass->training});
  for (size_t i = 0; i < s; i++) {
    sums->loss += (double)h->loss[i];
    sums->n_targets += h->target[i] >= 0;
  }
  if (call->token_loss) memset(call->token_loss, 0, call->n * sizeof *call->token_loss);
  for (size_t i = 0; i < s; i++) {
    if (call->token_loss) call->token_loss[i * call->context] = h->loss[i];
    if (call->predicted) call->predicted[i * call->context] = h->predicted[i];
  }
}

/* Writes dx = dL/dx in training: there is no backward of its own. */
static void forward_classify(smoe_layer *layer, const smoe_layer_call *call) {
  const classify *h = layer->state;
  const size_t s = call->n_sequences, c = layer->spec.width, o = layer->spec.vocabulary;
  const smoe_norm_kind norm = layer->spec.norm;
  const smoe_real *gamma = smoe_layer_value(layer, h->gamma), *weight = smoe_layer_value(layer, h->weight);
  smoe_phase(SMOE_PHASE_HEAD);
  pool(layer, call);
  if (layer->spec.bare) {
    memcpy(h->logits, h->pooled, s * o * sizeof *h->logits);
    objective(layer, call);
    if (call->pass->training) pool_backward(layer, call, h->logits);
    return;
  }
  smoe_norm_rows(norm, (smoe_operand){.wide = h->normed}, h->mean, h->rstd, h->pooled, gamma,
                 smoe_layer_value(layer, h->beta), s, c);
  smoe_linear_forward(h->logits, h->normed, weight, smoe_layer_value(layer, h->bias), s, c, o);
  objective(layer, call);
  if (!call->pass->training) return;
  smoe_linear_backward_weight(smoe_layer_grad(layer, h->weight, call->lane),
                              smoe_layer_grad(layer, h->bias, call->lane), h->logits, h->normed, s, c, o);
  smoe_linear_backward_input(h->dnormed, h->logits, weight, s, c, o, false);
  memset(h->dpooled, 0, s * c * sizeof *h->dpooled);
  smoe_norm_rows_backward(norm, h->dpooled, smoe_layer_grad(layer, h->gamma, call->lane),
                          smoe_layer_grad(layer, h->beta, call->lane), h->dnormed, h->pooled, gamma, h->mean,
                          h->rstd, s, c);
  pool_backward(layer, call, h->dpooled);
}

static void work_classify(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const classify *h = layer->state;
  const smoe_token_shape *s = &shape[layer->spec.stream];
  if (!layer->spec.bare)
    smoe_work_linear(work, s->lane_sequences, layer->spec.width, layer->spec.vocabulary, s->n_lanes,
                     smoe_layer_learns(layer, h->weight));
}

const smoe_layer_ops smoe_layer_classify = {
    .kind = "classify",
    .bytes = sizeof(classify),
    .declare = declare_classify,
    .layout = layout_classify,
    .forward = forward_classify,
    .work = work_classify,
};
