#include "stablemoe/sublayer.h"

#include <string.h>

#include "stablemoe/phase.h"

/* ---- norm ---- */

void smoe_norm_rows(smoe_norm_kind kind, smoe_real *y, smoe_real *mean, smoe_real *rstd, const smoe_real *x,
                    const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c) {
  if (kind == SMOE_NORM_NONE)
    memcpy(y, x, n * c * sizeof *y);
  else
    smoe_norm_forward(y, mean, rstd, x, gamma, beta, n, c);
}

void smoe_norm_rows_recompute(smoe_norm_kind kind, smoe_real *y, const smoe_real *mean, const smoe_real *rstd,
                              const smoe_real *x, const smoe_real *gamma, const smoe_real *beta, size_t n,
                              size_t c) {
  if (kind == SMOE_NORM_NONE)
    memcpy(y, x, n * c * sizeof *y);
  else
    smoe_norm_recompute(y, mean, rstd, x, gamma, beta, n, c);
}

void smoe_norm_rows_backward(smoe_norm_kind kind, smoe_real *dx, smoe_real *dgamma, smoe_real *dbeta,
                             const smoe_real *dy, const smoe_real *x, const smoe_real *gamma,
                             const smoe_real *mean, const smoe_real *rstd, size_t n, size_t c) {
  if (kind == SMOE_NORM_NONE)
    smoe_add(dx, dy, n * c);
  else
    smoe_norm_backward(dx, dgamma, dbeta, dy, x, gamma, mean, rstd, n, c);
}

/* ---- feed-forward ---- */

size_t smoe_ffn_columns(const smoe_ffn_shape *shape) {
  return shape->activation == SMOE_SWIGLU ? 2 * shape->inner : shape->inner;
}

size_t smoe_ffn_pre(const smoe_ffn_shape *shape) {
  return shape->activation == SMOE_RELU ? 0 : smoe_ffn_columns(shape);
}

smoe_ffn_tape smoe_ffn_tape_at(const smoe_ffn_tape *tape, const smoe_ffn_shape *shape, size_t first) {
  return (smoe_ffn_tape){.mean = tape->mean ? tape->mean + first : NULL,
                         .rstd = tape->rstd ? tape->rstd + first : NULL,
                         .pre = tape->pre ? tape->pre + first * smoe_ffn_pre(shape) : NULL,
                         .h = tape->h + first * shape->inner};
}

static void linear(const smoe_ffn_shape *shape, smoe_real *y, const smoe_real *x, const smoe_real *w,
                   const smoe_real *b, size_t n, size_t c, size_t o) {
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  (shape->decoding ? smoe_linear_rows : smoe_linear_forward)(y, x, w, b, n, c, o);
  if (shape->pause) shape->pause(shape->pause_of);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
}

static void pause_and_norm(const smoe_ffn_shape *shape) {
  if (shape->pause) shape->pause(shape->pause_of);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
}

void smoe_ffn_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    smoe_real *normed, const smoe_real *x, size_t n) {
  const size_t c = shape->width, f = shape->inner;
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  if (shape->norm != SMOE_NORM_NONE)
    smoe_norm_rows(shape->norm, normed, tape->mean, tape->rstd, x, w->gamma, w->beta, n, c);
  linear(shape, tape->h, shape->norm == SMOE_NORM_NONE ? x : normed, w->w1, NULL, n, c, f);
  smoe_bias_relu_forward(tape->h, w->b1, n, f);
}

void smoe_ffn_outer(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    smoe_real *y, size_t n) {
  linear(shape, y, tape->h, w->w2, w->b2, n, shape->inner, shape->width);
}

void smoe_ffn_backward_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                             smoe_real *dinner, const smoe_real *dy, size_t n) {
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_input(dinner, dy, w->w2, n, shape->inner, shape->width, false);
  pause_and_norm(shape);
  smoe_relu_backward(dinner, tape->h, n * shape->inner);
}

void smoe_ffn_backward_input(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_grads *g,
                             const smoe_ffn_tape *tape, smoe_real *dx, smoe_real *dnormed,
                             const smoe_real *dinner, const smoe_real *x, size_t n) {
  const size_t c = shape->width;
  const bool plain = shape->norm == SMOE_NORM_NONE;
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_input(plain ? dx : dnormed, dinner, w->w1, n, c, smoe_ffn_columns(shape), plain);
  pause_and_norm(shape);
  if (!plain)
    smoe_norm_rows_backward(shape->norm, dx, g->gamma, g->beta, dnormed, x, w->gamma, tape->mean, tape->rstd,
                            n, c);
}

void smoe_ffn_backward_outer_weights(const smoe_ffn_shape *shape, const smoe_ffn_grads *g,
                                     const smoe_ffn_tape *tape, const smoe_real *dy, size_t n) {
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(g->w2, g->b2, dy, tape->h, n, shape->inner, shape->width);
  pause_and_norm(shape);
}

void smoe_ffn_backward_inner_weights(const smoe_ffn_shape *shape, const smoe_ffn_values *w,
                                     const smoe_ffn_grads *g, const smoe_ffn_tape *tape, smoe_real *normed,
                                     const smoe_real *dinner, const smoe_real *x, size_t n) {
  const size_t c = shape->width;
  const bool plain = shape->norm == SMOE_NORM_NONE;
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  if (!plain)
    smoe_norm_rows_recompute(shape->norm, normed, tape->mean, tape->rstd, x, w->gamma, w->beta, n, c);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(g->w1, g->b1, dinner, plain ? x : normed, n, c, smoe_ffn_columns(shape));
  pause_and_norm(shape);
}

/* ---- attention ---- */

void smoe_attention_sublayer(const smoe_attention_shape *shape, const smoe_attention_values *w,
                             const smoe_attention_tape *tape, const smoe_attention_buffers *buffer,
                             smoe_real *y, const smoe_real *x, size_t s, size_t t) {
  const size_t n = s * t, c = shape->width;
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows(shape->norm, buffer->normed, tape->mean, tape->rstd, x, w->gamma, w->beta, n, c);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_forward(tape->qkv, buffer->normed, w->qkv, w->qkv_bias, n, c, 3 * c);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
  smoe_attention_forward(tape->attended, tape->lse, tape->qkv, buffer->attention, s, t, shape->heads,
                         c / shape->heads);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  if (y) smoe_linear_forward(y, tape->attended, w->proj, w->proj_bias, n, c, c);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
}

void smoe_attention_sublayer_backward(const smoe_attention_shape *shape, const smoe_attention_values *w,
                                      const smoe_attention_grads *g, const smoe_attention_tape *tape,
                                      const smoe_attention_buffers *buffer, smoe_real *dx, const smoe_real *x,
                                      size_t s, size_t t) {
  const size_t n = s * t, c = shape->width;
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(g->proj, g->proj_bias, dx, tape->attended, n, c, c);
  smoe_linear_backward_input(buffer->dout, dx, w->proj, n, c, c, false);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
  smoe_attention_backward(buffer->dqkv, buffer->dout, tape->qkv, tape->attended, tape->lse, buffer->attention,
                          s, t, shape->heads, c / shape->heads);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows_recompute(shape->norm, buffer->normed, tape->mean, tape->rstd, x, w->gamma, w->beta, n, c);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(g->qkv, g->qkv_bias, buffer->dqkv, buffer->normed, n, c, 3 * c);
  smoe_linear_backward_input(buffer->dnormed, buffer->dqkv, w->qkv, n, c, 3 * c, false);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows_backward(shape->norm, dx, g->gamma, g->beta, buffer->dnormed, x, w->gamma, tape->mean,
                          tape->rstd, n, c);
}
