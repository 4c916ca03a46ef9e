#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/json.h"
#include "stablemoe/log.h"
#include "stablemoe/utf8.h"
#include "text_stream.h"
#include "translate_lines.h"

typedef struct options {
  smoe_words set;
  const char *corpus, *to;
  int64_t n_best, max_length, beam, batch;
  double length_penalty;
  int precision;
  bool json, truncate, best;
} options;

static const options DEFAULTS = {.n_best = 1, .beam = 5, .batch = 8, .length_penalty = 1};

static const smoe_option OPTIONS[] = {
    {'t', "to", SMOE_OPTION_TEXT, offsetof(options, to), "LANGUAGE",
     "language to translate to (default: the only one that the model has been trained to translate to)"},
    {'b', "beam", SMOE_OPTION_INT, offsetof(options, beam), "N",
     "hypotheses that are followed for each sentence (default 5); 1: the likeliest token always", 1, 100},
    {0, "length-penalty", SMOE_OPTION_REAL, offsetof(options, length_penalty), "P",
     "score of a translation is its log probability over its length to this power (default 1)", 0, 10},
    {'n', "n-best", SMOE_OPTION_INT, offsetof(options, n_best), "N",
     "print the N best translations of each sentence, at most --beam (default 1)", 1, 100},
    {0, "max-length", SMOE_OPTION_INT, offsetof(options, max_length), "N",
     "tokens of a translation at most (default 0: twice the longest sentence and 10)", 0, 65535},
    {0, "batch", SMOE_OPTION_INT, offsetof(options, batch), "N",
     "sentences of each of train.lanes lanes that are translated at a time (default 8)", 1, 65536},
    {0, "truncate", SMOE_OPTION_FLAG, offsetof(options, truncate), NULL,
     "cut a sentence that is longer than the model's context (default: an error line, and no translation)"},
    SMOE_APP_SET_OPTION(options),
    SMOE_BEST_OPTION(options),
    {0, "precision", SMOE_OPTION_CHOICE, offsetof(options, precision), NULL, SMOE_APP_PRECISION_HELP,
     .choices = smoe_app_precisions},
    {0, "json", SMOE_OPTION_FLAG, offsetof(options, json), NULL,
     "print one JSON object per sentence, with scores"},
    {'c', "corpus", SMOE_OPTION_FILE, offsetof(options, corpus), "FILE",
     "corpus whose tokenizer to use (default: the one it was trained on)"},
};

/* The text, line by line, on every rank. */
typedef struct lines {
  char *storage;
  const char **text;
  size_t *bytes;
  size_t n;
  int32_t **ids;
  int32_t *length; /* 0: not to be translated */
} lines;

