/** The gate of StableMoE and BASE: sigmoid of the score of the chosen expert. All functions are Local. */
#ifndef STABLEMOE_MOE_SIGMOID_GATE_H
#define STABLEMOE_MOE_SIGMOID_GATE_H

#include "stablemoe/real.h"

/** gate [N] = sigmoid(E_a x_t + o_a) for the chosen expert a of each token; 0 where there is none or the
 *  score is not finite.
 *
 *  choice    in  [N] experts; -1: none
 *  centroid  in  [E, C]
 *  offset    in  [E]; NULL: 0
 *  x         in  [N, C]
 */
void smoe_sigmoid_gate_forward(smoe_real *gate, const int32_t *choice, const smoe_real *centroid,
                               const smoe_real *offset, const smoe_real *x, size_t n, size_t c);

/** dx [N, C] += ds E_a, dcentroid [E, C] += ds x_t, doffset [E] += ds, with ds = gate (1 - gate) dgate; NULL: not
 *  wanted. */
void smoe_sigmoid_gate_backward(smoe_real *dx, smoe_real *dcentroid, smoe_real *doffset,
                                const smoe_real *dgate, const smoe_real *gate, const int32_t *choice,
                                const smoe_real *centroid, const smoe_real *x, size_t n, size_t c);

#endif
