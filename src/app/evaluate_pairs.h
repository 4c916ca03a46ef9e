/** Evaluation of a translation model: loss, BLEU and chrF by direction. */
#ifndef STABLEMOE_APP_EVALUATE_PAIRS_H
#define STABLEMOE_APP_EVALUATE_PAIRS_H

#include "open_model.h"

/** Evaluate a split and print the result on rank 0. Collective. m: of smoe_app_task_open. Errors: agreed.
 *  sequences  in  only the first so many pairs; 0: all
 *  table      in  file to write direction, source, reference and translation of each pair to; NULL: none
 */
smoe_status smoe_evaluate_pairs(smoe_app_model *m, smoe_split split, const char *name, int64_t sequences,
                                bool json, const char *table);

#endif
