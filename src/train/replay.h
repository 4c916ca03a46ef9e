/** Recorded assignments for a run whose routing method replays them; for all others nothing happens. */
#ifndef STABLEMOE_TRAIN_REPLAY_H
#define STABLEMOE_TRAIN_REPLAY_H

#include "stablemoe/routing_reader.h"
#include "stablemoe/step.h"

typedef struct smoe_replay {
  smoe_routing_reader *reader; /**< NULL: nothing is replayed */
  int32_t *id, *expert;        /**< of one update, as smoe_routing_reader_read has them */
} smoe_replay;

/** Open the log that the method names, and check that it has what the run needs: all its updates, and the
 *  tokens of the first one.
 *
 *  Collective. Errors: agreed; as smoe_routing_reader_open, smoe_routing_reader_covers, smoe_replay_update.
 */
smoe_status smoe_replay_open(smoe_replay *replay, smoe_step *step);

/** Give it back; fine for a zeroed one. Local. */
void smoe_replay_close(smoe_replay *replay);

/** Hand the record of the zero-based update to the step.
 *
 *  Collective. Errors: agreed; SMOE_ERR_CONFIG where the batch has other tokens than the record.
 */
smoe_status smoe_replay_update(smoe_replay *replay, smoe_step *step, int64_t update);

/** The log of a model's method, opened; *reader is NULL where it has none. Collective. Errors: agreed. */
smoe_status smoe_replay_reader(smoe_routing_reader **reader, const smoe_model *model);

#endif
