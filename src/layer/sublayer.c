#include "stablemoe/sublayer.h"

#include <string.h>

#include "stablemoe/phase.h"
#include "stablemoe/status.h"

/* ---- norm ---- */

/* Reals that are computed before they are rounded: whole rows, in the second cache. */
enum { BLOCK = 8192, WIDEST = 65536 };

static void wide_rows(smoe_norm_kind kind, smoe_real *y, smoe_real *mean, smoe_real *rstd, const smoe_real *x,
                      const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c) {
  if (kind == SMOE_NORM_NONE)
    memcpy(y, x, n * c * sizeof *y);
  else if (kind == SMOE_NORM_RMS)
    smoe_rms_norm_forward(y, rstd, x, gamma, n, c);
  else
    smoe_norm_forward(y, mean, rstd, x, gamma, beta, n, c);
}

static void wide_rows_recompute(smoe_norm_kind kind, smoe_real *y, smoe_real *mean, smoe_real *rstd,
                                const smoe_real *x, const smoe_real *gamma, const smoe_real *beta, size_t n,
                                size_t c) {
  if (kind == SMOE_NORM_NONE)
    memcpy(y, x, n * c * sizeof *y);
  else if (kind == SMOE_NORM_RMS)
    smoe_rms_norm_recompute(y, rstd, x, gamma, n, c);
  else
    smoe_norm_recompute(y, mean, rstd, x, gamma, beta, n, c);
}

typedef void rows_function(smoe_norm_kind, smoe_real *, smoe_real *, smoe_real *, const smoe_real *,
                           const smoe_real *, const smoe_real *, size_t, size_t);

static void operand_rows(rows_function *rows, smoe_norm_kind kind, smoe_operand y, smoe_real *mean,
                         smoe_real *rstd, const smoe_real *x, const smoe_real *gamma, const smoe_real *beta,
                         size_t n, size_t c) {
  if (!y.half || kind == SMOE_NORM_NONE) {
    if (y.half)
      smoe_bf16_round(y.half, x, n * c);
    else
      rows(kind, y.wide, mean, rstd, x, gamma, beta, n, c);
    return;
  }
  SMOE_ASSERT(c <= WIDEST);
  const size_t step = c < BLOCK ? BLOCK / c : 1;
#pragma omp parallel for if (n > 4 * step)
  for (size_t first = 0; first < n; first += step) {
    smoe_real block[WIDEST];
    const size_t m = n - first < step ? n - first : step;
    rows(kind, block, mean ? mean + first : NULL, rstd + first, x + first * c, gamma, beta, m, c);
    smoe_bf16_round_row(y.half + first * c, block, 1, m * c);
  }
}

void smoe_norm_rows(smoe_norm_kind kind, smoe_operand y, smoe_real *mean, smoe_real *rstd, const smoe_real *x,
                    const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c) {
  operand_rows(wide_rows, kind, y, mean, rstd, x, gamma, beta, n, c);
}

