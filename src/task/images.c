/* Classification of images: every image is a sequence of as many rows as it has patches, and its class is the target
 * at the first of them. A row's token id is its number among the patches of the split. */
#include <string.h>

#include "stablemoe/router_pmoe.h"
#include "stablemoe/task.h"

static smoe_status open_images(smoe_task *task, const char *path) {
  SMOE_TRY(smoe_images_open(&task->images, task->group, path));
  const smoe_images *images = &task->images;
  /* Two classes have one logit. */
  task->vocabulary = images->n_classes == 2 ? 1 : images->n_classes;
  task->fingerprint = images->fingerprint;
  task->objective = smoe_objective_classes;
  smoe_task_path(task, path);
  return SMOE_OK;
}

static void close_images(smoe_task *task) {
  smoe_images_close(&task->images);
}

static smoe_status check_images(const smoe_task *task) {
  return smoe_images_check(&task->images, task->group);
}

/* What the model's sizes must be for this corpus; a trained model has those that it has. */
static smoe_status check_sizes(const smoe_task *task, bool for_training) {
  const smoe_settings *settings = task->settings;
  const smoe_images *images = &task->images;
  SMOE_CHECK(
      for_training || (settings->model.context == images->n_patches &&
                       (settings->model.width == (int64_t)images->patch_reals ||
                        strcmp(smoe_family_of(task->config)->name, "cnn") != 0)),
      SMOE_ERR_CONFIG,
      "the images of '%s' have %d patches of %zu numbers, and the model was trained with model.context "
      "%lld and model.width %lld: take a corpus that was prepared as that of the training",
      images->path, images->n_patches, images->patch_reals, (long long)settings->model.context,
      (long long)settings->model.width);
  SMOE_CHECK(
      settings->model.context == images->n_patches, SMOE_ERR_CONFIG,
      "model.context is %lld, and the images of '%s' have %d patches: set model.context=%d, or prepare "
      "them with another --patch",
      (long long)settings->model.context, images->path, images->n_patches, images->n_patches);
  const bool cnn = strcmp(smoe_family_of(task->config)->name, "cnn") == 0;
  SMOE_CHECK(
      !cnn || settings->model.width == (int64_t)images->patch_reals, SMOE_ERR_CONFIG,
      "model.width is %lld, and a patch of '%s' has %zu numbers, which filters of model.family cnn read: set "
      "model.width=%zu",
      (long long)settings->model.width, images->path, images->patch_reals, images->patch_reals);
  SMOE_CHECK(!cnn || settings->moe.layers == 0 || !smoe_pmoe_separate(task->config) ||
                 settings->moe.experts == images->n_classes,
             SMOE_ERR_CONFIG,
             "moe.experts is %lld, and '%s' has %d classes: router.method pmoe_separate has one expert for "
             "each class",
             (long long)settings->moe.experts, images->path, images->n_classes);
  for (int s = 0; s < SMOE_SPLITS; s++)
    SMOE_CHECK(images->split[s].n <= INT32_MAX / images->n_patches, SMOE_ERR_CONFIG,
               "'%s' has %lld images, more than %d patches number", images->path,
               (long long)images->split[s].n, INT32_MAX);
  return SMOE_OK;
}

static smoe_status shape_images(smoe_task *task, smoe_model_shape *shape, bool for_training) {
  const smoe_settings *settings = task->settings;
  const int64_t parts = settings->train.lanes * settings->train.micro_batches;
  const int64_t wanted = settings->data.train_images, n = task->images.split[SMOE_TRAIN].n;
  SMOE_TRY(check_sizes(task, for_training));
  SMOE_CHECK(wanted <= n, SMOE_ERR_CONFIG, "data.train_images is %lld, and '%s' has %lld training images",
             (long long)wanted, task->images.path, (long long)n);
  shape->vocabulary = task->vocabulary;
  shape->n_lanes = (int)settings->train.lanes;
  shape->lane_sequences = (size_t)(settings->train.batch_sequences / parts);
  shape->patch = task->images.patch_reals;
  shape->objective = &task->objective;
  task->n_sequences = wanted > 0 ? wanted : n;
  SMOE_CHECK(!for_training || n > 0, SMOE_ERR_CONFIG, "'%s' has no training images", task->images.path);
  return SMOE_OK;
}

