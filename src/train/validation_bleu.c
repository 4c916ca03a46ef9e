#include "validation_bleu.h"

#include <math.h>
#include <string.h>

#include "stablemoe/bleu.h"
#include "stablemoe/log.h"
#include "stablemoe/pair_texts.h"
#include "stablemoe/translate.h"

enum { LANE_SENTENCES = 8 };

/* What decodes, and what is decoded. */
typedef struct decoding {
  smoe_pair_sources sources;
  smoe_translate_options options;
  smoe_model *model;
  smoe_translator *translator;
} decoding;

static smoe_status open_decoding(decoding *d, const smoe_model *model, smoe_task *task, bool plan_only) {
  smoe_pair_sources_read(&d->sources, &task->pairs, SMOE_VALID, task->settings->train.patience_pairs, true);
  const size_t longest = smoe_pair_sources_longest(&d->sources);
  d->options = (smoe_translate_options){.beam = 1,
                                        .length_penalty = 1,
                                        .lane_sentences = LANE_SENTENCES,
                                        .length_max = smoe_translation_length(model->config, longest)};
  const smoe_model_shape shape = smoe_translator_shape(model->config, task->vocabulary, longest, &d->options);
  SMOE_TRY(smoe_model_create(&d->model, model->config, &model->params.group, &shape, plan_only));
  return smoe_translator_create(&d->translator, d->model, task->pairs.end_id, &d->options);
}

static void close_decoding(decoding *d) {
  smoe_translator_destroy(d->translator);
  smoe_model_destroy(d->model);
  smoe_pair_sources_release(&d->sources);
}

smoe_status smoe_validation_bleu_plan(const smoe_model *model, smoe_task *task) {
  decoding d = {0};
  const smoe_status status = open_decoding(&d, model, task, true);
  if (status == SMOE_OK)
    smoe_note("memory: %.1f MiB more while BLEU of %lld validation pairs is evaluated",
              (smoe_model_expected_bytes(d.model) + smoe_translator_bytes(d.translator)) / (1 << 20),
              (long long)d.sources.n);
  close_decoding(&d);
  return status;
}

/* ---- the score ---- */

typedef struct scorer {
  const smoe_pairs *pairs;
  const smoe_pair_sources *sources;
  smoe_tokenizer *tokenizer;
  smoe_bleu bleu[SMOE_DIRECTIONS_MAX];
} scorer;

static smoe_status add(void *context, size_t i, const smoe_hypothesis *best, size_t n) {
  scorer *s = context;
  const int64_t pair = s->sources->pair[i];
  smoe_bleu *bleu = &s->bleu[s->pairs->split[SMOE_VALID].direction[pair]];
  char *reference = NULL, *text = NULL;
  smoe_status status = smoe_pair_reference(s->pairs, s->tokenizer, SMOE_VALID, pair, &reference);
  if (status == SMOE_OK && n > 0) status = smoe_tokenizer_decode(s->tokenizer, best->token, best->n, &text);
  if (status == SMOE_OK)
    smoe_bleu_add(bleu, reference, strlen(reference), text ? text : "", text ? strlen(text) : 0);
  smoe_free(reference);
  smoe_free(text);
  return status;
}

static smoe_status open_scorer(scorer *s) {
  for (int d = 0; d < s->pairs->n_directions; d++)
    SMOE_TRY(smoe_bleu_open(&s->bleu[d], SMOE_BLEU_13A, false));
  return smoe_tokenizer_open(&s->tokenizer, s->pairs->model, s->pairs->model_bytes);
}

static double mean_of(const scorer *s) {
  double sum = 0;
  int n = 0;
  for (int d = 0; d < s->pairs->n_directions; d++) {
    if (s->bleu[d].n_segments == 0) continue;
    sum += smoe_bleu_score(&s->bleu[d], NULL, NULL);
    n++;
  }
  return n > 0 ? sum / n : NAN;
}

smoe_status smoe_validation_bleu(const smoe_model *model, smoe_task *task, int64_t update, int stage,
                                 double *bleu, int64_t *n_pairs) {
  const smoe_pass pass = {
      .seed = (uint64_t)task->settings->run.seed, .update = update, .stage = stage, .n_targets = 1};
  const smoe_group *group = &model->params.group;
  decoding d = {0};
  scorer *s = smoe_alloc(sizeof *s);
  *s = (scorer){.pairs = &task->pairs, .sources = &d.sources};
  smoe_status status = smoe_group_agree(group, open_scorer(s));
  if (status == SMOE_OK) status = open_decoding(&d, model, task, false);
  if (status == SMOE_OK) {
    smoe_params_copy(&d.model->params, &model->params);
    if (stage == 2) smoe_model_freeze(d.model);
    status = smoe_translator_run_all(d.translator, group, (const int32_t *const *)d.sources.ids,
                                     d.sources.length, (size_t)d.sources.n, &pass, add, s);
  }
  *bleu = mean_of(s);
  *n_pairs = d.sources.n;
  close_decoding(&d);
  if (s->tokenizer) smoe_tokenizer_close(s->tokenizer);
  smoe_free(s);
  return status;
}
