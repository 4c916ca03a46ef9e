/* The messages of a transfer: between ranks directly, in rounds, or by way of nodes.
 *
 * Both ends write down the same messages from the plan's counts, so nothing is asked for. Two
 * messages between the same two ranks either have different tags or are posted in the same
 * order at both ends.
 *
 * Two-level: between nodes x and y one rank of each carries all rows, the (y mod ranks of x)-th
 * of x and the (x mod ranks of y)-th of y, so that a node's ranks share out the other nodes. The
 * rows go to that rank, by one message to its counterpart, and from there to their own ranks;
 * in between they stand by sending rank, then receiving rank.
 */
#include <string.h>

#include "exchange_parts.h"

/* Legs of a row's way, part of the tag. */
typedef enum leg_kind { DIRECT, GATHER, CROSS, SCATTER, LEGS } leg_kind;

/* One direction of one group. */
typedef struct transfer {
  const smoe_exchange *ex;
  smoe_messages *messages;
  smoe_direction direction;
  int g, me, n_ranks;
  char *from, *to;                  /* rows that leave, and those that arrive */
  const int *from_block, *to_block; /* where a rank's rows stand in them */
  int after, arrived, sent;
} transfer;

static transfer transfer_of(const smoe_exchange *ex, smoe_direction direction, int g, int after) {
  const smoe_exchange_state *state = ex->state;
  const bool there = direction == SMOE_DISPATCH;
  char *first = there ? state->scratch : state->results,
       *second = state->scratch + ex->n_send * ex->row_bytes;
  return (transfer){
      .ex = ex,
      .messages = state->messages,
      .direction = direction,
      .g = g,
      .me = ex->topology->experts.rank,
      .n_ranks = ex->topology->experts.n_ranks,
      .from = there ? first : second,
      .to = there ? second : first,
      .from_block = there ? ex->send_block : ex->recv_block,
      .to_block = there ? ex->recv_block : ex->send_block,
      .after = after,
      .arrived = smoe_exchange_arrived(ex, direction, g),
      .sent = smoe_exchange_sent(ex, direction, g),
  };
}

static int nodes_of(const smoe_exchange *ex) {
  return ex->topology->nodes.n_nodes > 0 ? ex->topology->nodes.n_nodes : 1;
}

int64_t smoe_exchange_tags(const smoe_exchange *ex) {
  return (int64_t)SMOE_DIRECTIONS * ex->n_groups * nodes_of(ex) * LEGS;
}

static int tag_of(const transfer *t, leg_kind leg, int node) {
  return (((int)t->direction * t->ex->n_groups + t->g) * nodes_of(t->ex) + node) * LEGS + (int)leg;
}

static smoe_message message_of(const transfer *t, bool send, int rank) {
  const int *block = (send ? t->from_block : t->to_block) + (size_t)rank * ((size_t)t->ex->n_groups + 1);
  return (smoe_message){.at = (send ? t->from : t->to) + (size_t)block[t->g] * t->ex->row_bytes,
                        .rows = (size_t)(block[t->g + 1] - block[t->g]),
                        .peer = rank,
                        .tag = tag_of(t, DIRECT, 0),
                        .send = send,
                        .after = send ? SMOE_NO_COUNTER : t->after,
                        .counts = {send ? t->sent : t->arrived, SMOE_NO_COUNTER}};
}

/* What a rank has for its own experts stays here. */
static void copy_own(const transfer *t) {
  const smoe_message from = message_of(t, true, t->me), to = message_of(t, false, t->me);
  if (from.rows) memcpy(to.at, from.at, from.rows * t->ex->row_bytes);
}

static void add_direct(const transfer *t, bool send, int rank) {
  const smoe_message message = message_of(t, send, rank);
  smoe_messages_add(t->messages, &message);
}

/* Round i: to the i-th rank above, from the i-th below; the next round waits for both. Ranks may be in
 * different rounds: the two ends of the lowest one that is not complete have both begun it. */
static void add_rounds(const transfer *t) {
  int round = t->after;
  for (int i = 1; i < t->n_ranks; i++) {
    smoe_message in = message_of(t, false, (t->me - i + t->n_ranks) % t->n_ranks);
    smoe_message out = message_of(t, true, (t->me + i) % t->n_ranks);
    if (in.rows + out.rows == 0) continue;
    in.after = out.after = round;
    round = smoe_messages_counter(t->messages, 0);
    in.counts[1] = out.counts[1] = round;
    smoe_messages_add(t->messages, &in);
    smoe_messages_add(t->messages, &out);
  }
}

