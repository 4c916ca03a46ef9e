/* Sums over lanes: the same bits as one fixed tree, on any number of ranks. */
#include "stablemoe/lanes.h"

#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/random.h"
#include "stablemoe/topology.h"

static smoe_group group;

static double value_of(int lane, size_t element) {
  /* Large and small numbers mixed, so that another order of the sum shows in its bits. */
  const double x = smoe_random_normal(11, SMOE_RANDOM_TEST, (uint32_t)lane, element);
  return lane % 3 ? x : 1e3 * x;
}

/* Node (level, i) of the documented tree, element by element and from the top. */
static smoe_real node_real(int n_lanes, int level, int i, size_t element) {
  if (level == 0) return (smoe_real)value_of(i, element);
  const smoe_real left = node_real(n_lanes, level - 1, 2 * i, element);
  if ((2 * i + 1) << (level - 1) >= n_lanes) return left;
  return left + node_real(n_lanes, level - 1, 2 * i + 1, element);
}

static double node_double(int n_lanes, int level, int i, size_t element) {
  if (level == 0) return value_of(i, element);
  const double left = node_double(n_lanes, level - 1, 2 * i, element);
  if ((2 * i + 1) << (level - 1) >= n_lanes) return left;
  return left + node_double(n_lanes, level - 1, 2 * i + 1, element);
}

static int top_level(int n_lanes) {
  int level = 0;
  while (1 << level < n_lanes) level++;
  return level;
}

static void test_ownership(int n_lanes) {
  int next = 0;
  for (int r = 0; r < group.n_ranks; r++) {
    const smoe_lanes lanes = smoe_lanes_of_rank(n_lanes, r, group.n_ranks);
    CHECK(lanes.n_lanes == n_lanes && lanes.first == next && lanes.count >= 0);
    next = lanes.first + lanes.count;
  }
  CHECK(next == n_lanes, "%d lanes of %d owned", next, n_lanes);
}

static void test_sum(int n_lanes) {
  enum { WIDTH = 37 };
  const smoe_lanes lanes = smoe_lanes_of_rank(n_lanes, group.rank, group.n_ranks);
  double *values = smoe_alloc((size_t)(lanes.count + 1) * WIDTH * sizeof *values);
  double total[WIDTH], expected[WIDTH];
  for (int l = 0; l < lanes.count; l++)
    for (size_t i = 0; i < WIDTH; i++) values[(size_t)l * WIDTH + i] = value_of(lanes.first + l, i);
  for (size_t i = 0; i < WIDTH; i++) expected[i] = node_double(n_lanes, top_level(n_lanes), 0, i);
  smoe_lanes_sum(&group, &lanes, total, values, WIDTH);
  CHECK(memcmp(total, expected, sizeof total) == 0, "%d lanes, %d ranks", n_lanes, group.n_ranks);
  smoe_free(values);
}

static void test_reduce(int n_lanes, size_t count) {
  const smoe_lanes lanes = smoe_lanes_of_rank(n_lanes, group.rank, group.n_ranks);
  const size_t first = smoe_slice_first(count, group.rank, group.n_ranks);
  const size_t n = smoe_slice_first(count, group.rank + 1, group.n_ranks) - first;
  const size_t n_scratch = smoe_reduce_scratch(&group, &lanes, count);
  const smoe_real guard = 12345;
  smoe_real *slabs = smoe_alloc(((size_t)lanes.count * count + 1) * sizeof *slabs);
  smoe_real *scratch = smoe_alloc((n_scratch + 1) * sizeof *scratch);
  smoe_real *whole = smoe_alloc((count + 1) * sizeof *whole);
  smoe_real *expected = smoe_alloc(count * sizeof *expected);

  for (int l = 0; l < lanes.count; l++)
    for (size_t i = 0; i < count; i++) slabs[(size_t)l * count + i] = (smoe_real)value_of(lanes.first + l, i);
  for (size_t i = 0; i < count; i++) expected[i] = node_real(n_lanes, top_level(n_lanes), 0, i);
  for (size_t i = 0; i < n_scratch; i++) scratch[i] = guard;
  slabs[(size_t)lanes.count * count] = scratch[n_scratch] = whole[count] = guard;

  smoe_reduce_lanes(&group, &lanes, whole + first, slabs, scratch, count);
  CHECK(memcmp(whole + first, expected + first, n * sizeof *whole) == 0,
        "slice of rank %d of %d, %d lanes of %zu", group.rank, group.n_ranks, n_lanes, count);
  smoe_share_slices(&group, whole, count);
  CHECK(memcmp(whole, expected, count * sizeof *whole) == 0, "whole on rank %d of %d, %d lanes of %zu",
        group.rank, group.n_ranks, n_lanes, count);
  CHECK(slabs[(size_t)lanes.count * count] == guard && scratch[n_scratch] == guard && whole[count] == guard,
        "written beyond the end");
  CHECK(n_scratch == 0 || scratch[n_scratch - 1] != guard, "more scratch asked for than used");
  smoe_free(slabs);
  smoe_free(scratch);
  smoe_free(whole);
  smoe_free(expected);
}

