#include "statistics.h"

#include <math.h>
#include <stdbool.h>

#include "stablemoe/arena.h"

/* An empty slot has n == 0. */
typedef struct smoe_pair_count {
  int32_t first, second;
  int64_t n;
} pair_count;

enum { FIRST_SLOTS = 1 << 12 };

/** The slot of a pair, or the empty one where it belongs. n_slots is a power of two. */
static pair_count *slot_of(pair_count *pair, size_t n_slots, int32_t first, int32_t second) {
  uint64_t hash = ((uint64_t)(uint32_t)first << 32 | (uint32_t)second) * UINT64_C(0x9E3779B97F4A7C15);
  hash ^= hash >> 32;
  size_t i = (size_t)hash & (n_slots - 1);
  while (pair[i].n && (pair[i].first != first || pair[i].second != second)) i = (i + 1) & (n_slots - 1);
  return &pair[i];
}

static void grow(smoe_statistics *statistics) {
  const size_t n_slots = statistics->n_slots ? 2 * statistics->n_slots : FIRST_SLOTS;
  pair_count *pair = smoe_alloc(n_slots * sizeof *pair);
  for (size_t i = 0; i < statistics->n_slots; i++) {
    const pair_count *old = &statistics->pair[i];
    if (old->n) *slot_of(pair, n_slots, old->first, old->second) = *old;
  }
  smoe_free(statistics->pair);
  statistics->pair = pair;
  statistics->n_slots = n_slots;
}

void smoe_statistics_open(smoe_statistics *statistics, int vocabulary) {
  *statistics = (smoe_statistics){.vocabulary = vocabulary, .last = -1, .previous = -1};
  statistics->count = smoe_alloc((size_t)vocabulary * sizeof *statistics->count);
  grow(statistics);
}

void smoe_statistics_close(smoe_statistics *statistics) {
  smoe_free(statistics->count);
  smoe_free(statistics->pair);
  *statistics = (smoe_statistics){0};
}

void smoe_statistics_train(smoe_statistics *statistics, const int32_t *tokens, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (statistics->last >= 0) {
      if (2 * (statistics->n_pairs + 1) > statistics->n_slots) grow(statistics);
      pair_count *pair = slot_of(statistics->pair, statistics->n_slots, statistics->last, tokens[i]);
      statistics->n_pairs += pair->n == 0;
      *pair = (pair_count){statistics->last, tokens[i], pair->n + 1};
    }
    statistics->count[tokens[i]]++;
    statistics->last = tokens[i];
  }
  statistics->n_tokens += (int64_t)n;
}

void smoe_statistics_valid(smoe_statistics *statistics, const int32_t *tokens, size_t n) {
  const double V = statistics->vocabulary;
  for (size_t i = 0; i < n; i++) {
    const int32_t a = statistics->previous, b = tokens[i];
    statistics->previous = b;
    if (a < 0) continue;
    /* The last training token was followed by none. */
    const int64_t n_after = statistics->count[a] - (a == statistics->last);
    const int64_t n_pair = slot_of(statistics->pair, statistics->n_slots, a, b)->n;
    statistics->unigram_sum -= log((double)(statistics->count[b] + 1) / ((double)statistics->n_tokens + V));
    statistics->bigram_sum -= log((double)(n_pair + 1) / ((double)n_after + V));
    statistics->n_targets++;
  }
}

/** Return true if there was something to count, and something to predict. */
static bool known(const smoe_statistics *statistics) {
  return statistics->n_tokens > 0 && statistics->n_targets > 0;
}

double smoe_statistics_unigram(const smoe_statistics *statistics) {
  return known(statistics) ? statistics->unigram_sum / (double)statistics->n_targets : NAN;
}

double smoe_statistics_bigram(const smoe_statistics *statistics) {
  return known(statistics) ? statistics->bigram_sum / (double)statistics->n_targets : NAN;
}
