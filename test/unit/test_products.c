/** The choice of the library of products, and the rates that it is judged by. */
#include <string.h>

#include "harness.h"
#include "stablemoe/core_peak.h"
#include "stablemoe/kernel.h"
#include "stablemoe/products.h"
#include "values.h"

static void choice(void) {
  CHECK(smoe_products_choose(SMOE_PRODUCTS_OPENBLAS) == SMOE_OK, "OpenBLAS is always there");
  CHECK(smoe_products_chosen() == SMOE_PRODUCTS_OPENBLAS, "OpenBLAS was named");
  CHECK(strncmp(smoe_products_facts(), "OpenBLAS ", 9) == 0, "facts are '%s'", smoe_products_facts());
  CHECK(strncmp(smoe_blas_pin(), "OPENBLAS_CORETYPE=", 18) == 0, "pin is '%s'", smoe_blas_pin());
  const bool there = smoe_products_choose(SMOE_PRODUCTS_ONEDNN) == SMOE_OK;
  if (!there) {
    CHECK(strstr(smoe_last_error(), "libdnnl-dev"), "the report does not name the package: %s",
          smoe_last_error());
    CHECK(smoe_products_chosen() == SMOE_PRODUCTS_OPENBLAS, "a refused choice changed the library");
  } else {
    CHECK(smoe_products_chosen() == SMOE_PRODUCTS_ONEDNN, "oneDNN was named");
    CHECK(strncmp(smoe_products_facts(), "oneDNN ", 7) == 0, "facts are '%s'", smoe_products_facts());
    CHECK(strncmp(smoe_blas_pin(), "DNNL_MAX_CPU_ISA=", 17) == 0, "pin is '%s'", smoe_blas_pin());
  }
  CHECK(smoe_products_choose(SMOE_PRODUCTS_AUTO) == SMOE_OK, "there is always one");
  const smoe_products_kind by_rule = smoe_products_chosen();
  CHECK(by_rule != SMOE_PRODUCTS_AUTO, "nothing was chosen");
  CHECK(there || by_rule == SMOE_PRODUCTS_OPENBLAS, "a library that is not there was chosen");
}

/* A measurement between two products changes neither bits nor threads. */
static void undisturbed(void) {
  enum { N = 96 };
  smoe_real *a = values_uniform(2 * N * N, 1), *c = values_zero(N * N), *d = values_zero(N * N);
  smoe_products_rate rate;
  smoe_threads_set(2);
  smoe_gemm(false, true, N, N, N, 1, a, N, a + N * N, N, 0, c, N);
  smoe_products_measure(&rate);
  smoe_gemm(false, true, N, N, N, 1, a, N, a + N * N, N, 0, d, N);
  CHECK(memcmp(c, d, N * N * sizeof *c) == 0, "the measurement changed a product");
  CHECK(smoe_threads() == 2, "the measurement changed the number of threads");
  smoe_threads_set(1);
  smoe_free(a), smoe_free(c), smoe_free(d);
}

static void rates(void) {
  smoe_products_rate rate;
  smoe_products_measure(&rate);
  CHECK(rate.gemm > 1e8 && rate.gemm < 1e14, "a GEMM of %g FLOP/s", rate.gemm);
  CHECK(rate.peak > 1e9 && rate.peak < 1e14, "a peak of %g FLOP/s", rate.peak);
  CHECK(rate.isa && rate.isa[0], "the peak has no instruction set");
#if defined __OPTIMIZE__ && !defined __SANITIZE_ADDRESS__
  /* Even where the library is made for other processors, and however busy this one is. */
  CHECK(rate.gemm < 1.2 * rate.peak, "GEMM at %g passes the peak of %g FLOP/s", rate.gemm, rate.peak);
#endif
  smoe_core_peak peak;
  smoe_core_peak_measure(&peak);
  CHECK(peak.fp32 > 1e9, "a peak of %g FLOP/s", peak.fp32);
  CHECK(isnan(peak.bf16) == (strcmp(peak.bf16_isa, "none") == 0), "bf16 at %g by %s", peak.bf16,
        peak.bf16_isa);
  CHECK(!(peak.bf16 <= 1e9), "a peak of %g FLOP/s in bf16", peak.bf16);
}

static void verdict(void) {
  CHECK(smoe_products_slow(&(smoe_products_rate){69, 100, ""}), "0.69 is slow");
  CHECK(!smoe_products_slow(&(smoe_products_rate){71, 100, ""}), "0.71 is not slow");
  CHECK(smoe_products_slow(&(smoe_products_rate){NAN, 100, ""}), "NaN is slow");
  CHECK(strlen(smoe_products_advice()) > 20, "no advice");
}

int main(void) {
  choice();
  undisturbed();
  rates();
  verdict();
  return test_verdict("products");
}