void smoe_norm_rows_recompute(smoe_norm_kind kind, smoe_operand y, const smoe_real *mean,
                              const smoe_real *rstd, const smoe_real *x, const smoe_real *gamma,
                              const smoe_real *beta, size_t n, size_t c) {
  /* Read only: the type is that of the function that fills them. */
  operand_rows(wide_rows_recompute, kind, y, (smoe_real *)mean, (smoe_real *)rstd, x, gamma, beta, n, c);
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

size_t smoe_ffn_pre(const smoe_ffn_shape *shape) {
  return shape->activation == SMOE_RELU ? 0 : smoe_ffn_columns(shape);
}

/* Whether the gradient of h has memory of its own, and is not turned into that of what it comes from in place. */
static bool separate_dh(const smoe_ffn_shape *shape) {
  return shape->activation == SMOE_SWIGLU ||
         (shape->activation == SMOE_GELU && shape->precision == SMOE_BF16);
}

smoe_ffn_tape smoe_ffn_take_tape(const smoe_ffn_shape *shape, smoe_arena *arena, size_t n) {
  const size_t pre = smoe_ffn_pre(shape);
  return (smoe_ffn_tape){.mean = smoe_arena_reals(arena, n),
                         .rstd = smoe_arena_reals(arena, n),
                         .pre = pre ? smoe_arena_reals(arena, n * pre) : NULL,
                         .h = smoe_arena_operand(arena, shape->precision, n * shape->inner)};
}

size_t smoe_ffn_tape_bytes(const smoe_ffn_shape *shape) {
  return (2 + smoe_ffn_pre(shape)) * sizeof(smoe_real) +
         shape->inner * smoe_precision_bytes(shape->precision);
}

/* Reals of a row of scratch->rows, which holds inputs as well as outputs. */
static size_t wide_of(const smoe_ffn_shape *shape) {
  const size_t c = shape->width, o = smoe_ffn_out(shape);
  return c > o ? c : o;
}

smoe_ffn_scratch smoe_ffn_take_scratch(const smoe_ffn_shape *shape, smoe_arena *arena, size_t n,
                                       bool training) {
  const size_t c = shape->width;
  const bool half = shape->precision == SMOE_BF16;
  smoe_ffn_scratch scratch = {.rows = smoe_arena_reals(arena, n * wide_of(shape))};
  scratch.normed = half ? smoe_arena_operand(arena, SMOE_BF16, n * c) : (smoe_operand){.wide = scratch.rows};
  if (!training) return scratch;
  if (half) scratch.dy = smoe_arena_operand(arena, SMOE_BF16, n * wide_of(shape));
  scratch.dinner = smoe_arena_operand(arena, shape->precision, n * smoe_ffn_columns(shape));
  scratch.dh = separate_dh(shape) ? smoe_arena_reals(arena, n * shape->inner) : scratch.dinner.wide;
  return scratch;
}

size_t smoe_ffn_scratch_bytes(const smoe_ffn_shape *shape, bool training) {
  const size_t c = shape->width, half = shape->precision == SMOE_BF16 ? c * sizeof(smoe_bf16) : 0;
  const size_t forward = c * sizeof(smoe_real) + half;
  if (!training) return forward;
  return forward + half + smoe_ffn_columns(shape) * smoe_precision_bytes(shape->precision) +
         (separate_dh(shape) ? shape->inner * sizeof(smoe_real) : 0);
}

smoe_ffn_tape smoe_ffn_tape_at(const smoe_ffn_tape *tape, const smoe_ffn_shape *shape, size_t first) {
  return (smoe_ffn_tape){.mean = tape->mean ? tape->mean + first : NULL,
                         .rstd = tape->rstd ? tape->rstd + first : NULL,
                         .pre = tape->pre ? tape->pre + first * smoe_ffn_pre(shape) : NULL,
                         .h = smoe_operand_at(tape->h, first * shape->inner)};
}

smoe_ffn_scratch smoe_ffn_scratch_at(const smoe_ffn_scratch *scratch, const smoe_ffn_shape *shape,
                                     size_t first) {
  const size_t c = shape->width;
  const size_t dh = separate_dh(shape) ? shape->inner : smoe_ffn_columns(shape);
  const bool half = shape->precision == SMOE_BF16;
  const size_t wide = wide_of(shape);
  return (smoe_ffn_scratch){.normed = smoe_operand_at(scratch->normed, first * (half ? c : wide)),
                            .rows = scratch->rows ? scratch->rows + first * wide : NULL,
                            .dy = smoe_operand_at(scratch->dy, first * smoe_ffn_out(shape)),
                            .dinner = smoe_operand_at(scratch->dinner, first * smoe_ffn_columns(shape)),
                            .dh = scratch->dh ? scratch->dh + first * dh : NULL};
}

static void linear(const smoe_ffn_shape *shape, smoe_real *y, smoe_operand x, smoe_operand w,
                   const smoe_real *b, size_t n, size_t c, size_t o) {
  (shape->decoding ? smoe_map_rows : smoe_map_forward)(y, x, w, b, n, c, o);
}

static void pause_and_norm(const smoe_ffn_shape *shape) {
  if (shape->pause) shape->pause(shape->pause_of);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
}

void smoe_ffn_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    const smoe_ffn_scratch *scratch, const smoe_real *x, size_t n) {
  const size_t c = shape->width, f = shape->inner;
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_operand in = scratch->normed;
  if (shape->norm == SMOE_NORM_NONE)
    in = smoe_operand_of(scratch->normed, x, n * c);
  else
    smoe_norm_rows(shape->norm, in, tape->mean, tape->rstd, x, w->gamma, w->beta, n, c);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  switch (shape->activation) {
  case SMOE_RELU:
    smoe_map_relu_forward(tape->h, in, w->w1, w->b1, n, c, f, shape->decoding);
    pause_and_norm(shape);
    return;
  case SMOE_GELU: /* the bias is added with the activation */
    linear(shape, tape->pre, in, w->w1, NULL, n, c, f);
    pause_and_norm(shape);
    smoe_gelu_operand(tape->h, tape->pre, w->b1, n, f);
    return;
  case SMOE_SWIGLU:
    linear(shape, tape->pre, in, w->w1, w->b1, n, c, 2 * f);
    pause_and_norm(shape);
    smoe_swiglu_operand(tape->h, tape->pre, n, f);
    return;
  }
}

