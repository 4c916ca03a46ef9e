#include "stablemoe/pair_texts.h"

#include "stablemoe/arena.h"

void smoe_pair_sources_read(smoe_pair_sources *s, const smoe_pairs *pairs, smoe_split split, int64_t most,
                            bool spread) {
  const int64_t all = pairs->split[split].n_pairs;
  *s = (smoe_pair_sources){.n = most > 0 && most < all ? most : all};
  s->pair = smoe_alloc((size_t)(s->n + 1) * sizeof *s->pair);
  s->ids = smoe_alloc((size_t)(s->n + 1) * sizeof *s->ids);
  s->length = smoe_alloc((size_t)(s->n + 1) * sizeof *s->length);
  for (int64_t i = 0; i < s->n; i++) {
    const int64_t pair = spread ? i * all / s->n : i;
    s->pair[i] = pair;
    s->length[i] = smoe_pairs_length(pairs, split, SMOE_SIDE_SOURCE, pair);
    s->ids[i] = smoe_alloc((size_t)s->length[i] * sizeof **s->ids);
    smoe_pairs_read(pairs, split, SMOE_SIDE_SOURCE, pair, s->ids[i]);
  }
}

size_t smoe_pair_sources_longest(const smoe_pair_sources *s) {
  int32_t longest = 1;
  for (int64_t i = 0; i < s->n; i++)
    if (s->length[i] > longest) longest = s->length[i];
  return (size_t)longest;
}

void smoe_pair_sources_release(smoe_pair_sources *s) {
  for (int64_t i = 0; s->ids && i < s->n; i++) smoe_free(s->ids[i]);
  smoe_free(s->pair);
  smoe_free(s->ids);
  smoe_free(s->length);
  *s = (smoe_pair_sources){0};
}

smoe_status smoe_pair_reference(const smoe_pairs *pairs, const smoe_tokenizer *tokenizer, smoe_split split,
                                int64_t i, char **text) {
  const size_t n = (size_t)smoe_pairs_target_length(pairs, split, i);
  int32_t *ids = smoe_alloc((n + 1) * sizeof *ids);
  smoe_pairs_read(pairs, split, SMOE_SIDE_TARGET, i, ids);
  const smoe_status status = smoe_tokenizer_decode(tokenizer, ids, n - 1, text); /* without end */
  smoe_free(ids);
  return status;
}
