#include "stablemoe/route_facts.h"

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
  int32_t *recorded = NULL;
  if (status == SMOE_OK) status = read_recorded(model, task->vocabulary, &recorded);
  facts.recorded = recorded;
  facts.count = count;
  facts.embedding = embedding;
  for (int m = 0; m < model->n_moe && status == SMOE_OK; m++) {
    status = smoe_group_agree(group, task->ops->counts(task, model->moe[m]->stream, count));
    if (status == SMOE_OK) first->ops->prepare(&model->moe[m]->router, &model->params, &facts);
  }
  smoe_free(count);
  smoe_free(recorded);
  smoe_free(embedding);
  return status;
}