static smoe_status read_all(const char *path, char **text, size_t *bytes) {
  FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
  SMOE_CHECK(file, SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  size_t room = 1 << 16;
  *text = smoe_alloc(room + 1);
  *bytes = 0;
  for (size_t n; (n = fread(*text + *bytes, 1, room - *bytes, file)) > 0;) {
    *bytes += n;
    if (*bytes == room) *text = smoe_realloc(*text, (room *= 2) + 1);
  }
  const bool failed = ferror(file);
  if (file != stdin) fclose(file);
  SMOE_CHECK(!failed, SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  const size_t good = smoe_utf8_prefix(*text, *bytes);
  SMOE_CHECK(good == *bytes, SMOE_ERR_FORMAT, "'%s' is not UTF-8 from byte %zu on", path, good);
  return SMOE_OK;
}

static void split_lines(lines *l, char *text, size_t bytes) {
  for (char *at = text, *end = text + bytes; at < end;) {
    char *next = memchr(at, '\n', (size_t)(end - at));
    size_t n = (size_t)((next ? next : end) - at);
    l->text = smoe_realloc(l->text, (l->n + 1) * sizeof *l->text);
    l->bytes = smoe_realloc(l->bytes, (l->n + 1) * sizeof *l->bytes);
    l->text[l->n] = at;
    l->bytes[l->n++] = n > 0 && at[n - 1] == '\r' ? n - 1 : n;
    at = next ? next + 1 : end;
  }
}

/* Standard input is rank 0's alone. */
static smoe_status read_lines(lines *l, const smoe_group *group, const char *path) {
  size_t bytes = 0;
  SMOE_TRY_ALL(group, group->rank == 0 ? read_all(path, &l->storage, &bytes) : SMOE_OK);
  smoe_group_broadcast(group, &bytes, sizeof bytes, 0);
  if (group->rank != 0) l->storage = smoe_alloc(bytes + 1);
  smoe_group_broadcast(group, l->storage, bytes, 0);
  split_lines(l, l->storage, bytes);
  return SMOE_OK;
}

/* The language to translate to: as named, or the only one. */
static smoe_status find_tag(const smoe_pairs *pairs, const char *to, int32_t *tag) {
  bool is_target[SMOE_LANGUAGES_MAX] = {false};
  char names[SMOE_LANGUAGES_MAX * (SMOE_LANGUAGE_BYTES + 2)] = "";
  int n = 0, only = -1;
  for (int d = 0; d < pairs->n_directions; d++) is_target[pairs->direction[d][SMOE_SIDE_TARGET]] = true;
  for (int i = 0; i < pairs->n_languages; i++) {
    if (!is_target[i]) continue;
    if (n++) strcat(names, ", ");
    strcat(names, pairs->language[i]);
    only = i;
  }
  const int language = to ? smoe_pairs_find_language(pairs, to) : n == 1 ? only : -1;
  SMOE_CHECK(to || n == 1, SMOE_ERR_CONFIG,
             "this model translates to several languages: choose one by --to: %s", names);
  SMOE_CHECK(language >= 0 && is_target[language], SMOE_ERR_CONFIG,
             "this model does not translate to '%s'; --to may be: %s", to, names);
  *tag = pairs->tag[language];
  return SMOE_OK;
}

/* Token ids of a line with tag and end; too long: cut, or length 0 and an error line. */
static smoe_status encode(lines *l, size_t i, const smoe_app_model *m, const smoe_tokenizer *tokenizer,
                          int32_t tag, bool truncate) {
  const size_t most = (size_t)smoe_config_settings(m->config)->model.context - 2;
  int32_t *text = NULL;
  size_t n = 0;
  if (l->bytes[i] == 0) return SMOE_OK;
  SMOE_TRY(smoe_tokenizer_encode(tokenizer, l->text[i], l->bytes[i], &text, &n));
  if (n > most && !truncate) {
    smoe_warn("line %zu: %zu tokens, and the model takes %zu: not translated (--truncate cuts it)", i + 1, n,
              most);
    n = 0;
  }
  if (n > most) n = most;
  if (n > 0) {
    l->ids[i] = smoe_alloc((n + 2) * sizeof **l->ids);
    l->ids[i][0] = tag;
    memcpy(l->ids[i] + 1, text, n * sizeof *text);
    l->ids[i][n + 1] = m->task.pairs.end_id;
    l->length[i] = (int32_t)n + 2;
  }
  smoe_free(text);
  return SMOE_OK;
}

static void print_json(size_t i, const smoe_line_translation *t, size_t n_best) {
  enum { DIGITS = 9 };
  smoe_json json;
  smoe_json_begin(&json, stdout, 0);
  smoe_json_object(&json, NULL);
  smoe_json_int(&json, "line", (int64_t)i + 1);
  smoe_json_array(&json, "translations");
  for (size_t j = 0; j < t->n_best && j < n_best; j++) {
    smoe_json_object(&json, NULL);
    smoe_json_text(&json, "text", t->text[j]);
    smoe_json_real(&json, "score", t->score[j], DIGITS);
    smoe_json_real(&json, "log_p", t->log_p[j], DIGITS);
    smoe_json_array(&json, "tokens");
    for (size_t k = 0; k < t->n_tokens[j]; k++) smoe_json_int(&json, NULL, t->token[j][k]);
    smoe_json_end(&json);
    smoe_json_end(&json);
  }
  smoe_json_end(&json);
  smoe_json_end(&json);
  smoe_json_finish(&json);
}

static smoe_status print_all(const options *o, const lines *l, const smoe_line_translation *t) {
  for (size_t i = 0; i < l->n; i++) {
    if (o->json) {
      print_json(i, &t[i], (size_t)o->n_best);
      continue;
    }
    for (size_t j = 0; j < t[i].n_best && j < (size_t)o->n_best; j++) {
      if (o->n_best > 1) printf("%zu\t%.4f\t", i + 1, t[i].score[j]);
      puts(t[i].text[j]);
    }
    if (t[i].n_best == 0 && o->n_best == 1)
      puts(""); /* line n of the output belongs to line n of the input */
  }
  return smoe_output_flush(stdout);
}

static smoe_status translate(smoe_app_model *m, const smoe_group *group, const options *o, lines *l,
                             smoe_tokenizer *tokenizer) {
  int32_t tag = -1;
  SMOE_TRY(find_tag(&m->task.pairs, o->to, &tag));
  smoe_status status = SMOE_OK;
  l->ids = smoe_alloc((l->n + 1) * sizeof *l->ids);
  l->length = smoe_alloc((l->n + 1) * sizeof *l->length);
  for (size_t i = 0; i < l->n && status == SMOE_OK; i++)
    status = encode(l, i, m, tokenizer, tag, o->truncate);
  SMOE_TRY_ALL(group, status);
  const smoe_translate_how how = {.beam = o->beam,
                                  .lane_sentences = o->batch,
                                  .length_max = o->max_length,
                                  .length_penalty = o->length_penalty};
  smoe_line_translation *out = smoe_alloc((l->n + 1) * sizeof *out);
  status = smoe_translate_ids(m, tokenizer, (const int32_t *const *)l->ids, l->length, l->n, &how, out);
  if (status == SMOE_OK) status = smoe_group_agree(group, group->rank == 0 ? print_all(o, l, out) : SMOE_OK);
  smoe_line_translations_release(out, l->n);
  return status;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  smoe_app_model m = {0};
  lines l = {0};
  smoe_tokenizer *tokenizer = NULL;
  const smoe_app_opening opening = {
      .corpus = o->corpus, .single = true, .precision = o->precision, .set = &o->set};
  char path[4096];
  SMOE_TRY(smoe_app_checkpoint_choose(path, sizeof path, group, arguments->word[0], o->best));
  smoe_status status = smoe_app_task_open(&m, group, path, &opening);
  if (status == SMOE_OK) status = smoe_app_refuse_images(&m);
  if (status == SMOE_OK && smoe_task_is_language(&m.task))
    status = SMOE_FAIL(SMOE_ERR_CONFIG,
                       "'%s' is a language model: it continues texts by `stablemoe generate`, and "
                       "does not translate",
                       m.file);
  if (status == SMOE_OK)
    status = smoe_group_agree(group,
                              smoe_tokenizer_open(&tokenizer, m.task.pairs.model, m.task.pairs.model_bytes));
  if (status == SMOE_OK) status = read_lines(&l, group, arguments->n > 1 ? arguments->word[1] : "-");
  if (status == SMOE_OK) status = translate(&m, group, o, &l, tokenizer);
  for (size_t i = 0; l.ids && i < l.n; i++) smoe_free(l.ids[i]);
  smoe_free(l.ids);
  smoe_free(l.length);
  smoe_free(l.text);
  smoe_free(l.bytes);
  smoe_free(l.storage);
  if (tokenizer) smoe_tokenizer_close(tokenizer);
  smoe_app_model_close(&m);
  return status;
}

const smoe_command smoe_command_translate = {
    .name = "translate",
    .arguments = "CHECKPOINT|RUN [FILE|-]",
    .title = "translate lines of text",
    .text =
        "Translate text line by line with a trained translation model; of a run directory, with its latest "
        "checkpoint. Without FILE, lines come from standard input. Line n of the output is the translation "
        "of "
        "line n. The text is the same on any number of ranks, up to train.lanes.",
    .example = "mpirun -n 2 stablemoe translate runs/multi30k captions.de --to en",
    .usage = "one CHECKPOINT or run directory, and at most one FILE",
    .min_args = 1,
    .max_args = 2,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .run = run,
};