static bool by_rounds(const smoe_exchange *ex) {
  return ex->shape.options.alltoallv == SMOE_ALLTOALLV_PAIRWISE;
}

static int size_of(const smoe_nodes *nodes, int x) {
  return nodes->first[x + 1] - nodes->first[x];
}

/* The rank of node x that carries what goes to node y, and what comes from there. */
static int carrier(const smoe_nodes *nodes, int x, int y) {
  return nodes->rank[nodes->first[x] + y % size_of(nodes, x)];
}

/* Whether what a rank sends to node y is one stretch of its rows. */
static bool is_stretch(const smoe_exchange *ex, int y) {
  const smoe_nodes *nodes = &ex->topology->nodes;
  const int *rank = nodes->rank + nodes->first[y], n = size_of(nodes, y);
  return ex->n_groups == 1 && rank[n - 1] - rank[0] == n - 1;
}

/* Rows from rank s to all of node y. */
static size_t rows_to_node(const transfer *t, int s, int y) {
  const smoe_nodes *nodes = &t->ex->topology->nodes;
  size_t n = 0;
  for (int i = nodes->first[y]; i < nodes->first[y + 1]; i++)
    n += smoe_exchange_rows_between(t->ex, t->direction, s, nodes->rank[i], t->g);
  return n;
}

static char *take_relay(const transfer *t, size_t rows) {
  smoe_exchange_state *state = t->ex->state;
  const size_t first = t->ex->n_send + t->ex->n_recv + state->relayed[t->direction];
  state->relayed[t->direction] += rows;
  return state->scratch + first * t->ex->row_bytes;
}

/* Collect what ranks of this rank's node x send to node y, then pass it on. */
static void add_carry_out(const transfer *t, int x, int y) {
  const smoe_nodes *nodes = &t->ex->topology->nodes;
  const size_t bytes = t->ex->row_bytes;
  size_t total = 0, at = 0;
  for (int i = nodes->first[x]; i < nodes->first[x + 1]; i++) total += rows_to_node(t, nodes->rank[i], y);
  char *buffer = take_relay(t, total);
  const int collected = smoe_messages_counter(t->messages, 0);
  for (int i = nodes->first[x]; i < nodes->first[x + 1]; i++) {
    smoe_message in = {.peer = nodes->rank[i],
                       .tag = tag_of(t, GATHER, y),
                       .after = SMOE_NO_COUNTER,
                       .counts = {collected, SMOE_NO_COUNTER}};
    const bool whole = is_stretch(t->ex, y);
    for (int k = nodes->first[y]; k < nodes->first[y + 1]; k = whole ? nodes->first[y + 1] : k + 1) {
      in.at = buffer + at * bytes;
      in.rows = whole ? rows_to_node(t, in.peer, y)
                      : smoe_exchange_rows_between(t->ex, t->direction, in.peer, nodes->rank[k], t->g);
      smoe_messages_add(t->messages, &in);
      at += in.rows;
    }
  }
  const smoe_message out = {.at = buffer,
                            .rows = total,
                            .peer = carrier(nodes, y, x),
                            .tag = tag_of(t, CROSS, x),
                            .send = true,
                            .after = collected,
                            .counts = {SMOE_NO_COUNTER, SMOE_NO_COUNTER}};
  smoe_messages_add(t->messages, &out);
}

/* Receive what node y sends to this rank's node x, then hand it out. */
static void add_carry_in(const transfer *t, int x, int y) {
  const smoe_nodes *nodes = &t->ex->topology->nodes;
  const size_t bytes = t->ex->row_bytes;
  size_t total = 0, at = 0;
  for (int i = nodes->first[y]; i < nodes->first[y + 1]; i++) total += rows_to_node(t, nodes->rank[i], x);
  char *buffer = take_relay(t, total);
  const int here = smoe_messages_counter(t->messages, 0);
  const smoe_message in = {.at = buffer,
                           .rows = total,
                           .peer = carrier(nodes, y, x),
                           .tag = tag_of(t, CROSS, y),
                           .after = SMOE_NO_COUNTER,
                           .counts = {here, SMOE_NO_COUNTER}};
  smoe_messages_add(t->messages, &in);
  for (int i = nodes->first[y]; i < nodes->first[y + 1]; i++)
    for (int k = nodes->first[x]; k < nodes->first[x + 1]; k++) {
      const smoe_message out = {
          .at = buffer + at * bytes,
          .rows = smoe_exchange_rows_between(t->ex, t->direction, nodes->rank[i], nodes->rank[k], t->g),
          .peer = nodes->rank[k],
          .tag = tag_of(t, SCATTER, y),
          .send = true,
          .after = here,
          .counts = {SMOE_NO_COUNTER, SMOE_NO_COUNTER}};
      smoe_messages_add(t->messages, &out);
      at += out.rows;
    }
}

