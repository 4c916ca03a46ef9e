/* Matrix products, and all that is called of OpenBLAS. Products in single precision may be oneDNN's instead. */
#include "gemm.h"

#include <cblas.h>
#include <limits.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "onednn.h"
#include "stablemoe/kernel.h"
#include "stablemoe/products.h"
#include "stablemoe/status.h"

#ifdef SMOE_DOUBLE
#define CBLAS_GEMM cblas_dgemm
#define CBLAS_GEMV cblas_dgemv
#else
#define CBLAS_GEMM cblas_sgemm
#define CBLAS_GEMV cblas_sgemv
#endif

void smoe_threads_set(int n) {
  omp_set_num_threads(n);
  openblas_set_num_threads(n);
}

int smoe_threads(void) {
  return omp_get_max_threads();
}

smoe_blas_pool smoe_blas_threading(void) {
  const int parallel = openblas_get_parallel();
  return parallel == OPENBLAS_OPENMP   ? SMOE_BLAS_OPENMP
         : parallel == OPENBLAS_THREAD ? SMOE_BLAS_PTHREADS
                                       : SMOE_BLAS_SEQUENTIAL;
}

const char *smoe_openblas_version(void) {
  static char text[64];
  const char *config = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ..." */
  const char *version = strchr(config, ' ');
  const size_t n = version ? (size_t)(version - config) + 1 + strcspn(version + 1, " ") : strlen(config);
  snprintf(text, sizeof text, "%.*s", (int)n, config);
  return text;
}

const char *smoe_openblas_core(void) {
  return openblas_get_corename();
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
#ifndef SMOE_DOUBLE
  if (smoe_products_chosen() == SMOE_PRODUCTS_ONEDNN) {
    smoe_onednn_sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
#endif
  SMOE_ASSERT(m <= INT_MAX && n <= INT_MAX && k <= INT_MAX);
  SMOE_ASSERT(lda <= INT_MAX && ldb <= INT_MAX && ldc <= INT_MAX);
  CBLAS_GEMM(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
             (blasint)m, (blasint)n, (blasint)k, alpha, a, (blasint)lda, b, (blasint)ldb, beta, c,
             (blasint)ldc);
}

void smoe_gemv(size_t m, size_t n, const smoe_real *a, size_t lda, const smoe_real *x, smoe_real beta,
               smoe_real *y) {
  if (m == 0) return;
  if (n == 0) {
    scale_matrix(m, 1, beta, y, 1);
    return;
  }
  SMOE_ASSERT(m <= INT_MAX && n <= INT_MAX && lda <= INT_MAX);
  CBLAS_GEMV(CblasRowMajor, CblasNoTrans, (blasint)m, (blasint)n, 1, a, (blasint)lda, x, 1, beta, y, 1);
}
