/** The lock of a run directory: one run at a time writes there.
 *
 *  A file `lock` in the directory names the process, its host and its job. It works without locks of the file
 *  system: the file is created exclusively, and the run that holds it renews its time stamp. Another run takes it
 *  over where the holder has ended: a process of this machine that is not there any more, an earlier attempt of the
 *  same batch job, or a holder that has not renewed the time stamp for two minutes by the file server's clock. A
 *  holder that was only suspended reads the lock before it saves, and ends where it lost it.
 */
#ifndef STABLEMOE_RUN_LOCK_H
#define STABLEMOE_RUN_LOCK_H

#include <stdbool.h>

#include "stablemoe/status.h"

typedef struct smoe_run_lock smoe_run_lock;

/** Lock a directory that exists, and begin to renew the lock. Local; rank 0 calls it.
 *
 *  lock    out  NULL where it fails
 *  Cost:   waits up to two minutes where the holder is on another machine and gives no sign of life.
 *  Errors: SMOE_ERR_CONFIG where another run holds it; SMOE_ERR_IO where the file cannot be written.
 */
smoe_status smoe_run_lock_take(smoe_run_lock **lock, const char *directory);

/** Check that the lock is still held. Local; accepts NULL.
 *
 *  read    in   read the file; false: what the renewing thread saw last
 *  Errors: SMOE_ERR_CONFIG where another run took it over.
 */
smoe_status smoe_run_lock_check(smoe_run_lock *lock, bool read);

/** Stop renewing, delete the file if it is still this run's, and free the lock. Local; accepts NULL. */
void smoe_run_lock_release(smoe_run_lock *lock);

#endif
