/** What the MoE layer does with its experts' results on the tokens' side: add them up, and the backward of that. */
#ifndef STABLEMOE_MOE_COMBINE_H
#define STABLEMOE_MOE_COMBINE_H

#include "stablemoe/moe_layer.h"

/** y [N, C] += sum over slots of gate omega delta; omega is 1 where the router has none. Local.
 *  results: delta of the slots that were sent, in send order. */
void smoe_moe_add_slots(const smoe_moe_layer *moe, smoe_real *y, smoe_operand results, size_t n);

/** moe->dgate [N, K] = <ddelta, delta>, from the kept results; 0 for slots that were not sent. ddelta: [N, O]. Local. */
void smoe_moe_gate_gradients(const smoe_moe_layer *moe, const smoe_real *ddelta, size_t n);

/** omega dy, and the gradient of omega from every kept result of the rank's lanes.
 *
 *  Local.
 *  Writes: moe->dscaled =, the lanes' gradients of omega +=
 *  Returns what is to be taken for dy by gates and experts: dy itself where there is no omega.
 */
const smoe_real *smoe_moe_scale_backward(const smoe_moe_layer *moe, const smoe_token_shape *tokens,
                                         const smoe_real *dy);

/** What a lane's gradients are multiplied by on their way to the experts where the router estimates them: the gate
 *  times the estimate's factor. Local. spread: out [N, K] of the lane.
 */
void smoe_moe_spread(const smoe_moe_layer *moe, const smoe_route_call *call, smoe_real *spread);

#endif
