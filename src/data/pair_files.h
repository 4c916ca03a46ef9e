/** Sentence pairs on disk: two files line by line, or one file of tab-separated pairs. */
#ifndef STABLEMOE_DATA_PAIR_FILES_H
#define STABLEMOE_DATA_PAIR_FILES_H

#include "line_reader.h"
#include "stablemoe/pairs.h"
#include "stablemoe/prepare_pairs.h"

/** Files of pairs of one direction, which go to one split or are shared out among all. */
typedef struct smoe_pair_file {
  const char *path[SMOE_SIDES]; /**< the second NULL: the first has tab-separated pairs */
  int direction;
  smoe_split split;
  bool share[SMOE_SPLITS]; /**< only of split SMOE_TRAIN: a part of it goes there */
} smoe_pair_file;

/** One pair: its texts without blanks at either end, not NUL-terminated. */
typedef struct smoe_pair_text {
  const char *text[SMOE_SIDES];
  size_t bytes[SMOE_SIDES];
} smoe_pair_text;

/** Whether both sides have text. Local. */
bool smoe_pair_is_complete(const smoe_pair_text *pair);

typedef struct smoe_pair_reader {
  const smoe_pair_file *file;
  smoe_line_reader side[SMOE_SIDES];
} smoe_pair_reader;

/** Open the files. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_pair_reader_open(smoe_pair_reader *reader, const smoe_pair_file *file);

/** Read the next pair; pair->text[0] = NULL at the end. Local. The texts are valid until the next call.
 *
 *  Errors:  as smoe_line_reader_next; SMOE_ERR_CONFIG with both numbers if one file has more lines than the
 *           other; SMOE_ERR_FORMAT with file and line if a tab-separated line does not have two columns.
 */
smoe_status smoe_pair_reader_next(smoe_pair_reader *reader, smoe_pair_text *pair);

/** Close it; accepts a zero-initialised one. Local. */
void smoe_pair_reader_close(smoe_pair_reader *reader);

/** Read the languages of a pair, "de-en". Local.
 *  Errors:  SMOE_ERR_CONFIG if it is not two different codes of letters, digits and _.
 */
smoe_status smoe_pair_languages(const char *text, char code[SMOE_SIDES][SMOE_LANGUAGE_BYTES]);

/** Hashes of pairs, to find them again in another split. */
typedef struct smoe_pair_set {
  uint64_t *hash;
  uint8_t *found;
  size_t n;
} smoe_pair_set;

/** Add a pair. Local. */
void smoe_pair_set_add(smoe_pair_set *set, int direction, const smoe_pair_text *pair);

/** Sort the set; then pairs can be looked up. Local. */
void smoe_pair_set_sort(smoe_pair_set *set);

/** Mark all pairs of the set that are equal to this one, word for word. Local. */
void smoe_pair_set_find(smoe_pair_set *set, int direction, const smoe_pair_text *pair);

/** Return the number of pairs that are marked. Local. */
int64_t smoe_pair_set_found(const smoe_pair_set *set);

/** Free it. Local. */
void smoe_pair_set_free(smoe_pair_set *set);

#endif
