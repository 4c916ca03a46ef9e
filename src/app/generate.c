#include <stdlib.h>
#include <string.h>

#include "open_model.h"
#include "prompts.h"
#include "sample.h"
#include "stablemoe/decode.h"
#include "stablemoe/json.h"
#include "stablemoe/log.h"
#include "stablemoe/timer.h"
#include "stablemoe/tokenizer.h"
#include "text_stream.h"

typedef struct options {
  smoe_words set;
  smoe_words prompts;
  const char *prompt_file, *corpus;
  int64_t n_tokens, n_samples;
  smoe_sampling sampling;
  int precision;
  bool json, no_cache, no_skip, best;
} options;

static const options DEFAULTS = {
    .n_tokens = 128, .n_samples = 1, .sampling = {.temperature = 0.8, .top_p = 1, .seed = 1}};

static const smoe_option OPTIONS[] = {
    {'p', "prompt", SMOE_OPTION_WORDS, offsetof(options, prompts), "TEXT",
     "text to continue, may be given several times (default: the beginning of a document)"},
    {'f', "prompt-file", SMOE_OPTION_FILE, offsetof(options, prompt_file), "FILE",
     "continue every line of FILE; - is standard input"},
    {'n', "tokens", SMOE_OPTION_INT, offsetof(options, n_tokens), "N",
     "tokens to add at most (default 128); the end of a document ends a text before", 1, 1000000},
    {'s', "samples", SMOE_OPTION_INT, offsetof(options, n_samples), "N",
     "different continuations of each prompt (default 1)", 1, 1000000},
    {'t', "temperature", SMOE_OPTION_REAL, offsetof(options, sampling.temperature), "X",
     "0 takes the likeliest token always (default 0.8)", 0, 100},
    {'k', "top-k", SMOE_OPTION_INT, offsetof(options, sampling.top_k), "N",
     "choose among the N likeliest tokens (default 0: all)", 0, 1000000},
    {0, "top-p", SMOE_OPTION_REAL, offsetof(options, sampling.top_p), "X",
     "choose among the fewest likeliest tokens that together have probability X (default 1: all)", 0, 1},
    {0, "seed", SMOE_OPTION_INT, offsetof(options, sampling.seed), "N",
     "another seed, another text (default 1)", 0, INT64_MAX},
    SMOE_APP_SET_OPTION(options),
    SMOE_BEST_OPTION(options),
    {0, "precision", SMOE_OPTION_CHOICE, offsetof(options, precision), NULL, SMOE_APP_PRECISION_HELP,
     .choices = smoe_app_precisions},
    {0, "json", SMOE_OPTION_FLAG, offsetof(options, json), NULL,
     "a JSON object for each text, one in a line, instead of text"},
    {0, "no-skip", SMOE_OPTION_FLAG, offsetof(options, no_skip), NULL,
     "run the sublayers that gates would skip (model.skip), to compare with"},
    {0, "no-cache", SMOE_OPTION_FLAG, offsetof(options, no_cache), NULL,
     "compute the whole context for each token; slow, to compare with"},
    {'c', "corpus", SMOE_OPTION_FILE, offsetof(options, corpus), "FILE",
     "corpus whose tokenizer to use (default: the one it was trained on)"},
};

/* A text that grows, and what the decoder has of it. */
typedef struct session {
  const smoe_app_model *m;
  const smoe_group *group;
  const options *o;
  smoe_tokenizer *tokenizer;
  smoe_decoder *decoder;
  int32_t *ids; /* of the text: what stands before the prompt, the prompt, what was added */
  size_t n;     /* of them */
  size_t n_before, n_prompt;
  size_t window, read;      /* the decoder has ids[window .. window + read) */
  smoe_real *logits, *kept; /* [V] after the last token; after the prompt */
  bool moved;               /* the window, and the user was told */
  int64_t n_added;          /* tokens of all texts */
} session;

/* Logits after all ids. */
static void read_text(session *s) {
  const smoe_app_model *m = s->m;
  const smoe_pass pass = {.seed = (uint64_t)smoe_config_settings(m->config)->run.seed,
                          .update = m->meta.update,
                          .stage = m->meta.stage,
                          .training = false,
                          .skip_nothing = s->o->no_skip,
                          .n_targets = 1};
  const size_t context = m->model->shape[SMOE_MAIN].context, window = smoe_decoder_window(s->n, context);
  if (window != s->window) s->read = 0;
  s->window = window;
  if (window > 0 && !s->moved) {
    smoe_note("the text is longer than the model's context of %zu tokens: whenever that is full, the older "
              "half is dropped and the rest recomputed",
              context);
    s->moved = true;
  }
  const size_t from = window + s->read;
  smoe_decoder_read(s->decoder, s->ids + from, s->read, s->n - from, &pass, s->logits);
  s->read = s->n - window;
}