static int64_t n_targets_images(smoe_task *task, int64_t update) {
  return task->settings->train.batch_sequences;
}

static double passes_images(smoe_task *task, int64_t updates) {
  return (double)updates * (double)task->settings->train.batch_sequences / (double)task->n_sequences;
}

static int64_t n_units_images(const smoe_task *task) {
  return task->settings->train.batch_sequences;
}

/* Image i of a split as sequence `at` of the rank's batch; i < 0: padding. */
static void fill(smoe_task *task, smoe_split split, int64_t i, int64_t at) {
  const smoe_images *images = &task->images;
  const int64_t t = images->n_patches;
  int32_t *token = task->token[SMOE_MAIN] + at * t, *target = task->target + at * t;
  smoe_real *patch = task->patch + (size_t)(at * t) * images->patch_reals;
  memset(target, 0xff, (size_t)t * sizeof *target);
  if (i < 0) {
    memset(token, 0xff, (size_t)t * sizeof *token);
    memset(patch, 0, (size_t)t * images->patch_reals * sizeof *patch);
    return;
  }
  for (int64_t p = 0; p < t; p++) token[p] = (int32_t)(i * t + p);
  target[0] = images->split[split].label[i];
  smoe_images_read(images, split, i, patch);
}

static smoe_batch batch_of(const smoe_task *task, const smoe_model *model) {
  smoe_batch batch = smoe_model_batch(model, task->token[SMOE_MAIN], task->target);
  batch.patch = task->patch;
  return batch;
}

/* Place j of the update's batch is in micro-batch j / (lanes S), lane j / S % lanes, as in language models. */
static void read_images(smoe_task *task, const smoe_model *model, int64_t update, int64_t micro_batch,
                        smoe_batch *batch) {
  const smoe_token_shape *tokens = &model->shape[SMOE_MAIN];
  const int64_t t = (int64_t)tokens->context;
  const int64_t first = (micro_batch * tokens->n_global + tokens->first_token) / t;
  const int64_t position = task->data_offset + update * task->settings->train.batch_sequences + first;
  for (int64_t i = 0; i < (int64_t)tokens->n_tokens / t; i++)
    fill(task, SMOE_TRAIN,
         smoe_sampler_sequence((uint64_t)task->settings->run.seed, task->n_sequences, position + i), i);
  *batch = batch_of(task, model);
  batch->before[SMOE_MAIN] = micro_batch * tokens->n_global;
}

static smoe_status open_split_images(smoe_task *task, const smoe_model *model, smoe_split split,
                                     int64_t limit, int64_t *n) {
  const int64_t batch = model->shape[SMOE_MAIN].n_global / (int64_t)model->shape[SMOE_MAIN].context;
  task->split_kind = split;
  task->split_sequences = task->images.split[split].n;
  SMOE_CHECK(task->split_sequences > 0, SMOE_ERR_CONFIG, "the split of '%s' to evaluate is empty",
             task->images.path);
  if (limit > 0 && limit < task->split_sequences) task->split_sequences = limit;
  *n = (task->split_sequences + batch - 1) / batch;
  return SMOE_OK;
}

static void read_split_images(smoe_task *task, const smoe_model *model, int64_t number, smoe_batch *batch) {
  const smoe_token_shape *tokens = &model->shape[SMOE_MAIN];
  const int64_t t = (int64_t)tokens->context;
  const int64_t first = (number * tokens->n_global + tokens->first_token) / t;
  for (int64_t i = 0; i < (int64_t)tokens->n_tokens / t; i++)
    fill(task, task->split_kind, first + i < task->split_sequences ? first + i : -1, i);
  *batch = batch_of(task, model);
}

/* Patches have no vocabulary. */
static smoe_status counts_images(const smoe_task *task, int stream, int64_t *count) {
  memset(count, 0, (size_t)task->vocabulary * sizeof *count);
  return SMOE_OK;
}

const smoe_task_ops smoe_task_images = {
    .name = "images",
    .open = open_images,
    .close = close_images,
    .check = check_images,
    .shape = shape_images,
    .n_targets = n_targets_images,
    .passes = passes_images,
    .n_units = n_units_images,
    .read = read_images,
    .open_split = open_split_images,
    .read_split = read_split_images,
    .counts = counts_images,
};
