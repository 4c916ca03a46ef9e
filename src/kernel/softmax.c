#include "stablemoe/kernel.h"

#include "stablemoe/status.h"
#include "vector.h"

/* The sum alone, with the bits of row_exp. */
static smoe_real row_exp_sum(const smoe_real *restrict x, smoe_real max, size_t n) {
  smoe_real partial[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] += exp_real(x[i + j] - max);
  for (size_t j = 0; i < n; i++, j++) partial[j] += exp_real(x[i] - max);
  return partials_sum(partial);
}

static void row_scale(smoe_real *x, smoe_real factor, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] *= factor;
}

void smoe_softmax_forward(smoe_real *p, const smoe_real *x, size_t n, size_t e) {
  if (e == 0) return;
#pragma omp parallel for if (n * e > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    const smoe_real sum = row_exp(p + i * e, x + i * e, row_max(x + i * e, e), e);
    row_scale(p + i * e, 1 / sum, e);
  }
}

/* loss = log sum exp(x) - x[target];  dx = scale (softmax(x) - onehot(target)), in place. */
static smoe_real row_cross_entropy(smoe_real *x, size_t target, smoe_real scale, bool gradient, size_t v) {
  const smoe_real max = row_max(x, v), x_target = x[target];
  const smoe_real sum = gradient ? row_exp(x, x, max, v) : row_exp_sum(x, max, v);
  if (gradient) {
    row_scale(x, scale / sum, v);
    x[target] -= scale;
  }
  return (smoe_real)log(sum) + (max - x_target);
}

void smoe_cross_entropy(smoe_real *loss, smoe_real *logits, const int32_t *target, size_t target_stride,
                        smoe_real scale, bool gradient, size_t n, size_t v) {
#pragma omp parallel for if (n * v > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    const int32_t id = target[i * target_stride];
    smoe_real *row = logits + i * v;
    SMOE_ASSERT(id < 0 || (size_t)id < v);
    if (id >= 0) {
      loss[i] = row_cross_entropy(row, (size_t)id, scale, gradient, v);
    } else {
      loss[i] = 0;
      if (gradient) memset(row, 0, v * sizeof *row);
    }
  }
}
