/** Text on disk: which files, whether they are text, and where documents begin. */
#ifndef STABLEMOE_DATA_TEXT_H
#define STABLEMOE_DATA_TEXT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "stablemoe/status.h"
#include "stablemoe/utf8.h"
#include "stream.h"

/** A file of text. */
typedef struct smoe_text_file {
  char *path;
  int64_t bytes; /**< on disk */
  dev_t device;
  ino_t inode;
  uint8_t split; /**< that the user gave it to; SMOE_SPLITS: none */
  bool named;    /**< by the user: then it has to be text, and is not skipped */
  bool json;     /**< its documents are JSON objects */
  bool skip;     /**< found in a directory, and not text */
} smoe_text_file;

typedef struct smoe_text_list {
  smoe_text_file *file;
  size_t n_files;
} smoe_text_list;

/** Add a file, or every regular file under a directory in the order of strcmp.
 *
 *  Local.
 *  extensions  in  ".py,.txt" to take from directories, also before .gz, .zst, .xz or .bz2; NULL: all
 *  split       in  smoe_split, or SMOE_SPLITS for none
 *
 *  Hidden files and directories are skipped, a directory is read once however many links lead to it.
 *  Errors:  SMOE_ERR_IO.
 */
smoe_status smoe_text_list_add(smoe_text_list *list, const char *path, const char *extensions, uint8_t split);

/** Keep each file once, whatever names and links lead to it: the first name, but one with an ending before
 *  one without.
 *
 *  Local.
 *  dropped  out  how many names were dropped
 *  Errors:  SMOE_ERR_CONFIG where one file is given to two splits.
 */
smoe_status smoe_text_list_unique(smoe_text_list *list, size_t *dropped);

/** Free the list. Local. */
void smoe_text_list_free(smoe_text_list *list);

/** How documents are found in a file. */
typedef struct smoe_text_format {
  bool json;             /**< each JSON object is one: its member `field` */
  bool lines;            /**< each line that is not empty is one, without its line end */
  const char *separator; /**< each text between two of these is one; NULL: no such mark */
  const char *field;     /**< of JSON objects */
  size_t document_bytes; /**< else the file is cut at the first blank line past this */
} smoe_text_format;

/** Reads a file document by document, in the memory of the longest. */
typedef struct smoe_reader {
  smoe_stream stream;
  const char *path; /**< borrowed */
  smoe_text_format format;
  char *buffer;
  size_t begin, end, room; /**< of what is read and not yet given */
  int64_t position;        /**< in the decompressed file, of begin */
  int64_t line;            /**< JSON: of begin, from 1 on */
  bool at_end;             /**< of the file: the buffer has its rest */
  bool in_array;           /**< JSON: objects are elements of an array */
  struct json_t *json;     /**< the document in hand */
  int64_t object;          /**< JSON: bytes of the object in hand */
  smoe_status failed;      /**< JSON: of reading inside the parser */
} smoe_reader;

/** Longest document, and longest JSON object, in bytes. */
#define SMOE_DOCUMENT_BYTES_MAX (INT64_C(1) << 28)

/** Open a file; a byte order mark of UTF-8 at its beginning is not part of the text.
 *
 *  Local. path and the texts of format are borrowed.
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT where the file is of a known binary format, which is named.
 */
smoe_status smoe_reader_open(smoe_reader *reader, const char *path, const smoe_text_format *format);

/** The next document; *bytes = 0 at the end. Local. *text is valid until the next call.
 *
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT with file and byte where it is not UTF-8 text, with file and line
 *           where JSON is not what it should be, and for a document beyond SMOE_DOCUMENT_BYTES_MAX.
 */
smoe_status smoe_reader_next(smoe_reader *reader, const char **text, size_t *bytes);

/** Close it; accepts a zero-initialised struct. Local. */
void smoe_reader_close(smoe_reader *reader);

/** Make at least `bytes` bytes available from begin on, or all there are. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_reader_fill(smoe_reader *reader, size_t bytes);

/** The next document of JSON objects: as smoe_reader_next, which calls it. Local. */
smoe_status smoe_reader_next_json(smoe_reader *reader, const char **text, size_t *bytes);

/** Return true if the first value of a file is a JSON object with a text `field`, or an array of such. Local. */
bool smoe_text_has_field(const char *path, const char *field);

#endif
