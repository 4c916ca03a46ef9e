/* Between the files of the exchange: what travels, in which direction, and where it stands. */
#ifndef STABLEMOE_EXCHANGE_PARTS_H
#define STABLEMOE_EXCHANGE_PARTS_H

#include "messages.h"
#include "stablemoe/exchange.h"

/* There: from the tokens' ranks to the experts'. Back: the same messages with their ends exchanged. */
typedef enum smoe_direction { SMOE_DISPATCH, SMOE_COMBINE, SMOE_DIRECTIONS } smoe_direction;

/* Of the call that goes on. Rows in send order stand at scratch, those in order of arrival behind
 * them, on the way there and on the way back; what a rank passes on stands last. */
struct smoe_exchange_state {
  smoe_messages *messages;
  const smoe_real *rows, *scale;
  char *scratch; /* of ex->row_bytes */
  char *results; /* rows that come back, in send order: scratch, or memory that keeps them */
  size_t relayed[SMOE_DIRECTIONS]; /* rows of scratch that are given away for passing on */
  /* Per direction and group: messages to wait for. */
  int *arrived, *sent;
};

/* Whether rows go by way of nodes: where that is asked for and there are several. Local. */
bool smoe_exchange_by_nodes(const smoe_exchange *ex);

/* Memory for the blocks. Local. */
void smoe_exchange_blocks_declare(smoe_exchange *ex, smoe_arena *arena);

/* The row datatype, and the state of transfers. Local. */
void smoe_exchange_rows_create(smoe_exchange *ex);

/* Local; fine for a zeroed plan. */
void smoe_exchange_blocks_release(smoe_exchange *ex);

/* The blocks of a plan that is made. Local. */
void smoe_exchange_blocks(smoe_exchange *ex);

/* Rows that go from one rank of the replica to another with group g; g = n_groups: with all. Local. */
size_t smoe_exchange_rows_between(const smoe_exchange *ex, smoe_direction direction, int from, int to, int g);

/* Begin with the messages of a new call: none.
 *
 *  Local. both: of both directions, which then share no scratch for passing on, and every group's
 *  counter of what leaves for the experts is one up, to be counted down when the group departs.
 */
void smoe_exchange_schedule_begin(const smoe_exchange *ex, bool both);

/* Write down and post what this rank receives, or passes on, of group g.
 *
 *  Local. after: counter that has to be zero before received rows may be written, or SMOE_NO_COUNTER.
 */
void smoe_exchange_schedule_expect(const smoe_exchange *ex, smoe_direction direction, int g, int after);

/* Post what this rank sends of group g; its rows have to be in place. Local. */
void smoe_exchange_schedule_send(const smoe_exchange *ex, smoe_direction direction, int g, int after);

/* How many tags the messages of a call may have. Local. */
int64_t smoe_exchange_tags(const smoe_exchange *ex);

/* Counter of what arrives here, and of what leaves, of group g in this call. Local. */
int smoe_exchange_arrived(const smoe_exchange *ex, smoe_direction direction, int g);
int smoe_exchange_sent(const smoe_exchange *ex, smoe_direction direction, int g);

#endif
