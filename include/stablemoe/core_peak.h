/** What one core can do at most: fused multiply-adds on registers alone, measured. */
#ifndef STABLEMOE_CORE_PEAK_H
#define STABLEMOE_CORE_PEAK_H

/** FLOP per second of one core, a product and a sum counted as two, and the instructions that make them. */
typedef struct smoe_core_peak {
  double fp32, bf16; /**< bf16: products of bf16 with sums in fp32; NaN where the core has none */
  const char *fp32_isa, *bf16_isa; /**< "AVX-512", "AMX", ...; bf16_isa "none" where there is none */
} smoe_core_peak;

/** Measure fp32 with the widest vectors of the processor, whatever the program was compiled for.
 *
 *  Local. The best of many runs of a tenth of a millisecond, so that neighbours on the core do not count while
 *  one run in between is left alone. Touches no memory and no rounding mode.
 *
 *  Cost:    about 3 ms.
 */
double smoe_core_peak_fp32(const char **isa);

/** Measure products of pairs of bf16 with sums in fp32: AMX tiles or AVX-512's dot products, whichever is more.
 *  NaN and "none" where the processor has neither, or the system refuses the tiles.  Local.
 *
 *  Cost:    about 6 ms.
 */
double smoe_core_peak_bf16(const char **isa);

/** Both. Local. */
void smoe_core_peak_measure(smoe_core_peak *peak);

#endif
