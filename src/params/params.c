#include "params_parts.h"

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

static void find_slice(smoe_slab *slab) {
  const smoe_group *holders = &slab->holders;
  slab->slice_first = smoe_slice_first(smoe_slab_size(slab), holders->rank, holders->n_ranks);
  slab->slice_count =
      smoe_slice_first(smoe_slab_size(slab), holders->rank + 1, holders->n_ranks) - slab->slice_first;
}

/* Add two slabs alike: one that learns and, beside it, one that never does. */
static void add_slabs(smoe_params *params, smoe_slab slab) {
  params->slab = smoe_realloc(params->slab, (size_t)(params->n_slabs + 2) * sizeof *params->slab);
  slab.learns = true;
  params->slab[params->n_slabs++] = slab;
  slab.learns = false;
  params->slab[params->n_slabs++] = slab;
}

void smoe_params_begin(smoe_params *params, const smoe_group *group, const smoe_lanes *lanes) {
  *params = (smoe_params){.group = *group, .lanes = *lanes, .topology = smoe_topology_whole(group)};
  add_slabs(params, (smoe_slab){.n_local = 1, .holders = *group, .lanes = *lanes});
}

void smoe_params_set_topology(smoe_params *params, const smoe_topology *topology) {
  SMOE_ASSERT(params->n_params == 0 && params->n_moe == 0);
  params->topology = *topology;
}

int smoe_params_begin_experts(smoe_params *params, int n_experts) {
  const smoe_group *experts = &params->topology.experts, *replicas = &params->topology.replicas;
  SMOE_ASSERT(n_experts > 0 && !params->laid_out);
  const int first = smoe_expert_first(n_experts, experts->rank, experts->n_ranks);
  const int end = smoe_expert_first(n_experts, experts->rank + 1, experts->n_ranks);
  int32_t *expert_at = smoe_alloc((size_t)n_experts * sizeof *expert_at);
  for (int e = 0; e < n_experts; e++) expert_at[e] = e;
  /* Each replica's sum over its tokens is one lane of a tree over the replicas. */
  add_slabs(params,
            (smoe_slab){.n_experts = n_experts,
                        .place_first = first,
                        .n_local = end - first,
                        .expert_at = expert_at,
                        .holders = *replicas,
                        .lanes = smoe_lanes_of_rank(replicas->n_ranks, replicas->rank, replicas->n_ranks)});
  if (n_experts > params->n_experts) params->n_experts = n_experts;
  return params->n_moe++;
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
  if (sharding == SMOE_EXPERT && params->n_moe == 0)
    SMOE_PANIC(SMOE_ERR_BUG, "'%s' belongs to experts, and no layer of experts was begun", param.name);
  if (params->laid_out)
    SMOE_PANIC(SMOE_ERR_BUG, "parameter '%s' is declared after the table was laid out", param.name);
  param.slab = sharding == SMOE_EXPERT ? params->n_slabs - 2 : SMOE_SLAB_REPLICATED;
  params->param = smoe_realloc(params->param, (size_t)(params->n_params + 1) * sizeof *params->param);
  params->param[params->n_params] = param;
  return params->n_params++;
}

void smoe_params_keep_rounded(smoe_params *params, int index) {
  SMOE_ASSERT(!params->laid_out);
  params->param[index].rounded = true;
}

/* Give every parameter its place; those that are frozen by now go to the slabs that never learn. */
static void place_params(smoe_params *params) {
  for (int p = 0; p < params->n_params; p++) {
    smoe_param *param = &params->param[p];
    param->slab += param->frozen;
    param->offset = params->slab[param->slab].count;
    params->slab[param->slab].count += round_to_unit(param->count);
    if (!param->rounded) continue;
    param->half_offset = params->slab[param->slab].half_count;
    params->slab[param->slab].half_count += round_to_unit(param->count);
  }
  for (int s = 0; s < params->n_slabs; s++) find_slice(&params->slab[s]);
  params->laid_out = true;
}

