/** Which ranks of a group share a machine: what a two-level exchange and shared parameters go by. */
#ifndef STABLEMOE_NODES_H
#define STABLEMOE_NODES_H

#include "stablemoe/group.h"

/** Nodes are numbered by their lowest rank. All zero: not looked for, which counts as one node. */
typedef struct smoe_nodes {
  int n_nodes;
  int *node;  /**< [n_ranks] node of each rank */
  int *first; /**< [n_nodes + 1] the ranks of node x stand at rank[first[x]] .. rank[first[x + 1] - 1] */
  int *rank;  /**< [n_ranks] all ranks by node, ascending within it */
  int *place; /**< [n_ranks] of each rank among those of its node, from 0 */
} smoe_nodes;

/** Find the nodes of a group.
 *
 *  Collective over group; the result is the same on all its ranks.
 *
 *  node_ranks  in  0: ranks that share memory are a node; else so many consecutive ranks are
 *                  taken for one, whatever the machine is like
 */
void smoe_nodes_find(smoe_nodes *nodes, const smoe_group *group, int64_t node_ranks);

/** Find the sets of ranks that can have memory in common.
 *
 *  Collective over group; the result is the same on all its ranks.
 *
 *  node_ranks  in  0: ranks of a machine; else of these so many consecutive ranks of the group, as if each such part
 *                  were a machine
 */
void smoe_nodes_find_memory(smoe_nodes *nodes, const smoe_group *group, int64_t node_ranks);

/** Ranks of a node. Local. */
int smoe_nodes_count(const smoe_nodes *nodes, int node);

/** Whether each node has consecutive ranks. Local. */
bool smoe_nodes_consecutive(const smoe_nodes *nodes);

/** The rank of a node that a rank of another one deals with, so that all have as much to do. Local. */
int smoe_nodes_partner(const smoe_nodes *nodes, int node, int rank);

/** Give the tables back; fine for a zeroed one. Local. */
void smoe_nodes_release(smoe_nodes *nodes);

#endif
