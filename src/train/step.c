#include "stablemoe/step.h"

#include <math.h>
#include <string.h>

#include "stablemoe/phase.h"
#include "stablemoe/skip.h"

smoe_status smoe_step_create(smoe_step *step, smoe_model *model, smoe_task *task) {
  *step = (smoe_step){.model = model, .task = task, .settings = task->settings};
  smoe_task_take(task, model);
  step->total = smoe_alloc((size_t)model->n_sums * sizeof *step->total);
  step->skip = smoe_alloc((size_t)smoe_model_n_skip(model) * sizeof *step->skip);
  step->layer = smoe_alloc((size_t)model->n_moe * sizeof *step->layer);
  step->load = smoe_alloc((size_t)model->n_moe * (size_t)model->params.n_experts * sizeof *step->load);
  return SMOE_OK;
}

void smoe_step_destroy(smoe_step *step) {
  smoe_free(step->total);
  smoe_free(step->skip);
  smoe_free(step->layer);
  smoe_free(step->load);
  *step = (smoe_step){0};
}

int smoe_stage(const smoe_model *model, const smoe_settings *settings, int64_t update) {
  const smoe_router_ops *ops = model->n_moe ? model->moe[0]->router.ops : NULL;
  return ops && ops->two_stages && update >= settings->router.stage1_updates ? 2 : 1;
}

smoe_batch smoe_step_read(smoe_step *step, int64_t update, int64_t micro_batch) {
  smoe_batch batch;
  step->task->ops->read(step->task, step->model, update, micro_batch, &batch);
  return batch;
}

static void record_tokens(smoe_step *step, const smoe_batch *batch) {
  const smoe_model *model = step->model;
  const int64_t first = batch->before[SMOE_MAIN] + batch->shape[SMOE_MAIN].first_token;
  for (int m = 0; m < model->n_moe; m++)
    smoe_routing_log_tokens_add(step->tokens_log, m, first, batch->shape[SMOE_MAIN].n_tokens,
                                batch->token[SMOE_MAIN], model->moe[m]->expert, model->moe[m]->gate);
  for (int k = 0; k < smoe_model_n_skip(model); k++)
    smoe_routing_log_tokens_ran(step->tokens_log, k, first, batch->shape[SMOE_MAIN].n_tokens,
                                batch->token[SMOE_MAIN], smoe_skip_ran(smoe_model_skip_layer(model, k)));
}

/* Sums of the objective that are terms of what is minimised. */
static void add_objective_terms(const smoe_step *step, smoe_step_result *result) {
  const smoe_model *model = step->model;
  const smoe_objective *objective = model->objective;
  const double *sum = step->total + sizeof(smoe_lane_sums) / sizeof(double);
  for (int i = 0; i < objective->n_sums; i++) {
    const int term = smoe_terms_find(&model->terms, objective->sum_names[i]);
    if (term >= 0) result->term[term] += sum[i] / result->n_targets;
  }
}

/* Choices of all ranks that were not computed for their small gate. Collective. */
static int64_t skipped_slots(const smoe_model *model, int m) {
  const smoe_moe_layer *moe = model->moe[m];
  if (!(moe->skip_below > 0)) return 0;
  uint64_t n = (uint64_t)moe->n_skipped;
  smoe_group_sum_u64(&model->params.group, &n, 1);
  return (int64_t)n;
}

static void fill_result(smoe_step *step, smoe_step_result *result) {
  const smoe_model *model = step->model;
  const smoe_params *params = &model->params;
  smoe_lanes_sum(&params->group, &params->lanes, step->total, model->sums, model->n_sums);
  const smoe_lane_sums *sums = (const smoe_lane_sums *)step->total;
  result->n_targets = sums->n_targets;
  result->loss = sums->loss / sums->n_targets;
  result->accuracy = smoe_model_accuracy(model, step->total);
  memset(result->term, 0, sizeof result->term);
  result->layer = step->layer;
  smoe_model_skip_shares(model, step->skip);
  result->skip = step->skip;
  result->skip_loss = smoe_model_skip_loss(model);
  for (int m = 0; m < model->n_moe; m++) {
    const smoe_route_sums *route = (const smoe_route_sums *)(step->total + smoe_model_route_sums(model, m));
    const smoe_moe_layer *moe = model->moe[m];
    int64_t *load = step->load + (size_t)m * (size_t)params->n_experts;
    memcpy(load, moe->load, (size_t)params->n_experts * sizeof *load);
    step->layer[m] = (smoe_routing_load){
        .load = load,
        .n_assigned = moe->n_assigned,
        .n_dropped = moe->n_dropped,
        .n_skipped = skipped_slots(model, m),
        .agreement = route->n_compared > 0 ? route->n_agree / route->n_compared : NAN,
        .gate_mean = route->n_gates > 0 ? route->gate / route->n_gates : NAN,
        .local_rate = route->n_sent > 0 ? route->n_local / route->n_sent : NAN,
    };
    for (int i = 0; i < model->terms.n; i++) {
      step->layer[m].term[i] = route->term[i] / sums->n_targets;
      result->term[i] += step->layer[m].term[i];
    }
  }
  add_objective_terms(step, result);
}

