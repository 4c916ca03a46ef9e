#include "messages.h"

#include "stablemoe/arena.h"

/* Posting and testing do not wait, so the watchdog need not know: it compares how many waits ranks have passed. */
#define MPI_UNWATCHED(call) smoe_mpi_check_at(__FILE__, __LINE__, (call), #call)

typedef struct entry {
  smoe_message message;
  size_t pieces; /* that are not complete; all of them before it is posted */
  int next;      /* among the messages that wait for the same counter; -1: the last */
} entry;

typedef struct counter {
  int n;
  int first, last; /* messages that wait for it; -1: none */
} counter;

struct smoe_messages {
  MPI_Comm comm;
  MPI_Datatype row_type;
  size_t row_bytes, piece_rows;
  entry *entry;
  counter *counter;
  MPI_Request *request; /* posted pieces that are not complete */
  int *owner;           /* message of each of them */
  int *done;            /* for MPI_Testsome and MPI_Waitsome */
  size_t n_entries, n_counters, n_requests;
  size_t entries_max, counters_max, requests_max;
  size_t n_open; /* messages that are not complete */
  int64_t *sent; /* [n_ranks] */
};

smoe_messages *smoe_messages_create(MPI_Comm comm, MPI_Datatype row_type, size_t row_bytes,
                                    size_t piece_rows) {
  smoe_messages *messages = smoe_alloc(sizeof *messages);
  messages->comm = comm;
  messages->row_type = row_type;
  messages->row_bytes = row_bytes;
  messages->piece_rows = piece_rows;
  int n_ranks;
  MPI_UNWATCHED(MPI_Comm_size(comm, &n_ranks));
  messages->sent = smoe_alloc((size_t)n_ranks * sizeof *messages->sent);
  for (int r = 0; r < n_ranks; r++) messages->sent[r] = 0;
  return messages;
}

void smoe_messages_destroy(smoe_messages *messages) {
  if (!messages) return;
  smoe_free(messages->entry);
  smoe_free(messages->counter);
  smoe_free(messages->request);
  smoe_free(messages->owner);
  smoe_free(messages->done);
  smoe_free(messages->sent);
  smoe_free(messages);
}

void smoe_messages_reset(smoe_messages *messages) {
  if (messages->n_open)
    SMOE_PANIC(SMOE_ERR_BUG, "%zu messages of the exchange before are not complete", messages->n_open);
  messages->n_entries = messages->n_counters = 0;
}

/* Room for one more. */
static void *grown(void *memory, size_t n, size_t *max, size_t bytes) {
  if (n < *max) return memory;
  *max = *max ? 2 * *max : 64;
  return smoe_realloc(memory, *max * bytes);
}

int smoe_messages_counter(smoe_messages *messages, int n) {
  messages->counter =
      grown(messages->counter, messages->n_counters, &messages->counters_max, sizeof *messages->counter);
  messages->counter[messages->n_counters] = (counter){.n = n, .first = -1, .last = -1};
  return (int)messages->n_counters++;
}

static void post_piece(smoe_messages *messages, int index, char *at, int rows) {
  size_t max = messages->requests_max;
  messages->request = grown(messages->request, messages->n_requests, &max, sizeof *messages->request);
  if (max != messages->requests_max) {
    messages->owner = smoe_realloc(messages->owner, max * sizeof *messages->owner);
    messages->done = smoe_realloc(messages->done, max * sizeof *messages->done);
    messages->requests_max = max;
  }
  const smoe_message *message = &messages->entry[index].message;
  MPI_Request *request = &messages->request[messages->n_requests];
  if (message->send)
    MPI_UNWATCHED(
        MPI_Isend(at, rows, messages->row_type, message->peer, message->tag, messages->comm, request));
  else
    MPI_UNWATCHED(
        MPI_Irecv(at, rows, messages->row_type, message->peer, message->tag, messages->comm, request));
  messages->owner[messages->n_requests++] = index;
}

