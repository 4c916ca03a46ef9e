/** Which library makes the matrix products, and whether it makes them as fast as this core can.
 *
 *  All functions are Local.
 */
#ifndef STABLEMOE_PRODUCTS_H
#define STABLEMOE_PRODUCTS_H

#include <stdbool.h>
#include <stddef.h>

#include "stablemoe/status.h"

/** Values of run.products, in the order of its table. */
typedef enum smoe_products_kind {
  SMOE_PRODUCTS_AUTO, /**< oneDNN if the build has it and the processor has AVX-512, else OpenBLAS */
  SMOE_PRODUCTS_OPENBLAS,
  SMOE_PRODUCTS_ONEDNN
} smoe_products_kind;

/** Choose the library of single-precision GEMM; before the first product whose bits matter. Without a call it is AUTO's.
 *
 *  The choice follows from the argument, the build and the processor alone, never from a measurement. Matrix times
 *  vector (smoe_gemv) and the double-precision build are OpenBLAS's always.
 *
 *  Errors:  SMOE_ERR_CONFIG if oneDNN is named and not in this build.
 */
smoe_status smoe_products_choose(smoe_products_kind wanted);

/** Return whether this build has the library; AUTO is always there. */
bool smoe_products_built(smoe_products_kind kind);

/** Return the library in use: never SMOE_PRODUCTS_AUTO. */
smoe_products_kind smoe_products_chosen(void);

/** Return version, code path and caches in a line: "OpenBLAS 0.3.21, core type SkylakeX; L2 2048 KiB, L3 32768 KiB".
 *  What the bits of a run depend on beside its configuration; it stands in logs and checkpoints.
 */
const char *smoe_products_facts(void);

/** Rates of one core, in FLOP per second. */
typedef struct smoe_products_rate {
  double gemm;     /**< single-precision GEMM of a friendly shape, one thread */
  double peak;     /**< fused multiply-adds on registers: smoe_core_peak_fp32 */
  const char *isa; /**< of the peak */
} smoe_products_rate;

/** Measure both, the best of several short runs; changes no number of threads and no result.
 *
 *  Cost:    10 to 30 ms; three times that if GEMM seems slow, but not by much; more on a busy core.
 */
void smoe_products_measure(smoe_products_rate *rate);

/** Return whether GEMM stays below 0.7 of the peak. NaN counts as below. */
bool smoe_products_slow(const smoe_products_rate *rate);

/** Return why GEMM may be slow here, as far as that can be told, and what to do, in a sentence. */
const char *smoe_products_advice(void);

/** Return whether the processor's model has AVX-512 while the machine does not show it (a hypervisor, the firmware):
 *  the peak is lower then, too, so no ratio shows it.
 */
bool smoe_products_avx512_hidden(void);

#endif
