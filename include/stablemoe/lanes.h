/** Lanes: what makes the bits the same on any number of ranks.
 *
 *  The batch of an update is cut into n_lanes equal parts. A rank owns
 *  consecutive lanes. What one lane computes has shapes and an order of
 *  operands that follow from the configuration and the data alone; sums over
 *  lanes follow one fixed binary tree (doc/architecture.md, "Lanes").
 */
#ifndef STABLEMOE_LANES_H
#define STABLEMOE_LANES_H

#include "stablemoe/nodes.h"
#include "stablemoe/window.h"

typedef struct smoe_lanes {
  int n_lanes; /**< of the whole run */
  int first;   /**< first lane of this rank */
  int count;   /**< lanes of this rank; may be 0 */
} smoe_lanes;

/** Lanes of a rank: lanes floor(r L / R) to floor((r + 1) L / R) - 1. Local. */
smoe_lanes smoe_lanes_of_rank(int n_lanes, int rank, int n_ranks);

/** Sum k values of every lane in the fixed tree.
 *
 *  Collective over group.
 *
 *  total   out  [k], the same bits on all ranks and on any number of ranks
 *  values  in   [lanes->count, k], this rank's lanes
 *
 *  Cost:  one Allgather of n_lanes * k doubles.
 */
void smoe_lanes_sum(const smoe_group *group, const smoe_lanes *lanes, double *total, const double *values,
                    int k);

/** Elements of the smallest piece of a parameter slab that is ever split off:
 *  slices of ranks, checksums and partial norms all end on multiples of it,
 *  so none of them depends on the number of ranks.
 */
enum { SMOE_UNIT = 1024 };

/** First element of the slice of a slab that a rank owns; for rank == n_ranks its end.
 *  Local. count is a multiple of SMOE_UNIT, and so is the result.
 */
size_t smoe_slice_first(size_t count, int rank, int n_ranks);

/** Ordered reduction: add the lanes' slabs in the fixed tree; each rank gets its own slice.
 *
 *  Collective over group.
 *
 *  slice    out    [slice count] sum over all lanes of the slice this rank owns
 *  slabs    inout  [lanes->count, count]; destroyed (partial sums are made in place)
 *  scratch         smoe_reduce_scratch(...) reals
 *  count    in     elements of a slab, a multiple of SMOE_UNIT
 *
 *  Order:  node (level, i) of the tree is the sum of nodes (level - 1, 2i) and
 *          (level - 1, 2i + 1). A rank sends the roots of the largest complete
 *          subtrees among its lanes, so the result has the same bits for any R,
 *          also where R does not divide the lanes.
 *  Cost:   one MPI_Alltoallv, in which a rank sends its subtree's root, less its own slice,
 *          where every rank's lanes are one subtree (n_lanes / R a power of two);
 *          else one per root of the rank that has most, at most 2 log2(n_lanes).
 */
void smoe_reduce_lanes(const smoe_group *group, const smoe_lanes *lanes, smoe_real *slice, smoe_real *slabs,
                       smoe_real *scratch, size_t count);

/** Nodes of the tree that are sums of a rank's lanes and are in no larger one: what it sends in the reduction. Local. */
int smoe_reduce_nodes(int n_lanes, int rank, int n_ranks);

/** Reals of scratch that smoe_reduce_lanes needs on this rank. Local. */
size_t smoe_reduce_scratch(const smoe_group *group, const smoe_lanes *lanes, size_t count);

/** Make a slab whole on every rank from the slices that the ranks own. Collective, in place. */
void smoe_share_slices(const smoe_group *group, smoe_real *slab, size_t count);

/** The same where the ranks of a node have one slab in common: make it whole on every node.
 *
 *  Collective over group. The caller fences before and after (window.h).
 *
 *  nodes  in     of group; the ranks of a node have the same memory as slab
 *  slab   inout  [count] in which this rank has written its own slice; here slices of ranks of other nodes are received,
 *                those that smoe_share_brings names
 *  Cost:  each rank sends its slice to one rank of every other node; nothing is sent within a node
 */
void smoe_share_slices_nodes(const smoe_group *group, const smoe_nodes *nodes, smoe_real *slab, size_t count);

/** Whether it is this rank that brings the slice of owner to its node: its own, or by a message. Local. */
bool smoe_share_brings(const smoe_group *group, const smoe_nodes *nodes, int owner);

/** Lanes of all ranks of a node together. Local; the ranks of each node must be consecutive. */
smoe_lanes smoe_lanes_of_node(int n_lanes, const smoe_group *group, const smoe_nodes *nodes, int node);

/** Ordered reduction where the ranks of a node see each other's slabs: the sums of smoe_reduce_lanes, bit for bit, first
 *  within nodes, then between them.
 *
 *  Collective over group. The tree is cut by nodes as smoe_reduce_lanes cuts it by ranks.
 *
 *  nodes    in     of group, each of consecutive ranks (smoe_nodes_consecutive)
 *  window   in     in which the slabs of this rank's node are
 *  slice    out    [slice count] sum over all lanes of the slice this rank owns
 *  slabs    inout  [smoe_lanes_of_node, count] of all lanes of the node; destroyed
 *  scratch         smoe_reduce_scratch_nodes(...) reals
 *
 *  Order:  every rank adds up the node's lanes in some slices, its own and one of each other node's ranks that it is the
 *          partner of (nodes.h), and sends the sums there to their owners. Begins and ends with a fence.
 *  Cost:   for each slice a message of its size from each other node, where the node's lanes are one subtree
 */
void smoe_reduce_lanes_nodes(const smoe_group *group, const smoe_nodes *nodes, const smoe_window *window,
                             int n_lanes, smoe_real *slice, smoe_real *slabs, smoe_real *scratch,
                             size_t count);

/** Messages of that reduction from a node to the owner of each slice elsewhere. Local. */
int smoe_reduce_nodes_of(int n_lanes, const smoe_group *group, const smoe_nodes *nodes, int node);

/** Reals of scratch that smoe_reduce_lanes_nodes needs on this rank. Local. */
size_t smoe_reduce_scratch_nodes(const smoe_group *group, const smoe_nodes *nodes, int n_lanes, size_t count);

#endif
