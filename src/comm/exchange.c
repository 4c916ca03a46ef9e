/* Moving the rows of a plan, there and back.
 *
 * Rows in send order stand at the front of scratch, rows in order of arrival behind them, on the
 * way there and on the way back; results that are to be kept come back to where they are kept. On one
 * rank both orders are the same and nothing is sent: rows are packed straight to where they are wanted,
 * by way of scratch if they are rounded.
 */
#include <math.h>
#include <string.h>

#include "exchange_parts.h"
#include "stablemoe/phase.h"
#include "stablemoe/timer.h"

/* Reals below which waking threads costs more than it saves. */
enum { PARALLEL_MIN = 1 << 15 };

static void pass_fault_site(void) {
  if (smoe_fault("exchange.transfer")) SMOE_PANIC(SMOE_ERR_MPI, "injected fault at exchange.transfer");
}

static char *arrivals(const smoe_exchange *ex, char *scratch) {
  return scratch + ex->n_send * ex->row_bytes;
}

/* ---- rows as they travel ---- */

static bool rounds(const smoe_exchange *ex) {
  return ex->shape.precision == SMOE_BF16;
}

/* to = factor from. */
static void leave(const smoe_exchange *ex, void *to, const smoe_real *restrict from, smoe_real factor) {
  const size_t C = ex->shape.width;
  smoe_real *restrict real = to;
  if (rounds(ex))
    smoe_bf16_round_row(to, from, factor, C);
  else if (factor == 1)
    memcpy(to, from, ex->row_bytes);
  else
    for (size_t c = 0; c < C; c++) real[c] = factor * from[c];
}

static void arrive(const smoe_exchange *ex, smoe_real *to, const void *from) {
  if (rounds(ex))
    smoe_bf16_expand_row(to, from, ex->shape.width);
  else
    memcpy(to, from, ex->row_bytes);
}

static void arrive_add(const smoe_exchange *ex, smoe_real *restrict to, const void *from) {
  const smoe_real *restrict real = from;
  if (rounds(ex))
    smoe_bf16_add_row(to, from, ex->shape.width);
  else
    for (size_t c = 0; c < ex->shape.width; c++) to[c] += real[c];
}

/* ---- the transfer ---- */

/* All rows at once, and waited for. results: where rows come back to. */
static void transfer(const smoe_exchange *ex, smoe_direction direction, char *scratch, char *results) {
  const bool there = direction == SMOE_DISPATCH;
  pass_fault_site();
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  if (ex->plain) {
    char *first = there ? scratch : results, *second = arrivals(ex, scratch);
    const char *out = there ? first : second;
    char *in = there ? second : first;
    const int *out_count = there ? ex->send_count : ex->recv_count;
    const int *out_offset = there ? ex->send_offset : ex->recv_offset;
    const int *in_count = there ? ex->recv_count : ex->send_count;
    const int *in_offset = there ? ex->recv_offset : ex->send_offset;
    SMOE_MPI(MPI_Alltoallv(out, out_count, out_offset, ex->row_type, in, in_count, in_offset, ex->row_type,
                           ex->topology->experts.comm));
  } else {
    ex->state->scratch = scratch;
    ex->state->results = results;
    smoe_exchange_schedule_begin(ex, false);
    for (int g = 0; g < ex->n_groups; g++) smoe_exchange_schedule_expect(ex, direction, g, SMOE_NO_COUNTER);
    for (int g = 0; g < ex->n_groups; g++) smoe_exchange_schedule_send(ex, direction, g, SMOE_NO_COUNTER);
    smoe_messages_wait(ex->state->messages, SMOE_NO_COUNTER);
  }
  smoe_phase(phase);
}

/* Rows first to end - 1 in send order: those of the kept slots, times the slots' factors. */
static void pack_slots(const smoe_exchange *ex, void *out, const smoe_real *restrict rows,
                       const smoe_real *scale, size_t first, size_t end) {
  const size_t C = ex->shape.width, K = (size_t)ex->shape.n_slots;
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= (end - first) * C)
  for (size_t i = first; i < end; i++) {
    const size_t slot = (size_t)ex->send_row[i];
    leave(ex, (char *)out + i * ex->row_bytes, rows + slot / K * C, scale ? scale[slot] : 1);
  }
}

