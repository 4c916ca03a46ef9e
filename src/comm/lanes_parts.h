/* Between the files of the lanes' sums. */
#ifndef STABLEMOE_LANES_PARTS_H
#define STABLEMOE_LANES_PARTS_H

#include "stablemoe/lanes.h"

/* A datatype of SMOE_UNIT reals: counts in units cannot overflow an int. Local. */
MPI_Datatype smoe_unit_create(void);

/* End of the largest node of the tree that begins at a lane and lies before end. Local. */
int smoe_tree_node_end(int n_lanes, int lane, int end);

/* Nodes of the tree that are sums of the lanes first .. end - 1 and are in no larger one. Local. */
int smoe_tree_nodes(int n_lanes, int first, int end);

/* Add up every node of the tree that lies within the lanes first .. end - 1, in place. Local.
 *
 * at[lane] is the node that begins there, NULL where a larger one covers the lane:
 * nodes nest, so a right child is missing exactly where its parent is already there.
 */
void smoe_tree_add(smoe_real *const *at, int n_lanes, int first, int end, size_t count);

#endif
