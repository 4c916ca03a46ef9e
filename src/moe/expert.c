#include "stablemoe/expert.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"

void smoe_experts_declare(smoe_experts *experts, const smoe_settings *settings, smoe_params *params,
                          int layer) {
  const int64_t c = settings->model.width, f = settings->moe.inner;
  *experts = (smoe_experts){
      .params = params, .width = (size_t)c, .inner = (size_t)f, .n_sublayers = (int)settings->moe.sublayers};
  /* As in the paper's code: PyTorch's default for W1 and the biases, W2 = 0, so that an expert
   * starts as x plus a small constant; all experts alike there, told apart by their tokens. */
  const bool same = settings->moe.identical_experts;
  const smoe_init one = {SMOE_INIT_CONSTANT, 1, same}, zero = {SMOE_INIT_CONSTANT, 0, same};
  const smoe_init from_c = {SMOE_INIT_UNIFORM, 1 / sqrt((double)c), same};
  const smoe_init from_f = {SMOE_INIT_UNIFORM, 1 / sqrt((double)f), same};
  const int64_t vector_c[] = {c, 0}, vector_f[] = {f, 0}, up[] = {f, c, 0}, down[] = {c, f, 0};
  for (int s = 0; s < experts->n_sublayers; s++) {
    smoe_sublayer *sub = &experts->sublayer[s];
#define DECLARE(shape, init, decay, name)                                                                    \
  smoe_params_declare(params, SMOE_EXPERT, shape, init, decay, "moe%d/expert/ffn%d/" name, layer, s)
    sub->gamma = DECLARE(vector_c, one, false, "norm/gamma");
    sub->beta = DECLARE(vector_c, zero, false, "norm/beta");
    sub->w1 = DECLARE(up, from_c, true, "w1");
    sub->b1 = DECLARE(vector_f, from_c, false, "b1");
    sub->w2 = DECLARE(down, zero, true, "w2");
    sub->b2 = DECLARE(vector_c, from_f, false, "b2");
#undef DECLARE
  }
}

void smoe_experts_layout(smoe_experts *experts, smoe_arena *tape, smoe_arena *scratch, size_t rows_max,
                         bool training) {
  const size_t c = experts->width, f = experts->inner;
  experts->rows_max = rows_max;
  for (int s = 0; s < experts->n_sublayers; s++) {
    if (s > 0 && !training) {
      /* Without a backward one set of buffers serves all sublayers. */
      experts->z[s] = experts->z[0];
      experts->h[s] = experts->h[0];
      experts->mean[s] = experts->mean[0];
      experts->rstd[s] = experts->rstd[0];
      continue;
    }
    experts->z[s] = smoe_arena_reals(tape, rows_max * c);
    experts->h[s] = smoe_arena_reals(tape, rows_max * f);
    experts->mean[s] = smoe_arena_reals(tape, rows_max);
    experts->rstd[s] = smoe_arena_reals(tape, rows_max);
  }
  experts->normed = smoe_arena_reals(scratch, rows_max * c);
  if (training) {
    experts->dinner = smoe_arena_reals(scratch, rows_max * f);
    experts->doutput = smoe_arena_reals(scratch, rows_max * c);
  }
}

/* Values and gradients of one sublayer of local expert j. */
typedef struct sublayer_view {
  const smoe_real *gamma, *beta, *w1, *b1, *w2, *b2;
  smoe_real *dgamma, *dbeta, *dw1, *db1, *dw2, *db2;
} sublayer_view;

static sublayer_view view(const smoe_experts *experts, int s, int j, bool gradients) {
  const smoe_params *params = experts->params;
  const smoe_sublayer *sub = &experts->sublayer[s];
  sublayer_view v = {
      .gamma = smoe_params_expert(params, sub->gamma, j),
      .beta = smoe_params_expert(params, sub->beta, j),
      .w1 = smoe_params_expert(params, sub->w1, j),
      .b1 = smoe_params_expert(params, sub->b1, j),
      .w2 = smoe_params_expert(params, sub->w2, j),
      .b2 = smoe_params_expert(params, sub->b2, j),
  };
  if (gradients) {
    v.dgamma = smoe_params_expert_grad(params, sub->gamma, j);
    v.dbeta = smoe_params_expert_grad(params, sub->beta, j);
    v.dw1 = smoe_params_expert_grad(params, sub->w1, j);
    v.db1 = smoe_params_expert_grad(params, sub->b1, j);
    v.dw2 = smoe_params_expert_grad(params, sub->w2, j);
    v.db2 = smoe_params_expert_grad(params, sub->b2, j);
  }
  return v;
}

/* Rows that are on their way move on only where MPI is called. */
static void between_products(const smoe_experts *experts) {
  if (experts->pause) experts->pause(experts->pause_of);
}

