#include "stablemoe/sublayer.h"

#include <string.h>

#include "stablemoe/phase.h"

/* ---- norm ---- */

void smoe_norm_rows(smoe_norm_kind kind, smoe_real *y, smoe_real *mean, smoe_real *rstd, const smoe_real *x,
                    const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c) {
  if (kind == SMOE_NORM_NONE)
    memcpy(y, x, n * c * sizeof *y);
  else if (kind == SMOE_NORM_RMS)
    smoe_rms_norm_forward(y, rstd, x, gamma, n, c);
  else
    smoe_norm_forward(y, mean, rstd, x, gamma, beta, n, c);
}

void smoe_norm_rows_recompute(smoe_norm_kind kind, smoe_real *y, const smoe_real *mean, const smoe_real *rstd,
                              const smoe_real *x, const smoe_real *gamma, const smoe_real *beta, size_t n,
                              size_t c) {
  if (kind == SMOE_NORM_NONE)
    memcpy(y, x, n * c * sizeof *y);
  else if (kind == SMOE_NORM_RMS)
    smoe_rms_norm_recompute(y, rstd, x, gamma, n, c);
  else
    smoe_norm_recompute(y, mean, rstd, x, gamma, beta, n, c);
}

void smoe_norm_rows_backward(smoe_norm_kind kind, smoe_real *dx, smoe_real *dgamma, smoe_real *dbeta,
                             const smoe_real *dy, const smoe_real *x, const smoe_real *gamma,
                             const smoe_real *mean, const smoe_real *rstd, size_t n, size_t c) {
  if (kind == SMOE_NORM_NONE)
    smoe_add(dx, dy, n * c);
  else if (kind == SMOE_NORM_RMS)
    smoe_rms_norm_backward(dx, dgamma, dy, x, gamma, rstd, n, c);
  else
    smoe_norm_backward(dx, dgamma, dbeta, dy, x, gamma, mean, rstd, n, c);
}

/* ---- feed-forward ---- */

size_t smoe_ffn_columns(const smoe_ffn_shape *shape) {
  return shape->activation == SMOE_SWIGLU ? 2 * shape->inner : shape->inner;
}

size_t smoe_ffn_scratch_columns(const smoe_ffn_shape *shape) {
  return shape->activation == SMOE_SWIGLU ? 3 * shape->inner : shape->inner;
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

static void activate(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                     size_t n) {
  const size_t f = shape->inner;
  switch (shape->activation) {
  case SMOE_RELU:
    smoe_bias_relu_forward(tape->h, w->b1, n, f);
    return;
  case SMOE_GELU:
    smoe_bias_gelu_forward(tape->h, tape->pre, w->b1, n, f);
    return;
  case SMOE_SWIGLU:
    smoe_swiglu_forward(tape->h, tape->pre, n, f);
    return;
  }
}

void smoe_ffn_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    smoe_real *normed, const smoe_real *x, size_t n) {
  const size_t c = shape->width;
  const bool swiglu = shape->activation == SMOE_SWIGLU; /* the others add their bias with the activation */
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  if (shape->norm != SMOE_NORM_NONE)
    smoe_norm_rows(shape->norm, normed, tape->mean, tape->rstd, x, w->gamma, w->beta, n, c);
  linear(shape, shape->activation == SMOE_RELU ? tape->h : tape->pre,
         shape->norm == SMOE_NORM_NONE ? x : normed, w->w1, swiglu ? w->b1 : NULL, n, c,
         smoe_ffn_columns(shape));
  activate(shape, w, tape, n);
}

void smoe_ffn_outer(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    smoe_real *y, size_t n) {
  linear(shape, y, tape->h, w->w2, w->b2, n, shape->inner, shape->width);
}

