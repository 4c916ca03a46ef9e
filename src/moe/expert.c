#include "stablemoe/expert.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"

void smoe_experts_declare(smoe_experts *experts, const smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  smoe_params *params = layer->params;
  *experts = (smoe_experts){.params = params,
                            .data = spec->data,
                            .shape = {.width = spec->width,
                                      .inner = spec->inner,
                                      .out = spec->out,
                                      .norm = spec->expert_norm,
                                      .activation = spec->activation,
                                      .precision = layer->precision},
                            .n_sublayers = spec->sublayers,
                            .number = smoe_params_begin_experts(params, spec->experts)};
  const int64_t c = (int64_t)spec->width, f = (int64_t)spec->inner;
  const int64_t columns = (int64_t)smoe_ffn_columns(&experts->shape);
  /* As in the paper's code: PyTorch's default for W1 and the biases; with a norm of its own W2 = 0, so that an
   * expert starts as x plus a small constant; all experts alike there, told apart by their tokens. */
  const bool same = smoe_config_settings(layer->config)->moe.identical_experts;
  const bool identity = spec->expert_norm != SMOE_NORM_NONE;
  const smoe_init one = {SMOE_INIT_CONSTANT, 1, same}, zero = {SMOE_INIT_CONSTANT, 0, same};
  const smoe_init from_c = {SMOE_INIT_UNIFORM, 1 / sqrt((double)c), same};
  const smoe_init from_f = {SMOE_INIT_UNIFORM, 1 / sqrt((double)f), same};
  const smoe_init first = spec->deviation > 0 ? (smoe_init){SMOE_INIT_NORMAL, spec->deviation, same} : from_c;
  const smoe_init last = smoe_layer_output_init(spec->output, identity ? zero : from_f);
  const int64_t o = (int64_t)smoe_ffn_out(&experts->shape);
  const int64_t vector_c[] = {c, 0}, vector_f[] = {columns, 0}, vector_o[] = {o, 0};
  const int64_t up[] = {columns, c, 0}, down[] = {o, f, 0};
  for (int s = 0; s < experts->n_sublayers; s++) {
    smoe_sublayer *sub = &experts->sublayer[s];
    *sub = (smoe_sublayer){-1, -1, -1, -1, -1, -1};
#define DECLARE(shape, init, decay, name)                                                                    \
  smoe_params_declare(params, SMOE_EXPERT, shape, init, decay, "moe%d/expert/ffn%d/" name, spec->moe, s)
    if (spec->expert_norm != SMOE_NORM_NONE) sub->gamma = DECLARE(vector_c, one, false, "norm/gamma");
    if (spec->expert_norm == SMOE_NORM_LAYER) sub->beta = DECLARE(vector_c, zero, false, "norm/beta");
    sub->w1 = DECLARE(up, first, true, "w1");
    if (spec->bias) sub->b1 = DECLARE(vector_f, from_c, false, "b1");
    sub->w2 = DECLARE(down, last, true, "w2");
    params->param[sub->w2].frozen = spec->output != SMOE_OUTPUT_LEARNED;
    if (spec->bias) sub->b2 = DECLARE(vector_o, from_f, false, "b2");
#undef DECLARE
    if (layer->precision != SMOE_BF16) continue;
    smoe_params_keep_rounded(params, sub->w1);
    smoe_params_keep_rounded(params, sub->w2);
  }
}

void smoe_experts_layout(smoe_experts *experts, smoe_arena *tape, smoe_arena *scratch, size_t rows_max,
                         bool training) {
  experts->rows_max = rows_max;
  for (int s = 0; s < experts->n_sublayers; s++) {
    if (s == 0 || training) {
      experts->z[s] = smoe_arena_reals(tape, rows_max * experts->shape.width);
      experts->tape[s] = smoe_ffn_take_tape(&experts->shape, tape, rows_max);
      continue;
    }
    /* Without a backward one set of buffers serves all sublayers. */
    experts->z[s] = experts->z[0];
    experts->tape[s] = experts->tape[0];
  }
  experts->scratch = smoe_ffn_take_scratch(&experts->shape, scratch, rows_max, training);
  if (training && experts->shape.precision == SMOE_FP32)
    experts->doutput = smoe_arena_reals(scratch, rows_max * experts->shape.width);
}

double smoe_experts_tape_bytes(const smoe_experts *experts, bool training) {
  const smoe_ffn_shape *shape = &experts->shape;
  return (training ? experts->n_sublayers : 1) *
         (double)(shape->width * sizeof(smoe_real) + smoe_ffn_tape_bytes(shape));
}

