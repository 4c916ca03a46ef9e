/** One update: read, forward, backward, reduce, clip, Adam. */
#ifndef STABLEMOE_STEP_H
#define STABLEMOE_STEP_H

#include "stablemoe/optimizer.h"
#include "stablemoe/routing_log.h"
#include "stablemoe/task.h"

/** What an update gave; the same bits on all ranks and on any number of ranks. */
typedef struct smoe_step_result {
  int stage;
  double loss; /**< task loss, nats per target token */
  double n_targets;
  double accuracy; /**< share of targets that are predicted, where the objective counts them; else NaN */
  double term[SMOE_TERMS]; /**< weighted loss terms per target token, all MoE layers together, as model->terms
                                names them */
  double lr;
  smoe_norms norm;
  double clip; /**< factor the gradients were multiplied with */
  const double *
      skip; /**< [smoe_model_n_skip] share of rows that ran, of each sublayer behind a gate; memory of the step */
  double skip_loss;         /**< what their shares above the target cost */
  smoe_routing_load *layer; /**< [M], memory of the step */
} smoe_step_result;

typedef struct smoe_step {
  smoe_model *model;
  smoe_task *task;
  const smoe_settings *settings;
  smoe_routing_log *tokens_log; /**< where this update's tokens are recorded; NULL: nowhere */
  double *total;                /**< [model->n_sums] */
  smoe_routing_load *layer;     /**< [M] */
  double *skip;                 /**< [smoe_model_n_skip] */
  int64_t *load;                /**< [M, E] of the update; evaluations leave it alone */
  const int32_t *recorded;      /**< of the update to come, for a method that replays; NULL: nothing is */
  bool placed;                  /**< experts stand where they will stay */
} smoe_step;

/** Set up; model is one built for training, in the task's shape. Local. */
smoe_status smoe_step_create(smoe_step *step, smoe_model *model, smoe_task *task);

/** Give it back (not the model). Local. */
void smoe_step_destroy(smoe_step *step);

/** Stage of the zero-based update. Local. 1 until router.stage1_updates, for methods that have a stage 2. */
int smoe_stage(const smoe_model *model, const smoe_settings *settings, int64_t update);

/** Gradients of one update, reduced but not clipped: all of smoe_step_update before the norm.
 *
 *  Collective. Fills loss terms and routing figures of result.
 */
void smoe_step_gradients(smoe_step *step, int64_t update, smoe_step_result *result);

/** Read one micro-batch of the zero-based update; its arrays are the task's. Local. */
smoe_batch smoe_step_read(smoe_step *step, int64_t update, int64_t micro_batch);

/** Move experts to places where all ranks have alike, once the choice of experts follows from the token
 *  ids; before that, and after it was done, do nothing.
 *
 *  Collective. Loads are those of the coming updates' batches, the same on all ranks.
 *  comm.placement: order leaves everything in its place.
 */
void smoe_step_place(smoe_step *step, int64_t update);

/** Carry out the zero-based update.
 *
 *  Collective.
 *  Errors:  SMOE_ERR_NUMERIC, the same on all ranks, where loss or gradient is not
 *           finite; the parameters are then those of before.
 */
smoe_status smoe_step_update(smoe_step *step, int64_t update, smoe_step_result *result);

/** Mean seconds of the ranks in each phase (phase.h) since smoe_phase_reset, [SMOE_PHASES]. Collective over group. */
void smoe_step_phases(const smoe_group *group, double *seconds);

#endif
