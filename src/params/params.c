#include "stablemoe/params.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "stablemoe/placement.h"
#include "stablemoe/random.h"

static size_t round_to_unit(size_t n) {
  return (n + SMOE_UNIT - 1) / SMOE_UNIT * SMOE_UNIT;
}

static void find_slice(smoe_params *params) {
  const smoe_group *group = &params->group;
  params->slice_first = smoe_slice_first(params->shared_count, group->rank, group->n_ranks);
  params->slice_count =
      smoe_slice_first(params->shared_count, group->rank + 1, group->n_ranks) - params->slice_first;
  const smoe_group *replicas = &params->topology.replicas;
  const size_t experts = (size_t)params->n_local * params->expert_count;
  params->expert_slice_first = smoe_slice_first(experts, replicas->rank, replicas->n_ranks);
  params->expert_slice_count =
      smoe_slice_first(experts, replicas->rank + 1, replicas->n_ranks) - params->expert_slice_first;
}

void smoe_params_begin(smoe_params *params, const smoe_group *group, const smoe_lanes *lanes, int n_experts) {
  *params = (smoe_params){.group = *group, .lanes = *lanes, .n_experts = n_experts};
  const smoe_topology whole = smoe_topology_whole(group);
  smoe_params_set_topology(params, &whole);
}

void smoe_params_set_topology(smoe_params *params, const smoe_topology *topology) {
  const smoe_group *experts = &topology->experts;
  SMOE_ASSERT(params->n_params == 0);
  params->topology = *topology;
  params->place_first = smoe_expert_first(params->n_experts, experts->rank, experts->n_ranks);
  params->n_local =
      smoe_expert_first(params->n_experts, experts->rank + 1, experts->n_ranks) - params->place_first;
}

int smoe_params_declare(smoe_params *params, smoe_sharding sharding, const int64_t *shape, smoe_init init,
                        bool decay, const char *name_format, ...) {
  smoe_param param = {.sharding = sharding, .init = init, .decay = decay, .count = 1};
  va_list arguments;
  va_start(arguments, name_format);
  const int length = vsnprintf(param.name, sizeof param.name, name_format, arguments);
  va_end(arguments);
  if (length < 1 || length >= SMOE_NAME_MAX)
    SMOE_PANIC(SMOE_ERR_BUG, "the parameter name '%s' is empty or too long", param.name);
  if (smoe_params_find(params, param.name) >= 0)
    SMOE_PANIC(SMOE_ERR_BUG, "parameter '%s' is declared twice", param.name);
  for (; param.n_dims < SMOE_DIMS_MAX && shape[param.n_dims] > 0; param.n_dims++) {
    param.shape[param.n_dims] = shape[param.n_dims];
    param.count *= (size_t)shape[param.n_dims];
  }
  if (param.n_dims == 0) SMOE_PANIC(SMOE_ERR_BUG, "parameter '%s' has no elements", param.name);
  if (sharding == SMOE_EXPERT && params->n_experts == 0)
    SMOE_PANIC(SMOE_ERR_BUG, "'%s' belongs to experts, and the model has none", param.name);

  size_t *end = sharding == SMOE_EXPERT ? &params->expert_count : &params->shared_count;
  param.offset = *end;
  *end += round_to_unit(param.count);
  params->param = smoe_realloc(params->param, (size_t)(params->n_params + 1) * sizeof *params->param);
  params->param[params->n_params] = param;
  find_slice(params);
  return params->n_params++;
}

/** Take n reals, zero: what stands between parameters must never be anything else. */
static smoe_real *take_zero(smoe_arena *arena, size_t n) {
  smoe_real *reals = smoe_arena_reals(arena, n);
  if (reals && n) memset(reals, 0, n * sizeof *reals);
  return reals;
}

