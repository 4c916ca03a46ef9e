/* Memory that the ranks of a node share, the tables of nodes, and slices that go from node to node. */
#include "stablemoe/directory.h"
#include "stablemoe/window.h"

#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/lanes.h"
#include "stablemoe/random.h"
#include "stablemoe/topology.h"

static smoe_group group;

/* ---- tables ---- */

static void check_table(const smoe_nodes *nodes, const char *what) {
  int n = 0;
  for (int x = 0; x < nodes->n_nodes; x++) {
    CHECK(smoe_nodes_count(nodes, x) > 0, "%s", what);
    for (int i = 0; i < smoe_nodes_count(nodes, x); i++, n++) {
      const int r = nodes->rank[nodes->first[x] + i];
      CHECK(nodes->node[r] == x && nodes->place[r] == i, "%s: rank %d", what, r);
      CHECK(i == 0 || r > nodes->rank[nodes->first[x] + i - 1], "%s: ranks of a node ascend", what);
      CHECK(x == 0 || nodes->rank[nodes->first[x]] > nodes->rank[nodes->first[x - 1]],
            "%s: nodes by first rank", what);
    }
  }
  CHECK(n == group.n_ranks, "%s: %d ranks", what, n);
}

/* All ranks of a test are on one machine, so the blocks decide. */
static void test_tables(void) {
  for (int block = 0; block <= group.n_ranks; block++) {
    smoe_nodes nodes;
    smoe_nodes_find_memory(&nodes, &group, block);
    check_table(&nodes, "blocks");
    CHECK(nodes.n_nodes == (block ? (group.n_ranks + block - 1) / block : 1), "%d nodes of blocks of %d",
          nodes.n_nodes, block);
    smoe_nodes_release(&nodes);
  }
  /* Machines that are planned end blocks: 7 ranks, 4 to a machine, blocks of 3 ranks. */
  static const int expected[] = {0, 0, 0, 1, 2, 2, 3};
  const smoe_group planned = {.comm = MPI_COMM_SELF, .n_ranks = 7, .planned_per_node = 4};
  smoe_nodes nodes;
  smoe_nodes_find_memory(&nodes, &planned, 3);
  CHECK(smoe_nodes_consecutive(&nodes));
  CHECK(nodes.n_nodes == 4 && memcmp(nodes.node, expected, sizeof expected) == 0);
  CHECK(smoe_nodes_partner(&nodes, 2, 1) == 5 && smoe_nodes_partner(&nodes, 2, 2) == 4 &&
        smoe_nodes_partner(&nodes, 3, 1) == 6);
  smoe_nodes_release(&nodes);
}

/* ---- a window ---- */

static void test_window(int block) {
  enum { N = 5000 };
  smoe_topology topology = smoe_topology_whole(&group);
  smoe_window window;
  smoe_topology_find_machines(&topology, block);
  const smoe_group *here = &topology.here;
  /* Pages of parts meet within. */
  const smoe_window_part part[] = {{N * sizeof(int), -1}, {0, -1}, {3 * N * sizeof(int), here->n_ranks - 1}};
  CHECK(smoe_window_create(&window, &group, here, part, 3) == SMOE_OK, "%s", smoe_last_error());
  CHECK((uintptr_t)window.base % 64 == 0 && window.bytes == 4 * N * sizeof(int));
  int *at = (int *)window.base, wrong = 0;
  for (int i = 0; i < 4 * N; i++) wrong += at[i] != 0;
  CHECK(wrong == 0, "%d numbers are not zero", wrong);
  for (int turn = 0; turn < 20; turn++) {
    smoe_window_fence(&window);
    for (int i = here->rank; i < 4 * N; i += here->n_ranks) at[i] = turn * 4 * N + i + group.rank / 100;
    smoe_window_fence(&window);
    for (int i = 0; i < 4 * N; i++) wrong += at[i] != turn * 4 * N + i;
  }
  CHECK(wrong == 0, "%d numbers of other ranks not seen, blocks of %d", wrong, block);
  smoe_window_release(&window);
  CHECK(window.base == NULL);
  smoe_window_release(&window);
  CHECK(smoe_window_try(&group, here, 1000 * (size_t)here->n_ranks) == SMOE_OK, "%s", smoe_last_error());
  smoe_topology_release(&topology);
}