/** Take n reals, zero: what stands between parameters must never be anything else. */
static smoe_real *take_zero(smoe_arena *arena, size_t n) {
  smoe_real *reals = smoe_arena_reals(arena, n);
  if (reals && n) memset(reals, 0, n * sizeof *reals);
  return reals;
}

/* Memory for values: a piece of the window, or of the arena. */
static void lay_out_values(smoe_params *params, smoe_slab *slab, smoe_arena *arena) {
  const size_t half_bytes = (size_t)slab->n_local * slab->half_count * sizeof *slab->half;
  if (!smoe_slab_shared(params, slab)) {
    slab->value = take_zero(arena, smoe_slab_size(slab));
    slab->half = smoe_arena_take(arena, half_bytes);
    return;
  }
  char *base = params->window.base;
  slab->value = base ? (smoe_real *)(base + params->shared_bytes) : NULL;
  params->shared_bytes += smoe_slab_size(slab) * sizeof *slab->value;
  slab->half = base ? (smoe_bf16 *)(base + params->shared_bytes) : NULL;
  params->shared_bytes += half_bytes;
}

static void lay_out(smoe_params *params, smoe_slab *slab, smoe_arena *arena, bool training) {
  slab->m = slab->v = slab->grad = slab->grad_own = NULL;
  if (!training || !slab->learns) return;
  slab->m = take_zero(arena, slab->slice_count);
  slab->v = take_zero(arena, slab->slice_count);
  if (smoe_slab_summed(params, slab))
    slab->grad = smoe_params_lay_out_summed(params, slab);
  else
    slab->grad = take_zero(arena, (size_t)slab->lanes.count * smoe_slab_size(slab));
  slab->grad_own = slab->lanes.n_lanes > 1 ? take_zero(arena, slab->slice_count) : slab->grad;
}

void smoe_params_layout(smoe_params *params, smoe_arena *arena, bool training) {
  if (!params->laid_out) place_params(params);
  params->training = training;
  params->shared_bytes = params->summed_bytes = 0;
  for (int s = 0; s < params->n_slabs; s++) lay_out_values(params, &params->slab[s], arena);
  for (int s = 0; s < params->n_slabs; s++) lay_out(params, &params->slab[s], arena, training);
}

void smoe_params_end(smoe_params *params) {
  smoe_window_release(&params->window);
  for (int m = 0; m < params->n_moe; m++) smoe_free(smoe_params_experts(params, m)->expert_at);
  smoe_free(params->slab);
  smoe_free(params->param);
  params->slab = NULL;
  params->param = NULL;
  params->n_slabs = params->n_params = params->n_moe = 0;
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

/** One copy of a parameter that stands for a class. */
static void fill_class(smoe_real *values, const smoe_param *param, int copy) {
  const size_t rows = (size_t)param->shape[0], columns = param->count / rows, class = (size_t)copy % rows;
  for (size_t i = 0; i < param->count; i++)
    values[i] = (smoe_real)(i / columns == class ? param->init.value : 0);
  for (size_t i = 0; i < param->count && rows == 1 && copy % 2 == 0; i++) values[i] = -values[i];
}

/** Elements from .. to - 1 of one copy of a parameter; copy is the global expert number, 0 for REPLICATED. Some kinds are
 *  filled as a whole, by whoever has the first element. */
static void fill(smoe_real *values, const smoe_param *param, uint64_t seed, int copy, size_t from,
                 size_t to) {
  const uint64_t first = param->init.same_for_experts ? 0 : (uint64_t)copy * param->count;
  const bool whole = from == 0 && to > 0;
  if (param->init.kind == SMOE_INIT_ORTHOGONAL) {
    if (whole) fill_orthogonal(values, param, seed, first);
    return;
  }
  if (param->init.kind == SMOE_INIT_CLASS) {
    if (whole) fill_class(values, param, copy);
    return;
  }
  const uint32_t name = smoe_hash_text(param->name);
#pragma omp parallel for schedule(static)
  for (size_t i = from; i < to; i++) values[i] = (smoe_real)draw(&param->init, seed, name, first + i);
}

static void zero(smoe_real *values, size_t n) {
  if (values && n) memset(values, 0, n * sizeof *values);
}

void smoe_params_initialise(smoe_params *params, uint64_t seed) {
  smoe_params_fence(params);
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    const smoe_range part = smoe_slab_part(params, slab);
    zero(slab->value ? slab->value + part.first : NULL, part.end - part.first);
    zero(slab->m, slab->slice_count);
    zero(slab->v, slab->slice_count);
  }
  smoe_params_fence(params);
  for (int p = 0; p < params->n_params; p++) {
    const smoe_param *param = &params->param[p];
    const smoe_slab *slab = smoe_params_slab(params, p);
    for (int j = 0; j < slab->n_local; j++) {
      const size_t begin = (size_t)j * slab->count + param->offset;
      const smoe_range part = smoe_range_within(smoe_slab_part(params, slab), begin, param->count);
      fill(slab->value + begin, param, seed, smoe_slab_expert_number(slab, j), part.first, part.end);
    }
  }
  smoe_params_round(params);
}