static void expect_by_nodes(const transfer *t) {
  const smoe_nodes *nodes = &t->ex->topology->nodes;
  const int x = nodes->node[t->me];
  for (int i = 0; i < t->n_ranks; i++) {
    smoe_message in = message_of(t, false, nodes->rank[i]);
    const int y = nodes->node[in.peer];
    if (in.peer == t->me) continue;
    if (y != x) {
      in.peer = carrier(nodes, x, y);
      in.tag = tag_of(t, SCATTER, y);
    }
    smoe_messages_add(t->messages, &in);
  }
  for (int y = 0; y < nodes->n_nodes; y++) {
    if (y == x || carrier(nodes, x, y) != t->me) continue;
    add_carry_out(t, x, y);
    add_carry_in(t, x, y);
  }
}

static void send_by_nodes(const transfer *t) {
  const smoe_nodes *nodes = &t->ex->topology->nodes;
  const int x = nodes->node[t->me];
  for (int i = nodes->first[x]; i < nodes->first[x + 1]; i++)
    if (nodes->rank[i] != t->me) add_direct(t, true, nodes->rank[i]);
  for (int y = 0; y < nodes->n_nodes; y++) {
    if (y == x) continue;
    const bool whole = is_stretch(t->ex, y);
    for (int k = nodes->first[y]; k < nodes->first[y + 1]; k = whole ? nodes->first[y + 1] : k + 1) {
      smoe_message out = message_of(t, true, nodes->rank[k]);
      if (whole) out.rows = rows_to_node(t, t->me, y);
      out.peer = carrier(nodes, x, y);
      out.tag = tag_of(t, GATHER, y);
      smoe_messages_add(t->messages, &out);
    }
  }
}

int smoe_exchange_arrived(const smoe_exchange *ex, smoe_direction direction, int g) {
  return ex->state->arrived[(int)direction * ex->n_groups + g];
}

int smoe_exchange_sent(const smoe_exchange *ex, smoe_direction direction, int g) {
  return ex->state->sent[(int)direction * ex->n_groups + g];
}

void smoe_exchange_schedule_begin(const smoe_exchange *ex, bool both) {
  smoe_exchange_state *state = ex->state;
  smoe_messages_reset(state->messages);
  state->relayed[SMOE_DISPATCH] = 0;
  state->relayed[SMOE_COMBINE] = both ? ex->n_relay : 0;
  for (int i = 0; i < SMOE_DIRECTIONS * ex->n_groups; i++) {
    state->arrived[i] = smoe_messages_counter(state->messages, 0);
    /* What waits for a group to have left must not take it for gone before it departs. */
    state->sent[i] = smoe_messages_counter(state->messages, both && i < ex->n_groups);
  }
}

void smoe_exchange_schedule_expect(const smoe_exchange *ex, smoe_direction direction, int g, int after) {
  const transfer t = transfer_of(ex, direction, g, after);
  if (smoe_exchange_by_nodes(ex))
    expect_by_nodes(&t);
  else if (!by_rounds(ex))
    for (int i = 1; i < t.n_ranks; i++) add_direct(&t, false, (t.me - i + t.n_ranks) % t.n_ranks);
}

void smoe_exchange_schedule_send(const smoe_exchange *ex, smoe_direction direction, int g, int after) {
  const transfer t = transfer_of(ex, direction, g, after);
  copy_own(&t);
  if (smoe_exchange_by_nodes(ex))
    send_by_nodes(&t);
  else if (by_rounds(ex))
    add_rounds(&t);
  else
    for (int i = 1; i < t.n_ranks; i++) add_direct(&t, true, (t.me + i) % t.n_ranks);
}

void smoe_exchange_messages(const smoe_exchange *ex, int64_t *within, int64_t *across) {
  const smoe_nodes *nodes = &ex->topology->nodes;
  const int64_t *sent = ex->state ? smoe_messages_sent(ex->state->messages) : NULL;
  const int me = ex->topology->experts.rank;
  *within = *across = 0;
  for (int r = 0; r < ex->topology->experts.n_ranks && sent; r++) {
    if (r == me) continue;
    *(nodes->n_nodes > 0 && nodes->node[r] != nodes->node[me] ? across : within) += sent[r];
  }
}
