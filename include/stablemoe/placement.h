/** Where experts live: which expert stands at which place of a replica (topology.h).
 *
 *  Ranks wait for the one whose experts have most rows. Where the routing is fixed, the loads
 *  are known beforehand, and experts can be put together so that all ranks have alike.
 *  Placement moves work; the order of every sum goes by expert number, and no bit changes.
 */
#ifndef STABLEMOE_PLACEMENT_H
#define STABLEMOE_PLACEMENT_H

#include "stablemoe/topology.h"

/** Load of the busiest rank of a MoE layer. Local.
 *
 *  expert_at  in  [E]; NULL: expert e at place e
 *  load       in  [E] rows of each expert
 */
int64_t smoe_placement_busiest(const int32_t *expert_at, const int64_t *load, int n_experts, int n_ranks);

/** Pack the experts of a MoE layer so that the busiest rank has little; every rank keeps its number of
 *  experts, and so its memory.
 *
 *  Local; a function of its arguments alone, so the same on all ranks that have the same loads.
 *
 *  expert_at  out  [E] ascending within a rank; never worse than expert e at place e
 *  load       in   [E]
 *
 *  Method:  longest processing time first; then the swaps of two experts that help most, until
 *           none does or a fixed amount of work is spent.
 */
void smoe_placement_pack(int32_t *expert_at, const int64_t *load, int n_experts, int n_ranks);

/** Carry the copies of a slab of experts from their present places to new ones.
 *
 *  Collective over group, the ranks of a replica.
 *
 *  from  in   [E] expert at each place now; NULL: expert e at place e
 *  to    in   [E] expert at each place afterwards
 *  out   out  [n_local, count] by new place
 *  in    in   [n_local, count] by present place
 *  count in   a multiple of SMOE_UNIT
 */
void smoe_placement_move(const smoe_group *group, const int32_t *from, const int32_t *to, int n_experts,
                         smoe_real *out, const smoe_real *in, size_t count);

#endif
