/** The watchdog: says where a rank waits when a collective takes too long.
 *
 *  Every MPI call goes through SMOE_MPI (group.h), which tells the watchdog what is
 *  being waited for. A thread of its own looks at that once a second; it makes no
 *  MPI call itself. Ranks of one machine see each other's progress in shared
 *  memory, so the report can name the ranks that have not arrived.
 */
#ifndef STABLEMOE_WATCHDOG_H
#define STABLEMOE_WATCHDOG_H

#include "stablemoe/group.h"

/** Start watching.
 *
 *  Collective over group.
 *
 *  seconds  in  wait after which a rank reports, once per wait; 0: never
 *  end      in  whether the run ends then (exit code 7)
 */
void smoe_watchdog_start(const smoe_group *group, double seconds, bool end);

/** Stop watching. Collective. */
void smoe_watchdog_stop(void);

/** Tell which update is in progress, for the report. Local. */
void smoe_watchdog_update(int64_t update);

#endif
