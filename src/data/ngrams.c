#include "ngrams.h"

#include <stdlib.h>

#include "stablemoe/arena.h"

/** A sequence and the length of its n-grams, for comparisons. */
typedef struct grams {
  const int32_t *element;
  size_t n;
} grams;

static int compare(const int32_t *a, const int32_t *b, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (a[i] != b[i]) return a[i] > b[i] ? 1 : -1;
  return 0;
}

static int by_gram(const void *a, const void *b, void *context) {
  const grams *g = context;
  return compare(g->element + *(const uint32_t *)a, g->element + *(const uint32_t *)b, g->n);
}

int64_t smoe_ngram_count(size_t n_elements, size_t n) {
  return n_elements >= n ? (int64_t)(n_elements - n + 1) : 0;
}

/** First places of all n-grams, sorted by the n-grams. */
static uint32_t *sorted(const int32_t *element, size_t count, size_t n) {
  uint32_t *place = smoe_alloc(count * sizeof *place);
  grams context = {element, n};
  for (size_t i = 0; i < count; i++) place[i] = (uint32_t)i;
  qsort_r(place, count, sizeof *place, by_gram, &context);
  return place;
}

int64_t smoe_ngram_matches(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b, size_t n) {
  const size_t count_a = (size_t)smoe_ngram_count(n_a, n), count_b = (size_t)smoe_ngram_count(n_b, n);
  if (count_a == 0 || count_b == 0) return 0;
  uint32_t *in_a = sorted(a, count_a, n), *in_b = sorted(b, count_b, n);
  int64_t matches = 0;
  for (size_t i = 0, j = 0; i < count_a && j < count_b;) {
    const int order = compare(a + in_a[i], b + in_b[j], n);
    matches += order == 0;
    i += order <= 0;
    j += order >= 0;
  }
  smoe_free(in_a);
  smoe_free(in_b);
  return matches;
}
