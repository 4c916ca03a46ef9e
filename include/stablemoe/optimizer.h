/** Learning rate, true global gradient norm, and the sharded Adam step. */
#ifndef STABLEMOE_OPTIMIZER_H
#define STABLEMOE_OPTIMIZER_H

#include "stablemoe/config.h"
#include "stablemoe/params.h"

/** Norms of an update's gradient; the same bits on any number of ranks. */
typedef struct smoe_norms {
  double all;    /**< sqrt(shared^2 + expert^2) */
  double shared; /**< every replicated parameter once */
  double expert; /**< every expert once */
} smoe_norms;

/** Learning rate of the zero-based update u.
 *
 *  Local. Warm-up over W updates: lr (u + 1) / W. Then, with U updates in all, floor m and decay share s:
 *
 *    linear        lr (U - u) / (U - W): to 0 at the end of training
 *    inverse_sqrt  lr sqrt(W / (u + 1))
 *    constant      lr
 *    cosine        lr (m + (1 - m) (1 + cos(pi (u - W) / (U - W))) / 2)
 *    wsd           lr, and lr (m + (1 - m) (U - u) / D) in the last D = s U updates (rounded; at most U - W)
 *
 *  Source: cosine Loshchilov and Hutter 2017; wsd Hu et al. 2024 (MiniCPM), with a linear decay.
 */
double smoe_learning_rate(const smoe_settings *settings, int64_t update);

/** Gradient norms over all parameters that are not frozen.
 *
 *  Collective over params->group; reads shared_grad and expert_grad_own (own slices).
 *  Order: squares in double over units of SMOE_UNIT, then over units in order.
 *  Cost:  one Allgather of a double per unit and one of a double per expert.
 */
smoe_norms smoe_gradient_norms(const smoe_params *params);

/** One Adam step on every parameter that is not frozen, then share the replicated ones.
 *
 *  Collective over params->group.
 *  update  zero-based; factor: multiplies the gradients (clipping)
 */
void smoe_optimizer_step(smoe_params *params, const smoe_settings *settings, int64_t update, double factor);

#endif
