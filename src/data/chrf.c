#include "stablemoe/chrf.h"

#include <stdio.h>

#include "ngrams.h"
#include "stablemoe/arena.h"
#include "unicode.h"

/** Code points of a text without its blanks; memory of smoe_alloc. */
static int32_t *points_of(const char *text, size_t bytes, size_t *n) {
  int32_t *point = smoe_alloc((bytes + 1) * sizeof *point);
  const size_t all = smoe_unicode_decode(text, bytes, point);
  *n = 0;
  for (size_t i = 0; i < all; i++)
    if (!smoe_unicode_is_blank(point[i])) point[(*n)++] = point[i];
  return point;
}

void smoe_chrf_add(smoe_chrf *chrf, const char *reference, size_t reference_bytes, const char *hypothesis,
                   size_t hypothesis_bytes) {
  size_t n, m;
  int32_t *a = points_of(hypothesis, hypothesis_bytes, &n), *b = points_of(reference, reference_bytes, &m);
  chrf->n_segments++;
  for (size_t order = 1; order <= SMOE_CHRF_ORDERS; order++) {
    const int64_t in_reference = smoe_ngram_count(m, order);
    /* Those that no n-gram of the reference could match do not count. */
    chrf->hypothesis[order - 1] += in_reference > 0 ? smoe_ngram_count(n, order) : 0;
    chrf->reference[order - 1] += in_reference;
    chrf->match[order - 1] += smoe_ngram_matches(a, n, b, m, order);
  }
  smoe_free(a);
  smoe_free(b);
}

void smoe_chrf_merge(smoe_chrf *chrf, const smoe_chrf *other) {
  chrf->n_segments += other->n_segments;
  for (int i = 0; i < SMOE_CHRF_ORDERS; i++) {
    chrf->hypothesis[i] += other->hypothesis[i];
    chrf->reference[i] += other->reference[i];
    chrf->match[i] += other->match[i];
  }
}

double smoe_chrf_score(const smoe_chrf *chrf) {
  const double factor = 4; /* beta squared */
  double precision = 0, recall = 0;
  int n = 0; /* orders that both sides have n-grams of */
  for (int i = 0; i < SMOE_CHRF_ORDERS; i++) {
    if (chrf->hypothesis[i] == 0 || chrf->reference[i] == 0) continue;
    precision += (double)chrf->match[i] / (double)chrf->hypothesis[i];
    recall += (double)chrf->match[i] / (double)chrf->reference[i];
    n++;
  }
  if (n == 0 || precision + recall == 0) return 0;
  precision /= n;
  recall /= n;
  return 100 * ((1 + factor) * precision * recall / (factor * precision + recall));
}

void smoe_chrf_signature(char text[SMOE_SIGNATURE_BYTES]) {
  snprintf(text, SMOE_SIGNATURE_BYTES, "nrefs:1|case:mixed|eff:yes|nc:%d|nw:0|space:no", SMOE_CHRF_ORDERS);
}
