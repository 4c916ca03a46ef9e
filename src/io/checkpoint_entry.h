/** A checkpoint's datasets as far as the file alone tells, for readers that have no model: printing,
 *  verifying, export. All functions are Local.
 */
#ifndef STABLEMOE_IO_CHECKPOINT_ENTRY_H
#define STABLEMOE_IO_CHECKPOINT_ENTRY_H

#include "checkpoint_chunk.h"

/** Elements that a reader holds at a time: whole units of checksums, so that their blocks stay the same. */
enum { SMOE_ENTRY_CHUNK = 1024 * SMOE_UNIT };

typedef struct smoe_entry {
  char name[512];     /**< "param/<name>" */
  char checksum[512]; /**< "checksum/param/<name>" */
  char short_name[512];
  int n_dims;
  int64_t shape[SMOE_H5_DIMS];
  int64_t n_copies; /**< experts; 1 where it is no expert's */
  int64_t count;    /**< elements of one copy */
  bool expert;
} smoe_entry;

/** Describe a dataset; the checksum's shape says whether it has one copy or one per expert.
 *  set: 0 for values, 1 and 2 for moments.  Errors: SMOE_ERR_FORMAT.
 */
smoe_status smoe_entry_describe(hid_t file, int set, const char *name, smoe_entry *e);

/** Read one copy chunk by chunk, each to `take` (NULL: nobody), and compare with its checksum.
 *
 *  buffer        [SMOE_ENTRY_CHUNK]
 *  good     out  whether the checksum is right
 *  Errors:  those of reading, and of take.
 */
smoe_status smoe_entry_read(hid_t file, const smoe_entry *e, int64_t copy, smoe_real *buffer, bool *good,
                            smoe_status (*take)(void *context, const smoe_real *values, size_t n),
                            void *context);

#endif