/* Rows first to end - 1 in order of arrival, to their places in expert order. */
static void place_rows(const smoe_exchange *ex, smoe_real *out, const char *arrived, size_t first,
                       size_t end) {
  const size_t C = ex->shape.width;
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= (end - first) * C)
  for (size_t i = first; i < end; i++)
    arrive(ex, out + (size_t)ex->recv_place[i] * C, arrived + i * ex->row_bytes);
}

/* The same rows from expert order. */
static void collect_rows(const smoe_exchange *ex, char *out, const smoe_real *rows, size_t first,
                         size_t end) {
  const size_t C = ex->shape.width;
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= (end - first) * C)
  for (size_t i = first; i < end; i++)
    leave(ex, out + i * ex->row_bytes, rows + (size_t)ex->recv_place[i] * C, 1);
}

void smoe_dispatch(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, const smoe_real *scale,
                   void *scratch) {
  if (ex->topology->experts.n_ranks == 1) {
    pack_slots(ex, rounds(ex) ? scratch : out, rows, scale, 0, ex->n_send);
    if (rounds(ex)) smoe_bf16_expand(out, scratch, ex->n_send * ex->shape.width);
    return;
  }
  pack_slots(ex, scratch, rows, scale, 0, ex->n_send);
  transfer(ex, SMOE_DISPATCH, scratch, scratch);
  place_rows(ex, out, arrivals(ex, scratch), 0, ex->n_recv);
}

bool smoe_exchange_in_place(const smoe_exchange *ex) {
  return ex->topology->experts.n_ranks == 1 && !rounds(ex);
}

/* The experts' rows back on the tokens' ranks, in send order: at keep, or in rows or scratch until those are used. */
static const void *return_rows(const smoe_exchange *ex, const smoe_real *rows, void *keep, char *scratch) {
  char *results = keep ? keep : scratch;
  if (smoe_exchange_in_place(ex)) {
    if (!keep) return rows;
    if (rows != keep && ex->n_send) memcpy(keep, rows, ex->n_send * ex->row_bytes);
    return keep;
  }
  if (ex->topology->experts.n_ranks == 1) {
    smoe_bf16_round((smoe_bf16 *)results, rows, ex->n_send * ex->shape.width);
    return results;
  }
  collect_rows(ex, arrivals(ex, scratch), rows, 0, ex->n_recv);
  transfer(ex, SMOE_COMBINE, scratch, results);
  return results;
}

/* Not changed through it; an operand may be. */
static smoe_operand operand_of(const smoe_exchange *ex, const void *returned) {
  return rounds(ex) ? (smoe_operand){.half = (smoe_bf16 *)returned}
                    : (smoe_operand){.wide = (smoe_real *)returned};
}

static void add_slots(const smoe_exchange *ex, smoe_real *out, const char *returned) {
  const size_t C = ex->shape.width, K = (size_t)ex->shape.n_slots;
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= ex->n_tokens * C)
  for (size_t t = 0; t < ex->n_tokens; t++)
    for (size_t k = 0; k < K; k++) {
      const int32_t place = ex->slot_place[t * K + k];
      if (place >= 0) arrive_add(ex, out + t * C, returned + (size_t)place * ex->row_bytes);
    }
}

smoe_operand smoe_combine_rows(const smoe_exchange *ex, void *keep, const smoe_real *rows, void *scratch) {
  return operand_of(ex, return_rows(ex, rows, keep, scratch));
}

void smoe_combine_add(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, void *scratch) {
  add_slots(ex, out, return_rows(ex, rows, NULL, scratch));
}

/* Group g's rows for all ranks, packed and on their way. */
static void depart(const smoe_exchange *ex, int g) {
  smoe_exchange_state *state = ex->state;
  const size_t stride = (size_t)ex->n_groups + 1;
  for (int r = 0; r < ex->topology->experts.n_ranks; r++) {
    const int *block = ex->send_block + (size_t)r * stride + g;
    pack_slots(ex, state->scratch, state->rows, state->scale, (size_t)block[0], (size_t)block[1]);
  }
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  smoe_exchange_schedule_send(ex, SMOE_DISPATCH, g, SMOE_NO_COUNTER);
  smoe_messages_count(state->messages, smoe_exchange_sent(ex, SMOE_DISPATCH, g));
  smoe_phase(phase);
}

