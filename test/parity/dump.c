/* Carry out the first updates of a training run and write everything down for compare.py,
 * which describes the file:  dump CONFIG OUTPUT
 */
#include <string.h>

#include "stablemoe/h5.h"
#include "stablemoe/random.h"
#include "stablemoe/route_facts.h"
#include "stablemoe/step.h"

enum { UPDATES = 2, PATH = 256 };

/* So large that biases and the experts' w2, which begin at zero or alike, matter too. */
static const double NOISE = 0.3;

typedef struct dump {
  smoe_config *config;
  const smoe_settings *settings;
  const smoe_group *group;
  smoe_task task;
  smoe_model *model;
  smoe_step step;
  hid_t file;
} dump;

/* Noise on every value, a function of the parameter's name and the global index. */
static void perturb(smoe_params *params, uint64_t seed) {
  smoe_params_fence(params);
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    const bool expert = param->sharding == SMOE_EXPERT;
    const smoe_slab *slab = smoe_params_slab(params, i);
    for (int j = 0; j < slab->n_local && (expert || smoe_params_writes(params)); j++) {
      smoe_real *value = expert ? smoe_params_expert(params, i, j) : smoe_params_shared(params, i);
      const uint64_t first = (uint64_t)smoe_slab_expert_number(slab, j) * param->count;
      for (size_t k = 0; k < param->count; k++)
        value[k] += (smoe_real)(NOISE * smoe_random_normal(seed, SMOE_RANDOM_TEST,
                                                           smoe_hash_text(param->name), first + k));
    }
  }
}

/* ---- writing ---- */

/* A dataset of one parameter's shape, and this rank's part of its values or gradient: what it owns. */
static smoe_status write_tensor(const dump *d, const char *path, int index, bool gradient) {
  const smoe_params *params = &d->model->params;
  const smoe_param *param = &params->param[index];
  const int lead = param->sharding == SMOE_EXPERT;
  const smoe_slab *slab = smoe_params_slab(params, index);
  const smoe_real *slice = gradient ? slab->grad_own : slab->value + slab->slice_first;
  int64_t shape[SMOE_DIMS_MAX + 1] = {slab->n_experts};
  memcpy(shape + lead, param->shape, (size_t)param->n_dims * sizeof *shape);
  SMOE_TRY_ALL(d->group, smoe_h5_dataset(d->file, path, SMOE_H5_REAL_FILE, param->n_dims + lead, shape));
  smoe_status status = SMOE_OK;
  for (int j = 0; j < slab->n_local && status == SMOE_OK; j++) {
    size_t first, own;
    const size_t n = smoe_params_in_slice(params, index, j, &first, &own);
    const int64_t copy = smoe_slab_expert_number(slab, j);
    if (n)
      status = smoe_h5_write(d->file, path, SMOE_H5_REAL, slice + own,
                             copy * (int64_t)param->count + (int64_t)first, (int64_t)n);
  }
  return smoe_group_agree(d->group, status);
}

static smoe_status write_params(const dump *d, int64_t update) {
  const smoe_params *params = &d->model->params;
  for (int i = 0; i < params->n_params; i++) {
    char path[PATH];
    snprintf(path, sizeof path, "/update%lld/param/%s", (long long)update, params->param[i].name);
    SMOE_TRY(write_tensor(d, path, i, false));
  }
  return SMOE_OK;
}

/* The inputs and targets of a micro-batch, all sequences in global order. */
static smoe_status write_micro_batch(const dump *d, int64_t update, int64_t micro_batch) {
  const int64_t context = d->settings->model.context, batch = d->settings->train.batch_sequences;
  const int64_t n = batch / d->settings->train.micro_batches, shape[] = {n, context};
  int32_t *tokens = smoe_alloc((size_t)(2 * n * context) * sizeof *tokens), *targets = tokens + n * context;
  for (int64_t s = 0; s < n; s++) {
    const int64_t sequence = smoe_sampler_sequence((uint64_t)d->settings->run.seed, d->task.n_sequences,
                                                   update * batch + micro_batch * n + s);
    smoe_corpus_sequence(&d->task.corpus, SMOE_TRAIN, sequence, context, tokens + s * context,
                         targets + s * context);
  }
  smoe_status status = SMOE_OK;
  for (int which = 0; which < 2 && status == SMOE_OK; which++) {
    char path[PATH];
    snprintf(path, sizeof path, "/update%lld/micro%lld/%s", (long long)update, (long long)micro_batch,
             which ? "target" : "input");
    status = smoe_group_agree(d->group, smoe_h5_dataset(d->file, path, H5T_STD_I32LE, 2, shape));
    if (status == SMOE_OK)
      status = smoe_group_agree(d->group, d->group->rank
                                              ? SMOE_OK
                                              : smoe_h5_write(d->file, path, H5T_NATIVE_INT32,
                                                              which ? targets : tokens, 0, n * context));
  }
  smoe_free(tokens);
  return status;
}

