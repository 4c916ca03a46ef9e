/** The directory that holds everything a run makes. */
#ifndef STABLEMOE_RUN_DIRECTORY_H
#define STABLEMOE_RUN_DIRECTORY_H

#include "stablemoe/config.h"
#include "stablemoe/group.h"
#include "stablemoe/run_lock.h"

/** Make <run.directory> with checkpoints/ and routing/, lock it, and open log.txt.
 *
 *  Collective over group; rank 0 does it, all ranks agree on the outcome.
 *  lock  out  to be released by the caller, also after an error; NULL on other ranks than 0
 *
 *  Errors:  SMOE_ERR_CONFIG where a run is there already and neither resume nor overwrite is
 *           asked for, and where another run is writing there; SMOE_ERR_IO where the directory cannot be written: before the first update.
 */
smoe_status smoe_run_directory_open(const smoe_config *config, const smoe_group *group, bool resume,
                                    bool overwrite, smoe_run_lock **lock);

/** Write used.yml: the configuration as the run takes it, what a resume keeps of its checkpoint included.
 *
 *  Collective over group; rank 0 writes. Errors: agreed; SMOE_ERR_IO.
 */
smoe_status smoe_run_directory_describe(const smoe_config *config, const smoe_group *group);

/** Whether a file named `stop` is there; it is removed, so that a later resume goes on. Local (rank 0 asks). */
bool smoe_run_directory_stop(const char *directory);

#endif
