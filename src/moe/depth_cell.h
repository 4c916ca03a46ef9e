/** Recurrent cells over depth: from a token's input and its state at the MoE layer before, its state at this one.
 *
 *  With v [N, P] the input and h' [N, P] the state before (absent: 0):
 *      GRU:  r = sigmoid(W_r v + b_r + U_r h' + c_r),  z = sigmoid(W_z v + b_z + U_z h' + c_z)
 *            u = U_n h' + c_n,  n = tanh(W_n v + b_n + r u),  h = (1 - z) n + z h'
 *      RNN:  h = tanh(W v + b + U h' + c)
 *      MLP:  h = tanh(v): no parameters and no state
 *  All functions are Local, and work row by row: rows are tokens.
 */
#ifndef STABLEMOE_MOE_DEPTH_CELL_H
#define STABLEMOE_MOE_DEPTH_CELL_H

#include <stdbool.h>
#include <stddef.h>

#include "stablemoe/real.h"

typedef enum smoe_depth_kind { SMOE_DEPTH_GRU, SMOE_DEPTH_RNN, SMOE_DEPTH_MLP } smoe_depth_kind;
extern const char *const smoe_depth_kinds[];

/** Parts of a cell's matrices, one below the other in the order r, z, n: 3, 1, or 0 of an MLP. */
size_t smoe_depth_parts(smoe_depth_kind kind);

/** A cell and its parameters, or their gradients: [parts P, P] and [parts P]. */
typedef struct smoe_depth_cell {
  smoe_depth_kind kind;
  size_t width; /**< P */
  const smoe_real *input, *input_bias, *hidden, *hidden_bias;
} smoe_depth_cell;

typedef struct smoe_depth_grad {
  smoe_real *input, *input_bias, *hidden, *hidden_bias;
} smoe_depth_grad;

/** Reals of tape and scratch for n rows. */
size_t smoe_depth_tape_reals(smoe_depth_kind kind, size_t width, size_t n);
size_t smoe_depth_scratch_reals(smoe_depth_kind kind, size_t width, size_t n);

/** The state.
 *
 *  h        out  [N, P]
 *  v        in   [N, P]
 *  before   in   [N, P]; NULL: 0
 *  tape     out  smoe_depth_tape_reals, for backward
 */
void smoe_depth_forward(const smoe_depth_cell *cell, smoe_real *h, const smoe_real *v,
                        const smoe_real *before, size_t n, smoe_real *tape, smoe_real *scratch);

/** Its gradient.
 *
 *  dv       out  [N, P] =
 *  dbefore  out  [N, P] =; NULL: not wanted
 *  grad     inout +=; the pointers of an MLP are not used
 *  dh       in   [N, P]
 *  h, v, before, tape  as forward had them
 */
void smoe_depth_backward(const smoe_depth_cell *cell, smoe_real *dv, smoe_real *dbefore,
                         const smoe_depth_grad *grad, const smoe_real *dh, const smoe_real *h,
                         const smoe_real *v, const smoe_real *before, size_t n, const smoe_real *tape,
                         smoe_real *scratch);

#endif
