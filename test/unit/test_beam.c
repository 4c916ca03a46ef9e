/* Beam search against greedy search and against all translations there are, for a made-up model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/model/beam.h"
#include "harness.h"
#include "stablemoe/arena.h"

enum { V = 4, END = 1, T = 5, ALL = 121 }; /* 1 + 3 + 9 + 27 that end, 81 that are cut */

/* The model: logits are a function of the tokens so far. */
static void logits_of(const int32_t *token, size_t n, smoe_real *logits) {
  uint64_t state = 1469598103934665603u;
  for (size_t i = 0; i < n; i++) state = (state ^ (uint64_t)(token[i] + 1)) * 1099511628211u;
  for (int v = 0; v < V; v++) {
    state = (state ^ (uint64_t)v) * 1099511628211u;
    logits[v] = (smoe_real)((double)(state >> 40) / (1 << 24) * 3 - (v == END ? 1.0 : 0));
  }
}

static double log_p_of(const smoe_real *logits, int v) {
  double sum = 0;
  for (int i = 0; i < V; i++) sum += exp((double)logits[i]);
  return (double)logits[v] - log(sum);
}

static void search(smoe_beam *beam, int width, double penalty) {
  const smoe_translate_options options = {.beam = width, .length_penalty = penalty, .length_max = T};
  smoe_real *logits = smoe_alloc((size_t)width * V * sizeof *logits);
  int32_t *from = smoe_alloc((size_t)width * sizeof *from);
  smoe_beam_create(beam, &options, END);
  smoe_beam_begin(beam, true);
  CHECK(smoe_beam_last(beam, 0) == END, "the decoder begins with end");
  while (!beam->finished) {
    for (size_t k = 0; k < beam->n_live; k++) logits_of(beam->token + k * T, beam->step, logits + k * V);
    smoe_beam_step(beam, logits, V, from);
  }
  smoe_free(logits);
  smoe_free(from);
}

/* Beam 1: the likeliest token each time. */
static void test_greedy(void) {
  smoe_beam beam;
  search(&beam, 1, 1);
  int32_t token[T];
  smoe_real logits[V];
  double log_p = 0;
  size_t n = 0;
  for (bool ended = false; !ended && n < T - 1;) {
    int best = 0;
    logits_of(token, n, logits);
    for (int v = 1; v < V; v++)
      if (logits[v] > logits[best]) best = v;
    log_p += log_p_of(logits, best);
    ended = best == END;
    if (!ended) token[n++] = best;
  }
  CHECK(beam.n_done == 1 && beam.done[0].n == n && memcmp(beam.done_token, token, n * sizeof *token) == 0);
  CHECK(fabs(beam.done[0].log_p - log_p) <= 1e-9, "%g, expected %g", beam.done[0].log_p, log_p);
  smoe_beam_destroy(&beam);
}

/* Every translation there is: scores, and the best one's tokens. */
typedef struct all {
  double penalty, score[ALL];
  size_t n, best_length;
  int32_t best[T];
} all;

static void keep(all *a, const int32_t *token, size_t n, double log_p) {
  a->score[a->n] = log_p / pow((double)(n + 1), a->penalty);
  bool best = true;
  for (size_t i = 0; i < a->n; i++) best &= a->score[a->n] > a->score[i];
  if (best) memcpy(a->best, token, (a->best_length = n) * sizeof *token);
  a->n++;
}

static void try(all *a, int32_t *token, size_t n, double log_p) {
  smoe_real logits[V];
  if (n == T - 1) {
    keep(a, token, n, log_p);
    return;
  }
  logits_of(token, n, logits);
  for (int v = 0; v < V; v++) {
    const double p = log_p + log_p_of(logits, v);
    token[n] = v;
    if (v == END)
      keep(a, token, n, p);
    else
      try(a, token, n + 1, p);
  }
}

static int falling(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x < y) - (x > y);
}

/* A beam as wide as all of them finds them all, in order. */
static void test_exhaustive(double penalty) {
  smoe_beam beam;
  int32_t token[T];
  all a = {.penalty = penalty};
  try(&a, token, 0, 0);
  CHECK(a.n == ALL, "%zu", a.n);
  qsort(a.score, a.n, sizeof *a.score, falling);
  search(&beam, ALL, penalty);
  CHECK(beam.n_done == ALL, "%zu found", beam.n_done);
  for (size_t i = 0; i < beam.n_done; i++)
    CHECK(fabs(beam.done[i].score - a.score[i]) <= 1e-9, "%zu: %g, expected %g", i, beam.done[i].score,
          a.score[i]);
  CHECK(beam.done[0].n == a.best_length &&
        memcmp(beam.done_token, a.best, a.best_length * sizeof *a.best) == 0);
  smoe_beam_destroy(&beam);
}

int main(void) {
  test_greedy();
  test_exhaustive(0);
  test_exhaustive(1);
  test_exhaustive(2.5);
  return test_verdict("beam");
}
