#include "stablemoe/prepare_pairs.h"

#include <stdio.h>
#include <string.h>

#include "pairs_file.h"
#include "prepare_pairs_text.h"
#include "shards.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/prepare.h"
#include "stablemoe/timer.h"

/* Bytes of text that the tokenizer is trained on. */
enum { SAMPLE_BYTES = 4 << 20 };

/* Bounds that keep arithmetic and messages sane. */
enum { VOCABULARY_MIN = 260, VOCABULARY_MAX = 1 << 20, TOKENS_MIN = 8 };

/* Pairs that are decoded again, to see that nothing is lost. */
enum { PROOFS = 64 };

smoe_prepare_pairs_options smoe_prepare_pairs_defaults(void) {
  return (smoe_prepare_pairs_options){.kind = SMOE_BPE,
                                      .valid_share = 0.05,
                                      .test_share = 0.05,
                                      .seed = 1,
                                      .max_tokens = 256,
                                      .max_ratio = 4};
}

/** Everything of one preparation. */
typedef struct preparation {
  const smoe_prepare_pairs_options *options;
  smoe_pairs pairs;
  smoe_pairs_text text;
  smoe_pair_writer writer;
  char *model;
  size_t model_bytes;
  smoe_tokenizer *tokenizer;
  int64_t n_encoded, n_lossy;
} preparation;

/* ---- the tokenizer ---- */

/** The text that it is trained on: both sides of training pairs, evenly spread. */
typedef struct sample {
  smoe_pairs_source source;
  int next;                           /* side to return */
  int64_t seen, taken, total, wanted; /* bytes */
  smoe_status status;
} sample;

static bool next_sentence(void *context, const char **text, size_t *bytes) {
  sample *s = context;
  for (;;) {
    while (s->next == SMOE_SIDES) {
      s->status = smoe_pairs_source_next(&s->source);
      if (s->status != SMOE_OK || !s->source.pair.text[0]) return false;
      if (s->source.split == SMOE_TRAIN) s->next = 0;
    }
    *text = s->source.pair.text[s->next];
    *bytes = s->source.pair.bytes[s->next++];
    s->seen += (int64_t)*bytes;
    const bool all = s->total <= s->wanted;
    if (!all && (double)s->taken > (double)s->seen * (double)s->wanted / (double)s->total) continue;
    s->taken += (int64_t)*bytes;
    return true;
  }
}

/** The tags of all languages, with commas between them. */
static char *tag_list(const smoe_pairs *pairs) {
  char *list = smoe_strdup("");
  for (int l = 0; l < pairs->n_languages; l++) {
    char *longer = smoe_sprintf("%s%s<2%s>", list, l > 0 ? "," : "", pairs->language[l]);
    smoe_free(list);
    list = longer;
  }
  return list;
}

static smoe_status train(preparation *p) {
  const double start = smoe_seconds();
  const int vocabulary = p->options->vocabulary ? p->options->vocabulary : SMOE_VOCABULARY_DEFAULT;
  sample s = {.source = {.text = &p->text, .pairs = &p->pairs},
              .next = SMOE_SIDES,
              .total = p->text.n_bytes[SMOE_TRAIN],
              .wanted = p->options->sample_bytes ? p->options->sample_bytes : SAMPLE_BYTES};
  const double mib = (double)(s.total < s.wanted ? s.total : s.wanted) / (1 << 20);
  smoe_note("training a tokenizer (%s, %d pieces) on %.1f MiB of the training pairs",
            p->options->kind == SMOE_BPE ? "BPE" : "unigram", vocabulary, mib);
  char *tags = tag_list(&p->pairs);
  const smoe_status status = smoe_tokenizer_train_with(&p->model, &p->model_bytes, p->options->kind,
                                                       vocabulary, tags, next_sentence, &s);
  smoe_free(tags);
  smoe_pairs_source_close(&s.source);
  SMOE_TRY(s.status);
  SMOE_TRY(status);
  smoe_note("trained in %.1f s", smoe_seconds() - start);
  return SMOE_OK;
}

