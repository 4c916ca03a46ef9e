/** The way of an MoE layer's rows: to the experts' ranks, through the experts, and back, all at once or in
 *  groups of experts that compute while rows of the others travel (comm.overlap).
 */
#ifndef STABLEMOE_MOE_EXPERTS_H
#define STABLEMOE_MOE_EXPERTS_H

#include "stablemoe/moe_layer.h"

/** The exchange that brings results back: of rows of moe->out reals. Local. */
const smoe_exchange *smoe_moe_results(const smoe_moe_layer *moe);

/** Whether groups of experts travel and compute side by side. Local. */
bool smoe_moe_overlaps(const smoe_moe_layer *moe);

/** Return delta of each slot that is sent, from x [N, C], by the present plan: rows [., O] in send order, at moe->kept
 *  where the layer keeps them, else in scratch. Collective. */
smoe_operand smoe_moe_experts_forward(smoe_moe_layer *moe, const smoe_real *x);

/** dx [N, C] += gradient through the experts, from dy [N, O] and the gates; experts' gradients +=. dy may be dx;
 *  where the rows are data, dx is left alone.
 *  Collective.
 */
void smoe_moe_experts_backward(smoe_moe_layer *moe, smoe_real *dx, const smoe_real *dy);

/** Mark the choices of n tokens whose gate is below moe->skip_below as dropped: they are not computed, and stay readable.
 *  Local. */
void smoe_moe_skip_slots(smoe_moe_layer *moe, size_t n);

/** Bytes that an MoE layer has room for and balanced routing leaves untouched: rows of its experts, and results of
 *  slots that tokens do not use. As smoe_layer_ops.untouched. Local. */
double smoe_moe_untouched(const smoe_layer *layer, bool training, bool with_scratch);

/** The arithmetic of an MoE layer: what its experts and the shared ones multiply. Local. */
void smoe_moe_work(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work);

#endif
