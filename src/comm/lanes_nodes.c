/* Slabs that the ranks of a node have in common: what then goes between nodes. */
#include <string.h>

#include "lanes_parts.h"
#include "messages.h"
#include "stablemoe/arena.h"

/* Units of the longest message. */
enum { PIECE = 1 << 17 };

bool smoe_share_brings(const smoe_group *group, const smoe_nodes *nodes, int owner) {
  const int own = nodes->node[group->rank];
  if (nodes->node[owner] == own) return owner == group->rank;
  return smoe_nodes_partner(nodes, own, owner) == group->rank;
}

/* Elements of the slice of a rank: first, and how many. */
static size_t slice_of(const smoe_group *group, size_t count, int owner, size_t *n) {
  const size_t first = smoe_slice_first(count, owner, group->n_ranks);
  *n = smoe_slice_first(count, owner + 1, group->n_ranks) - first;
  return first;
}

static smoe_messages *messages_of(const smoe_group *group, MPI_Datatype unit) {
  return smoe_messages_create(group->comm, unit, SMOE_UNIT * sizeof(smoe_real), PIECE);
}

static void add_message(smoe_messages *messages, smoe_real *at, size_t n, int peer, bool send) {
  smoe_messages_add(messages, &(smoe_message){.at = (char *)at,
                                              .rows = n / SMOE_UNIT,
                                              .peer = peer,
                                              .send = send,
                                              .after = SMOE_NO_COUNTER,
                                              .counts = {SMOE_NO_COUNTER, SMOE_NO_COUNTER}});
}

static void finish(smoe_messages *messages, MPI_Datatype unit) {
  smoe_messages_wait(messages, SMOE_NO_COUNTER);
  smoe_messages_destroy(messages);
  SMOE_MPI(MPI_Type_free(&unit));
}

void smoe_share_slices_nodes(const smoe_group *group, const smoe_nodes *nodes, smoe_real *slab,
                             size_t count) {
  const int own = nodes->node[group->rank];
  MPI_Datatype unit = smoe_unit_create();
  smoe_messages *messages = messages_of(group, unit);
  size_t n;
  for (int r = 0; r < group->n_ranks; r++) {
    if (r == group->rank || !smoe_share_brings(group, nodes, r)) continue;
    const size_t first = slice_of(group, count, r, &n);
    add_message(messages, slab + first, n, r, false);
  }
  /* Every rank begins with the node after its own, so that not all send to the same one. */
  const size_t first = slice_of(group, count, group->rank, &n);
  for (int i = 1; i < nodes->n_nodes; i++)
    add_message(messages, slab + first, n, smoe_nodes_partner(nodes, (own + i) % nodes->n_nodes, group->rank),
                true);
  finish(messages, unit);
}

/* ---- sums ---- */

smoe_lanes smoe_lanes_of_node(int n_lanes, const smoe_group *group, const smoe_nodes *nodes, int node) {
  const int first = nodes->rank[nodes->first[node]], last = nodes->rank[nodes->first[node + 1] - 1];
  const smoe_lanes a = smoe_lanes_of_rank(n_lanes, first, group->n_ranks);
  const smoe_lanes b = smoe_lanes_of_rank(n_lanes, last, group->n_ranks);
  return (smoe_lanes){n_lanes, a.first, b.first + b.count - a.first};
}

int smoe_reduce_nodes_of(int n_lanes, const smoe_group *group, const smoe_nodes *nodes, int node) {
  const smoe_lanes lanes = smoe_lanes_of_node(n_lanes, group, nodes, node);
  return smoe_tree_nodes(n_lanes, lanes.first, lanes.first + lanes.count);
}

size_t smoe_reduce_scratch_nodes(const smoe_group *group, const smoe_nodes *nodes, int n_lanes,
                                 size_t count) {
  size_t others = 0, n;
  for (int x = 0; x < nodes->n_nodes; x++)
    if (x != nodes->node[group->rank]) others += (size_t)smoe_reduce_nodes_of(n_lanes, group, nodes, x);
  slice_of(group, count, group->rank, &n);
  return others * n;
}

