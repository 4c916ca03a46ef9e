#include "evaluate_pairs.h"

#include <math.h>
#include <string.h>

#include "stablemoe/bleu.h"
#include "stablemoe/chrf.h"
#include "stablemoe/evaluate.h"
#include "stablemoe/json.h"
#include "stablemoe/log.h"
#include "stablemoe/pair_texts.h"
#include "stablemoe/plain_file.h"
#include "text_stream.h"
#include "translate_lines.h"

/* Scores of one direction. */
typedef struct scores {
  int64_t n;
  smoe_bleu bleu, lower; /* 13a with case; lowercased, 13a */
  smoe_chrf chrf;
} scores;

static smoe_status score(scores *s, const smoe_pairs *pairs, const smoe_tokenizer *tokenizer,
                         smoe_split split, int64_t n, const smoe_line_translation *out) {
  for (int d = 0; d < pairs->n_directions; d++) {
    SMOE_TRY(smoe_bleu_open(&s[d].bleu, SMOE_BLEU_13A, false));
    SMOE_TRY(smoe_bleu_open(&s[d].lower, SMOE_BLEU_13A, true));
  }
  for (int64_t i = 0; i < n; i++) {
    scores *own = &s[pairs->split[split].direction[i]];
    const char *hypothesis = out[i].n_best ? out[i].text[0] : "";
    char *reference = NULL;
    SMOE_TRY(smoe_pair_reference(pairs, tokenizer, split, i, &reference));
    smoe_bleu_add(&own->bleu, reference, strlen(reference), hypothesis, strlen(hypothesis));
    smoe_bleu_add(&own->lower, reference, strlen(reference), hypothesis, strlen(hypothesis));
    smoe_chrf_add(&own->chrf, reference, strlen(reference), hypothesis, strlen(hypothesis));
    own->n++;
    smoe_free(reference);
  }
  return SMOE_OK;
}

/* One line per pair: direction, source, reference, translation. */
static smoe_status write_lines(smoe_plain_file *file, const smoe_pairs *pairs,
                               const smoe_tokenizer *tokenizer, smoe_split split, const smoe_pair_sources *s,
                               const smoe_line_translation *out) {
  for (int64_t i = 0; i < s->n; i++) {
    char direction[2 * SMOE_LANGUAGE_BYTES], *source = NULL, *reference = NULL;
    smoe_pairs_direction_name(pairs, pairs->split[split].direction[i], direction);
    /* Without the tag and the end. */
    smoe_status status = smoe_tokenizer_decode(tokenizer, s->ids[i] + 1, (size_t)s->length[i] - 2, &source);
    if (status == SMOE_OK) status = smoe_pair_reference(pairs, tokenizer, split, i, &reference);
    if (status == SMOE_OK)
      fprintf(file->stream, "%s\t%s\t%s\t%s\n", direction, source, reference,
              out[i].n_best ? out[i].text[0] : "");
    smoe_free(source);
    smoe_free(reference);
    SMOE_TRY(status);
  }
  return SMOE_OK;
}

static smoe_status write_table(const char *path, const smoe_pairs *pairs, const smoe_tokenizer *tokenizer,
                               smoe_split split, const smoe_pair_sources *s,
                               const smoe_line_translation *out) {
  smoe_plain_file file = {0};
  smoe_status status = smoe_plain_create(&file, path, 0);
  if (status == SMOE_OK) status = write_lines(&file, pairs, tokenizer, split, s, out);
  if (status == SMOE_OK) status = smoe_plain_finish(&file);
  if (status == SMOE_OK) status = smoe_plain_publish(&file);
  smoe_plain_release(&file);
  return status;
}

static void print_text(const smoe_pairs *pairs, const scores *s, const smoe_evaluation *e, const char *name) {
  char direction[2 * SMOE_LANGUAGE_BYTES], signature[SMOE_SIGNATURE_BYTES], chrf[SMOE_SIGNATURE_BYTES];
  double bleu = 0, lower = 0, f = 0;
  int n = 0;
  printf("%s: loss %.4f nats per target token, perplexity %.3f, over %.0f tokens\n", name, e->loss,
         e->perplexity, e->n_targets);
  printf("  direction      pairs    BLEU  BLEU lc   chrF2\n");
  for (int d = 0; d < pairs->n_directions; d++) {
    if (s[d].n == 0) continue;
    smoe_pairs_direction_name(pairs, d, direction);
    const double a = smoe_bleu_score(&s[d].bleu, NULL, NULL), b = smoe_bleu_score(&s[d].lower, NULL, NULL);
    const double c = smoe_chrf_score(&s[d].chrf);
    printf("  %-12s %7lld  %6.2f   %6.2f  %6.2f\n", direction, (long long)s[d].n, a, b, c);
    bleu += a, lower += b, f += c, n++;
  }
  if (n > 1) printf("  %-12s %7s  %6.2f   %6.2f  %6.2f\n", "mean", "", bleu / n, lower / n, f / n);
  smoe_bleu_signature(&s[0].bleu, signature);
  smoe_chrf_signature(chrf);
  printf("  BLEU %s; BLEU lc: of lowercased text; chrF2 %s\n", signature, chrf);
}

