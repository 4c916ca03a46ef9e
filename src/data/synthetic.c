/* Tokens for measurements: where only speed counts, any text will do if its frequencies are like real ones. */
#include <math.h>
#include <string.h>

#include "stablemoe/corpus.h"
#include "stablemoe/random.h"

void smoe_corpus_synthetic(smoe_corpus *corpus, int vocabulary, int64_t n_tokens) {
  *corpus = (smoe_corpus){.path = "random tokens", .vocabulary = vocabulary, .end_id = -1};
  for (int s = 0; s < SMOE_SPLITS; s++) corpus->n_tokens[s] = n_tokens;
}

void smoe_corpus_synthetic_read(const smoe_corpus *corpus, int64_t first, size_t n, int32_t *tokens) {
  /* Zipf's law with exponent 1: rank r has a share of 1 / r, so log-uniform ranks. */
  const double range = log((double)corpus->vocabulary);
  for (size_t i = 0; i < n; i++) {
    const double u = smoe_random_uniform(0, SMOE_RANDOM_TEST, 0, (uint64_t)first + i);
    const int32_t id = (int32_t)exp(u * range) - 1;
    tokens[i] = id < corpus->vocabulary ? id : corpus->vocabulary - 1;
  }
}
