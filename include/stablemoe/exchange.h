/** Token exchange: rows travel to the rank of their expert, within the replica, and back.
 *
 *  A plan is made per MoE layer and micro-batch from the router's choice.
 *  Dispatch and combine are adjoint: the backward of each is the other.
 *  On the expert's side rows stand by expert, then by global token index, so
 *  an expert's GEMM is the same call on any number of ranks.
 */
#ifndef STABLEMOE_EXCHANGE_H
#define STABLEMOE_EXCHANGE_H

#include "stablemoe/arena.h"
#include "stablemoe/topology.h"

/** Shape of an exchange, fixed for a run. */
typedef struct smoe_exchange_shape {
  int n_experts;          /**< E */
  int n_slots;            /**< K experts per token at most */
  size_t width;           /**< C reals per row */
  size_t n_tokens_max;    /**< N of this rank at most */
  int64_t n_global_max;   /**< tokens of all ranks at most */
  double capacity_factor; /**< rows per expert at most, over T K / E; 0: dropless */
  int64_t n_replica_max;  /**< tokens of this rank's replica at most; 0: n_global_max */
} smoe_exchange_shape;

/** One plan. Arrays live in the arena it was made on. */
typedef struct smoe_exchange {
  smoe_exchange_shape shape;
  const smoe_topology *topology;
  int expert_first; /**< first expert of this rank */
  int n_local;      /**< experts of this rank */

  size_t n_tokens;        /**< N of this call */
  size_t n_send;          /**< kept rows of this rank */
  size_t n_recv;          /**< M rows for this rank's experts */
  int32_t *send_row;      /**< [n_send] slot index t * K + k of each row, in send order */
  int32_t *recv_place;    /**< [n_recv] place in expert order of each row in arrival order */
  int64_t *expert_offset; /**< [n_local + 1] rows of local expert j: offset[j] .. offset[j + 1] - 1 */
  int64_t *load;          /**< [E] tokens that chose the expert, all ranks, before dropping */
  int64_t n_dropped;      /**< rows of all ranks beyond capacity */
  int64_t n_assigned;     /**< rows of all ranks before dropping */
  int32_t *slot_place;    /**< [n_tokens, K] place of each slot in send order, -1 where it sends nothing */
  int32_t *kept;          /**< [R, E + 1] rows each rank sends to each expert; last, its routed tokens */
  int32_t *cursor;        /**< [2, E] while planning: place of an expert's next row, end of its rows */
  int *send_count, *send_offset, *recv_count, *recv_offset; /**< [G] ranks of the replica, in rows */
  MPI_Datatype row_type;                                    /**< one row; counts are rows then */
} smoe_exchange;

/** First expert of a rank: floor(r E / R); for rank == n_ranks: E. Local. */
int smoe_expert_first(int n_experts, int rank, int n_ranks);

/** Take the plan's arrays from an arena and, unless it measures, make the row datatype.
 *
 *  Local; the same shape on all ranks but for n_tokens_max.
 *
 *  Errors:  a micro-batch of 2^31 rows or more ends the run with SMOE_ERR_CONFIG.
 */
void smoe_exchange_declare(smoe_exchange *ex, const smoe_topology *topology, const smoe_exchange_shape *shape,
                           smoe_arena *arena);

/** Free the row datatype; fine for a zeroed plan. Local. */
void smoe_exchange_release(smoe_exchange *ex);

/** Most rows this rank can be sent in one call: all of them, or where there is
 *  a capacity, that of its experts. 0 for a rank without experts. Local.
 */
size_t smoe_exchange_rows_max(const smoe_exchange *ex);

/** Plan the exchange of one call.
 *
 *  Collective over all ranks: loads and capacity are those of the whole micro-batch.
 *
 *  expert  inout  [N, K] chosen expert per slot, -1 where unused; a slot beyond
 *                 the expert's capacity is set to -2 - expert ("dropped")
 *  n       in     N tokens of this rank, may be 0; ranks' tokens follow one
 *                 another in global order by rank
 *
 *  Order:   where capacity binds, the first floor(f T K / E) slots of an expert
 *           in global (token, slot) order are kept, on any number of ranks;
 *           T counts the tokens with at least one expert.
 *  Cost:    one Allgather of E + 1 counts per rank.
 *  Errors:  none returned; an expert beyond E or an N beyond the shape ends the run.
 */
void smoe_exchange_plan(smoe_exchange *ex, int32_t *expert, size_t n);

/** Seconds of a bare MPI_Alltoallv of `rows` rows to each rank of the replica; the best of `repeats`.
 *
 *  Collective over the ranks of the replica. What an exchange can be compared with.
 */
double smoe_exchange_bare_seconds(const smoe_exchange *ex, size_t rows, int repeats);

/** Send every kept token row to the rank of its expert.
 *
 *  Collective over the ranks of the replica.
 *
 *  out      out  [M, C] in expert order
 *  rows     in   [N, C] in token order
 *  scale    in   [N, K] factor of each row, or NULL for 1
 *  scratch       [n_send + n_recv, C]
 *
 *  Writes:   out =
 *  Adjoint:  smoe_combine_add where scale is NULL; else smoe_combine_rows, then
 *            the sum over the token's slots of scale times row.
 *  Order:    by expert, then by global token index; the same on any number of ranks.
 *  Cost:     one MPI_Alltoallv of n_send rows.
 */
void smoe_dispatch(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, const smoe_real *scale,
                   smoe_real *scratch);

/** Bring the experts' results back to the tokens' ranks, one row per slot.
 *
 *  Collective over the ranks of the replica.
 *
 *  out      out  [N, K, C]; rows of unused and dropped slots are zero
 *  rows     in   [M, C] in expert order
 *  scratch       [n_send + n_recv, C]
 *
 *  Writes:   out =
 *  Adjoint:  smoe_dispatch of slot rows.
 */
void smoe_combine_rows(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, smoe_real *scratch);

/** Bring rows back and add them to their tokens: the adjoint of smoe_dispatch.
 *
 *  Collective over the ranks of the replica.
 *
 *  out      inout  [N, C]; += sum over the token's slots, in slot order
 *  rows     in     [M, C] in expert order
 *  scratch         [n_send + n_recv, C]
 *
 *  Writes:   out +=
 *  Adjoint:  smoe_dispatch without scale.
 */
void smoe_combine_add(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, smoe_real *scratch);

#endif