/* A reduction in progress. */
typedef struct reduction {
  const smoe_group *group;
  const smoe_nodes *nodes;
  smoe_lanes lanes; /* of this node */
  smoe_real *slabs; /* [lanes.count, count] */
  size_t count;
  smoe_messages *messages;
  smoe_real **at; /* [n_lanes] */
} reduction;

/* Add up this node's lanes in the slice of a rank; send the sums, if it is one of another node. */
static void add_slice(reduction *r, int owner) {
  const int end = r->lanes.first + r->lanes.count;
  size_t n;
  const size_t first = slice_of(r->group, r->count, owner, &n);
  if (!smoe_share_brings(r->group, r->nodes, owner) || n == 0) return;
  for (int lane = r->lanes.first; lane < end; lane++)
    r->at[lane] = r->slabs + (size_t)(lane - r->lanes.first) * r->count + first;
  smoe_tree_add(r->at, r->lanes.n_lanes, r->lanes.first, end, n);
  if (owner == r->group->rank) return;
  for (int lane = r->lanes.first; lane < end; lane = smoe_tree_node_end(r->lanes.n_lanes, lane, end))
    add_message(r->messages, r->at[lane], n, owner, true);
}

/* The sums of the other nodes in the own slice. */
static void receive(const reduction *r, smoe_real **at, smoe_real *scratch, size_t n) {
  for (int x = 0; x < r->nodes->n_nodes; x++) {
    if (x == r->nodes->node[r->group->rank]) continue;
    const smoe_lanes lanes = smoe_lanes_of_node(r->lanes.n_lanes, r->group, r->nodes, x);
    const int end = lanes.first + lanes.count;
    for (int lane = lanes.first; lane < end; lane = smoe_tree_node_end(lanes.n_lanes, lane, end)) {
      at[lane] = scratch;
      add_message(r->messages, scratch, n, smoe_nodes_partner(r->nodes, x, r->group->rank), false);
      scratch += n;
    }
  }
}

void smoe_reduce_lanes_nodes(const smoe_group *group, const smoe_nodes *nodes, const smoe_window *window,
                             int n_lanes, smoe_real *slice, smoe_real *slabs, smoe_real *scratch,
                             size_t count) {
  const int own = nodes->node[group->rank];
  MPI_Datatype unit = smoe_unit_create();
  reduction r = {group,
                 nodes,
                 smoe_lanes_of_node(n_lanes, group, nodes, own),
                 slabs,
                 count,
                 messages_of(group, unit),
                 smoe_alloc((size_t)n_lanes * sizeof *r.at)};
  /* Nodes of the tree in the own slice: NULL but where one of the largest of a node begins. */
  smoe_real **at = smoe_alloc((size_t)n_lanes * sizeof *at);
  const int end = r.lanes.first + r.lanes.count;
  size_t n;
  const size_t first = slice_of(group, count, group->rank, &n);
  SMOE_ASSERT(count % SMOE_UNIT == 0);

  receive(&r, at, scratch, n);
  smoe_window_fence(window);
  /* What others wait for comes first, each rank beginning with another node. */
  for (int i = 1; i <= nodes->n_nodes; i++) {
    const int x = (own + i) % nodes->n_nodes;
    for (int k = nodes->first[x]; k < nodes->first[x + 1]; k++) add_slice(&r, nodes->rank[k]);
  }
  for (int lane = r.lanes.first; lane < end; lane = smoe_tree_node_end(n_lanes, lane, end))
    at[lane] = slabs + (size_t)(lane - r.lanes.first) * count + first;
  finish(r.messages, unit);
  smoe_tree_add(at, n_lanes, 0, n_lanes, n);
  if (n) memcpy(slice, at[0], n * sizeof *slice);
  smoe_window_fence(window);
  smoe_free(at);
  smoe_free(r.at);
}
