#include "beam.h"

#include <math.h>
#include <string.h>

typedef struct candidate {
  double log_p;
  int32_t from, token;
} candidate;

void smoe_beam_create(smoe_beam *beam, const smoe_translate_options *options, int32_t end) {
  const size_t k = (size_t)options->beam, t = options->length_max;
  *beam = (smoe_beam){.width = k, .length_max = t, .penalty = options->length_penalty, .end = end};
  beam->token = smoe_alloc(k * t * sizeof *beam->token);
  beam->next = smoe_alloc(k * t * sizeof *beam->next);
  beam->done_token = smoe_alloc(k * t * sizeof *beam->done_token);
  beam->log_p = smoe_alloc(k * sizeof *beam->log_p);
  beam->done = smoe_alloc(k * sizeof *beam->done);
}

void smoe_beam_destroy(smoe_beam *beam) {
  smoe_free(beam->token);
  smoe_free(beam->next);
  smoe_free(beam->done_token);
  smoe_free(beam->log_p);
  smoe_free(beam->done);
}

void smoe_beam_begin(smoe_beam *beam, bool active) {
  beam->step = 0;
  beam->n_live = 1;
  beam->n_done = 0;
  beam->log_p[0] = 0;
  beam->finished = !active;
}

int32_t smoe_beam_last(const smoe_beam *beam, size_t k) {
  if (beam->finished) return -1;
  if (beam->step == 0) return beam->end; /* the decoder's input begins with end */
  return k < beam->n_live ? beam->token[k * beam->length_max + beam->step - 1] : -1;
}

static double log_sum_exp(const smoe_real *logits, size_t v) {
  double most = -INFINITY, sum = 0;
  for (size_t i = 0; i < v; i++) most = fmax(most, (double)logits[i]);
  for (size_t i = 0; i < v; i++) sum += exp((double)logits[i] - most);
  return most + log(sum);
}

/* Put a candidate among the best [room], falling; an equal one that came before stays before. */
static void insert(candidate *best, size_t *n, size_t room, candidate c) {
  size_t at = *n;
  while (at > 0 && c.log_p > best[at - 1].log_p) at--;
  if (at == room) return;
  if (*n < room) ++*n;
  memmove(best + at + 1, best + at, (*n - 1 - at) * sizeof *best);
  best[at] = c;
}

static double score_of(const smoe_beam *beam, double log_p, size_t length) {
  return log_p / pow((double)length, beam->penalty);
}

/* A hypothesis that ends, among the finished ones by its score. */
static void finish(smoe_beam *beam, const int32_t *token, size_t n, double log_p) {
  const size_t t = beam->length_max;
  const smoe_hypothesis new = {.n = n, .log_p = log_p, .score = score_of(beam, log_p, n + 1)};
  size_t at = beam->n_done;
  while (at > 0 && new.score > beam->done[at - 1].score) at--;
  if (at == beam->width) return;
  if (beam->n_done < beam->width) beam->n_done++;
  for (size_t i = beam->n_done - 1; i > at; i--) {
    beam->done[i] = beam->done[i - 1];
    memcpy(beam->done_token + i * t, beam->done_token + (i - 1) * t, t * sizeof *token);
  }
  beam->done[at] = new;
  memcpy(beam->done_token + at * t, token, n * sizeof *token);
}

/* The best continuations of all live hypotheses. */
static size_t best_of(const smoe_beam *beam, const smoe_real *logits, size_t v, candidate *best,
                      size_t room) {
  size_t n = 0;
  for (size_t k = 0; k < beam->n_live; k++) {
    const smoe_real *row = logits + k * v;
    const double norm = log_sum_exp(row, v);
    for (size_t i = 0; i < v; i++) {
      const double log_p = beam->log_p[k] + (double)row[i] - norm;
      if (n == room && !(log_p > best[n - 1].log_p)) continue;
      insert(best, &n, room, (candidate){log_p, (int32_t)k, (int32_t)i});
    }
  }
  return n;
}

void smoe_beam_step(smoe_beam *beam, const smoe_real *logits, size_t vocabulary, int32_t *from) {
  const size_t k = beam->width, t = beam->length_max, room = 2 * k;
  for (size_t i = 0; i < k; i++) from[i] = (int32_t)(i < beam->n_live ? i : 0);
  if (beam->finished) return;
  candidate *best = smoe_alloc((room + 1) * sizeof *best);
  const size_t n = best_of(beam, logits, vocabulary, best, room);
  const bool last = beam->step + 2 >= t; /* only an end fits behind the next token */
  size_t live = 0;
  for (size_t i = 0; i < n; i++) {
    const int32_t *own = beam->token + (size_t)best[i].from * t;
    if (best[i].token == beam->end) {
      if (i < k) finish(beam, own, beam->step, best[i].log_p);
    } else if (live < k) {
      memcpy(beam->next + live * t, own, beam->step * sizeof *own);
      beam->next[live * t + beam->step] = best[i].token;
      from[live] = best[i].from;
      beam->log_p[live++] = best[i].log_p;
    }
  }
  int32_t *swap = beam->token;
  beam->token = beam->next;
  beam->next = swap;
  beam->step++;
  beam->n_live = live;
  /* A translation that does not end is cut, and keeps the probability that it has. */
  for (size_t i = 0; i < live && last && beam->n_done < k; i++)
    finish(beam, beam->token + i * t, beam->step, beam->log_p[i]);
  beam->finished = last || live == 0 || beam->n_done == k;
  smoe_free(best);
}
