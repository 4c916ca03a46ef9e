#include "stablemoe/kernel.h"

#include <string.h>

#include "vector.h"

/* Columns that one thread sums at a time: their sums and four rows of them stay in the first cache. */
enum { COLUMN_BLOCK = 256 };

void smoe_linear_forward(smoe_real *y, const smoe_real *x, const smoe_real *w, const smoe_real *b, size_t n,
                         size_t c, size_t o) {
  /* With beta = 0 BLAS fills y with zeros before it adds the product, so filling it with the bias is free. */
  if (b) {
#pragma omp parallel for if (n * o > PARALLEL_MIN)
    for (size_t i = 0; i < n; i++) memcpy(y + i * o, b, o * sizeof *y);
  }
  smoe_gemm(false, true, n, o, c, 1, x, c, w, c, b ? 1 : 0, y, o);
}

void smoe_linear_rows(smoe_real *y, const smoe_real *x, const smoe_real *w, const smoe_real *b, size_t n,
                      size_t c, size_t o) {
  if (n != 1) {
    smoe_linear_forward(y, x, w, b, n, c, o);
    return;
  }
  if (b) memcpy(y, b, o * sizeof *y);
  smoe_gemv(o, c, w, c, x, b ? 1 : 0, y);
}

void smoe_linear_backward_input(smoe_real *dx, const smoe_real *dy, const smoe_real *w, size_t n, size_t c,
                                size_t o, bool add) {
  smoe_gemm(false, false, n, c, o, 1, dy, o, w, c, add ? 1 : 0, dx, c);
}

/* sum [width] += the rows of x, in row order; four rows at a time, so that sum is loaded and stored less often. */
static void add_rows(smoe_real *restrict sum, const smoe_real *restrict x, size_t ld, size_t n,
                     size_t width) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const smoe_real *restrict row = x + i * ld;
    for (size_t j = 0; j < width; j++)
      sum[j] = (((sum[j] + row[j]) + row[ld + j]) + row[2 * ld + j]) + row[3 * ld + j];
  }
  for (; i < n; i++)
    for (size_t j = 0; j < width; j++) sum[j] += x[i * ld + j];
}

void smoe_linear_backward_weight(smoe_real *dw, smoe_real *db, const smoe_real *dy, const smoe_real *x,
                                 size_t n, size_t c, size_t o) {
  if (dw) smoe_gemm(true, false, o, c, n, 1, dy, o, x, c, 1, dw, c);
  smoe_linear_backward_bias(db, dy, n, o);
}

void smoe_linear_backward_bias(smoe_real *db, const smoe_real *dy, size_t n, size_t o) {
  if (!db) return;
#pragma omp parallel for if (n * o > PARALLEL_MIN)
  for (size_t j = 0; j < o; j += COLUMN_BLOCK)
    add_rows(db + j, dy + j, o, n, o - j < COLUMN_BLOCK ? o - j : COLUMN_BLOCK);
}
