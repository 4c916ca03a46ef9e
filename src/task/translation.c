/* Translation: pairs of sentences, sorted into micro-batches of like length; the source goes through the encoder,
 * the target through the decoder, and each target token is predicted from those before it and the source. */
#include <string.h>

#include "stablemoe/task.h"

/* ---- the corpus ---- */

static smoe_status open_translation(smoe_task *task, const char *path) {
  SMOE_TRY(smoe_pairs_open(&task->pairs, task->group, path));
  task->vocabulary = task->pairs.vocabulary;
  task->fingerprint = task->pairs.fingerprint;
  task->tokenizer = task->pairs.tokenizer;
  task->corpus = (smoe_corpus){.vocabulary = task->pairs.vocabulary,
                               .fingerprint = task->pairs.fingerprint,
                               .tokenizer = task->pairs.tokenizer,
                               .model = task->pairs.model,
                               .model_bytes = task->pairs.model_bytes};
  smoe_task_path(task, path);
  smoe_task_objective(task,
                      smoe_objective_smoothed(smoe_translation_settings(task->config)->label_smoothing));
  return SMOE_OK;
}

static void close_translation(smoe_task *task) {
  smoe_pair_sampler_close(&task->train);
  smoe_pair_sampler_close(&task->split);
  smoe_pairs_close(&task->pairs);
}

static smoe_status check_translation(const smoe_task *task) {
  return smoe_pairs_check(&task->pairs, task->group);
}

static smoe_pair_sampling sampling_of(const smoe_task *task, bool in_order) {
  const smoe_settings *settings = task->settings;
  return (smoe_pair_sampling){.lanes = (int)settings->train.lanes,
                              .micro_batches = (int)settings->train.micro_batches,
                              .tokens = settings->train.batch_tokens / settings->train.micro_batches,
                              .temperature = smoe_translation_settings(task->config)->temperature,
                              .seed = (uint64_t)settings->run.seed,
                              .direction = -1,
                              .in_order = in_order};
}

static smoe_status shape_translation(smoe_task *task, smoe_model_shape *shape, bool for_training) {
  const smoe_settings *settings = task->settings;
  const smoe_pair_sampling sampling = sampling_of(task, false);
  shape->vocabulary = task->vocabulary;
  shape->n_lanes = (int)settings->train.lanes;
  shape->objective = &task->objective;
  if (for_training) SMOE_TRY(smoe_pair_sampler_open(&task->train, &task->pairs, SMOE_TRAIN, &sampling));
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int64_t i = 0; i < task->pairs.split[s].n_pairs; i++)
      for (int side = 0; side < SMOE_SIDES; side++)
        SMOE_CHECK(
            task->pairs.split[s].length[side][i] <= settings->model.context, SMOE_ERR_CONFIG,
            "'%s' has a pair of %d tokens, and model.context is %lld: raise it, or prepare the corpus with a "
            "lower limit",
            task->pairs.path, task->pairs.split[s].length[side][i], (long long)settings->model.context);
  /* Rows of a lane on either side, however they are cut into sequences. */
  shape->lane_sequences = 1;
  shape->context = shape->source_context = (size_t)(task->copies * sampling.tokens / sampling.lanes);
  return SMOE_OK;
}

/* ---- batches ---- */

