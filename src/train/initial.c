#include "stablemoe/initial.h"

#include <stdio.h>
#include <string.h>

#include "stablemoe/checkpoint.h"
#include "stablemoe/log.h"
#include "upcycle.h"

/* The file, and for each parameter of the model the entry that it is taken from. */
typedef struct plan {
  smoe_model *model;
  const smoe_params *params;
  char *path;
  smoe_checkpoint_meta meta;
  smoe_config *stored; /* of the file; NULL where it cannot be read */
  smoe_layer_list theirs;
  smoe_checkpoint_content *content;
  int64_t n_content;
  int64_t *entry;  /* [n_params] in content; -1: keeps what was drawn */
  bool *used;      /* [n_content] */
  int *upcycled;   /* [n_params] MoE layer whose experts are made from the entry; -1: taken as it is */
  int64_t *slices; /* [n_moe] of each copy */
} plan;

static void release(plan *p) {
  smoe_free(p->path);
  smoe_free(p->meta.configuration);
  if (p->stored) smoe_config_destroy(p->stored);
  smoe_free(p->theirs.spec);
  smoe_free(p->content);
  smoe_free(p->entry);
  smoe_free(p->used);
  smoe_free(p->upcycled);
  smoe_free(p->slices);
}

/* ---- matching ---- */

static int64_t find_entry(const plan *p, const char *name) {
  for (int64_t i = 0; i < p->n_content; i++)
    if (strcmp(p->content[i].name, name) == 0) return i;
  return -1;
}

static const smoe_layer_spec *find_spec(const smoe_layer_list *list, const char *name) {
  for (int i = 0; i < list->n; i++)
    if (strcmp(list->spec[i].name, name) == 0) return &list->spec[i];
  return NULL;
}

static void print_shape(char *text, size_t bytes, const int64_t *shape, int n) {
  size_t used = (size_t)snprintf(text, bytes, "[");
  for (int d = 0; d < n && used < bytes; d++)
    used += (size_t)snprintf(text + used, bytes - used, "%s%lld", d ? ", " : "", (long long)shape[d]);
  if (used < bytes) snprintf(text + used, bytes - used, "]");
}

static int shape_of(const smoe_params *params, int index, int64_t *shape) {
  const smoe_param *param = &params->param[index];
  int n = 0;
  if (param->sharding == SMOE_EXPERT) shape[n++] = smoe_params_slab(params, index)->n_experts;
  for (int d = 0; d < param->n_dims; d++) shape[n++] = param->shape[d];
  return n;
}

/* Why two shapes of one name differ, where that is known. */
static const char *reason(const char *name) {
  if (strcmp(name, "embedding/table") == 0 || strcmp(name, "head/weight") == 0)
    return ": the corpus has another vocabulary, or model.width differs; a vocabulary cannot be extended";
  if (strcmp(name, "embedding/position") == 0)
    return ": model.context or model.width differs; learned positions cannot be extended";
  return "";
}

static smoe_status check_shape(const plan *p, int index, const smoe_checkpoint_content *c) {
  int64_t shape[SMOE_DIMS_MAX + 1];
  const smoe_param *param = &p->params->param[index];
  const int n = shape_of(p->params, index, shape);
  const bool expert = param->sharding == SMOE_EXPERT;
  if (n == c->n_dims && expert == c->expert && memcmp(shape, c->shape, (size_t)n * sizeof *shape) == 0)
    return SMOE_OK;
  char ours[128], theirs[128];
  print_shape(ours, sizeof ours, shape, n);
  print_shape(theirs, sizeof theirs, c->shape, c->n_dims);
  return SMOE_FAIL(SMOE_ERR_CONFIG,
                   "train.initial: '%s' is %s in '%s', and %s in this model%s; leave it out by "
                   "train.initial_ignore, or configure the model as the other one was",
                   param->name, theirs, p->path, ours, reason(param->name));
}