static void print_json(const smoe_pairs *pairs, const scores *s, const smoe_evaluation *e, const char *name) {
  enum { LOSS_DIGITS = 9, SCORE_DIGITS = 6 };
  char direction[2 * SMOE_LANGUAGE_BYTES], signature[SMOE_SIGNATURE_BYTES];
  smoe_json json;
  smoe_json_begin(&json, stdout, 0);
  smoe_json_object(&json, NULL);
  smoe_json_text(&json, "split", name);
  smoe_json_real(&json, "loss", e->loss, LOSS_DIGITS);
  smoe_json_real(&json, "perplexity", e->perplexity, LOSS_DIGITS);
  smoe_json_fixed(&json, "targets", e->n_targets, 0);
  smoe_json_object(&json, "directions");
  for (int d = 0; d < pairs->n_directions; d++) {
    if (s[d].n == 0) continue;
    smoe_pairs_direction_name(pairs, d, direction);
    smoe_json_object(&json, direction);
    smoe_json_int(&json, "pairs", s[d].n);
    smoe_json_real(&json, "bleu", smoe_bleu_score(&s[d].bleu, NULL, NULL), SCORE_DIGITS);
    smoe_json_real(&json, "bleu_lowercased", smoe_bleu_score(&s[d].lower, NULL, NULL), SCORE_DIGITS);
    smoe_json_real(&json, "chrf2", smoe_chrf_score(&s[d].chrf), SCORE_DIGITS);
    smoe_json_end(&json);
  }
  smoe_json_end(&json);
  smoe_bleu_signature(&s[0].bleu, signature);
  smoe_json_text(&json, "signature", signature);
  smoe_json_end(&json);
  smoe_json_finish(&json);
}

static smoe_status loss_of(smoe_app_model *m, smoe_split split, int64_t sequences, smoe_evaluation *e) {
  smoe_model_shape shape = {0};
  SMOE_TRY_ALL(m->group, m->task.ops->shape(&m->task, &shape, false));
  SMOE_TRY(smoe_app_model_build(m, &shape));
  return smoe_evaluate(m->model, &m->task, split, sequences, m->meta.update, m->meta.stage, e);
}

smoe_status smoe_evaluate_pairs(smoe_app_model *m, smoe_split split, const char *name, int64_t sequences,
                                bool json, const char *table) {
  const smoe_pairs *pairs = &m->task.pairs;
  smoe_evaluation e;
  smoe_tokenizer *tokenizer = NULL;
  smoe_pair_sources s = {0};
  SMOE_TRY(loss_of(m, split, sequences, &e));
  SMOE_TRY_ALL(m->group, smoe_tokenizer_open(&tokenizer, pairs->model, pairs->model_bytes));
  smoe_pair_sources_read(&s, pairs, split, sequences, false);
  smoe_line_translation *out = smoe_alloc((size_t)(s.n + 1) * sizeof *out);
  scores *result = smoe_alloc((size_t)pairs->n_directions * sizeof *result);
  smoe_status status = smoe_translate_ids(m, tokenizer, (const int32_t *const *)s.ids, s.length, (size_t)s.n,
                                          &smoe_translate_defaults, out);
  if (status == SMOE_OK)
    status = smoe_group_agree(m->group, score(result, pairs, tokenizer, split, s.n, out));
  if (status == SMOE_OK && table)
    status = smoe_group_agree(
        m->group, m->group->rank == 0 ? write_table(table, pairs, tokenizer, split, &s, out) : SMOE_OK);
  if (status == SMOE_OK && m->group->rank == 0) (json ? print_json : print_text)(pairs, result, &e, name);
  if (status == SMOE_OK)
    status = smoe_group_agree(m->group, m->group->rank == 0 ? smoe_output_flush(stdout) : SMOE_OK);
  smoe_line_translations_release(out, (size_t)s.n);
  smoe_free(result);
  smoe_pair_sources_release(&s);
  smoe_tokenizer_close(tokenizer);
  return status;
}