/* The text is the prompt again. Later samples begin with what the first one found there. */
static void begin_sample(session *s, int64_t sample) {
  const size_t bytes = s->m->model->vocabulary * sizeof *s->logits;
  const size_t prompt = s->n_before + s->n_prompt;
  const bool kept =
      sample > 0 && s->window == smoe_decoder_window(prompt, s->m->model->shape[SMOE_MAIN].context);
  s->n = prompt;
  if (kept) {
    s->read = prompt - s->window;
    memcpy(s->logits, s->kept, bytes);
    return;
  }
  s->read = 0;
  read_text(s);
  memcpy(s->kept, s->logits, bytes);
}

/* Choose the next token; the same on all ranks. */
static smoe_status choose(session *s, int64_t sample, int32_t *token) {
  const int root = smoe_decoder_rank(s->decoder);
  if (s->group->rank == root)
    *token = smoe_sample(s->logits, s->m->task.corpus.vocabulary, &s->o->sampling, sample, (int64_t)s->n);
  smoe_group_broadcast(s->group, token, sizeof *token, root);
  SMOE_CHECK(*token >= 0, SMOE_ERR_NUMERIC,
             "the model's predictions are not numbers: its training has gone wrong before update %lld",
             (long long)s->m->meta.update);
  return SMOE_OK;
}

/* Rank 0's side of a token that was added. */
static smoe_status show(const session *s, smoe_text_stream *stream, bool last) {
  if (s->group->rank != 0) return SMOE_OK;
  return smoe_text_stream_write(stream, s->ids + s->n_before, s->n - s->n_before, last);
}

/* Add tokens until the document ends or there are enough; *ended says which. */
static smoe_status add_tokens(session *s, int64_t sample, FILE *out, bool *ended) {
  const int32_t end = smoe_tokenizer_end(s->tokenizer);
  smoe_text_stream stream;
  smoe_text_stream_begin(&stream, s->tokenizer, out, s->n_prompt);
  begin_sample(s, sample);
  *ended = false;
  for (int64_t i = 0; i < s->o->n_tokens; i++) {
    int32_t token = 0;
    if (i > 0) read_text(s);
    SMOE_TRY(choose(s, sample, &token));
    *ended = token == end;
    if (*ended) break;
    s->ids[s->n++] = token;
    s->n_added++;
    SMOE_TRY_ALL(s->group, show(s, &stream, false));
  }
  return smoe_group_agree(s->group, show(s, &stream, true));
}

static void print_json(const session *s, const char *prompt, int64_t sample, const char *text, bool ended) {
  smoe_json json;
  smoe_json_begin(&json, stdout, 0);
  smoe_json_object(&json, NULL);
  smoe_json_text(&json, "prompt", prompt);
  smoe_json_int(&json, "sample", sample + 1);
  smoe_json_int(&json, "seed", s->o->sampling.seed);
  smoe_json_text(&json, "text", text);
  smoe_json_array(&json, "tokens");
  for (size_t i = s->n_before + s->n_prompt; i < s->n; i++) smoe_json_int(&json, NULL, s->ids[i]);
  smoe_json_end(&json);
  smoe_json_bool(&json, "end", ended);
  smoe_json_end(&json);
  smoe_json_finish(&json);
}

/* One text as a JSON object, which needs the text as a whole. */
static smoe_status write_json(session *s, const char *prompt, int64_t sample) {
  char *text = NULL;
  size_t bytes = 0;
  bool ended;
  FILE *memory = open_memstream(&text, &bytes);
  if (!memory) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a text");
  smoe_status status = add_tokens(s, sample, memory, &ended);
  fclose(memory);
  if (status == SMOE_OK && s->group->rank == 0) print_json(s, prompt, sample, text, ended);
  free(text); /* memory of the C library */
  SMOE_TRY(status);
  return smoe_group_agree(s->group, s->group->rank == 0 ? smoe_output_flush(stdout) : SMOE_OK);
}

static smoe_status write_text(session *s, const smoe_prompts *prompts, size_t number, int64_t sample) {
  const bool heading = prompts->n > 1 || s->o->n_samples > 1, first = number == 0 && sample == 0;
  bool ended;
  if (s->group->rank == 0) {
    if (heading)
      printf("%s==> prompt %zu of %zu, sample %lld of %lld <==\n", first ? "" : "\n", number + 1, prompts->n,
             (long long)sample + 1, (long long)s->o->n_samples);
    fputs(prompts->text[number], stdout);
  }
  SMOE_TRY(add_tokens(s, sample, stdout, &ended));
  if (s->group->rank == 0) putchar('\n');
  return smoe_group_agree(s->group, s->group->rank == 0 ? smoe_output_flush(stdout) : SMOE_OK);
}

