#include "stablemoe/nodes.h"

#include "stablemoe/arena.h"

/* The lowest rank of every rank's machine. */
static void find_leaders(int *leader, const smoe_group *group) {
  MPI_Comm here;
  int mine;
  SMOE_MPI(MPI_Comm_split_type(group->comm, MPI_COMM_TYPE_SHARED, group->rank, MPI_INFO_NULL, &here));
  SMOE_MPI(MPI_Allreduce(&group->rank, &mine, 1, MPI_INT, MPI_MIN, here));
  SMOE_MPI(MPI_Comm_free(&here));
  SMOE_MPI(MPI_Allgather(&mine, 1, MPI_INT, leader, 1, MPI_INT, group->comm));
}

/* Number the nodes by their leaders, which are their lowest ranks. */
static void make_tables(smoe_nodes *nodes, const int *leader, int n) {
  *nodes = (smoe_nodes){.node = smoe_alloc((size_t)n * sizeof *nodes->node),
                        .first = smoe_alloc(((size_t)n + 1) * sizeof *nodes->first),
                        .rank = smoe_alloc((size_t)n * sizeof *nodes->rank),
                        .place = smoe_alloc((size_t)n * sizeof *nodes->place)};
  for (int r = 0; r < n; r++) {
    nodes->node[r] = leader[r] == r ? nodes->n_nodes++ : nodes->node[leader[r]];
    nodes->place[r] = nodes->first[nodes->node[r] + 1]++;
  }
  for (int x = 0; x < nodes->n_nodes; x++) nodes->first[x + 1] += nodes->first[x];
  for (int r = 0; r < n; r++) nodes->rank[nodes->first[nodes->node[r]] + nodes->place[r]] = r;
}

/* First rank of the block of block_ranks consecutive ranks. */
static int block_leader(int rank, int64_t block_ranks) {
  return (int)(rank / block_ranks * block_ranks);
}

void smoe_nodes_find(smoe_nodes *nodes, const smoe_group *group, int64_t node_ranks) {
  const int n = group->n_ranks;
  int *leader = smoe_alloc((size_t)n * sizeof *leader);
  if (node_ranks == 0) node_ranks = group->planned_per_node;
  if (node_ranks > 0)
    for (int r = 0; r < n; r++) leader[r] = block_leader(r, node_ranks);
  else
    find_leaders(leader, group);
  make_tables(nodes, leader, n);
  smoe_free(leader);
}

void smoe_nodes_find_memory(smoe_nodes *nodes, const smoe_group *group, int64_t node_ranks) {
  const int n = group->n_ranks;
  int *machine = smoe_alloc((size_t)n * sizeof *machine), *leader = smoe_alloc((size_t)n * sizeof *leader);
  if (group->planned_per_node > 0)
    for (int r = 0; r < n; r++) machine[r] = block_leader(r, group->planned_per_node);
  else
    find_leaders(machine, group);
  for (int r = 0; r < n; r++) {
    leader[r] = machine[r];
    if (node_ranks == 0) continue;
    leader[r] = block_leader(r, node_ranks);
    while (machine[leader[r]] != machine[r]) leader[r]++; /* ends at r */
  }
  make_tables(nodes, leader, n);
  smoe_free(machine);
  smoe_free(leader);
}

int smoe_nodes_count(const smoe_nodes *nodes, int node) {
  return nodes->first[node + 1] - nodes->first[node];
}

bool smoe_nodes_consecutive(const smoe_nodes *nodes) {
  for (int i = 0; i < nodes->first[nodes->n_nodes]; i++)
    if (nodes->rank[i] != i) return false;
  return true;
}

int smoe_nodes_partner(const smoe_nodes *nodes, int node, int rank) {
  return nodes->rank[nodes->first[node] + nodes->place[rank] % smoe_nodes_count(nodes, node)];
}

void smoe_nodes_release(smoe_nodes *nodes) {
  smoe_free(nodes->node);
  smoe_free(nodes->first);
  smoe_free(nodes->rank);
  smoe_free(nodes->place);
  *nodes = (smoe_nodes){0};
}
