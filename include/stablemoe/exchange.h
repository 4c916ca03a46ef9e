/** Token exchange: rows travel to the rank of their expert, within the replica, and back.
 *
 *  A plan is made per MoE layer and micro-batch from the router's choice.
 *  How rows travel (smoe_exchange_options) is a choice of its own and changes no bit. In bf16 they are rounded
 *  when they leave, to half the bytes, also those that stay on their rank.
 *  Dispatch and combine are adjoint: the backward of each is the other.
 *  On the expert's side rows stand by expert, then by global token index, so
 *  an expert's GEMM is the same call on any number of ranks.
 */
#ifndef STABLEMOE_EXCHANGE_H
#define STABLEMOE_EXCHANGE_H

#include "stablemoe/arena.h"
#include "stablemoe/operand.h"
#include "stablemoe/topology.h"

/** How rows travel. None of it moves a bit of a result. */
typedef enum smoe_exchange_kind {
  SMOE_EXCHANGE_DIRECT,   /**< from rank to rank */
  SMOE_EXCHANGE_TWO_LEVEL /**< within a node, then one message from node to node, then within a node */
} smoe_exchange_kind;

typedef enum smoe_alltoallv {
  SMOE_ALLTOALLV_AUTO,    /**< MPI_Alltoallv, which chooses by itself */
  SMOE_ALLTOALLV_LINEAR,  /**< all messages at once */
  SMOE_ALLTOALLV_PAIRWISE /**< in rounds, one rank to send to and one to receive from in each */
} smoe_alltoallv;

typedef struct smoe_exchange_options {
  smoe_exchange_kind kind;
  smoe_alltoallv alltoallv; /**< of the direct exchange */
  int overlap;              /**< groups of experts that travel and compute side by side; 0: all at once */
  double slice_bytes;       /**< longest message; longer ones go in slices; 0: 1 GiB */
} smoe_exchange_options;

/** Shape of an exchange, fixed for a run. */
typedef struct smoe_exchange_shape {
  int n_experts;                 /**< E */
  int n_slots;                   /**< K experts per token at most */
  size_t width;                  /**< C reals per row */
  size_t n_tokens_max;           /**< N of this rank at most */
  int64_t n_global_max;          /**< tokens of all ranks at most */
  double capacity_factor;        /**< rows per expert at most, over T K / E; 0: dropless */
  int64_t n_replica_max;         /**< tokens of this rank's replica at most; 0: n_global_max */
  smoe_exchange_options options; /**< all zero: one MPI_Alltoallv */
  const int32_t *expert_at; /**< [E] expert at each place, read with every plan; NULL: expert e at place e */
  smoe_precision precision; /**< in which rows travel */
} smoe_exchange_shape;

/** What a call leaves for the next one (src/comm/exchange.c). */
typedef struct smoe_exchange_state smoe_exchange_state;

/** One plan. Arrays live in the arena it was made on. */
typedef struct smoe_exchange {
  smoe_exchange_shape shape;
  const smoe_topology *topology;
  int place_first; /**< first place of this rank; its local expert j is smoe_expert_at(shape.expert_at, place_first + j) */
  int n_local; /**< experts of this rank */

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
  size_t row_bytes;                                         /**< of a row as it travels */

  int n_groups;                 /**< groups of whole local experts; 1 where nothing overlaps */
  int *send_block, *recv_block; /**< [G, n_groups + 1] rows of a rank and group: as send_offset, by group */
  size_t n_relay;               /**< rows that this rank passes on for its node, both ways of one transfer */
  bool plain;                   /**< one MPI_Alltoallv does it */
  smoe_exchange_state *state;
} smoe_exchange;

/** Take the plan's arrays from an arena and, unless it measures, make the row datatype.
 *
 *  Local; the same shape on all ranks but for n_tokens_max.
 *
 *  Errors:  a micro-batch of 2^31 rows or more ends the run with SMOE_ERR_CONFIG.
 */
void smoe_exchange_declare(smoe_exchange *ex, const smoe_topology *topology, const smoe_exchange_shape *shape,
                           smoe_arena *arena);

/** An exchange of rows of `width` reals that goes by the plans of another one: it shares their arrays, and has a row
 *  datatype and messages of its own.
 *
 *  Local.
 *  of  in  declared on the same arena, and released after ex
 */
void smoe_exchange_declare_with(smoe_exchange *ex, const smoe_exchange *of, size_t width, smoe_arena *arena);

/** Go by the plan that `of` has made. Local. */
void smoe_exchange_follow(smoe_exchange *ex, const smoe_exchange *of);

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
 *  Order:   where capacity binds, the first max(1, floor(f T K / E)) slots of an expert
 *           in global (token, slot) order are kept, on any number of ranks;
 *           T counts the tokens with at least one expert.
 *  Cost:    one Allgather of E + 1 counts per rank.
 *  Errors:  none returned; an expert beyond E or an N beyond the shape ends the run.
 */
void smoe_exchange_plan(smoe_exchange *ex, int32_t *expert, size_t n);

