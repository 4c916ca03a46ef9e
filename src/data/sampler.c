#include "stablemoe/arena.h"
#include "stablemoe/corpus.h"
#include "stablemoe/random.h"

int64_t smoe_corpus_sequences(const smoe_corpus *corpus, smoe_split split, int64_t context) {
  return corpus->n_tokens[split] > 0 ? (corpus->n_tokens[split] - 1) / context : 0;
}

int64_t smoe_sampler_sequence(uint64_t seed, int64_t n_sequences, int64_t position) {
  if (n_sequences < 1) SMOE_PANIC(SMOE_ERR_BUG, "no sequence to sample from");
  const uint32_t epoch = (uint32_t)(position / n_sequences);
  return (int64_t)smoe_random_permute(seed, SMOE_RANDOM_ORDER, epoch, (uint64_t)n_sequences,
                                      (uint64_t)(position % n_sequences));
}

void smoe_corpus_sequence(const smoe_corpus *corpus, smoe_split split, int64_t s, int64_t context,
                          int32_t *input, int32_t *target) {
  const int64_t first = s * context;
  int64_t n = corpus->n_tokens[split] - first;
  if (n < 0) n = 0;
  if (n > context + 1) n = context + 1;
  int32_t *tokens = smoe_alloc(((size_t)context + 1) * sizeof *tokens);
  if (n > 0) smoe_corpus_read(corpus, split, first, (size_t)n, tokens);
  for (int64_t i = 0; i < context; i++) {
    input[i] = i < n ? tokens[i] : -1;
    target[i] = i + 1 < n ? tokens[i + 1] : -1;
  }
  smoe_free(tokens);
}
