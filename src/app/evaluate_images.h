/** Evaluation of a model of images: accuracy, and which patches experts take. */
#ifndef STABLEMOE_APP_EVALUATE_IMAGES_H
#define STABLEMOE_APP_EVALUATE_IMAGES_H

#include "open_model.h"

/** Evaluate a split and print the result on rank 0. Collective. m: of smoe_app_task_open. Errors: agreed.
 *  limit  in  only the first so many images; 0: all
 *  table  in  file to write a line for each image to; NULL: none
 */
smoe_status smoe_evaluate_images(smoe_app_model *m, smoe_split split, const char *name, int64_t limit,
                                 bool json, const char *table);

#endif
