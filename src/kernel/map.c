#include "stablemoe/map.h"

#include "stablemoe/bf16.h"
#include "stablemoe/kernel.h"

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
