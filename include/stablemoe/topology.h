/** How ranks share experts and data.
 *
 *  The ranks of a run form R / G replicas of G consecutive ranks each. The G ranks of a
 *  replica together hold every expert once and exchange tokens among themselves; ranks
 *  with the same place in their replicas hold the same experts, and add up these
 *  experts' gradients. With G = R there is one replica, which is plain expert parallelism.
 *
 *  Within a replica a MoE layer has E places, and rank g has the places floor(g E / G) to
 *  floor((g + 1) E / G) - 1. Which expert stands at which place is a table of each MoE layer
 *  (placement.h), which has its own E: at first expert e stands at place e. It decides where
 *  work is done, and never a result.
 */
#ifndef STABLEMOE_TOPOLOGY_H
#define STABLEMOE_TOPOLOGY_H

#include "stablemoe/nodes.h"

typedef struct smoe_topology {
  smoe_group world;    /**< all ranks */
  smoe_group experts;  /**< this rank's replica: G ranks; exchange happens here */
  smoe_group replicas; /**< ranks with this rank's experts, one per replica, in order */
  smoe_nodes nodes;    /**< of the ranks of experts; all zero where nobody asked for them */
  smoe_nodes
      machines;    /**< ranks of world that can have memory in common; all zero where nobody asked for them */
  smoe_group here; /**< this rank's among them; n_ranks 0 where nobody asked */
} smoe_topology;

/** First place of a rank: floor(r E / R); for rank == n_ranks: E. Local. */
int smoe_expert_first(int n_experts, int rank, int n_ranks);

/** Expert at a place. expert_at: [E], or NULL where expert e stands at place e. Local. */
int smoe_expert_at(const int32_t *expert_at, int place);

/** Split the ranks of world.
 *
 *  Collective over world.
 *
 *  n_experts     in  smallest E of the MoE layers; 0 for a dense model
 *  expert_ranks  in  G; 0: the largest divisor of R that is at most E
 *
 *  Errors:  SMOE_ERR_CONFIG, the same on all ranks, where G does not divide R or is above E.
 */
smoe_status smoe_topology_create(smoe_topology *topology, const smoe_group *world, int n_experts,
                                 int64_t expert_ranks);

/** Find the ranks that can have memory in common.
 *
 *  Collective over world.
 *  node_ranks  in  as for smoe_nodes_find_memory
 */
void smoe_topology_find_machines(smoe_topology *topology, int64_t node_ranks);

/** One replica of all ranks of world; nothing to release. Local. */
smoe_topology smoe_topology_whole(const smoe_group *world);

/** Give back what smoe_topology_create made; fine for a zeroed or whole one. Collective. */
void smoe_topology_release(smoe_topology *topology);

#endif
