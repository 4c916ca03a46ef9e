/** A file that all ranks write under a temporary name, and that is published only when every
 *  rank has read its own parts back. Checkpoints and routing logs are made by it:
 *
 *    smoe_part_create     rank 0 makes the file alone: datasets, attributes, all that is small;
 *                         takes the disk space of the whole; then all ranks open it. Agreed.
 *    ... smoe_part_put    local; a rank stops at its first failure
 *    smoe_part_close      agreed; then each rank opens the file alone
 *    ... smoe_part_put    again: now it compares
 *    smoe_part_publish    agreed; rank 0 flushes and renames
 *    smoe_part_end
 *
 *  A parallel file that has metadata to flush when the disk is full cannot be
 *  closed: HDF5 1.10 hangs or crashes there. So nothing but data is written in
 *  parallel, into space that is already ours.
 *
 *  After a failure anywhere no file is left, under either name. What a killed
 *  run leaves is removed by the next smoe_part_create in that directory.
 */
#ifndef STABLEMOE_IO_PART_FILE_H
#define STABLEMOE_IO_PART_FILE_H

#include "stablemoe/h5.h"

typedef struct smoe_part_file {
  const smoe_group *group;
  const char *kind; /**< "checkpoint": first part of the names of the fault sites */
  char *path;       /**< <directory>/step-<update>.h5 */
  char *part;       /**< path.part */
  hid_t file;       /**< open: of all ranks until smoe_part_close, then this rank's own */
  bool comparing;
} smoe_part_file;

/** Make the directory and the temporary file.
 *
 *  Collective.
 *  bytes    what the file will hold, about
 *  make     called on rank 0, with part->file open for it alone: makes every dataset and
 *           attribute, and writes what is small
 *  Errors:  agreed; then smoe_part_end is the only call left to make.
 */
smoe_status smoe_part_create(smoe_part_file *part, const smoe_group *group, const char *kind,
                             const char *directory, int64_t update, int64_t bytes,
                             smoe_status (*make)(const smoe_part_file *part, const void *context),
                             const void *context);

/** The first half of smoe_part_create: the file is made, every rank has seen that it may write there, and nobody has
 *  it open. Collective. Errors: as smoe_part_create.
 */
smoe_status smoe_part_make(smoe_part_file *part, const smoe_group *group, const char *kind,
                           const char *directory, int64_t update, int64_t bytes,
                           smoe_status (*make)(const smoe_part_file *part, const void *context),
                           const void *context);

/** Write a rectangular part of a dataset; after smoe_part_close, compare it instead. Local. */
smoe_status smoe_part_put(const smoe_part_file *part, const char *name, hid_t memory_type, const void *data,
                          int n_dims, const int64_t *first, const int64_t *count);

/** The same for n consecutive elements. Local. */
smoe_status smoe_part_put_range(const smoe_part_file *part, const char *name, hid_t memory_type,
                                const void *data, int64_t first, int64_t n);

/** Agree on how the writing went, close the file, open it again alone. Collective. Errors: agreed. */
smoe_status smoe_part_close(smoe_part_file *part, smoe_status mine);

/** Agree on how the comparison went, and give the file its final name. Collective. Errors: agreed. */
smoe_status smoe_part_publish(smoe_part_file *part, smoe_status mine);

/** Give the paths back. Local. */
void smoe_part_end(smoe_part_file *part);

/** SMOE_ERR_IO where the fault site <kind>.<place> is to fail now on this rank. Local. */
smoe_status smoe_part_fault(const smoe_part_file *part, const char *place);

/** Update in the name of a file step-<update, 9 digits or more>.h5; -1 for any other name. Local. */
int64_t smoe_step_of_name(const char *name);

/** Updates of all such files of a directory, newest first; *n of them. In memory of smoe_alloc. Local. */
int64_t *smoe_step_list(const char *directory, size_t *n);

/** Delete what killed runs left in a directory: every *.part. Local. */
void smoe_part_sweep(const char *directory);

/** The path <directory>/step-<update>.h5, in memory of smoe_alloc. Local. */
char *smoe_step_path(const char *directory, int64_t update);

#endif
