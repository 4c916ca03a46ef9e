/** Feed-forward and attention sublayers on rows: the arithmetic that layers, experts, the distilled
 *  router's Transformer and decoding share.
 *
 *  Parameters, tape and scratch come as pointers, so it does not matter whose they are. Letters as in
 *  kernel.h. All functions are Local. None adds the residual.
 */
#ifndef STABLEMOE_SUBLAYER_H
#define STABLEMOE_SUBLAYER_H

#include "stablemoe/kernel.h"

typedef enum smoe_norm_kind { SMOE_NORM_NONE, SMOE_NORM_LAYER, SMOE_NORM_RMS } smoe_norm_kind;
typedef enum smoe_activation { SMOE_RELU, SMOE_GELU, SMOE_SWIGLU } smoe_activation;

/* ---- norm: dispatch on its kind; NONE copies ---- */

/** y [N, C] = norm(x); mean [N] (LAYER alone) and rstd [N] are kept. */
void smoe_norm_rows(smoe_norm_kind kind, smoe_real *y, smoe_real *mean, smoe_real *rstd, const smoe_real *x,
                    const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c);

/** y again from what was kept; the same bits. */
void smoe_norm_rows_recompute(smoe_norm_kind kind, smoe_real *y, const smoe_real *mean, const smoe_real *rstd,
                              const smoe_real *x, const smoe_real *gamma, const smoe_real *beta, size_t n,
                              size_t c);

/** dx [N, C] +=, dgamma [C] +=, dbeta [C] += (LAYER alone). */
void smoe_norm_rows_backward(smoe_norm_kind kind, smoe_real *dx, smoe_real *dgamma, smoe_real *dbeta,
                             const smoe_real *dy, const smoe_real *x, const smoe_real *gamma,
                             const smoe_real *mean, const smoe_real *rstd, size_t n, size_t c);

/* ---- feed-forward: y = W2 act(W1 norm(x) + b1) + b2 ---- */

typedef struct smoe_ffn_shape {
  size_t width, inner; /**< C, F */
  smoe_norm_kind norm;
  smoe_activation activation;
  bool decoding;               /**< few rows: smoe_linear_rows instead of smoe_linear_forward */
  void (*pause)(const void *); /**< called between products, so that MPI can progress; or NULL */
  const void *pause_of;
} smoe_ffn_shape;

/** Values, or gradients (NULL: not wanted, or no such parameter). w1 [F, C], or [2 F, C] for SwiGLU: the
 *  rows of the gate silu(.), then those it multiplies; b1 alike. w2 [C, F]. */
typedef struct smoe_ffn_values {
  const smoe_real *gamma, *beta, *w1, *b1, *w2, *b2;
} smoe_ffn_values;
typedef struct smoe_ffn_grads {
  smoe_real *gamma, *beta, *w1, *b1, *w2, *b2;
} smoe_ffn_grads;

typedef struct smoe_ffn_tape {
  smoe_real *mean, *rstd; /**< [N] */
  smoe_real *pre;         /**< [N, F] (GELU) or [N, 2 F] (SwiGLU) before the activation; ReLU needs none */
  smoe_real *h;           /**< [N, F] after it */
} smoe_ffn_tape;

/** Rows of w1 and of dinner: F, or 2 F for SwiGLU. */
size_t smoe_ffn_columns(const smoe_ffn_shape *shape);

/** Reals per row of tape->pre: 0 for ReLU. */
size_t smoe_ffn_pre(const smoe_ffn_shape *shape);

/** The tape from `first` rows on. */
smoe_ffn_tape smoe_ffn_tape_at(const smoe_ffn_tape *tape, const smoe_ffn_shape *shape, size_t first);

/** Everything on the tape, from x [N, C]. normed: scratch [N, C]. */
void smoe_ffn_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    smoe_real *normed, const smoe_real *x, size_t n);

/** y [N, C] = W2 h + b2, from the tape. */
void smoe_ffn_outer(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                    smoe_real *y, size_t n);

/** dinner [N, smoe_ffn_columns] = dL/d(W1 norm(x) + b1), from dy [N, C]. */
void smoe_ffn_backward_inner(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_tape *tape,
                             smoe_real *dinner, const smoe_real *dy, size_t n);

/** dx [N, C] += through the norm; gradients of gamma and beta +=. dnormed: scratch [N, C]. */
void smoe_ffn_backward_input(const smoe_ffn_shape *shape, const smoe_ffn_values *w, const smoe_ffn_grads *g,
                             const smoe_ffn_tape *tape, smoe_real *dx, smoe_real *dnormed,
                             const smoe_real *dinner, const smoe_real *x, size_t n);

/** Gradients of W2, b2 +=. */
void smoe_ffn_backward_outer_weights(const smoe_ffn_shape *shape, const smoe_ffn_grads *g,
                                     const smoe_ffn_tape *tape, const smoe_real *dy, size_t n);

/** Gradients of W1, b1 +=. normed: scratch [N, C]. */
void smoe_ffn_backward_inner_weights(const smoe_ffn_shape *shape, const smoe_ffn_values *w,
                                     const smoe_ffn_grads *g, const smoe_ffn_tape *tape, smoe_real *normed,
                                     const smoe_real *dinner, const smoe_real *x, size_t n);

/* ---- self-attention: y = Wo attention(W norm(x) + b) + bo ---- */

typedef struct smoe_attention_shape {
  size_t width, heads; /**< C, H */
  smoe_norm_kind norm;
} smoe_attention_shape;

typedef struct smoe_attention_values {
  const smoe_real *gamma, *beta, *qkv, *qkv_bias, *proj, *proj_bias; /**< qkv [3 C, C], proj [C, C] */
} smoe_attention_values;
typedef struct smoe_attention_grads {
  smoe_real *gamma, *beta, *qkv, *qkv_bias, *proj, *proj_bias;
} smoe_attention_grads;

typedef struct smoe_attention_tape {
  smoe_real *mean, *rstd; /**< [N] */
  smoe_real *qkv;         /**< [N, 3 C] */
  smoe_real *attended;    /**< [N, C] */
  smoe_real *lse;         /**< [S, H, T] */
} smoe_attention_tape;

typedef struct smoe_attention_buffers {
  smoe_real *normed;    /**< [N, C] */
  smoe_real *attention; /**< smoe_attention_scratch */
  smoe_real *dnormed;   /**< [N, C]; backward only, as the two below; dout may be dnormed */
  smoe_real *dqkv;      /**< [N, 3 C] */
  smoe_real *dout;      /**< [N, C] */
} smoe_attention_buffers;

/** y [S T, C] (NULL: the tape alone) and the tape from x [S T, C]; causal, every sequence of T rows. */
void smoe_attention_sublayer(const smoe_attention_shape *shape, const smoe_attention_values *w,
                             const smoe_attention_tape *tape, const smoe_attention_buffers *buffer,
                             smoe_real *y, const smoe_real *x, size_t s, size_t t);

/** dx [S T, C] holds dL/dy on entry and dL/dy + dL/dx through the sublayer on return; gradients +=. */
void smoe_attention_sublayer_backward(const smoe_attention_shape *shape, const smoe_attention_values *w,
                                      const smoe_attention_grads *g, const smoe_attention_tape *tape,
                                      const smoe_attention_buffers *buffer, smoe_real *dx, const smoe_real *x,
                                      size_t s, size_t t);

#endif
