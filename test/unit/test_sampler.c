/* Each epoch visits every sequence once, in an order of its own, whatever the batch. */
#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/corpus.h"

static void check_epochs(int64_t n) {
  int *seen = smoe_alloc((size_t)n * sizeof *seen);
  for (int64_t epoch = 0; epoch < 3; epoch++) {
    int64_t n_outside = 0;
    for (int64_t i = 0; i < n; i++) {
      const int64_t s = smoe_sampler_sequence(7, n, epoch * n + i);
      if (s >= 0 && s < n)
        seen[s]++;
      else
        n_outside++;
    }
    CHECK(n_outside == 0, "n %lld: %lld sequences outside", (long long)n, (long long)n_outside);
    int64_t n_wrong = 0;
    for (int64_t s = 0; s < n; s++) n_wrong += seen[s] != epoch + 1;
    CHECK(n_wrong == 0, "n %lld, epoch %lld: %lld sequences not visited once", (long long)n, (long long)epoch,
          (long long)n_wrong);
  }
  smoe_free(seen);
}

static void check_order(void) {
  const int64_t n = 1000;
  int same_epoch = 0, same_seed = 0, in_order = 0;
  for (int64_t i = 0; i < n; i++) {
    same_epoch += smoe_sampler_sequence(7, n, i) == smoe_sampler_sequence(7, n, n + i);
    same_seed += smoe_sampler_sequence(7, n, i) == smoe_sampler_sequence(8, n, i);
    in_order += smoe_sampler_sequence(7, n, i) == i;
  }
  CHECK(same_epoch < 20, "%d of 1000 places equal in two epochs", same_epoch);
  CHECK(same_seed < 20, "%d of 1000 places equal under two seeds", same_seed);
  CHECK(in_order < 20, "%d of 1000 places in their own order", in_order);
}

/* Every target is the token behind its input, up to the last one of a split that ends within a sequence. */
static void check_targets(void) {
  enum { CONTEXT = 10, TOKENS = 26 };
  smoe_corpus corpus;
  int32_t tokens[TOKENS], input[CONTEXT], target[CONTEXT];
  smoe_corpus_synthetic(&corpus, 50, INT64_C(1) << 20);
  corpus.n_tokens[SMOE_TRAIN] = TOKENS;
  smoe_corpus_read(&corpus, SMOE_TRAIN, 0, TOKENS, tokens);
  for (int64_t s = 0; s < 3; s++) {
    smoe_corpus_sequence(&corpus, SMOE_TRAIN, s, CONTEXT, input, target);
    for (int64_t i = 0; i < CONTEXT; i++) {
      const int64_t at = s * CONTEXT + i;
      CHECK(input[i] == (at < TOKENS ? tokens[at] : -1), "sequence %lld: input %lld", (long long)s,
            (long long)i);
      CHECK(target[i] == (at + 1 < TOKENS ? tokens[at + 1] : -1), "sequence %lld: target %lld", (long long)s,
            (long long)i);
    }
  }
}

int main(void) {
  const int64_t sizes[] = {1, 2, 3, 5, 64, 65, 1000};
  for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) check_epochs(sizes[n]);
  check_order();
  check_targets();
  smoe_corpus corpus = {.n_tokens = {101, 100, 5}};
  CHECK(smoe_corpus_sequences(&corpus, SMOE_TRAIN, 10) == 10, "101 tokens are 10 sequences of 10 targets");
  CHECK(smoe_corpus_sequences(&corpus, SMOE_VALID, 10) == 9, "100 tokens are 9 sequences of 10 targets");
  CHECK(smoe_corpus_sequences(&corpus, SMOE_TEST, 10) == 0, "5 tokens are no sequence of 10 targets");
  return test_verdict("test_sampler");
}
