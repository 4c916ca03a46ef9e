#include "open_model.h"

#include <stdio.h>
#include <sys/stat.h>

#include "stablemoe/log.h"

static void checkpoint_path(char *out, size_t bytes, const char *path) {
  struct stat info;
  if (stat(path, &info) == 0 && S_ISDIR(info.st_mode))
    snprintf(out, bytes, "%s/checkpoints/latest", path);
  else
    snprintf(out, bytes, "%s", path);
}

static smoe_status configure(smoe_app_model *m, const char *path) {
  m->config = smoe_app_config();
  char origin[SMOE_REPORT_MAX];
  snprintf(origin, sizeof origin, "configuration in '%s'", path);
  SMOE_TRY(smoe_config_parse(m->config, m->meta.configuration, origin));
  return smoe_app_config_finish(m->config);
}

smoe_status smoe_app_model_open(smoe_app_model *m, const smoe_group *group, const char *path,
                                const char *corpus, bool single) {
  *m = (smoe_app_model){0};
  char file[4096];
  checkpoint_path(file, sizeof file, path);
  SMOE_TRY(smoe_checkpoint_read_meta(file, group, &m->meta));
  SMOE_TRY_ALL(group, configure(m, file));
  const smoe_settings *settings = smoe_config_settings(m->config);
  SMOE_CHECK(settings->moe.layers == 0 || group->n_ranks <= settings->moe.experts, SMOE_ERR_CONFIG,
             "%d ranks for a model of %lld experts: start at most one rank per expert", group->n_ranks,
             (long long)settings->moe.experts);
  SMOE_TRY(smoe_corpus_open(&m->corpus, group, corpus ? corpus : m->meta.corpus));
  const int64_t parts = settings->train.lanes * settings->train.micro_batches;
  const smoe_model_shape shape = {.vocabulary = m->corpus.vocabulary,
                                  .n_lanes = single ? 1 : (int)settings->train.lanes,
                                  .lane_sequences =
                                      single ? 1 : (size_t)(settings->train.batch_sequences / parts),
                                  .training = false};
  SMOE_TRY(smoe_model_create(&m->model, m->config, group, &shape, false));
  SMOE_TRY(smoe_checkpoint_load(file, &m->model->params));
  smoe_note("'%s': %lld updates, stage %d", file, (long long)m->meta.update, m->meta.stage);
  return SMOE_OK;
}

void smoe_app_model_close(smoe_app_model *m) {
  smoe_model_destroy(m->model);
  smoe_corpus_close(&m->corpus);
  smoe_free(m->meta.configuration);
  if (m->config) smoe_config_destroy(m->config);
  *m = (smoe_app_model){0};
}