void smoe_params_layout(smoe_params *params, smoe_arena *arena, bool training) {
  const size_t experts = (size_t)params->n_local * params->expert_count;
  params->shared = take_zero(arena, params->shared_count);
  params->expert = take_zero(arena, experts);
  params->shared_m = params->shared_v = params->shared_grad = params->lane_grad = NULL;
  params->expert_m = params->expert_v = params->expert_grad = params->expert_grad_own = NULL;
  if (!training) return;
  params->shared_m = take_zero(arena, params->slice_count);
  params->shared_v = take_zero(arena, params->slice_count);
  params->shared_grad = take_zero(arena, params->slice_count);
  params->lane_grad = take_zero(arena, (size_t)params->lanes.count * params->shared_count);
  params->expert_m = take_zero(arena, params->expert_slice_count);
  params->expert_v = take_zero(arena, params->expert_slice_count);
  params->expert_grad = take_zero(arena, experts);
  params->expert_grad_own = params->topology.replicas.n_ranks > 1
                                ? take_zero(arena, params->expert_slice_count)
                                : params->expert_grad;
}

void smoe_params_end(smoe_params *params) {
  smoe_free(params->param);
  params->param = NULL;
  params->n_params = 0;
}

/** Value that the distribution alone gives to an element, by its global index. */
static double draw(const smoe_init *init, uint64_t seed, uint32_t name, uint64_t index) {
  switch (init->kind) {
  case SMOE_INIT_CONSTANT:
    return init->value;
  case SMOE_INIT_UNIFORM:
    return init->value * (2.0 * smoe_random_uniform(seed, SMOE_RANDOM_INIT, name, index) - 1.0);
  default:
    return init->value * smoe_random_normal(seed, SMOE_RANDOM_INIT, name, index);
  }
}

/** Make n vectors of `size` numbers orthonormal, by Gram-Schmidt done twice: once leaves errors
 *  as large as the vectors are nearly dependent, twice is as good as the arithmetic.
 */
static void make_orthonormal(double *vector, size_t n, size_t size) {
  for (size_t i = 0; i < n; i++) {
    double *v = vector + i * size;
    for (int pass = 0; pass < 2; pass++) {
      for (size_t j = 0; j < i; j++) {
        const double *u = vector + j * size;
        double dot = 0.0;
        for (size_t k = 0; k < size; k++) dot += u[k] * v[k];
        for (size_t k = 0; k < size; k++) v[k] -= dot * u[k];
      }
      double square = 0.0;
      for (size_t k = 0; k < size; k++) square += v[k] * v[k];
      const double scale = 1.0 / sqrt(square);
      for (size_t k = 0; k < size; k++) v[k] *= scale;
    }
  }
}

/** One copy of an orthogonal parameter. The matrix has shape[0] rows; other dimensions are columns. */
static void fill_orthogonal(smoe_real *values, const smoe_param *param, uint64_t seed, uint64_t first) {
  const uint32_t name = smoe_hash_text(param->name);
  const size_t rows = (size_t)param->shape[0], columns = param->count / rows;
  const size_t n = rows < columns ? rows : columns, size = rows < columns ? columns : rows;
  double *vector = smoe_alloc(n * size * sizeof *vector);
  for (size_t i = 0; i < param->count; i++)
    vector[i] = smoe_random_normal(seed, SMOE_RANDOM_INIT, name, first + i);
  make_orthonormal(vector, n, size);
  for (size_t r = 0; r < rows; r++)
    for (size_t c = 0; c < columns; c++) {
      const double value = rows <= columns ? vector[r * size + c] : vector[c * size + r];
      values[r * columns + c] = (smoe_real)(param->init.value * value);
    }
  smoe_free(vector);
}

/** One copy of a parameter; copy is the global expert number, 0 for REPLICATED. */
static void fill(smoe_real *values, const smoe_param *param, uint64_t seed, int copy) {
  const uint64_t first = param->init.same_for_experts ? 0 : (uint64_t)copy * param->count;
  if (param->init.kind == SMOE_INIT_ORTHOGONAL) {
    fill_orthogonal(values, param, seed, first);
    return;
  }
  const uint32_t name = smoe_hash_text(param->name);
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < param->count; i++) values[i] = (smoe_real)draw(&param->init, seed, name, first + i);
}

