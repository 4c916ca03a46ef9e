/** Text to token ids and back: SentencePiece behind a C interface. */
#ifndef STABLEMOE_TOKENIZER_H
#define STABLEMOE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stablemoe/status.h"

typedef struct smoe_tokenizer smoe_tokenizer;

typedef enum smoe_tokenizer_kind { SMOE_BPE, SMOE_UNIGRAM } smoe_tokenizer_kind;

/** Give one more sentence (not NUL-terminated) to train on; returns false at the end. */
typedef bool (*smoe_sentence_source)(void *context, const char **text, size_t *bytes);

/** Train a model on sentences. Local; takes seconds to minutes.
 *
 *  model    out  serialised model, in memory of smoe_alloc
 *  bytes    out  its size
 *
 *  coverage  in  share of the characters that get pieces of their own, in [0.98, 1]
 *
 *  Byte fallback is on: any text can be encoded and decoded without loss.
 *  Errors:  SMOE_ERR_CONFIG where the text does not allow so large a vocabulary (the report
 *           says how large one it allows), SMOE_ERR_FORMAT otherwise.
 */
smoe_status smoe_tokenizer_train(char **model, size_t *bytes, smoe_tokenizer_kind kind, int vocabulary,
                                 double coverage, smoe_sentence_source source, void *context);

/** Train a model that also has control symbols: pieces that no text is encoded to, and that are decoded to
 *  nothing.
 *
 *  Local. As smoe_tokenizer_train.
 *  symbols  in  their texts, with commas between them: "<2de>,<2en>"
 */
smoe_status smoe_tokenizer_train_with(char **model, size_t *bytes, smoe_tokenizer_kind kind, int vocabulary,
                                      const char *symbols, smoe_sentence_source source, void *context);

/** Read a serialised model from a file; *model in memory of smoe_alloc. Local.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT if it is empty or too large for one.
 */
smoe_status smoe_tokenizer_load(char **model, size_t *bytes, const char *path);

/** Open a serialised model. Local. Errors: SMOE_ERR_FORMAT. */
smoe_status smoe_tokenizer_open(smoe_tokenizer **tokenizer, const char *model, size_t bytes);

/** Give it back. Local. */
void smoe_tokenizer_close(smoe_tokenizer *tokenizer);

/** V. Local. */
int smoe_tokenizer_size(const smoe_tokenizer *tokenizer);

/** Id of the piece that ends a document. Local. */
int32_t smoe_tokenizer_end(const smoe_tokenizer *tokenizer);

/** Text of a piece, as stored ("▁the"); valid while the tokenizer is open. Local. */
const char *smoe_tokenizer_piece(const smoe_tokenizer *tokenizer, int32_t id);

/** Return the id of a piece by its text; -1 if there is none. Local. */
int32_t smoe_tokenizer_find(const smoe_tokenizer *tokenizer, const char *piece);

/** Encode UTF-8 text; *ids in memory of smoe_alloc. Local. */
smoe_status smoe_tokenizer_encode(const smoe_tokenizer *tokenizer, const char *text, size_t bytes,
                                  int32_t **ids, size_t *n_ids);

/** Decode ids without those of unknown characters; the text in memory of smoe_alloc, of *bytes bytes. Local. */
smoe_status smoe_tokenizer_decode_known(const smoe_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                        char **text, size_t *bytes);

/** Decode ids; the text in memory of smoe_alloc, NUL-terminated. Local. */
smoe_status smoe_tokenizer_decode(const smoe_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                  char **text);

#endif
