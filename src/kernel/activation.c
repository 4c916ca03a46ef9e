#include "stablemoe/kernel.h"
#include "stablemoe/map.h"
#include "vector.h"

static const smoe_real density_at_0 = (smoe_real)0.39894228040143267794; /* 1 / sqrt(2 pi) */

/* What gelu and its derivative are made of. */
typedef struct normal {
  smoe_real distribution; /* Phi(x) */
  smoe_real bell;         /* exp(-x^2 / 2) */
} normal;

#ifdef SMOE_DOUBLE
static inline normal normal_at(double x) {
  return (normal){.distribution = erfc(x * -0.70710678118654752440) / 2, .bell = exp(-x * x / 2)};
}
#else
/* Phi(-|x|) = exp(-x^2 / 2) P(t), t = 1 / (1 + 0.2316419 |x|): the form of Abramowitz and Stegun 26.2.17, with a
 * polynomial of degree 8 fitted for the least relative error from 0 to 13.2 (1.0e-7). */
static inline normal normal_at(float x) {
  const float distance = fabsf(x), t = 1 / (1 + 0.2316419f * distance), bell = exp_real(x * x * -0.5f);
  const float high = ((-0.0710031539f * t + 0.250181079f) * t - 0.206133589f) * t + 0.229572356f;
  const float low = (((high * t + 0.0111321053f) * t + 0.103435516f) * t + 0.0902836993f) * t + 0.0925320238f;
  const float tail = bell * t * low;
  return (normal){.distribution = x > 0 ? 1 - tail : tail, .bell = bell};
}
#endif

static void piece_gelu(smoe_real *y, const smoe_real *x, size_t n) {
#pragma omp simd /* y and x are equal or apart */
  for (size_t j = 0; j < n; j++) y[j] = x[j] * normal_at(x[j]).distribution;
}

static void row_bias_gelu(smoe_real *y, smoe_real *x, const smoe_real *restrict b, size_t f) {
#pragma omp simd
  for (size_t j = 0; j < f; j++) {
    const smoe_real value = x[j] + b[j];
    x[j] = value;
    y[j] = value * normal_at(value).distribution;
  }
}

void smoe_bias_gelu_forward(smoe_real *y, smoe_real *x, const smoe_real *b, size_t n, size_t f) {
#pragma omp parallel for if (n * f > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    if (b)
      row_bias_gelu(y + i * f, x + i * f, b, f);
    else
      piece_gelu(y + i * f, x + i * f, f);
  }
}

/* Columns of a row that are computed in fp32 before they are rounded. */
enum { COLUMNS = 1024 };

static size_t columns_from(size_t j, size_t f) {
  return f - j < COLUMNS ? f - j : COLUMNS;
}

void smoe_gelu_operand(smoe_operand h, smoe_real *x, const smoe_real *b, size_t n, size_t f) {
  if (!h.half) {
    smoe_bias_gelu_forward(h.wide, x, b, n, f);
    return;
  }
#pragma omp parallel for if (n * f > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < f; j += COLUMNS) {
      smoe_real y[COLUMNS], *row = x + i * f + j;
      if (b)
        row_bias_gelu(y, row, b + j, columns_from(j, f));
      else
        piece_gelu(y, row, columns_from(j, f));
      smoe_bf16_round_row(h.half + i * f + j, y, 1, columns_from(j, f));
    }
}

static void piece_gelu_backward(smoe_real *restrict dy, const smoe_real *restrict x, size_t n) {
  for (size_t j = 0; j < n; j++) {
    const normal at = normal_at(x[j]);
    dy[j] *= at.distribution + x[j] * (density_at_0 * at.bell);
  }
}

void smoe_gelu_backward(smoe_real *dy, const smoe_real *x, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) piece_gelu_backward(dy + i, x + i, n - i < PIECE ? n - i : PIECE);
}

void smoe_gelu_backward_operand(smoe_operand d, smoe_real *dh, const smoe_real *x, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) {
    const size_t length = n - i < PIECE ? n - i : PIECE;
    piece_gelu_backward(dh + i, x + i, length);
    if (d.half) smoe_bf16_round_row(d.half + i, dh + i, 1, length);
  }
}

/* smoe_sigmoid without a branch. */
static inline smoe_real sigmoid(smoe_real x) {
  const smoe_real e = exp_real(x < 0 ? x : -x);
  return (x < 0 ? e : 1) / (1 + e);
}

static void row_swiglu(smoe_real *restrict h, const smoe_real *restrict a, const smoe_real *restrict b,
                       size_t f) {
  for (size_t j = 0; j < f; j++) h[j] = a[j] * sigmoid(a[j]) * b[j];
}

void smoe_swiglu_forward(smoe_real *h, const smoe_real *ab, size_t n, size_t f) {
#pragma omp parallel for if (n * f > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) row_swiglu(h + i * f, ab + i * 2 * f, ab + i * 2 * f + f, f);
}

void smoe_swiglu_operand(smoe_operand h, const smoe_real *ab, size_t n, size_t f) {
  if (!h.half) {
    smoe_swiglu_forward(h.wide, ab, n, f);
    return;
  }
#pragma omp parallel for if (n * f > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < f; j += COLUMNS) {
      smoe_real y[COLUMNS];
      const smoe_real *row = ab + i * 2 * f + j;
      row_swiglu(y, row, row + f, columns_from(j, f));
      smoe_bf16_round_row(h.half + i * f + j, y, 1, columns_from(j, f));
    }
}

/* d silu(a) / da = s + a s (1 - s), s = sigmoid(a). */
static void row_swiglu_backward(smoe_real *da, smoe_real *db, const smoe_real *restrict dh,
                                const smoe_real *a, const smoe_real *b, size_t f) {
#pragma omp simd /* gradients and values are equal or apart */
  for (size_t j = 0; j < f; j++) {
    const smoe_real gate = a[j], up = b[j], s = sigmoid(gate), silu = gate * s;
    da[j] = dh[j] * up * (s + silu * (1 - s));
    db[j] = dh[j] * silu;
  }
}

void smoe_swiglu_backward(smoe_real *dab, const smoe_real *dh, const smoe_real *ab, size_t n, size_t f) {
#pragma omp parallel for if (n * f > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    smoe_real *d = dab + i * 2 * f;
    const smoe_real *row = ab + i * 2 * f;
    row_swiglu_backward(d, d + f, dh + i * f, row, row + f, f);
  }
}

void smoe_swiglu_backward_operand(smoe_operand d, const smoe_real *dh, const smoe_real *ab, size_t n,
                                  size_t f) {
  if (!d.half) {
    smoe_swiglu_backward(d.wide, dh, ab, n, f);
    return;
  }
#pragma omp parallel for if (n * f > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < f; j += COLUMNS) {
      smoe_real gate[COLUMNS], up[COLUMNS];
      const size_t length = columns_from(j, f);
      const smoe_real *row = ab + i * 2 * f + j;
      smoe_bf16 *to = d.half + i * 2 * f + j;
      row_swiglu_backward(gate, up, dh + i * f + j, row, row + f, length);
      smoe_bf16_round_row(to, gate, 1, length);
      smoe_bf16_round_row(to + f, up, 1, length);
    }
}
