/* The feed-forward sublayer: y = x + dropout(W2 act(W1 norm(x) + b1) + b2). */
#include <math.h>

#include "stablemoe/layer.h"
#include "stablemoe/phase.h"

typedef struct ffn {
  smoe_ffn_shape shape;
  int gamma, beta, w1, b1, w2, b2; /* parameters */
  bool kept;                       /* every lane has a tape of its own */
  smoe_ffn_tape tape;
  smoe_ffn_scratch scratch;
  smoe_real *dy; /* scratch [lane tokens, C]: gradient behind the dropout */
} ffn;

static void declare_ffn(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  ffn *f = layer->state;
  f->shape = (smoe_ffn_shape){.width = spec->width,
                              .inner = spec->inner,
                              .out = spec->out,
                              .norm = spec->norm,
                              .activation = spec->activation,
                              .precision = layer->precision};
  const int64_t c = (int64_t)spec->width, inner = (int64_t)spec->inner, o = (int64_t)smoe_ffn_out(&f->shape);
  const int64_t columns = (int64_t)smoe_ffn_columns(&f->shape);
  const smoe_init one = {SMOE_INIT_CONSTANT, 1, false}, zero = {SMOE_INIT_CONSTANT, 0, false};
  /* 1/sqrt(fan in), as in the library that the StableMoE code is built on. */
  const smoe_init from_c = {SMOE_INIT_UNIFORM, 1 / sqrt((double)c), false};
  const smoe_init from_f = {SMOE_INIT_UNIFORM, 1 / sqrt((double)inner), false};
  const smoe_init up = spec->deviation > 0 ? (smoe_init){SMOE_INIT_NORMAL, spec->deviation, false} : from_c;
  const smoe_init down = smoe_layer_output_init(spec->output, from_f);
  const int64_t vector_c[] = {c, 0}, vector_f[] = {columns, 0}, vector_o[] = {o, 0};
  f->gamma = f->beta = f->b1 = f->b2 = -1;
  if (spec->norm != SMOE_NORM_NONE) f->gamma = smoe_layer_declare(layer, "norm/gamma", vector_c, one, false);
  if (spec->norm == SMOE_NORM_LAYER) f->beta = smoe_layer_declare(layer, "norm/beta", vector_c, zero, false);
  f->w1 = smoe_layer_declare_weight(layer, "w1", (int64_t[]){columns, c, 0}, up);
  if (spec->bias) f->b1 = smoe_layer_declare(layer, "b1", vector_f, from_c, false);
  f->w2 = smoe_layer_declare_weight(layer, "w2", (int64_t[]){o, inner, 0}, down);
  layer->params->param[f->w2].frozen = spec->output != SMOE_OUTPUT_LEARNED;
  if (spec->bias) f->b2 = smoe_layer_declare(layer, "b2", vector_o, from_f, false);
}

static void layout_ffn(smoe_layer *layer, const smoe_layer_memory *memory) {
  ffn *f = layer->state;
  const size_t lane = memory->shape[layer->spec.stream].lane_tokens;
  f->kept = memory->tape_lanes > 1;
  f->tape = smoe_ffn_take_tape(&f->shape, memory->tape, (size_t)memory->tape_lanes * lane);
  f->scratch = smoe_ffn_take_scratch(&f->shape, memory->scratch, lane, memory->training);
  if (memory->training && layer->spec.dropout > 0)
    f->dy = smoe_arena_reals(memory->scratch, lane * f->shape.width);
}

static smoe_ffn_values values_of(const smoe_layer *layer) {
  const ffn *f = layer->state;
  return (smoe_ffn_values){smoe_layer_value(layer, f->gamma), smoe_layer_value(layer, f->beta),
                           smoe_layer_weight(layer, f->w1),   smoe_layer_value(layer, f->b1),
                           smoe_layer_weight(layer, f->w2),   smoe_layer_value(layer, f->b2)};
}

static smoe_ffn_tape tape_of(const ffn *f, const smoe_layer_call *call) {
  return smoe_ffn_tape_at(&f->tape, &f->shape, f->kept ? (size_t)call->lane * call->n : 0);
}

static void recompute_ffn(smoe_layer *layer, const smoe_layer_call *call) {
  const ffn *f = layer->state;
  const smoe_ffn_values w = values_of(layer);
  const smoe_ffn_tape tape = tape_of(f, call);
  smoe_ffn_inner(&f->shape, &w, &tape, &f->scratch, call->x, call->n);
}