static smoe_status begin_prompt(session *s, const char *text) {
  const int32_t end = smoe_tokenizer_end(s->tokenizer);
  int32_t *prompt = NULL;
  SMOE_TRY(smoe_tokenizer_encode(s->tokenizer, text, strlen(text), &prompt, &s->n_prompt));
  /* A document begins after the end of another. */
  s->n_before = end >= 0;
  smoe_free(s->ids);
  s->ids = smoe_alloc((s->n_before + s->n_prompt + (size_t)s->o->n_tokens) * sizeof *s->ids);
  if (end >= 0) s->ids[0] = end;
  memcpy(s->ids + s->n_before, prompt, s->n_prompt * sizeof *prompt);
  smoe_free(prompt);
  SMOE_CHECK(s->n_before + s->n_prompt > 0, SMOE_ERR_CONFIG,
             "the tokenizer has no end of a document that a text could begin after: give a --prompt");
  return SMOE_OK;
}

static smoe_status write_all(session *s, const smoe_prompts *prompts) {
  for (size_t p = 0; p < prompts->n; p++) {
    SMOE_TRY_ALL(s->group, begin_prompt(s, prompts->text[p]));
    for (int64_t sample = 0; sample < s->o->n_samples; sample++)
      SMOE_TRY(s->o->json ? write_json(s, prompts->text[p], sample) : write_text(s, prompts, p, sample));
  }
  return SMOE_OK;
}

static smoe_status open_tokenizer(session *s) {
  const smoe_corpus *corpus = &s->m->task.corpus;
  SMOE_CHECK(corpus->model, SMOE_ERR_CONFIG,
             "'%s' holds no tokenizer (it was made from token shards): give a corpus of the same vocabulary "
             "that has one with --corpus",
             corpus->path);
  SMOE_TRY(smoe_tokenizer_open(&s->tokenizer, corpus->model, corpus->model_bytes));
  SMOE_CHECK(smoe_tokenizer_size(s->tokenizer) == corpus->vocabulary, SMOE_ERR_FORMAT,
             "the tokenizer in '%s' has %d pieces, its vocabulary is %d: prepare it again", corpus->path,
             smoe_tokenizer_size(s->tokenizer), corpus->vocabulary);
  return SMOE_OK;
}

static smoe_status generate(session *s, const smoe_prompts *prompts) {
  SMOE_TRY_ALL(s->group, open_tokenizer(s));
  SMOE_TRY(smoe_decoder_create(&s->decoder, s->m->model, !s->o->no_cache));
  if (!smoe_decoder_is_cached(s->decoder) && !s->o->no_cache)
    smoe_note("routing method %s looks at later tokens: every token is computed with its whole context",
              smoe_config_settings(s->m->config)->router.method);
  s->logits = smoe_alloc(s->m->model->vocabulary * sizeof *s->logits);
  s->kept = smoe_alloc(s->m->model->vocabulary * sizeof *s->kept);
  const double begin = smoe_seconds();
  SMOE_TRY(write_all(s, prompts));
  const double seconds = smoe_seconds() - begin;
  smoe_note("%lld tokens in %.2f s: %.1f tokens/s", (long long)s->n_added, seconds,
            (double)s->n_added / seconds);
  smoe_model_note_skips(s->m->model);
  return SMOE_OK;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  smoe_prompts prompts;
  smoe_app_model m = {0};
  session s = {.m = &m, .group = group, .o = o};
  const smoe_app_opening opening = {
      .corpus = o->corpus, .single = true, .precision = o->precision, .set = &o->set};
  smoe_status status = smoe_prompts_read(&prompts, group, &o->prompts, o->prompt_file);
  char path[4096];
  if (status == SMOE_OK)
    status = smoe_app_checkpoint_choose(path, sizeof path, group, arguments->word[0], o->best);
  if (status == SMOE_OK) status = smoe_app_model_open(&m, group, path, &opening);
  if (status == SMOE_OK) status = generate(&s, &prompts);
  smoe_decoder_destroy(s.decoder);
  if (s.tokenizer) smoe_tokenizer_close(s.tokenizer);
  smoe_free(s.ids);
  smoe_free(s.logits);
  smoe_free(s.kept);
  smoe_prompts_release(&prompts);
  smoe_app_model_close(&m);
  return status;
}

const smoe_command smoe_command_generate = {
    .name = "generate",
    .arguments = "CHECKPOINT|RUN",
    .title = "text from a model",
    .text = "Continue texts with a trained model; of a run directory, with its latest checkpoint. Text comes "
            "while it is made. It depends on the model, the prompt, the seed and the number of the sample, "
            "and not on the number of ranks.",
    .example = "stablemoe generate runs/stable --prompt \"def main(\" --top-p 0.9 --samples 3",
    .usage = "one CHECKPOINT or run directory",
    .min_args = 1,
    .max_args = 1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .run = run,
};
