/** Counting n-grams that two sequences have in common. */
#ifndef STABLEMOE_DATA_NGRAMS_H
#define STABLEMOE_DATA_NGRAMS_H

#include <stddef.h>
#include <stdint.h>

/** Return the number of n-grams of a that b has, too: each as often as in the sequence that has it less often.
 *
 *  Local. a, b  in  [n_a], [n_b]
 *  Cost: n (n_a log n_a + n_b log n_b) comparisons of elements at most.
 */
int64_t smoe_ngram_matches(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b, size_t n);

/** Return the number of n-grams of a sequence. Local. */
int64_t smoe_ngram_count(size_t n_elements, size_t n);

#endif
