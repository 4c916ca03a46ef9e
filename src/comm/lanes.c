#include "lanes_parts.h"

#include <string.h>

#include "stablemoe/arena.h"

/* Elements that go through the whole tree together: all lanes' parts of a block fit in cache. */
enum { BLOCK = 4 * SMOE_UNIT };

smoe_lanes smoe_lanes_of_rank(int n_lanes, int rank, int n_ranks) {
  const int first = (int)((int64_t)rank * n_lanes / n_ranks);
  const int end = (int)((int64_t)(rank + 1) * n_lanes / n_ranks);
  return (smoe_lanes){n_lanes, first, end - first};
}

size_t smoe_slice_first(size_t count, int rank, int n_ranks) {
  const size_t units = count / SMOE_UNIT;
  return units * (size_t)rank / (size_t)n_ranks * SMOE_UNIT;
}

static size_t slice_count(size_t count, int rank, int n_ranks) {
  return smoe_slice_first(count, rank + 1, n_ranks) - smoe_slice_first(count, rank, n_ranks);
}

static int min_int(int a, int b) {
  return a < b ? a : b;
}

int smoe_tree_node_end(int n_lanes, int lane, int end) {
  int step = 1;
  while (step < n_lanes && lane % (2 * step) == 0 && min_int(lane + 2 * step, n_lanes) <= end) step *= 2;
  return min_int(lane + step, n_lanes);
}

int smoe_tree_nodes(int n_lanes, int first, int end) {
  int n = 0;
  for (int lane = first; lane < end; lane = smoe_tree_node_end(n_lanes, lane, end)) n++;
  return n;
}

int smoe_reduce_nodes(int n_lanes, int rank, int n_ranks) {
  const smoe_lanes own = smoe_lanes_of_rank(n_lanes, rank, n_ranks);
  return smoe_tree_nodes(n_lanes, own.first, own.first + own.count);
}

static void add(smoe_real *restrict a, const smoe_real *restrict b, size_t n) {
  for (size_t i = 0; i < n; i++) a[i] += b[i];
}

void smoe_tree_add(smoe_real *const *at, int n_lanes, int first, int end, size_t count) {
#pragma omp parallel for schedule(static) if (count > 4 * BLOCK)
  for (size_t block = 0; block < count; block += BLOCK) {
    const size_t n = count - block < BLOCK ? count - block : BLOCK;
    for (int step = 1; step < n_lanes; step *= 2) {
      const int aligned = (first + 2 * step - 1) / (2 * step) * (2 * step);
      for (int i = aligned; i + step < end && min_int(i + 2 * step, n_lanes) <= end; i += 2 * step)
        if (at[i + step]) add(at[i] + block, at[i + step] + block, n);
    }
  }
}

void smoe_lanes_sum(const smoe_group *group, const smoe_lanes *lanes, double *total, const double *values,
                    int k) {
  const int n_lanes = lanes->n_lanes;
  const size_t width = (size_t)k;
  int *count = smoe_alloc((size_t)group->n_ranks * sizeof *count);
  double *all = smoe_alloc((size_t)n_lanes * width * sizeof *all);
  for (int r = 0; r < group->n_ranks; r++)
    count[r] = smoe_lanes_of_rank(n_lanes, r, group->n_ranks).count * k;
  smoe_group_gather_f64(group, all, values, count);
  for (int step = 1; step < n_lanes; step *= 2)
    for (int i = 0; i + step < n_lanes; i += 2 * step)
      for (size_t j = 0; j < width; j++) all[(size_t)i * width + j] += all[(size_t)(i + step) * width + j];
  memcpy(total, all, width * sizeof *total);
  smoe_free(all);
  smoe_free(count);
}

size_t smoe_reduce_scratch(const smoe_group *group, const smoe_lanes *lanes, size_t count) {
  int others = 0;
  for (int r = 0; r < group->n_ranks; r++)
    if (r != group->rank) others += smoe_reduce_nodes(lanes->n_lanes, r, group->n_ranks);
  return (size_t)others * slice_count(count, group->rank, group->n_ranks);
}

MPI_Datatype smoe_unit_create(void) {
  MPI_Datatype unit;
  SMOE_MPI(MPI_Type_contiguous(SMOE_UNIT, SMOE_MPI_REAL, &unit));
  SMOE_MPI(MPI_Type_commit(&unit));
  return unit;
}

/* What this rank sends and receives in one round of the reduction, in units. */
typedef struct {
  int *send_count, *send_offset, *recv_count, *recv_offset; /* [n_ranks] */
  int *lane;       /* [n_ranks] where the next node of a rank begins */
  size_t received; /* reals of scratch that are in use */
} reduce_round;

static void round_create(reduce_round *round, const smoe_group *group, int n_lanes) {
  const size_t n = (size_t)group->n_ranks;
  int *memory = smoe_alloc(5 * n * sizeof *memory);
  *round = (reduce_round){memory, memory + n, memory + 2 * n, memory + 3 * n, memory + 4 * n, 0};
  for (int r = 0; r < group->n_ranks; r++)
    round->lane[r] = smoe_lanes_of_rank(n_lanes, r, group->n_ranks).first;
}

