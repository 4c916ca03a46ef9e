/* The self-attention sublayer: y = x + Wo attention(Wqkv norm(x) + bqkv) + bo. */
#include <math.h>
#include <string.h>

#include "stablemoe/layer.h"
#include "stablemoe/phase.h"

typedef struct attention {
  smoe_attention_shape shape;
  int gamma, beta, qkv, qkv_bias, proj, proj_bias; /* parameters */
  bool kept;                                       /* every lane has a tape of its own */
  smoe_attention_tape tape;
  smoe_attention_buffers buffer;
} attention;

static void declare_attention(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  attention *a = layer->state;
  a->shape = (smoe_attention_shape){.width = spec->width, .heads = spec->heads, .norm = spec->norm};
  const int64_t c = (int64_t)spec->width;
  const smoe_init one = {SMOE_INIT_CONSTANT, 1, false}, zero = {SMOE_INIT_CONSTANT, 0, false};
  /* Xavier (gain 1/sqrt 2 where q, k, v share a matrix), as in the library that the StableMoE code is built on. */
  const smoe_init qkv = {SMOE_INIT_UNIFORM, sqrt(6.0 / (2.0 * (double)c)) / sqrt(2.0), false};
  const smoe_init proj = {SMOE_INIT_UNIFORM, sqrt(6.0 / (2.0 * (double)c)), false};
  const int64_t vector_c[] = {c, 0}, vector_3c[] = {3 * c, 0};
  a->gamma = a->beta = a->qkv_bias = a->proj_bias = -1;
  if (spec->norm != SMOE_NORM_NONE) a->gamma = smoe_layer_declare(layer, "norm/gamma", vector_c, one, false);
  if (spec->norm == SMOE_NORM_LAYER) a->beta = smoe_layer_declare(layer, "norm/beta", vector_c, zero, false);
  a->qkv = smoe_layer_declare(layer, "qkv/weight", (int64_t[]){3 * c, c, 0}, qkv, true);
  if (spec->bias) a->qkv_bias = smoe_layer_declare(layer, "qkv/bias", vector_3c, zero, false);
  a->proj = smoe_layer_declare(layer, "proj/weight", (int64_t[]){c, c, 0}, proj, true);
  if (spec->bias) a->proj_bias = smoe_layer_declare(layer, "proj/bias", vector_c, zero, false);
}

static void layout_attention(smoe_layer *layer, const smoe_layer_memory *memory) {
  attention *a = layer->state;
  const smoe_token_shape *shape = &memory->shape[layer->spec.stream];
  const size_t lane = shape->lane_tokens, n = (size_t)memory->tape_lanes * lane, c = a->shape.width;
  a->kept = memory->tape_lanes > 1;
  a->tape = (smoe_attention_tape){.mean = smoe_arena_reals(memory->tape, n),
                                  .rstd = smoe_arena_reals(memory->tape, n),
                                  .qkv = smoe_arena_reals(memory->tape, n * 3 * c),
                                  .attended = smoe_arena_reals(memory->tape, n * c),
                                  .lse = smoe_arena_reals(memory->tape, n * a->shape.heads)};
  a->buffer = (smoe_attention_buffers){
      .normed = smoe_arena_reals(memory->scratch, lane * c),
      .attention =
          smoe_arena_reals(memory->scratch, smoe_attention_scratch(shape->context, c / a->shape.heads))};
  if (!memory->training) return;
  a->buffer.dnormed = smoe_arena_reals(memory->scratch, lane * c);
  a->buffer.dqkv = smoe_arena_reals(memory->scratch, lane * 3 * c);
  a->buffer.dout = smoe_arena_reals(memory->scratch, lane * c);
}

static smoe_attention_values values_of(const smoe_layer *layer) {
  const attention *a = layer->state;
  return (smoe_attention_values){smoe_layer_value(layer, a->gamma), smoe_layer_value(layer, a->beta),
                                 smoe_layer_value(layer, a->qkv),   smoe_layer_value(layer, a->qkv_bias),
                                 smoe_layer_value(layer, a->proj),  smoe_layer_value(layer, a->proj_bias)};
}

static smoe_attention_tape tape_of(const attention *a, const smoe_layer_call *call) {
  const size_t first = a->kept ? (size_t)call->lane * call->n : 0, c = a->shape.width;
  const smoe_attention_tape *tape = &a->tape;
  return (smoe_attention_tape){tape->mean + first, tape->rstd + first, tape->qkv + first * 3 * c,
                               tape->attended + first * c, tape->lse + first * a->shape.heads};
}

