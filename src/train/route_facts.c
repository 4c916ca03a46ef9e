#include "stablemoe/route_facts.h"

#include <stdio.h>
#include <string.h>

#include "replay.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/log.h"

/* The token embeddings of a trained model; *values in memory of smoe_alloc. */
static smoe_status read_embedding(const char *path, const smoe_group *group, const smoe_corpus *corpus,
                                  smoe_real **values, size_t *width) {
  smoe_checkpoint_meta meta;
  SMOE_TRY(smoe_checkpoint_read_meta(path, group, &meta));
  smoe_free(meta.configuration);
  SMOE_TRY_ALL(group, smoe_corpus_check_tokenizer(corpus, meta.tokenizer, meta.fingerprint, path));
  int64_t rows, columns;
  SMOE_TRY(smoe_checkpoint_read_matrix(path, group, "embedding/table", &rows, &columns, values));
  *width = (size_t)columns;
  SMOE_CHECK(rows == corpus->vocabulary, SMOE_ERR_CONFIG,
             "the model '%s' knows %lld tokens, the corpus '%s' has %d: use a model trained on this corpus",
             path, (long long)rows, corpus->path, corpus->vocabulary);
  return SMOE_OK;
}

/* Whether a run's distilled routers look at the word alone: what its method's section says. */
static bool is_of_words(const char *configuration, const char *method) {
  char section[SMOE_TEXT_MAX + 8];
  snprintf(section, sizeof section, "\n  %s:\n", method);
  const char *line = strstr(configuration, section);
  if (line) line = strchr(line + 1, '\n') + 1;
  /* The lines of a section are further in than its name. */
  for (; line && strncmp(line, "    ", 4) == 0; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
    if (strncmp(line, "    features: word\n", 19) == 0) return true;
  return false;
}

/* Check that a checkpoint has distilled routers that fit the model. */
static smoe_status check_distilled(const char *path, const smoe_model *model, const smoe_corpus *corpus) {
  const smoe_group *group = &model->params.group;
  smoe_checkpoint_meta meta;
  smoe_config *stored = NULL;
  SMOE_TRY(smoe_checkpoint_read_meta(path, group, &meta));
  smoe_status status = smoe_config_stored(model->config, meta.configuration, path, &stored);
  const smoe_settings *settings = status == SMOE_OK ? smoe_config_settings(stored) : NULL;
  const smoe_settings *here = smoe_config_settings(model->config);
  const bool fits = settings && is_of_words(meta.configuration, settings->router.method) &&
                    settings->moe.experts == here->moe.experts && settings->moe.layers == here->moe.layers;
  if (status == SMOE_OK && !fits)
    status =
        SMOE_FAIL(SMOE_ERR_CONFIG,
                  "router.hash.table '%s': a table comes from a run of method stable or base_stage2 with "
                  "features word and with moe.layers %lld, moe.experts %lld as here; that one has method %s, "
                  "moe.layers %lld, moe.experts %lld",
                  path, (long long)here->moe.layers, (long long)here->moe.experts, settings->router.method,
                  (long long)settings->moe.layers, (long long)settings->moe.experts);
  smoe_config_destroy(stored);
  smoe_free(meta.configuration);
  SMOE_TRY_ALL(group, status);
  return smoe_group_agree(group, smoe_corpus_check_tokenizer(corpus, meta.tokenizer, meta.fingerprint, path));
}

/* The distilled router of one MoE layer; memory of smoe_alloc. */
typedef struct distilled {
  char *path; /* of the checkpoint; NULL: none is wanted */
  smoe_real *word, *centroid;
} distilled;

static smoe_status open_distilled(distilled *from, const smoe_model *model, const smoe_task *task) {
  const smoe_router *first = model->n_moe ? &model->moe[0]->router : NULL;
  const char *path = first && first->ops->distilled_of ? first->ops->distilled_of(first) : NULL;
  *from = (distilled){.path = path ? smoe_checkpoint_resolve(path) : NULL};
  return from->path ? check_distilled(from->path, model, &task->corpus) : SMOE_OK;
}

static void forget_distilled(distilled *from) {
  smoe_free(from->word);
  smoe_free(from->centroid);
  from->word = from->centroid = NULL;
}

static smoe_status read_distilled(distilled *from, const smoe_model *model, int m, smoe_route_facts *facts) {
  const smoe_group *group = &model->params.group;
  int64_t rows, experts, width;
  char name[SMOE_NAME_MAX];
  forget_distilled(from);
  if (!from->path) return SMOE_OK;
  snprintf(name, sizeof name, "moe%d/router/distilled/embedding", m);
  SMOE_TRY(smoe_checkpoint_read_matrix(from->path, group, name, &rows, &width, &from->word));
  snprintf(name, sizeof name, "moe%d/router/distilled/centroid", m);
  SMOE_TRY(smoe_checkpoint_read_matrix(from->path, group, name, &experts, &width, &from->centroid));
  SMOE_CHECK(rows == model->moe[m]->router.vocabulary && experts == model->moe[m]->router.n_experts,
             SMOE_ERR_CONFIG,
             "'%s': the distilled router of MoE layer %d has %lld tokens and %lld experts, not %d and %d",
             from->path, m, (long long)rows, (long long)experts, model->moe[m]->router.vocabulary,
             model->moe[m]->router.n_experts);
  facts->word = from->word;
  facts->centroid = from->centroid;
  facts->distilled_width = (size_t)width;
  return SMOE_OK;
}

static void close_distilled(distilled *from) {
  forget_distilled(from);
  smoe_free(from->path);
}

/* Experts by token id in the log that is replayed, where one is; in memory of smoe_alloc. */
static smoe_status read_recorded(const smoe_model *model, int vocabulary, int32_t **recorded) {
  smoe_routing_reader *reader;
  *recorded = NULL;
  SMOE_TRY(smoe_replay_reader(&reader, model));
  if (!reader) return SMOE_OK;
  const size_t slots = (size_t)model->n_moe * (size_t)model->moe[0]->router.n_slots;
  *recorded = smoe_alloc((size_t)vocabulary * slots * sizeof **recorded);
  const smoe_status status = smoe_routing_reader_usual(reader, vocabulary, *recorded);
  smoe_routing_reader_close(reader);
  return status;
}

smoe_status smoe_routers_check(const smoe_model *model, const smoe_task *task) {
  const smoe_corpus *corpus = &task->corpus;
  const smoe_router *first = model->n_moe ? &model->moe[0]->router : NULL;
  const char *path = first && first->ops->embedding_of ? first->ops->embedding_of(first) : NULL;
  distilled from;
  const smoe_status opened = open_distilled(&from, model, task);
  close_distilled(&from);
  SMOE_TRY(opened);
  if (!path) return SMOE_OK;
  smoe_real *embedding = NULL;
  size_t width;
  const smoe_status status = read_embedding(path, &model->params.group, corpus, &embedding, &width);
  smoe_free(embedding);
  return status;
}

smoe_status smoe_routers_prepare(smoe_model *model, const smoe_task *task) {
  const smoe_group *group = &model->params.group;
  smoe_router *first = model->n_moe ? &model->moe[0]->router : NULL;
  if (!first || !first->ops->prepare) return SMOE_OK;
  smoe_real *embedding = NULL;
  smoe_route_facts facts = {0};
  int64_t *count = smoe_alloc((size_t)task->vocabulary * sizeof *count);
  smoe_status status = SMOE_OK;
  const char *path = first->ops->embedding_of ? first->ops->embedding_of(first) : NULL;
  if (path) status = read_embedding(path, group, &task->corpus, &embedding, &facts.embedding_width);
  distilled from = {NULL};
  if (status == SMOE_OK) status = open_distilled(&from, model, task);
  int32_t *recorded = NULL;
  if (status == SMOE_OK) status = read_recorded(model, task->vocabulary, &recorded);
  facts.recorded = recorded;
  facts.count = count;
  facts.embedding = embedding;
  smoe_params_fence(&model->params);
  for (int m = 0; m < model->n_moe && status == SMOE_OK; m++) {
    status = smoe_group_agree(group, task->ops->counts(task, model->moe[m]->stream, count));
    if (status == SMOE_OK) status = read_distilled(&from, model, m, &facts);
    if (status == SMOE_OK && smoe_params_writes(&model->params))
      first->ops->prepare(&model->moe[m]->router, &model->params, &facts);
  }
  smoe_params_fence(&model->params);
  close_distilled(&from);
  smoe_free(count);
  smoe_free(recorded);
  smoe_free(embedding);
  return status;
}
