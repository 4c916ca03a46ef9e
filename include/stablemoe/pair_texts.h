/** Pairs of a split as what a translation is made of and compared with: sources as ids, references as text.
 *  All functions are Local.
 */
#ifndef STABLEMOE_PAIR_TEXTS_H
#define STABLEMOE_PAIR_TEXTS_H

#include "stablemoe/pairs.h"
#include "stablemoe/tokenizer.h"

/** Sources of some pairs, as the corpus has them: tag and end included. */
typedef struct smoe_pair_sources {
  int64_t n;
  int64_t *pair;   /**< [n] their numbers in the split */
  int32_t **ids;   /**< [n] */
  int32_t *length; /**< [n] */
} smoe_pair_sources;

/** Read the sources of a split.
 *
 *  most    in  pairs at most; 0: all
 *  spread  in  evenly over the split, so that all directions are among them; else the first ones
 */
void smoe_pair_sources_read(smoe_pair_sources *sources, const smoe_pairs *pairs, smoe_split split,
                            int64_t most, bool spread);

/** The longest of them, in tokens; 1 where there is none. */
size_t smoe_pair_sources_longest(const smoe_pair_sources *sources);

/** Free them; fine for a zeroed one. */
void smoe_pair_sources_release(smoe_pair_sources *sources);

/** The reference of pair i as text, in memory of smoe_alloc. Errors: SMOE_ERR_FORMAT. */
smoe_status smoe_pair_reference(const smoe_pairs *pairs, const smoe_tokenizer *tokenizer, smoe_split split,
                                int64_t i, char **text);

#endif
