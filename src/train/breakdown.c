#include "stablemoe/breakdown.h"

#include <string.h>

/* Ends of documents that are read at a time. */
enum { ENDS = 4096 };

int smoe_breakdown_class(int64_t count) {
  int class = 0;
  for (; count > 0 && class < SMOE_FREQUENCIES - 1; count /= 10) class ++;
  return class;
}

smoe_status smoe_breakdown_begin(smoe_breakdown *b, const smoe_corpus *corpus, smoe_split split, int n_moe,
                                 int n_experts, int64_t worst) {
  *b = (smoe_breakdown){
      .corpus = corpus, .split = split, .n_moe = n_moe, .n_experts = n_experts, .worst_max = worst};
  b->count = smoe_alloc((size_t)corpus->vocabulary * sizeof *b->count);
  b->expert = smoe_alloc(((size_t)n_moe * (size_t)n_experts + 1) * sizeof *b->expert);
  b->worst = smoe_alloc((size_t)(worst + 1) * sizeof *b->worst);
  b->end = smoe_alloc(ENDS * sizeof *b->end);
  return smoe_corpus_counts(corpus, b->count);
}

void smoe_breakdown_release(smoe_breakdown *b) {
  smoe_free(b->count);
  smoe_free(b->expert);
  smoe_free(b->worst);
  smoe_free(b->end);
  *b = (smoe_breakdown){0};
}

static void tally(smoe_tally *t, double loss) {
  t->loss += loss;
  t->n++;
}

/* ---- documents ---- */

static double mean(const smoe_tally *t) {
  return t->loss / (double)t->n;
}

/* Keep it if it is among the worst. */
static void keep_worst(smoe_breakdown *b, const smoe_document_loss *document) {
  if (document->tally.n < SMOE_DOCUMENT_TOKENS || b->worst_max == 0) return;
  int64_t at = b->n_worst;
  while (at > 0 && mean(&document->tally) > mean(&b->worst[at - 1].tally)) at--;
  if (at == b->worst_max) return;
  if (b->n_worst < b->worst_max) b->n_worst++;
  memmove(b->worst + at + 1, b->worst + at, (size_t)(b->n_worst - 1 - at) * sizeof *b->worst);
  b->worst[at] = *document;
}

static void close_document(smoe_breakdown *b) {
  if (b->current.tally.n > 0) {
    b->n_documents++;
    b->document_loss += mean(&b->current.tally);
    keep_worst(b, &b->current);
  }
  b->current.tally = (smoe_tally){0};
}

/* Where document `number` ends. */
static smoe_status end_of(smoe_breakdown *b, int64_t number, int64_t *end) {
  if (number >= b->end_first + b->n_ends) {
    const int64_t left = b->corpus->n_documents[b->split] - number;
    b->end_first = number;
    b->n_ends = left < ENDS ? left : ENDS;
    SMOE_TRY(smoe_corpus_document_ends(b->corpus, b->split, number, (size_t)b->n_ends, b->end));
  }
  *end = b->end[number - b->end_first];
  return SMOE_OK;
}

/* The current document is the one that the place lies in. */
static smoe_status go_to(smoe_breakdown *b, int64_t place) {
  int64_t end;
  SMOE_TRY(end_of(b, b->current.number, &end));
  while (place >= end) {
    close_document(b);
    b->current.number++;
    SMOE_CHECK(b->current.number < b->corpus->n_documents[b->split], SMOE_ERR_FORMAT,
               "the corpus '%s' is damaged: token %lld is in none of its documents", b->corpus->path,
               (long long)place);
    SMOE_TRY(end_of(b, b->current.number, &end));
  }
  return SMOE_OK;
}

/* ---- tokens ---- */

static void add_experts(smoe_breakdown *b, const smoe_evaluated *tokens, int64_t i) {
  const int64_t k = tokens->n_slots;
  for (int m = 0; m < tokens->n_moe; m++)
    for (int64_t s = 0; s < k; s++) {
      const int32_t e = tokens->expert[(m * tokens->stride + i) * k + s];
      const int32_t chosen = smoe_slot_expert(e); /* a dropped token has chosen too */
      if (chosen >= 0) tally(&b->expert[m * b->n_experts + chosen], tokens->loss[i]);
    }
}

smoe_status smoe_breakdown_add(smoe_breakdown *b, const smoe_evaluated *tokens) {
  for (int64_t i = 0; i < tokens->n; i++) {
    if (tokens->target[i] < 0) continue;
    SMOE_TRY(go_to(b, tokens->first + i + 1)); /* where the target stands */
    tally(&b->current.tally, tokens->loss[i]);
    tally(&b->frequency[smoe_breakdown_class(b->count[tokens->target[i]])], tokens->loss[i]);
    add_experts(b, tokens, i);
  }
  return SMOE_OK;
}

void smoe_breakdown_end(smoe_breakdown *b) {
  close_document(b);
}