/* The rule of moe.from covers a parameter that the file does not have. */
static smoe_status match_dense(plan *p, int index) {
  char name[SMOE_NAME_MAX], w2[SMOE_NAME_MAX];
  const int m = smoe_upcycle_source(p->model, index, name);
  if (m < 0) return SMOE_OK;
  const smoe_layer_spec *spec = NULL;
  for (int i = 0; i < p->model->n_layers; i++)
    if (p->model->layer[i].spec.moe == m) spec = &p->model->layer[i].spec;
  snprintf(w2, sizeof w2, "%s/w2", spec->from);
  const int64_t e = find_entry(p, name), weight = find_entry(p, w2);
  SMOE_TRY(smoe_upcycle_check(p->model, m, find_spec(&p->theirs, spec->from),
                              weight < 0 ? NULL : &p->content[weight], &p->slices[m]));
  SMOE_CHECK(e >= 0, SMOE_ERR_CONFIG, "moe.from: ffn: '%s' lacks '%s'", p->path, name);
  p->entry[index] = e;
  p->upcycled[index] = m;
  p->used[e] = true;
  return SMOE_OK;
}

static smoe_status match(plan *p) {
  for (int i = 0; i < p->params->n_params; i++) {
    const char *name = p->params->param[i].name;
    p->entry[i] = p->upcycled[i] = -1;
    const int64_t e = find_entry(p, name);
    if (e < 0) SMOE_TRY(match_dense(p, i));
    if (e < 0 || smoe_model_matches(smoe_config_settings(p->model->config)->train.initial_ignore, name))
      continue;
    SMOE_TRY(check_shape(p, i, &p->content[e]));
    p->entry[i] = e;
    p->used[e] = true;
  }
  return SMOE_OK;
}

/* Names of the file that fit nowhere. */
static smoe_status check_rest(const plan *p) {
  const char *ignore = smoe_config_settings(p->model->config)->train.initial_ignore;
  char names[512] = "";
  int64_t n = 0;
  for (int64_t i = 0; i < p->n_content; i++) {
    if (p->used[i] || smoe_model_matches(ignore, p->content[i].name)) continue;
    if (n++ >= 4) continue;
    const size_t used = strlen(names);
    snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", p->content[i].name);
  }
  SMOE_CHECK(
      n == 0, SMOE_ERR_CONFIG,
      "train.initial: %lld parameters of '%s' fit nowhere in this model: %s%s; configure it as that one "
      "was, or leave them out by train.initial_ignore",
      (long long)n, p->path, names, n > 4 ? ", ..." : "");
  int64_t taken = 0;
  for (int i = 0; i < p->params->n_params; i++) taken += p->entry[i] >= 0;
  SMOE_CHECK(taken > 0, SMOE_ERR_CONFIG, "train.initial: nothing of '%s' fits this model", p->path);
  return SMOE_OK;
}

/* ---- what shapes do not tell ---- */

static bool is_taken(const plan *p, const char *layer) {
  const size_t length = strlen(layer);
  for (int i = 0; i < p->params->n_params; i++)
    if (p->entry[i] >= 0 && strncmp(p->params->param[i].name, layer, length) == 0 &&
        p->params->param[i].name[length] == '/')
      return true;
  return false;
}

/* What the layer is without its gate. */
static const smoe_layer_ops *kind_of(const smoe_layer_spec *spec) {
  return spec->skip == SMOE_SKIP_ATTENTION ? &smoe_layer_attention
         : spec->skip == SMOE_SKIP_FFN     ? &smoe_layer_ffn
                                           : spec->ops;
}

