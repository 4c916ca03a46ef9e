/* A safetensors file as a checkpoint: what `export` wrote, or a GPT-2 or Llama model. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "layouts.h"
#include "open_model.h"
#include "stablemoe/log.h"

typedef struct options {
  const char *output, *config;
  smoe_words set;
} options;

static const smoe_option OPTIONS[] = {
    {'o', "output", SMOE_OPTION_OUTPUT, offsetof(options, output), "CHECKPOINT",
     "checkpoint to write (default: the file's name with .h5)"},
    {'c', "config", SMOE_OPTION_FILE, offsetof(options, config), "FILE",
     "config.json of a GPT-2 or Llama model (default: the one in the file's directory, if the file is not of "
     "`stablemoe "
     "export`)"},
    {'P', "set", SMOE_OPTION_KEYS, offsetof(options, set), "KEY=VALUE",
     "set one configuration key of the checkpoint; may be repeated"},
};

static const options DEFAULTS = {0};

typedef struct import {
  const options *o;
  smoe_tensors tensors;
  smoe_config *config;
  smoe_layout layout;
  smoe_checkpoint_meta meta;
  smoe_model *model;
  bool *used; /* [tensors.n] */
} import;

/* ---- configuration ---- */

static smoe_status set_key(smoe_config *config, const char *key, const json_t *value) {
  char *text = NULL;
  if (json_is_string(value)) {
    text = smoe_strdup(json_string_value(value));
  } else if (json_is_array(value)) {
    text = smoe_strdup("");
    for (size_t i = 0; i < json_array_size(value); i++) {
      const char *item = json_string_value(json_array_get(value, i));
      char *longer = smoe_sprintf("%s%s%s", text, i ? "," : "", item ? item : "");
      smoe_free(text);
      text = longer;
    }
  } else if (json_is_boolean(value)) {
    text = smoe_strdup(json_is_true(value) ? "true" : "false");
  } else if (json_is_integer(value)) {
    text = smoe_sprintf("%lld", (long long)json_integer_value(value));
  } else if (json_is_real(value)) {
    text = smoe_sprintf("%.17g", json_real_value(value));
  } else {
    return SMOE_OK; /* null: a number that is not finite, which no key has */
  }
  char *assignment = smoe_sprintf("%s=%s", key, text);
  const smoe_status status = smoe_config_override(config, assignment);
  smoe_free(assignment);
  smoe_free(text);
  return status;
}

/* What `stablemoe export` writes beside the tensors. */
static smoe_status read_about(import *m, const json_t *about) {
  const char *key, *corpus = json_string_value(json_object_get(about, "corpus")),
                   *print = json_string_value(json_object_get(about, "corpus_fingerprint"));
  json_t *value;
  json_object_foreach(json_object_get(about, "configuration"), key, value)
      SMOE_TRY(set_key(m->config, key, value));
  m->meta.update = json_integer_value(json_object_get(about, "update"));
  m->meta.stage = (int)json_integer_value(json_object_get(about, "stage"));
  m->meta.n_tokens_seen = json_integer_value(json_object_get(about, "tokens_seen"));
  m->meta.fingerprint = print ? strtoull(print, NULL, 16) : 0;
  const char *hash = json_string_value(json_object_get(about, "tokenizer_hash"));
  m->meta.tokenizer = hash ? strtoull(hash, NULL, 16) : 0;
  snprintf(m->meta.corpus, sizeof m->meta.corpus, "%s", corpus ? corpus : "");
  return SMOE_OK;
}

static smoe_status configure(import *m, const char *path) {
  json_t *about = m->tensors.config ? json_loads(m->tensors.config, 0, NULL) : NULL;
  const char *format = json_string_value(json_object_get(about, "format"));
  smoe_status status;
  m->meta.stage = 1;
  if (!m->o->config && format && strcmp(format, "stablemoe-export") == 0) {
    m->layout = SMOE_LAYOUT_OWN;
    status = read_about(m, about);
  } else {
    const char *slash = strrchr(path, '/');
    char *beside = smoe_sprintf("%.*sconfig.json", slash ? (int)(slash - path + 1) : 0, path);
    const char *file = m->o->config ? m->o->config : beside;
    status =
        access(file, R_OK) == 0
            ? smoe_layout_read_config(m->config, file, &m->layout)
            : SMOE_FAIL(
                  SMOE_ERR_IO,
                  "'%s' is not of `stablemoe export`, and there is no '%s' that describes a GPT-2 or Llama "
                  "model: name it by --config",
                  path, file);
    smoe_free(beside);
  }
  json_decref(about);
  SMOE_TRY(status);
  SMOE_TRY(smoe_app_config_override(m->config, &m->o->set));
  SMOE_TRY(smoe_app_config_finish(m->config));
  m->meta.seed = (uint64_t)smoe_config_settings(m->config)->run.seed;
  m->meta.n_sequences_seen = m->meta.n_tokens_seen / smoe_config_settings(m->config)->model.context;
  return SMOE_OK;
}

