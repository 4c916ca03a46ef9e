/** Text on disk: which files, whether they are text, and where documents begin. */
#ifndef STABLEMOE_DATA_TEXT_H
#define STABLEMOE_DATA_TEXT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "stablemoe/status.h"
#include "stablemoe/utf8.h"

typedef struct smoe_text_file {
  char *path;
  int64_t bytes;
  bool named; /**< by the user: then it has to be text, and is not passed over */
  bool skip;  /**< found in a directory, and no text */
} smoe_text_file;

typedef struct smoe_text_list {
  smoe_text_file *file;
  size_t n_files;
} smoe_text_list;

/** Add a file, or every regular file under a directory in the order of strcmp.
 *
 *  Local.
 *  extensions  in  ".py,.txt" to take from directories; NULL: all
 *
 *  Hidden files and directories are passed over, a directory is read once
 *  however many links lead to it.
 *  Errors:  SMOE_ERR_IO.
 */
smoe_status smoe_text_list_add(smoe_text_list *list, const char *path, const char *extensions);

/** Give the list back. Local. */
void smoe_text_list_free(smoe_text_list *list);

/** Reads a file document by document in constant memory. */
typedef struct smoe_reader {
  FILE *stream;
  const char *path; /**< borrowed */
  bool lines;
  size_t document_bytes; /**< a document is cut at the first blank line past this */
  size_t longest;        /**< and here at the latest, at a line end where there is one */
  char *buffer;
  size_t begin, end, room; /**< of what is read and not yet given */
  int64_t position;        /**< in the file, of begin */
  bool at_end;
} smoe_reader;

/** Open a file. Local. path is borrowed.
 *
 *  lines: every line that is not empty is a document, without its line end.
 *  Errors:  SMOE_ERR_IO.
 */
smoe_status smoe_reader_open(smoe_reader *reader, const char *path, bool lines, size_t document_bytes);

/** The next document; *bytes = 0 at the end. Local. *text is valid until the next call.
 *
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT with file and byte where it is not UTF-8 text.
 */
smoe_status smoe_reader_next(smoe_reader *reader, const char **text, size_t *bytes);

/** Close it; fine for a zeroed reader. Local. */
void smoe_reader_close(smoe_reader *reader);

#endif
