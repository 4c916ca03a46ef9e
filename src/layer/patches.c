/* The first layer of a model of images: patches as they are, or y = dropout(W patch + b + position). */
#include <math.h>
#include <string.h>

#include "stablemoe/layer.h"
#include "stablemoe/phase.h"

/* ---- as they are ---- */

static void layout_pixels(smoe_layer *layer, const smoe_layer_memory *memory) {
}

static void forward_pixels(smoe_layer *layer, const smoe_layer_call *call) {
  SMOE_ASSERT(layer->spec.width == layer->spec.patch);
  if (call->n) memcpy(call->y, call->patch, call->n * layer->spec.width * sizeof *call->y);
}

const smoe_layer_ops smoe_layer_pixels = {
    .kind = "pixels",
    .bytes = 1,
    .layout = layout_pixels,
    .forward = forward_pixels,
};

/* ---- embedded ---- */

typedef struct patches {
  int weight, bias, position;
} patches;

static void declare_patches(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  patches *p = layer->state;
  const int64_t c = (int64_t)spec->width, d = (int64_t)spec->patch;
  const smoe_init from_d = {SMOE_INIT_UNIFORM, 1 / sqrt((double)d), false};
  p->weight = smoe_layer_declare(layer, "weight", (int64_t[]){c, d, 0}, from_d, true);
  p->bias = smoe_layer_declare(layer, "bias", (int64_t[]){c, 0}, from_d, false);
  p->position = smoe_layer_declare(layer, "position", (int64_t[]){(int64_t)spec->context, c, 0},
                                   (smoe_init){SMOE_INIT_NORMAL, 0.02, false}, true);
}

static void forward_patches(smoe_layer *layer, const smoe_layer_call *call) {
  const patches *p = layer->state;
  const size_t c = layer->spec.width;
  const smoe_real *position = smoe_layer_value(layer, p->position);
  smoe_phase(SMOE_PHASE_EMBEDDING);
  smoe_linear_forward(call->y, call->patch, smoe_layer_value(layer, p->weight),
                      smoe_layer_value(layer, p->bias), call->n, layer->spec.patch, c);
  for (size_t s = 0; s < call->n_sequences; s++)
    smoe_add(call->y + s * call->context * c, position, call->context * c);
  smoe_layer_dropout(layer, call, call->y);
}

/* The patches are data: they have no gradient. */
static void backward_patches(smoe_layer *layer, const smoe_layer_call *call) {
  const patches *p = layer->state;
  const size_t c = layer->spec.width;
  smoe_real *position = smoe_layer_grad(layer, p->position, call->lane);
  smoe_phase(SMOE_PHASE_EMBEDDING);
  smoe_layer_dropout(layer, call, call->dx);
  smoe_linear_backward_weight(smoe_layer_grad(layer, p->weight, call->lane),
                              smoe_layer_grad(layer, p->bias, call->lane), call->dx, call->patch, call->n,
                              layer->spec.patch, c);
  for (size_t s = 0; position && s < call->n_sequences; s++) /* NULL: train.frozen has them */
    smoe_add(position, call->dx + s * call->context * c, call->context * c);
}

static void work_patches(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const patches *p = layer->state;
  const smoe_token_shape *s = &shape[layer->spec.stream];
  smoe_work_linear(work, s->lane_tokens, layer->spec.patch, layer->spec.width, s->n_lanes,
                   smoe_layer_learns(layer, p->weight));
}

const smoe_layer_ops smoe_layer_patches = {
    .kind = "patches",
    .bytes = sizeof(patches),
    .declare = declare_patches,
    .layout = layout_pixels,
    .forward = forward_patches,
    .backward = backward_patches,
    .work = work_patches,
};
