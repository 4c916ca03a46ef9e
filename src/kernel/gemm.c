/* The products of matrices, and all that is known of the library that makes them: OpenBLAS, or for products in
 * single precision oneDNN (build option gemm). */
#include <cblas.h>
#include <limits.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/kernel.h"
#include "stablemoe/status.h"

/* oneDNN has no product in double precision. */
#if defined SMOE_GEMM_ONEDNN && !defined SMOE_DOUBLE
#define WITH_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#endif

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

smoe_blas_pool smoe_blas_threading(void) {
  const int parallel = openblas_get_parallel();
  return parallel == OPENBLAS_OPENMP   ? SMOE_BLAS_OPENMP
         : parallel == OPENBLAS_THREAD ? SMOE_BLAS_PTHREADS
                                       : SMOE_BLAS_SEQUENTIAL;
}

static const char *describe_openblas(char *text, size_t size) {
  static const char *const pools[] = {"one thread only", "threads of its own (pthreads)", "OpenMP threads"};
  const char *config = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ..." */
  const char *version = strchr(config, ' ');
  const size_t n = version ? (size_t)(version - config) + 1 + strcspn(version + 1, " ") : strlen(config);
  snprintf(text, size, "%.*s, core type %s, %s", (int)n, config, openblas_get_corename(),
           pools[smoe_blas_threading()]);
  return text;
}

#ifdef WITH_ONEDNN
/* As DNNL_MAX_CPU_ISA spells it. */
static const char *instruction_set(void) {
  static const struct {
    dnnl_cpu_isa_t isa;
    const char *name;
  } sets[] = {{dnnl_cpu_isa_sse41, "SSE41"},
              {dnnl_cpu_isa_avx, "AVX"},
              {dnnl_cpu_isa_avx2, "AVX2"},
              {dnnl_cpu_isa_avx512_core, "AVX512_CORE"},
              {dnnl_cpu_isa_avx512_core_vnni, "AVX512_CORE_VNNI"},
              {dnnl_cpu_isa_avx512_core_bf16, "AVX512_CORE_BF16"},
              {dnnl_cpu_isa_avx512_core_amx, "AVX512_CORE_AMX"}};
  const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
  for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
    if (sets[i].isa == isa) return sets[i].name;
  return "DEFAULT"; /* one that is newer than this list */
}

const char *smoe_blas_name(void) {
  static char text[64];
  snprintf(text, sizeof text, "oneDNN %s", instruction_set());
  return text;
}

const char *smoe_blas_pin(void) {
  static char text[64];
  snprintf(text, sizeof text, "DNNL_MAX_CPU_ISA=%s", instruction_set());
  return text;
}

const char *smoe_blas_description(void) {
  static char text[192];
  char openblas[128];
  const dnnl_version_t *version = dnnl_version();
  snprintf(text, sizeof text, "oneDNN %d.%d.%d, instruction set %s; beside it %s", version->major,
           version->minor, version->patch, instruction_set(), describe_openblas(openblas, sizeof openblas));
  return text;
}
#else
const char *smoe_blas_name(void) {
  return openblas_get_corename();
}

const char *smoe_blas_pin(void) {
  static char text[64];
  snprintf(text, sizeof text, "OPENBLAS_CORETYPE=%s", openblas_get_corename());
  return text;
}

const char *smoe_blas_description(void) {
  static char text[128];
  return describe_openblas(text, sizeof text);
}
#endif

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
#ifdef WITH_ONEDNN
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', (dnnl_dim_t)m, (dnnl_dim_t)n,
                 (dnnl_dim_t)k, alpha, a, (dnnl_dim_t)lda, b, (dnnl_dim_t)ldb, beta, c, (dnnl_dim_t)ldc);
  /* It is one rank's business: the others are in the middle of their own products. */
  if (status != dnnl_success)
    SMOE_PANIC(status == dnnl_out_of_memory ? SMOE_ERR_MEMORY : SMOE_ERR_BUG,
               "oneDNN's product of [%zu, %zu] and [%zu, %zu] failed with status %d", m, k, k, n, status);
#else
  SMOE_ASSERT(m <= INT_MAX && n <= INT_MAX && k <= INT_MAX);
  SMOE_ASSERT(lda <= INT_MAX && ldb <= INT_MAX && ldc <= INT_MAX);
  CBLAS_GEMM(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
             (blasint)m, (blasint)n, (blasint)k, alpha, a, (blasint)lda, b, (blasint)ldb, beta, c,
             (blasint)ldc);
#endif
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
