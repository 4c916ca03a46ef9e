/** Counts of tokens and of pairs, and what they predict: the least a model has to beat. */
#ifndef STABLEMOE_DATA_STATISTICS_H
#define STABLEMOE_DATA_STATISTICS_H

#include <stddef.h>
#include <stdint.h>

typedef struct smoe_statistics {
  int vocabulary;
  int64_t *count;               /**< [V] in the training split */
  int64_t n_tokens;             /**< sum of count */
  struct smoe_pair_count *pair; /**< hash table of pairs in the training split */
  size_t n_pairs, n_slots;
  int32_t last;     /**< of the training split; -1 before the first */
  int32_t previous; /**< of the validation split; -1 before the first */
  int64_t n_targets;
  double unigram_sum, bigram_sum;
} smoe_statistics;

/** No counts yet. Local. */
void smoe_statistics_open(smoe_statistics *statistics, int vocabulary);

/** Give it back. Local. */
void smoe_statistics_close(smoe_statistics *statistics);

/** Count the next n tokens of the training split. Local. */
void smoe_statistics_train(smoe_statistics *statistics, const int32_t *tokens, size_t n);

/** Score the next n tokens of the validation split; counting must be over. Local.
 *
 *  The first token of the split has nothing before it and is no target, as in training.
 */
void smoe_statistics_valid(smoe_statistics *statistics, const int32_t *tokens, size_t n);

/** Cross entropy in nats per token of the add-one unigram model, p(b) = (n(b) + 1) / (n + V);
 *  not a number where a split is empty. Local.
 */
double smoe_statistics_unigram(const smoe_statistics *statistics);

/** The same of the add-one bigram model, p(b | a) = (n(a, b) + 1) / (n(a) + V). Local. */
double smoe_statistics_bigram(const smoe_statistics *statistics);

#endif
