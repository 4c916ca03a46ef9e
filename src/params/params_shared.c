/* Values that the ranks of a node have together, and what changes them: rounding, and sharing slices. */
#include "params_parts.h"

#include <string.h>

void smoe_params_share(smoe_params *params, bool values, bool gradients) {
  const smoe_nodes *machines = &params->topology.machines;
  SMOE_ASSERT(!params->laid_out);
  const bool several = machines->n_nodes > 0 && machines->n_nodes < params->group.n_ranks;
  params->shared = values && several;
  params->summed = gradients && several && smoe_nodes_consecutive(machines);
}

const char *smoe_params_share_less(smoe_params *params) {
  smoe_window_release(&params->window);
  if (params->summed) {
    params->summed = false;
    return "gradients are summed from rank to rank, as with comm.reduction: direct";
  }
  params->shared = false;
  return "every rank has a copy of the shared parameters, as with comm.share: rank";
}

/* Lanes of the ranks of this node. */
static smoe_lanes lanes_here(const smoe_params *params) {
  const smoe_nodes *machines = &params->topology.machines;
  return smoe_lanes_of_node(params->lanes.n_lanes, &params->group, machines,
                            machines->node[params->group.rank]);
}

/* Gradients of all lanes of the node stand behind the values, in the order of the lanes. */
static smoe_real *summed_slabs(const smoe_params *params) {
  return params->window.base ? (smoe_real *)(params->window.base + params->shared_bytes) : NULL;
}

smoe_real *smoe_params_lay_out_summed(smoe_params *params, const smoe_slab *slab) {
  const smoe_lanes lanes = lanes_here(params);
  smoe_real *slabs = summed_slabs(params);
  params->summed_bytes = (size_t)lanes.count * slab->count * sizeof *slabs;
  return slabs ? slabs + (size_t)(params->lanes.first - lanes.first) * slab->count : NULL;
}

void smoe_params_reduce_summed(const smoe_params *params, const smoe_slab *slab, smoe_real *scratch) {
  smoe_reduce_lanes_nodes(&params->group, &params->topology.machines, &params->window, slab->lanes.n_lanes,
                          slab->grad_own, summed_slabs(params), scratch, slab->count);
}

/* The parts of the window, in memory of smoe_alloc. */
static smoe_window_part *window_parts(const smoe_params *params, int *n) {
  const smoe_group *here = &params->topology.here;
  smoe_window_part *part = smoe_alloc((size_t)(2 * SMOE_SLAB_EXPERTS + here->n_ranks) * sizeof *part);
  *n = 0;
  for (int s = 0; s < SMOE_SLAB_EXPERTS && params->shared; s++) { /* in the order of the layout */
    const smoe_slab *slab = &params->slab[s];
    part[(*n)++] = (smoe_window_part){slab->count * sizeof *slab->value, -1};
    part[(*n)++] = (smoe_window_part){slab->half_count * sizeof *slab->half, -1};
  }
  for (int i = 0; i < here->n_ranks && params->summed_bytes > 0; i++) {
    const int rank = params->group.rank - here->rank + i; /* a node's ranks are consecutive then */
    const int lanes = smoe_lanes_of_rank(params->lanes.n_lanes, rank, params->group.n_ranks).count;
    part[(*n)++] =
        (smoe_window_part){(size_t)lanes * params->slab[SMOE_SLAB_REPLICATED].count * sizeof(smoe_real), i};
  }
  return part;
}

smoe_status smoe_params_take_window(smoe_params *params, bool only_check) {
  const smoe_group *here = &params->topology.here;
  if (!params->shared && !params->summed) return SMOE_OK;
  if (only_check)
    return smoe_window_check_room(&params->group, here, params->shared_bytes + params->summed_bytes);
  int n;
  smoe_window_part *part = window_parts(params, &n);
  const smoe_status status = smoe_window_create(&params->window, &params->group, here, part, n);
  smoe_free(part);
  return status;
}