static void forward_attention(smoe_layer *layer, const smoe_layer_call *call) {
  const attention *a = layer->state;
  const smoe_attention_values w = values_of(layer);
  const smoe_attention_tape tape = tape_of(a, call);
  smoe_attention_sublayer(&a->shape, &w, &tape, &a->buffer, call->y, call->x, call->n_sequences,
                          call->context);
  smoe_add(call->y, call->x, call->n * a->shape.width);
}

static void recompute_attention(smoe_layer *layer, const smoe_layer_call *call) {
  const attention *a = layer->state;
  const smoe_attention_values w = values_of(layer);
  const smoe_attention_tape tape = tape_of(a, call);
  smoe_attention_sublayer(&a->shape, &w, &tape, &a->buffer, NULL, call->x, call->n_sequences, call->context);
}

static void backward_attention(smoe_layer *layer, const smoe_layer_call *call) {
  const attention *a = layer->state;
  const smoe_attention_values w = values_of(layer);
  const smoe_attention_tape tape = tape_of(a, call);
  const int lane = call->lane;
  const smoe_attention_grads g = {
      smoe_layer_grad(layer, a->gamma, lane), smoe_layer_grad(layer, a->beta, lane),
      smoe_layer_grad(layer, a->qkv, lane),   smoe_layer_grad(layer, a->qkv_bias, lane),
      smoe_layer_grad(layer, a->proj, lane),  smoe_layer_grad(layer, a->proj_bias, lane)};
  smoe_attention_sublayer_backward(&a->shape, &w, &g, &tape, &a->buffer, call->dx, call->x, call->n_sequences,
                                   call->context);
}

/* ---- decoding: the state is qkv [sequences, length_max, 3 C] ---- */

static size_t state_reals_attention(const smoe_layer *layer, size_t n_sequences, size_t length_max) {
  return n_sequences * length_max * 3 * layer->spec.width;
}

/* Rows first .. first + n - 1 of one sequence see themselves and those before. */
static void attend(const attention *a, smoe_real *out, const smoe_real *qkv, size_t first, size_t n) {
  const size_t c = a->shape.width, h = a->shape.heads;
  if (first == 0 && n > 1) {
    smoe_attention_forward(out, a->tape.lse, qkv, a->buffer.attention, 1, n, h, c / h);
    return;
  }
  for (size_t i = 0; i < n; i++) smoe_attention_row(out + i * c, qkv, a->tape.lse, first + i, h, c / h);
}

static void extend_attention(smoe_layer *layer, const smoe_extend_call *call) {
  const attention *a = layer->state;
  const smoe_attention_values w = values_of(layer);
  const size_t c = a->shape.width, n = call->n_sequences * call->n;
  smoe_norm_rows(a->shape.norm, a->buffer.normed, a->tape.mean, a->tape.rstd, call->x, w.gamma, w.beta, n, c);
  smoe_linear_rows(a->tape.qkv, a->buffer.normed, w.qkv, w.qkv_bias, n, c, 3 * c);
  for (size_t s = 0; s < call->n_sequences; s++) {
    smoe_real *state = call->state + s * call->length_max * 3 * c;
    memcpy(state + call->first * 3 * c, a->tape.qkv + s * call->n * 3 * c, call->n * 3 * c * sizeof *state);
    attend(a, a->tape.attended + s * call->n * c, state, call->first, call->n);
  }
  smoe_linear_rows(call->y, a->tape.attended, w.proj, w.proj_bias, n, c, c);
  smoe_add(call->y, call->x, n * c);
}

static void reorder_attention(const smoe_layer *layer, smoe_real *state, const int32_t *from,
                              size_t n_sequences, size_t length, size_t length_max) {
  smoe_reorder_rows(state, from, n_sequences, length * 3 * layer->spec.width,
                    length_max * 3 * layer->spec.width);
}

static void work_attention(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const attention *a = layer->state;
  const smoe_token_shape *s = &shape[layer->spec.stream];
  const size_t c = a->shape.width;
  smoe_work_linear(work, s->lane_tokens, c, 3 * c, s->n_lanes);
  smoe_work_linear(work, s->lane_tokens, c, c, s->n_lanes);
  smoe_work_attention(work, (double)s->n_lanes * (double)s->lane_sequences, (double)s->context,
                      (double)s->context, (double)a->shape.heads, (double)(c / a->shape.heads), true);
}

const smoe_layer_ops smoe_layer_attention = {
    .kind = "attention",
    .bytes = sizeof(attention),
    .declare = declare_attention,
    .layout = layout_attention,
    .forward = forward_attention,
    .recompute = recompute_attention,
    .backward = backward_attention,
    .state_reals = state_reals_attention,
    .extend = extend_attention,
    .reorder = reorder_attention,
    .work = work_attention,
};
