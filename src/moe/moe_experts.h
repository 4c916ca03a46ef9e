/** The way of an MoE layer's rows: to the experts' ranks, through the experts, and back, all at once or in
 *  groups of experts that compute while rows of the others travel (comm.overlap).
 */
#ifndef STABLEMOE_MOE_EXPERTS_H
#define STABLEMOE_MOE_EXPERTS_H

#include "stablemoe/moe_layer.h"

/** moe->slot [N, K, C] = delta of each slot, from x [N, C], by the present plan. Collective. */
void smoe_moe_experts_forward(smoe_moe_layer *moe, const smoe_real *x);

/** dx [N, C] += gradient through the experts, from dy [N, C] and the gates; experts' gradients +=. dy may be dx.
 *  Collective.
 */
void smoe_moe_experts_backward(smoe_moe_layer *moe, smoe_real *dx, const smoe_real *dy);

/** Mark the choices of n tokens whose gate is below moe->skip_below as dropped: they are not computed, and stay readable.
 *  Local. */
void smoe_moe_skip_slots(smoe_moe_layer *moe, size_t n);

#endif
