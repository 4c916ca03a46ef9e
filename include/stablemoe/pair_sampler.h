/** Batches of sentence pairs: which pairs an update reads, in which lane, and of what shape.
 *
 *  All of it is a function of the corpus, the options below and the number of the update: no number of ranks
 *  and no generator state takes part. Lengths come from memory, so no tokens are read.
 *
 *  How a batch comes about:
 *  1. An epoch has N pairs. Of direction d it has N_d, in proportion to n_d^(1/temperature), where n_d is the
 *     number of pairs that the corpus has of it; temperature 1 gives N_d = n_d, each pair once. A direction's
 *     pairs are passed through in an order drawn for each pass, whatever epochs the pass reaches into, so that
 *     all of them are read equally often.
 *  2. The order of the epoch is drawn by (seed, epoch), and cut into equal windows of up to `window` pairs.
 *  3. A window's pairs are sorted so that neighbours have sources and targets of like length, and cut into micro-batches of at most
 *     `tokens` rows on either side, padding included. A micro-batch is a number of sequences S in each of
 *     `lanes` lanes; all its sources are padded to the length Ts and all its targets to Tt.
 *  4. The order of a window's micro-batches is drawn, so that long and short ones alternate.
 *  5. Update u has the micro-batches u M .. u M + M - 1 of this endless list.
 */
#ifndef STABLEMOE_PAIR_SAMPLER_H
#define STABLEMOE_PAIR_SAMPLER_H

#include "stablemoe/pairs.h"

typedef struct smoe_pair_sampling {
  int lanes;          /**< L: equal parts of a micro-batch */
  int micro_batches;  /**< M of an update */
  int64_t tokens;     /**< rows that a micro-batch has at most, of all lanes, on either side */
  int64_t window;     /**< pairs that are sorted together; 0: SMOE_PAIR_WINDOW */
  double temperature; /**< of the choice of directions, >= 1; 1: as in the corpus */
  uint64_t seed;
  int direction; /**< only pairs of this direction; -1: all */
  bool in_order; /**< evaluation: nothing is drawn, each pair once, sorted over the whole split */
} smoe_pair_sampling;

enum { SMOE_PAIR_WINDOW = 1 << 16 };

/** One micro-batch. Pair j of lane l is pair[l * sequences + j]; -1: a sequence of padding alone. */
typedef struct smoe_pair_batch {
  int lanes;
  int sequences;       /**< S of each lane */
  int source_length;   /**< Ts: the longest source */
  int target_length;   /**< Tt: the longest target */
  int64_t n_pairs;     /**< that are not -1 */
  int64_t n_sources;   /**< tokens of their sources */
  int64_t n_targets;   /**< tokens of their targets: terms of the loss */
  const int64_t *pair; /**< [L S]; valid until the next call with the same sampler */
} smoe_pair_batch;

/** A list of batches. Plans are cached by window; the results are those of a pure function. */
typedef struct smoe_pair_sampler {
  const smoe_pairs *pairs; /**< borrowed */
  smoe_split split;
  smoe_pair_sampling options;
  int64_t epoch_pairs;         /**< N */
  int64_t window;              /**< pairs of a window at most */
  int64_t n_windows;           /**< of an epoch */
  struct smoe_pair_plan *plan; /**< private */
} smoe_pair_sampler;

/** Make a sampler of a split. Local.
 *
 *  Memory: 40 bytes per pair of a window, 8 bytes per pair of the split.
 *  Errors:  SMOE_ERR_CONFIG if the longest pair of the split does not fit into a micro-batch (one sequence in
 *           each lane), if a direction has no pair, or if an option is out of range.
 */
smoe_status smoe_pair_sampler_open(smoe_pair_sampler *sampler, const smoe_pairs *pairs, smoe_split split,
                                   const smoe_pair_sampling *options);

/** Free it; accepts a zero-initialised one. Local. */
void smoe_pair_sampler_close(smoe_pair_sampler *sampler);

/** Return micro-batch m of update u.
 *
 *  Local. Cost: that of sorting a window if it is another one than before; the first call for a late update
 *  sorts all windows before it once (about a million pairs per second).
 */
smoe_pair_batch smoe_pair_sampler_batch(smoe_pair_sampler *sampler, int64_t update, int micro);

/** Return the number of target tokens of an update: the denominator of its loss. Local. */
int64_t smoe_pair_sampler_targets(smoe_pair_sampler *sampler, int64_t update);

/** Return the number of micro-batches of epochs 0 .. epoch - 1. Local. */
int64_t smoe_pair_sampler_micro_batches(smoe_pair_sampler *sampler, int64_t epoch);

/** Return the epoch that an update begins in. Local. */
int64_t smoe_pair_sampler_epoch(smoe_pair_sampler *sampler, int64_t update);

/** Return the largest shapes of any micro-batch, from the options and the longest pair alone. Local.
 *
 *  S Ts <= tokens / L, S Tt <= tokens / L.
 *  sequences, source_length, target_length  out
 */
void smoe_pair_sampler_largest(const smoe_pair_sampler *sampler, int *sequences, int *source_length,
                               int *target_length);

/** Share of rows that are padding. */
typedef struct smoe_pair_padding {
  double source, target; /**< of all rows of that side */
} smoe_pair_padding;

/** Compute the share of padding in the micro-batches of an epoch. Local. */
smoe_pair_padding smoe_pair_sampler_padding(smoe_pair_sampler *sampler, int64_t epoch);

/** Read the tokens of one lane of a micro-batch; -1 is padding.
 *
 *  Local. The input is the target shifted by one place, with the end id in front.
 *  source  out  [S, Ts]
 *  input   out  [S, Tt]
 *  target  out  [S, Tt]
 */
void smoe_pair_batch_read(const smoe_pairs *pairs, smoe_split split, const smoe_pair_batch *batch, int lane,
                          int32_t *source, int32_t *input, int32_t *target);

#endif