void smoe_ffn_outer(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    smoe_real *y, size_t n) {
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  linear(shape, y, tape->h, w->w2, w->b2, n, shape->inner, smoe_ffn_out(shape));
  pause_and_norm(shape);
}

void smoe_ffn_backward_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                             const smoe_ffn_scratch *scratch, smoe_operand dy, size_t n) {
  const size_t o = smoe_ffn_out(shape), f = shape->inner;
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  if (shape->activation == SMOE_RELU) {
    smoe_map_relu_backward(scratch->dinner, dy, w->w2, tape->h, n, f, o);
    pause_and_norm(shape);
    return;
  }
  smoe_map_backward_input(scratch->dh, dy, w->w2, n, f, o, false);
  pause_and_norm(shape);
  if (shape->activation == SMOE_GELU)
    smoe_gelu_backward_operand(scratch->dinner, scratch->dh, tape->pre, n * f);
  else
    smoe_swiglu_backward_operand(scratch->dinner, scratch->dh, tape->pre, n, f);
}

void smoe_ffn_backward_input(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_grads *g,
                             const smoe_ffn_tape *tape, const smoe_ffn_scratch *scratch, smoe_real *dx,
                             const smoe_real *x, size_t n) {
  const size_t c = shape->width;
  const bool plain = shape->norm == SMOE_NORM_NONE;
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_map_backward_input(plain ? dx : scratch->rows, scratch->dinner, w->w1, n, c, smoe_ffn_columns(shape),
                          plain);
  pause_and_norm(shape);
  if (!plain)
    smoe_norm_rows_backward(shape->norm, dx, g->gamma, g->beta, scratch->rows, x, w->gamma, tape->mean,
                            tape->rstd, n, c);
}

void smoe_ffn_backward_outer_weights(const smoe_ffn_shape *shape, const smoe_ffn_grads *g,
                                     const smoe_ffn_tape *tape, smoe_operand dy, size_t n) {
  if (!g->w2) return; /* fixed */
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_map_backward_weight(g->w2, g->b2, dy, tape->h, n, shape->inner, smoe_ffn_out(shape));
  pause_and_norm(shape);
}

void smoe_ffn_backward_inner_weights(const smoe_ffn_shape *shape, const smoe_ffn_values *w,
                                     const smoe_ffn_grads *g, const smoe_ffn_tape *tape,
                                     const smoe_ffn_scratch *scratch, const smoe_real *x, size_t n) {
  const size_t c = shape->width;
  smoe_operand in = scratch->normed;
  if (!g->w1 && !g->b1) return;
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  if (shape->norm == SMOE_NORM_NONE)
    in = smoe_operand_of(scratch->normed, x, n * c);
  else
    smoe_norm_rows_recompute(shape->norm, in, tape->mean, tape->rstd, x, w->gamma, w->beta, n, c);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_map_backward_weight(g->w1, g->b1, scratch->dinner, in, n, c, smoe_ffn_columns(shape));
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
                            smoe_operand normed, const int32_t *position, size_t n, bool decoding) {
  const size_t columns = smoe_attention_columns(shape);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  (decoding ? smoe_map_rows : smoe_map_forward)(qkv, normed, w->qkv, w->qkv_bias, n, shape->width, columns);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
  if (shape->rope)
    smoe_rope_forward(qkv, columns, position, shape->rope, n, shape->heads + shape->kv_heads, shape->head);
}

void smoe_attention_project_side(const smoe_attention_shape *shape, const smoe_attention_values *w,
                                 smoe_real *kv, smoe_operand side, size_t n) {
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_map_forward(kv, side, w->kv, w->kv_bias, n, shape->width, kv_columns(shape));
}

