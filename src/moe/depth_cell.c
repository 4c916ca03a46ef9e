#include "depth_cell.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"

const char *const smoe_depth_kinds[] = {"gru", "rnn", "mlp", NULL};

size_t smoe_depth_parts(smoe_depth_kind kind) {
  static const size_t parts[] = {[SMOE_DEPTH_GRU] = 3, [SMOE_DEPTH_RNN] = 1, [SMOE_DEPTH_MLP] = 0};
  return parts[kind];
}

/* Tape of a GRU: r, z, n [N, 3 P] and u [N, P]. The others need their state alone. */
size_t smoe_depth_tape_reals(smoe_depth_kind kind, size_t width, size_t n) {
  return kind == SMOE_DEPTH_GRU ? 4 * n * width : 0;
}

/* Forward: what comes from the state. Backward: gradients of what comes from input and state. */
size_t smoe_depth_scratch_reals(smoe_depth_kind kind, size_t width, size_t n) {
  return 2 * smoe_depth_parts(kind) * n * width;
}

static smoe_real tanh_of(smoe_real x) {
  return (smoe_real)tanh((double)x);
}

/* U h' + c [N, parts P]; c alone where there is no state. */
static void from_state(const smoe_depth_cell *cell, smoe_real *b, const smoe_real *before, size_t n) {
  const size_t p = cell->width, wide = smoe_depth_parts(cell->kind) * p;
  if (before) {
    smoe_linear_forward(b, before, cell->hidden, cell->hidden_bias, n, p, wide);
    return;
  }
  for (size_t t = 0; t < n; t++) memcpy(b + t * wide, cell->hidden_bias, wide * sizeof *b);
}

/* One row: gates in place of W v + b. */
static void gru_row(smoe_real *h, smoe_real *gates, smoe_real *u, const smoe_real *b, const smoe_real *before,
                    size_t p) {
  for (size_t i = 0; i < p; i++) {
    const smoe_real r = smoe_sigmoid(gates[i] + b[i]), z = smoe_sigmoid(gates[p + i] + b[p + i]);
    const smoe_real candidate = tanh_of(gates[2 * p + i] + r * b[2 * p + i]);
    u[i] = b[2 * p + i];
    gates[i] = r;
    gates[p + i] = z;
    gates[2 * p + i] = candidate;
    h[i] = (1 - z) * candidate + (before ? z * before[i] : 0);
  }
}

void smoe_depth_forward(const smoe_depth_cell *cell, smoe_real *h, const smoe_real *v,
                        const smoe_real *before, size_t n, smoe_real *tape, smoe_real *scratch) {
  const size_t p = cell->width;
  smoe_real *gates = tape, *u = tape + 3 * n * p;
  switch (cell->kind) {
  case SMOE_DEPTH_GRU:
    smoe_linear_forward(gates, v, cell->input, cell->input_bias, n, p, 3 * p);
    from_state(cell, scratch, before, n);
    for (size_t t = 0; t < n; t++)
      gru_row(h + t * p, gates + t * 3 * p, u + t * p, scratch + t * 3 * p, before ? before + t * p : NULL,
              p);
    break;
  case SMOE_DEPTH_RNN:
    smoe_linear_forward(h, v, cell->input, cell->input_bias, n, p, p);
    from_state(cell, scratch, before, n);
    for (size_t i = 0; i < n * p; i++) h[i] = tanh_of(h[i] + scratch[i]);
    break;
  case SMOE_DEPTH_MLP:
    for (size_t i = 0; i < n * p; i++) h[i] = tanh_of(v[i]);
    break;
  }
}

/* Gradients of W v + b (da) and U h' + c (db) [3 P], and what goes to h' directly. */
static void gru_row_backward(smoe_real *da, smoe_real *db, smoe_real *dbefore, const smoe_real *dh,
                             const smoe_real *gates, const smoe_real *u, const smoe_real *before, size_t p) {
  for (size_t i = 0; i < p; i++) {
    const smoe_real r = gates[i], z = gates[p + i], candidate = gates[2 * p + i];
    const smoe_real dn = dh[i] * (1 - z) * (1 - candidate * candidate);
    const smoe_real dz = dh[i] * ((before ? before[i] : 0) - candidate);
    da[i] = db[i] = dn * u[i] * r * (1 - r);
    da[p + i] = db[p + i] = dz * z * (1 - z);
    da[2 * p + i] = dn;
    db[2 * p + i] = dn * r;
    if (dbefore) dbefore[i] = dh[i] * z;
  }
}

void smoe_depth_backward(const smoe_depth_cell *cell, smoe_real *dv, smoe_real *dbefore,
                         const smoe_depth_grad *grad, const smoe_real *dh, const smoe_real *h,
                         const smoe_real *v, const smoe_real *before, size_t n, const smoe_real *tape,
                         smoe_real *scratch) {
  const size_t p = cell->width, wide = smoe_depth_parts(cell->kind) * p;
  const smoe_real *gates = tape, *u = tape + 3 * n * p;
  smoe_real *da = scratch, *db = scratch + n * wide;
  if (cell->kind == SMOE_DEPTH_MLP) {
    for (size_t i = 0; i < n * p; i++) dv[i] = dh[i] * (1 - h[i] * h[i]);
    return;
  }
  if (cell->kind == SMOE_DEPTH_GRU) {
    for (size_t t = 0; t < n; t++)
      gru_row_backward(da + t * wide, db + t * wide, dbefore ? dbefore + t * p : NULL, dh + t * p,
                       gates + t * wide, u + t * p, before ? before + t * p : NULL, p);
  } else {
    for (size_t i = 0; i < n * p; i++) da[i] = db[i] = dh[i] * (1 - h[i] * h[i]);
    if (dbefore && n) memset(dbefore, 0, n * p * sizeof *dbefore);
  }
  smoe_linear_backward_weight(grad->input, grad->input_bias, da, v, n, p, wide);
  smoe_linear_backward_input(dv, da, cell->input, n, p, wide, false);
  if (before)
    smoe_linear_backward_weight(grad->hidden, grad->hidden_bias, db, before, n, p, wide);
  else
    smoe_linear_backward_bias(grad->hidden_bias, db, n, wide);
  if (dbefore) smoe_linear_backward_input(dbefore, db, cell->hidden, n, p, wide, true);
}