/* Sublayer s of expert j on rows [first, first + m). */
static void sublayer_forward(smoe_experts *experts, int s, int j, smoe_real *delta, size_t first, size_t m) {
  const size_t c = experts->width, f = experts->inner;
  const sublayer_view v = view(experts, s, j, false);
  smoe_real *z = experts->z[s] + first * c, *h = experts->h[s] + first * f;
  smoe_real *y = experts->normed + first * c; /* LN(z) first, then the sublayer's output */
  void (*const linear)(smoe_real *, const smoe_real *, const smoe_real *, const smoe_real *, size_t, size_t,
                       size_t) = experts->decoding ? smoe_linear_rows : smoe_linear_forward;
  smoe_norm_forward(y, experts->mean[s] + first, experts->rstd[s] + first, z, v.gamma, v.beta, m, c);
  linear(h, y, v.w1, NULL, m, c, f);
  between_products(experts);
  smoe_bias_relu_forward(h, v.b1, m, f);
  linear(y, h, v.w2, v.b2, m, f, c);
  between_products(experts);

  if (s == 0)
    memcpy(delta + first * c, y, m * c * sizeof *y);
  else
    smoe_add(delta + first * c, y, m * c);
  if (s + 1 < experts->n_sublayers) {
    smoe_real *next = experts->z[s + 1] + first * c;
    if (next != z) memcpy(next, z, m * c * sizeof *z);
    smoe_add(next, y, m * c); /* z <- z + W2 relu(W1 LN(z) + b1) + b2 */
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
  smoe_experts_forward_some(experts, delta, offset, 0, experts->params->n_local);
}

/* What sublayer s's output has as gradient, on rows from `first` on. */
static const smoe_real *output_gradient(const smoe_experts *experts, int s, const smoe_real *ddelta,
                                        size_t first) {
  return (s + 1 < experts->n_sublayers ? experts->doutput : ddelta) + first * experts->width;
}

/* delta is the sum of the sublayers' outputs; output s has gradient ddelta plus what the later
 * sublayers want of their input, which stands in dx. Leaves the gradients of output and inner rows
 * in scratch, for the weights. */
static void sublayer_backward_rows(smoe_experts *experts, int s, int j, smoe_real *dx,
                                   const smoe_real *ddelta, size_t first, size_t m) {
  const size_t c = experts->width, f = experts->inner;
  const sublayer_view v = view(experts, s, j, true);
  const smoe_real *z = experts->z[s] + first * c, *h = experts->h[s] + first * f;
  smoe_real *acc = dx + first * c;
  smoe_real *dnormed = experts->normed + first * c, *dinner = experts->dinner + first * f;

  if (s + 1 < experts->n_sublayers) {
    smoe_real *doutput = experts->doutput + first * c;
    memcpy(doutput, ddelta + first * c, m * c * sizeof *doutput);
    smoe_add(doutput, acc, m * c);
  }
  /* y = W2 h + b2 */
  smoe_linear_backward_input(dinner, output_gradient(experts, s, ddelta, first), v.w2, m, f, c, false);
  between_products(experts);
  /* h = relu(W1 LN(z) + b1) */
  smoe_relu_backward(dinner, h, m * f);
  smoe_linear_backward_input(dnormed, dinner, v.w1, m, c, f, false);
  between_products(experts);
  smoe_norm_backward(acc, v.dgamma, v.dbeta, dnormed, z, v.gamma, experts->mean[s] + first,
                     experts->rstd[s] + first, m, c);
}

static void sublayer_backward_weights(smoe_experts *experts, int s, int j, const smoe_real *ddelta,
                                      size_t first, size_t m) {
  const size_t c = experts->width, f = experts->inner;
  const sublayer_view v = view(experts, s, j, true);
  smoe_real *normed = experts->normed + first * c;
  /* y = W2 h + b2 */
  smoe_linear_backward_weight(v.dw2, v.db2, output_gradient(experts, s, ddelta, first),
                              experts->h[s] + first * f, m, f, c);
  between_products(experts);
  /* h = relu(W1 LN(z) + b1) */
  smoe_norm_recompute(normed, experts->mean[s] + first, experts->rstd[s] + first, experts->z[s] + first * c,
                      v.gamma, v.beta, m, c);
  smoe_linear_backward_weight(v.dw1, v.db1, experts->dinner + first * f, normed, m, c, f);
  between_products(experts);
}

static void expert_backward_rows(smoe_experts *experts, int j, smoe_real *dx, const smoe_real *ddelta,
                                 const int64_t *offset) {
  const size_t first = (size_t)offset[j], m = (size_t)(offset[j + 1] - offset[j]);
  memset(dx + first * experts->width, 0, m * experts->width * sizeof *dx);
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
  for (int j = 0; j < experts->params->n_local; j++) {
    expert_backward_rows(experts, j, dx, ddelta, offset);
    expert_backward_weights(experts, j, ddelta, offset);
  }
}