static smoe_status write_result(const dump *d, int64_t update, const smoe_step_result *result) {
  char group[PATH];
  snprintf(group, sizeof group, "/update%lld", (long long)update);
  SMOE_TRY(smoe_h5_set_i64(d->file, group, "stage", result->stage));
  SMOE_TRY(smoe_h5_set_f64(d->file, group, "task", result->loss));
  const smoe_terms *terms = &d->model->terms;
  for (int i = 0; i < terms->n; i++)
    SMOE_TRY(smoe_h5_set_f64(d->file, group, terms->name[i], result->term[i]));
  const int n_skip = smoe_model_n_skip(d->model);
  if (n_skip > 0) SMOE_TRY(smoe_h5_set_f64(d->file, group, "skip_loss", result->skip_loss));
  for (int k = 0; k < n_skip; k++) {
    char name[32];
    snprintf(name, sizeof name, "ran%d", k);
    SMOE_TRY(smoe_h5_set_f64(d->file, group, name, result->skip[k]));
  }
  return smoe_h5_set_f64(d->file, group, "norm", result->norm.all);
}

static smoe_status write_update(const dump *d, int64_t update, const smoe_step_result *result) {
  const smoe_params *params = &d->model->params;
  SMOE_TRY_ALL(d->group, write_result(d, update, result));
  for (int64_t m = 0; m < d->settings->train.micro_batches; m++) SMOE_TRY(write_micro_batch(d, update, m));
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    char path[PATH];
    snprintf(path, sizeof path, "/update%lld/param/%s", (long long)update, param->name);
    SMOE_TRY_ALL(d->group, smoe_h5_set_i64(d->file, path, "decay", param->decay));
    SMOE_TRY_ALL(d->group, smoe_h5_set_i64(d->file, path, "frozen", param->frozen));
    if (param->frozen) continue;
    snprintf(path, sizeof path, "/update%lld/grad/%s", (long long)update, param->name);
    SMOE_TRY(write_tensor(d, path, i, true));
  }
  return SMOE_OK;
}

static smoe_status write_about(const dump *d) {
  char *text = smoe_config_text(d->config, false);
  smoe_status status = smoe_h5_set_text(d->file, "/", "config", text);
  smoe_free(text);
  SMOE_TRY(status);
  SMOE_TRY(smoe_h5_set_text(d->file, "/", "precision", SMOE_REAL_NAME));
  SMOE_TRY(smoe_h5_set_i64(d->file, "/", "ranks", d->group->n_ranks));
  return smoe_h5_set_i64(d->file, "/", "updates", UPDATES);
}

/* ---- the run ---- */

static smoe_status updates(dump *d) {
  SMOE_TRY_ALL(d->group, write_about(d));
  for (int64_t u = 0; u < UPDATES; u++) {
    smoe_step_result result;
    SMOE_TRY(write_params(d, u));
    SMOE_TRY(smoe_step_update(&d->step, u, &result));
    SMOE_TRY(write_update(d, u, &result));
  }
  return write_params(d, UPDATES);
}

static smoe_status run(dump *d, const char *config_path, const char *output) {
  SMOE_TRY_ALL(d->group, smoe_config_load(d->config, config_path));
  SMOE_TRY_ALL(d->group, smoe_model_check(d->config));
  SMOE_TRY_ALL(d->group, smoe_config_resolve(d->config));
  d->settings = smoe_config_settings(d->config);
  SMOE_TRY(smoe_task_open(&d->task, d->config, d->group, d->settings->data.corpus));
  smoe_model_shape shape = {.training = true};
  SMOE_TRY_ALL(d->group, d->task.ops->shape(&d->task, &shape, true));
  SMOE_TRY(smoe_model_create(&d->model, d->config, d->group, &shape, false));
  SMOE_TRY_ALL(d->group, smoe_step_create(&d->step, d->model, &d->task));
  smoe_params_initialise(&d->model->params, (uint64_t)d->settings->run.seed);
  perturb(&d->model->params, (uint64_t)d->settings->run.seed);
  SMOE_TRY(smoe_routers_prepare(d->model, &d->task)); /* after the noise: tables hold experts */
  SMOE_TRY_ALL(d->group, smoe_h5_create(&d->file, output, d->group));
  const smoe_status status = updates(d);
  const smoe_status closed = smoe_group_agree(d->group, smoe_h5_close(d->file));
  return status != SMOE_OK ? status : closed;
}

int main(int argc, char **argv) {
  smoe_group group;
  smoe_group_start(&group, &argc, &argv);
  if (argc != 3) {
    if (group.rank == 0) fprintf(stderr, "usage: dump CONFIG OUTPUT\n");
    smoe_group_end(&group);
    return SMOE_ERR_CONFIG;
  }
  const smoe_keyset **sets = smoe_alloc(smoe_model_keysets(NULL) * sizeof *sets);
  const size_t n_sets = smoe_model_keysets(sets);
  dump d = {.config = smoe_config_create(sets, n_sets), .group = &group};
  const smoe_status status = run(&d, argv[1], argv[2]);
  if (status != SMOE_OK && group.rank == 0) fprintf(stderr, "dump: %s\n", smoe_last_error());
  smoe_step_destroy(&d.step);
  smoe_model_destroy(d.model);
  smoe_task_close(&d.task);
  smoe_config_destroy(d.config);
  smoe_free(sets);
  smoe_group_end(&group);
  return status;
}