static smoe_status find_tags(preparation *p, const char *path) {
  for (int l = 0; l < p->pairs.n_languages; l++) {
    char tag[SMOE_LANGUAGE_BYTES + 4];
    snprintf(tag, sizeof tag, "<2%s>", p->pairs.language[l]);
    p->pairs.tag[l] = smoe_tokenizer_find(p->tokenizer, tag);
    SMOE_CHECK(
        p->pairs.tag[l] >= 0, SMOE_ERR_CONFIG,
        "the model '%s' has no piece '%s', which stands in front of texts to translate to that language: "
        "train one with --control_symbols, or leave --model out",
        path, tag);
  }
  return SMOE_OK;
}

static smoe_status get_tokenizer(preparation *p) {
  const char *path = p->options->model_path;
  if (path)
    SMOE_TRY(smoe_tokenizer_load(&p->model, &p->model_bytes, path));
  else
    SMOE_TRY(train(p));
  const smoe_status status = smoe_tokenizer_open(&p->tokenizer, p->model, p->model_bytes);
  SMOE_CHECK(status == SMOE_OK || !path, status, "'%s': %s", path, smoe_last_error());
  SMOE_TRY(status);
  p->pairs.vocabulary = smoe_tokenizer_size(p->tokenizer);
  p->pairs.end_id = smoe_tokenizer_end(p->tokenizer);
  SMOE_CHECK(!path || !p->options->vocabulary || p->options->vocabulary == p->pairs.vocabulary,
             SMOE_ERR_CONFIG, "the model '%s' has %d pieces, not the %d asked for: leave --vocab out", path,
             p->pairs.vocabulary, p->options->vocabulary);
  SMOE_CHECK(p->pairs.end_id >= 0, SMOE_ERR_CONFIG,
             "the model '%s' has no end-of-sentence piece, which sentences end with", path);
  return find_tags(p, path ? path : "of this text");
}

/* ---- encoding ---- */

/** Encode one side as a model reads it: a tag on the source side, the tokens, end. */
static smoe_status encode_side(const preparation *p, const smoe_pairs_source *from, smoe_side side,
                               int32_t **tokens, size_t *n, bool proof, bool *same) {
  int32_t *ids;
  size_t n_ids;
  const char *text = from->pair.text[side];
  const size_t bytes = from->pair.bytes[side];
  SMOE_TRY(smoe_tokenizer_encode(p->tokenizer, text, bytes, &ids, &n_ids));
  char *back = NULL;
  const smoe_status status = proof ? smoe_tokenizer_decode(p->tokenizer, ids, n_ids, &back) : SMOE_OK;
  if (back) *same = *same && strlen(back) == bytes && memcmp(back, text, bytes) == 0;
  smoe_free(back);
  const bool tagged = side == SMOE_SIDE_SOURCE;
  *n = n_ids + 1 + tagged;
  *tokens = smoe_alloc(*n * sizeof **tokens);
  if (tagged) (*tokens)[0] = p->pairs.tag[p->pairs.direction[from->direction][SMOE_SIDE_TARGET]];
  memcpy(*tokens + tagged, ids, n_ids * sizeof *ids);
  (*tokens)[*n - 1] = p->pairs.end_id;
  smoe_free(ids);
  return status;
}

/** Whether a pair is left out, and why. */
static bool is_left_out(const smoe_prepare_pairs_options *options, smoe_split split,
                        const size_t n[SMOE_SIDES], smoe_left_out *why) {
  const double a = (double)n[0], b = (double)n[1], longer = a > b ? a : b, shorter = a > b ? b : a;
  *why = longer > (double)options->max_tokens ? SMOE_LEFT_OUT_LONG : SMOE_LEFT_OUT_UNEQUAL;
  return *why == SMOE_LEFT_OUT_LONG || (split == SMOE_TRAIN && longer > options->max_ratio * shorter);
}