/* The first property in which two layers of one name compute otherwise; NULL: none. */
static const char *difference(const smoe_layer_spec *a, const smoe_layer_spec *b) {
  const bool attention = kind_of(a) == &smoe_layer_attention, embedding = a->ops == &smoe_layer_embedding;
  if (!embedding && (a->norm != b->norm || a->expert_norm != b->expert_norm)) return "its norm";
  if (attention && (a->heads != b->heads || a->kv_heads != b->kv_heads)) return "the number of heads";
  if (attention && a->rope != b->rope) return "its rotary positions";
  if (attention && (a->causal != b->causal || a->cross != b->cross)) return "what it attends to";
  if (embedding && a->scale != b->scale) return "model.scale_embedding";
  if (!attention && !embedding && a->activation != b->activation) return "the activation";
  return NULL;
}

static smoe_status check_layers(const plan *p) {
  for (int i = 0; i < p->model->n_layers; i++) {
    const smoe_layer_spec *ours = &p->model->layer[i].spec, *theirs = find_spec(&p->theirs, ours->name);
    if (!theirs || !is_taken(p, ours->name)) continue;
    const char *what =
        kind_of(theirs) != kind_of(ours) ? "what kind of layer it is" : difference(ours, theirs);
    SMOE_CHECK(!what, SMOE_ERR_CONFIG,
               "train.initial: %s of '%s' is another one in '%s': the same numbers would mean another model",
               what, ours->name, p->path);
    SMOE_CHECK(
        ours->ops != &smoe_layer_embedding || ours->context <= theirs->context, SMOE_ERR_CONFIG,
        "train.initial: model.context is %zu, and '%s' was trained with %zu: a context cannot be extended",
        ours->context, p->path, theirs->context);
  }
  return SMOE_OK;
}

static smoe_status check_tokens(const plan *p, const smoe_task *task) {
  if (!is_taken(p, "embedding")) return SMOE_OK;
  SMOE_CHECK(
      !p->meta.tokenizer || !task->tokenizer || p->meta.tokenizer == task->tokenizer, SMOE_ERR_CONFIG,
      "train.initial: the tokenizer of data.corpus is not the one that '%s' was trained with: its token ids "
      "mean other text. 'stablemoe prepare TEXT --model TOKENIZER' makes a corpus by the tokenizer of that "
      "run (tokenizer.model in its directory)",
      p->path);
  return SMOE_OK;
}

/* ---- the table ---- */

/* A group is a name without its last part, and of at most two parts: "block0/attention". */
static size_t group_length(const char *name) {
  const char *last = strrchr(name, '/'), *first = strchr(name, '/');
  const char *second = first ? strchr(first + 1, '/') : NULL;
  return !last ? strlen(name) : second && second < last ? (size_t)(second - name) : (size_t)(last - name);
}

static int64_t elements(const plan *p, int index) {
  const smoe_slab *slab = smoe_params_slab(p->params, index);
  return (int64_t)p->params->param[index].count * (slab->n_experts > 0 ? slab->n_experts : 1);
}

static const char *origin(const plan *p, int index) {
  if (p->entry[index] < 0) return "drawn, not in the file";
  if (p->upcycled[index] < 0) return "taken";
  return p->params->param[index].sharding == SMOE_EXPERT ? "experts made of the feed-forward layer"
                                                         : "taken from it";
}

static void print_table(const plan *p) {
  smoe_note("initial values from '%s' (%lld updates):", p->path, (long long)p->meta.update);
  for (int i = 0; i < p->params->n_params;) {
    const char *name = p->params->param[i].name;
    const size_t length = group_length(name);
    int64_t n = 0;
    const int first = i;
    for (; i < p->params->n_params; i++) {
      const char *next = p->params->param[i].name;
      if (group_length(next) != length || strncmp(next, name, length) != 0) break;
      if (strcmp(origin(p, i), origin(p, first)) != 0) break;
      n += elements(p, i);
    }
    smoe_note("  %-32.*s %12lld  %s", (int)length, name, (long long)n, origin(p, first));
  }
  for (int64_t i = 0; i < p->n_content; i++)
    if (!p->used[i]) smoe_note("  %-32s %12s  in the file, left out", p->content[i].name, "");
}

