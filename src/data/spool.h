/** Tokens on their way into a corpus file.
 *
 *  How many there will be is known only when the last document is encoded, and a dataset
 *  wants to know it first: so they wait in unnamed temporary files beside the output, which
 *  vanish with the program, whatever ends it.
 */
#ifndef STABLEMOE_DATA_SPOOL_H
#define STABLEMOE_DATA_SPOOL_H

#include <stdio.h>

#include "stablemoe/corpus.h"
#include "stablemoe/tokenizer.h"

typedef struct smoe_spool {
  const char *output; /**< path of the corpus file; borrowed */
  int vocabulary;     /**< every id is below it */
  FILE *stream[SMOE_SPLITS];
  int64_t n_tokens[SMOE_SPLITS];
  int64_t n_bytes[SMOE_SPLITS];
  int64_t n_documents[SMOE_SPLITS];
  int64_t *document[SMOE_SPLITS]; /**< [n_documents + 1] offsets */
} smoe_spool;

/** What a corpus file says beside the tokens. */
typedef struct smoe_corpus_about {
  const char *kind; /**< of the tokenizer: "bpe", "unigram", "given"; "gpt2", "llama3" or "none" of shards */
  const char *sources;             /**< what it was made from, a line each */
  int32_t end_id;                  /**< -1 where unknown */
  const smoe_tokenizer *tokenizer; /**< NULL where there is none */
  const char *model;               /**< serialised; NULL where there is none */
  size_t model_bytes;
} smoe_corpus_about;

/** Name of a split: "train", "valid", "test". Local. */
const char *smoe_split_name(smoe_split split);

/** Hash of a serialised tokenizer, or of the kind of a corpus that holds none; 0 where its ids are unknown. Local. */
uint64_t smoe_tokenizer_hash(const char *kind, const char *model, size_t model_bytes);

/** Check that an output may be replaced: it is no directory or device, and none of the inputs.
 *
 *  Local. Errors: SMOE_ERR_CONFIG.
 */
smoe_status smoe_prepare_check_output(const char *output, const char *const *inputs, int n_inputs);

/** Open the temporary files. Local. Errors: SMOE_ERR_IO where the output's directory cannot be written. */
smoe_status smoe_spool_open(smoe_spool *spool, const char *output, int vocabulary);

/** Add tokens to the document at the end of a split. Local.
 *
 *  Errors:  SMOE_ERR_IO (no space), SMOE_ERR_FORMAT where an id is outside the vocabulary.
 */
smoe_status smoe_spool_add(smoe_spool *spool, smoe_split split, const int32_t *tokens, size_t n);

/** End that document; bytes: of its text. No tokens since the one before: no document. Local. */
void smoe_spool_end(smoe_spool *spool, smoe_split split, int64_t bytes);

/** Take back the tokens of the document at the end of a split. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_spool_drop(smoe_spool *spool, smoe_split split);

/** Read n tokens from position first on. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_spool_read(smoe_spool *spool, smoe_split split, int64_t first, size_t n, int32_t *tokens);

/** Give it back. Local. */
void smoe_spool_close(smoe_spool *spool);

/** Write the corpus file: under `output`.part, closed, read again and compared, then renamed.
 *
 *  Local.
 *  Errors:  SMOE_ERR_CONFIG where a split is empty, SMOE_ERR_IO. Nothing is left behind then.
 */
smoe_status smoe_corpus_write(smoe_spool *spool, const smoe_corpus_about *about);

#endif
