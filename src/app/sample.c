#include "sample.h"

#include <math.h>
#include <stdlib.h>

#include "stablemoe/arena.h"
#include "stablemoe/random.h"

static int falling(const void *left, const void *right) {
  const double a = *(const double *)left, b = *(const double *)right;
  return a < b ? 1 : a > b ? -1 : 0;
}

static double weight(double logit, double max, const smoe_sampling *sampling) {
  return exp((logit - max) / sampling->temperature);
}

/* The smallest logit that top_k and top_p leave; -inf where neither takes any away. */
static double threshold(const smoe_real *logits, int n, double max, const smoe_sampling *sampling) {
  int left = sampling->top_k > 0 && sampling->top_k < n ? (int)sampling->top_k : n;
  if (left == n && !(sampling->top_p < 1)) return -INFINITY;
  double *sorted = smoe_alloc((size_t)n * sizeof *sorted);
  for (int i = 0; i < n; i++) sorted[i] = (double)logits[i];
  qsort(sorted, (size_t)n, sizeof *sorted, falling);
  if (sampling->top_p < 1) {
    double sum = 0, before = 0;
    for (int i = 0; i < left; i++) sum += weight(sorted[i], max, sampling);
    for (int i = 0; i < left; i++) {
      before += weight(sorted[i], max, sampling);
      if (before >= sampling->top_p * sum) left = i + 1;
    }
  }
  const double limit = sorted[left - 1];
  smoe_free(sorted);
  return limit;
}

/* The likeliest; -1 where there is none. */
static int32_t likeliest(const smoe_real *logits, int n) {
  int32_t best = -1;
  for (int i = 0; i < n; i++) {
    if (isnan(logits[i])) return -1;
    if (isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = i;
  }
  return best;
}

int32_t smoe_sample(const smoe_real *logits, int n, const smoe_sampling *sampling, int64_t number,
                    int64_t position) {
  const int32_t best = likeliest(logits, n);
  if (best < 0 || sampling->temperature == 0) return best;
  const double max = (double)logits[best], limit = threshold(logits, n, max, sampling);
  double sum = 0;
  for (int i = 0; i < n; i++)
    if ((double)logits[i] >= limit) sum += weight((double)logits[i], max, sampling);
  double left = sum * smoe_random_uniform((uint64_t)sampling->seed, SMOE_RANDOM_SAMPLE, (uint32_t)number,
                                          (uint64_t)position);
  for (int i = 0; i < n; i++) {
    if ((double)logits[i] < limit) continue;
    left -= weight((double)logits[i], max, sampling);
    if (left <= 0) return i;
  }
  return best;
}
