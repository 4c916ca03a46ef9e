/** A model: a list of layers (family.h), walked forward and back.
 *
 *  Layers of one block go lane by lane together; MoE layers take all lanes of the rank at once.
 */
#ifndef STABLEMOE_MODEL_H
#define STABLEMOE_MODEL_H

#include "stablemoe/family.h"
#include "stablemoe/moe_layer.h"

/** Hidden states: [N, C], or one lane's, which all lanes use in turn. */
typedef struct smoe_hidden {
  smoe_real *rows;
  bool one_lane;
} smoe_hidden;

typedef struct smoe_model {
  const smoe_config *config;
  const smoe_family *family;
  smoe_topology topology;
  smoe_params params;
  smoe_token_shape shape[SMOE_STREAMS]; /**< the largest batch; memory is planned for it */
  bool training;
  int lowest;     /**< first layer that learns: no gradient is computed below it */
  bool recompute; /**< layers keep no tape: the backward pass makes it again, lane by lane */
  size_t width, vocabulary;
  size_t patch; /**< images: numbers of a patch; else 0 */
  int n_layers, n_moe;
  smoe_layer *layer;    /**< [n_layers] in order of the pass */
  smoe_moe_layer **moe; /**< [n_moe] those that are MoE layers */
  smoe_layer *head;     /**< the last layer */
  const smoe_objective *objective;

  smoe_arena fixed; /**< parameters, gradients, moments, plans: lives as long as the model */
  smoe_arena tape;  /**< what backward needs */
  smoe_arena scratch;
  smoe_hidden *in, *out;       /**< [n_layers] of each layer */
  int source_last;             /**< layer whose output is the source stream's result; -1: none */
  smoe_real *dx[SMOE_STREAMS]; /**< [N, C] */
  int32_t *predicted;    /**< [N] images: predicted class at the first row of each, in memory of the caller;
                                    NULL: not kept */
  smoe_real *token_loss; /**< [N] losses of a pass, in memory of the caller; NULL: not kept */
  smoe_real *reduce_scratch; /**< for smoe_params_reduce */
  smoe_batch batch;          /**< of the pass that went forward last */
  smoe_pass pass;

  double
      copy_bytes; /**< of what this rank's part of a checkpoint is copied to (train.save: background); 0: it is
                             not, see smoe_model_print_plan */
  double library_bytes; /**< resident before the model took memory: MPI, HDF5, BLAS, the program */

  smoe_terms terms; /**< loss terms of its routers */
  int n_sums;       /**< doubles per lane */
  double
      *sums; /**< [lanes of this rank, n_sums]: smoe_lane_sums, the objective's, then n_moe smoe_route_sums */
} smoe_model;

/** Place of MoE layer m's smoe_route_sums within a lane's sums, in doubles. Local. */
size_t smoe_model_route_sums(const smoe_model *model, int m);

/** Share of the targets that were predicted, from sums over lanes; NaN where the objective does not count. Local. */
double smoe_model_accuracy(const smoe_model *model, const double *sums);

/** Sizes that are not in the configuration, or replace it. */
typedef struct smoe_model_shape {
  int vocabulary;
  int n_lanes;                     /**< of all ranks */
  size_t lane_sequences;           /**< of a micro-batch */
  bool training;                   /**< with gradients, moments and a tape */
  size_t context;                  /**< T of the main stream; 0: model.context */
  size_t source_context;           /**< T of the source stream; 0: there is none */
  size_t patch;                    /**< images: numbers of a patch; 0: rows are tokens */
  const smoe_objective *objective; /**< NULL: cross entropy */
} smoe_model_shape;

/** The shape of a micro-batch of sequences of `context` rows, lane_sequences in each lane. Local. */
smoe_token_shape smoe_model_token_shape(const smoe_model *model, size_t lane_sequences, size_t context);

/** Build a model: declare, plan, take memory. Parameters are not yet set.
 *
 *  Collective over group.
 *  plan_only: stop after planning (--dry-run): the arenas say what they would take.
 *  Errors:  agreed on all ranks.
 */
smoe_status smoe_model_create(smoe_model **model, const smoe_config *config, const smoe_group *group,
                              const smoe_model_shape *shape, bool plan_only);

/** Whether a name matches one of the globs of a list of the configuration (SMOE_KEY_LIST), where * matches
 *  slashes, too. Local.
 */
bool smoe_model_matches(const char *list, const char *name);

/** Freeze what train.frozen and train.only say, before the parameters are laid out.
 *
 *  Local; the same on all ranks.
 *  Errors:  SMOE_ERR_CONFIG where a pattern hits nothing, or nothing is left to learn.
 */
