/** A file as a stream of bytes, decompressed where it is gzip, zstd, xz or bzip2 (by its content, not its name). */
#ifndef STABLEMOE_DATA_STREAM_H
#define STABLEMOE_DATA_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "stablemoe/status.h"

typedef struct smoe_stream {
  const char *path; /**< borrowed */
  struct archive *archive;
  bool at_end;
} smoe_stream;

/** Open a file. Local. path is borrowed. Errors: SMOE_ERR_IO. */
smoe_status smoe_stream_open(smoe_stream *stream, const char *path);

/** Read up to `bytes` bytes; *got is less only at the end.
 *
 *  Local.
 *  Errors:  SMOE_ERR_IO, also where compressed data is damaged or cut off.
 */
smoe_status smoe_stream_read(smoe_stream *stream, void *data, size_t bytes, size_t *got);

/** Close it; accepts a zero-initialised struct. Local. */
void smoe_stream_close(smoe_stream *stream);

/** Length of a file name without the endings of compressed files (.gz, .zst, .xz, .bz2). Local. */
size_t smoe_stream_stem(const char *path);

/** Return true if a file name without those endings ends in `ending`. Local. */
bool smoe_stream_is_named(const char *path, const char *ending);

/** Name the binary format that bytes at the beginning of a file belong to, with what to do about it.
 *
 *  Local.
 *  Returns NULL where they are of none: "a Parquet file: write its text column as JSON lines".
 */
const char *smoe_stream_kind(const void *data, size_t bytes);

#endif
