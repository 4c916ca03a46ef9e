/* Messages between ranks, posted in an order that may depend on one another's arrival.
 *
 * A counter counts messages that are not complete yet; messages may wait for a counter to reach
 * zero before they are posted. So a chain of rounds, or a rank that passes on what it was sent,
 * is written down beforehand and goes by itself whenever MPI is given time. Nothing blocks but
 * the waits, and all receives that need no other message are posted at once: two ranks can wait
 * for each other only where their lists of messages do not match.
 */
#ifndef STABLEMOE_MESSAGES_H
#define STABLEMOE_MESSAGES_H

#include "stablemoe/group.h"

enum { SMOE_NO_COUNTER = -1 };

typedef struct smoe_message {
  char *at; /* [rows] of row_bytes; of the caller until all is complete */
  size_t rows;
  int peer, tag;
  bool send;     /* else it is received */
  int after;     /* counter that has to be zero before it is posted, or SMOE_NO_COUNTER */
  int counts[2]; /* counters that it holds up, or SMOE_NO_COUNTER */
} smoe_message;

typedef struct smoe_messages smoe_messages;

/* Local. Messages of more than piece_rows rows go in pieces. row_type is one row of row_bytes. */
smoe_messages *smoe_messages_create(MPI_Comm comm, MPI_Datatype row_type, size_t row_bytes,
                                    size_t piece_rows);

/* Give it back; NULL is fine. Local. */
void smoe_messages_destroy(smoe_messages *messages);

/* Forget all messages, which must be complete, and all counters. Local. */
void smoe_messages_reset(smoe_messages *messages);

/* A new counter, at n; its number. Local. */
int smoe_messages_counter(smoe_messages *messages, int n);

/* Count one down, beside what messages do. Local. */
void smoe_messages_count(smoe_messages *messages, int counter);

/* Post a message now, or when its counter is zero; one without rows is none. Local, does not wait. */
void smoe_messages_add(smoe_messages *messages, const smoe_message *message);

/* Give MPI time, without waiting. Local. */
void smoe_messages_progress(smoe_messages *messages);

/* Messages that were sent to each rank since this was created, [n_ranks]; a long one that goes in pieces is one. Local. */
const int64_t *smoe_messages_sent(const smoe_messages *messages);

/* Wait until a counter is zero; SMOE_NO_COUNTER: until all messages are complete. One wait for the
 * watchdog, also where there is nothing to wait for: ranks must pass as many waits as each other.
 */
void smoe_messages_wait(smoe_messages *messages, int counter);

#endif