void smoe_step_gradients(smoe_step *step, int64_t update, smoe_step_result *result) {
  const smoe_settings *settings = step->settings;
  smoe_model *model = step->model;
  smoe_params *params = &model->params;
  smoe_pass context = {
      .seed = (uint64_t)settings->run.seed,
      .update = update,
      .stage = smoe_stage(model, settings, update),
      .training = true,
      .recorded = step->recorded,
      .n_targets = step->task->ops->n_targets(step->task, update),
  };
  result->stage = context.stage;
  smoe_phase(SMOE_PHASE_REDUCTION); /* setting gradients to zero belongs to adding them up */
  smoe_model_begin_update(model);
  for (int64_t micro_batch = 0; micro_batch < settings->train.micro_batches; micro_batch++) {
    context.micro_batch = micro_batch;
    smoe_phase(SMOE_PHASE_DATA);
    const smoe_batch batch = smoe_step_read(step, update, micro_batch);
    smoe_model_forward(model, &batch, &context);
    if (step->tokens_log) record_tokens(step, &batch);
    smoe_model_backward(model);
  }
  smoe_phase(SMOE_PHASE_REDUCTION);
  smoe_params_reduce(params, model->reduce_scratch);
  const smoe_real factor = (smoe_real)settings->optimizer.expert_gradient_factor;
  if (factor != 1) smoe_params_scale_experts(params, factor);
  fill_result(step, result);
}

/* What routers print of the first update. */
static void report_first(const smoe_step *step) {
  const smoe_model *model = step->model;
  for (int m = 0; m < model->n_moe; m++) {
    const smoe_router *router = &model->moe[m]->router;
    const smoe_route_sums *route = (const smoe_route_sums *)(step->total + smoe_model_route_sums(model, m));
    const double n = route->n_gates / router->n_slots;
    const double own[] = {route->own[0] / n, route->own[1] / n};
    if (router->ops->report && n > 0) router->ops->report(router, own, (int64_t)n);
  }
}

/* What routers change by the loads of the update. */
static void update_routers(smoe_step *step, int stage) {
  smoe_model *model = step->model;
  if (model->n_moe == 0 || !model->moe[0]->router.ops->after_update) return;
  smoe_params_fence(&model->params);
  for (int m = 0; m < model->n_moe && smoe_params_writes(&model->params); m++) {
    smoe_router *router = &model->moe[m]->router;
    const smoe_route_loads loads = {step->layer[m].load, step->layer[m].n_assigned};
    if (!smoe_model_router_held(model, m)) router->ops->after_update(router, &model->params, &loads, stage);
  }
  smoe_params_fence(&model->params);
}

smoe_status smoe_step_update(smoe_step *step, int64_t update, smoe_step_result *result) {
  const smoe_settings *settings = step->settings;
  smoe_params *params = &step->model->params;
  /* Also after a resume in stage 2, where the switch itself lies behind. */
  if (smoe_stage(step->model, settings, update) == 2) smoe_model_freeze(step->model);
  smoe_step_place(step, update);
  smoe_step_gradients(step, update, result);
  if (update == 0) report_first(step);
  result->lr = smoe_learning_rate(settings, update);
  result->norm = smoe_gradient_norms(params);
  SMOE_CHECK(isfinite(result->loss) && isfinite(result->norm.all), SMOE_ERR_NUMERIC,
             "update %lld: the %s is not finite (loss %g, gradient norm %g); a smaller optimizer.lr or a "
             "longer schedule.warmup may help; the last checkpoint is valid",
             (long long)update + 1, isfinite(result->loss) ? "gradient" : "loss", result->loss,
             result->norm.all);
  const double clip = settings->optimizer.clip;
  result->clip = clip > 0 && result->norm.all > clip ? clip / result->norm.all : 1;
  smoe_phase(SMOE_PHASE_OPTIMIZER);
  smoe_optimizer_step(params, settings, update, result->clip);
  update_routers(step, result->stage);
  smoe_phase(SMOE_PHASE_OTHER);
  return SMOE_OK;
}

void smoe_step_phases(const smoe_group *group, double *seconds) {
  const smoe_lanes ranks = smoe_lanes_of_rank(group->n_ranks, group->rank, group->n_ranks);
  smoe_lanes_sum(group, &ranks, seconds, smoe_phase_seconds(), SMOE_PHASES);
  for (int p = 0; p < SMOE_PHASES; p++) seconds[p] /= group->n_ranks;
}
