/** The Transformer of the distilled router: pre-LN, causal, relu, learned positions, a norm at the end.
 *
 *      u = x + Wo attention(Wqkv LN1(x)) + bo,   y = u + W2 relu(W1 LN2(u) + b1) + b2,   h = LN(y of the last)
 *
 *  The shape is GPT-Neo's, which the paper's code uses. All functions are Local.
 */
#ifndef STABLEMOE_MOE_DISTILL_TRANSFORMER_H
#define STABLEMOE_MOE_DISTILL_TRANSFORMER_H

#include "distill.h"

/** Declare its parameters; returns the index of the first, the others follow it. */
int smoe_distill_transformer_declare(const smoe_router *router, smoe_params *params,
                                     const smoe_distill_options *options);

/** Reals of tape and of scratch for n tokens. */
size_t smoe_distill_transformer_tape(const smoe_router *router, const smoe_distill_options *options,
                                     size_t n);
size_t smoe_distill_transformer_scratch(const smoe_router *router, const smoe_distill_options *options,
                                        size_t n);

/** h [N, D]; table [V, D] is the word embedding, first the index that declare gave. */
void smoe_distill_transformer_forward(smoe_real *h, const smoe_router *router,
                                      const smoe_distill_options *options, const smoe_route_call *call,
                                      int first, const smoe_real *table, smoe_real *tape, smoe_real *scratch);

/** Adds to dtable [V, D] and to the lane's gradients; dh [N, D] is used up. */
void smoe_distill_transformer_backward(smoe_real *dtable, smoe_real *dh, const smoe_router *router,
                                       const smoe_distill_options *options, const smoe_route_call *call,
                                       int first, const smoe_real *tape, smoe_real *scratch);

/** h again from the tape, for the backward of what is made of it. */
void smoe_distill_transformer_recompute(smoe_real *h, const smoe_router *router,
                                        const smoe_distill_options *options, const smoe_route_call *call,
                                        int first, const smoe_real *tape);

#endif
