/** Checkpoints that are written while the training goes on.
 *
 *  A save begins with a copy of what this rank owns, after which the optimizer may change the parameters. A thread of
 *  each rank then computes the checksums, writes the rank's part, flushes it and reads it back; when all ranks have,
 *  one of rank 0 adds the checksums, seals the file and gives it its name. The file is that of smoe_checkpoint_save,
 *  byte for byte, and appears as that does: complete, or not at all.
 *
 *  The threads call neither MPI, which is initialised for calls of the main thread alone, nor HDF5, which is not safe
 *  for two threads: rank 0 makes the file's structure while the others wait, and values go to the places in the file
 *  that the structure gave them. What ranks have to know of each other travels in one sum, which the main threads
 *  start and test between updates.
 */
#ifndef STABLEMOE_SAVER_H
#define STABLEMOE_SAVER_H

#include "stablemoe/checkpoint.h"

typedef struct smoe_saver smoe_saver;

/** What a save does when its file has its name, as smoe_checkpoint_point_best and smoe_checkpoint_prune do. */
typedef struct smoe_saver_after {
  int64_t keep_last, keep_every;
  int64_t best; /**< update of the best evaluation so far; 0: none */
} smoe_saver_after;

/** What is asked on rank 0, by its main thread, before a file gets its name; context is the caller's. */
typedef smoe_status smoe_saver_permit(void *context);

/** Take the memory of the copy (smoe_params_state_bytes) and a communicator.
 *
 *  Collective over params->group.
 *  saver    out  NULL where a rank has no memory for it: a line in the log says so, and saves have to wait
 *  permit   in   NULL: nothing is asked. Errors of it end the save, and its part file stays: it may be another run's.
 */
void smoe_saver_create(smoe_saver **saver, const smoe_params *params, smoe_saver_permit *permit,
                       void *context);

/** Begin a save, which smoe_saver_finish ends; there must be none under way.
 *
 *  Collective over the ranks. When it returns the parameters may change.
 *  Errors:  agreed; then nothing is under way, and nothing is left in the directory.
 */
smoe_status smoe_saver_begin(smoe_saver *saver, const char *directory, const smoe_params *params,
                             const smoe_checkpoint_meta *meta, const smoe_saver_after *after);

/** Do what can be done without waiting: to be called now and then while a save is under way. Local; accepts NULL. */
void smoe_saver_poll(smoe_saver *saver);

/** Return true if this rank has something left to do, or to wait for, before smoe_saver_finish. Local; accepts NULL. */
bool smoe_saver_busy(const smoe_saver *saver);

/** Wait for the save under way and agree on how it went.
 *
 *  Collective; accepts NULL.
 *  update  out  of the save, also of one that failed; 0 where none was under way
 *  Errors:  those of smoe_checkpoint_save, agreed; the same is left behind.
 */
smoe_status smoe_saver_finish(smoe_saver *saver, int64_t *update);

/** Free it; accepts NULL. Collective. No save may be under way. */
void smoe_saver_destroy(smoe_saver *saver);

#endif