void smoe_ffn_backward_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                             smoe_real *dinner, const smoe_real *dy, size_t n) {
  const size_t f = shape->inner;
  /* Behind the gradients of both halves of SwiGLU there is room for that of their product. */
  smoe_real *dh = shape->activation == SMOE_SWIGLU ? dinner + n * 2 * f : dinner;
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_input(dh, dy, w->w2, n, f, shape->width, false);
  pause_and_norm(shape);
  switch (shape->activation) {
  case SMOE_RELU:
    smoe_relu_backward(dinner, tape->h, n * f);
    return;
  case SMOE_GELU:
    smoe_gelu_backward(dinner, tape->pre, n * f);
    return;
  case SMOE_SWIGLU:
    smoe_swiglu_backward(dinner, dh, tape->pre, n, f);
    return;
  }
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

size_t smoe_attention_columns(const smoe_attention_shape *shape) {
  return shape->cross ? shape->heads * shape->head : (shape->heads + 2 * shape->kv_heads) * shape->head;
}

static size_t kv_columns(const smoe_attention_shape *shape) {
  return 2 * shape->kv_heads * shape->head;
}

/* Queries, keys and values as parts of the buffers that products left. */
typedef struct parts {
  smoe_real *q, *k, *v;
} parts;

static parts parts_of(const smoe_attention_shape *shape, smoe_real *qkv, smoe_real *kv) {
  smoe_real *k = shape->cross ? kv : qkv + shape->heads * shape->head;
  return (parts){qkv, k, k + shape->kv_heads * shape->head};
}

smoe_attention smoe_attention_sizes(const smoe_attention_shape *shape, const smoe_attention_rows *rows) {
  const size_t columns = smoe_attention_columns(shape);
  return (smoe_attention){.sequences = rows->sequences,
                          .queries = rows->context,
                          .keys = shape->cross ? rows->side_context : rows->context,
                          .heads = shape->heads,
                          .kv_heads = shape->kv_heads,
                          .width = shape->head,
                          .q_stride = columns,
                          .kv_stride = shape->cross ? kv_columns(shape) : columns,
                          .causal = shape->causal,
                          .query_length = rows->length,
                          .key_length = shape->cross ? rows->side_length : rows->length};
}

void smoe_attention_project(const smoe_attention_shape *shape, const smoe_attention_values *w, smoe_real *qkv,
                            const smoe_real *normed, const int32_t *position, size_t n, bool decoding) {
  const size_t columns = smoe_attention_columns(shape);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  (decoding ? smoe_linear_rows : smoe_linear_forward)(qkv, normed, w->qkv, w->qkv_bias, n, shape->width,
                                                      columns);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
  if (shape->rope)
    smoe_rope_forward(qkv, columns, position, shape->rope, n, shape->heads + shape->kv_heads, shape->head);
}

void smoe_attention_project_side(const smoe_attention_shape *shape, const smoe_attention_values *w,
                                 smoe_real *kv, const smoe_real *side, size_t n) {
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_forward(kv, side, w->kv, w->kv_bias, n, shape->width, kv_columns(shape));
}

void smoe_attention_sublayer(const smoe_attention_shape *shape, const smoe_attention_values *w,
                             const smoe_attention_tape *tape, const smoe_attention_buffers *buffer,
                             smoe_real *y, const smoe_attention_rows *rows) {
  const size_t n = rows->sequences * rows->context, c = shape->width;
  const smoe_attention sizes = smoe_attention_sizes(shape, rows);
  const parts p = parts_of(shape, tape->qkv, tape->kv);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows(shape->norm, buffer->normed, tape->mean, tape->rstd, rows->x, w->gamma, w->beta, n, c);
  smoe_attention_project(shape, w, tape->qkv, buffer->normed, rows->position, n, false);
  if (shape->cross)
    smoe_attention_project_side(shape, w, tape->kv, rows->side, rows->sequences * rows->side_context);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
  smoe_attend_forward(tape->attended, tape->lse, p.q, p.k, p.v, buffer->attention, &sizes);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  if (y) smoe_linear_forward(y, tape->attended, w->proj, w->proj_bias, n, shape->heads * shape->head, c);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
}

/* Keys and values of the source stream: their weights, and the rows themselves. */
static void backward_side(const smoe_attention_shape *shape, const smoe_attention_values *w,
                          const smoe_attention_grads *g, const smoe_attention_buffers *buffer,
                          const smoe_attention_rows *rows, smoe_real *dside) {
  const size_t n = rows->sequences * rows->side_context, c = shape->width, columns = kv_columns(shape);
  smoe_linear_backward_weight(g->kv, g->kv_bias, buffer->dkv, rows->side, n, c, columns);
  smoe_linear_backward_input(dside, buffer->dkv, w->kv, n, c, columns, true);
}

void smoe_attention_sublayer_backward(const smoe_attention_shape *shape, const smoe_attention_values *w,
                                      const smoe_attention_grads *g, const smoe_attention_tape *tape,
                                      const smoe_attention_buffers *buffer, smoe_real *dx, smoe_real *dside,
                                      const smoe_real *dy, const smoe_attention_rows *rows) {
  const size_t n = rows->sequences * rows->context, c = shape->width, wide = shape->heads * shape->head;
  const size_t columns = smoe_attention_columns(shape);
  const smoe_attention sizes = smoe_attention_sizes(shape, rows);
  const parts p = parts_of(shape, tape->qkv, tape->kv), d = parts_of(shape, buffer->dqkv, buffer->dkv);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(g->proj, g->proj_bias, dy, tape->attended, n, wide, c);
  smoe_linear_backward_input(buffer->dout, dy, w->proj, n, wide, c, false);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
  smoe_attend_backward(d.q, d.k, d.v, buffer->dout, p.q, p.k, p.v, tape->attended, tape->lse,
                       buffer->attention, &sizes);
  if (shape->rope)
    smoe_rope_backward(buffer->dqkv, columns, rows->position, shape->rope, n, shape->heads + shape->kv_heads,
                       shape->head);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows_recompute(shape->norm, buffer->normed, tape->mean, tape->rstd, rows->x, w->gamma, w->beta, n,
                           c);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(g->qkv, g->qkv_bias, buffer->dqkv, buffer->normed, n, c, columns);
  smoe_linear_backward_input(buffer->dnormed, buffer->dqkv, w->qkv, n, c, columns, false);
  if (shape->cross) backward_side(shape, w, g, buffer, rows, dside);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows_backward(shape->norm, dx, g->gamma, g->beta, buffer->dnormed, rows->x, w->gamma, tape->mean,
                          tape->rstd, n, c);
}