/* Take the next node of every rank that has one; at[] learns where its slice will lie.
 *
 * The own node is not sent: its slice stays in its slab. Returns that node's first lane, -1 for none.
 */
static int round_next(reduce_round *round, const smoe_group *group, int n_lanes, smoe_real **at,
                      smoe_real *scratch, size_t count) {
  const size_t own = slice_count(count, group->rank, group->n_ranks);
  int mine = -1;
  for (int r = 0; r < group->n_ranks; r++) {
    const smoe_lanes theirs = smoe_lanes_of_rank(n_lanes, r, group->n_ranks);
    const int lane = round->lane[r], end = theirs.first + theirs.count;
    round->recv_count[r] = 0;
    round->recv_offset[r] = (int)(round->received / SMOE_UNIT);
    if (lane == end) continue;
    round->lane[r] = smoe_tree_node_end(n_lanes, lane, end);
    if (r == group->rank) {
      mine = lane;
    } else {
      at[lane] = scratch + round->received;
      round->recv_count[r] = (int)(own / SMOE_UNIT);
      round->received += own;
    }
  }
  for (int r = 0; r < group->n_ranks; r++) {
    const bool send = mine >= 0 && r != group->rank;
    round->send_count[r] = send ? (int)(slice_count(count, r, group->n_ranks) / SMOE_UNIT) : 0;
    round->send_offset[r] = (int)(smoe_slice_first(count, r, group->n_ranks) / SMOE_UNIT);
  }
  return mine;
}

/* One Alltoallv per node of the rank that has most: nothing needs packing then. */
static void exchange_nodes(const smoe_group *group, const smoe_lanes *lanes, smoe_real **at,
                           const smoe_real *slabs, smoe_real *scratch, size_t count) {
  reduce_round round;
  MPI_Datatype unit = smoe_unit_create();
  int n_rounds = 0;
  for (int r = 0; r < group->n_ranks; r++) {
    const int n = smoe_reduce_nodes(lanes->n_lanes, r, group->n_ranks);
    if (n > n_rounds) n_rounds = n;
  }
  round_create(&round, group, lanes->n_lanes);
  for (int i = 0; i < n_rounds; i++) {
    const int mine = round_next(&round, group, lanes->n_lanes, at, scratch, count);
    const smoe_real *node = mine < 0 ? slabs : slabs + (size_t)(mine - lanes->first) * count;
    SMOE_MPI(MPI_Alltoallv(node, round.send_count, round.send_offset, unit, scratch, round.recv_count,
                           round.recv_offset, unit, group->comm));
  }
  smoe_free(round.send_count);
  SMOE_MPI(MPI_Type_free(&unit));
}

void smoe_reduce_lanes(const smoe_group *group, const smoe_lanes *lanes, smoe_real *slice, smoe_real *slabs,
                       smoe_real *scratch, size_t count) {
  const int n_lanes = lanes->n_lanes, first = lanes->first, end = first + lanes->count;
  const size_t own_first = smoe_slice_first(count, group->rank, group->n_ranks);
  const size_t own_count = slice_count(count, group->rank, group->n_ranks);
  SMOE_ASSERT(count % SMOE_UNIT == 0);
  smoe_real **at = smoe_alloc((size_t)n_lanes * sizeof *at);

  for (int lane = first; lane < end; lane++) at[lane] = slabs + (size_t)(lane - first) * count;
  smoe_tree_add(at, n_lanes, first, end, count);
  if (group->n_ranks > 1) {
    /* From here on at[] points to slices, and only to the nodes that were not added to a larger one. */
    for (int lane = first; lane < end; lane++) at[lane] = NULL;
    for (int lane = first; lane < end; lane = smoe_tree_node_end(n_lanes, lane, end))
      at[lane] = slabs + (size_t)(lane - first) * count + own_first;
    exchange_nodes(group, lanes, at, slabs, scratch, count);
    smoe_tree_add(at, n_lanes, 0, n_lanes, own_count);
  }
  if (own_count) memcpy(slice, at[0], own_count * sizeof *slice);
  smoe_free(at);
}

void smoe_share_slices(const smoe_group *group, smoe_real *slab, size_t count) {
  const int R = group->n_ranks;
  if (R == 1) return;
  int *counts = smoe_alloc((size_t)R * 2 * sizeof *counts), *offsets = counts + R;
  for (int r = 0; r < R; r++) {
    counts[r] = (int)(slice_count(count, r, R) / SMOE_UNIT);
    offsets[r] = (int)(smoe_slice_first(count, r, R) / SMOE_UNIT);
  }
  MPI_Datatype unit = smoe_unit_create();
  SMOE_MPI(MPI_Allgatherv(MPI_IN_PLACE, 0, unit, slab, counts, offsets, unit, group->comm));
  SMOE_MPI(MPI_Type_free(&unit));
  smoe_free(counts);
}
