#include "translate_lines.h"

#include <stdlib.h>
#include <string.h>

#include "stablemoe/log.h"
#include "stablemoe/timer.h"

const smoe_translate_how smoe_translate_defaults = {
    .beam = 5, .lane_sentences = 8, .length_max = 0, .length_penalty = 1};

/* What the translations are kept in. */
typedef struct keeper {
  const smoe_tokenizer *tokenizer;
  smoe_line_translation *out; /* [n] */
  size_t n_taken;
} keeper;

static smoe_status keep(void *context, size_t i, const smoe_hypothesis *best, size_t n) {
  keeper *k = context;
  smoe_line_translation *out = &k->out[i];
  out->text = smoe_alloc((n + 1) * sizeof *out->text);
  out->token = smoe_alloc((n + 1) * sizeof *out->token);
  out->n_tokens = smoe_alloc((n + 1) * sizeof *out->n_tokens);
  out->score = smoe_alloc((n + 1) * sizeof *out->score);
  out->log_p = smoe_alloc((n + 1) * sizeof *out->log_p);
  k->n_taken++;
  for (; out->n_best < n; out->n_best++) {
    const smoe_hypothesis *h = &best[out->n_best];
    SMOE_TRY(smoe_tokenizer_decode(k->tokenizer, h->token, h->n, &out->text[out->n_best]));
    out->token[out->n_best] = smoe_alloc((h->n + 1) * sizeof **out->token);
    memcpy(out->token[out->n_best], h->token, h->n * sizeof *h->token);
    out->n_tokens[out->n_best] = h->n;
    out->score[out->n_best] = h->score;
    out->log_p[out->n_best] = h->log_p;
  }
  return SMOE_OK;
}

smoe_status smoe_translate_ids(smoe_app_model *m, const smoe_tokenizer *tokenizer,
                               const int32_t *const *source, const int32_t *length, size_t n,
                               const smoe_translate_how *how, smoe_line_translation *out) {
  const smoe_settings *settings = smoe_config_settings(m->config);
  const size_t context = (size_t)settings->model.context;
  size_t longest = 1;
  for (size_t i = 0; i < n; i++)
    if ((size_t)length[i] > longest) longest = (size_t)length[i];
  const size_t most =
      how->length_max > 0 ? (size_t)how->length_max + 1 : smoe_translation_length(m->config, longest);
  const smoe_translate_options options = {.beam = (int)how->beam,
                                          .length_penalty = how->length_penalty,
                                          .lane_sentences = (size_t)how->lane_sentences,
                                          .length_max = most < context ? most : context};
  const smoe_model_shape shape = smoe_translator_shape(m->config, m->task.vocabulary, longest, &options);
  const smoe_pass pass = {
      .seed = (uint64_t)settings->run.seed, .update = m->meta.update, .stage = m->meta.stage, .n_targets = 1};
  smoe_translator *translator = NULL;
  keeper k = {.tokenizer = tokenizer, .out = out};
  smoe_status status = smoe_app_model_build(m, &shape);
  if (status == SMOE_OK)
    status = smoe_translator_create(&translator, m->model, m->task.pairs.end_id, &options);
  const double began = smoe_seconds();
  if (status == SMOE_OK)
    status = smoe_translator_run_all(translator, m->group, source, length, n, &pass, keep, &k);
  const double seconds = smoe_seconds() - began;
  if (status == SMOE_OK)
    smoe_note("%zu sentences in %.2f s: %.1f sentences/s", k.n_taken, seconds, (double)k.n_taken / seconds);
  smoe_translator_destroy(translator);
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
