/** Early stopping: which evaluation of the validation split was the best, and how many came since.
 *
 *  The state is a function of the evaluations alone, which are the same on any number of ranks; checkpoints carry it,
 *  so a resumed run stops where one that was never interrupted does. All functions are Local.
 */
#ifndef STABLEMOE_TRAIN_PATIENCE_H
#define STABLEMOE_TRAIN_PATIENCE_H

#include <stddef.h>

#include "stablemoe/checkpoint.h"
#include "stablemoe/config.h"

typedef struct smoe_patience {
  bool keeps;       /**< train.best or train.patience: the best checkpoint is kept */
  int64_t patience; /**< evaluations without an improvement that end the training; 0: any number */
  smoe_best best;   /**< update 0: no evaluation has counted yet */
} smoe_patience;

/** Start without any evaluation. */
void smoe_patience_begin(smoe_patience *p, const smoe_settings *settings);

/** Take the state that a checkpoint has. Judged by another metric than the run's it means nothing, and the run looks for
 *  its best evaluation anew.
 */
void smoe_patience_load(smoe_patience *p, const smoe_best *stored);

/** Count an evaluation. Returns whether it is the best one so far: strictly better than all before, finite; a loss is
 *  better where it is lower, BLEU where it is higher.
 */
bool smoe_patience_count(smoe_patience *p, int64_t update, double value);

/** Return true if the training is to end: train.patience evaluations have brought nothing. */
bool smoe_patience_over(const smoe_patience *p);

/** What evaluations are judged by, and the best of them: "validation loss", "3.2108". */
const char *smoe_patience_what(const smoe_patience *p);
void smoe_patience_value(const smoe_patience *p, char *text, size_t bytes);

/** Describe the state for the log: " (best)", or " (best 3.2100 at update 700, 2 evaluations ago)"; "" where none
 *  has counted.
 */
void smoe_patience_describe(const smoe_patience *p, char *text, size_t bytes);

#endif