/* Pieces of one message have one tag: MPI keeps them in order. */
static void post(smoe_messages *messages, int index) {
  const smoe_message message = messages->entry[index].message;
  for (size_t first = 0; first < message.rows; first += messages->piece_rows) {
    const size_t left = message.rows - first;
    post_piece(messages, index, message.at + first * messages->row_bytes,
               (int)(left < messages->piece_rows ? left : messages->piece_rows));
  }
}

void smoe_messages_count(smoe_messages *messages, int index) {
  counter *c = &messages->counter[index];
  if (--c->n > 0) return;
  for (int i = c->first; i >= 0; i = messages->entry[i].next) post(messages, i);
  c->first = c->last = -1;
}

void smoe_messages_add(smoe_messages *messages, const smoe_message *message) {
  if (message->rows == 0) return;
  messages->entry =
      grown(messages->entry, messages->n_entries, &messages->entries_max, sizeof *messages->entry);
  const int index = (int)messages->n_entries++;
  messages->entry[index] =
      (entry){.message = *message, .pieces = (message->rows - 1) / messages->piece_rows + 1, .next = -1};
  messages->n_open++;
  if (message->send) messages->sent[message->peer]++;
  for (int i = 0; i < 2; i++)
    if (message->counts[i] != SMOE_NO_COUNTER) messages->counter[message->counts[i]].n++;
  counter *c = message->after == SMOE_NO_COUNTER ? NULL : &messages->counter[message->after];
  if (!c || c->n == 0) {
    post(messages, index);
    return;
  }
  if (c->first < 0)
    c->first = index;
  else
    messages->entry[c->last].next = index;
  c->last = index;
}

/* Take n completed pieces out of the list, then tell their messages' counters, which may post others. */
static void complete(smoe_messages *messages, int n) {
  for (int i = 0; i < n; i++) {
    const int at = messages->done[i];
    messages->done[i] = messages->owner[at];
  }
  size_t kept = 0;
  for (size_t i = 0; i < messages->n_requests; i++) {
    if (messages->request[i] == MPI_REQUEST_NULL) continue;
    messages->request[kept] = messages->request[i];
    messages->owner[kept++] = messages->owner[i];
  }
  messages->n_requests = kept;
  /* Posting may move done elsewhere, but keeps what stands in it. */
  for (int i = 0; i < n; i++) {
    const int index = messages->done[i];
    if (--messages->entry[index].pieces > 0) continue;
    messages->n_open--;
    const smoe_message message = messages->entry[index].message;
    for (int k = 0; k < 2; k++)
      if (message.counts[k] != SMOE_NO_COUNTER) smoe_messages_count(messages, message.counts[k]);
  }
}

const int64_t *smoe_messages_sent(const smoe_messages *messages) {
  return messages->sent;
}

void smoe_messages_progress(smoe_messages *messages) {
  if (messages->n_requests == 0) return;
  int n = 0;
  MPI_UNWATCHED(
      MPI_Testsome((int)messages->n_requests, messages->request, &n, messages->done, MPI_STATUSES_IGNORE));
  if (n > 0) complete(messages, n);
}

static bool waits(const smoe_messages *messages, int index) {
  return index == SMOE_NO_COUNTER ? messages->n_open > 0 : messages->counter[index].n > 0;
}

void smoe_messages_wait(smoe_messages *messages, int index) {
  smoe_watch_enter("MPI_Waitsome(");
  while (waits(messages, index)) {
    if (messages->n_requests == 0)
      SMOE_PANIC(SMOE_ERR_BUG, "an exchange waits for messages that nobody is to send");
    int n = 0;
    MPI_UNWATCHED(
        MPI_Waitsome((int)messages->n_requests, messages->request, &n, messages->done, MPI_STATUSES_IGNORE));
    complete(messages, n);
  }
  smoe_watch_leave();
}
