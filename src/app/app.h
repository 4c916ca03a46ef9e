/** What the subcommands share beside their tables (options.h). */
#ifndef STABLEMOE_APP_H
#define STABLEMOE_APP_H

#include "options.h"
#include "stablemoe/config.h"
#include "stablemoe/group.h"

/** A configuration with the keys of the trainer and of every routing method; local. */
smoe_config *smoe_app_config(void);

/** Read a configuration file, and then what -P says over it. Local. */
smoe_status smoe_app_config_read(smoe_config *config, const char *path, const smoe_words *set);

/** Set the keys that -P gives. Local. */
smoe_status smoe_app_config_override(smoe_config *config, const smoe_words *set);

/** Resolve and check a configuration against its routing method, and set up threads. Local. */
smoe_status smoe_app_config_finish(smoe_config *config);

/** Fail with SMOE_ERR_CONFIG unless all ranks have the configuration of rank 0: files and environment
 *  variables may differ between nodes. Collective.
 */
smoe_status smoe_app_config_compare(const smoe_group *group, const smoe_config *config);

/** Threads of a rank: as run.threads says, or OMP_NUM_THREADS where that is 0, or 1. Local. */
int smoe_app_threads(int64_t wanted);

/** Processes that a launcher says to have started together, this one included; 0: none started it. Local.
 *  Asked first before MPI begins, which sets such variables itself.
 */
long smoe_app_launched(void);

/** Print the versions of the program and of all it stands on. Local; before MPI too. */
void smoe_app_version(FILE *out);

#endif
