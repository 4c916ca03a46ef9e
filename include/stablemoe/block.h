/** A Transformer block: pre-LN causal self-attention and FFN, each with a residual.
 *
 *      u = x + Wo attention(LN1(x)) + bo
 *      y = u + W2 relu(W1 LN2(u) + b1) + b2
 *
 *  Blocks run lane by lane: all sizes below are one lane's.
 */
#ifndef STABLEMOE_BLOCK_H
#define STABLEMOE_BLOCK_H

#include "stablemoe/config.h"
#include "stablemoe/params.h"

/** Scratch that all blocks share. */
typedef struct smoe_block_scratch {
  smoe_real *normed;    /**< [N, C] */
  smoe_real *attention; /**< smoe_attention_scratch */
  smoe_real *dinner;    /**< [N, F]; backward only, as all below */
  smoe_real *dnormed;   /**< [N, C] */
  smoe_real *dqkv;      /**< [N, 3 C] */
  smoe_real *dout;      /**< [N, C] */
} smoe_block_scratch;

typedef struct smoe_block {
  const smoe_params *params;
  size_t width, heads, inner, context, lane_tokens;
  int gamma1, beta1, qkv, qkv_bias, proj, proj_bias; /* indices in the parameter table */
  int gamma2, beta2, w1, b1, w2, b2;

  /* Tape: lane after lane; or of the lane that ran last, where lane_stride is 0. */
  size_t lane_stride;       /**< tokens from one lane's tape to the next: lane_tokens, or 0 */
  smoe_real *mean1, *rstd1; /**< [N] */
  smoe_real *qkv_rows;      /**< [N, 3 C] */
  smoe_real *attended;      /**< [N, C] */
  smoe_real *lse;           /**< [S, H, T] */
  smoe_real *u;             /**< [N, C] */
  smoe_real *mean2, *rstd2; /**< [N] */
  smoe_real *h;             /**< [N, F] after relu */
} smoe_block;

/** Declare the parameters of block number `number`. Local. */
void smoe_block_declare(smoe_block *block, const smoe_settings *settings, smoe_params *params, int number);

/** Take the tape for lanes of lane_tokens tokens. Local.
 *
 *  n_lanes  in  lanes that have a tape of their own; 1: all lanes share one, and smoe_block_recompute comes
 *               before each smoe_block_backward
 *  shared   in  use this block's tape instead (evaluation, recomputation); or NULL
 */
void smoe_block_layout(smoe_block *block, smoe_arena *tape, int n_lanes, size_t lane_tokens,
                       const smoe_block *shared);

/** Take the scratch. Local. */
void smoe_block_scratch_layout(smoe_block_scratch *scratch, const smoe_block *block, smoe_arena *arena,
                               bool training);

/** y [N, C] of one lane from x [N, C]. Local. */
void smoe_block_forward(smoe_block *block, const smoe_block_scratch *scratch, int lane, smoe_real *y,
                        const smoe_real *x);

/** The tape of one lane again, the same bits as smoe_block_forward left, from x [N, C]. Local. */
void smoe_block_recompute(smoe_block *block, const smoe_block_scratch *scratch, int lane, const smoe_real *x);

/** In place: dx [N, C] holds dL/dy on entry, dL/dx on return; the lane's gradients +=. Local. */
void smoe_block_backward(smoe_block *block, const smoe_block_scratch *scratch, int lane, smoe_real *dx,
                         const smoe_real *x);

#endif
