/** How a run ends before its last update, and what it says then. */
#ifndef STABLEMOE_TRAIN_STOP_H
#define STABLEMOE_TRAIN_STOP_H

#include "stablemoe/config.h"
#include "stablemoe/group.h"

/** Wishes to stop, in the order of their weight: of several the last one counts. */
typedef enum smoe_stop {
  SMOE_STOP_NOT,
  SMOE_STOP_USR1, /**< SIGUSR1: a batch system, before the time limit */
  SMOE_STOP_TERM, /**< SIGTERM: a batch system that preempts, a machine that shuts down */
  SMOE_STOP_TIME, /**< run.max_minutes */
  SMOE_STOP_INT,  /**< SIGINT: Ctrl-C */
  SMOE_STOP_FILE, /**< a file `stop` in the run directory */
  SMOE_STOPS
} smoe_stop;

/** Take SIGTERM, SIGUSR1 and the first SIGINT for requests; a second SIGINT ends the process. Local. */
void smoe_stop_watch(const smoe_group *group);

/** Whether any rank was asked to stop, or the time is up.
 *
 *  Collective over group; the same on all ranks. A file `stop` is removed, so that a later resume goes on.
 *  launched: seconds (timer.h) from which run.max_minutes counts.
 */
smoe_stop smoe_stop_request(const smoe_group *group, const smoe_settings *settings, double launched);

/** Remove a file `stop`; whether there was one. Collective over group. */
bool smoe_stop_clear(const smoe_group *group, const smoe_settings *settings);

/** Say that the run was stopped after update `done`, and give the status to end with: SMOE_STOPPED_BY_HAND where
 *  a person asked for it, who does not want the run back by itself, else SMOE_STOPPED. Local.
 */
smoe_status smoe_stop_report(smoe_stop stop, const smoe_settings *settings, int64_t done);

/** Print that the training has ended after update `done`, its last one or earlier, in so many seconds here. Local. */
void smoe_run_report_done(const smoe_settings *settings, int64_t done, double seconds);

/** Say what is left of a run that an error ends: nothing where status is none. Local.
 *
 *  The report itself goes to log.txt here; to the terminal it goes with the end of the program.
 *  done:   updates done, 0 where none was begun.
 *  saved:  update of the newest checkpoint, 0 where there is none.
 */
void smoe_run_report_error(smoe_status status, const smoe_settings *settings, int64_t done, int64_t saved);

#endif