static void zero(smoe_real *values, size_t n) {
  if (values && n) memset(values, 0, n * sizeof *values);
}

void smoe_params_initialise(smoe_params *params, uint64_t seed) {
  const size_t experts = (size_t)params->n_local * params->expert_count;
  zero(params->shared, params->shared_count);
  zero(params->shared_m, params->slice_count);
  zero(params->shared_v, params->slice_count);
  zero(params->expert, experts);
  zero(params->expert_m, params->expert_slice_count);
  zero(params->expert_v, params->expert_slice_count);
  for (int p = 0; p < params->n_params; p++) {
    const smoe_param *param = &params->param[p];
    if (param->sharding == SMOE_REPLICATED)
      fill(params->shared + param->offset, param, seed, 0);
    else
      for (int j = 0; j < params->n_local; j++)
        fill(smoe_params_expert(params, p, j), param, seed, smoe_params_expert_number(params, j));
  }
}

/* Each replica's sum over its tokens is one lane of a tree over the replicas. */
static smoe_lanes replica_lane(const smoe_group *replicas) {
  return smoe_lanes_of_rank(replicas->n_ranks, replicas->rank, replicas->n_ranks);
}

void smoe_params_reduce(smoe_params *params, smoe_real *scratch) {
  smoe_reduce_lanes(&params->group, &params->lanes, params->shared_grad, params->lane_grad, scratch,
                    params->shared_count);
  const smoe_group *replicas = &params->topology.replicas;
  if (replicas->n_ranks == 1) return;
  const smoe_lanes own = replica_lane(replicas);
  smoe_reduce_lanes(replicas, &own, params->expert_grad_own, params->expert_grad, scratch,
                    (size_t)params->n_local * params->expert_count);
}

size_t smoe_params_reduce_scratch(const smoe_params *params) {
  const smoe_group *replicas = &params->topology.replicas;
  const smoe_lanes own = replica_lane(replicas);
  const size_t shared = smoe_reduce_scratch(&params->group, &params->lanes, params->shared_count);
  const size_t expert = smoe_reduce_scratch(replicas, &own, (size_t)params->n_local * params->expert_count);
  return shared > expert ? shared : expert;
}

/* The moments of this replica's experts, of which the ranks of the other replicas have other slices,
 * go to their new places; whole and moved are [n_local, expert_count], and whole may be the moments. */
static void place_moments(const smoe_params *params, const int32_t *expert_at, smoe_real *own,
                          smoe_real *whole, smoe_real *moved) {
  const smoe_group *replicas = &params->topology.replicas;
  const size_t n = params->expert_slice_count;
  if (whole != own) {
    if (n) memcpy(whole + params->expert_slice_first, own, n * sizeof *own);
    smoe_share_slices(replicas, whole, (size_t)params->n_local * params->expert_count);
  }
  smoe_placement_move(&params->topology, expert_at, params->n_experts, moved, whole, params->expert_count);
  if (n) memcpy(own, moved + params->expert_slice_first, n * sizeof *own);
}

void smoe_params_move_experts(smoe_params *params, const int32_t *expert_at) {
  const size_t experts = (size_t)params->n_local * params->expert_count;
  const bool split = params->topology.replicas.n_ranks > 1;
  smoe_real *moved = params->expert_grad;
  smoe_real *whole = split ? smoe_alloc(experts * sizeof *whole) : NULL;
  smoe_placement_move(&params->topology, expert_at, params->n_experts, moved, params->expert,
                      params->expert_count);
  if (experts) memcpy(params->expert, moved, experts * sizeof *moved);
  place_moments(params, expert_at, params->expert_m, split ? whole : params->expert_m, moved);
  place_moments(params, expert_at, params->expert_v, split ? whole : params->expert_v, moved);
  smoe_free(whole);
  memcpy(params->topology.expert_at, expert_at, (size_t)params->n_experts * sizeof *expert_at);
}

