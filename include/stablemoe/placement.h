/** Where experts live: which expert stands at which place of a replica (topology.h).
 *
 *  Ranks wait for the one whose experts have most rows. Where the routing is fixed, the loads
 *  are known beforehand, and experts can be put together so that all ranks have alike.
 *  Placement moves work; the order of every sum goes by expert number, and no bit changes.
 */
#ifndef STABLEMOE_PLACEMENT_H
#define STABLEMOE_PLACEMENT_H

#include "stablemoe/topology.h"

/** How well loads are shared out: the sum over layers of the busiest rank's load, over what it is
 *  where all ranks have alike; 1 is even. 1 where there is no load. Local.
 *
 *  expert_at  in  [E]; NULL: expert e at place e
 *  load       in  [M, E] rows of each expert in each MoE layer
 */
double smoe_placement_imbalance(const int32_t *expert_at, const int64_t *load, int n_layers, int n_experts,
                                int n_ranks);

/** Pack experts so that the busiest rank has little; every rank keeps its number of experts, and so
 *  its memory.
 *
 *  Local; a function of its arguments alone, so the same on all ranks that have the same loads.
 *
 *  expert_at  out  [E] ascending within a rank; never worse than expert e at place e
 *  load       in   [M, E]; all layers' parameters of one expert number live on one rank
 *
 *  Method:  longest processing time first; then the swaps of two experts that help most, until
 *           none does or a fixed amount of work is spent.
 */
void smoe_placement_pack(int32_t *expert_at, const int64_t *load, int n_layers, int n_experts, int n_ranks);

/** Carry slabs from the present places to new ones.
 *
 *  Collective over topology->experts; leaves topology->expert_at alone.
 *
 *  to    in   [E] expert at each place afterwards
 *  out   out  [n_local, count] by new place
 *  in    in   [n_local, count] by present place
 *  count in   a multiple of SMOE_UNIT
 */
void smoe_placement_move(const smoe_topology *topology, const int32_t *to, int n_experts, smoe_real *out,
                         const smoe_real *in, size_t count);

#endif
