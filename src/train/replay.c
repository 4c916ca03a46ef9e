#include "replay.h"

smoe_status smoe_replay_reader(smoe_routing_reader **reader, const smoe_model *model) {
  const smoe_router *router = model->n_moe ? &model->moe[0]->router : NULL;
  const char *path = router && router->ops->log_of ? router->ops->log_of(router) : NULL;
  *reader = NULL;
  if (!path) return SMOE_OK;
  const smoe_settings *settings = smoe_config_settings(model->config);
  const smoe_routing_shape shape = {.n_layers = model->n_moe,
                                    .n_experts = router->n_experts,
                                    .n_slots = router->n_slots,
                                    .n_tokens = settings->train.batch_sequences * settings->model.context};
  return smoe_routing_reader_open(reader, &model->params.group, path, &shape);
}

void smoe_replay_close(smoe_replay *replay) {
  smoe_routing_reader_close(replay->reader);
  smoe_free(replay->id);
  smoe_free(replay->expert);
  *replay = (smoe_replay){0};
}

static smoe_status check_tokens(const smoe_replay *replay, smoe_step *step, int64_t update) {
  const smoe_token_shape *tokens = &step->model->shape[SMOE_MAIN];
  for (int64_t micro_batch = 0; micro_batch < step->settings->train.micro_batches; micro_batch++) {
    const int32_t *id = replay->id + micro_batch * tokens->n_global + tokens->first_token;
    const smoe_batch batch = smoe_step_read(step, update, micro_batch);
    for (size_t i = 0; i < tokens->n_tokens; i++)
      SMOE_CHECK(batch.token[SMOE_MAIN][i] == id[i], SMOE_ERR_CONFIG,
                 "update %lld has other tokens here than in router.replay.log: data.corpus, run.seed, "
                 "model.context and train.batch_sequences must be those of the recorded run",
                 (long long)update + 1);
  }
  return SMOE_OK;
}

smoe_status smoe_replay_update(smoe_replay *replay, smoe_step *step, int64_t update) {
  if (!replay->reader) return SMOE_OK;
  SMOE_TRY(smoe_routing_reader_read(replay->reader, update + 1, replay->id, replay->expert));
  SMOE_TRY_ALL(&step->model->params.group, check_tokens(replay, step, update));
  step->recorded = replay->expert;
  return SMOE_OK;
}

smoe_status smoe_replay_open(smoe_replay *replay, smoe_step *step) {
  const smoe_model *model = step->model;
  const smoe_settings *settings = step->settings;
  *replay = (smoe_replay){0};
  SMOE_TRY(smoe_replay_reader(&replay->reader, model));
  if (!replay->reader) return SMOE_OK;
  const size_t n = (size_t)(settings->train.batch_sequences * settings->model.context);
  const size_t slots = (size_t)model->n_moe * (size_t)model->moe[0]->router.n_slots;
  replay->id = smoe_alloc(n * sizeof *replay->id);
  replay->expert = smoe_alloc(n * slots * sizeof *replay->expert);
  SMOE_TRY(smoe_routing_reader_covers(replay->reader, settings->train.updates));
  return smoe_replay_update(replay, step, 0);
}