void smoe_params_allgather(smoe_params *params) {
  smoe_share_slices(&params->group, params->shared, params->shared_count);
  smoe_share_slices(&params->topology.replicas, params->expert,
                    (size_t)params->n_local * params->expert_count);
}

int smoe_params_find(const smoe_params *params, const char *name) {
  for (int p = 0; p < params->n_params; p++)
    if (strcmp(params->param[p].name, name) == 0) return p;
  return -1;
}

int smoe_params_expert_number(const smoe_params *params, int j) {
  SMOE_ASSERT(j >= 0 && j < params->n_local);
  return smoe_expert_at(&params->topology, params->place_first + j);
}

smoe_real *smoe_params_shared(const smoe_params *params, int index) {
  SMOE_ASSERT(params->param[index].sharding == SMOE_REPLICATED);
  return params->shared + params->param[index].offset;
}

smoe_real *smoe_params_lane_grad(const smoe_params *params, int index, int lane) {
  SMOE_ASSERT(params->param[index].sharding == SMOE_REPLICATED && lane >= 0 && lane < params->lanes.count);
  return params->lane_grad + (size_t)lane * params->shared_count + params->param[index].offset;
}

smoe_real *smoe_params_expert(const smoe_params *params, int index, int j) {
  SMOE_ASSERT(params->param[index].sharding == SMOE_EXPERT && j >= 0 && j < params->n_local);
  return params->expert + (size_t)j * params->expert_count + params->param[index].offset;
}

smoe_real *smoe_params_expert_grad(const smoe_params *params, int index, int j) {
  SMOE_ASSERT(params->param[index].sharding == SMOE_EXPERT && j >= 0 && j < params->n_local);
  return params->expert_grad + (size_t)j * params->expert_count + params->param[index].offset;
}

int smoe_params_freeze(smoe_params *params, const char *prefix, bool frozen) {
  int n = 0;
  for (int p = 0; p < params->n_params; p++)
    if (strncmp(params->param[p].name, prefix, strlen(prefix)) == 0) {
      params->param[p].frozen = frozen;
      n++;
    }
  return n;
}

/** Elements that [begin, begin + count) has in common with a slice; *first counts from begin. */
static size_t common(size_t begin, size_t count, size_t slice_first, size_t slice_count, size_t *first) {
  const size_t end = begin + count, slice_end = slice_first + slice_count;
  const size_t from = begin > slice_first ? begin : slice_first, to = end < slice_end ? end : slice_end;
  *first = 0;
  if (from >= to) return 0;
  *first = from - begin;
  return to - from;
}

size_t smoe_params_in_slice(const smoe_params *params, int index, size_t *first) {
  const smoe_param *param = &params->param[index];
  *first = 0;
  if (param->sharding != SMOE_REPLICATED) return 0;
  return common(param->offset, param->count, params->slice_first, params->slice_count, first);
}

size_t smoe_params_expert_in_slice(const smoe_params *params, int index, int j, size_t *first) {
  const smoe_param *param = &params->param[index];
  SMOE_ASSERT(param->sharding == SMOE_EXPERT && j >= 0 && j < params->n_local);
  return common((size_t)j * params->expert_count + param->offset, param->count, params->expert_slice_first,
                params->expert_slice_count, first);
}

int64_t smoe_params_total(const smoe_params *params, smoe_sharding sharding) {
  int64_t total = 0;
  for (int p = 0; p < params->n_params; p++)
    if (params->param[p].sharding == sharding) total += (int64_t)params->param[p].count;
  return sharding == SMOE_EXPERT ? total * params->n_experts : total;
}

uint64_t smoe_checksum(const smoe_real *values, size_t first, size_t n) {
  uint64_t sum = 0;
  for (size_t done = 0; done < n; done += SMOE_UNIT) {
    const size_t size = n - done < SMOE_UNIT ? n - done : SMOE_UNIT;
    sum += XXH3_64bits_withSeed(values + done, size * sizeof *values, (first + done) / SMOE_UNIT);
  }
  return sum;
}
