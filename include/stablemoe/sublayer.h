/** Feed-forward and attention sublayers on rows: the arithmetic that layers, experts, the distilled
 *  router's Transformer and decoding share.
 *
 *  Parameters, tape and scratch come as pointers, so it does not matter whose they are. Letters as in
 *  kernel.h. All functions are Local. None adds the residual.
 */
#ifndef STABLEMOE_SUBLAYER_H
#define STABLEMOE_SUBLAYER_H

#include "stablemoe/kernel.h"
#include "stablemoe/map.h"

typedef enum smoe_norm_kind { SMOE_NORM_NONE, SMOE_NORM_LAYER, SMOE_NORM_RMS } smoe_norm_kind;
typedef enum smoe_activation { SMOE_RELU, SMOE_GELU, SMOE_SWIGLU } smoe_activation;

/* ---- norm: dispatch on its kind; NONE copies ---- */

/** y [N, C] = norm(x) as an operand; mean [N] (LAYER alone) and rstd [N] are kept. C is at most 65536. */
void smoe_norm_rows(smoe_norm_kind kind, smoe_operand y, smoe_real *mean, smoe_real *rstd, const smoe_real *x,
                    const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c);

/** y again from what was kept; the same bits. */
void smoe_norm_rows_recompute(smoe_norm_kind kind, smoe_operand y, const smoe_real *mean,
                              const smoe_real *rstd, const smoe_real *x, const smoe_real *gamma,
                              const smoe_real *beta, size_t n, size_t c);

/** dx [N, C] +=, dgamma [C] +=, dbeta [C] += (LAYER alone). */
void smoe_norm_rows_backward(smoe_norm_kind kind, smoe_real *dx, smoe_real *dgamma, smoe_real *dbeta,
                             const smoe_real *dy, const smoe_real *x, const smoe_real *gamma,
                             const smoe_real *mean, const smoe_real *rstd, size_t n, size_t c);

/* ---- feed-forward: y = W2 act(W1 norm(x) + b1) + b2 ---- */

typedef struct smoe_ffn_shape {
  size_t width, inner; /**< C, F */
  size_t out;          /**< O, width of the output; 0: C */
  smoe_norm_kind norm;
  smoe_activation activation;
  smoe_precision precision;    /**< of the products' operands */
  bool decoding;               /**< few rows: smoe_map_rows instead of smoe_map_forward */
  void (*pause)(const void *); /**< called between products, so that MPI can progress; or NULL */
  const void *pause_of;
} smoe_ffn_shape;

/** Values; NULL: no such parameter. w1 [F, C], or [2 F, C] for SwiGLU: the rows of the gate silu(.), then those
 *  it multiplies; b1 alike. w2 [C, F]. */
typedef struct smoe_ffn_values {
  const smoe_real *gamma, *beta;
  smoe_operand w1;
  const smoe_real *b1;
  smoe_operand w2;
  const smoe_real *b2;
} smoe_ffn_values;

/** Gradients, in the same order; NULL: not wanted, or no such parameter. */
typedef struct smoe_ffn_grads {
  smoe_real *gamma, *beta, *w1, *b1, *w2, *b2;
} smoe_ffn_grads;

typedef struct smoe_ffn_tape {
  smoe_real *mean, *rstd; /**< [N] */
  smoe_real *pre;         /**< [N, F] (GELU) or [N, 2 F] (SwiGLU) before the activation; ReLU needs none */
  smoe_operand h;         /**< [N, F] after it */
} smoe_ffn_tape;

/** Scratch of N rows. */
typedef struct smoe_ffn_scratch {
  smoe_operand normed; /**< [N, C] norm(x), or x rounded; in fp32 it is `rows` */
  smoe_real *rows;     /**< [N, C] for the caller's use, and for the gradient of norm(x) */
  smoe_operand dy;     /**< bf16: [N, C] the gradient of y, rounded (smoe_operand_of); backward only */
  smoe_operand dinner; /**< [N, smoe_ffn_columns] gradient of W1 norm(x) + b1; backward only */
  smoe_real
      *dh; /**< [N, F] gradient of h; backward only, with GELU in bf16 and SwiGLU; GELU in fp32: dinner */
} smoe_ffn_scratch;