/* More than there is: an error on all ranks, not a window that ends in SIGBUS. */
static void test_room(void) {
  /* No room is not the same as a file system that does not say. */
  CHECK(smoe_directory_room("/proc") < 0);
  CHECK(smoe_directory_room("/no/such/directory") < 0);
  CHECK(smoe_directory_room(".") > 0);
  smoe_topology topology = smoe_topology_whole(&group);
  smoe_window window;
  smoe_topology_find_machines(&topology, 0);
  const smoe_window_part much = {(size_t)1 << 46, -1};
  CHECK(smoe_window_check_room(&group, &topology.here, 1000) == SMOE_OK);
  CHECK(smoe_window_check_room(&group, &topology.here, much.bytes) == SMOE_ERR_MEMORY);
  CHECK(smoe_window_create(&window, &group, &topology.here, &much, 1) == SMOE_ERR_MEMORY && !window.base);
  CHECK(strstr(smoe_last_error(), "has room for"), "'%s'", smoe_last_error());
  smoe_topology_release(&topology);
}

/* ---- slices ---- */

static smoe_real value_of(size_t i) {
  return (smoe_real)smoe_random_normal(3, SMOE_RANDOM_TEST, 1, i);
}

/* A rank's memory is its node's: what no message and no own slice brings is brought by another rank, which is checked by
 * counting. */
static void test_slices(const smoe_nodes *nodes, size_t count, const char *what) {
  smoe_real *slab = smoe_alloc((count + 1) * sizeof *slab);
  int64_t *brought = smoe_alloc((size_t)(nodes->n_nodes * group.n_ranks) * sizeof *brought);
  const smoe_real guard = 12345;
  const size_t first = smoe_slice_first(count, group.rank, group.n_ranks);
  const size_t end = smoe_slice_first(count, group.rank + 1, group.n_ranks);
  for (size_t i = 0; i <= count; i++) slab[i] = guard;
  for (size_t i = first; i < end; i++) slab[i] = value_of(i);
  smoe_share_slices_nodes(&group, nodes, slab, count);
  for (int r = 0; r < group.n_ranks; r++) {
    const bool brings = smoe_share_brings(&group, nodes, r);
    brought[nodes->node[group.rank] * group.n_ranks + r] = brings;
    for (size_t i = smoe_slice_first(count, r, group.n_ranks);
         i < smoe_slice_first(count, r + 1, group.n_ranks); i++)
      CHECK(slab[i] == (brings ? value_of(i) : guard), "%s: slice of %d on %d", what, r, group.rank);
  }
  CHECK(slab[count] == guard, "%s: written beyond the end", what);
  smoe_group_sum_i64(&group, brought, nodes->n_nodes * group.n_ranks);
  for (int i = 0; i < nodes->n_nodes * group.n_ranks; i++)
    CHECK(brought[i] == 1, "%s: slice of rank %d comes %d times to node %d", what, i % group.n_ranks,
          (int)brought[i], i / group.n_ranks);
  smoe_free(brought);
  smoe_free(slab);
}

/* Nodes of consecutive ranks, the last with fewer; and ranks dealt out to nodes in turn. */
static void test_all_slices(size_t count) {
  for (int n = 1; n <= group.n_ranks; n++) {
    smoe_nodes nodes;
    smoe_nodes_find_memory(&nodes, &group, n);
    test_slices(&nodes, count, "blocks");
    smoe_nodes_release(&nodes);

    nodes = (smoe_nodes){.n_nodes = n};
    int node[16], first[17], rank[16], place[16], at = 0;
    for (int x = 0; x < n; x++) {
      first[x] = at;
      for (int r = x; r < group.n_ranks; r += n) {
        node[r] = x;
        place[r] = at - first[x];
        rank[at++] = r;
      }
    }
    first[n] = at;
    nodes = (smoe_nodes){.n_nodes = n, .node = node, .first = first, .rank = rank, .place = place};
    check_table(&nodes, "in turn");
    CHECK(smoe_nodes_consecutive(&nodes) == (n == 1 || n == group.n_ranks), "%d nodes", n);
    test_slices(&nodes, count, "in turn");
  }
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  test_tables();
  for (int block = 0; block < group.n_ranks; block++) test_window(block);
  test_room();
  static const size_t units[] = {0, 1, 3, 21}; /* one unit leaves ranks without a slice */
  for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) test_all_slices(units[u] * SMOE_UNIT);
  smoe_group_end(&group);
  return test_verdict("window");
}
