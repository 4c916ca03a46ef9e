/* A norm without residual: y = norm(x), the last layer of an encoder. */
#include <string.h>

#include "stablemoe/layer.h"
#include "stablemoe/phase.h"

typedef struct norm {
  int gamma, beta;
  bool kept;
  smoe_real *mean, *rstd; /* tape */
  smoe_real *dy;          /* scratch [lane tokens, C] */
} norm;

static void declare_norm(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  norm *s = layer->state;
  const int64_t vector[] = {(int64_t)spec->width, 0};
  s->beta = -1;
  s->gamma = smoe_layer_declare(layer, "gamma", vector, (smoe_init){SMOE_INIT_CONSTANT, 1, false}, false);
  if (spec->norm == SMOE_NORM_LAYER)
    s->beta = smoe_layer_declare(layer, "beta", vector, (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false);
}

static void layout_norm(smoe_layer *layer, const smoe_layer_memory *memory) {
  norm *s = layer->state;
  const size_t lane = memory->shape[layer->spec.stream].lane_tokens, n = (size_t)memory->tape_lanes * lane;
  s->kept = memory->tape_lanes > 1;
  s->mean = smoe_arena_reals(memory->tape, n);
  s->rstd = smoe_arena_reals(memory->tape, n);
  if (memory->training) s->dy = smoe_arena_reals(memory->scratch, lane * layer->spec.width);
}

static void rows(smoe_layer *layer, smoe_real *y, const smoe_real *x, size_t first, size_t n) {
  const norm *s = layer->state;
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows(layer->spec.norm, (smoe_operand){.wide = y}, s->mean + first, s->rstd + first, x,
                 smoe_layer_value(layer, s->gamma), smoe_layer_value(layer, s->beta), n, layer->spec.width);
}

static size_t first_of(const smoe_layer *layer, const smoe_layer_call *call) {
  return ((const norm *)layer->state)->kept ? (size_t)call->lane * call->n : 0;
}

static void forward_norm(smoe_layer *layer, const smoe_layer_call *call) {
  rows(layer, call->y, call->x, first_of(layer, call), call->n);
}

/* The tape is two numbers a row: y goes where dy will be. */
static void recompute_norm(smoe_layer *layer, const smoe_layer_call *call) {
  rows(layer, ((norm *)layer->state)->dy, call->x, first_of(layer, call), call->n);
}

static void backward_norm(smoe_layer *layer, const smoe_layer_call *call) {
  const norm *s = layer->state;
  const size_t n = call->n, c = layer->spec.width, first = first_of(layer, call);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  memcpy(s->dy, call->dx, n * c * sizeof *s->dy);
  memset(call->dx, 0, n * c * sizeof *call->dx);
  smoe_norm_rows_backward(layer->spec.norm, call->dx, smoe_layer_grad(layer, s->gamma, call->lane),
                          smoe_layer_grad(layer, s->beta, call->lane), s->dy, call->x,
                          smoe_layer_value(layer, s->gamma), s->mean + first, s->rstd + first, n, c);
}

static void extend_norm(smoe_layer *layer, const smoe_extend_call *call) {
  rows(layer, call->y, call->x, 0, call->n_sequences * call->n);
}

const smoe_layer_ops smoe_layer_norm = {
    .kind = "norm",
    .bytes = sizeof(norm),
    .declare = declare_norm,
    .layout = layout_norm,
    .forward = forward_norm,
    .recompute = recompute_norm,
    .backward = backward_norm,
    .extend = extend_norm,
};