/** Width of the output: [N, C] below is [N, O] where y and dy are meant. */
static inline size_t smoe_ffn_out(const smoe_ffn_shape *shape) {
  return shape->out ? shape->out : shape->width;
}

/** Rows of w1 and of dinner: F, or 2 F for SwiGLU. */
size_t smoe_ffn_columns(const smoe_ffn_shape *shape);

/** Reals per row of tape->pre: 0 for ReLU. */
size_t smoe_ffn_pre(const smoe_ffn_shape *shape);

/** Take a tape, and scratch, of n rows; and the bytes per row that they take. */
smoe_ffn_tape smoe_ffn_take_tape(const smoe_ffn_shape *shape, smoe_arena *arena, size_t n);
smoe_ffn_scratch smoe_ffn_take_scratch(const smoe_ffn_shape *shape, smoe_arena *arena, size_t n,
                                       bool training);
size_t smoe_ffn_tape_bytes(const smoe_ffn_shape *shape);
size_t smoe_ffn_scratch_bytes(const smoe_ffn_shape *shape, bool training);

/** The tape, and scratch, from `first` rows on. */
smoe_ffn_tape smoe_ffn_tape_at(const smoe_ffn_tape *tape, const smoe_ffn_shape *shape, size_t first);
smoe_ffn_scratch smoe_ffn_scratch_at(const smoe_ffn_scratch *scratch, const smoe_ffn_shape *shape,
                                     size_t first);

/** Everything on the tape, from x [N, C]. Uses scratch->normed. */
void smoe_ffn_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    const smoe_ffn_scratch *scratch, const smoe_real *x, size_t n);

/** y [N, C] = W2 h + b2, from the tape. */
void smoe_ffn_outer(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    smoe_real *y, size_t n);

/** scratch->dinner = dL/d(W1 norm(x) + b1), from dy [N, C]. */
void smoe_ffn_backward_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                             const smoe_ffn_scratch *scratch, smoe_operand dy, size_t n);

/** dx [N, C] += through the norm, from scratch->dinner; gradients of gamma and beta +=. Uses scratch->rows. */
void smoe_ffn_backward_input(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_grads *g,
                             const smoe_ffn_tape *tape, const smoe_ffn_scratch *scratch, smoe_real *dx,
                             const smoe_real *x, size_t n);

/** Gradients of W2, b2 +=. */
void smoe_ffn_backward_outer_weights(const smoe_ffn_shape *shape, const smoe_ffn_grads *g,
                                     const smoe_ffn_tape *tape, smoe_operand dy, size_t n);

/** Gradients of W1, b1 +=, from scratch->dinner. Uses scratch->normed. */
void smoe_ffn_backward_inner_weights(const smoe_ffn_shape *shape, const smoe_ffn_values *w,
                                     const smoe_ffn_grads *g, const smoe_ffn_tape *tape,
                                     const smoe_ffn_scratch *scratch, const smoe_real *x, size_t n);

/* ---- attention: y = Wo attention(W norm(x) + b) + bo ---- */

typedef struct smoe_attention_shape {
  size_t width, heads, kv_heads, head; /**< C; H; key and value heads Hkv, which divide H; D */
  smoe_norm_kind norm;
  smoe_precision precision; /**< of the products' operands */
  bool causal;
  bool cross;            /**< keys and values from the rows of another stream */
  const smoe_real *rope; /**< table of smoe_rope_table for rotary positions; NULL: none */
} smoe_attention_shape;

/** qkv [(H + 2 Hkv) D, C], rows of q, then k, then v; with cross [H D, C] for q alone, and kv [2 Hkv D, C].
 *  proj [C, H D]. NULL: no such parameter. */
