/** The language model: embedding, blocks with MoE layers between them, tied head.
 *
 *  A pass runs layer by layer over all tokens of this rank; blocks, norm and head
 *  go lane by lane, MoE layers over all lanes at once.
 */
#ifndef STABLEMOE_MODEL_H
#define STABLEMOE_MODEL_H

#include "stablemoe/block.h"
#include "stablemoe/moe_layer.h"

/** Sums over one lane's tokens since smoe_model_begin_update. All members are doubles:
 *  smoe_lanes_sum adds them up as an array, followed by one smoe_route_sums per MoE layer.
 */
typedef struct smoe_lane_sums {
  double loss;      /**< cross entropy, nats */
  double n_targets; /**< real targets */
} smoe_lane_sums;

typedef struct smoe_model {
  const smoe_config *config;
  smoe_topology topology;
  smoe_params params;
  smoe_token_shape tokens;
  bool training;
  bool recompute; /**< blocks keep no tape: the backward pass makes it again, lane by lane */
  size_t width, vocabulary;
  int n_blocks, n_moe;
  smoe_block *block;   /**< [n_blocks] */
  smoe_moe_layer *moe; /**< [n_moe] */
  int n_layers;        /**< blocks and MoE layers together */
  int *layer;          /**< [n_layers] in order of the pass: block number, or -1 - MoE layer number */
  int table, position, gamma, beta; /**< parameter indices */

  smoe_arena fixed; /**< parameters, gradients, moments, plans: lives as long as the model */
  smoe_arena tape;  /**< what backward needs */
  smoe_arena scratch;
  smoe_block_scratch block_scratch;
  smoe_real **x;               /**< [n_layers + 1] input of each layer, [N, C] */
  smoe_real *mean, *rstd;      /**< [N] of the final norm */
  smoe_real *dx;               /**< [N, C] */
  smoe_real *normed, *dnormed; /**< [lane tokens, C] */
  smoe_real *logits;           /**< [head rows, V] */
  smoe_real *row_loss;         /**< [lane tokens] */
  smoe_real *token_loss;       /**< [N] losses of a pass, in memory of who asked for them; NULL: nobody has */
  smoe_real *reduce_scratch;   /**< for smoe_reduce_lanes */
  size_t head_rows;            /**< rows of a slice of the head */

  double library_bytes; /**< resident before the model took memory: MPI, HDF5, BLAS, the program */

  int n_sums;   /**< doubles per lane */
  double *sums; /**< [lanes of this rank, n_sums]: smoe_lane_sums, then n_moe smoe_route_sums */
} smoe_model;

/** Place of MoE layer m's smoe_route_sums within a lane's sums, in doubles. Local. */
size_t smoe_model_route_sums(int m);

/** Sizes that are not in the configuration, or replace it. */
typedef struct smoe_model_shape {
  int vocabulary;
  int n_lanes;           /**< of all ranks */
  size_t lane_sequences; /**< of a micro-batch */
  bool training;         /**< with gradients, moments and a tape */
} smoe_model_shape;

/** Build a model: declare, plan, take memory. Parameters are not yet set.
 *
 *  Collective over group.
 *  plan_only: stop after planning (--dry-run): the arenas say what they would take.
 *  Errors:  agreed on all ranks.
 */
smoe_status smoe_model_create(smoe_model **model, const smoe_config *config, const smoe_group *group,
                              const smoe_model_shape *shape, bool plan_only);

/** Give it back. Local. */
void smoe_model_destroy(smoe_model *model);

/** Set gradients and sums to zero; the model must be one built for training. Local. */
void smoe_model_begin_update(smoe_model *model);

/** Set only the sums to zero: the beginning of an evaluation. Local. */
void smoe_model_begin_sums(smoe_model *model);

/** Forward over one micro-batch, and in training at once the head's gradients.
 *
 *  Collective over the group.
 *
 *  input    in  [N] token ids of this rank's lanes; -1: padding
 *  target   in  [N] ids, -1: none. NULL: no head at all (smoe_model_logits reads rows instead)
 *
 *  Writes:   model->sums +=; where context->training: model->dx = dL/d(last layer's output), head's gradients +=,
 *            with L divided by context->n_targets
 */
void smoe_model_forward(smoe_model *model, const int32_t *input, const int32_t *target,
                        const smoe_route_context *context);

/** Backward of the micro-batch that went forward last. Collective. Writes: all gradients +=. */
void smoe_model_backward(smoe_model *model, const int32_t *input, const smoe_route_context *context);

/** Logits [V] of one row of this rank after a forward pass. Local. */
void smoe_model_logits(smoe_model *model, size_t row, smoe_real *logits);

/** Enter stage 2: freeze the routers. Local; the same on all ranks. */
void smoe_model_freeze(smoe_model *model);

/** Bytes of the arenas that this rank is expected to touch, with balanced routing; the plan's figure. What the
 *  process needs in all is that and library_bytes. Local.
 */
double smoe_model_expected_bytes(const smoe_model *model);

/** Print the plan: bytes per arena on this rank, expected and worst case, and what the machine has.
 *
 *  Collective (the largest over ranks is shown).
 *  Errors:  SMOE_ERR_MEMORY where what is expected does not fit.
 */
smoe_status smoe_model_print_plan(const smoe_model *model);

#endif