/* ---- values ---- */

/* The tensor of a name; GPT-2 files are found with and without the prefix. */
static const smoe_tensor *find(import *m, const char *name) {
  const smoe_tensor *t = smoe_tensors_find(&m->tensors, name);
  if (!t && strncmp(name, "transformer.", 12) == 0) t = smoe_tensors_find(&m->tensors, name + 12);
  if (t) m->used[t - m->tensors.tensor] = true;
  return t;
}

static int64_t n_values(const smoe_tensor *t) {
  int64_t n = 1;
  for (int d = 0; d < t->n_dims; d++) n *= t->shape[d];
  return n;
}

/* Whether a tensor has the shape of rows [rows, columns...] of a parameter, with all its dimensions in their places. */
static bool fits(const smoe_tensor *t, const int64_t *shape, int n_dims, const smoe_layout_part *part) {
  if (t->n_dims != n_dims) return false;
  if (part->transposed) return n_dims == 2 && t->shape[0] == shape[1] && t->shape[1] == part->rows;
  for (int d = 0; d < n_dims; d++)
    if (t->shape[d] != (d == 0 ? part->rows : shape[d])) return false;
  return true;
}

static smoe_status read_part(import *m, const smoe_layout_part *part, const char *param, const int64_t *shape,
                             int n_dims, smoe_real *out) {
  const smoe_tensor *t = find(m, part->tensor);
  SMOE_CHECK(t, SMOE_ERR_FORMAT, "'%s' lacks the tensor '%s'", m->tensors.path, part->tensor);
  SMOE_CHECK(fits(t, shape, n_dims, part), SMOE_ERR_FORMAT,
             "'%s': the tensor '%s' has another shape than '%s' of the configured model needs",
             m->tensors.path, t->name, param);
  const int64_t n = n_values(t), columns = part->rows ? n / part->rows : 0;
  smoe_real *to = out + part->first * columns;
  if (!part->transposed) return smoe_tensors_read(&m->tensors, t, to);
  smoe_real *values = smoe_alloc((size_t)n * sizeof *values);
  const smoe_status status = smoe_tensors_read(&m->tensors, t, values);
  for (int64_t r = 0; r < part->rows; r++)
    for (int64_t c = 0; c < columns; c++) to[r * columns + c] = values[c * part->rows + r];
  smoe_free(values);
  return status;
}

static smoe_status read_param(import *m, int p) {
  const smoe_params *params = &m->model->params;
  const smoe_param *param = &params->param[p];
  const smoe_slab *slab = smoe_params_slab(params, p);
  const bool expert = param->sharding == SMOE_EXPERT;
  int64_t shape[SMOE_DIMS_MAX + 1];
  int n_dims = 0;
  if (expert) shape[n_dims++] = slab->n_experts;
  for (int d = 0; d < param->n_dims; d++) shape[n_dims++] = param->shape[d];
  smoe_layout_part part[SMOE_LAYOUT_PARTS];
  const smoe_layout_sizes sizes = smoe_layout_sizes_of(m->config);
  const int n_parts = smoe_layout_parts(m->layout, &sizes, param->name, shape[0], part);
  SMOE_CHECK(n_parts > 0, SMOE_ERR_CONFIG, "layout %s has no '%s'", smoe_layout_names[m->layout],
             param->name);
  const size_t copies = expert ? (size_t)slab->n_experts : 1;
  smoe_real *values = smoe_alloc(copies * param->count * sizeof *values);
  smoe_status status = SMOE_OK;
  for (int i = 0; i < n_parts && status == SMOE_OK; i++)
    status = read_part(m, &part[i], param->name, shape, n_dims, values);
  for (int j = 0; j < slab->n_local && status == SMOE_OK; j++) {
    const size_t from = expert ? (size_t)smoe_slab_expert_number(slab, j) * param->count : 0;
    memcpy(expert ? smoe_params_expert(params, p, j) : smoe_params_shared(params, p), values + from,
           param->count * sizeof *values);
  }
  smoe_free(values);
  return status;
}

