/** What methods share that route by a softmax over the experts: scores, choice, loss, gradients.
 *
 *  z_{t,e} = w_e x_t,  p_t = softmax(z_t). A score that is not finite counts as minus
 *  infinity, and a token without a finite score, or padding, has p_t = 0: no gate, no part
 *  in a loss, no gradient. Sums run lane by lane in token order. All functions are Local.
 */
#ifndef STABLEMOE_MOE_SOFTMAX_SCORES_H
#define STABLEMOE_MOE_SOFTMAX_SCORES_H

#include "stablemoe/router.h"

/** z [N, E] = x [N, C] w^T with w [E, C]; minus infinity where that is not finite. */
void smoe_scores_forward(smoe_real *z, const smoe_real *x, const smoe_real *w, size_t n, size_t c, size_t e);

/** The k best experts of each token, the best first, the lower one first where scores are equal.
 *
 *  expert  out  [N, K]: k of K slots are written; -1 beyond the experts with a finite score, but the
 *               first slot follows smoe_route_argmax: expert 0 where there is none, -1 for padding
 *  z       in   [N, E] as smoe_scores_forward gives them
 */
void smoe_scores_top(int32_t *expert, size_t slots, const smoe_real *z, const int32_t *token, size_t n,
                     size_t e, size_t k);

/** p [N, E] = softmax of z, in place. */
void smoe_scores_softmax(smoe_real *p, const int32_t *token, size_t n, size_t e);

/** dz = p (dp - <p, dp>) in place over dp [N, E]: the backward of smoe_scores_softmax. */
void smoe_scores_softmax_backward(smoe_real *dp, const smoe_real *p, size_t n, size_t e);

/** s [N, E] = sigmoid of z, in place; 0 for padding and where a score is not finite. */
void smoe_scores_sigmoid(smoe_real *s, const int32_t *token, size_t n, size_t e);

/** p [N, E] = s over the sum of its row; 0 where that is 0. */
void smoe_scores_shares(smoe_real *p, const smoe_real *s, size_t n, size_t e);

/** Experts in turn, by each token's place among all of the update: what a forced balance is. Writes call->expert. */
void smoe_scores_in_turn(const smoe_router *router, const smoe_route_call *call);

/** f [E]: each expert's share of the slots of all ranks; 0 where nothing is assigned. */
void smoe_load_shares(smoe_real *f, const smoe_route_loads *loads, size_t e);

/** The balance loss of Switch (equation 4) as a sum over the lane's tokens: E sum_t sum_e f_e p_{t,e}.
 *
 *  At an even load every token adds 1. The shares f are constants of the gradient.
 */
double smoe_balance_sum(const smoe_real *p, const smoe_real *f, size_t n, size_t e);

/** dp [N, E] = weight E f_e: the backward of weight * smoe_balance_sum; 0 where weight is 0. */
void smoe_balance_backward(smoe_real *dp, const smoe_real *f, smoe_real weight, size_t n, size_t e);

/** Tokens whose loads a balance loss evens out: the micro-batch on all ranks, a lane, each sequence. */
typedef enum smoe_balance_over { SMOE_OVER_BATCH, SMOE_OVER_LANE, SMOE_OVER_SEQUENCE } smoe_balance_over;
extern const char *const smoe_balance_overs[];

/** smoe_balance_sum with shares counted over such tokens, before dropping. f: scratch [E]. */
double smoe_balance_term(const smoe_router *router, const smoe_route_call *call,
                         const smoe_route_loads *loads, smoe_balance_over over, const smoe_real *p,
                         smoe_real *f);

/** dp [N, E]: the backward of weight * smoe_balance_term. f: scratch [E]. */
void smoe_balance_slope(smoe_real *dp, const smoe_router *router, const smoe_route_call *call,
                        const smoe_route_loads *loads, smoe_balance_over over, smoe_real weight,
                        smoe_real *f);

/** log_sum [N] = log sum_e exp(z_e) over finite scores; 0 for padding and where there is none. */
void smoe_scores_log_sum(smoe_real *log_sum, const smoe_real *z, const int32_t *token, size_t n, size_t e);

/** The z loss of ST-MoE (equation 5) as a sum over the lane's tokens: sum_t log_sum_t^2. */
double smoe_z_loss_sum(const smoe_real *log_sum, size_t n);

/** dz [N, E] += weight 2 log_sum exp(z - log_sum). */
void smoe_z_loss_backward(smoe_real *dz, const smoe_real *z, const smoe_real *log_sum, smoe_real weight,
                          size_t n, size_t e);

#endif
