#include "stablemoe/products.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "gemm.h"
#include "onednn.h"
#include "stablemoe/arena.h"
#include "stablemoe/core_peak.h"
#include "stablemoe/kernel.h"
#include "stablemoe/timer.h"

/* ---- the choice ---- */

static smoe_products_kind chosen = SMOE_PRODUCTS_AUTO;

/* A processor and a build always give the same answer. oneDNN's products are the faster ones with AVX-512, and
 * do not depend on whether the library has heard of the processor's model. */
static smoe_products_kind by_rule(void) {
  const bool single = sizeof(smoe_real) == sizeof(float); /* oneDNN has no product in double precision */
  return single && smoe_onednn_built() && smoe_cpu_has_avx512() ? SMOE_PRODUCTS_ONEDNN
                                                                : SMOE_PRODUCTS_OPENBLAS;
}

smoe_status smoe_products_choose(smoe_products_kind wanted) {
  SMOE_CHECK(smoe_products_built(wanted), SMOE_ERR_CONFIG,
             "run.products = onednn, but this program was built without oneDNN: install its headers (Debian: "
             "libdnnl-dev) and build again, or set run.products to auto or openblas");
  const bool named = wanted != SMOE_PRODUCTS_AUTO && sizeof(smoe_real) == sizeof(float);
  chosen = named ? wanted : by_rule();
  return SMOE_OK;
}

bool smoe_products_built(smoe_products_kind kind) {
  return kind != SMOE_PRODUCTS_ONEDNN || smoe_onednn_built();
}

smoe_products_kind smoe_products_chosen(void) {
  if (chosen == SMOE_PRODUCTS_AUTO) chosen = by_rule();
  return chosen;
}

static bool by_onednn(void) {
  return smoe_products_chosen() == SMOE_PRODUCTS_ONEDNN;
}

/* ---- names ---- */

const char *smoe_blas_name(void) {
  static char text[64];
  if (!by_onednn()) return smoe_openblas_core();
  snprintf(text, sizeof text, "oneDNN %s", smoe_onednn_isa());
  return text;
}

const char *smoe_blas_pin(void) {
  static char text[64];
  if (by_onednn())
    snprintf(text, sizeof text, "DNNL_MAX_CPU_ISA=%s", smoe_onednn_isa());
  else
    snprintf(text, sizeof text, "OPENBLAS_CORETYPE=%s", smoe_openblas_core());
  return text;
}

static void describe(char *text, size_t size) {
  const int n = by_onednn() ? snprintf(text, size, "oneDNN %s, instruction set %s; for the rest ",
                                       smoe_onednn_version(), smoe_onednn_isa())
                            : 0;
  snprintf(text + n, size - (size_t)n, "%s, core type %s", smoe_openblas_version(), smoe_openblas_core());
}

const char *smoe_blas_description(void) {
  static const char *const pools[] = {"one thread only", "threads of its own (pthreads)", "OpenMP threads"};
  static char text[256];
  char libraries[160];
  describe(libraries, sizeof libraries);
  snprintf(text, sizeof text, "%s, %s%s", libraries, pools[smoe_blas_threading()],
           smoe_onednn_built() ? "" : "; built without oneDNN");
  return text;
}

const char *smoe_products_facts(void) {
  static char text[256];
  char libraries[160];
  const char *l2 = getenv("OPENBLAS_L2_SIZE"); /* what OpenBLAS then takes for the size */
  describe(libraries, sizeof libraries);
  snprintf(text, sizeof text, "%s; L2 %ld KiB, L3 %ld KiB%s%.20s", libraries, smoe_cpu_l2_bytes() / 1024,
           smoe_cpu_l3_bytes() / 1024, l2 ? ", OPENBLAS_L2_SIZE=" : "", l2 ? l2 : "");
  return text;
}

/* ---- the rate ---- */

