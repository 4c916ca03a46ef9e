#include "stablemoe/task.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const smoe_task_ops smoe_task_language;
extern const smoe_task_ops smoe_task_translation;
extern const smoe_task_ops smoe_task_images;

static const smoe_task_ops *const tasks[] = {&smoe_task_language, &smoe_task_translation, &smoe_task_images,
                                             NULL};

static void begin(smoe_task *task, const smoe_config *config, const smoe_group *group, const char *name) {
  *task = (smoe_task){.config = config, .settings = smoe_config_settings(config), .group = group};
  for (size_t i = 0; tasks[i]; i++)
    if (strcmp(tasks[i]->name, name) == 0) task->ops = tasks[i];
  SMOE_ASSERT(task->ops);
  smoe_task_objective(task, smoe_objective_cross_entropy);
}

void smoe_task_objective(smoe_task *task, smoe_objective each) {
  double consistency;
  task->copies = smoe_family_copies(task->config, &consistency);
  task->each = each;
  task->objective = task->copies > 1 ? smoe_objective_consistent(&task->each, consistency) : each;
}

void smoe_task_copy(const smoe_task *task, int32_t *rows, size_t n, size_t context) {
  const size_t copies = (size_t)task->copies;
  for (size_t i = n * copies;
       copies > 1 && i-- > 1;) /* from the end: none is overwritten before it was read */
    if (i != i / copies) memcpy(rows + i * context, rows + i / copies * context, context * sizeof *rows);
}

smoe_status smoe_task_open(smoe_task *task, const smoe_config *config, const smoe_group *group,
                           const char *path) {
  begin(task, config, group, smoe_family_of(config)->task);
  return task->ops->open(task, path);
}

void smoe_task_synthetic(smoe_task *task, const smoe_config *config, const smoe_group *group,
                         int vocabulary) {
  begin(task, config, group, "language");
  smoe_corpus_synthetic(&task->corpus, vocabulary, INT64_C(1) << 32);
  task->vocabulary = vocabulary;
}

void smoe_task_close(smoe_task *task) {
  if (task->ops) task->ops->close(task);
  for (int s = 0; s < SMOE_STREAMS; s++) {
    smoe_free(task->token[s]);
    smoe_free(task->length[s]);
  }
  smoe_free(task->target);
  smoe_free(task->patch);
  *task = (smoe_task){0};
}

bool smoe_task_is_language(const smoe_task *task) {
  return task->ops == &smoe_task_language;
}

bool smoe_task_is_images(const smoe_task *task) {
  return task->ops == &smoe_task_images;
}

void smoe_task_path(smoe_task *task, const char *path) {
  if (!realpath(path, task->absolute)) task->absolute[0] = '\0';
  snprintf(task->corpus.path, sizeof task->corpus.path, "%s", path);
}

bool smoe_task_has_split(const smoe_task *task, smoe_split split) {
  if (smoe_task_is_images(task)) return task->images.split[split].n > 0;
  return smoe_task_is_language(task) ? task->corpus.n_tokens[split] > 1
                                     : task->pairs.split[split].n_pairs > 0;
}

const smoe_corpus *smoe_task_tokenizer(const smoe_task *task) {
  return &task->corpus;
}

void smoe_task_take(smoe_task *task, const smoe_model *model) {
  if (task->target) return;
  for (int s = 0; s < SMOE_STREAMS; s++) {
    const smoe_token_shape *shape = &model->shape[s];
    task->token[s] = smoe_alloc((shape->n_tokens + 1) * sizeof *task->token[s]);
    /* With sequences of one row there are as many sequences as rows. */
    task->length[s] = smoe_alloc((shape->n_tokens + 1) * sizeof *task->length[s]);
  }
  task->target = smoe_alloc((model->shape[SMOE_MAIN].n_tokens + 1) * sizeof *task->target);
  if (model->patch)
    task->patch = smoe_alloc((model->shape[SMOE_MAIN].n_tokens * model->patch + 1) * sizeof *task->patch);
}
