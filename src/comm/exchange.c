/* Moving the rows of a plan, there and back.
 *
 * On one rank both orders are the same and nothing is sent: rows are packed
 * straight to where they are wanted.
 */
#include <math.h>
#include <string.h>

#include "stablemoe/exchange.h"
#include "stablemoe/phase.h"
#include "stablemoe/timer.h"

/* Reals below which waking threads costs more than it saves. */
enum { PARALLEL_MIN = 1 << 15 };

/* Rows in send order, to the experts' ranks: from the front of scratch to behind it. */
static const smoe_real *send_there(const smoe_exchange *ex, smoe_real *scratch) {
  smoe_real *arrived = scratch + ex->n_send * ex->shape.width;
  if (smoe_fault("exchange.transfer")) SMOE_PANIC(SMOE_ERR_MPI, "injected fault at exchange.transfer");
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  SMOE_MPI(MPI_Alltoallv(scratch, ex->send_count, ex->send_offset, ex->row_type, arrived, ex->recv_count,
                         ex->recv_offset, ex->row_type, ex->topology->experts.comm));
  smoe_phase(phase);
  return arrived;
}

/* Rows in arrival order, back to the tokens' ranks: the same transfer with its ends exchanged. */
static const smoe_real *send_back(const smoe_exchange *ex, smoe_real *scratch) {
  smoe_real *returned = scratch + ex->n_recv * ex->shape.width;
  if (smoe_fault("exchange.transfer")) SMOE_PANIC(SMOE_ERR_MPI, "injected fault at exchange.transfer");
  const smoe_phase_kind phase = smoe_phase(SMOE_PHASE_TRANSFER);
  SMOE_MPI(MPI_Alltoallv(scratch, ex->recv_count, ex->recv_offset, ex->row_type, returned, ex->send_count,
                         ex->send_offset, ex->row_type, ex->topology->experts.comm));
  smoe_phase(phase);
  return returned;
}

/* The rows of the kept slots in send order, times the slots' factors. */
static void pack_slots(const smoe_exchange *ex, smoe_real *restrict out, const smoe_real *restrict rows,
                       const smoe_real *scale) {
  const size_t C = ex->shape.width, K = (size_t)ex->shape.n_slots;
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= ex->n_send * C)
  for (size_t i = 0; i < ex->n_send; i++) {
    const size_t slot = (size_t)ex->send_row[i];
    const smoe_real *from = rows + slot / K * C;
    smoe_real *to = out + i * C;
    if (scale) {
      const smoe_real factor = scale[slot];
      for (size_t c = 0; c < C; c++) to[c] = factor * from[c];
    } else {
      memcpy(to, from, C * sizeof *to);
    }
  }
}

void smoe_dispatch(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, const smoe_real *scale,
                   smoe_real *scratch) {
  const size_t C = ex->shape.width;
  if (ex->topology->experts.n_ranks == 1) {
    pack_slots(ex, out, rows, scale);
    return;
  }
  pack_slots(ex, scratch, rows, scale);
  const smoe_real *arrived = send_there(ex, scratch);
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= ex->n_recv * C)
  for (size_t i = 0; i < ex->n_recv; i++)
    memcpy(out + (size_t)ex->recv_place[i] * C, arrived + i * C, C * sizeof *out);
}

/* The experts' rows back on the tokens' ranks, in send order; valid until scratch is used again. */
static const smoe_real *return_rows(const smoe_exchange *ex, const smoe_real *rows, smoe_real *scratch) {
  const size_t C = ex->shape.width;
  if (ex->topology->experts.n_ranks == 1) return rows;
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= ex->n_recv * C)
  for (size_t i = 0; i < ex->n_recv; i++)
    memcpy(scratch + i * C, rows + (size_t)ex->recv_place[i] * C, C * sizeof *scratch);
  return send_back(ex, scratch);
}

void smoe_combine_rows(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, smoe_real *scratch) {
  const size_t C = ex->shape.width, n_slots = ex->n_tokens * (size_t)ex->shape.n_slots;
  const smoe_real *returned = return_rows(ex, rows, scratch);
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= n_slots * C)
  for (size_t s = 0; s < n_slots; s++) {
    const int32_t place = ex->slot_place[s];
    if (place < 0)
      memset(out + s * C, 0, C * sizeof *out);
    else
      memcpy(out + s * C, returned + (size_t)place * C, C * sizeof *out);
  }
}

void smoe_combine_add(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, smoe_real *scratch) {
  const size_t C = ex->shape.width, K = (size_t)ex->shape.n_slots;
  const smoe_real *returned = return_rows(ex, rows, scratch);
#pragma omp parallel for schedule(static) if (PARALLEL_MIN <= ex->n_tokens * C)
  for (size_t t = 0; t < ex->n_tokens; t++) {
    smoe_real *restrict to = out + t * C;
    for (size_t k = 0; k < K; k++) {
      const int32_t place = ex->slot_place[t * K + k];
      if (place < 0) continue;
      const smoe_real *restrict from = returned + (size_t)place * C;
      for (size_t c = 0; c < C; c++) to[c] += from[c];
    }
  }
}

double smoe_exchange_bare_seconds(const smoe_exchange *ex, size_t rows, int repeats) {
  const smoe_group *group = &ex->topology->experts;
  const size_t R = (size_t)group->n_ranks, n = R * rows * ex->shape.width;
  smoe_real *out = smoe_alloc(n * sizeof *out), *in = smoe_alloc(n * sizeof *in);
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
