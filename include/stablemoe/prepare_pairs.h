/** Making a corpus of sentence pairs. Serial: rank 0 alone. */
#ifndef STABLEMOE_PREPARE_PAIRS_H
#define STABLEMOE_PREPARE_PAIRS_H

#include "stablemoe/pairs.h"
#include "stablemoe/tokenizer.h"

/** Files of pairs of one direction. */
typedef struct smoe_pair_input {
  const char *languages; /**< "de-en": source and target */
  const char *source;    /**< file of the source, or of tab-separated pairs */
  const char *target;    /**< file of the target, line by line as the source; NULL: tab-separated pairs */
} smoe_pair_input;

typedef struct smoe_prepare_pairs_options {
  const char *output; /**< replaced if it exists */
  const char
      *model_path; /**< existing SentencePiece model with a piece "<2xx>" of each language; NULL: train */
  smoe_tokenizer_kind kind;
  int vocabulary;                 /**< 0: SMOE_VOCABULARY_DEFAULT */
  double valid_share, test_share; /**< of the training pairs, if no files are given for that split */
  int64_t sample_bytes;           /**< text that the tokenizer is trained on; 0: 4 MiB */
  uint64_t seed;                  /**< of the split */
  int64_t max_tokens;             /**< of one side of a pair, tag and end included */
  double max_ratio;               /**< of the longer side to the shorter one, in such tokens */
  const smoe_pair_input *input[SMOE_SPLITS];
  size_t n_inputs[SMOE_SPLITS];
} smoe_prepare_pairs_options;

/** Return the default options: BPE, shares of 0.05, seed 1, 256 tokens, ratio 4. Local. */
smoe_prepare_pairs_options smoe_prepare_pairs_defaults(void);

/** Prepare a corpus of sentence pairs.
 *
 *  Local. Prints progress as notes. The output appears under its final name only when complete. The same
 *  files in the same order and the same options give the same file.
 *
 *  One tokenizer serves all languages. It is trained on both sides of the training split, on at most
 *  sample_bytes spread evenly over it, and has a control symbol "<2xx>" for each language, which no text is encoded to.
 *
 *  A split by share goes by a hash of the text in the language that most directions have, so that a sentence
 *  of that language goes to one split with all its translations.
 *
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT (invalid UTF-8: file and line), SMOE_ERR_CONFIG (files of different
 *           length: both counts).
 */
smoe_status smoe_prepare_pairs(const smoe_prepare_pairs_options *options);

#endif
