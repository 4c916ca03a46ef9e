/** The text of a corpus of pairs: which files, which languages, and which split each pair goes to. */
#ifndef STABLEMOE_DATA_PREPARE_PAIRS_TEXT_H
#define STABLEMOE_DATA_PREPARE_PAIRS_TEXT_H

#include "pair_files.h"

typedef struct smoe_pairs_text {
  smoe_pair_file *file;
  size_t n_files;
  int pivot;                 /**< language that most directions have */
  double share[SMOE_SPLITS]; /**< of the validation and the test split, of pairs that are shared out */
  uint64_t seed;
  int64_t n_bytes[SMOE_SPLITS]; /**< of complete pairs, both sides */
  int64_t n_pairs[SMOE_SPLITS]; /**< complete ones */
  int64_t n_empty[SMOE_SPLITS];
  smoe_pair_set set[SMOE_SPLITS]; /**< of the validation and the test split */
} smoe_pairs_text;

/** List files, languages and directions, read all files once, and count.
 *
 *  Local. pairs: its languages and directions are set.
 *  Errors:  as smoe_prepare_pairs.
 */
smoe_status smoe_pairs_text_open(smoe_pairs_text *text, smoe_pairs *pairs,
                                 const smoe_prepare_pairs_options *options);

/** Free it. Local. */
void smoe_pairs_text_close(smoe_pairs_text *text);

/** Reads all complete pairs, in the order of the files. */
typedef struct smoe_pairs_source {
  smoe_pairs_text *text;
  const smoe_pairs *pairs;
  smoe_pair_reader reader;
  size_t file; /**< index of the open file; n_files at the end */
  bool is_open;
  smoe_pair_text pair; /**< the present one, with its direction and split */
  int direction;
  smoe_split split;
} smoe_pairs_source;

/** Return the next complete pair in source->pair; pair.text[0] = NULL at the end. Local. */
smoe_status smoe_pairs_source_next(smoe_pairs_source *source);

/** Close it. Local. */
void smoe_pairs_source_close(smoe_pairs_source *source);

#endif
