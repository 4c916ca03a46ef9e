#include "stablemoe/kernel.h"

#include <cblas.h>
#include <limits.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/status.h"
#include "vector.h"

#ifdef SMOE_DOUBLE
#define CBLAS_GEMM cblas_dgemm
#define CBLAS_GEMV cblas_dgemv
#else
#define CBLAS_GEMM cblas_sgemm
#define CBLAS_GEMV cblas_sgemv
#endif

/* Columns that one thread sums at a time: their sums and four rows of them stay in the first cache. */
enum { COLUMN_BLOCK = 256 };

void smoe_threads_set(int n) {
  omp_set_num_threads(n);
  openblas_set_num_threads(n);
}

const char *smoe_blas_name(void) {
  return openblas_get_corename();
}

smoe_blas_pool smoe_blas_threading(void) {
  const int parallel = openblas_get_parallel();
  return parallel == OPENBLAS_OPENMP   ? SMOE_BLAS_OPENMP
         : parallel == OPENBLAS_THREAD ? SMOE_BLAS_PTHREADS
                                       : SMOE_BLAS_SEQUENTIAL;
}

const char *smoe_blas_description(void) {
  static const char *const pools[] = {"one thread only", "threads of its own (pthreads)", "OpenMP threads"};
  static char text[128];
  const char *config = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ..." */
  const char *version = strchr(config, ' ');
  const size_t n = version ? (size_t)(version - config) + 1 + strcspn(version + 1, " ") : strlen(config);
  snprintf(text, sizeof text, "%.*s, core type %s, %s", (int)n, config, smoe_blas_name(),
           pools[smoe_blas_threading()]);
  return text;
}

/* What is left of a product over nothing. */
static void scale_matrix(size_t m, size_t n, smoe_real beta, smoe_real *c, size_t ldc) {
  for (size_t i = 0; i < m; i++) {
    smoe_real *row = c + i * ldc;
    if (beta == 0)
      memset(row, 0, n * sizeof *row);
    else
      for (size_t j = 0; j < n; j++) row[j] *= beta;
  }
}

void smoe_gemm(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, smoe_real alpha,
               const smoe_real *a, size_t lda, const smoe_real *b, size_t ldb, smoe_real beta, smoe_real *c,
               size_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    scale_matrix(m, n, beta, c, ldc);
    return;
  }
  SMOE_ASSERT(m <= INT_MAX && n <= INT_MAX && k <= INT_MAX);
  SMOE_ASSERT(lda <= INT_MAX && ldb <= INT_MAX && ldc <= INT_MAX);
  CBLAS_GEMM(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
             (blasint)m, (blasint)n, (blasint)k, alpha, a, (blasint)lda, b, (blasint)ldb, beta, c,
             (blasint)ldc);
}

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
  if (n != 1 || c == 0 || o == 0) {
    smoe_linear_forward(y, x, w, b, n, c, o);
    return;
  }
  SMOE_ASSERT(c <= INT_MAX && o <= INT_MAX);
  if (b) memcpy(y, b, o * sizeof *y);
  CBLAS_GEMV(CblasRowMajor, CblasNoTrans, (blasint)o, (blasint)c, 1, w, (blasint)c, x, 1, b ? 1 : 0, y, 1);
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
  smoe_gemm(true, false, o, c, n, 1, dy, o, x, c, 1, dw, c);
  if (!db) return;
#pragma omp parallel for if (n * o > PARALLEL_MIN)
  for (size_t j = 0; j < o; j += COLUMN_BLOCK)
    add_rows(db + j, dy + j, o, n, o - j < COLUMN_BLOCK ? o - j : COLUMN_BLOCK);
}