/* ---- the whole ---- */

static smoe_status open_file(plan *p, const smoe_group *group) {
  const smoe_config *config = p->model->config;
  p->path = smoe_checkpoint_resolve(smoe_config_settings(config)->train.initial);
  SMOE_TRY(smoe_checkpoint_read_meta(p->path, group, &p->meta));
  SMOE_TRY(smoe_checkpoint_describe(p->path, group, &p->content, &p->n_content));
  p->entry = smoe_alloc((size_t)p->params->n_params * sizeof *p->entry);
  p->used = smoe_alloc((size_t)p->n_content * sizeof *p->used);
  p->upcycled = smoe_alloc((size_t)p->params->n_params * sizeof *p->upcycled);
  p->slices = smoe_alloc((size_t)p->model->n_moe * sizeof *p->slices);
  if (smoe_config_stored(config, p->meta.configuration, p->path, &p->stored) != SMOE_OK) {
    smoe_warn(
        "train.initial: the configuration in '%s' is of another version (%s): whether its layers compute as "
        "those of this model do is not checked",
        p->path, smoe_last_error());
    return SMOE_OK;
  }
  const smoe_family *family = smoe_family_of(p->stored);
  if (family) family->describe(p->stored, (int)p->model->vocabulary, &p->theirs);
  return SMOE_OK;
}

static smoe_status check_plan(plan *p, const smoe_task *task) {
  SMOE_TRY(match(p));
  SMOE_TRY(check_rest(p));
  SMOE_TRY(check_layers(p));
  return check_tokens(p, task);
}

/* Every rank reads the layers that its experts are made from. */
static smoe_status make_experts(const plan *p) {
  for (int i = 0; i < p->params->n_params; i++) {
    if (p->entry[i] < 0 || p->upcycled[i] < 0) continue;
    const smoe_checkpoint_content *c = &p->content[p->entry[i]];
    size_t n = 1;
    for (int d = 0; d < c->n_dims; d++) n *= (size_t)c->shape[d];
    smoe_real *source = smoe_alloc(n * sizeof *source);
    const smoe_status status = smoe_checkpoint_read_values(p->path, c->name, source);
    if (status == SMOE_OK) smoe_upcycle_fill(p->model, i, c, source, p->slices[p->upcycled[i]]);
    smoe_free(source);
    SMOE_TRY(status);
  }
  for (int m = 0; m < p->model->n_moe; m++)
    if (p->slices[m] > 1) smoe_upcycle_tie(p->model, m, p->slices[m]);
  return SMOE_OK;
}

static smoe_status load_values(const plan *p) {
  bool *take = smoe_alloc((size_t)p->params->n_params * sizeof *take);
  for (int i = 0; i < p->params->n_params; i++) take[i] = p->entry[i] >= 0 && p->upcycled[i] < 0;
  const smoe_status status = smoe_checkpoint_load_some(p->path, &p->model->params, take);
  smoe_free(take);
  SMOE_TRY(status);
  smoe_params_fence(&p->model->params);
  SMOE_TRY(smoe_group_agree(&p->params->group, make_experts(p)));
  smoe_params_round(&p->model->params);
  return SMOE_OK;
}

smoe_status smoe_initial_values(smoe_model *model, const smoe_task *task, bool load) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  SMOE_CHECK(settings->moe.from == SMOE_FROM_NOTHING || settings->train.initial[0], SMOE_ERR_CONFIG,
             "moe.from: ffn makes experts from a dense model: name it by train.initial");
  if (!settings->train.initial[0]) return SMOE_OK;
  plan p = {.model = model, .params = &model->params};
  smoe_status status = open_file(&p, &model->params.group);
  if (status == SMOE_OK) status = smoe_group_agree(&model->params.group, check_plan(&p, task));
  if (status == SMOE_OK) print_table(&p);
  if (status == SMOE_OK && load) status = load_values(&p);
  release(&p);
  return status;
}
