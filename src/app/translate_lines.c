#include "translate_lines.h"

#include <stdlib.h>
#include <string.h>

#include "stablemoe/log.h"
#include "stablemoe/timer.h"

const smoe_translate_how smoe_translate_defaults = {
    .beam = 5, .lane_sentences = 8, .length_max = 0, .length_penalty = 1};

/* Places of the sources in order of length: batches of like length have little padding. */
typedef struct place {
  int32_t length;
  size_t number;
} place;

static int by_length(const void *a, const void *b) {
  const place *x = a, *y = b;
  if (x->length != y->length) return x->length < y->length ? -1 : 1;
  return x->number < y->number ? -1 : x->number > y->number;
}

static place *in_order(const int32_t *length, size_t n, size_t *n_places) {
  place *places = smoe_alloc((n + 1) * sizeof *places);
  *n_places = 0;
  for (size_t i = 0; i < n; i++)
    if (length[i] > 0) places[(*n_places)++] = (place){length[i], i};
  qsort(places, *n_places, sizeof *places, by_length);
  return places;
}

static smoe_status keep(const smoe_tokenizer *tokenizer, const smoe_translations *t, size_t s,
                        smoe_line_translation *out) {
  out->text = smoe_alloc((t->n_best[s] + 1) * sizeof *out->text);
  out->token = smoe_alloc((t->n_best[s] + 1) * sizeof *out->token);
  out->n_tokens = smoe_alloc((t->n_best[s] + 1) * sizeof *out->n_tokens);
  out->score = smoe_alloc((t->n_best[s] + 1) * sizeof *out->score);
  out->log_p = smoe_alloc((t->n_best[s] + 1) * sizeof *out->log_p);
  for (; out->n_best < t->n_best[s]; out->n_best++) {
    const smoe_hypothesis *h = &t->best[s * t->beam + out->n_best];
    SMOE_TRY(smoe_tokenizer_decode(tokenizer, h->token, h->n, &out->text[out->n_best]));
    out->token[out->n_best] = smoe_alloc((h->n + 1) * sizeof **out->token);
    memcpy(out->token[out->n_best], h->token, h->n * sizeof *h->token);
    out->n_tokens[out->n_best] = h->n;
    out->score[out->n_best] = h->score;
    out->log_p[out->n_best] = h->log_p;
  }
  return SMOE_OK;
}

static smoe_status translate_batch(smoe_translator *translator, const smoe_app_model *m,
                                   const smoe_tokenizer *tokenizer, const int32_t *const *source,
                                   const place *places, size_t n, smoe_line_translation *out) {
  const smoe_pass pass = {.seed = (uint64_t)smoe_config_settings(m->config)->run.seed,
                          .update = m->meta.update,
                          .stage = m->meta.stage,
                          .n_targets = 1};
  const int32_t **batch = smoe_alloc(n * sizeof *batch);
  int32_t *length = smoe_alloc(n * sizeof *length);
  for (size_t i = 0; i < n; i++) {
    batch[i] = source[places[i].number];
    length[i] = places[i].length;
  }
  smoe_translations translations;
  smoe_translator_run(translator, batch, length, n, &pass, &translations);
  smoe_status status = SMOE_OK;
  for (size_t i = 0; i < n && status == SMOE_OK; i++)
    status = keep(tokenizer, &translations, i, &out[places[i].number]);
  smoe_translations_release(&translations);
  smoe_free(batch);
  smoe_free(length);
  return status;
}

smoe_status smoe_translate_ids(smoe_app_model *m, const smoe_tokenizer *tokenizer,
                               const int32_t *const *source, const int32_t *length, size_t n,
                               const smoe_translate_how *how, smoe_line_translation *out) {
  size_t n_places;
  place *places = in_order(length, n, &n_places);
  const size_t longest = n_places ? (size_t)places[n_places - 1].length : 1;
  const size_t context = (size_t)smoe_config_settings(m->config)->model.context;
  const size_t most = how->length_max > 0 ? (size_t)how->length_max + 1 : 2 * longest + 10;
  const smoe_translate_options options = {.beam = (int)how->beam,
                                          .length_penalty = how->length_penalty,
                                          .lane_sentences = (size_t)how->lane_sentences,
                                          .length_max = most < context ? most : context};
  const smoe_model_shape shape = smoe_translator_shape(m->config, m->task.vocabulary, longest, &options);
  smoe_translator *translator = NULL;
  smoe_status status = smoe_app_model_build(m, &shape);
  if (status == SMOE_OK)
    status = smoe_translator_create(&translator, m->model, m->task.pairs.end_id, &options);
  const double began = smoe_seconds();
  for (size_t i = 0; i < n_places && status == SMOE_OK;) {
    const size_t room = smoe_translator_batch(translator), left = n_places - i,
                 count = left < room ? left : room;
    status =
        smoe_group_agree(m->group, translate_batch(translator, m, tokenizer, source, places + i, count, out));
    i += count;
    smoe_live("%zu of %zu sentences", i, n_places);
  }
  const double seconds = smoe_seconds() - began;
  if (status == SMOE_OK)
    smoe_note("%zu sentences in %.2f s: %.1f sentences/s", n_places, seconds, (double)n_places / seconds);
  smoe_translator_destroy(translator);
  smoe_free(places);
  return status;
}

void smoe_line_translations_release(smoe_line_translation *lines, size_t n) {
  for (size_t i = 0; lines && i < n; i++) {
    for (size_t j = 0; j < lines[i].n_best; j++) {
      smoe_free(lines[i].text[j]);
      smoe_free(lines[i].token[j]);
    }
    smoe_free(lines[i].token);
    smoe_free(lines[i].n_tokens);
    smoe_free(lines[i].text);
    smoe_free(lines[i].score);
    smoe_free(lines[i].log_p);
  }
  smoe_free(lines);
}
