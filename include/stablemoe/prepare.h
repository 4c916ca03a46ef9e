/** Making a corpus file from text. Serial: rank 0 alone. */
#ifndef STABLEMOE_PREPARE_H
#define STABLEMOE_PREPARE_H

#include "stablemoe/status.h"
#include "stablemoe/tokenizer.h"

typedef struct smoe_prepare_options {
  const char *output;     /**< corpus.h5 */
  const char *model_path; /**< existing SentencePiece model; NULL: train one */
  smoe_tokenizer_kind kind;
  int vocabulary;
  double valid_share, test_share; /**< of documents */
  uint64_t seed;                  /**< of the split */
  const char *extensions; /**< ".py,.txt": files taken from directories; NULL: all that are UTF-8 text */
  bool lines; /**< every line is a document; else every file, cut at blank lines past document_bytes */
  int64_t document_bytes;
} smoe_prepare_options;

/** Prepare a corpus from files and directories of text, or from token shards (.bin).
 *
 *  Local. Prints progress as notes. The output appears under its final name only when complete.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT (invalid UTF-8: file and byte), SMOE_ERR_CONFIG.
 */
smoe_status smoe_prepare(const smoe_prepare_options *options, const char *const *inputs, int n_inputs);

#endif
