#include "stablemoe/kernel.h"

#include "stablemoe/status.h"
#include "vector.h"

void smoe_rope_table(smoe_real *table, size_t t, size_t d, double base) {
  SMOE_ASSERT(d % 2 == 0);
  const size_t half = d / 2;
  for (size_t i = 0; i < half; i++) {
    const double frequency = pow(base, -2 * (double)i / (double)d);
    for (size_t position = 0; position < t; position++) {
      const double angle = (double)position * frequency;
      table[position * d + i] = (smoe_real)cos(angle);
      table[position * d + half + i] = (smoe_real)sin(angle);
    }
  }
}

/* (a, b) = (a cos - sign b sin, b cos + sign a sin). */
static void head_rotate(smoe_real *restrict a, smoe_real *restrict b, const smoe_real *restrict cosine,
                        const smoe_real *restrict sine, smoe_real sign, size_t half) {
  for (size_t i = 0; i < half; i++) {
    const smoe_real x = a[i], y = b[i], s = sign * sine[i];
    a[i] = x * cosine[i] - y * s;
    b[i] = y * cosine[i] + x * s;
  }
}

static void rows_rotate(smoe_real *x, size_t ld, const int32_t *position, const smoe_real *table,
                        smoe_real sign, size_t n, size_t h, size_t d) {
  SMOE_ASSERT(d % 2 == 0);
#pragma omp parallel for if (n * h * d > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    if (position[i] < 0) continue;
    const smoe_real *row = table + (size_t)position[i] * d;
    for (size_t head = 0; head < h; head++) {
      smoe_real *at = x + i * ld + head * d;
      head_rotate(at, at + d / 2, row, row + d / 2, sign, d / 2);
    }
  }
}

void smoe_rope_forward(smoe_real *x, size_t ld, const int32_t *position, const smoe_real *table, size_t n,
                       size_t h, size_t d) {
  rows_rotate(x, ld, position, table, 1, n, h, d);
}

void smoe_rope_backward(smoe_real *dx, size_t ld, const int32_t *position, const smoe_real *table, size_t n,
                        size_t h, size_t d) {
  rows_rotate(dx, ld, position, table, -1, n, h, d);
}