void smoe_params_clear_gradients(smoe_params *params) {
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    zero(slab->grad, (size_t)slab->lanes.count * smoe_slab_size(slab));
  }
}

void smoe_params_scale_experts(smoe_params *params, smoe_real factor) {
  for (int m = 0; m < params->n_moe; m++) {
    const smoe_slab *slab = smoe_params_experts(params, m);
    for (size_t i = 0; i < slab->slice_count; i++) slab->grad_own[i] *= factor;
  }
}

void smoe_params_reduce(smoe_params *params, smoe_real *scratch) {
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    if (!slab->learns || slab->count == 0 || slab->grad_own == slab->grad) continue;
    if (smoe_slab_summed(params, slab))
      smoe_params_reduce_summed(params, slab, scratch);
    else
      smoe_reduce_lanes(&slab->holders, &slab->lanes, slab->grad_own, slab->grad, scratch,
                        smoe_slab_size(slab));
  }
}

size_t smoe_params_reduce_scratch(const smoe_params *params) {
  size_t most = 0;
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    if (!slab->learns) continue;
    const size_t reals = smoe_slab_summed(params, slab)
                             ? smoe_reduce_scratch_nodes(&params->group, &params->topology.machines,
                                                         slab->lanes.n_lanes, slab->count)
                             : smoe_reduce_scratch(&slab->holders, &slab->lanes, smoe_slab_size(slab));
    if (reals > most) most = reals;
  }
  return most;
}

/* Copies of experts to their new places; moved is [n_local, count]. */
static void move_copies(const smoe_params *params, const smoe_slab *slab, const int32_t *expert_at,
                        smoe_real *moved, const smoe_real *present) {
  smoe_placement_move(&params->topology.experts, slab->expert_at, expert_at, slab->n_experts, moved, present,
                      slab->count);
}

static void move_values(const smoe_params *params, const smoe_slab *slab, const int32_t *expert_at,
                        smoe_real *moved) {
  move_copies(params, slab, expert_at, moved, slab->value);
  memcpy(slab->value, moved, smoe_slab_size(slab) * sizeof *moved);
}

/* The moments of this replica's experts, of which the ranks of the other replicas have other slices,
 * go to their new places; whole is [n_local, count], and may be the moments. */
static void move_moments(const smoe_params *params, const smoe_slab *slab, const int32_t *expert_at,
                         smoe_real *own, smoe_real *whole, smoe_real *moved) {
  const size_t n = slab->slice_count;
  if (whole != own) {
    if (n) memcpy(whole + slab->slice_first, own, n * sizeof *own);
    smoe_share_slices(&slab->holders, whole, smoe_slab_size(slab));
  }
  move_copies(params, slab, expert_at, moved, whole);
  if (n) memcpy(own, moved + slab->slice_first, n * sizeof *own);
}