void smoe_task_read_pairs(smoe_task *task, const smoe_model *model, smoe_split split,
                          const smoe_pair_batch *pairs, int copies, smoe_batch *batch) {
  const size_t n = (size_t)pairs->sequences, s = n * (size_t)copies;
  const size_t ts = (size_t)pairs->source_length, tt = (size_t)pairs->target_length;
  *batch = (smoe_batch){.target = task->target, .copies = copies};
  batch->shape[SMOE_MAIN] = smoe_model_token_shape(model, s, tt);
  batch->shape[SMOE_ENCODER] = smoe_model_token_shape(model, s, ts);
  const smoe_lanes *lanes = &model->params.lanes;
  for (int lane = 0; lane < lanes->count; lane++) {
    const size_t l = (size_t)lane;
    int32_t *source = task->token[SMOE_ENCODER] + l * s * ts, *input = task->token[SMOE_MAIN] + l * s * tt,
            *target = task->target + l * s * tt;
    int32_t *source_length = task->length[SMOE_ENCODER] + l * s, *length = task->length[SMOE_MAIN] + l * s;
    smoe_pair_batch_read(&task->pairs, split, pairs, lanes->first + lane, source, input, target);
    for (size_t i = 0; i < n; i++) {
      const int64_t pair = pairs->pair[(size_t)(lanes->first + lane) * n + i];
      source_length[i] = pair < 0 ? 0 : smoe_pairs_length(&task->pairs, split, SMOE_SIDE_SOURCE, pair);
      length[i] = pair < 0 ? 0 : smoe_pairs_target_length(&task->pairs, split, pair);
    }
    if (copies == 1) continue;
    smoe_task_copy(task, source, n, ts);
    smoe_task_copy(task, input, n, tt);
    smoe_task_copy(task, target, n, tt);
    smoe_task_copy(task, source_length, n, 1);
    smoe_task_copy(task, length, n, 1);
  }
  for (int stream = 0; stream < SMOE_STREAMS; stream++) {
    batch->token[stream] = task->token[stream];
    batch->length[stream] = task->length[stream];
  }
}

static int64_t n_targets_translation(smoe_task *task, int64_t update) {
  return smoe_pair_sampler_targets(&task->train, task->data_offset + update);
}

static double passes_translation(smoe_task *task, int64_t updates) {
  return (double)updates * (double)task->settings->train.micro_batches /
         (double)smoe_pair_sampler_micro_batches(&task->train, 1);
}

static int64_t n_units_translation(const smoe_task *task) {
  return 1;
}

static void read_translation(smoe_task *task, const smoe_model *model, int64_t update, int64_t micro_batch,
                             smoe_batch *batch) {
  const smoe_pair_batch pairs =
      smoe_pair_sampler_batch(&task->train, task->data_offset + update, (int)micro_batch);
  smoe_task_read_pairs(task, model, SMOE_TRAIN, &pairs, task->copies, batch);
  /* Counters of random numbers: room for the largest micro-batch in each. */
  for (int s = 0; s < SMOE_STREAMS; s++) batch->before[s] = micro_batch * model->shape[s].n_global;
}

static smoe_status open_split_translation(smoe_task *task, const smoe_model *model, smoe_split split,
                                          int64_t limit, int64_t *n) {
  const smoe_pair_sampling sampling = sampling_of(task, true);
  smoe_pair_sampler_close(&task->split);
  SMOE_CHECK(task->pairs.split[split].n_pairs > 0, SMOE_ERR_CONFIG, "the split of '%s' to evaluate is empty",
             task->pairs.path);
  SMOE_TRY(smoe_pair_sampler_open(&task->split, &task->pairs, split, &sampling));
  task->split_kind = split;
  *n = smoe_pair_sampler_micro_batches(&task->split, 1);
  const int64_t most =
      limit > 0 ? (limit * *n + task->pairs.split[split].n_pairs - 1) / task->pairs.split[split].n_pairs : *n;
  if (most < *n) *n = most;
  return SMOE_OK;
}

static void read_split_translation(smoe_task *task, const smoe_model *model, int64_t number,
                                   smoe_batch *batch) {
  const int m = (int)task->settings->train.micro_batches;
  const smoe_pair_batch pairs = smoe_pair_sampler_batch(&task->split, number / m, (int)(number % m));
  smoe_task_read_pairs(task, model, task->split_kind, &pairs, 1, batch);
}

static smoe_status counts_translation(const smoe_task *task, int stream, int64_t *count) {
  return smoe_pairs_counts(&task->pairs, stream == SMOE_ENCODER ? SMOE_SIDE_SOURCE : SMOE_SIDE_TARGET, count);
}

const smoe_task_ops smoe_task_translation = {
    .name = "translation",
    .open = open_translation,
    .close = close_translation,
    .check = check_translation,
    .shape = shape_translation,
    .n_targets = n_targets_translation,
    .passes = passes_translation,
    .n_units = n_units_translation,
    .read = read_translation,
    .open_split = open_split_translation,
    .read_split = read_split_translation,
    .counts = counts_translation,
};
