#include "open_model.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stablemoe/log.h"
#include "stablemoe/products.h"

const char *const smoe_app_precisions[] = {"trained", "fp32", "bf16", NULL};

void smoe_app_checkpoint_path(char *out, size_t bytes, const char *path) {
  char *file = smoe_checkpoint_resolve(path);
  snprintf(out, bytes, "%s", file);
  smoe_free(file);
}

static smoe_status check_directory(const char *path) {
  struct stat info;
  SMOE_CHECK(stat(path, &info) == 0 && S_ISDIR(info.st_mode), SMOE_ERR_CONFIG,
             "--best: '%s' is not a run directory", path);
  return SMOE_OK;
}

smoe_status smoe_app_checkpoint_choose(char *out, size_t bytes, const smoe_group *group, const char *path,
                                       bool best) {
  char *found;
  if (!best) {
    smoe_app_checkpoint_path(out, bytes, path);
    return SMOE_OK;
  }
  SMOE_TRY_ALL(group, check_directory(path));
  SMOE_TRY(smoe_checkpoint_find_best(path, group, &found));
  snprintf(out, bytes, "%s", found);
  smoe_free(found);
  return SMOE_OK;
}

const char *smoe_app_corpus_path(const smoe_checkpoint_meta *meta) {
  return meta->absolute[0] && access(meta->absolute, F_OK) == 0 ? meta->absolute : meta->corpus;
}

static smoe_status set_precision(smoe_app_model *m, int precision) {
  if (precision == 0) return SMOE_OK;
  char *assignment = smoe_sprintf("train.precision=%s", smoe_app_precisions[precision]);
  const smoe_status status = smoe_config_override(m->config, assignment);
  smoe_free(assignment);
  return status;
}

static smoe_status configure(smoe_app_model *m, const char *path, const smoe_app_opening *opening) {
  m->config = smoe_app_config();
  char *origin = smoe_sprintf("configuration in '%s'", path);
  smoe_status status = smoe_config_parse(m->config, m->meta.configuration, origin);
  smoe_free(origin);
  for (size_t i = 0; opening->set && i < opening->set->n && status == SMOE_OK; i++)
    status = smoe_config_adjust(m->config, opening->set->word[i]);
  /* Capacity is a share of a batch, and a text alone has none to share. */
  if (status == SMOE_OK && opening->single) status = smoe_config_override(m->config, "moe.capacity_factor=0");
  if (status == SMOE_OK) status = set_precision(m, opening->precision);
  if (status != SMOE_OK) return status;
  /* A model is not bound to the library that it was trained with. */
  const int products = smoe_config_settings(m->config)->run.products;
  if (!smoe_products_built((smoe_products_kind)products))
    SMOE_TRY(smoe_config_override(m->config, "run.products=auto"));
  return smoe_app_config_finish(m->config);
}

smoe_status smoe_app_task_open(smoe_app_model *m, const smoe_group *group, const char *path,
                               const smoe_app_opening *opening) {
  *m = (smoe_app_model){.group = group};
  smoe_app_checkpoint_path(m->file, sizeof m->file, path);
  SMOE_TRY(smoe_checkpoint_read_meta(m->file, group, &m->meta));
  SMOE_TRY_ALL(group, configure(m, m->file, opening));
  SMOE_TRY(smoe_task_open(&m->task, m->config, group,
                          opening->corpus ? opening->corpus : smoe_app_corpus_path(&m->meta)));
  if (smoe_task_is_images(&m->task)) {
    if (m->task.fingerprint != m->meta.fingerprint)
      smoe_note(
          "'%s' is not the corpus that '%s' was trained on: both must have the same patches and classes",
          m->task.images.path, m->file);
    return SMOE_OK;
  }
  return smoe_group_agree(
      group, smoe_corpus_check_tokenizer(&m->task.corpus, m->meta.tokenizer, m->meta.fingerprint, m->file));
}

smoe_status smoe_app_model_build(smoe_app_model *m, const smoe_model_shape *shape) {
  smoe_model_destroy(m->model);
  m->model = NULL;
  SMOE_TRY(smoe_model_create(&m->model, m->config, m->group, shape, false));
  SMOE_TRY(smoe_checkpoint_load(m->file, &m->model->params));
  if (m->meta.stage == 2) smoe_model_freeze(m->model);
  return SMOE_OK;
}

smoe_status smoe_app_refuse_images(const smoe_app_model *m) {
  SMOE_CHECK(!smoe_task_is_images(&m->task), SMOE_ERR_CONFIG,
             "'%s' is a model of images: `stablemoe evaluate` gives its accuracy, and there is no text",
             m->file);
  return SMOE_OK;
}

smoe_status smoe_app_model_open(smoe_app_model *m, const smoe_group *group, const char *path,
                                const smoe_app_opening *opening) {
  SMOE_TRY(smoe_app_task_open(m, group, path, opening));
  SMOE_TRY(smoe_app_refuse_images(m));
  SMOE_CHECK(smoe_task_is_language(&m->task), SMOE_ERR_CONFIG,
             "'%s' is a translation model; use `stablemoe translate`, or `stablemoe evaluate` for its BLEU",
             m->file);
  smoe_model_shape shape = {0};
  SMOE_TRY_ALL(group, m->task.ops->shape(&m->task, &shape, false));
  if (opening->single) {
    shape.n_lanes = 1;
    shape.lane_sequences = 1;
  }
  SMOE_TRY(smoe_app_model_build(m, &shape));
  smoe_note("'%s': %lld updates, stage %d", m->file, (long long)m->meta.update, m->meta.stage);
  return SMOE_OK;
}

void smoe_app_model_close(smoe_app_model *m) {
  smoe_model_destroy(m->model);
  smoe_task_close(&m->task);
  smoe_free(m->meta.configuration);
  if (m->config) smoe_config_destroy(m->config);
  *m = (smoe_app_model){0};
}