double smoe_params_shared_part(const smoe_params *params) {
  double bytes = params->shared ? (double)params->shared_bytes / params->topology.here.n_ranks : 0;
  if (params->summed_bytes > 0)
    bytes +=
        (double)params->lanes.count * (double)params->slab[SMOE_SLAB_REPLICATED].count * sizeof(smoe_real);
  return bytes;
}

double smoe_params_shared_others(const smoe_params *params) {
  const double n = params->topology.here.n_ranks;
  double bytes = params->shared ? (double)params->shared_bytes * (1 - 1 / n) : 0;
  if (params->summed_bytes > 0) /* of the other ranks' lanes what it adds up */
    bytes += (double)(lanes_here(params).count - params->lanes.count) *
             (double)params->slab[SMOE_SLAB_REPLICATED].count * sizeof(smoe_real) / n;
  return bytes;
}

void smoe_params_fence(const smoe_params *params) {
  if (params->shared && params->window.base) smoe_window_fence(&params->window);
}

bool smoe_params_writes(const smoe_params *params) {
  return !params->shared || params->topology.here.rank == 0;
}

smoe_range smoe_slab_part(const smoe_params *params, const smoe_slab *slab) {
  const smoe_group *here = &params->topology.here;
  if (!smoe_slab_shared(params, slab)) return (smoe_range){0, smoe_slab_size(slab)};
  return (smoe_range){smoe_slice_first(slab->count, here->rank, here->n_ranks),
                      smoe_slice_first(slab->count, here->rank + 1, here->n_ranks)};
}

smoe_range smoe_range_within(smoe_range range, size_t begin, size_t count) {
  const size_t end = begin + count;
  const size_t first = range.first > begin ? range.first : begin, last = range.end < end ? range.end : end;
  return first < last ? (smoe_range){first - begin, last - begin} : (smoe_range){0, 0};
}

/* Round what a range of [n_local, count] has of a slab's parameters. */
static void round_range(const smoe_params *params, const smoe_slab *slab, smoe_range range) {
  for (int p = 0; p < params->n_params && slab->half_count > 0; p++) {
    const smoe_param *param = &params->param[p];
    if (!param->rounded || smoe_params_slab(params, p) != slab) continue;
    for (int j = 0; j < slab->n_local; j++) {
      const size_t begin = (size_t)j * slab->count + param->offset;
      const smoe_range part = smoe_range_within(range, begin, param->count);
      if (part.first < part.end)
        smoe_bf16_round(slab->half + (size_t)j * slab->half_count + param->half_offset + part.first,
                        slab->value + begin + part.first, part.end - part.first);
    }
  }
}

void smoe_params_round(smoe_params *params) {
  smoe_params_fence(params);
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    round_range(params, slab, smoe_slab_part(params, slab));
  }
  smoe_params_fence(params);
}

/* Round the slices that this rank has written: it knows them, and need not wait for the others. */
static void round_brought(const smoe_params *params, const smoe_slab *slab) {
  for (int r = 0; r < params->group.n_ranks && slab->half_count > 0; r++) {
    const smoe_range slice = {smoe_slice_first(slab->count, r, params->group.n_ranks),
                              smoe_slice_first(slab->count, r + 1, params->group.n_ranks)};
    if (slice.first < slice.end && smoe_share_brings(&params->group, &params->topology.machines, r))
      round_range(params, slab, slice);
  }
}

void smoe_params_allgather(smoe_params *params, bool all) {
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    if (slab->count == 0 || !(slab->learns || all)) continue;
    if (smoe_slab_shared(params, slab)) {
      smoe_share_slices_nodes(&params->group, &params->topology.machines, slab->value, slab->count);
      round_brought(params, slab);
    } else {
      smoe_share_slices(&slab->holders, slab->value, smoe_slab_size(slab));
      round_range(params, slab, (smoe_range){0, smoe_slab_size(slab)});
    }
  }
  smoe_params_fence(params);
}
