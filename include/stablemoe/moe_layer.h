/** The MoE layer: route, dispatch, experts, combine.
 *
 *      y = x + sum over slots k of gate_k * delta_k,   delta = f_expert(x) - x
 *
 *  Source: StableMoE (Dai et al. 2022), equations 5 to 15.
 */
#ifndef STABLEMOE_MOE_LAYER_H
#define STABLEMOE_MOE_LAYER_H

#include "stablemoe/exchange.h"
#include "stablemoe/expert.h"
#include "stablemoe/router.h"

/** Tokens of a micro-batch on this rank: lanes, one after another. */
typedef struct smoe_token_shape {
  int n_lanes;           /**< of this rank */
  size_t lane_sequences; /**< S */
  size_t context;        /**< T */
  size_t lane_tokens;    /**< S T */
  size_t n_tokens;       /**< n_lanes S T */
  int64_t first_token;   /**< global index of this rank's first token in the micro-batch */
  int64_t n_global;      /**< tokens of all ranks in a micro-batch */
  int64_t n_replica;     /**< tokens of this replica's ranks; 0: n_global */
} smoe_token_shape;

typedef struct smoe_moe_layer {
  int layer;
  smoe_router router;
  smoe_experts experts;
  smoe_exchange exchange;
  const smoe_params *params;
  smoe_token_shape tokens;

  /* Tape. */
  int32_t *expert;        /**< [N, K] as the exchange left it: -1 unused, -2 - e dropped */
  smoe_real *gate;        /**< [N, K] */
  smoe_real *slot;        /**< [N, K, C] delta of each slot */
  smoe_real *router_tape; /**< one stretch of lane_tape reals per lane */
  size_t lane_tape;
  int32_t *learned;   /**< [N] or -1 */
  int32_t *distilled; /**< [N] or -1 */

  /* Scratch. */
  smoe_real *packing; /**< [smoe_exchange_scratch_max, C] */
  smoe_real *rows;    /**< [M, C] */
  smoe_real *drows;   /**< [M, C] */
  smoe_real *dgate;   /**< [N, K] */
  smoe_real *router_scratch;

  bool planned; /**< the exchange of the next forward pass is planned already */

  /* Sums over the micro-batches of an update; the same on all ranks. */
  int64_t *load; /**< [E] */
  int64_t n_assigned, n_dropped;
} smoe_moe_layer;

/** Declare the layer's parameters. Local. */
void smoe_moe_layer_declare(smoe_moe_layer *moe, const smoe_config *config, smoe_params *params, int layer,
                            int vocabulary);

/** Take memory. Local.
 *
 *  fixed  arena of what lives as long as the model
 */
void smoe_moe_layer_layout(smoe_moe_layer *moe, const smoe_config *config, const smoe_token_shape *tokens,
                           smoe_arena *fixed, smoe_arena *tape, smoe_arena *scratch, bool training);

/** Bytes of tape and scratch per received row, of which the plan holds the worst case. Local.
 *  with_scratch: MoE layers share their scratch, so it counts once.
 */
double smoe_moe_layer_row_bytes(const smoe_moe_layer *moe, bool training, bool with_scratch);

/** Give back what is not in an arena. Local. */
void smoe_moe_layer_release(smoe_moe_layer *moe);

/** Forget the sums of the update before. Local. */
void smoe_moe_layer_begin_update(smoe_moe_layer *moe);

/** Whether the choice of experts in such a pass follows from the token ids alone, whatever is learned. Local. */
bool smoe_moe_layer_ahead(const smoe_moe_layer *moe, const smoe_route_context *context);

/** Plan the exchange of the coming forward pass before any layer has run, where the choice of
 *  experts follows from the token ids; else do nothing.
 *
 *  Collective over the params' group.
 *  token  in  [N] as the forward pass will get it; its context likewise
 */
void smoe_moe_layer_plan(smoe_moe_layer *moe, const int32_t *token, const smoe_route_context *context);

/** Count the choices for this rank's tokens, where smoe_moe_layer_ahead says so.
 *
 *  Local; uses the tape.
 *  load   inout  [E] +=
 *  token  in     [N]
 */
void smoe_moe_layer_count(smoe_moe_layer *moe, int64_t *load, const int32_t *token,
                          const smoe_route_context *context);

/** Forward.
 *
 *  Collective over the params' group.
 *
 *  y      out    [N, C]; not x
 *  sums   inout  the lane's smoe_route_sums, as doubles, stand at sums + lane * stride; +=
 *  x      in     [N, C]; must live until backward
 *  token  in     [N]
 */
void smoe_moe_layer_forward(smoe_moe_layer *moe, smoe_real *y, double *sums, size_t stride,
                            const smoe_real *x, const int32_t *token, const smoe_route_context *context);

/** Backward, in place: dx holds dL/dy on entry and dL/dx on return.
 *
 *  Collective over the params' group.
 *  Writes:   dx =, lane gradients +=, experts' gradients +=
 */
void smoe_moe_layer_backward(smoe_moe_layer *moe, smoe_real *dx, const smoe_real *x, const int32_t *token,
                             const smoe_route_context *context);

#endif
