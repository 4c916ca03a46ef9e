#include "stablemoe/optimizer.h"

#include <math.h>

#include "stablemoe/kernel.h"

double smoe_learning_rate(const smoe_settings *settings, int64_t update) {
  const double peak = settings->optimizer.lr, done = (double)update + 1;
  const double warmup = (double)settings->schedule.warmup, total = (double)settings->train.updates;
  if (done <= warmup) return peak * done / warmup;
  switch ((smoe_schedule_kind)settings->schedule.kind) {
  case SMOE_LINEAR:
    return total > warmup ? peak * fmax(0, (total - (double)update) / (total - warmup)) : peak;
  case SMOE_INVERSE_SQRT:
    return peak * sqrt(fmax(1, warmup) / done);
  case SMOE_CONSTANT:
    return peak;
  }
  return peak;
}

/* Squares of the own slice of the replicated gradient, a double per unit; frozen parameters count 0. */
static void slice_squares(const smoe_params *params, double *square) {
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    if (param->placement != SMOE_REPLICATED || param->frozen) continue;
    size_t first;
    const size_t n = smoe_params_in_slice(params, i, &first);
    const smoe_real *grad = params->shared_grad + (param->offset + first - params->slice_first);
    const size_t unit = (param->offset + first - params->slice_first) / SMOE_UNIT;
    for (size_t at = 0; at < n; at += SMOE_UNIT) {
      const size_t count = n - at < SMOE_UNIT ? n - at : SMOE_UNIT;
      square[unit + at / SMOE_UNIT] = smoe_sum_squares(grad + at, count);
    }
  }
}

static double shared_square(const smoe_params *params) {
  const smoe_group *group = &params->group;
  int *count = smoe_alloc((size_t)group->n_ranks * sizeof *count);
  for (int r = 0; r < group->n_ranks; r++)
    count[r] = (int)((smoe_slice_first(params->shared_count, r + 1, group->n_ranks) -
                      smoe_slice_first(params->shared_count, r, group->n_ranks)) /
                     SMOE_UNIT);
  const size_t n_units = params->shared_count / SMOE_UNIT;
  double *mine = smoe_alloc((size_t)count[group->rank] * sizeof *mine);
  double *all = smoe_alloc(n_units * sizeof *all);
  slice_squares(params, mine);
  smoe_group_gather_f64(group, all, mine, count);
  double sum = 0;
  for (size_t i = 0; i < n_units; i++) sum += all[i];
  smoe_free(count);
  smoe_free(mine);
  smoe_free(all);
  return sum;
}

static double square_of_expert(const smoe_params *params, int j) {
  double sum = 0;
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    if (param->placement != SMOE_EXPERT || param->frozen) continue;
    const smoe_real *grad = smoe_params_expert_grad(params, i, j);
    for (size_t at = 0; at < param->count; at += SMOE_UNIT)
      sum += smoe_sum_squares(grad + at, param->count - at < SMOE_UNIT ? param->count - at : SMOE_UNIT);
  }
  return sum;
}

static double expert_square(const smoe_params *params) {
  const smoe_group *group = &params->group;
  if (params->n_experts == 0) return 0;
  int *count = smoe_alloc((size_t)group->n_ranks * sizeof *count);
  for (int r = 0; r < group->n_ranks; r++)
    count[r] = (int)((int64_t)(r + 1) * params->n_experts / group->n_ranks -
                     (int64_t)r * params->n_experts / group->n_ranks);
  double *mine = smoe_alloc((size_t)params->n_local * sizeof *mine);
  double *all = smoe_alloc((size_t)params->n_experts * sizeof *all);
  for (int j = 0; j < params->n_local; j++) mine[j] = square_of_expert(params, j);
  smoe_group_gather_f64(group, all, mine, count);
  double sum = 0;
  for (int e = 0; e < params->n_experts; e++) sum += all[e];
  smoe_free(count);
  smoe_free(mine);
  smoe_free(all);
  return sum;
}

smoe_norms smoe_gradient_norms(const smoe_params *params) {
  const double shared = shared_square(params), expert = expert_square(params);
  return (smoe_norms){.all = sqrt(shared + expert), .shared = sqrt(shared), .expert = sqrt(expert)};
}

void smoe_optimizer_step(smoe_params *params, const smoe_settings *settings, int64_t update, double factor) {
  const double t = (double)update + 1;
  smoe_adam adam = {.lr = smoe_learning_rate(settings, update),
                    .beta1 = settings->optimizer.beta1,
                    .beta2 = settings->optimizer.beta2,
                    .epsilon = settings->optimizer.epsilon,
                    .correction1 = 1 - pow(settings->optimizer.beta1, t),
                    .correction2 = 1 - pow(settings->optimizer.beta2, t),
                    .scale = factor};
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    if (param->frozen) continue;
    adam.decay = param->decay ? settings->optimizer.decay : 0;
    if (param->placement == SMOE_REPLICATED) {
      size_t first;
      const size_t n = smoe_params_in_slice(params, i, &first), at = param->offset + first;
      if (n == 0) continue;
      const size_t own = at - params->slice_first;
      smoe_adam_step(params->shared + at, params->shared_m + own, params->shared_v + own,
                     params->shared_grad + own, n, &adam);
    } else {
      for (int j = 0; j < params->n_local; j++) {
        const size_t at = (size_t)j * params->expert_count + param->offset;
        smoe_adam_step(params->expert + at, params->expert_m + at, params->expert_v + at,
                       params->expert_grad + at, param->count, &adam);
      }
    }
  }
  smoe_share_slices(&params->group, params->shared, params->shared_count);
}
