/** Making a corpus file from text or token files. Serial: rank 0 alone. */
#ifndef STABLEMOE_PREPARE_H
#define STABLEMOE_PREPARE_H

#include "stablemoe/corpus.h"
#include "stablemoe/status.h"
#include "stablemoe/tokenizer.h"

/** Vocabulary of a tokenizer that is trained, unless one is given. */
enum { SMOE_VOCABULARY_DEFAULT = 8192 };

/** Files and directories that are given to one split. */
typedef struct smoe_inputs {
  const char *const *path; /**< [n] */
  int n;
} smoe_inputs;

typedef struct smoe_prepare_options {
  const char *output;     /**< corpus.h5; replaced where it exists */
  const char *model_path; /**< existing SentencePiece model; NULL: train one */
  smoe_tokenizer_kind kind;
  int vocabulary;       /**< 0: SMOE_VOCABULARY_DEFAULT for text, what the format says for shards */
  double coverage;      /**< share of characters with pieces of their own; 0: as many as fit, see below */
  int64_t sample_bytes; /**< the tokenizer is trained on; 0: see below */
  double valid_share, test_share; /**< of the text that is given to no split, in [0, 1], together at most 1 */
  uint64_t seed;                  /**< of the split */
  smoe_inputs own[SMOE_SPLITS];   /**< text or token files of each split alone */
  bool dedup;                     /**< keep one of equal documents */
  const char *extensions; /**< ".py,.txt": files taken from directories; NULL: all that are UTF-8 text */
  bool lines;    /**< every line is a document; else every file, cut at blank lines past document_bytes */
  int raw_bytes; /**< files are token ids of 2 or 4 bytes without a header; 0: they are not */
  const char
      *separator;    /**< text between documents, of token files an id; NULL: none, or what the format has */
  const char *field; /**< of JSON files; NULL: "text"; "-": JSON is text like any other */
  int64_t document_bytes; /**< 0: 16 KiB, less for little text */
} smoe_prepare_options;

/** The default options: BPE, shares of 0.05, seed 1. Local. */
smoe_prepare_options smoe_prepare_defaults(void);

/** Prepare a corpus from files and directories of text, or from token shards of llm.c (.bin).
 *
 *  Local. Prints progress as notes. The output appears under its final name only when complete.
 *
 *  inputs  in  [n_inputs] of no split in particular; may be none where options->own has some
 *
 *  The same text in the same order and the same options give the same file. The tokenizer is
 *  trained on the training split alone, on sample_bytes spread evenly over it: 4 MiB, more where the split
 *  is larger than 64 MiB. By default the rarest characters are left to byte fallback: those beyond half the
 *  vocabulary, and beyond 99.95 % of the text.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT (invalid UTF-8: file and byte), SMOE_ERR_CONFIG.
 */
smoe_status smoe_prepare(const smoe_prepare_options *options, const char *const *inputs, int n_inputs);

#endif
