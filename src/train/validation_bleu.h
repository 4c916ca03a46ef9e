/** BLEU of greedy translations of validation pairs, while a translation model trains (train.patience_metric: bleu). */
#ifndef STABLEMOE_TRAIN_VALIDATION_BLEU_H
#define STABLEMOE_TRAIN_VALIDATION_BLEU_H

#include "stablemoe/model.h"
#include "stablemoe/task.h"

/** Print what memory it takes beside the plan of the model that trains. Collective. Errors: agreed. */
smoe_status smoe_validation_bleu_plan(const smoe_model *model, smoe_task *task);

/** Translate train.patience_pairs pairs, spread over the validation split, with the parameters as they are.
 *
 *  Collective; the same bits on any number of ranks. A model for decoding is built for it, and gone afterwards.
 *  bleu     out  0 to 100, as smoe_bleu_score with case; of several directions the mean
 *  n_pairs  out  pairs translated
 *  Errors:  agreed.
 */
smoe_status smoe_validation_bleu(const smoe_model *model, smoe_task *task, int64_t update, int stage,
                                 double *bleu, int64_t *n_pairs);

#endif