smoe_status smoe_model_hold(smoe_model *model);

/** The first layer with a parameter that learns. Local; after smoe_model_hold. */
int smoe_model_lowest(const smoe_model *model);

/** Whether train.frozen or train.only cover the whole router of MoE layer m: it changes by no rule, then. Local. */
bool smoe_model_router_held(const smoe_model *model, int m);

/** The k-th layer behind a gate (skip.h); NULL: there are not so many. Local. Here, so that what reads and writes
 *  metrics.csv needs no more of a model than its list of layers.
 */
static inline const smoe_layer *smoe_model_skip_layer(const smoe_model *model, int k) {
  int i = 0;
  while (i < model->n_layers && (!model->layer[i].spec.skip || k-- > 0)) i++;
  return i < model->n_layers ? &model->layer[i] : NULL;
}

/** Layers behind a gate. Local. */
static inline int smoe_model_n_skip(const smoe_model *model) {
  int n = 0;
  while (smoe_model_skip_layer(model, n)) n++;
  return n;
}

/** Share of the rows of all ranks that ran in each of them since the sums were set to zero: [smoe_model_n_skip].
 *  Collective. */
void smoe_model_skip_shares(const smoe_model *model, double *share);

/** What shares above the target cost in the update so far. Local; the same on all ranks. */
double smoe_model_skip_loss(const smoe_model *model);

/** Print the shares in the log, where there are such layers. Collective. */
void smoe_model_note_skips(const smoe_model *model);

/** Free it; accepts NULL. Local. */
void smoe_model_destroy(smoe_model *model);

/** Set gradients and sums to zero; the model must be one built for training. Local. */
void smoe_model_begin_update(smoe_model *model);

/** Set only the sums to zero: the beginning of an evaluation. Local. */
void smoe_model_begin_sums(smoe_model *model);

/** Forward over one micro-batch, and in training at once the head's gradients.
 *
 *  Collective over the group.
 *
 *  batch    in  of at most model->shape; copied, its arrays are in use until backward has ended
 *
 *  Writes:   model->sums +=; where pass->training: model->dx = dL/d(last layer's output), head's gradients +=,
 *            with L divided by pass->n_targets
 */
void smoe_model_forward(smoe_model *model, const smoe_batch *batch, const smoe_pass *pass);

/** Forward of the encoder alone: its rows [N, C] of this rank, valid until the next pass. Collective. */
const smoe_real *smoe_model_encode(smoe_model *model, const smoe_batch *batch, const smoe_pass *pass);

/** Backward of the micro-batch that went forward last. Collective. Writes: all gradients +=. */
void smoe_model_backward(smoe_model *model);

/** A batch of the main stream alone in the model's full shape. Local.
 *  input  [N] token ids of this rank's lanes; -1: padding
 *  target [N] ids, -1: none; NULL: no head at all (smoe_model_logits reads rows instead)
 */
smoe_batch smoe_model_batch(const smoe_model *model, const int32_t *input, const int32_t *target);

/** The products of one micro-batch on all ranks together, the same on each and on any number of them; everything: as
 *  if all parameters learned. Local. Free work.product with smoe_free. */
smoe_work smoe_model_work(const smoe_model *model, bool everything);

/** Those of one layer of the list. Local. Free work.product with smoe_free. */
smoe_work smoe_model_layer_work(const smoe_model *model, int layer, bool everything);

/** Logits [V] of one row of this rank after a forward pass. Local. */
void smoe_model_logits(smoe_model *model, size_t row, smoe_real *logits);

/** Enter stage 2: freeze the routers. Local; the same on all ranks. */
void smoe_model_freeze(smoe_model *model);

/** Bytes that this rank is expected to touch, with balanced routing; the plan's figure: of the arenas, and its part of
 *  what the ranks of a node share. What the process needs in all is that and library_bytes. Local.
 */
double smoe_model_expected_bytes(const smoe_model *model);

/** The same if all tokens went to this rank's experts. Local. */
double smoe_model_most_bytes(const smoe_model *model);

/** Print the plan: bytes per arena on this rank, expected and worst case, and what the machine has.
 *
 *  Collective (the largest over ranks is shown).
 *  Writes:  copy_bytes = 0 on all ranks where the plan fits without the copy and not with it; a line says so.
 *  Errors:  SMOE_ERR_MEMORY where what is expected does not fit.
 */
smoe_status smoe_model_print_plan(smoe_model *model);

#endif
