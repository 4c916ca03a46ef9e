/** A training run from beginning to end. */
#ifndef STABLEMOE_TRAIN_H
#define STABLEMOE_TRAIN_H

#include "stablemoe/config.h"
#include "stablemoe/group.h"

typedef struct smoe_train_options {
  bool resume;       /**< continue from the newest valid checkpoint of run.directory */
  bool start;        /**< with resume: start a new run where there is no checkpoint */
  bool overwrite;    /**< start anew where run.directory holds a run already */
  bool dry_run;      /**< check everything, print the plan, do nothing */
  const char *trace; /**< each rank writes its phases to <trace>.<rank> (phase.h); NULL: none */
} smoe_train_options;

/** Take SIGTERM and SIGUSR1 from now on for requests to stop, which smoe_train() follows after its first update.
 *
 *  Local; before MPI starts, so that a batch system's signal ends no process that is still starting.
 */
void smoe_train_hold_signals(void);

/** Whether a configuration can be trained on so many ranks. Local.
 *  Errors:  SMOE_ERR_CONFIG: more ranks than lanes, a capacity below one token per expert.
 */
smoe_status smoe_train_check_ranks(const smoe_config *config, int n_ranks);

/** Train as the configuration says.
 *
 *  Collective over group.
 *  config  inout  resolved; a resume keeps what follows from other keys as its checkpoint has it
 *  Errors:  agreed on all ranks. After a checkpoint SMOE_STOPPED where a signal (SIGTERM, SIGUSR1) or
 *           run.max_minutes ended it, SMOE_STOPPED_BY_HAND where Ctrl-C or a file named `stop` in the
 *           run directory did; that also where such a file was there before it went on.
 */
smoe_status smoe_train(smoe_config *config, const smoe_group *group, const smoe_train_options *options);

#endif
