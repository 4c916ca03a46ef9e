#include "stablemoe/optimizer.h"

#include <math.h>

#include "stablemoe/exchange.h"
#include "stablemoe/kernel.h"

static const double pi = 3.14159265358979323846;

/* From the peak down to the floor; left falls from 1 to 0. */
static double above_floor(const smoe_settings *settings, double left) {
  const double floor = settings->schedule.floor;
  return settings->optimizer.lr * (floor + (1 - floor) * left);
}

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
  case SMOE_COSINE: {
    const double progress = total > warmup ? fmin(1, ((double)update - warmup) / (total - warmup)) : 0;
    return above_floor(settings, (1 + cos(pi * progress)) / 2);
  }
  case SMOE_WSD: {
    const double decay = fmin(round(settings->schedule.decay_share * total), total - warmup);
    const double left = total - (double)update;
    return left < decay ? above_floor(settings, fmax(0, left / decay)) : peak;
  }
  }
  return peak;
}

static void unit_squares(double *square, const smoe_real *grad, size_t n) {
  for (size_t at = 0; at < n; at += SMOE_UNIT)
    square[at / SMOE_UNIT] = smoe_sum_squares(grad + at, n - at < SMOE_UNIT ? n - at : SMOE_UNIT);
}

/* Place within the rank's expert slice of element `first` of a parameter of local expert j. */
static size_t expert_place(const smoe_params *params, const smoe_param *param, int j, size_t first) {
  return (size_t)j * params->expert_count + param->offset + first - params->expert_slice_first;
}

/* Gather a double per unit of a slab from the ranks that own its slices. */
static void gather_slices(const smoe_group *group, double *all, const double *mine, size_t count) {
  int *units = smoe_alloc((size_t)group->n_ranks * sizeof *units);
  for (int r = 0; r < group->n_ranks; r++)
    units[r] =
        (int)((smoe_slice_first(count, r + 1, group->n_ranks) - smoe_slice_first(count, r, group->n_ranks)) /
              SMOE_UNIT);
  smoe_group_gather_f64(group, all, mine, units);
  smoe_free(units);
}

/* Squares of the own slice of the replicated gradient, a double per unit; frozen parameters count 0. */
static void slice_squares(const smoe_params *params, double *square) {
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    if (param->sharding != SMOE_REPLICATED || param->frozen) continue;
    size_t first;
    const size_t n = smoe_params_in_slice(params, i, &first);
    const size_t own = param->offset + first - params->slice_first;
    if (n) unit_squares(square + own / SMOE_UNIT, params->shared_grad + own, n);
  }
}

static double shared_square(const smoe_params *params) {
  const size_t n_units = params->shared_count / SMOE_UNIT;
  double *mine = smoe_alloc(params->slice_count / SMOE_UNIT * sizeof *mine);
  double *all = smoe_alloc(n_units * sizeof *all);
  slice_squares(params, mine);
  gather_slices(&params->group, all, mine, params->shared_count);
  double sum = 0;
  for (size_t i = 0; i < n_units; i++) sum += all[i];
  smoe_free(mine);
  smoe_free(all);
  return sum;
}

/* Squares of the own slice of the experts' gradients, a double per unit; frozen parameters count 0. */
static void expert_slice_squares(const smoe_params *params, double *square) {
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    if (param->sharding != SMOE_EXPERT || param->frozen) continue;
    for (int j = 0; j < params->n_local; j++) {
      size_t first;
      const size_t n = smoe_params_expert_in_slice(params, i, j, &first);
      if (n == 0) continue;
      const size_t own = expert_place(params, param, j, first);
      unit_squares(square + own / SMOE_UNIT, params->expert_grad_own + own, n);
    }
  }
}

static double expert_square(const smoe_params *params) {
  if (params->n_experts == 0) return 0;
  const size_t slab = (size_t)params->n_local * params->expert_count, n_units = slab / SMOE_UNIT;
  double *mine = smoe_alloc(params->expert_slice_count / SMOE_UNIT * sizeof *mine);
  double *unit = smoe_alloc(n_units * sizeof *unit);
  double *local = smoe_alloc((size_t)params->n_local * sizeof *local);
  double *all = smoe_alloc((size_t)params->n_experts * sizeof *all);
  expert_slice_squares(params, mine);
  gather_slices(&params->topology.replicas, unit, mine, slab);
  for (size_t i = 0; i < n_units; i++) local[i / (params->expert_count / SMOE_UNIT)] += unit[i];

  const smoe_group *experts = &params->topology.experts;
  int *count = smoe_alloc((size_t)experts->n_ranks * sizeof *count);
  for (int r = 0; r < experts->n_ranks; r++)
    count[r] = smoe_expert_first(params->n_experts, r + 1, experts->n_ranks) -
               smoe_expert_first(params->n_experts, r, experts->n_ranks);
  smoe_group_gather_f64(experts, all, local, count);
  /* They came by place; the sum goes by number, wherever experts live. */
  double *by_number = smoe_alloc((size_t)params->n_experts * sizeof *by_number);
  for (int i = 0; i < params->n_experts; i++) by_number[smoe_expert_at(&params->topology, i)] = all[i];
  double sum = 0;
  for (int e = 0; e < params->n_experts; e++) sum += by_number[e];
  smoe_free(by_number);
  smoe_free(count);
  smoe_free(mine);
  smoe_free(unit);
  smoe_free(local);
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
    size_t first;
    if (param->sharding == SMOE_REPLICATED) {
      const size_t n = smoe_params_in_slice(params, i, &first), at = param->offset + first;
      if (n == 0) continue;
      const size_t own = at - params->slice_first;
      smoe_adam_step(params->shared + at, params->shared_m + own, params->shared_v + own,
                     params->shared_grad + own, n, &adam);
    } else {
      for (int j = 0; j < params->n_local; j++) {
        const size_t n = smoe_params_expert_in_slice(params, i, j, &first);
        if (n == 0) continue;
        const size_t own = expert_place(params, param, j, first);
        smoe_adam_step(smoe_params_expert(params, i, j) + first, params->expert_m + own,
                       params->expert_v + own, params->expert_grad_own + own, n, &adam);
      }
    }
  }
  smoe_params_allgather(params);
}
