/** Linear maps on operands, and the functions between them that make operands of their results.
 *
 *  The operands of one call (x, w, dy, h) are all fp32 or all bf16 (operand.h); results are fp32, or an operand in
 *  the precision of its memory. In fp32 these are the functions of kernel.h, with the same bits. Letters as there; all
 *  functions are Local. A gradient is rounded once, where it enters a map: the gradients of weights, bias and
 *  input follow from the same numbers.
 */
#ifndef STABLEMOE_MAP_H
#define STABLEMOE_MAP_H

#include "stablemoe/operand.h"

/** y [N, O] = x [N, C] w^T + b;  w [O, C], b [O] or NULL. */
void smoe_map_forward(smoe_real *y, smoe_operand x, smoe_operand w, const smoe_real *b, size_t n, size_t c,
                      size_t o);

/** The same for decoding, where N is mostly 1: smoe_linear_rows. */
void smoe_map_rows(smoe_real *y, smoe_operand x, smoe_operand w, const smoe_real *b, size_t n, size_t c,
                   size_t o);

/** dx [N, C] = (or += if add) dy [N, O] w. */
void smoe_map_backward_input(smoe_real *dx, smoe_operand dy, smoe_operand w, size_t n, size_t c, size_t o,
                             bool add);

/** dw [O, C] += dy^T x;  db [O] += column sums of dy (NULL: none). */
void smoe_map_backward_weight(smoe_real *dw, smoe_real *db, smoe_operand dy, smoe_operand x, size_t n,
                              size_t c, size_t o);

/** h [N, F] = relu(x w^T + b), as an operand. decoding: few rows, as smoe_map_rows. */
void smoe_map_relu_forward(smoe_operand h, smoe_operand x, smoe_operand w, const smoe_real *b, size_t n,
                           size_t c, size_t f, bool decoding);

/** d [N, F] = the gradient of what relu was applied to, as an operand: h > 0 ? dy [N, O] w [O, F] : 0. */
void smoe_map_relu_backward(smoe_operand d, smoe_operand dy, smoe_operand w, smoe_operand h, size_t n,
                            size_t f, size_t o);

/** h [N, F] = gelu(x + b), as an operand; x becomes x + b. See smoe_bias_gelu_forward. */
void smoe_gelu_operand(smoe_operand h, smoe_real *x, const smoe_real *b, size_t n, size_t f);

/** d [n] = dh gelu'(x), as an operand.
 *
 *  dh  inout  [n] gradient of gelu(x); overwritten in fp32, where it is d
 */
void smoe_gelu_backward_operand(smoe_operand d, smoe_real *dh, const smoe_real *x, size_t n);

/** h [N, F] = silu(a) b from ab [N, 2 F], as an operand. See smoe_swiglu_forward. */
void smoe_swiglu_operand(smoe_operand h, const smoe_real *ab, size_t n, size_t f);

/** d [N, 2 F] = gradient of ab, as an operand, from dh [N, F]. */
void smoe_swiglu_backward_operand(smoe_operand d, const smoe_real *dh, const smoe_real *ab, size_t n,
                                  size_t f);

/* ---- rows that were kept as operands: the same bits as of the row in fp32 ---- */

/** y [n] += s x [n], by the calling thread alone. */
void smoe_add_scaled_operand(smoe_real *y, smoe_real s, smoe_operand x, size_t n);

/** <x, y> over n elements, in the order of smoe_dot. */
smoe_real smoe_dot_operand(const smoe_real *x, smoe_operand y, size_t n);

/** x [n] in fp32: x itself, or buffer [n], into which a bf16 row is expanded. */
const smoe_real *smoe_wide_operand(smoe_operand x, smoe_real *buffer, size_t n);

#endif