double smoe_experts_scratch_bytes(const smoe_experts *experts, bool training) {
  const smoe_ffn_shape *shape = &experts->shape;
  const bool doutput = training && shape->precision == SMOE_FP32;
  return (double)(smoe_ffn_scratch_bytes(shape, training) + (doutput ? shape->width * sizeof(smoe_real) : 0));
}

static const smoe_real *value(const smoe_experts *experts, int index, int j) {
  return index < 0 ? NULL : smoe_params_expert(experts->params, index, j);
}

static smoe_operand weight(const smoe_experts *experts, int index, int j) {
  return smoe_params_operand(experts->params, index, j);
}

static smoe_real *grad(const smoe_experts *experts, int index, int j) {
  return index < 0 ? NULL : smoe_params_expert_grad(experts->params, index, j);
}

/* Values and gradients of sublayer s of local expert j. */
static smoe_ffn_values values_of(const smoe_experts *experts, int s, int j) {
  const smoe_sublayer *sub = &experts->sublayer[s];
  return (smoe_ffn_values){value(experts, sub->gamma, j), value(experts, sub->beta, j),
                           weight(experts, sub->w1, j),   value(experts, sub->b1, j),
                           weight(experts, sub->w2, j),   value(experts, sub->b2, j)};
}

static smoe_ffn_grads grads_of(const smoe_experts *experts, int s, int j) {
  const smoe_sublayer *sub = &experts->sublayer[s];
  return (smoe_ffn_grads){grad(experts, sub->gamma, j), grad(experts, sub->beta, j),
                          grad(experts, sub->w1, j),    grad(experts, sub->b1, j),
                          grad(experts, sub->w2, j),    grad(experts, sub->b2, j)};
}

/* Sublayer s of expert j on rows [first, first + m). */
static void sublayer_forward(smoe_experts *experts, int s, int j, smoe_real *delta, size_t first, size_t m) {
  const size_t c = experts->shape.width, o = smoe_ffn_out(&experts->shape);
  const smoe_ffn_values w = values_of(experts, s, j);
  const smoe_ffn_tape tape = smoe_ffn_tape_at(&experts->tape[s], &experts->shape, first);
  const smoe_ffn_scratch scratch = smoe_ffn_scratch_at(&experts->scratch, &experts->shape, first);
  smoe_real *z = experts->z[s] + first * c, *y = scratch.rows;
  smoe_ffn_inner(&experts->shape, &w, &tape, &scratch, z, m);
  smoe_ffn_outer(&experts->shape, &w, &tape, y, m);

  if (s == 0)
    memcpy(delta + first * o, y, m * o * sizeof *y);
  else
    smoe_add(delta + first * o, y, m * o);
  if (s + 1 < experts->n_sublayers) {
    smoe_real *next = experts->z[s + 1] + first * c;
    if (next != z) memcpy(next, z, m * c * sizeof *z);
    smoe_add(next, y, m * c); /* z <- z + W2 act(W1 norm(z) + b1) + b2 */
  }
}

void smoe_experts_forward_some(smoe_experts *experts, smoe_real *delta, const int64_t *offset, int first,
                               int end) {
  for (int j = first; j < end; j++) {
    const size_t row = (size_t)offset[j], m = (size_t)(offset[j + 1] - offset[j]);
    for (int s = 0; s < experts->n_sublayers; s++) sublayer_forward(experts, s, j, delta, row, m);
  }
}

void smoe_experts_forward(smoe_experts *experts, smoe_real *delta, const int64_t *offset) {
  const int n_local = smoe_params_experts(experts->params, experts->number)->n_local;
  smoe_experts_forward_some(experts, delta, offset, 0, n_local);
}

/* The gradient of sublayer s's output on rows from `first` on: as an operand, once it is made. */
static smoe_operand output_gradient(const smoe_experts *experts, int s, const smoe_real *ddelta,
                                    size_t first) {
  const smoe_operand dy = smoe_operand_at(experts->scratch.dy, first * smoe_ffn_out(&experts->shape));
  const smoe_real *rows = s + 1 < experts->n_sublayers ? experts->doutput : ddelta;
  return dy.half ? dy : (smoe_operand){.wide = (smoe_real *)rows + first * smoe_ffn_out(&experts->shape)};
}

/* delta is the sum of the sublayers' outputs; output s has gradient ddelta plus that of the later
 * sublayers' input, which is in dx. */
