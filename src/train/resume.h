/** What a resumed run takes from its checkpoint instead of from the configuration that is given now. */
#ifndef STABLEMOE_TRAIN_RESUME_H
#define STABLEMOE_TRAIN_RESUME_H

#include "stablemoe/checkpoint.h"
#include "stablemoe/config.h"

/** Settle the configuration of a resume, and print what differs from the checkpoint's.
 *
 *  Local; the same on all ranks.
 *  config  inout  keys that nobody set keep the values of the run; router.stage1_updates does also where it is
 *                 set and would undo a stage 2 that began
 *  meta    inout  n_sequences_seen is computed where the file does not store it
 */
void smoe_resume_settle(smoe_config *config, const char *path, smoe_checkpoint_meta *meta);

#endif
