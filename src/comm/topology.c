#include "stablemoe/topology.h"

#include "stablemoe/arena.h"

int smoe_expert_first(int n_experts, int rank, int n_ranks) {
  return (int)((int64_t)rank * n_experts / n_ranks);
}

int smoe_expert_at(const int32_t *expert_at, int place) {
  return expert_at ? expert_at[place] : place;
}

/* Largest divisor of n_ranks that is at most n_experts. */
static int automatic(int n_ranks, int n_experts) {
  int best = 1;
  for (int g = 1; g <= n_ranks && g <= n_experts; g++)
    if (n_ranks % g == 0) best = g;
  return best;
}

/* Ranks of one colour; this one is the rank-th of n_ranks. */
static smoe_group split(const smoe_group *world, int color, int rank, int n_ranks) {
  smoe_group part = {
      .comm = world->comm, .rank = rank, .n_ranks = n_ranks, .planned_per_node = world->planned_per_node};
  if (part.planned_per_node > 0) return part;
  SMOE_MPI(MPI_Comm_split(world->comm, color, world->rank, &part.comm));
  SMOE_MPI(MPI_Comm_set_errhandler(part.comm, MPI_ERRORS_RETURN));
  return part;
}

smoe_topology smoe_topology_whole(const smoe_group *world) {
  return (smoe_topology){
      .world = *world, .experts = *world, .replicas = {.comm = MPI_COMM_SELF, .rank = 0, .n_ranks = 1}};
}

smoe_status smoe_topology_create(smoe_topology *topology, const smoe_group *world, int n_experts,
                                 int64_t expert_ranks) {
  const int n_ranks = world->n_ranks;
  *topology = smoe_topology_whole(world);
  if (n_experts == 0) return SMOE_OK;
  const int64_t g = expert_ranks > 0 ? expert_ranks : automatic(n_ranks, n_experts);
  SMOE_CHECK(g <= n_experts, SMOE_ERR_CONFIG,
             "comm.expert_ranks = %lld for moe.experts = %d: at most one rank per expert can share them out",
             (long long)g, n_experts);
  SMOE_CHECK(n_ranks % g == 0, SMOE_ERR_CONFIG,
             "comm.expert_ranks = %lld does not divide the %d ranks: start a multiple of it, or set it to 0",
             (long long)g, n_ranks);
  if (g == n_ranks) return SMOE_OK;
  const int replica = world->rank / (int)g, place = world->rank % (int)g;
  topology->experts = split(world, replica, place, (int)g);
  topology->replicas = split(world, place, replica, n_ranks / (int)g);
  return SMOE_OK;
}

void smoe_topology_find_machines(smoe_topology *topology, int64_t node_ranks) {
  const smoe_group *world = &topology->world;
  smoe_nodes *machines = &topology->machines;
  smoe_nodes_find_memory(machines, world, node_ranks);
  const int own = machines->node[world->rank];
  topology->here = split(world, own, machines->place[world->rank], smoe_nodes_count(machines, own));
}

static void free_comm(smoe_group *group) {
  if (group->planned_per_node == 0 && group->comm != MPI_COMM_NULL) SMOE_MPI(MPI_Comm_free(&group->comm));
}

void smoe_topology_release(smoe_topology *topology) {
  if (topology->world.n_ranks > 0 && topology->experts.n_ranks != topology->world.n_ranks) {
    free_comm(&topology->experts);
    free_comm(&topology->replicas);
  }
  if (topology->here.n_ranks > 0) free_comm(&topology->here);
  smoe_nodes_release(&topology->nodes);
  smoe_nodes_release(&topology->machines);
  *topology = (smoe_topology){0};
}