static void make_output_gradient(smoe_experts *experts, int s, const smoe_real *dx, const smoe_real *ddelta,
                                 size_t first, size_t m) {
  const size_t c = smoe_ffn_out(&experts->shape), at = first * c;
  const smoe_operand dy = smoe_operand_at(experts->scratch.dy, at);
  if (s + 1 == experts->n_sublayers) {
    (void)smoe_operand_of(dy, ddelta + at, m * c);
    return;
  }
  smoe_real *sum = dy.half ? experts->scratch.rows + at : experts->doutput + at;
  memcpy(sum, ddelta + at, m * c * sizeof *sum);
  smoe_add(sum, dx + at, m * c);
  (void)smoe_operand_of(dy, sum, m * c);
}

/* Leaves the gradients of output and inner rows in scratch, for the weights. */
static void sublayer_backward_rows(smoe_experts *experts, int s, int j, smoe_real *dx,
                                   const smoe_real *ddelta, size_t first, size_t m) {
  const smoe_ffn_shape *shape = &experts->shape;
  const size_t c = shape->width;
  const smoe_ffn_values w = values_of(experts, s, j);
  const smoe_ffn_grads g = grads_of(experts, s, j);
  const smoe_ffn_tape tape = smoe_ffn_tape_at(&experts->tape[s], shape, first);
  const smoe_ffn_scratch scratch = smoe_ffn_scratch_at(&experts->scratch, shape, first);
  make_output_gradient(experts, s, dx, ddelta, first, m);
  smoe_ffn_backward_inner(shape, &w, &tape, &scratch, output_gradient(experts, s, ddelta, first), m);
  if (!experts->data)
    smoe_ffn_backward_input(shape, &w, &g, &tape, &scratch, dx + first * c, experts->z[s] + first * c, m);
}

static void sublayer_backward_weights(smoe_experts *experts, int s, int j, const smoe_real *ddelta,
                                      size_t first, size_t m) {
  const smoe_ffn_shape *shape = &experts->shape;
  const smoe_ffn_values w = values_of(experts, s, j);
  const smoe_ffn_grads g = grads_of(experts, s, j);
  const smoe_ffn_tape tape = smoe_ffn_tape_at(&experts->tape[s], shape, first);
  const smoe_ffn_scratch scratch = smoe_ffn_scratch_at(&experts->scratch, shape, first);
  smoe_ffn_backward_outer_weights(shape, &g, &tape, output_gradient(experts, s, ddelta, first), m);
  smoe_ffn_backward_inner_weights(shape, &w, &g, &tape, &scratch, experts->z[s] + first * shape->width, m);
}

static void expert_backward_rows(smoe_experts *experts, int j, smoe_real *dx, const smoe_real *ddelta,
                                 const int64_t *offset) {
  const size_t first = (size_t)offset[j], m = (size_t)(offset[j + 1] - offset[j]);
  if (!experts->data) memset(dx + first * experts->shape.width, 0, m * experts->shape.width * sizeof *dx);
  for (int s = experts->n_sublayers - 1; s >= 0; s--) {
    sublayer_backward_rows(experts, s, j, dx, ddelta, first, m);
    /* The next one down needs the scratch. */
    if (s > 0) sublayer_backward_weights(experts, s, j, ddelta, first, m);
  }
}

static void expert_backward_weights(smoe_experts *experts, int j, const smoe_real *ddelta,
                                    const int64_t *offset) {
  sublayer_backward_weights(experts, 0, j, ddelta, (size_t)offset[j], (size_t)(offset[j + 1] - offset[j]));
}

void smoe_experts_backward_rows(smoe_experts *experts, smoe_real *dx, const smoe_real *ddelta,
                                const int64_t *offset, int first, int end) {
  for (int j = first; j < end; j++) expert_backward_rows(experts, j, dx, ddelta, offset);
}

void smoe_experts_backward_weights(smoe_experts *experts, const smoe_real *ddelta, const int64_t *offset,
                                   int first, int end) {
  for (int j = first; j < end; j++) expert_backward_weights(experts, j, ddelta, offset);
}

void smoe_experts_backward(smoe_experts *experts, smoe_real *dx, const smoe_real *ddelta,
                           const int64_t *offset) {
  const int n_local = smoe_params_experts(experts->params, experts->number)->n_local;
  for (int j = 0; j < n_local; j++) {
    expert_backward_rows(experts, j, dx, ddelta, offset);
    expert_backward_weights(experts, j, ddelta, offset);
  }
}