/* Nodes of so many consecutive ranks, each with the slabs of its lanes in a window. */
static void test_reduce_nodes(int n_lanes, size_t count, int node_ranks) {
  smoe_topology topology = smoe_topology_whole(&group);
  smoe_topology_find_machines(&topology, node_ranks);
  const smoe_nodes *nodes = &topology.machines;
  const smoe_lanes here = smoe_lanes_of_node(n_lanes, &group, nodes, nodes->node[group.rank]);
  const smoe_lanes lanes = smoe_lanes_of_rank(n_lanes, group.rank, group.n_ranks);
  const size_t first = smoe_slice_first(count, group.rank, group.n_ranks);
  const size_t n = smoe_slice_first(count, group.rank + 1, group.n_ranks) - first;
  const size_t n_scratch = smoe_reduce_scratch_nodes(&group, nodes, n_lanes, count);
  const smoe_real guard = 12345;
  smoe_real *scratch = smoe_alloc((n_scratch + 1) * sizeof *scratch);
  smoe_real *slice = smoe_alloc((n + 1) * sizeof *slice);
  smoe_window window;
  const smoe_window_part part = {(size_t)here.count * count * sizeof *slice, -1};
  CHECK(smoe_window_create(&window, &group, &topology.here, &part, 1) == SMOE_OK, "%s", smoe_last_error());
  smoe_real *slabs = (smoe_real *)window.base, *own = slabs + (size_t)(lanes.first - here.first) * count;
  for (size_t i = 0; i <= n_scratch; i++) scratch[i] = guard;
  slice[n] = guard;
  for (int turn = 0; turn < 2; turn++) { /* the second update of the slabs finds nobody still reading */
    for (int l = 0; l < lanes.count; l++)
      for (size_t i = 0; i < count; i++) own[(size_t)l * count + i] = (smoe_real)value_of(lanes.first + l, i);
    smoe_reduce_lanes_nodes(&group, nodes, &window, n_lanes, slice, slabs, scratch, count);
    int wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += slice[i] != node_real(n_lanes, top_level(n_lanes), 0, first + i);
    CHECK(wrong == 0, "%d numbers of rank %d, %d lanes of %zu, nodes of %d ranks", wrong, group.rank, n_lanes,
          count, node_ranks);
  }
  CHECK(scratch[n_scratch] == guard && slice[n] == guard, "written beyond the end");
  CHECK(n_scratch == 0 || scratch[n_scratch - 1] != guard, "more scratch asked for than used");
  smoe_window_release(&window);
  smoe_free(scratch);
  smoe_free(slice);
  smoe_topology_release(&topology);
}

static void test_slices(size_t count) {
  CHECK(smoe_slice_first(count, 0, group.n_ranks) == 0);
  CHECK(smoe_slice_first(count, group.n_ranks, group.n_ranks) == count);
  for (int r = 0; r < group.n_ranks; r++) {
    const size_t first = smoe_slice_first(count, r, group.n_ranks);
    CHECK(first % SMOE_UNIT == 0 && first <= smoe_slice_first(count, r + 1, group.n_ranks));
  }
}

int main(int argc, char **argv) {
  static const int n_lanes[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};
  /* One unit leaves ranks without a slice; 21 units are more than one block of the sum, and uneven. */
  static const size_t units[] = {0, 1, 3, 21};
  smoe_group_start(&group, &argc, &argv);
  for (size_t l = 0; l < sizeof n_lanes / sizeof n_lanes[0]; l++) {
    test_ownership(n_lanes[l]);
    test_sum(n_lanes[l]);
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
      test_slices(units[u] * SMOE_UNIT);
      test_reduce(n_lanes[l], units[u] * SMOE_UNIT);
      for (int node_ranks = 1; node_ranks <= group.n_ranks && u % 2; node_ranks++)
        test_reduce_nodes(n_lanes[l], units[u] * SMOE_UNIT, node_ranks);
    }
  }
  smoe_group_end(&group);
  return test_verdict("lanes");
}
