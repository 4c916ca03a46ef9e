#include "stablemoe/optimizer.h"

#include <math.h>
#include <string.h>

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

/* Squares of the own slice of a slab's gradient, a double per unit; frozen parameters count 0. */
static void slice_squares(const smoe_params *params, const smoe_slab *slab, double *square) {
  for (int i = 0; i < params->n_params; i++) {
    if (smoe_params_slab(params, i) != slab || params->param[i].frozen) continue;
    for (int j = 0; j < slab->n_local; j++) {
      size_t first, own;
      const size_t n = smoe_params_in_slice(params, i, j, &first, &own);
      if (n) unit_squares(square + own / SMOE_UNIT, slab->grad_own + own, n);
    }
  }
}

/* Add the squares of each copy of a slab to sum [n_local], unit by unit in their order. */
static void add_squares(const smoe_params *params, const smoe_slab *slab, double *sum) {
  const size_t n_units = slab->count / SMOE_UNIT, all_units = (size_t)slab->n_local * n_units;
  double *mine = smoe_alloc(slab->slice_count / SMOE_UNIT * sizeof *mine);
  double *unit = smoe_alloc(all_units * sizeof *unit);
  slice_squares(params, slab, mine);
  gather_slices(&slab->holders, unit, mine, (size_t)slab->n_local * slab->count);
  for (size_t i = 0; i < all_units; i++) sum[i / n_units] += unit[i];
  smoe_free(mine);
  smoe_free(unit);
}

static double shared_square(const smoe_params *params) {
  double sum = 0;
  add_squares(params, &params->slab[SMOE_SLAB_REPLICATED], &sum);
  return sum;
}

/* Go on with the sums [E] of the experts' squares over the units of one MoE layer's experts. They are
 * added where the experts are, and come back by place; the sums go by number, wherever experts live. */
static void add_layer(const smoe_params *params, int layer, double *by_number) {
  const smoe_slab *slab = smoe_params_experts(params, layer);
  const smoe_group *group = &params->topology.experts;
  double *local = smoe_alloc((size_t)slab->n_local * sizeof *local);
  double *by_place = smoe_alloc((size_t)slab->n_experts * sizeof *by_place);
  int *count = smoe_alloc((size_t)group->n_ranks * sizeof *count);
  for (int j = 0; j < slab->n_local; j++) local[j] = by_number[smoe_slab_expert_number(slab, j)];
  add_squares(params, slab, local);
  for (int r = 0; r < group->n_ranks; r++)
    count[r] = smoe_expert_first(slab->n_experts, r + 1, group->n_ranks) -
               smoe_expert_first(slab->n_experts, r, group->n_ranks);
  smoe_group_gather_f64(group, by_place, local, count);
  for (int i = 0; i < slab->n_experts; i++) by_number[smoe_expert_at(slab->expert_at, i)] = by_place[i];
  smoe_free(local);
  smoe_free(by_place);
  smoe_free(count);
}

/* Experts of one number have one sum over all MoE layers: the order of the terms is that of the
 * declarations, and no rank count or placement is in it. */
static double expert_square(const smoe_params *params) {
  if (params->n_experts == 0) return 0;
  double *by_number = smoe_alloc((size_t)params->n_experts * sizeof *by_number);
  double sum = 0;
  for (int m = 0; m < params->n_moe; m++) add_layer(params, m, by_number);
  for (int e = 0; e < params->n_experts; e++) sum += by_number[e];
  smoe_free(by_number);
  return sum;
}

smoe_norms smoe_gradient_norms(const smoe_params *params) {
  const double shared = shared_square(params), expert = expert_square(params);
  return (smoe_norms){.all = sqrt(shared + expert), .shared = sqrt(shared), .expert = sqrt(expert)};
}

void smoe_optimizer_step(smoe_params *params, const smoe_settings *settings, int64_t update, double factor) {
  const double t = (double)update + 1;
  const double lr = smoe_learning_rate(settings, update);
  smoe_adam adam = {.beta1 = settings->optimizer.beta1,
                    .beta2 = settings->optimizer.beta2,
                    .epsilon = settings->optimizer.epsilon,
                    .correction1 = 1 - pow(settings->optimizer.beta1, t),
                    .correction2 = 1 - pow(settings->optimizer.beta2, t),
                    .scale = factor};
  smoe_params_fence(params); /* the last ranks may still be reading values that are to change */
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    const smoe_slab *slab = smoe_params_slab(params, i);
    if (param->frozen) continue;
    adam.lr = lr * (strstr(param->name, "/router/") ? settings->optimizer.router_lr_factor : 1);
    adam.decay = param->decay ? settings->optimizer.decay : 0;
    for (int j = 0; j < slab->n_local; j++) {
      size_t first, own;
      const size_t n = smoe_params_in_slice(params, i, j, &first, &own);
      if (n && settings->optimizer.method == SMOE_SGD)
        smoe_sgd_step(slab->value + slab->slice_first + own, slab->grad_own + own, n, adam.lr, adam.decay,
                      factor);
      else if (n)
        smoe_adam_step(slab->value + slab->slice_first + own, slab->m + own, slab->v + own,
                       slab->grad_own + own, n, &adam);
    }
  }
  smoe_params_allgather(params, false);
}
