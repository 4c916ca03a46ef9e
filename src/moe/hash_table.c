#include "hash_table.h"

#include <stdlib.h>

#include "k_means.h"
#include "stablemoe/arena.h"
#include "stablemoe/random.h"

/* Token ids with their counts, most frequent first, the lower id on ties. */
typedef struct ranked {
  int64_t count;
  size_t id;
} ranked;

static int compare_ranked(const void *left, const void *right) {
  const ranked *a = left, *b = right;
  if (a->count != b->count) return a->count > b->count ? -1 : 1;
  return a->id < b->id ? -1 : 1;
}

/* In memory of smoe_alloc. */
static ranked *rank_tokens(const int64_t *count, size_t v) {
  ranked *rank = smoe_alloc(v * sizeof *rank);
  for (size_t i = 0; i < v; i++) rank[i] = (ranked){count[i], i};
  qsort(rank, v, sizeof *rank, compare_ranked);
  return rank;
}

static int32_t draw(int n_experts, uint64_t seed, uint32_t stream, uint64_t index) {
  return (int32_t)(smoe_random_bits(seed, SMOE_RANDOM_INIT, stream, index) % (uint64_t)n_experts);
}

void smoe_hash_random(smoe_real *table, size_t n, int n_experts, uint64_t seed, uint32_t stream) {
  for (size_t i = 0; i < n; i++) table[i] = (smoe_real)draw(n_experts, seed, stream, i);
}

void smoe_hash_balanced(smoe_real *table, const int64_t *count, size_t v, int n_experts, uint64_t seed,
                        uint32_t stream) {
  ranked *rank = rank_tokens(count, v);
  int64_t *load = smoe_alloc((size_t)n_experts * sizeof *load);
  for (size_t k = 0; k < v; k++) {
    const size_t id = rank[k].id;
    int32_t least = 0;
    if (rank[k].count == 0) {
      table[id] = (smoe_real)draw(n_experts, seed, stream, id);
      continue;
    }
    for (int32_t e = 1; e < n_experts; e++)
      if (load[e] < load[least]) least = e;
    load[least] += rank[k].count;
    table[id] = (smoe_real)least;
  }
  smoe_free(rank);
  smoe_free(load);
}

void smoe_hash_clustered(smoe_real *table, const smoe_real *embedding, size_t v, size_t c, int n_experts,
                         uint64_t seed, uint32_t stream) {
  int32_t *cluster = smoe_alloc(v * sizeof *cluster);
  smoe_k_means(cluster, embedding, v, c, n_experts, seed, stream);
  for (size_t i = 0; i < v; i++) table[i] = (smoe_real)cluster[i];
  smoe_free(cluster);
}

void smoe_hash_dispersed(smoe_real *table, const int64_t *count, const smoe_real *embedding, size_t v,
                         size_t c, int n_experts, uint64_t seed, uint32_t stream) {
  const size_t e = (size_t)n_experts;
  int32_t *cluster = smoe_alloc(v * sizeof *cluster);
  int64_t *load = smoe_alloc(e * sizeof *load), *members = smoe_alloc(e * e * sizeof *members);
  smoe_k_means(cluster, embedding, v, c, n_experts, seed, stream);
  ranked *rank = rank_tokens(count, v);
  for (size_t k = 0; k < v; k++) {
    const size_t id = rank[k].id;
    int64_t *here = members + (size_t)cluster[id] * e; /* of this cluster, by expert */
    size_t best = 0;
    for (size_t j = 1; j < e; j++)
      if (here[j] < here[best] || (here[j] == here[best] && load[j] < load[best])) best = j;
    here[best]++;
    load[best] += rank[k].count;
    table[id] = (smoe_real)best;
  }
  smoe_free(cluster);
  smoe_free(load);
  smoe_free(members);
  smoe_free(rank);
}

int32_t smoe_hash_pair(int32_t first, int32_t second, int vocabulary, int n_experts, uint64_t seed,
                       uint32_t stream) {
  return draw(n_experts, seed, stream, (uint64_t)first * (uint64_t)vocabulary + (uint64_t)second);
}