static double gemm_rate(void) {
  enum { SIZE = 384, RUNS = 12, ENOUGH = 3 };
  const double patience = 2e-2, flops = 2.0 * SIZE * SIZE * SIZE;
  const size_t n = (size_t)SIZE * SIZE;
  smoe_real *a = smoe_alloc(3 * n * sizeof *a);
  for (size_t i = 0; i < 2 * n; i++) a[i] = (smoe_real)(i % 7) - 3;
  const int threads = smoe_threads();
  smoe_threads_set(1);
  double best = 0, begin = 0;
  for (int r = 0; r < RUNS && (r < ENOUGH || smoe_seconds() - begin < patience); r++) {
    const double before = smoe_seconds();
    smoe_gemm(false, true, SIZE, SIZE, SIZE, 1, a, SIZE, a + n, SIZE, 0, a + 2 * n, SIZE);
    const double after = smoe_seconds();
    /* The first call may generate code. */
    if (r == 0)
      begin = after;
    else
      best = fmax(best, flops / (after - before));
  }
  smoe_threads_set(threads);
  smoe_free(a);
  return best;
}

void smoe_products_measure(smoe_products_rate *rate) {
  rate->gemm = gemm_rate();
  rate->peak = smoe_core_peak_fp32(&rate->isa);
  /* A neighbour on the core may have met one of the two and not the other. */
  for (int again = 0; again < 2 && smoe_products_slow(rate) && rate->gemm > 0.5 * rate->peak; again++) {
    rate->gemm = fmax(rate->gemm, gemm_rate());
    rate->peak = fmax(rate->peak, smoe_core_peak_fp32(&rate->isa));
  }
}

bool smoe_products_slow(const smoe_products_rate *rate) {
  return !(rate->gemm >= 0.7 * rate->peak);
}

bool smoe_products_avx512_hidden(void) {
  return smoe_cpu_hides_avx512();
}

static bool is_one_of(const char *name, const char *const *list) {
  for (; *list; list++)
    if (strcasecmp(name, *list) == 0) return true;
  return false;
}

/* Whether the kernels of an OpenBLAS core type use the widest vectors that the processor has. */
static bool core_fits(const char *core) {
  static const char *const avx512[] = {"SkylakeX", "Cooperlake", "SapphireRapids", NULL};
  static const char *const avx2[] = {"Haswell", "Zen", NULL};
  if (is_one_of(core, avx512)) return true;
  return !smoe_cpu_has_avx512() && (!smoe_cpu_has_avx2() || is_one_of(core, avx2));
}

static void advise_openblas(char *text, size_t size) {
  const char *pin = getenv("OPENBLAS_CORETYPE");
  const char *other = smoe_onednn_built() ? "run.products=onednn" : "a build with oneDNN (libdnnl-dev)";
  const char *better = smoe_cpu_has_avx512_bf16() ? "Cooperlake"
                       : smoe_cpu_has_avx512()    ? "SkylakeX"
                                                  : "Haswell";
  if (core_fits(smoe_openblas_core()))
    snprintf(text, size,
             "%s has kernels for this CPU (%s); if other programs ran on this core, look again on an idle "
             "machine, "
             "else try %s",
             smoe_openblas_version(), smoe_openblas_core(), other);
  else if (pin && *pin)
    snprintf(text, size,
             "OPENBLAS_CORETYPE=%s pins kernels that do not use all of this CPU: unset it, or set it to %s, "
             "unless "
             "this version computes wrong results here without it",
             pin, better);
  else
    snprintf(text, size,
             "%s does not know this CPU and takes it for %s: install a newer one, use %s, or export "
             "OPENBLAS_CORETYPE=%s",
             smoe_openblas_version(), smoe_openblas_core(), other, better);
}

static void advise_onednn(char *text, size_t size) {
  const char *pin = getenv("DNNL_MAX_CPU_ISA");
  if (smoe_cpu_has_avx512() == smoe_onednn_has_avx512())
    snprintf(
        text, size,
        "oneDNN %s uses %s, which fits this CPU; if other programs ran on this core, look again on an idle "
        "machine, else try run.products=openblas",
        smoe_onednn_version(), smoe_onednn_isa());
  else if (pin && *pin)
    snprintf(text, size, "DNNL_MAX_CPU_ISA=%s keeps oneDNN from using AVX-512: unset it", pin);
  else
    snprintf(text, size,
             "oneDNN %s does not use this CPU's AVX-512: install a newer one, or try run.products=openblas",
             smoe_onednn_version());
}

const char *smoe_products_advice(void) {
  static char text[384];
  if (by_onednn())
    advise_onednn(text, sizeof text);
  else
    advise_openblas(text, sizeof text);
  return text;
}
