/** Making a corpus file from text. Serial: rank 0 alone. */
#ifndef STABLEMOE_PREPARE_H
#define STABLEMOE_PREPARE_H

#include "stablemoe/status.h"
#include "stablemoe/tokenizer.h"

/** Vocabulary of a tokenizer that is trained without a wish. */
enum { SMOE_VOCABULARY_DEFAULT = 8192 };

typedef struct smoe_prepare_options {
  const char *output;     /**< corpus.h5; replaced where it exists */
  const char *model_path; /**< existing SentencePiece model; NULL: train one */
  smoe_tokenizer_kind kind;
  int vocabulary;                 /**< 0: SMOE_VOCABULARY_DEFAULT for text, what the format says for shards */
  double valid_share, test_share; /**< of the text, in (0, 0.4] */
  uint64_t seed;                  /**< of the split */
  const char *extensions; /**< ".py,.txt": files taken from directories; NULL: all that are UTF-8 text */
  bool lines; /**< every line is a document; else every file, cut at blank lines past document_bytes */
  int64_t document_bytes; /**< 0: 16 KiB, less for little text */
} smoe_prepare_options;

/** The options without wishes: BPE, shares of 0.05, seed 1. Local. */
smoe_prepare_options smoe_prepare_defaults(void);

/** Prepare a corpus from files and directories of text, or from token shards of llm.c (.bin).
 *
 *  Local. Prints progress as notes. The output appears under its final name only when complete.
 *
 *  The same text in the same order and the same options give the same file. The tokenizer is
 *  trained on the training split alone, on at most 4 MiB spread evenly over it.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT (invalid UTF-8: file and byte), SMOE_ERR_CONFIG.
 */
smoe_status smoe_prepare(const smoe_prepare_options *options, const char *const *inputs, int n_inputs);

#endif