/** What the options come to on these ranks: "direct, MPI_Alltoallv". Local. */
void smoe_exchange_describe(const smoe_exchange *ex, char *text, size_t bytes);

/** Rows of scratch, of ex->row_bytes, that the present plan's transfers need: n_send + n_recv, and n_relay of each
 *  transfer that may be on its way. Local.
 */
size_t smoe_exchange_scratch_rows(const smoe_exchange *ex);

/** The most that smoe_exchange_scratch_rows can become. Local. */
size_t smoe_exchange_scratch_max(const smoe_exchange *ex);

/** Rows of scratch that the worst case takes for each row of the micro-batch, for the memory plan: 1,
 *  and 1 for each transfer that passes rows on. Local.
 */
int smoe_exchange_scratch_share(const smoe_exchange *ex);

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
 *  scratch       [smoe_exchange_scratch_rows(ex)] rows of ex->row_bytes
 *
 *  Writes:   out =
 *  Adjoint:  smoe_combine_add where scale is NULL; else smoe_combine_rows, then
 *            the sum over the token's slots of scale times row.
 *  Order:    by expert, then by global token index; the same on any number of ranks.
 *  Cost:     one transfer of n_send rows.
 */
void smoe_dispatch(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, const smoe_real *scale,
                   void *scratch);

/** Bring the experts' results back to the tokens' ranks, and leave them as they travelled.
 *
 *  Collective over the ranks of the replica.
 *
 *  keep     out  [n_send] rows of ex->row_bytes; NULL: results last until scratch or rows is used again
 *  rows     in   [M, C] in expert order; may be keep where smoe_exchange_in_place(ex)
 *  scratch       [smoe_exchange_scratch_rows(ex)] rows of ex->row_bytes
 *
 *  Returns [n_send, C] rows of the kept slots in send order: that of slot s is row ex->slot_place[s], and there is none
 *  where that is -1. They are at keep; without it in scratch or rows.
 *  Writes:   keep =
 *  Adjoint:  smoe_dispatch of slot rows.
 */
smoe_operand smoe_combine_rows(const smoe_exchange *ex, void *keep, const smoe_real *rows, void *scratch);

/** Whether results neither travel nor are rounded, so that what the experts write is what smoe_combine_rows
 *  returns: on one rank in fp32. Local.
 */
bool smoe_exchange_in_place(const smoe_exchange *ex);

/** Bring rows back and add them to their tokens: the adjoint of smoe_dispatch.
 *
 *  Collective over the ranks of the replica.
 *
 *  out      inout  [N, C]; += sum over the token's slots, in slot order
 *  rows     in     [M, C] in expert order
 *  scratch         [smoe_exchange_scratch_rows(ex)] rows of ex->row_bytes
 *
 *  Writes:   out +=
 *  Adjoint:  smoe_dispatch without scale.
 */
void smoe_combine_add(const smoe_exchange *ex, smoe_real *out, const smoe_real *rows, void *scratch);

/** Messages of rows that this rank has sent since the exchange was declared, in both directions: to other ranks of its
 *  node, and to ranks of other nodes (all are one node where topology has none). What MPI_Alltoallv does by itself
 *  is not seen: comm.alltoallv auto without two_level and overlap. Local.
 */
void smoe_exchange_messages(const smoe_exchange *ex, int64_t *within, int64_t *across);

/** Groups of experts for the calls below, which let rows travel while experts compute; 0 where
 *  the calls above are to be used. The same on all ranks of the replica. Local.
 */
int smoe_exchange_overlap(const smoe_exchange *ex);

/** Local experts of group g: first to end - 1; may be none. Local. */
void smoe_exchange_group(const smoe_exchange *ex, int g, int *first, int *end);

/** Begin to send rows to their experts, as smoe_dispatch does, and group 0 at once.
 *
 *  Collective over the ranks of the replica, and so are the calls that have to follow:
 *  for each group in order smoe_exchange_take, smoe_exchange_return, and at last one of
 *  smoe_exchange_end_rows and smoe_exchange_end_add.
 *
 *  rows, scale, scratch  as in smoe_dispatch; in use until the end
 *  keep                  as in smoe_combine_rows; NULL with smoe_exchange_end_add
 */
void smoe_exchange_begin(const smoe_exchange *ex, const smoe_real *rows, const smoe_real *scale, void *keep,
                         void *scratch);

/** Wait for the rows of group g, and put them where its experts want them; group g + 1 departs. */
void smoe_exchange_take(const smoe_exchange *ex, smoe_real *out, int g);

/** Send the results of group g back; does not wait. */
void smoe_exchange_return(const smoe_exchange *ex, const smoe_real *rows, int g);

/** Wait for all results; returned, or added to out, as by smoe_combine_rows and smoe_combine_add. */
smoe_operand smoe_exchange_end_rows(const smoe_exchange *ex);
void smoe_exchange_end_add(const smoe_exchange *ex, smoe_real *out);

/** Give MPI time to move what is on its way; call it between products. Local, does not wait. */
void smoe_exchange_progress(const smoe_exchange *ex);

#endif
