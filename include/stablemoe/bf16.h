/** Products of bf16 operands with sums in fp32: rounding, and the three products of a linear map.
 *
 *  A bf16 is the upper half of a float: 8 bits of exponent, 7 of mantissa. Rounding is to nearest, ties to even.
 *  Letters as in kernel.h. All functions are Local, and called by one thread at a time.
 *
 *  Two ways to compute: oneDNN's matmul primitive, if smoe_bf16_native(); else the operands are
 *  expanded to fp32, exactly, and multiplied by smoe_gemm. Both sum in fp32, in different orders: the bits differ.
 *
 *  Bits: repeated calls give the same bits, wherever the operands are in memory. The sizes of the call decide the
 *  order of a sum, the number of rows included, so these must not follow from the number of ranks: measured with
 *  oneDNN 2.6 on AMX, the first m rows of a product have the same bits as m rows alone for sums of up to 1024 terms,
 *  except for m = 1, and other bits for longer ones; with AVX512_BF16 they were the same for all lengths tried.
 */
#ifndef STABLEMOE_BF16_H
#define STABLEMOE_BF16_H

#include <stdbool.h>

#include "stablemoe/real.h"

/** Upper half of a float. */
typedef uint16_t smoe_bf16;

/** Largest relative error of rounding a normal number. */
#define SMOE_BF16_EPSILON (1.0 / 256)

/** Return whether products of bf16 are made by oneDNN from bf16 instructions of this processor. It follows from the
 *  build and the processor alone (and DNNL_MAX_CPU_ISA), and is false in the double-precision build.
 */
bool smoe_bf16_native(void);

/** Return whether training in bf16 is faster than in fp32 here: AMX tiles, or AVX512_BF16 on an AMD processor.
 *  Intel's AVX512_BF16 makes half as many FLOP as its fp32. By rule, never by timing.
 */
bool smoe_bf16_pays(void);

/** Return the way in words, for reports: "oneDNN AVX512_CORE_AMX", or "fp32 GEMM of rounded operands". */
const char *smoe_bf16_name(void);

/** Compute without bf16 instructions from now on (true), or again with them: for tests and comparisons. */
void smoe_bf16_force_fallback(bool fallback);

/** y [n] = x [n] rounded.  NaN stays NaN (quiet), infinity stays; beyond the largest bf16 to infinity; subnormal
 *  numbers to zero of their sign, as the processor's own instruction does.  The same bits with and without that.
 */
void smoe_bf16_round(smoe_bf16 *y, const smoe_real *x, size_t n);

/** smoe_bf16_round by integer arithmetic alone, whatever the processor has. */
void smoe_bf16_round_portable(smoe_bf16 *y, const smoe_real *x, size_t n);

/** y [n] = x [n], exactly. */
void smoe_bf16_expand(smoe_real *y, const smoe_bf16 *x, size_t n);

/** Return reals of scratch for the three products of a linear map of up to N rows; 0 if smoe_bf16_native(). */
size_t smoe_bf16_scratch(size_t n, size_t c, size_t o);

/** y [N, O] = x [N, C] w^T + b;  w [O, C], b [O] or NULL.  scratch as smoe_bf16_scratch (NULL if that is 0).
 *
 *  Cost:    with oneDNN the first call of each (N, C, O) generates code, 0.5 to 3 ms. Rows beyond a multiple of 64 are
 *           a call of their own, so that any number of different N needs N / 64 + 63 of them at most.
 */
void smoe_bf16_linear_forward(smoe_real *y, const smoe_bf16 *x, const smoe_bf16 *w, const smoe_real *b,
                              smoe_real *scratch, size_t n, size_t c, size_t o);

/** h [N, F] = relu(x [N, C] w^T + b) rounded to bf16; NaN stays NaN.  b [F] or NULL. */
void smoe_bf16_linear_relu_forward(smoe_bf16 *h, const smoe_bf16 *x, const smoe_bf16 *w, const smoe_real *b,
                                   smoe_real *scratch, size_t n, size_t c, size_t f);

/** dx [N, C] = (or += if add) dy [N, O] w [O, C]. */
void smoe_bf16_linear_backward_input(smoe_real *dx, const smoe_bf16 *dy, const smoe_bf16 *w,
                                     smoe_real *scratch, size_t n, size_t c, size_t o, bool add);

/** dw [O, C] += dy [N, O]^T x [N, C].  The bias's gradient is a sum of dy before rounding: smoe_linear_backward_bias. */
void smoe_bf16_linear_backward_weight(smoe_real *dw, const smoe_bf16 *dy, const smoe_bf16 *x,
                                      smoe_real *scratch, size_t n, size_t c, size_t o);

/** Gradient through ReLU, from its rounded output, and rounding, in one pass: d [n] = round(h > 0 ? dh : 0). */
void smoe_bf16_relu_backward(smoe_bf16 *d, const smoe_real *dh, const smoe_bf16 *h, size_t n);

#endif
