#include "k_means.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/kernel.h"
#include "stablemoe/random.h"

typedef struct clusters {
  const smoe_real *x; /* [N, C] */
  size_t n, c;
  int k;
  smoe_real *mean;  /* [k, C] */
  double *sum;      /* [k, C] */
  double *square;   /* [k] half the squared length of each mean */
  double *distance; /* [N] squared, to the nearest mean */
  int64_t *size;    /* [k] */
} clusters;

static double squared_distance(const smoe_real *a, const smoe_real *b, size_t c) {
  double sum = 0;
  for (size_t j = 0; j < c; j++) {
    const double d = (double)a[j] - (double)b[j];
    sum += d * d;
  }
  return sum;
}

/* k-means++: each further mean is a row, drawn with its squared distance to the means so far. */
static void start(clusters *s, uint64_t seed, uint32_t stream) {
  for (size_t i = 0; i < s->n; i++) s->distance[i] = INFINITY;
  for (int j = 0; j < s->k; j++) {
    const double u = smoe_random_uniform(seed, SMOE_RANDOM_INIT, stream, (uint64_t)j);
    size_t row = (size_t)(u * (double)s->n);
    if (j > 0) {
      double total = 0;
      for (size_t i = 0; i < s->n; i++) total += s->distance[i];
      double left = u * total;
      for (row = 0; row + 1 < s->n && left >= s->distance[row]; row++) left -= s->distance[row];
    }
    memcpy(s->mean + (size_t)j * s->c, s->x + row * s->c, s->c * sizeof *s->mean);
#pragma omp parallel for
    for (size_t i = 0; i < s->n; i++)
      s->distance[i] =
          fmin(s->distance[i], squared_distance(s->x + i * s->c, s->mean + (size_t)j * s->c, s->c));
  }
}

/* Each row to its nearest mean; returns whether any changed. */
static bool assign(clusters *s, int32_t *cluster) {
  const size_t c = s->c;
  int changed = 0;
  for (int j = 0; j < s->k; j++) s->square[j] = smoe_sum_squares(s->mean + (size_t)j * c, c) / 2;
#pragma omp parallel for reduction(| : changed)
  for (size_t i = 0; i < s->n; i++) {
    /* |x - m|^2 / 2 = |x|^2 / 2 - (<x, m> - |m|^2 / 2) */
    int32_t best = 0;
    double nearest = -INFINITY;
    for (int j = 0; j < s->k; j++) {
      const double near = (double)smoe_dot(s->x + i * c, s->mean + (size_t)j * c, c) - s->square[j];
      if (near > nearest) {
        nearest = near;
        best = j;
      }
    }
    changed |= cluster[i] != best;
    cluster[i] = best;
  }
  return changed;
}

/* A cluster without rows keeps its mean: that happens only where fewer rows differ than there are clusters,
 * or nearly so. */
static void move(clusters *s, const int32_t *cluster) {
  const size_t c = s->c, k = (size_t)s->k;
  memset(s->sum, 0, k * c * sizeof *s->sum);
  memset(s->size, 0, k * sizeof *s->size);
  for (size_t i = 0; i < s->n; i++) {
    double *sum = s->sum + (size_t)cluster[i] * c;
    s->size[cluster[i]]++;
    for (size_t d = 0; d < c; d++) sum[d] += (double)s->x[i * c + d];
  }
  for (size_t j = 0; j < k; j++)
    for (size_t d = 0; d < c && s->size[j] > 0; d++)
      s->mean[j * c + d] = (smoe_real)(s->sum[j * c + d] / (double)s->size[j]);
}

void smoe_k_means(int32_t *cluster, const smoe_real *x, size_t n, size_t c, int k, uint64_t seed,
                  uint32_t stream) {
  const size_t means = (size_t)k * c;
  clusters s = {.x = x, .n = n, .c = c, .k = k};
  if (n == 0) return;
  s.mean = smoe_alloc(means * sizeof *s.mean);
  s.sum = smoe_alloc(means * sizeof *s.sum);
  s.square = smoe_alloc((size_t)k * sizeof *s.square);
  s.distance = smoe_alloc(n * sizeof *s.distance);
  s.size = smoe_alloc((size_t)k * sizeof *s.size);
  start(&s, seed, stream);
  for (size_t i = 0; i < n; i++) cluster[i] = -1;
  for (int round = 0; round < SMOE_K_MEANS_ROUNDS && assign(&s, cluster); round++) move(&s, cluster);
  smoe_free(s.mean);
  smoe_free(s.sum);
  smoe_free(s.square);
  smoe_free(s.distance);
  smoe_free(s.size);
}