void smoe_exchange_begin(const smoe_exchange *ex, const smoe_real *rows, const smoe_real *scale, void *keep,
                         void *scratch) {
  smoe_exchange_state *state = ex->state;
  state->rows = rows;
  state->scale = scale;
  state->scratch = scratch;
  state->results = keep ? keep : scratch;
  pass_fault_site();
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  smoe_exchange_schedule_begin(ex, true);
  for (int g = 0; g < ex->n_groups; g++) smoe_exchange_schedule_expect(ex, SMOE_DISPATCH, g, SMOE_NO_COUNTER);
  /* Results may come back to where their rows departed from, which MPI must have let go of. */
  for (int g = 0; g < ex->n_groups; g++)
    smoe_exchange_schedule_expect(ex, SMOE_COMBINE, g, smoe_exchange_sent(ex, SMOE_DISPATCH, g));
  smoe_phase(phase);
  depart(ex, 0);
}

void smoe_exchange_take(const smoe_exchange *ex, smoe_real *out, int g) {
  smoe_exchange_state *state = ex->state;
  const size_t stride = (size_t)ex->n_groups + 1;
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  smoe_messages_wait(state->messages, smoe_exchange_arrived(ex, SMOE_DISPATCH, g));
  smoe_phase(phase);
  if (g + 1 < ex->n_groups) depart(ex, g + 1);
  for (int r = 0; r < ex->topology->experts.n_ranks; r++) {
    const int *block = ex->recv_block + (size_t)r * stride + g;
    place_rows(ex, out, arrivals(ex, state->scratch), (size_t)block[0], (size_t)block[1]);
  }
}

void smoe_exchange_return(const smoe_exchange *ex, const smoe_real *rows, int g) {
  smoe_exchange_state *state = ex->state;
  const size_t stride = (size_t)ex->n_groups + 1;
  for (int r = 0; r < ex->topology->experts.n_ranks; r++) {
    const int *block = ex->recv_block + (size_t)r * stride + g;
    collect_rows(ex, arrivals(ex, state->scratch), rows, (size_t)block[0], (size_t)block[1]);
  }
  if (g == 0) pass_fault_site();
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  smoe_exchange_schedule_send(ex, SMOE_COMBINE, g, smoe_exchange_sent(ex, SMOE_DISPATCH, g));
  smoe_phase(phase);
}

static void wait_for_results(const smoe_exchange *ex) {
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  smoe_messages_wait(ex->state->messages, SMOE_NO_COUNTER);
  smoe_phase(phase);
}

smoe_operand smoe_exchange_end_rows(const smoe_exchange *ex) {
  wait_for_results(ex);
  return operand_of(ex, ex->state->results);
}

void smoe_exchange_end_add(const smoe_exchange *ex, smoe_real *out) {
  wait_for_results(ex);
  add_slots(ex, out, ex->state->results);
}

void smoe_exchange_progress(const smoe_exchange *ex) {
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  smoe_messages_progress(ex->state->messages);
  smoe_phase(phase);
}

double smoe_exchange_bare_seconds(const smoe_exchange *ex, size_t rows, int repeats) {
  const smoe_group *group = &ex->topology->experts;
  const size_t R = (size_t)group->n_ranks, n = R * rows * ex->row_bytes;
  char *out = smoe_alloc(n), *in = smoe_alloc(n);
  int *count = smoe_alloc(R * sizeof *count), *offset = smoe_alloc(R * sizeof *offset);
  for (size_t r = 0; r < R; r++) {
    count[r] = (int)rows;
    offset[r] = (int)(r * rows);
  }
  double best = INFINITY;
  for (int i = 0; i < repeats; i++) {
    smoe_group_barrier(group);
    const double before = smoe_seconds();
    SMOE_MPI(MPI_Alltoallv(out, count, offset, ex->row_type, in, count, offset, ex->row_type, group->comm));
    best = fmin(best, smoe_seconds() - before);
  }
  smoe_free(out);
  smoe_free(in);
  smoe_free(count);
  smoe_free(offset);
  return best;
}
