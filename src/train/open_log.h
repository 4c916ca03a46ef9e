/** The routing log of a run. */
#ifndef STABLEMOE_TRAIN_OPEN_LOG_H
#define STABLEMOE_TRAIN_OPEN_LOG_H

#include "stablemoe/routing_log.h"
#include "stablemoe/task.h"

/** An empty log of the model's shape, with the tokens of its probe; NULL where it has neither MoE layers nor gates. Local.
 */
smoe_routing_log *smoe_open_log(const smoe_model *model, const smoe_task *task);

#endif
