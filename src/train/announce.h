/** What a run prints of its work and data before it begins. */
#ifndef STABLEMOE_TRAIN_ANNOUNCE_H
#define STABLEMOE_TRAIN_ANNOUNCE_H

#include "stablemoe/task.h"

/** Print the run directory, the number of updates, their size in tokens or images, and the work of each. Local. */
void smoe_announce_work(const smoe_task *task, const smoe_model *model);

/** Print the passes over the training split, of translation also the share of padding; warn if text is read too
 *  often. Local. */
void smoe_announce_passes(smoe_task *task);

#endif