static smoe_status read_values(import *m) {
  for (int p = 0; p < m->model->params.n_params; p++) SMOE_TRY(read_param(m, p));
  for (size_t i = 0; i < m->tensors.n; i++) {
    const char *name = m->tensors.tensor[i].name;
    if (m->used[i] || (m->layout != SMOE_LAYOUT_OWN && smoe_layout_is_constant(name))) continue;
    /* A tied head may be stored once more. */
    if (m->layout != SMOE_LAYOUT_OWN && strcmp(name, "lm_head.weight") == 0) continue;
    return SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' has the tensor '%s', which the configured model does not have",
                     m->tensors.path, name);
  }
  return SMOE_OK;
}

/* ---- the checkpoint ---- */

static smoe_status build(import *m, const smoe_group *alone) {
  smoe_layout_part part[SMOE_LAYOUT_PARTS];
  const smoe_layout_sizes sizes = smoe_layout_sizes_of(m->config);
  m->used = smoe_alloc((m->tensors.n + 1) * sizeof *m->used);
  smoe_layout_parts(m->layout, &sizes, "embedding/table", 0, part);
  const smoe_tensor *table = find(m, part[0].tensor);
  SMOE_CHECK(table && table->n_dims == 2 && table->shape[0] > 0 && table->shape[0] <= INT32_MAX,
             SMOE_ERR_FORMAT, "'%s' lacks the tensor '%s', whose rows are the vocabulary", m->tensors.path,
             part[0].tensor);
  /* Of the memory for a pass, which there will not be, as little as possible. */
  const smoe_model_shape shape = {
      .vocabulary = (int)table->shape[0], .n_lanes = 1, .lane_sequences = 1, .context = 1};
  return smoe_model_create(&m->model, m->config, alone, &shape, false);
}

static smoe_status save(import *m, const char *output) {
  char *directory = smoe_sprintf("%s.part", output), *link = smoe_sprintf("%s/latest", directory);
  m->meta.configuration = smoe_config_text(m->config, false);
  smoe_status status = smoe_checkpoint_save(directory, &m->model->params, &m->meta);
  char **list = status == SMOE_OK ? smoe_checkpoint_list(directory) : NULL;
  if (list && list[0] && rename(list[0], output) != 0)
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot name the checkpoint '%s': %s", output, strerror(errno));
  for (size_t i = 0; list && list[i]; i++) smoe_free(list[i]);
  smoe_free(list);
  unlink(link);
  rmdir(directory);
  smoe_free(link);
  smoe_free(directory);
  return status;
}

static smoe_status run_import(import *m, const char *path, const char *output) {
  const smoe_group alone = {.comm = MPI_COMM_SELF, .rank = 0, .n_ranks = 1};
  SMOE_TRY(smoe_tensors_open(&m->tensors, path));
  SMOE_TRY(configure(m, path));
  SMOE_TRY(build(m, &alone));
  SMOE_TRY(read_values(m));
  SMOE_TRY(save(m, output));
  const smoe_params *params = &m->model->params;
  smoe_note("'%s': %d parameters, %lld values, from %zu tensors of layout %s", output, params->n_params,
            (long long)(smoe_params_total(params, SMOE_REPLICATED) + smoe_params_total(params, SMOE_EXPERT)),
            m->tensors.n, smoe_layout_names[m->layout]);
  return SMOE_OK;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  (void)group;
  const options *o = values;
  const char *path = arguments->word[0], *slash = strrchr(path, '/'),
             *dot = strrchr(slash ? slash : path, '.');
  char *output = o->output ? smoe_strdup(o->output)
                           : smoe_sprintf("%.*s.h5", dot ? (int)(dot - path) : (int)strlen(path), path);
import m = {.o = o, .config = smoe_app_config() };
  const smoe_status status = run_import(&m, path, output);
  smoe_model_destroy(m.model);
  smoe_tensors_close(&m.tensors);
  smoe_free(m.meta.configuration);
  smoe_free(m.used);
  smoe_config_destroy(m.config);
  smoe_free(output);
  return status;
}

const smoe_command smoe_command_import = {
    .name = "import",
    .arguments = "FILE.safetensors",
    .title = "a safetensors file as a checkpoint",
    .text = "Make a checkpoint of a safetensors file: of one that `stablemoe export` wrote, with the same "
            "bits, or of a "
            "GPT-2 or Llama model with its config.json. Names and shapes are checked. The checkpoint has no "
            "moments: "
            "evaluate, generate and train.initial read it, a resume does not. A model of another program "
            "needs a corpus "
            "made with that program's tokenizer.",
    .example = "stablemoe import model.safetensors -o model.h5",
    .serial = true,
    .usage = "one FILE.safetensors",
    .min_args = 1,
    .max_args = 1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .run = run,
};
