/** The corpus file: token ids of three splits, with the tokenizer inside. */
#ifndef STABLEMOE_CORPUS_H
#define STABLEMOE_CORPUS_H

#include "stablemoe/group.h"
#include "stablemoe/status.h"

typedef enum smoe_split { SMOE_TRAIN, SMOE_VALID, SMOE_TEST } smoe_split;
enum { SMOE_SPLITS = 3 };

/** What a corpus file says of itself; the same on all ranks. */
typedef struct smoe_corpus {
  char path[1024];
  char absolute[4096]; /**< the same path from the root; "" where it cannot be had */
  int vocabulary;      /**< V; every id is in 0 .. V - 1 */
  int32_t end_id;      /**< ends a document; -1 where unknown */
  int64_t n_tokens[SMOE_SPLITS];
  int64_t n_documents[SMOE_SPLITS];
  int64_t n_bytes[SMOE_SPLITS]; /**< of UTF-8 text; 0 where unknown */
  double unigram;               /**< add-one cross entropy of the validation split, nats per token */
  double bigram;
  uint64_t fingerprint; /**< of all tokens; stored in checkpoints */
  uint64_t tokenizer; /**< hash of the tokenizer: what an id means; stored in checkpoints; 0 where unknown */
  char *model;        /**< serialised tokenizer; NULL where there is none */
  size_t model_bytes;
  void *file; /**< open file, read-only, this rank's own */
} smoe_corpus;

/** Open a corpus; every rank opens it for itself.
 *
 *  Collective over group. Reads what the file says of itself and the tokenizer, no tokens.
 *  Errors:  SMOE_ERR_IO where it cannot be read, SMOE_ERR_FORMAT where it is no corpus.
 */
smoe_status smoe_corpus_open(smoe_corpus *corpus, const smoe_group *group, const char *path);

/** Open a corpus for this rank alone. Local. Errors: as smoe_corpus_open. */
smoe_status smoe_corpus_open_local(smoe_corpus *corpus, const char *path);

/** A corpus without a file: random tokens with frequencies after Zipf's law, for measurements. Local.
 *  n_tokens: of each split.
 */
void smoe_corpus_synthetic(smoe_corpus *corpus, int vocabulary, int64_t n_tokens);

/** The tokens of such a corpus. Local; smoe_corpus_read calls it. */
void smoe_corpus_synthetic_read(const smoe_corpus *corpus, int64_t first, size_t n, int32_t *tokens);

/** Read all of a corpus and compare it with its fingerprint; to open one checks all but the tokens. Local.
 *  Errors:  as smoe_corpus_open; SMOE_ERR_FORMAT where a token is not what it was.
 */
smoe_status smoe_corpus_verify(const char *path);

/** Tokens of a corpus up to which a run compares all of them with their fingerprint before it begins: a second. */
enum { SMOE_CORPUS_CHECKED = 1 << 27 };

/** Compare an open corpus of up to SMOE_CORPUS_CHECKED tokens with its fingerprint, before a run builds on it.
 *
 *  Collective over group. The first rank of each node reads, since nodes may have copies of their own. A file
 *  that another program made is let pass: what its fingerprint is of, it alone knows.
 *  Errors:  as smoe_corpus_verify, agreed on all ranks.
 */
smoe_status smoe_corpus_check(const smoe_corpus *corpus, const smoe_group *group);

/** Check that ids of a corpus mean what they meant in the training of a model.
 *
 *  Local. Where a hash is unknown (0) only the fingerprints can be compared; a difference is a warning then.
 *  tokenizer, fingerprint  in   of the corpus that the model was trained on
 *  model                   in   path, for the report
 *  Errors:  SMOE_ERR_CONFIG where the tokenizers differ.
 */
smoe_status smoe_corpus_check_tokenizer(const smoe_corpus *corpus, uint64_t tokenizer, uint64_t fingerprint,
                                        const char *model);

/** Write the serialised tokenizer of a corpus to a file; where it has none, remove the file. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_corpus_write_tokenizer(const smoe_corpus *corpus, const char *path);

/** Close it; fine for a zeroed or already closed one. Local. */
void smoe_corpus_close(smoe_corpus *corpus);

/** Read n tokens of a split from position first on.
 *
 *  Local. A range that leaves the split is a bug (panic); a failed read, or an id
 *  outside the vocabulary, ends the run: it happens inside steps.
 */
void smoe_corpus_read(const smoe_corpus *corpus, smoe_split split, int64_t first, size_t n, int32_t *tokens);

/** Number of whole sequences of T targets in a split: (n_tokens - 1) / T. Local. */
int64_t smoe_corpus_sequences(const smoe_corpus *corpus, smoe_split split, int64_t context);

/** Return the number of the training sequence at a position in the endless order of sequences.
 *
 *  Local. A pure function: each epoch visits every sequence once, in an order given by (seed, epoch),
 *  whatever the batches are. A batch may begin in one epoch and end in the next.
 *  position  in  sequences that training reads before this one
 *  No sequences at all is a bug (panic).
 */
int64_t smoe_sampler_sequence(uint64_t seed, int64_t n_sequences, int64_t position);

/** How often each token stands in the training split.
 *
 *  Local. Of a synthetic corpus its first million tokens are counted.
 *  count   out  [V]
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT.
 */
smoe_status smoe_corpus_counts(const smoe_corpus *corpus, int64_t *count);

/** Read where documents first .. first + n - 1 of a split end: the place after each one's last token.
 *
 *  Local. Only of a corpus that is a file.
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT where they do not rise.
 */
smoe_status smoe_corpus_document_ends(const smoe_corpus *corpus, smoe_split split, int64_t first, size_t n,
                                      int64_t *end);

/** Read sequence s of a split as inputs and targets.
 *
 *  Local.
 *  input   out  [T] tokens s T ... ; -1 beyond the end of the split
 *  target  out  [T] the token after each input; -1 beyond the end, so the split's last token has none
 */
void smoe_corpus_sequence(const smoe_corpus *corpus, smoe_split split, int64_t s, int64_t context,
                          int32_t *input, int32_t *target);

#endif
