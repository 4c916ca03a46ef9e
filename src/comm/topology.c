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

static smoe_group split(const smoe_group *world, int color, int key) {
  smoe_group part;
  SMOE_MPI(MPI_Comm_split(world->comm, color, key, &part.comm));
  SMOE_MPI(MPI_Comm_set_errhandler(part.comm, MPI_ERRORS_RETURN));
  SMOE_MPI(MPI_Comm_rank(part.comm, &part.rank));
  SMOE_MPI(MPI_Comm_size(part.comm, &part.n_ranks));
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
  topology->experts = split(world, world->rank / (int)g, world->rank);
  topology->replicas = split(world, world->rank % (int)g, world->rank);
  return SMOE_OK;
}

static void free_comm(MPI_Comm *comm) {
  if (*comm != MPI_COMM_NULL) SMOE_MPI(MPI_Comm_free(comm));
}

void smoe_topology_release(smoe_topology *topology) {
  if (topology->world.n_ranks > 0 && topology->experts.n_ranks != topology->world.n_ranks) {
    free_comm(&topology->experts.comm);
    free_comm(&topology->replicas.comm);
  }
  smoe_nodes_release(&topology->nodes);
  *topology = (smoe_topology){0};
}