void smoe_attention_sublayer(const smoe_attention_shape *shape, const smoe_attention_values *w,
                             const smoe_attention_tape *tape, const smoe_attention_buffers *buffer,
                             smoe_real *y, const smoe_attention_rows *rows) {
  const size_t n = rows->sequences * rows->context, c = shape->width, wide = shape->heads * shape->head;
  const size_t n_side = rows->sequences * rows->side_context;
  const smoe_attention sizes = smoe_attention_sizes(shape, rows);
  const parts p = parts_of(shape, tape->qkv, tape->kv);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows(shape->norm, buffer->normed, tape->mean, tape->rstd, rows->x, w->gamma, w->beta, n, c);
  smoe_attention_project(shape, w, tape->qkv, buffer->normed, rows->position, n, false);
  if (shape->cross)
    smoe_attention_project_side(shape, w, tape->kv, smoe_operand_of(buffer->side, rows->side, n_side * c),
                                n_side);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
  smoe_real *out = tape->attended.wide ? tape->attended.wide : buffer->out;
  smoe_attend_forward(out, tape->lse, p.q, p.k, p.v, buffer->attention, &sizes);
  const smoe_operand attended = smoe_operand_of(tape->attended, out, n * wide);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  if (y) smoe_map_forward(y, attended, w->proj, w->proj_bias, n, wide, c);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
}

/* Keys and values of the source stream: their weights, and the rows themselves. */
static void backward_side(const smoe_attention_shape *shape, const smoe_attention_values *w,
                          const smoe_attention_grads *g, const smoe_attention_buffers *buffer,
                          const smoe_attention_rows *rows, smoe_real *dside) {
  const size_t n = rows->sequences * rows->side_context, c = shape->width, columns = kv_columns(shape);
  const smoe_operand side = smoe_operand_of(buffer->side, rows->side, n * c);
  const smoe_operand dkv = smoe_operand_of(buffer->dkv_half, buffer->dkv, n * columns);
  smoe_map_backward_weight(g->kv, g->kv_bias, dkv, side, n, c, columns);
  smoe_map_backward_input(dside, dkv, w->kv, n, c, columns, true);
}

void smoe_attention_sublayer_backward(const smoe_attention_shape *shape, const smoe_attention_values *w,
                                      const smoe_attention_grads *g, const smoe_attention_tape *tape,
                                      const smoe_attention_buffers *buffer, smoe_real *dx, smoe_real *dside,
                                      const smoe_real *dy_rows, const smoe_attention_rows *rows) {
  const size_t n = rows->sequences * rows->context, c = shape->width, wide = shape->heads * shape->head;
  const size_t columns = smoe_attention_columns(shape);
  const smoe_attention sizes = smoe_attention_sizes(shape, rows);
  const parts p = parts_of(shape, tape->qkv, tape->kv), d = parts_of(shape, buffer->dqkv, buffer->dkv);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  const smoe_operand dy = smoe_operand_of(buffer->dy, dy_rows, n * c);
  smoe_map_backward_weight(g->proj, g->proj_bias, dy, tape->attended, n, wide, c);
  smoe_map_backward_input(buffer->dout, dy, w->proj, n, wide, c, false);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
  if (tape->attended.half) smoe_bf16_expand(buffer->out, tape->attended.half, n * wide);
  smoe_attend_backward(d.q, d.k, d.v, buffer->dout, p.q, p.k, p.v,
                       tape->attended.half ? buffer->out : tape->attended.wide, tape->lse, buffer->attention,
                       &sizes);
  if (shape->rope)
    smoe_rope_backward(buffer->dqkv, columns, rows->position, shape->rope, n, shape->heads + shape->kv_heads,
                       shape->head);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  if (g->qkv)
    smoe_norm_rows_recompute(shape->norm, buffer->normed, tape->mean, tape->rstd, rows->x, w->gamma, w->beta,
                             n, c);
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  const smoe_operand dqkv = smoe_operand_of(buffer->dqkv_half, buffer->dqkv, n * columns);
  smoe_map_backward_weight(g->qkv, g->qkv_bias, dqkv, buffer->normed, n, c, columns);
  smoe_map_backward_input(buffer->dnormed, dqkv, w->qkv, n, c, columns, false);
  if (shape->cross) backward_side(shape, w, g, buffer, rows, dside);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows_backward(shape->norm, dx, g->gamma, g->beta, buffer->dnormed, rows->x, w->gamma, tape->mean,
                          tape->rstd, n, c);
}
