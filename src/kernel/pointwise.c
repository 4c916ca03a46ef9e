#include "stablemoe/kernel.h"

#include <math.h>

#include "vector.h"

/* A comparison that is false for NaN keeps NaN, so that the loss shows it. */
static void row_bias_relu(smoe_real *restrict h, const smoe_real *restrict b, size_t f) {
  for (size_t j = 0; j < f; j++) {
    const smoe_real value = h[j] + b[j];
    h[j] = value < 0 ? 0 : value;
  }
}

static void row_relu(smoe_real *restrict h, size_t f) {
  for (size_t i = 0; i < f; i++) h[i] = h[i] < 0 ? 0 : h[i];
}

void smoe_bias_relu_forward(smoe_real *h, const smoe_real *b, size_t n, size_t f) {
#pragma omp parallel for if (n * f > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    if (b)
      row_bias_relu(h + i * f, b, f);
    else
      row_relu(h + i * f, f);
  }
}

static void piece_relu_backward(smoe_real *restrict dh, const smoe_real *restrict h, size_t n) {
  for (size_t i = 0; i < n; i++) dh[i] = h[i] > 0 ? dh[i] : 0;
}

void smoe_relu_backward(smoe_real *dh, const smoe_real *h, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) piece_relu_backward(dh + i, h + i, n - i < PIECE ? n - i : PIECE);
}

static void piece_add(smoe_real *restrict y, const smoe_real *restrict x, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += x[i];
}

void smoe_add(smoe_real *y, const smoe_real *x, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) piece_add(y + i, x + i, n - i < PIECE ? n - i : PIECE);
}

static void row_add_scaled(smoe_real *restrict y, smoe_real s, const smoe_real *restrict x, size_t c) {
  for (size_t j = 0; j < c; j++) y[j] += s * x[j];
}

void smoe_add_rows_scaled(smoe_real *y, const smoe_real *s, size_t s_stride, const smoe_real *x, size_t n,
                          size_t c) {
  if (n == 1) { /* a parallel region, even of one thread, would cost more than the row */
    row_add_scaled(y, s[0], x, c);
    return;
  }
#pragma omp parallel for if (n * c > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) row_add_scaled(y + i * c, s[i * s_stride], x + i * c, c);
}

smoe_real smoe_dot(const smoe_real *x, const smoe_real *y, size_t n) {
  smoe_real partial[PARTIALS] = {0};
  partials_add_products(partial, x, y, n);
  return partials_sum(partial);
}

double smoe_sum_squares(const smoe_real *x, size_t n) {
  double partial[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] += (double)x[i + j] * (double)x[i + j];
  for (size_t j = 0; i < n; i++, j++) partial[j] += (double)x[i] * (double)x[i];
  for (size_t width = PARTIALS / 2; width > 0; width /= 2)
    for (size_t j = 0; j < width; j++) partial[j] += partial[j + width];
  return partial[0];
}

smoe_real smoe_sigmoid(smoe_real x) {
  if (x >= 0) return 1 / (1 + exp_real(-x));
  const smoe_real e = exp_real(x);
  return e / (1 + e);
}
