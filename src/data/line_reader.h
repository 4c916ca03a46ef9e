/** Text files line by line, plain or compressed by gzip. */
#ifndef STABLEMOE_DATA_LINE_READER_H
#define STABLEMOE_DATA_LINE_READER_H

#include <stdbool.h>
#include <stdint.h>

#include "stablemoe/status.h"

typedef struct smoe_line_reader {
  const char *path; /**< borrowed */
  void *stream;     /**< of zlib */
  char *buffer;
  size_t begin, end, room; /**< what is read and not returned yet */
  int64_t n_lines;         /**< returned so far */
  bool at_end;
} smoe_line_reader;

/** Open a file; one that begins like a gzip file is decompressed. Local. path is borrowed. Errors: SMOE_ERR_IO. */
smoe_status smoe_line_reader_open(smoe_line_reader *reader, const char *path);

/** Return the next line without its end (LF or CR LF); *text = NULL at the end of the file.
 *
 *  Local. *text is valid until the next call, and not NUL-terminated.
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT with file and line if it is not UTF-8 text, longer than 1 MiB, or if
 *           a compressed file is damaged or truncated.
 */
smoe_status smoe_line_reader_next(smoe_line_reader *reader, const char **text, size_t *bytes);

/** Close it; accepts a zero-initialised one. Local. */
void smoe_line_reader_close(smoe_line_reader *reader);

#endif
