/** Files of token ids: shards of llm.c, raw ids as nanoGPT writes them, and Megatron's .bin with its .idx. */
#ifndef STABLEMOE_DATA_TOKEN_FILE_H
#define STABLEMOE_DATA_TOKEN_FILE_H

#include "documents.h"

typedef struct smoe_token_file {
  const char *path; /**< borrowed */
  const char *kind; /**< "gpt2", "llama3": the vocabulary, where the format says; "none" */
  const char *name; /**< of the format, for people */
  int token_bytes;
  size_t header_bytes;
  int64_t promised;  /**< tokens, by the header; -1: it does not say */
  int32_t separator; /**< of documents, by the format; -1: unknown */
  int vocabulary;    /**< by the format; 0: unknown */
  int64_t *end;      /**< [n_ends] where documents end, by an index file; NULL: without */
  int64_t n_ends;
  uint8_t split; /**< smoe_split, or SMOE_SPLIT_OPEN */

  /* What a scan finds. */
  int64_t n_tokens, n_separators;
  int32_t max, first; /**< -1: no token */
  int32_t last;       /**< token of every document by the index; -1: not the same of all */
} smoe_token_file;

/** Find out what a file is, by its header, its index file or options->raw.
 *
 *  Local.
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT where it is none of these, or not sound.
 */
smoe_status smoe_token_file_open(smoe_token_file *file, const char *path,
                                 const smoe_prepare_options *options);

/** Gets the tokens of a file, from position `first` of it on. */
typedef smoe_status (*smoe_token_sink)(void *context, const smoe_token_file *file, const int32_t *tokens,
                                       size_t n, int64_t first);

/** Read all tokens, block by block.
 *
 *  Local.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT where there are not as many as promised; those of the sink.
 */
smoe_status smoe_token_file_read(const smoe_token_file *file, smoe_token_sink sink, void *context);

/** Read all tokens once, and count. Local. Errors: as smoe_token_file_read. */
smoe_status smoe_token_file_scan(smoe_token_file *file);

/** Free it. Local. */
void smoe_token_file_close(smoe_token_file *file);

#endif
