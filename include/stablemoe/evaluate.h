/** Evaluation: perplexity over a split, and the routing probe. */
#ifndef STABLEMOE_EVALUATE_H
#define STABLEMOE_EVALUATE_H

#include "stablemoe/step.h"

typedef struct smoe_evaluation {
  double loss;       /**< task loss, nats per real target */
  double perplexity; /**< exp(loss) */
  double n_targets;
  double accuracy;  /**< as in smoe_step_result */
  double bleu;      /**< of some of the split's pairs (train.patience_metric); NAN: not asked for */
  double drop_rate; /**< rows beyond capacity, of all MoE layers */
} smoe_evaluation;

/** Evaluate a split; padding and the other loss terms do not count.
 *
 *  Collective. The same bits on any number of ranks.
 *
 *  sequences  in  at most so many sequences from the start of the split; 0: all of it
 *  stage      in  1 or 2, as the parameters are
 *
 *  Errors:  SMOE_ERR_CONFIG where the split has no target.
 */
smoe_status smoe_evaluate(smoe_model *model, smoe_task *task, smoe_split split, int64_t sequences,
                          int64_t update, int stage, smoe_evaluation *result);

/** What a pass of an evaluation says of each token, in order of the split. */
typedef struct smoe_evaluated {
  int64_t first;         /**< place of the first one in the split */
  int64_t n;             /**< tokens */
  int64_t stride;        /**< of the MoE layers in expert: at least n */
  int n_moe, n_slots;    /**< M; K, 0 where M is */
  const int32_t *target; /**< [n] the token that follows each, which the loss is of; -1: none */
  const int32_t
      *predicted;        /**< [n] images: likeliest class, where there is a target; NULL: language models */
  const double *loss;    /**< [n] nats; 0 where there is no target */
  int n_skip;            /**< sublayers behind gates (skip.h) */
  const int32_t *ran;    /**< [n_skip, stride] whether the token ran there */
  const int32_t *expert; /**< [M, stride, K]; -1: unused, -2 - e: dropped by expert e */
} smoe_evaluated;

/** smoe_evaluate, and show every token of it to `see`; of a language model, or one of images, whose
 *  targets stand at the first patch of each.
 *
 *  Collective; see is called on rank 0 alone, pass by pass in order of the split, and stops the evaluation
 *  by a status that is not SMOE_OK.
 *  Errors:  as smoe_evaluate, and those of see; agreed.
 */
smoe_status smoe_evaluate_each(smoe_model *model, smoe_task *task, smoe_split split, int64_t sequences,
                               int64_t update, int stage, smoe_evaluation *result,
                               smoe_status (*see)(void *context, const smoe_evaluated *tokens),
                               void *context);

/** Tokens of the probe over all ranks: whole validation sequences, at most log.probe_sequences; of translation both
 *  sides of as many pairs. Local. */
int64_t smoe_probe_tokens(const smoe_task *task);

/** Route the probe tokens with the parameters as they are, and add the choices to the log.
 *
 *  Collective.
 *  step  in  updates done
 */
void smoe_probe(smoe_model *model, smoe_task *task, smoe_routing_log *log, int64_t step, int stage);

#endif