static smoe_status encode_pair(preparation *p, const smoe_pairs_source *from, bool proof) {
  int32_t *tokens[SMOE_SIDES] = {NULL};
  size_t n[SMOE_SIDES] = {0};
  bool same = true;
  smoe_status status = SMOE_OK;
  for (int side = 0; side < SMOE_SIDES && status == SMOE_OK; side++)
    status = encode_side(p, from, side, &tokens[side], &n[side], proof, &same);
  smoe_left_out why;
  if (status == SMOE_OK && is_left_out(p->options, from->split, n, &why)) {
    p->pairs.split[from->split].left_out[why]++;
  } else if (status == SMOE_OK) {
    const int32_t *const both[SMOE_SIDES] = {tokens[0], tokens[1]};
    const int64_t n_bytes[SMOE_SIDES] = {(int64_t)from->pair.bytes[0], (int64_t)from->pair.bytes[1]};
    status = smoe_pair_writer_add(&p->writer, from->split, from->direction, both, n, n_bytes);
  }
  p->n_lossy += !same;
  for (int side = 0; side < SMOE_SIDES; side++) smoe_free(tokens[side]);
  return status;
}

static smoe_status encode_all(preparation *p, smoe_pairs_source *source) {
  int64_t total = 0;
  for (int s = 0; s < SMOE_SPLITS; s++) total += p->text.n_pairs[s];
  for (;; p->n_encoded++) {
    SMOE_TRY(smoe_pairs_source_next(source));
    if (!source->pair.text[0]) break;
    if (source->split == SMOE_TRAIN)
      for (int s = SMOE_VALID; s < SMOE_SPLITS; s++)
        smoe_pair_set_find(&p->text.set[s], source->direction, &source->pair);
    SMOE_TRY(encode_pair(p, source, p->n_encoded % (total / PROOFS + 1) == 0));
    if (p->n_encoded % 1024 == 0)
      smoe_live("encoding: %lld of %lld pairs", (long long)p->n_encoded, (long long)total);
  }
  SMOE_CHECK(p->n_encoded == total, SMOE_ERR_IO, "the files of pairs changed while they were read");
  return SMOE_OK;
}

static smoe_status encode(preparation *p) {
  const double start = smoe_seconds();
  smoe_pairs_source source = {.text = &p->text, .pairs = &p->pairs};
  const smoe_status status = encode_all(p, &source);
  smoe_pairs_source_close(&source);
  SMOE_TRY(status);
  smoe_note("encoded %lld pairs in %.1f s", (long long)p->n_encoded, smoe_seconds() - start);
  if (p->n_lossy > 0)
    smoe_warn(
        "this tokenizer changes text: %lld of %d pairs do not come back exactly; --model needs one with "
        "byte fallback, identity normalisation and no dummy prefix",
        (long long)p->n_lossy, PROOFS);
  return SMOE_OK;
}

/* ---- reports ---- */

static void report_split(preparation *p, smoe_split s) {
  smoe_pair_split *split = &p->pairs.split[s];
  const int64_t *out = split->left_out;
  const char *name = smoe_split_name(s);
  if (out[0] + out[1] + out[2] > 0)
    smoe_note(
        "left out of %s: %lld empty pairs, %lld with more than %lld tokens, %lld with lengths more than "
        "%g times apart",
        name, (long long)out[SMOE_LEFT_OUT_EMPTY], (long long)out[SMOE_LEFT_OUT_LONG],
        (long long)p->options->max_tokens, (long long)out[SMOE_LEFT_OUT_UNEQUAL], p->options->max_ratio);
  if (s == SMOE_TRAIN) return;
  if (out[SMOE_LEFT_OUT_LONG] > 0)
    smoe_warn("%s lacks pairs that are too long: its BLEU is not that of the whole set; see --max-tokens",
              name);
  split->n_repeated = smoe_pair_set_found(&p->text.set[s]);
  if (split->n_repeated > 0)
    smoe_warn("%lld of %lld pairs of %s are training pairs, too, word for word", (long long)split->n_repeated,
              (long long)p->text.n_pairs[s], name);
  for (int d = 0; d < p->pairs.n_directions; d++) {
    char direction[2 * SMOE_LANGUAGE_BYTES];
    smoe_pairs_direction_name(&p->pairs, d, direction);
    if (split->n_bytes[0][d] == 0) smoe_warn("%s has no pair of %s", name, direction);
  }
}

static char *sources_text(const smoe_pairs_text *text) {
  const char **path = smoe_alloc(2 * text->n_files * sizeof *path);
  int n = 0;
  for (size_t f = 0; f < text->n_files; f++)
    for (int side = 0; side < SMOE_SIDES; side++)
      if (text->file[f].path[side]) path[n++] = text->file[f].path[side];
  char *list = smoe_sources_text(path, n);
  smoe_free(path);
  return list;
}

