/** Products of bf16 operands with sums in fp32: the three products of a linear map.
 *
 *  map.h is what layers call. Letters as in kernel.h. All functions are Local, and called by one thread at a time.
 *
 *  Two ways to compute: oneDNN's matmul primitive, if smoe_bf16_native(); else the operands are
 *  expanded to fp32, exactly, and multiplied by smoe_gemm. Both sum in fp32, in different orders: the bits differ.
 *  The second way keeps memory for a matrix of weights and some rows in fp32, as much as the largest call needed.
 *
 *  Bits: repeated calls give the same bits, wherever the operands are in memory. The sizes of the call decide the
 *  order of a sum, the number of rows included, so these must not follow from the number of ranks: measured with
 *  oneDNN 2.6 on AMX, the first m rows of a product have the same bits as m rows alone for sums of up to 1024 terms,
 *  except for m = 1, and other bits for longer ones; with AVX512_BF16 they were the same for all lengths tried.
 *
 *  Cost: with oneDNN the first call of each shape generates code, 0.5 to 3 ms. Rows beyond a multiple of 64 are up to
 *  two calls of their own, so that any number of different N needs N / 64 + 14 of them at most.
 */
#ifndef STABLEMOE_BF16_H
#define STABLEMOE_BF16_H

#include "stablemoe/operand.h"

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

/** y [N, O] = x [N, C] w^T + b;  w [O, C], b [O] or NULL. */
void smoe_bf16_linear_forward(smoe_real *y, const smoe_bf16 *x, const smoe_bf16 *w, const smoe_real *b,
                              size_t n, size_t c, size_t o);

/** The same, rounded to bf16. */
void smoe_bf16_linear_forward_rounded(smoe_bf16 *y, const smoe_bf16 *x, const smoe_bf16 *w,
                                      const smoe_real *b, size_t n, size_t c, size_t o);

/** dx [N, C] = (or += if add) dy [N, O] w [O, C]. */
void smoe_bf16_linear_backward_input(smoe_real *dx, const smoe_bf16 *dy, const smoe_bf16 *w, size_t n,
                                     size_t c, size_t o, bool add);

/** The same without add, rounded to bf16. */
void smoe_bf16_linear_backward_input_rounded(smoe_bf16 *dx, const smoe_bf16 *dy, const smoe_bf16 *w, size_t n,
                                             size_t c, size_t o);

/** dw [O, C] += dy [N, O]^T x [N, C]. */
void smoe_bf16_linear_backward_weight(smoe_real *dw, const smoe_bf16 *dy, const smoe_bf16 *x, size_t n,
                                      size_t c, size_t o);

/** db [O] += column sums of dy [N, O], rows in their order. */
void smoe_bf16_linear_backward_bias(smoe_real *db, const smoe_bf16 *dy, size_t n, size_t o);

/** h [n] = h > 0 ? h : 0, in place; NaN stays NaN. */
void smoe_bf16_relu_forward(smoe_bf16 *h, size_t n);

/** Gradient through ReLU, from its output, in place: d [n] = h > 0 ? d : 0. */
void smoe_bf16_relu_backward(smoe_bf16 *d, const smoe_bf16 *h, size_t n);

#endif
