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

void smoe_nodes_find(smoe_nodes *nodes, const smoe_group *group, int64_t node_ranks) {
  const int n = group->n_ranks;
  int *leader = smoe_alloc((size_t)n * sizeof *leader);
  if (node_ranks == 0) node_ranks = group->planned_per_node;
  if (node_ranks > 0)
    for (int r = 0; r < n; r++) leader[r] = (int)(r / node_ranks * node_ranks);
  else
    find_leaders(leader, group);

  *nodes = (smoe_nodes){.node = smoe_alloc((size_t)n * sizeof *nodes->node),
                        .first = smoe_alloc(((size_t)n + 1) * sizeof *nodes->first),
                        .rank = smoe_alloc((size_t)n * sizeof *nodes->rank)};
  int at = 0;
  for (int l = 0; l < n; l++) {
    if (leader[l] != l) continue;
    for (int r = l; r < n; r++) {
      if (leader[r] != l) continue;
      nodes->node[r] = nodes->n_nodes;
      nodes->rank[at++] = r;
    }
    nodes->first[++nodes->n_nodes] = at;
  }
  smoe_free(leader);
}

void smoe_nodes_release(smoe_nodes *nodes) {
  smoe_free(nodes->node);
  smoe_free(nodes->first);
  smoe_free(nodes->rank);
  *nodes = (smoe_nodes){0};
}
