#include "stablemoe/map.h"

#include "stablemoe/bf16.h"
#include "stablemoe/kernel.h"
#include "vector.h"

void smoe_map_forward(smoe_real *y, smoe_operand x, smoe_operand w, const smoe_real *b, size_t n, size_t c,
                      size_t o) {
  if (w.half)
    smoe_bf16_linear_forward(y, x.half, w.half, b, n, c, o);
  else
    smoe_linear_forward(y, x.wide, w.wide, b, n, c, o);
}

void smoe_map_rows(smoe_real *y, smoe_operand x, smoe_operand w, const smoe_real *b, size_t n, size_t c,
                   size_t o) {
  if (w.half)
    smoe_bf16_linear_forward(y, x.half, w.half, b, n, c, o);
  else
    smoe_linear_rows(y, x.wide, w.wide, b, n, c, o);
}

void smoe_map_backward_input(smoe_real *dx, smoe_operand dy, smoe_operand w, size_t n, size_t c, size_t o,
                             bool add) {
  if (w.half)
    smoe_bf16_linear_backward_input(dx, dy.half, w.half, n, c, o, add);
  else
    smoe_linear_backward_input(dx, dy.wide, w.wide, n, c, o, add);
}

void smoe_map_backward_weight(smoe_real *dw, smoe_real *db, smoe_operand dy, smoe_operand x, size_t n,
                              size_t c, size_t o) {
  if (!dy.half) {
    smoe_linear_backward_weight(dw, db, dy.wide, x.wide, n, c, o);
    return;
  }
  if (dw) smoe_bf16_linear_backward_weight(dw, dy.half, x.half, n, c, o);
  if (db) smoe_bf16_linear_backward_bias(db, dy.half, n, o);
}

void smoe_map_relu_forward(smoe_operand h, smoe_operand x, smoe_operand w, const smoe_real *b, size_t n,
                           size_t c, size_t f, bool decoding) {
  if (h.half) {
    smoe_bf16_linear_forward_rounded(h.half, x.half, w.half, b, n, c, f);
    smoe_bf16_relu_forward(h.half, n * f);
    return;
  }
  (decoding ? smoe_linear_rows : smoe_linear_forward)(h.wide, x.wide, w.wide, NULL, n, c, f);
  smoe_bias_relu_forward(h.wide, b, n, f);
}

void smoe_map_relu_backward(smoe_operand d, smoe_operand dy, smoe_operand w, smoe_operand h, size_t n,
                            size_t f, size_t o) {
  if (d.half) {
    /* Rounding and a factor of 0 or 1 may change places. */
    smoe_bf16_linear_backward_input_rounded(d.half, dy.half, w.half, n, f, o);
    smoe_bf16_relu_backward(d.half, h.half, n * f);
    return;
  }
  smoe_linear_backward_input(d.wide, dy.wide, w.wide, n, f, o, false);
  smoe_relu_backward(d.wide, h.wide, n * f);
}

/* ---- rows that were kept as operands ---- */

void smoe_add_scaled_operand(smoe_real *y, smoe_real s, smoe_operand x, size_t n) {
  if (x.half)
    smoe_bf16_add_row_scaled(y, s, x.half, n);
  else
    smoe_add_rows_scaled(y, &s, 1, x.wide, 1, n);
}

/* Elements of a row that are expanded at a time: a multiple of PARTIALS, in the first cache. */
enum { EXPANDED = 512 };

smoe_real smoe_dot_operand(const smoe_real *x, smoe_operand y, size_t n) {
  if (!y.half) return smoe_dot(x, y.wide, n);
  smoe_real partial[PARTIALS] = {0}, wide[EXPANDED];
  for (size_t i = 0; i < n; i += EXPANDED) {
    const size_t m = n - i < EXPANDED ? n - i : EXPANDED;
    smoe_bf16_expand_row(wide, y.half + i, m);
    partials_add_products(partial, x + i, wide, m);
  }
  return partials_sum(partial);
}

const smoe_real *smoe_wide_operand(smoe_operand x, smoe_real *buffer, size_t n) {
  if (!x.half) return x.wide;
  smoe_bf16_expand_row(buffer, x.half, n);
  return buffer;
}
