/** Experts: stacks of FFN sublayers, z <- z + W2 relu(W1 LN(z) + b1) + b2.
 *
 *  Source: StableMoE (Dai et al. 2022), section 2 and table 7; BASE layers
 *  (Lewis et al. 2021), section 4.1.
 */
#ifndef STABLEMOE_EXPERT_H
#define STABLEMOE_EXPERT_H

#include "stablemoe/layer.h"

enum { SMOE_SUBLAYERS_MAX = 32 };

/** Indices of one sublayer's parameters in the table; -1: no such parameter. */
typedef struct smoe_sublayer {
  int gamma, beta, w1, b1, w2, b2;
} smoe_sublayer;

/** The experts of one MoE layer on this rank. */
typedef struct smoe_experts {
  const smoe_params *params;
  int number;           /**< of their slab: smoe_params_experts(params, number) */
  bool data;            /**< the rows are data: dx of a backward pass is not computed */
  smoe_ffn_shape shape; /**< of every sublayer; with shape.out there is one */
  size_t rows_max;      /**< rows that tape and scratch were taken for */
  int n_sublayers;
  smoe_sublayer sublayer[SMOE_SUBLAYERS_MAX];

  /* Tape: per sublayer s, rows in expert order. */
  smoe_real *z[SMOE_SUBLAYERS_MAX]; /**< [M, C] input of the sublayer; z[0] is the expert's input */
  smoe_ffn_tape tape[SMOE_SUBLAYERS_MAX];

  smoe_ffn_scratch scratch; /**< of M rows */
  smoe_real *doutput;       /**< scratch [M, C]; backward in fp32 only */
} smoe_experts;

/** Declare the parameters of an MoE layer's experts. Local. */
void smoe_experts_declare(smoe_experts *experts, const smoe_layer *layer);

/** Take tape and scratch for at most rows_max rows. Local. */
void smoe_experts_layout(smoe_experts *experts, smoe_arena *tape, smoe_arena *scratch, size_t rows_max,
                         bool training);

/** Bytes of tape, and of scratch, per row. Local. */
double smoe_experts_tape_bytes(const smoe_experts *experts, bool training);
double smoe_experts_scratch_bytes(const smoe_experts *experts, bool training);

/** delta = f(x) - x for the rows of all local experts.
 *
 *  Local.
 *
 *  delta   out  [M, C]
 *  offset  in   [n_local + 1] rows of local expert j: offset[j] .. offset[j + 1] - 1
 *
 *  The input x is in experts->z[0] already (dispatch writes there).
 */
void smoe_experts_forward(smoe_experts *experts, smoe_real *delta, const int64_t *offset);

/** smoe_experts_forward for local experts first to end - 1 alone. Local. */
void smoe_experts_forward_some(smoe_experts *experts, smoe_real *delta, const int64_t *offset, int first,
                               int end);

/** Gradients: of the rows, and of the experts' parameters.
 *
 *  Local.
 *
 *  dx      out  [M, C] =
 *  ddelta  in   [M, C]
 *
 *  Writes:   dx =, the experts' gradient slabs +=
 */
void smoe_experts_backward(smoe_experts *experts, smoe_real *dx, const smoe_real *ddelta,
                           const int64_t *offset);

/** smoe_experts_backward for local experts first to end - 1 in two parts, of which the first one
 *  completes dx, so that its rows can leave.
 *
 *  Local. The second part has the products of the first sublayer's weights, for which scratch
 *  still holds what they need: no other expert call with those rows may come between.
 */
void smoe_experts_backward_rows(smoe_experts *experts, smoe_real *dx, const smoe_real *ddelta,
                                const int64_t *offset, int first, int end);
void smoe_experts_backward_weights(smoe_experts *experts, const smoe_real *ddelta, const int64_t *offset,
                                   int first, int end);

#endif
