/* The blocks of a plan: rows that one rank sends to another for one group of its experts.
 *
 * They stand one after another in send order and in order of arrival, so groups need no
 * packing of their own.
 */
#include "exchange_parts.h"

static const double SLICE_BYTES = 1 << 30; /* the byte counts inside MPI libraries are int here and there */

static size_t piece_rows(const smoe_exchange *ex) {
  const double bytes = ex->shape.options.slice_bytes > 0 ? ex->shape.options.slice_bytes : SLICE_BYTES;
  const double rows = bytes / (double)ex->row_bytes;
  return rows < 1 ? 1 : rows > INT32_MAX ? INT32_MAX : (size_t)rows;
}

bool smoe_exchange_by_nodes(const smoe_exchange *ex) {
  return ex->shape.options.kind == SMOE_EXCHANGE_TWO_LEVEL && ex->topology->nodes.n_nodes > 1;
}

int smoe_exchange_overlap(const smoe_exchange *ex) {
  return ex->topology->experts.n_ranks > 1 ? ex->shape.options.overlap : 0;
}

static size_t rows_of_replica(const smoe_exchange *ex) {
  const int64_t n_tokens = ex->shape.n_replica_max > 0 ? ex->shape.n_replica_max : ex->shape.n_global_max;
  return (size_t)n_tokens * (size_t)ex->shape.n_slots;
}

int smoe_exchange_scratch_share(const smoe_exchange *ex) {
  if (!smoe_exchange_by_nodes(ex)) return 1;
  return smoe_exchange_overlap(ex) ? 3 : 2;
}

size_t smoe_exchange_scratch_max(const smoe_exchange *ex) {
  const size_t own = ex->shape.n_tokens_max * (size_t)ex->shape.n_slots;
  /* A row is passed on once by each of two ranks, but never twice by one. */
  return own + smoe_exchange_rows_max(ex) +
         (size_t)(smoe_exchange_scratch_share(ex) - 1) * rows_of_replica(ex);
}

size_t smoe_exchange_scratch_rows(const smoe_exchange *ex) {
  return ex->n_send + ex->n_recv + (size_t)(smoe_exchange_scratch_share(ex) - 1) * ex->n_relay;
}

/* Places of a rank's experts of group g; g = n_groups: of all. */
static void places_of(const smoe_exchange *ex, int rank, int g, int *first, int *end) {
  const int E = ex->shape.n_experts, G = ex->topology->experts.n_ranks;
  *first = smoe_expert_first(E, rank, G);
  *end = smoe_expert_first(E, rank + 1, G);
  if (g == ex->n_groups) return;
  const int n = *end - *first, at = *first;
  *first = at + smoe_expert_first(n, g, ex->n_groups);
  *end = at + smoe_expert_first(n, g + 1, ex->n_groups);
}

void smoe_exchange_group(const smoe_exchange *ex, int g, int *first, int *end) {
  places_of(ex, ex->topology->experts.rank, g, first, end);
  *first -= ex->place_first;
  *end -= ex->place_first;
}

size_t smoe_exchange_rows_between(const smoe_exchange *ex, smoe_direction direction, int from, int to,
                                  int g) {
  const int tokens = direction == SMOE_DISPATCH ? from : to, experts = direction == SMOE_DISPATCH ? to : from;
  const int first_rank = ex->topology->world.rank - ex->topology->experts.rank;
  const int32_t *kept = ex->kept + (size_t)(first_rank + tokens) * ((size_t)ex->shape.n_experts + 1);
  int first, end;
  places_of(ex, experts, g, &first, &end);
  size_t n = 0;
  for (int place = first; place < end; place++) n += (size_t)kept[smoe_expert_at(ex->shape.expert_at, place)];
  return n;
}

/* Whether a message of a plain MPI_Alltoallv would be longer than a slice: the same on all ranks. */
static bool needs_slices(const smoe_exchange *ex) {
  const size_t most = piece_rows(ex);
  const int G = ex->topology->experts.n_ranks;
  if (rows_of_replica(ex) <= most) return false;
  for (int from = 0; from < G; from++)
    for (int to = 0; to < G; to++)
      if (smoe_exchange_rows_between(ex, SMOE_DISPATCH, from, to, ex->n_groups) > most) return true;
  return false;
}

