/* Slabs that the ranks of a node have in common: what then goes between nodes. */
#include "lanes_parts.h"
#include "messages.h"

/* Units of the longest message. */
enum { PIECE = 1 << 17 };

bool smoe_share_brings(const smoe_group *group, const smoe_nodes *nodes, int owner) {
  const int own = nodes->node[group->rank];
  if (nodes->node[owner] == own) return owner == group->rank;
  return smoe_nodes_partner(nodes, own, owner) == group->rank;
}

static smoe_message slice_of(const smoe_group *group, smoe_real *slab, size_t count, int owner) {
  const size_t first = smoe_slice_first(count, owner, group->n_ranks);
  const size_t end = smoe_slice_first(count, owner + 1, group->n_ranks);
  return (smoe_message){.at = (char *)(slab + first),
                        .rows = (end - first) / SMOE_UNIT,
                        .after = SMOE_NO_COUNTER,
                        .counts = {SMOE_NO_COUNTER, SMOE_NO_COUNTER}};
}

void smoe_share_slices_nodes(const smoe_group *group, const smoe_nodes *nodes, smoe_real *slab,
                             size_t count) {
  const int own = nodes->node[group->rank];
  MPI_Datatype unit = smoe_unit_create();
  smoe_messages *messages = smoe_messages_create(group->comm, unit, SMOE_UNIT * sizeof *slab, PIECE);
  for (int r = 0; r < group->n_ranks; r++) {
    if (r == group->rank || !smoe_share_brings(group, nodes, r)) continue;
    smoe_message message = slice_of(group, slab, count, r);
    message.peer = r;
    smoe_messages_add(messages, &message);
  }
  /* Every rank begins with the node after its own, so that not all send to the same one. */
  for (int i = 1; i < nodes->n_nodes; i++) {
    smoe_message message = slice_of(group, slab, count, group->rank);
    message.send = true;
    message.peer = smoe_nodes_partner(nodes, (own + i) % nodes->n_nodes, group->rank);
    smoe_messages_add(messages, &message);
  }
  smoe_messages_wait(messages, SMOE_NO_COUNTER);
  smoe_messages_destroy(messages);
  SMOE_MPI(MPI_Type_free(&unit));
}
