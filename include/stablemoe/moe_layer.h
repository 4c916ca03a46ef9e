/** The MoE layer: route, dispatch, experts, combine.
 *
 *      y = x + sum over slots k of gate_k * delta_k (+ shared experts),   delta = f_expert(norm(x)) - norm(x)
 *
 *  where the router has an omega, each dimension of delta is multiplied by its own.
 *  With spec.out the experts' results have a width of their own, and x is not added.
 *  As a layer between blocks it has no norm of its own: the experts' sublayers have one each. In place of a
 *  block's feed-forward layer it has one, which router and experts share.
 *
 *  Source: StableMoE (Dai et al. 2022), equations 5 to 15.
 */
#ifndef STABLEMOE_MOE_LAYER_H
#define STABLEMOE_MOE_LAYER_H

#include "stablemoe/exchange.h"
#include "stablemoe/expert.h"
#include "stablemoe/router.h"

typedef struct smoe_moe_layer {
  int layer; /**< number among the MoE layers */
  int stream;
  smoe_norm_kind norm;
  smoe_real skip_below; /**< slots with smaller gates are not sent; 0: all are */
  size_t width;
  size_t out; /**< O of the experts' results: width, to which the input is added, or another one */
  smoe_router router;
  smoe_experts experts;
  smoe_exchange exchange;
  smoe_exchange narrow; /**< for rows of O reals, by the plan of exchange; where O is not width */
  smoe_params *params;
  int gamma, beta;   /**< of the layer's own norm; -1: none */
  smoe_layer shared; /**< feed-forward layer of the shared experts, without norm; zeroed: none */

  /* Tape. */
  smoe_real *x;           /**< [N, C] norm(x); NULL: there is no norm, and x itself serves */
  smoe_real *mean, *rstd; /**< [N] */
  int32_t *expert;        /**< [N, K] as the exchange left it: -1 unused, -2 - e dropped */
  smoe_real *gate;        /**< [N, K] */
  bool keeps;             /**< results are kept: something learns from them, gates or omega */
  smoe_operand kept;      /**< [N K at most, O] delta of each slot as it travelled, in send order */
  smoe_real *router_tape; /**< one stretch of lane_tape reals per lane */
  int32_t *router_ints;   /**< one stretch of lane_ints integers per lane */
  size_t lane_tape, lane_ints;
  int32_t *learned;   /**< [N] or -1 */
  int32_t *distilled; /**< [N] or -1 */

  /* Scratch. */
  void *packing;      /**< [smoe_exchange_scratch_max] rows as they travel */
  smoe_real *rows;    /**< [M, C or O] */
  smoe_real *drows;   /**< [M, O] */
  smoe_real *wide;    /**< [O] a result in fp32, where those in bf16 meet an omega */
  smoe_real *dgate;   /**< [N, K]; where results are kept */
  smoe_real *dnormed; /**< [N, C]; with a norm */
  smoe_real *dscaled; /**< [N, C] omega times dy; with routers that have an omega */
  smoe_real
      *spread; /**< [N, K] what experts' gradients are multiplied by, in place of the gates; NULL: those */
  smoe_real *router_scratch;

  /* What routers hand on over depth; with routers that do. */
  struct smoe_moe_layer *previous, *next; /**< MoE layers before and after it in its stream; NULL: none */
  size_t state_reals;                     /**< per token; 0: none */
  smoe_real *state;                       /**< [N, state_reals] of this layer's router; tape */
  smoe_real *dstate;                      /**< its gradient, from the router of the layer after it */

  /* Sums over the micro-batches of an update; the same on all ranks. */
  int64_t *load; /**< [E] */
  int64_t n_assigned, n_dropped;
  int64_t n_skipped; /**< of this rank: choices whose gate was below skip_below */
} smoe_moe_layer;

/** As a layer of a model; its state is a smoe_moe_layer. */
extern const smoe_layer_ops smoe_layer_moe;

/** Forget the sums of the update before. Local. */
void smoe_moe_layer_begin_update(smoe_moe_layer *moe);

/** Whether the choice of experts in such a pass follows from the token ids alone, whatever is learned. Local. */
bool smoe_moe_layer_from_ids(const smoe_moe_layer *moe, const smoe_pass *pass);

/** Count the choices for this rank's tokens, where smoe_moe_layer_from_ids says so.
 *
 *  Local; uses the tape.
 *  load   inout  [E] +=
 *  pass   in     with its batch
 */
void smoe_moe_layer_count(smoe_moe_layer *moe, int64_t *load, const smoe_pass *pass);

#endif
