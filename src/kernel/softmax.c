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

/* The sum of x - shift. */
static smoe_real row_sum_shifted(const smoe_real *restrict x, smoe_real shift, size_t n) {
  smoe_real partial[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] += x[i + j] - shift;
  for (size_t j = 0; i < n; i++, j++) partial[j] += x[i] - shift;
  return partials_sum(partial);
}

static void row_scale_shift(smoe_real *x, smoe_real factor, smoe_real shift, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] = x[i] * factor - shift;
}

/* Weights of a smoothed target: `own` is what the target has beside the `each` that every id has. */
typedef struct smoothing {
  smoe_real own, each;
} smoothing;

/* dx = scale (softmax(x) - each - own onehot(target)), in place. */
static smoe_real row_smoothed(smoe_real *nll, smoe_real *x, size_t target, smoothing weight, smoe_real scale,
                              bool gradient, size_t v) {
  const smoe_real max = row_max(x, v), x_target = x[target];
  const smoe_real shifted = weight.each > 0 ? row_sum_shifted(x, max, v) : 0;
  const smoe_real sum = gradient ? row_exp(x, x, max, v) : row_exp_sum(x, max, v);
  const smoe_real log_sum = (smoe_real)log(sum);
  if (gradient) {
    row_scale_shift(x, scale / sum, scale * weight.each, v);
    x[target] -= scale * weight.own;
  }
  *nll = log_sum + (max - x_target);
  if (!(weight.each > 0)) return weight.own * *nll;
  return weight.own * *nll + weight.each * ((smoe_real)v * log_sum - shifted);
}

void smoe_cross_entropy_smoothed(smoe_real *loss, smoe_real *nll, smoe_real *logits, const int32_t *target,
                                 size_t target_stride, double epsilon, smoe_real scale, bool gradient,
                                 size_t n, size_t v) {
  const double each = v > 1 ? epsilon / (double)(v - 1) : 0;
  const smoothing weight = {.own = (smoe_real)(v > 1 ? 1 - epsilon - each : 1), .each = (smoe_real)each};
#pragma omp parallel for if (n * v > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    const int32_t id = target[i * target_stride];
    smoe_real *row = logits + i * v;
    SMOE_ASSERT(id < 0 || (size_t)id < v);
    if (id >= 0) {
      loss[i] = row_smoothed(nll + i, row, (size_t)id, weight, scale, gradient, v);
    } else {
      loss[i] = nll[i] = 0;
      if (gradient) memset(row, 0, v * sizeof *row);
    }
  }
}

/* The two weighted sums of d = log p - log q: by p and by q. */
typedef struct divergence {
  smoe_real by_p, by_q;
} divergence;

static divergence row_divergence(const smoe_real *restrict p, const smoe_real *restrict q,
                                 const smoe_real *restrict x, const smoe_real *restrict y, smoe_real shift,
                                 size_t n) {
  smoe_real by_p[PARTIALS] = {0}, by_q[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) {
      const smoe_real d = x[i + j] - y[i + j] - shift;
      by_p[j] += p[i + j] * d;
      by_q[j] += q[i + j] * d;
    }
  for (size_t j = 0; i < n; i++, j++) {
    const smoe_real d = x[i] - y[i] - shift;
    by_p[j] += p[i] * d;
    by_q[j] += q[i] * d;
  }
  return (divergence){partials_sum(by_p), partials_sum(by_q)};
}

/* p and q in memory of the gradients, which replace them. */
static smoe_real row_consistency(smoe_real *restrict p, smoe_real *restrict q, const smoe_real *restrict x,
                                 const smoe_real *restrict y, smoe_real scale, size_t n) {
  const smoe_real max_x = row_max(x, n), max_y = row_max(y, n);
  const smoe_real sum_x = row_exp(p, x, max_x, n), sum_y = row_exp(q, y, max_y, n);
  const smoe_real log_x = (smoe_real)log(sum_x) + max_x, log_y = (smoe_real)log(sum_y) + max_y;
  const smoe_real shift = log_x - log_y;
  row_scale(p, 1 / sum_x, n);
  row_scale(q, 1 / sum_y, n);
  const divergence sums = row_divergence(p, q, x, y, shift, n);
  const smoe_real half = scale / 2;
  for (size_t i = 0; i < n; i++) {
    const smoe_real d = x[i] - y[i] - shift, difference = p[i] - q[i];
    p[i] = half * (p[i] * (d - sums.by_p) + difference);
    q[i] = half * (q[i] * (sums.by_q - d) - difference);
  }
  return (sums.by_p - sums.by_q) / 2;
}

void smoe_consistency(smoe_real *loss, smoe_real *dx, smoe_real *dy, const smoe_real *x, const smoe_real *y,
                      const int32_t *target, smoe_real scale, size_t n, size_t v) {
#pragma omp parallel for if (n * v > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    const size_t at = i * v;
    if (target[i] >= 0) {
      loss[i] = row_consistency(dx + at, dy + at, x + at, y + at, scale, v);
      continue;
    }
    loss[i] = 0;
    memset(dx + at, 0, v * sizeof *dx);
    memset(dy + at, 0, v * sizeof *dy);
  }
}