void smoe_params_move_experts(smoe_params *params, int layer, const int32_t *expert_at) {
  smoe_slab *slab = smoe_params_experts(params, layer), *frozen = slab + 1;
  SMOE_ASSERT(params->training);
  if (smoe_slab_size(slab) > 0) {
    const bool split = slab->holders.n_ranks > 1;
    smoe_real *whole = split ? smoe_alloc(smoe_slab_size(slab) * sizeof *whole) : NULL;
    move_values(params, slab, expert_at, slab->grad);
    move_moments(params, slab, expert_at, slab->m, split ? whole : slab->m, slab->grad);
    move_moments(params, slab, expert_at, slab->v, split ? whole : slab->v, slab->grad);
    smoe_free(whole);
  }
  if (smoe_slab_size(frozen) > 0) {
    smoe_real *moved = smoe_alloc(smoe_slab_size(frozen) * sizeof *moved);
    move_values(params, frozen, expert_at, moved);
    smoe_free(moved);
  }
  memcpy(slab->expert_at, expert_at, (size_t)slab->n_experts * sizeof *expert_at);
  smoe_params_round(params);
}

void smoe_params_copy(smoe_params *params, const smoe_params *from) {
  if (params->n_slabs != from->n_slabs) SMOE_PANIC(SMOE_ERR_BUG, "parameters of another model");
  smoe_params_fence(params);
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *to = &params->slab[s], *source = &from->slab[s];
    if (smoe_slab_size(to) != smoe_slab_size(source) || to->n_experts != source->n_experts)
      SMOE_PANIC(SMOE_ERR_BUG, "parameters of another model");
    const smoe_range part = smoe_slab_part(params, to);
    if (part.end > part.first)
      memcpy(to->value + part.first, source->value + part.first, (part.end - part.first) * sizeof *to->value);
    if (to->expert_at)
      memcpy(to->expert_at, source->expert_at, (size_t)to->n_experts * sizeof *to->expert_at);
  }
  smoe_params_round(params);
}

int smoe_params_find(const smoe_params *params, const char *name) {
  for (int p = 0; p < params->n_params; p++)
    if (strcmp(params->param[p].name, name) == 0) return p;
  return -1;
}

smoe_slab *smoe_params_experts(const smoe_params *params, int layer) {
  SMOE_ASSERT(layer >= 0 && layer < params->n_moe);
  return &params->slab[SMOE_SLAB_EXPERTS + 2 * layer];
}

smoe_slab *smoe_params_slab(const smoe_params *params, int index) {
  SMOE_ASSERT(index >= 0 && index < params->n_params);
  return &params->slab[params->param[index].slab];
}

int smoe_slab_expert_number(const smoe_slab *slab, int j) {
  SMOE_ASSERT(j >= 0 && j < slab->n_local);
  return smoe_expert_at(slab->expert_at, slab->place_first + j);
}

smoe_real *smoe_params_shared(const smoe_params *params, int index) {
  SMOE_ASSERT(params->laid_out && params->param[index].sharding == SMOE_REPLICATED);
  return smoe_params_slab(params, index)->value + params->param[index].offset;
}

smoe_real *smoe_params_lane_grad(const smoe_params *params, int index, int lane) {
  const smoe_slab *slab = smoe_params_slab(params, index);
  SMOE_ASSERT(params->param[index].sharding == SMOE_REPLICATED && lane >= 0 && lane < params->lanes.count);
  return slab->grad ? slab->grad + (size_t)lane * slab->count + params->param[index].offset : NULL;
}

smoe_real *smoe_params_expert(const smoe_params *params, int index, int j) {
  const smoe_slab *slab = smoe_params_slab(params, index);
  SMOE_ASSERT(params->param[index].sharding == SMOE_EXPERT && j >= 0 && j < slab->n_local);
  return slab->value + (size_t)j * slab->count + params->param[index].offset;
}

