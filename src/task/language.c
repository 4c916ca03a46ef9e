/* Language modelling: every sequence has model.context tokens, and each token predicts the one after it. */
#include <string.h>

#include "stablemoe/task.h"

static smoe_status open_language(smoe_task *task, const char *path) {
  SMOE_TRY(smoe_corpus_open(&task->corpus, task->group, path));
  task->vocabulary = task->corpus.vocabulary;
  task->fingerprint = task->corpus.fingerprint;
  task->tokenizer = task->corpus.tokenizer;
  memcpy(task->absolute, task->corpus.absolute, sizeof task->corpus.absolute);
  return SMOE_OK;
}

static void close_language(smoe_task *task) {
  smoe_corpus_close(&task->corpus);
}

static smoe_status check_language(const smoe_task *task) {
  return smoe_corpus_check(&task->corpus, task->group);
}

static smoe_status shape_language(smoe_task *task, smoe_model_shape *shape, bool for_training) {
  const smoe_settings *settings = task->settings;
  const int64_t parts = settings->train.lanes * settings->train.micro_batches;
  shape->vocabulary = task->vocabulary;
  shape->n_lanes = (int)settings->train.lanes;
  shape->lane_sequences = (size_t)(settings->train.batch_sequences / parts * task->copies);
  shape->objective = &task->objective;
  task->n_sequences = smoe_corpus_sequences(&task->corpus, SMOE_TRAIN, settings->model.context);
  SMOE_CHECK(!for_training || task->n_sequences > 0, SMOE_ERR_CONFIG,
             "the training split of '%s' has %lld tokens, too few for one sequence of model.context = %lld: "
             "use more text or a shorter context",
             task->corpus.path, (long long)task->corpus.n_tokens[SMOE_TRAIN],
             (long long)settings->model.context);
  return SMOE_OK;
}

/* Training sequences are whole, so every token has a target. */
static int64_t n_targets_language(smoe_task *task, int64_t update) {
  return task->settings->train.batch_sequences * task->settings->model.context;
}

static double passes_language(smoe_task *task, int64_t updates) {
  return (double)updates * (double)task->settings->train.batch_sequences / (double)task->n_sequences;
}

static int64_t n_units_language(const smoe_task *task) {
  return task->settings->train.batch_sequences;
}

/* Place j of the update's batch is in micro-batch j / (lanes S), lane j / S % lanes; its copies follow one another. */
static void read_language(smoe_task *task, const smoe_model *model, int64_t update, int64_t micro_batch,
                          smoe_batch *batch) {
  const smoe_settings *settings = task->settings;
  const smoe_token_shape *tokens = &model->shape[SMOE_MAIN];
  const int64_t context = settings->model.context;
  const int64_t first = (micro_batch * tokens->n_global + tokens->first_token) / context / task->copies;
  const int64_t n = (int64_t)tokens->n_tokens / context / task->copies;
  const int64_t position = task->data_offset + update * settings->train.batch_sequences + first;
  int32_t *input = task->token[SMOE_MAIN], *target = task->target;
  for (int64_t i = 0; i < n; i++) {
    const int64_t s = smoe_sampler_sequence((uint64_t)settings->run.seed, task->n_sequences, position + i);
    smoe_corpus_sequence(&task->corpus, SMOE_TRAIN, s, context, input + i * context, target + i * context);
  }
  smoe_task_copy(task, input, (size_t)n, (size_t)context);
  smoe_task_copy(task, target, (size_t)n, (size_t)context);
  *batch = smoe_model_batch(model, input, target);
  batch->before[SMOE_MAIN] = micro_batch * tokens->n_global;
  batch->copies = task->copies;
}

static smoe_status open_split_language(smoe_task *task, const smoe_model *model, smoe_split split,
                                       int64_t limit, int64_t *n) {
  const int64_t t = (int64_t)model->shape[SMOE_MAIN].context, tokens = task->corpus.n_tokens[split];
  const int64_t batch = model->shape[SMOE_MAIN].n_global / t;
  SMOE_CHECK(tokens > 1, SMOE_ERR_CONFIG, "the split of '%s' to evaluate is empty", task->corpus.path);
  task->split_kind = split;
  task->split_sequences = (tokens - 1 + t - 1) / t;
  if (limit > 0 && limit < task->split_sequences) task->split_sequences = limit;
  *n = (task->split_sequences + batch - 1) / batch;
  return SMOE_OK;
}

static void read_split_language(smoe_task *task, const smoe_model *model, int64_t number, smoe_batch *batch) {
  const smoe_token_shape *tokens = &model->shape[SMOE_MAIN];
  const int64_t t = (int64_t)tokens->context;
  const int64_t first = (number * tokens->n_global + tokens->first_token) / t;
  int32_t *input = task->token[SMOE_MAIN], *target = task->target;
  for (int64_t i = 0; i < (int64_t)tokens->n_tokens / t; i++) {
    if (first + i < task->split_sequences) {
      smoe_corpus_sequence(&task->corpus, task->split_kind, first + i, t, input + i * t, target + i * t);
    } else {
      memset(input + i * t, 0xff, (size_t)t * sizeof *input);
      memset(target + i * t, 0xff, (size_t)t * sizeof *target);
    }
  }
  *batch = smoe_model_batch(model, input, target);
}

static smoe_status counts_language(const smoe_task *task, int stream, int64_t *count) {
  return smoe_corpus_counts(&task->corpus, count);
}

const smoe_task_ops smoe_task_language = {
    .name = "language",
    .open = open_language,
    .close = close_language,
    .check = check_language,
    .shape = shape_language,
    .n_targets = n_targets_language,
    .passes = passes_language,
    .n_units = n_units_language,
    .read = read_language,
    .open_split = open_split_language,
    .read_split = read_split_language,
    .counts = counts_language,
};
