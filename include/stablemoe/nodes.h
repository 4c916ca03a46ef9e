/** Which ranks of a group share a machine: what a two-level exchange goes by. */
#ifndef STABLEMOE_NODES_H
#define STABLEMOE_NODES_H

#include "stablemoe/group.h"

/** Nodes are numbered by their lowest rank. All zero: not looked for, which counts as one node. */
typedef struct smoe_nodes {
  int n_nodes;
  int *node;  /**< [n_ranks] node of each rank */
  int *first; /**< [n_nodes + 1] the ranks of node x stand at rank[first[x]] .. rank[first[x + 1] - 1] */
  int *rank;  /**< [n_ranks] all ranks by node, ascending within it */
} smoe_nodes;

/** Find the nodes of a group.
 *
 *  Collective over group; the result is the same on all its ranks.
 *
 *  node_ranks  in  0: ranks that share memory are a node; else so many consecutive ranks are
 *                  taken for one, whatever the machine is like
 */
void smoe_nodes_find(smoe_nodes *nodes, const smoe_group *group, int64_t node_ranks);

/** Give the tables back; fine for a zeroed one. Local. */
void smoe_nodes_release(smoe_nodes *nodes);

#endif