typedef struct smoe_attention_values {
  const smoe_real *gamma, *beta;
  smoe_operand qkv;
  const smoe_real *qkv_bias;
  smoe_operand kv;
  const smoe_real *kv_bias;
  smoe_operand proj;
  const smoe_real *proj_bias;
} smoe_attention_values;

/** Gradients, in the same order; NULL: not wanted, or no such parameter. */
typedef struct smoe_attention_grads {
  smoe_real *gamma, *beta, *qkv, *qkv_bias, *kv, *kv_bias, *proj, *proj_bias;
} smoe_attention_grads;

typedef struct smoe_attention_tape {
  smoe_real *mean, *rstd; /**< [N] */
  smoe_real *qkv;         /**< [N, smoe_attention_columns] */
  smoe_real *kv;          /**< [Nside, 2 Hkv D]; cross */
  smoe_operand attended;  /**< [N, H D] */
  smoe_real *lse;         /**< [S, H, T] */
} smoe_attention_tape;

typedef struct smoe_attention_buffers {
  smoe_operand normed;    /**< [N, C] norm(x), or x rounded */
  smoe_operand side;      /**< bf16 and cross: [Nside, C] rows of the other stream, rounded */
  smoe_real *out;         /**< bf16: [N, H D] what attention computes with */
  smoe_real *attention;   /**< smoe_attend_scratch */
  smoe_real *dnormed;     /**< [N, C]; backward only, as those below */
  smoe_operand dy;        /**< bf16: [N, C] the gradient of y, rounded */
  smoe_real *dqkv;        /**< as qkv */
  smoe_real *dkv;         /**< as kv */
  smoe_operand dqkv_half; /**< bf16: as dqkv */
  smoe_operand dkv_half;  /**< bf16: as dkv */
  smoe_real *dout;        /**< [N, H D] */
} smoe_attention_buffers;

/** Rows of a call: S sequences of T rows, of which the first length[s] are real. */
typedef struct smoe_attention_rows {
  const smoe_real *x; /**< [S T, C] */
  size_t sequences, context;
  const int32_t *length;   /**< [S]; NULL: T */
  const int32_t *position; /**< [S T] rows of the rotary table; where there is one */
  const smoe_real *side;   /**< [S side_context, C]; cross */
  size_t side_context;
  const int32_t *side_length; /**< [S]; NULL: side_context */
} smoe_attention_rows;

/** Rows of qkv and columns of its gradient. */
size_t smoe_attention_columns(const smoe_attention_shape *shape);

/** The sizes for kernel.h's smoe_attend_*. */
smoe_attention smoe_attention_sizes(const smoe_attention_shape *shape, const smoe_attention_rows *rows);

/** qkv rows of norm(x), rotated where there are rotary positions; and the other stream's keys and values. */
void smoe_attention_project(const smoe_attention_shape *shape, const smoe_attention_values *w, smoe_real *qkv,
                            smoe_operand normed, const int32_t *position, size_t n, bool decoding);
void smoe_attention_project_side(const smoe_attention_shape *shape, const smoe_attention_values *w,
                                 smoe_real *kv, smoe_operand side, size_t n);

/** y [S T, C] (NULL: the tape alone) and the tape. */
void smoe_attention_sublayer(const smoe_attention_shape *shape, const smoe_attention_values *w,
                             const smoe_attention_tape *tape, const smoe_attention_buffers *buffer,
                             smoe_real *y, const smoe_attention_rows *rows);

/** dx [S T, C] += gradient through the sublayer, from dy [S T, C], which may be dx; dside +=; gradients +=. */
void smoe_attention_sublayer_backward(const smoe_attention_shape *shape, const smoe_attention_values *w,
                                      const smoe_attention_grads *g, const smoe_attention_tape *tape,
                                      const smoe_attention_buffers *buffer, smoe_real *dx, smoe_real *dside,
                                      const smoe_real *dy, const smoe_attention_rows *rows);

#endif
