#include <inttypes.h>
#include <string.h>

#include "export_layout.h"
#include "open_model.h"
#include "stablemoe/json.h"
#include "stablemoe/log.h"
#include "stablemoe/safetensors.h"

typedef struct options {
  const char *output, *corpus;
  bool split_experts, best;
  int layout; /* smoe_layout */
} options;

static const smoe_option OPTIONS[] = {
    {'o', "output", SMOE_OPTION_OUTPUT, offsetof(options, output), "FILE",
     "file to write, NAME.safetensors; NAME.json and NAME.tokenizer are next to it (default "
     "model.safetensors)"},
    {0, "split-experts", SMOE_OPTION_FLAG, offsetof(options, split_experts), NULL,
     "write each expert to a file of its own, and NAME.safetensors.index.json, which lists what is in which "
     "file"},
    SMOE_BEST_OPTION(options),
    {0, "layout", SMOE_OPTION_CHOICE, offsetof(options, layout), NULL,
     "names and shapes of the tensors: this program's, or those of a GPT-2 or Llama model, with a "
     "config.json beside "
     "them (default stablemoe)",
     .choices = smoe_layout_names},
    {'c', "corpus", SMOE_OPTION_FILE, offsetof(options, corpus), "FILE",
     "corpus to take the tokenizer from (default: the one it was trained on)"},
};

enum { HASH_TEXT = 17 };

static const options DEFAULTS = {.output = "model.safetensors"};

/* What the tensors alone do not say, as a JSON object in memory of smoe_alloc. */
static char *about(const smoe_config *config, const smoe_checkpoint_meta *meta, const smoe_corpus *corpus,
                   const char *tokenizer) {
  char hash[2][HASH_TEXT];
  snprintf(hash[0], HASH_TEXT, "%016" PRIx64, meta->fingerprint);
  snprintf(hash[1], HASH_TEXT, "%016" PRIx64, meta->tokenizer);
  smoe_json json;
  smoe_json_begin_text(&json, 2);
  smoe_json_object(&json, NULL);
  smoe_json_text(&json, "format", "stablemoe-export");
  smoe_json_int(&json, "version", 1);
  smoe_json_text(&json, "program", "stablemoe " SMOE_VERSION);
  smoe_json_text(&json, "real", SMOE_REAL_NAME);
  smoe_json_int(&json, "update", meta->update);
  smoe_json_int(&json, "stage", meta->stage);
  smoe_json_int(&json, "tokens_seen", meta->n_tokens_seen);
  smoe_json_text(&json, "corpus", meta->corpus);
  smoe_json_text(&json, "corpus_fingerprint", hash[0]);
  smoe_json_text(&json, "tokenizer_hash", hash[1]);
  smoe_json_text(&json, "tokenizer", tokenizer);
  if (tokenizer) {
    smoe_json_text(&json, "tokenizer_kind", "sentencepiece");
    smoe_json_int(&json, "end_id", corpus->end_id);
  }
  smoe_config_json(config, &json, "configuration");
  smoe_json_end(&json);
  return smoe_json_take(&json, NULL);
}

/* The tokenizer is worth a warning, not the export: other programs may have one of their own. */
static smoe_status find_tokenizer(smoe_corpus *corpus, const options *o, const smoe_checkpoint_meta *meta,
                                  const char *path) {
  *corpus = (smoe_corpus){0};
  if (smoe_corpus_open_local(corpus, o->corpus ? o->corpus : smoe_app_corpus_path(meta)) != SMOE_OK) {
    if (o->corpus) return SMOE_FAIL(SMOE_ERR_IO, "no tokenizer: %s", smoe_last_error());
    smoe_warn("no tokenizer is written: %s; name its corpus with --corpus", smoe_last_error());
  } else if (!corpus->model) {
    smoe_warn("no tokenizer is written: '%s' holds none", corpus->path);
  } else if (smoe_corpus_check_tokenizer(corpus, meta->tokenizer, meta->fingerprint, path) != SMOE_OK) {
    if (o->corpus) return SMOE_ERR_CONFIG;
    smoe_warn("no tokenizer is written: %s", smoe_last_error());
    smoe_corpus_close(corpus);
  }
  return SMOE_OK;
}

static smoe_status write_export(const options *o, const char *path, const smoe_config *config,
                                const smoe_checkpoint_meta *meta, const smoe_corpus *corpus) {
  const char *slash = strrchr(o->output, '/'), *name = slash ? slash + 1 : o->output;
  const char *dot = strrchr(name, '.');
  char *tokenizer = corpus->model
                        ? smoe_sprintf("%.*s.tokenizer", (int)(dot ? dot - name : (long)strlen(name)), name)
                        : NULL;
  char *text = about(config, meta, corpus, tokenizer);
  const smoe_export export = {.checkpoint = path,
                              .output = o->output,
                              .split_experts = o->split_experts,
                              .about = text,
                              .tokenizer = corpus->model,
                              .tokenizer_bytes = corpus->model_bytes};
  smoe_export_result result;
  const smoe_status status = smoe_export_write(&export, &result);
  if (status == SMOE_OK)
    smoe_note("'%s': %lld tensors, %lld parameters, %.1f MB; %lld files", o->output,
              (long long)result.n_tensors, (long long)result.n_values, (double)result.n_bytes / 1e6,
              (long long)result.n_files);
  smoe_free(text);
  smoe_free(tokenizer);
  return status;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const smoe_group alone = {.comm = MPI_COMM_SELF, .rank = 0, .n_ranks = 1};
  char path[4096];
  smoe_checkpoint_meta meta = {0};
  smoe_corpus corpus = {0};
  smoe_config *config = smoe_app_config();
  const options *o = values;
  smoe_status status = smoe_app_checkpoint_choose(path, sizeof path, &alone, arguments->word[0], o->best);
  if (status == SMOE_OK) status = smoe_checkpoint_read_meta(path, &alone, &meta);
  if (status == SMOE_OK) status = smoe_config_parse(config, meta.configuration, path);
  if (status == SMOE_OK && o->layout != SMOE_LAYOUT_OWN) {
    status = smoe_export_layout((smoe_layout)o->layout, path, config, o->output);
  } else {
    const bool images = status == SMOE_OK && strcmp(smoe_family_of(config)->task, "images") == 0;
    if (images && o->corpus)
      status =
          SMOE_FAIL(SMOE_ERR_CONFIG, "--corpus: '%s' is a model of images, which has no tokenizer", path);
    if (status == SMOE_OK && !images) status = find_tokenizer(&corpus, o, &meta, path);
    if (status == SMOE_OK) status = write_export(o, path, config, &meta, &corpus);
  }
  smoe_corpus_close(&corpus);
  smoe_free(meta.configuration);
  smoe_config_destroy(config);
  return status;
}

const smoe_command smoe_command_export = {
    .name = "export",
    .arguments = "CHECKPOINT|RUN",
    .title = "a checkpoint as a safetensors file, for other programs",
    .text =
        "Write the parameters of a checkpoint, or of a run's latest one, as a safetensors file; beside it "
        "its configuration (JSON) and its tokenizer (SentencePiece). doc/using-a-model.md has the names "
        "and how to read them.",
    .example = "stablemoe export runs/stable -o stable.safetensors",
    .serial = true,
    .usage = "one CHECKPOINT or run directory",
    .min_args = 1,
    .max_args = 1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .run = run,
};
