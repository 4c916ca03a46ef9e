/** The text that a tokenizer is trained on. */
#ifndef STABLEMOE_DATA_SAMPLE_H
#define STABLEMOE_DATA_SAMPLE_H

#include "documents.h"

/** Blocks of the training documents, evenly spread, in memory. */
typedef struct smoe_sample {
  char *text;      /**< block after block */
  uint32_t *block; /**< [n_blocks] length of each */
  size_t n_blocks, bytes, room;
  bool *left_out;             /**< [0x110000] characters that the trainer does not get */
  int64_t n_reserved, n_rare; /**< occurrences in the sample of such characters */
  int n_rare_kinds;
  double coverage;                 /**< for the trainer: share of what it gets that has pieces */
  size_t next_block, at, in_block; /**< where reading is */
} smoe_sample;

/** Bytes that a tokenizer is trained on: as asked for, or by the size of the training text. Local. */
int64_t smoe_sample_bytes(const smoe_prepare_options *options, int64_t train_bytes);

/** Read the sample of the training split.
 *
 *  Local.
 *  vocabulary  in  pieces of the tokenizer: without options->coverage the most frequent characters that fit in
 *                  three quarters of it, besides bytes, are kept
 *  Errors:  as smoe_document_source_next.
 */
smoe_status smoe_sample_read(smoe_sample *sample, const smoe_documents *documents,
                             const smoe_prepare_options *options, int vocabulary);

/** Give one more stretch of text without characters that are left out: a smoe_sentence_source. Local. */
bool smoe_sample_next(void *sample, const char **text, size_t *bytes);

/** Print what was left out. Local. */
void smoe_sample_report(const smoe_sample *sample);

/** Free it; accepts a zero-initialised struct. Local. */
void smoe_sample_free(smoe_sample *sample);

#endif
