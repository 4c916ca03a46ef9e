/** The corpus of sentence pairs: token ids of source and target of three splits, with the tokenizer inside.
 *
 *  A pair belongs to a direction, such as German to English. Its token ids are stored as a model reads them:
 *
 *    source   tag of the target language ("<2en>"), tokens of the source text, end
 *    target   tokens of the target text, end
 *
 *  end is the tokenizer's end-of-sentence id. The decoder's input is the target shifted by one place, with
 *  end in front (as in fairseq): there is no separate begin id, and no tag on the target side. So the input
 *  and the target of a decoder are equally long, and a pair has as many target tokens as
 *  smoe_pairs_target_length returns.
 */
#ifndef STABLEMOE_PAIRS_H
#define STABLEMOE_PAIRS_H

#include <stdint.h>

#include "stablemoe/corpus.h"

enum {
  SMOE_LANGUAGES_MAX = 64,
  SMOE_LANGUAGE_BYTES = 16, /**< of a code ("de", "zh_Hans") with its final NUL */
  SMOE_DIRECTIONS_MAX = 128,
  SMOE_PAIR_TOKENS_MAX = 65535 /**< of one side of a pair */
};

typedef enum smoe_side { SMOE_SIDE_SOURCE, SMOE_SIDE_TARGET } smoe_side;
enum { SMOE_SIDES = 2 };

/** Why a pair of the text is not in the corpus. */
typedef enum smoe_left_out {
  SMOE_LEFT_OUT_EMPTY,  /**< one side has no text */
  SMOE_LEFT_OUT_LONG,   /**< one side has more tokens than allowed */
  SMOE_LEFT_OUT_UNEQUAL /**< one side is so many times as long as the other; training split only */
} smoe_left_out;
enum { SMOE_LEFT_OUT_REASONS = 3 };

/** One split. */
typedef struct smoe_pair_split {
  int64_t n_pairs;
  int64_t n_tokens[SMOE_SIDES];
  int64_t left_out[SMOE_LEFT_OUT_REASONS]; /**< pairs of the text */
  int64_t n_repeated;                      /**< pairs that are in the training split, too, word for word */
  uint16_t *length[SMOE_SIDES];            /**< [n_pairs] tokens of each pair, tag and end included */
  int64_t *block[SMOE_SIDES];              /**< first token of every SMOE_PAIR_BLOCK-th pair */
  uint8_t *direction;                      /**< [n_pairs] */
  int32_t *token[SMOE_SIDES];              /**< [n_tokens]; NULL if there are more than SMOE_PAIR_KEPT */
  int64_t *n_bytes[SMOE_SIDES];            /**< [n_directions] of UTF-8 text */
} smoe_pair_split;

/** Pairs between two stored positions: a pair's first token is found by adding up at most so many lengths. */
enum { SMOE_PAIR_BLOCK = 64 };

/** Tokens of one side of a split up to which they are kept in memory; more are read when they are needed. */
enum { SMOE_PAIR_KEPT = 1 << 24 };

/** A corpus of pairs; the same on all ranks. Memory: 5 bytes per pair, 4 bytes per token that is kept. */
typedef struct smoe_pairs {
  char path[1024];
  int vocabulary; /**< V; every id is in 0 .. V - 1 */
  int32_t end_id; /**< ends every side, and begins a decoder's input */
  int n_languages;
  char language[SMOE_LANGUAGES_MAX][SMOE_LANGUAGE_BYTES]; /**< codes */
  int32_t tag[SMOE_LANGUAGES_MAX];                        /**< id of "<2code>" of each language */
  int n_directions;
  uint8_t direction[SMOE_DIRECTIONS_MAX][SMOE_SIDES]; /**< language of source and target */
  smoe_pair_split split[SMOE_SPLITS];
  uint64_t fingerprint; /**< of all lengths, directions and tokens; stored in checkpoints */
  uint64_t tokenizer;   /**< hash of the tokenizer: what an id means; stored in checkpoints */
  char *model;          /**< serialised tokenizer */
  size_t model_bytes;
  void *file; /**< open file, read-only, this rank's own */
} smoe_pairs;

/** Open a corpus of pairs; every rank opens it for itself.
 *
 *  Collective over group. Reads lengths, directions, the tokenizer, and tokens if they are few.
 *  Errors:  SMOE_ERR_IO if it cannot be read, SMOE_ERR_FORMAT if it is not a corpus of pairs.
 */
smoe_status smoe_pairs_open(smoe_pairs *pairs, const smoe_group *group, const char *path);

/** Open a corpus of pairs for this rank alone. Local. Errors: as smoe_pairs_open. */
smoe_status smoe_pairs_open_local(smoe_pairs *pairs, const char *path);

/** Read all of a corpus of pairs and compare it with its fingerprint. Local.
 *  Errors:  as smoe_pairs_open; SMOE_ERR_FORMAT if something has changed.
 */
smoe_status smoe_pairs_verify(const char *path);

/** Compare an open corpus of up to SMOE_CORPUS_CHECKED tokens with its fingerprint, before a run builds on it.
 *
 *  Collective over group. The first rank of each node reads.
 *  Errors:  as smoe_pairs_verify, agreed on all ranks.
 */
smoe_status smoe_pairs_check(const smoe_pairs *pairs, const smoe_group *group);

/** Close it; accepts a zero-initialised or already closed one. Local. */
void smoe_pairs_close(smoe_pairs *pairs);

/** Return the number of tokens of one side of pair i, as a model reads it. Local. */
int smoe_pairs_length(const smoe_pairs *pairs, smoe_split split, smoe_side side, int64_t i);

/** Return the number of target tokens of pair i, and so of its terms of the loss. Local. */
int smoe_pairs_target_length(const smoe_pairs *pairs, smoe_split split, int64_t i);

/** Return the language of one side of pair i: an index into pairs->language. Local. */
int smoe_pairs_language(const smoe_pairs *pairs, smoe_split split, smoe_side side, int64_t i);

/** Return the index of a language by its code; -1 if the corpus has no such language. Local. */
int smoe_pairs_find_language(const smoe_pairs *pairs, const char *code);

/** Copy the tokens of one side of pair i.
 *
 *  Local. A pair that does not exist is a bug (panic); a failed read, or an id outside the vocabulary,
 *  ends the run: it happens inside steps.
 *  tokens  out  [smoe_pairs_length(pairs, split, side, i)]
 */
void smoe_pairs_read(const smoe_pairs *pairs, smoe_split split, smoe_side side, int64_t i, int32_t *tokens);

/** Read how often each token occurs on one side of the training split.
 *
 *  Local. The inputs of the decoder have the same counts: they begin with end instead of ending with it.
 *  count   out  [V]
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT.
 */
smoe_status smoe_pairs_counts(const smoe_pairs *pairs, smoe_side side, int64_t *count);

/** Write the name of a direction ("de-en") into text. Local. */
void smoe_pairs_direction_name(const smoe_pairs *pairs, int direction, char text[2 * SMOE_LANGUAGE_BYTES]);

#endif