static smoe_ffn_grads grads_of(const smoe_layer *layer, int lane) {
  const ffn *f = layer->state;
  return (smoe_ffn_grads){smoe_layer_grad(layer, f->gamma, lane), smoe_layer_grad(layer, f->beta, lane),
                          smoe_layer_grad(layer, f->w1, lane),    smoe_layer_grad(layer, f->b1, lane),
                          smoe_layer_grad(layer, f->w2, lane),    smoe_layer_grad(layer, f->b2, lane)};
}

void smoe_layer_ffn_add(smoe_layer *layer, const smoe_layer_call *call, smoe_real *y) {
  const ffn *f = layer->state;
  const smoe_ffn_values w = values_of(layer);
  const smoe_ffn_tape tape = tape_of(f, call);
  smoe_ffn_inner(&f->shape, &w, &tape, &f->scratch, call->x, call->n);
  smoe_ffn_outer(&f->shape, &w, &tape, f->scratch.rows, call->n);
  smoe_add(y, f->scratch.rows, call->n * f->shape.width);
}

void smoe_layer_ffn_add_backward(smoe_layer *layer, const smoe_layer_call *call, const smoe_real *dy_rows) {
  const ffn *f = layer->state;
  const smoe_ffn_values w = values_of(layer);
  const smoe_ffn_tape tape = tape_of(f, call);
  const smoe_ffn_grads g = grads_of(layer, call->lane);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  const smoe_operand dy = smoe_operand_of(f->scratch.dy, dy_rows, call->n * smoe_ffn_out(&f->shape));
  smoe_ffn_backward_outer_weights(&f->shape, &g, &tape, dy, call->n);
  smoe_ffn_backward_inner(&f->shape, &w, &tape, &f->scratch, dy, call->n);
  smoe_ffn_backward_inner_weights(&f->shape, &w, &g, &tape, &f->scratch, call->x, call->n);
  if (!layer->spec.data)
    smoe_ffn_backward_input(&f->shape, &w, &g, &tape, &f->scratch, call->dx, call->x, call->n);
}

static void forward_ffn(smoe_layer *layer, const smoe_layer_call *call) {
  const ffn *f = layer->state;
  const smoe_ffn_values w = values_of(layer);
  const smoe_ffn_tape tape = tape_of(f, call);
  smoe_ffn_inner(&f->shape, &w, &tape, &f->scratch, call->x, call->n);
  smoe_ffn_outer(&f->shape, &w, &tape, call->y, call->n);
  if (layer->spec.out) return;
  smoe_layer_dropout(layer, call, call->y);
  smoe_add(call->y, call->x, call->n * f->shape.width);
}

/* dy may be dx: the weights that need it come before it changes. */
static void backward_ffn(smoe_layer *layer, const smoe_layer_call *call) {
  const ffn *f = layer->state;
  smoe_layer_ffn_add_backward(layer, call, smoe_layer_dropout_backward(layer, call, f->dy));
}

static void extend_ffn(smoe_layer *layer, const smoe_extend_call *call) {
  const ffn *f = layer->state;
  smoe_ffn_shape shape = f->shape;
  const smoe_ffn_values w = values_of(layer);
  const size_t n = call->n_sequences * call->n;
  shape.decoding = true;
  smoe_ffn_inner(&shape, &w, &f->tape, &f->scratch, call->x, n);
  smoe_ffn_outer(&shape, &w, &f->tape, call->y, n);
  smoe_add(call->y, call->x, n * shape.width);
}

static void work_ffn(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const ffn *f = layer->state;
  const smoe_token_shape *s = &shape[layer->spec.stream];
  smoe_work_linear(work, s->lane_tokens, f->shape.width, smoe_ffn_columns(&f->shape), s->n_lanes,
                   smoe_layer_learns(layer, f->w1));
  smoe_work_linear(work, s->lane_tokens, f->shape.inner, smoe_ffn_out(&f->shape), s->n_lanes,
                   smoe_layer_learns(layer, f->w2));
}

const smoe_ffn_tape *smoe_layer_ffn_tape(const smoe_layer *layer) {
  return &((const ffn *)layer->state)->tape;
}

const smoe_layer_ops smoe_layer_ffn = {
    .kind = "ffn",
    .bytes = sizeof(ffn),
    .declare = declare_ffn,
    .layout = layout_ffn,
    .forward = forward_ffn,
    .recompute = recompute_ffn,
    .backward = backward_ffn,
    .extend = extend_ffn,
    .work = work_ffn,
};