/* Rows between this rank's node and those whose traffic this rank carries (exchange_schedule.c). */
static size_t relayed_rows(const smoe_exchange *ex) {
  const smoe_nodes *nodes = &ex->topology->nodes;
  const int me = ex->topology->experts.rank, x = nodes->node[me];
  const int *ours = nodes->rank + nodes->first[x], n_ours = nodes->first[x + 1] - nodes->first[x];
  size_t n = 0;
  for (int y = 0; y < nodes->n_nodes; y++) {
    if (y == x || ours[y % n_ours] != me) continue;
    for (int i = 0; i < n_ours; i++)
      for (int at = nodes->first[y]; at < nodes->first[y + 1]; at++)
        for (int d = 0; d < SMOE_DIRECTIONS; d++)
          n += smoe_exchange_rows_between(ex, (smoe_direction)d, ours[i], nodes->rank[at], ex->n_groups);
  }
  return n;
}

/* MPI guarantees tags up to 32767 only. */
static void check_tags(const smoe_exchange *ex) {
  const MPI_Comm comm = ex->topology->experts.comm;
  int *most, found;
  SMOE_MPI(MPI_Comm_get_attr(comm, MPI_TAG_UB, &most, &found));
  const double needed = (double)smoe_exchange_tags(ex);
  if (found && needed > *most)
    SMOE_PANIC(SMOE_ERR_CONFIG,
               "the exchange needs %.0f tags, and this MPI has %d: use fewer groups in comm.overlap, or "
               "comm.exchange=direct",
               needed, *most);
}

void smoe_exchange_blocks_declare(smoe_exchange *ex, smoe_arena *arena) {
  const int overlap = smoe_exchange_overlap(ex);
  ex->n_groups = overlap > 1 ? overlap : 1;
  const size_t n = (size_t)ex->topology->experts.n_ranks * ((size_t)ex->n_groups + 1);
  ex->send_block = smoe_arena_take(arena, n * sizeof *ex->send_block);
  ex->recv_block = smoe_arena_take(arena, n * sizeof *ex->recv_block);
}

void smoe_exchange_rows_create(smoe_exchange *ex) {
  const bool half = ex->shape.precision == SMOE_BF16;
  SMOE_MPI(MPI_Type_contiguous((int)ex->shape.width, half ? MPI_UINT16_T : SMOE_MPI_REAL, &ex->row_type));
  SMOE_MPI(MPI_Type_commit(&ex->row_type));
  check_tags(ex);
  const size_t counters = SMOE_DIRECTIONS * (size_t)ex->n_groups;
  ex->state = smoe_alloc(sizeof *ex->state);
  ex->state->arrived = smoe_alloc(counters * sizeof *ex->state->arrived);
  ex->state->sent = smoe_alloc(counters * sizeof *ex->state->sent);
  ex->state->messages =
      smoe_messages_create(ex->topology->experts.comm, ex->row_type, ex->row_bytes, piece_rows(ex));
}

void smoe_exchange_blocks_release(smoe_exchange *ex) {
  if (!ex->state) return;
  smoe_messages_destroy(ex->state->messages);
  smoe_free(ex->state->arrived);
  smoe_free(ex->state->sent);
  smoe_free(ex->state);
  ex->state = NULL;
}

static bool is_plain(const smoe_exchange *ex) {
  return !smoe_exchange_by_nodes(ex) && ex->shape.options.alltoallv == SMOE_ALLTOALLV_AUTO &&
         !smoe_exchange_overlap(ex) && !needs_slices(ex);
}

void smoe_exchange_blocks(smoe_exchange *ex) {
  const int G = ex->topology->experts.n_ranks, me = ex->topology->experts.rank, n = ex->n_groups;
  for (int r = 0; r < G; r++) {
    int *send = ex->send_block + (size_t)r * ((size_t)n + 1),
        *recv = ex->recv_block + (send - ex->send_block);
    send[0] = ex->send_offset[r];
    recv[0] = ex->recv_offset[r];
    for (int g = 0; g < n; g++) {
      send[g + 1] = send[g] + (int)smoe_exchange_rows_between(ex, SMOE_DISPATCH, me, r, g);
      recv[g + 1] = recv[g] + (int)smoe_exchange_rows_between(ex, SMOE_DISPATCH, r, me, g);
    }
  }
  ex->n_relay = smoe_exchange_by_nodes(ex) ? relayed_rows(ex) : 0;
  ex->plain = is_plain(ex);
}

void smoe_exchange_follow(smoe_exchange *ex, const smoe_exchange *of) {
  const smoe_exchange own = *ex;
  *ex = *of;
  ex->shape = own.shape;
  ex->row_type = own.row_type;
  ex->row_bytes = own.row_bytes;
  ex->state = own.state;
  ex->plain = is_plain(ex); /* longer rows may need slices */
}