smoe_operand smoe_params_operand(const smoe_params *params, int index, int j) {
  const smoe_param *param = &params->param[index];
  const smoe_slab *slab = smoe_params_slab(params, index);
  SMOE_ASSERT(params->laid_out && j >= 0 && j < slab->n_local);
  if (!param->rounded) return (smoe_operand){.wide = slab->value + (size_t)j * slab->count + param->offset};
  return (smoe_operand){.half = slab->half + (size_t)j * slab->half_count + param->half_offset};
}

smoe_real *smoe_params_expert_grad(const smoe_params *params, int index, int j) {
  const smoe_slab *slab = smoe_params_slab(params, index);
  SMOE_ASSERT(params->param[index].sharding == SMOE_EXPERT && j >= 0 && j < slab->n_local);
  return slab->grad ? slab->grad + (size_t)j * slab->count + params->param[index].offset : NULL;
}

int smoe_params_freeze(smoe_params *params, const char *prefix, bool frozen) {
  int n = 0;
  for (int p = 0; p < params->n_params; p++) {
    smoe_param *param = &params->param[p];
    if (strncmp(param->name, prefix, strlen(prefix)) != 0) continue;
    if (!frozen && params->laid_out && !smoe_params_slab(params, p)->learns)
      SMOE_PANIC(SMOE_ERR_BUG, "'%s' was frozen when the table was laid out: it has no moments", param->name);
    param->frozen = frozen;
    n++;
  }
  return n;
}

size_t smoe_params_in_slice(const smoe_params *params, int index, int j, size_t *first, size_t *own) {
  const smoe_param *param = &params->param[index];
  const smoe_slab *slab = smoe_params_slab(params, index);
  SMOE_ASSERT(params->laid_out && j >= 0 && j < slab->n_local);
  const size_t begin = (size_t)j * slab->count + param->offset, end = begin + param->count;
  const size_t slice_end = slab->slice_first + slab->slice_count;
  const size_t from = begin > slab->slice_first ? begin : slab->slice_first;
  const size_t to = end < slice_end ? end : slice_end;
  *first = *own = 0;
  if (from >= to) return 0;
  *first = from - begin;
  *own = from - slab->slice_first;
  return to - from;
}

/* Elements of a parameter in the whole model. */
static int64_t elements(const smoe_params *params, int index) {
  const smoe_slab *slab = smoe_params_slab(params, index);
  return (int64_t)params->param[index].count * (slab->n_experts > 0 ? slab->n_experts : 1);
}

int64_t smoe_params_total(const smoe_params *params, smoe_sharding sharding) {
  int64_t total = 0;
  for (int p = 0; p < params->n_params; p++)
    if (params->param[p].sharding == sharding) total += elements(params, p);
  return total;
}

int64_t smoe_params_total_frozen(const smoe_params *params) {
  int64_t total = 0;
  for (int p = 0; p < params->n_params; p++)
    if (!smoe_params_slab(params, p)->learns) total += elements(params, p);
  return total;
}

double smoe_params_spared(const smoe_params *params) {
  double reals = 0;
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    if (slab->learns) continue;
    const int slices = slab->lanes.n_lanes > 1 ? 3 : 2; /* moments, and the sum of the lanes */
    reals += (double)slab->lanes.count * (double)smoe_slab_size(slab) + slices * (double)slab->slice_count;
  }
  return params->training ? reals * (double)sizeof(smoe_real) : 0;
}

size_t smoe_params_state_bytes(const smoe_params *params) {
  size_t reals = 0;
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    reals += (params->training && slab->learns ? 3 : 1) * slab->slice_count;
  }
  return reals * sizeof(smoe_real);
}

uint64_t smoe_checksum(const smoe_real *values, size_t first, size_t n) {
  uint64_t sum = 0;
  for (size_t done = 0; done < n; done += SMOE_UNIT) {
    const size_t size = n - done < SMOE_UNIT ? n - done : SMOE_UNIT;
    sum += XXH3_64bits_withSeed(values + done, size * sizeof *values, (first + done) / SMOE_UNIT);
  }
  return sum;
}