static smoe_status prepare(preparation *p) {
  SMOE_TRY(smoe_pairs_text_open(&p->text, &p->pairs, p->options));
  smoe_note("%lld pairs for training, %lld for validation, %lld for the test, in %d language%s",
            (long long)p->text.n_pairs[SMOE_TRAIN], (long long)p->text.n_pairs[SMOE_VALID],
            (long long)p->text.n_pairs[SMOE_TEST], p->pairs.n_languages,
            p->pairs.n_languages == 1 ? "" : "s");
  SMOE_CHECK(p->text.n_pairs[SMOE_TRAIN] > 0, SMOE_ERR_CONFIG, "there are no training pairs in '%s'",
             p->text.file[0].path[0]);
  /* Before minutes of work: an output that cannot be written fails here. */
  p->pairs.vocabulary = VOCABULARY_MAX;
  SMOE_TRY(smoe_pair_writer_open(&p->writer, &p->pairs, p->options->output));
  SMOE_TRY(get_tokenizer(p));
  for (int side = 0; side < SMOE_SIDES; side++) p->writer.spool[side].vocabulary = p->pairs.vocabulary;
  SMOE_TRY(encode(p));
  for (int s = 0; s < SMOE_SPLITS; s++) report_split(p, s);
  char *sources = sources_text(&p->text);
  const smoe_corpus_about about = {
      .kind = p->options->model_path         ? "given"
              : p->options->kind == SMOE_BPE ? "bpe"
                                             : "unigram",
      .sources = sources,
      .end_id = p->pairs.end_id,
      .tokenizer = p->tokenizer,
      .model = p->model,
      .model_bytes = p->model_bytes,
  };
  const smoe_status status = smoe_pair_writer_finish(&p->writer, &about);
  smoe_free(sources);
  return status;
}

static smoe_status check_options(const smoe_prepare_pairs_options *o) {
  SMOE_CHECK(o->output && o->output[0], SMOE_ERR_CONFIG, "no output is named");
  SMOE_CHECK(o->n_inputs[SMOE_TRAIN] > 0, SMOE_ERR_CONFIG, "no training pairs are named: --pair SRC-TGT ...");
  SMOE_CHECK(o->vocabulary == 0 || (o->vocabulary >= VOCABULARY_MIN && o->vocabulary <= VOCABULARY_MAX),
             SMOE_ERR_CONFIG, "a vocabulary of %d pieces is not between %d and %d", o->vocabulary,
             VOCABULARY_MIN, VOCABULARY_MAX);
  SMOE_CHECK(o->valid_share > 0 && o->valid_share <= 0.4 && o->test_share > 0 && o->test_share <= 0.4,
             SMOE_ERR_CONFIG, "the shares %g and %g for validation and test should be in (0, 0.4]",
             o->valid_share, o->test_share);
  SMOE_CHECK(o->max_tokens >= TOKENS_MIN && o->max_tokens <= SMOE_PAIR_TOKENS_MAX, SMOE_ERR_CONFIG,
             "a limit of %lld tokens is not between %d and %d", (long long)o->max_tokens, TOKENS_MIN,
             SMOE_PAIR_TOKENS_MAX);
  SMOE_CHECK(o->max_ratio >= 1, SMOE_ERR_CONFIG, "a ratio of %g is below 1", o->max_ratio);
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (size_t i = 0; i < o->n_inputs[s]; i++) {
      const char *const paths[] = {o->input[s][i].source, o->input[s][i].target};
      SMOE_TRY(smoe_prepare_check_output(o->output, paths, paths[1] ? 2 : 1));
    }
  return SMOE_OK;
}

smoe_status smoe_prepare_pairs(const smoe_prepare_pairs_options *options) {
  SMOE_TRY(check_options(options));
  preparation p = {.options = options};
  const smoe_status status = prepare(&p);
  smoe_pair_writer_close(&p.writer);
  smoe_tokenizer_close(p.tokenizer);
  smoe_free(p.model);
  smoe_pairs_text_close(&p.text);
  return status;
}
