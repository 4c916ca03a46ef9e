/** Plain files that get their names only when all of them are on the disk. All functions are Local. */
#ifndef STABLEMOE_PLAIN_FILE_H
#define STABLEMOE_PLAIN_FILE_H

#include <stdint.h>
#include <stdio.h>

#include "stablemoe/status.h"

typedef struct smoe_plain_file {
  char *path, *part; /**< final name; name while it is written, path.part, or NULL where path is no file */
  FILE *stream;      /**< NULL once it is finished */
} smoe_plain_file;

/** Open <path>.part for writing, replacing what is there, with room for `bytes` on the disk.
 *  Where path is a device or a pipe, open that: it has no other name to wait under.
 */
smoe_status smoe_plain_create(smoe_plain_file *file, const char *path, int64_t bytes);

/** Append. Errors: SMOE_ERR_IO (disk full, ...). */
smoe_status smoe_plain_write(smoe_plain_file *file, const void *data, size_t bytes);

/** Flush it to the disk and close it. */
smoe_status smoe_plain_finish(smoe_plain_file *file);

/** Give a finished file its name. */
smoe_status smoe_plain_publish(smoe_plain_file *file);

/** Give it back; the temporary file goes where it was not published. Fine for a zeroed one. */
void smoe_plain_release(smoe_plain_file *file);

#endif
