/* Placement of experts: the loads that are to come, and the move. */
#include "stablemoe/log.h"
#include "stablemoe/placement.h"
#include "stablemoe/step.h"

/* Tokens whose choices are counted: the share of a rank among eight is then known to half a percent. */
enum { TOKENS = 1 << 18, UPDATES_MAX = 256 };

static int64_t counted_until(const smoe_step *step, int64_t update) {
  const int64_t total = step->settings->train.updates;
  int64_t n = TOKENS / smoe_family_batch_tokens(step->model->config);
  n = n < 1 ? 1 : n > UPDATES_MAX ? UPDATES_MAX : n;
  return update < total && update + n > total ? total : update + n;
}

static smoe_pass context_of(const smoe_step *step, int64_t update, int64_t micro_batch) {
  return (smoe_pass){.seed = (uint64_t)step->settings->run.seed,
                     .update = update,
                     .micro_batch = micro_batch,
                     .stage = smoe_stage(step->model, step->settings, update),
                     .training = true,
                     .n_targets = 1};
}

static bool known_ahead(const smoe_step *step, int64_t update) {
  const smoe_pass context = context_of(step, update, 0);
  for (int m = 0; m < step->model->n_moe; m++)
    if (!smoe_moe_layer_from_ids(step->model->moe[m], &context)) return false;
  return true;
}

/* load = choices for the tokens of the coming updates, [E] of each MoE layer one after the other. */
static void count_loads(smoe_step *step, int64_t update, int64_t *load, int n) {
  smoe_model *model = step->model;
  for (int64_t u = update; u < counted_until(step, update); u++)
    for (int64_t b = 0; b < step->settings->train.micro_batches; b++) {
      smoe_pass context = context_of(step, u, b);
      const smoe_batch batch = smoe_step_read(step, u, b);
      context.batch = &batch;
      int64_t *layer = load;
      for (int m = 0; m < model->n_moe; m++) {
        smoe_moe_layer_count(model->moe[m], layer, &context);
        layer += model->moe[m]->router.n_experts;
      }
    }
  smoe_group_sum_i64(&model->params.group, load, n);
}

/* Each MoE layer on its own: layers run one after the other, and each waits for its busiest rank. */
static void place(smoe_params *params, const int64_t *load) {
  const int n_ranks = params->topology.experts.n_ranks;
  int32_t *expert_at = smoe_alloc((size_t)params->n_experts * sizeof *expert_at);
  double before = 0, after = 0, mean = 0;
  for (int m = 0; m < params->n_moe; m++) {
    const smoe_slab *slab = smoe_params_experts(params, m);
    const int n_experts = slab->n_experts;
    smoe_placement_pack(expert_at, load, n_experts, n_ranks);
    before += (double)smoe_placement_busiest(slab->expert_at, load, n_experts, n_ranks);
    after += (double)smoe_placement_busiest(expert_at, load, n_experts, n_ranks);
    for (int e = 0; e < n_experts; e++) mean += (double)load[e] / n_ranks;
    smoe_params_move_experts(params, m, expert_at);
    load += n_experts;
  }
  if (!(mean > 0)) before = after = mean = 1; /* no load is shared out evenly */
  smoe_note("placement: largest/mean rank load %.2f -> %.2f", before / mean, after / mean);
  smoe_free(expert_at);
}

void smoe_step_place(smoe_step *step, int64_t update) {
  smoe_model *model = step->model;
  smoe_params *params = &model->params;
  if (step->placed || model->n_moe == 0 || params->topology.experts.n_ranks == 1) return;
  if (step->settings->comm.placement != SMOE_PLACE_BY_LOAD || !known_ahead(step, update)) return;
  int n = 0;
  for (int m = 0; m < model->n_moe; m++) n += model->moe[m]->router.n_experts;
  int64_t *load = smoe_alloc((size_t)n * sizeof *load);
  count_loads(step, update, load, n);
  place(params, load);
  step->placed = true;
  smoe_free(load);
}
