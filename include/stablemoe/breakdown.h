/** An evaluation's loss by kinds of token: by document, by frequency in training, by expert.
 *
 *  Sums run in double over the tokens in order of the split, so they are the same on any number of ranks.
 *  All functions are Local: rank 0 has the tokens.
 */
#ifndef STABLEMOE_BREAKDOWN_H
#define STABLEMOE_BREAKDOWN_H

#include "stablemoe/evaluate.h"

/** Loss of some tokens. */
typedef struct smoe_tally {
  double loss; /**< sum, nats */
  int64_t n;   /**< tokens */
} smoe_tally;

/** Classes of tokens by how often they stand in the training split: class 0 never, class i from
 *  10^(i-1) to 10^i - 1 times.
 */
enum { SMOE_FREQUENCIES = 16 };

/** Documents of fewer tokens are not among the worst: a few unlucky tokens say little. */
enum { SMOE_DOCUMENT_TOKENS = 10 };

typedef struct smoe_document_loss {
  int64_t number; /**< in the split, from 0 */
  smoe_tally tally;
} smoe_document_loss;

typedef struct smoe_breakdown {
  const smoe_corpus *corpus;
  smoe_split split;
  int64_t *count; /**< [V] in the training split */
  smoe_tally frequency[SMOE_FREQUENCIES];

  int n_moe, n_experts;
  smoe_tally *expert; /**< [M, E]; a token with several experts counts for each of them */

  int64_t n_documents;  /**< with at least one token */
  double document_loss; /**< sum over documents of their mean, nats per token */
  int64_t n_worst;      /**< kept of the worst_max wished for */
  int64_t worst_max;
  smoe_document_loss *worst; /**< [worst_max] by falling mean loss; the earlier one where equal */

  smoe_document_loss current; /**< document of the token that comes next */
  int64_t *end;               /**< ends of documents end_first .. */
  int64_t end_first, n_ends;
} smoe_breakdown;

/** Set up for a split; worst: how many of the worst documents to remember. Errors: SMOE_ERR_IO, SMOE_ERR_FORMAT. */
smoe_status smoe_breakdown_begin(smoe_breakdown *b, const smoe_corpus *corpus, smoe_split split, int n_moe,
                                 int n_experts, int64_t worst);

/** Add the tokens of a pass; passes come in order. Errors: as begin. */
smoe_status smoe_breakdown_add(smoe_breakdown *b, const smoe_evaluated *tokens);

/** Complete the last document. */
void smoe_breakdown_end(smoe_breakdown *b);

/** Give it back; fine for a zeroed one. */
void smoe_breakdown_release(smoe_breakdown *b);

/** Class of a token that stands so often in training. */
int smoe_breakdown_class(int64_t count);

#endif
