/** The arithmetic: pure functions, forward beside backward, no state, no allocation.
 *
 *  Letters: N tokens (rows), C width, F inner width, H heads, D head size (C = H D),
 *  T context, S sequences (N = S T), V vocabulary, E experts, K slots per token,
 *  O outputs of a linear map.
 *
 *  All functions are Local. Arrays are row-major and contiguous unless a leading
 *  dimension is given. Arguments stand in the order outputs, inputs, sizes.
 *  Forward writes (=), backward adds (+=) unless said otherwise. Any size may be 0.
 *  The order of every sum follows from the sizes alone; threads split rows or
 *  columns of results, never sums (BLAS has its own rule: see smoe_gemm).
 */
#ifndef STABLEMOE_KERNEL_H
#define STABLEMOE_KERNEL_H

#include <stdbool.h>

#include "stablemoe/real.h"

/* ---- gemm.c, products.c: everything that calls OpenBLAS; see products.h for the choice of the library ---- */

/** Set the number of threads of BLAS and OpenMP on this rank; once, before memory is planned. */
void smoe_threads_set(int n);

/** Return the number of threads that is set. */
int smoe_threads(void);

/** Name of the library's code path for this processor ("SkylakeX", "oneDNN AVX2", ...); bits are promised
 *  among ranks that have the same one. For reports.
 */
const char *smoe_blas_name(void);

/** Environment variable, with its value, that pins what smoe_blas_name gives ("OPENBLAS_CORETYPE=SkylakeX"). */
const char *smoe_blas_pin(void);

/** Where BLAS takes its threads from. */
typedef enum smoe_blas_pool { SMOE_BLAS_SEQUENTIAL, SMOE_BLAS_PTHREADS, SMOE_BLAS_OPENMP } smoe_blas_pool;

/** How the OpenBLAS in use was built. */
smoe_blas_pool smoe_blas_threading(void);

/** BLAS in a line: version, code path, threads; for reports. */
const char *smoe_blas_description(void);

/** c = alpha op(a) op(b) + beta c; op transposes where the flag says so.
 *
 *  c  inout  [m, n], leading dimension ldc
 *  a  in     op(a) is [m, k];  b: op(b) is [k, n]
 *
 *  beta 0 does not read c. k = 0 scales c by beta. Panics where oneDNN fails (out of memory).
 *
 *  The bits follow from the sizes and from the number of threads: with
 *  several threads OpenBLAS (0.3.21, AVX-512) cuts sums of k > 320 at other places
 *  unless k is a multiple of 32. The other kernels give the same bits for any number.
 */
void smoe_gemm(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, smoe_real alpha,
               const smoe_real *a, size_t lda, const smoe_real *b, size_t ldb, smoe_real beta, smoe_real *c,
               size_t ldc);

/** y [m] = a [m, n] x [n] + beta y; a has leading dimension lda. beta 0 does not read y. */
void smoe_gemv(size_t m, size_t n, const smoe_real *a, size_t lda, const smoe_real *x, smoe_real beta,
               smoe_real *y);

/* ---- linear.c ---- */

/** y [N, O] = x [N, C] w^T + b;  w [O, C], b [O] or NULL. */
void smoe_linear_forward(smoe_real *y, const smoe_real *x, const smoe_real *w, const smoe_real *b, size_t n,
                         size_t c, size_t o);

/** smoe_linear_forward for decoding, where N is mostly 1 and a product of matrices takes up to five times as long
 *  as one of a matrix and a vector. Agrees with smoe_linear_forward to rounding, and is that for N > 1.
 */
void smoe_linear_rows(smoe_real *y, const smoe_real *x, const smoe_real *w, const smoe_real *b, size_t n,
                      size_t c, size_t o);

/** dx [N, C] = (or += where add) dy [N, O] w. The input's half of the backward of smoe_linear_forward. */
void smoe_linear_backward_input(smoe_real *dx, const smoe_real *dy, const smoe_real *w, size_t n, size_t c,
                                size_t o, bool add);

/** dw [O, C] += dy^T x;  db [O] += column sums of dy. The weight's half. Of what is NULL nothing is computed. */
void smoe_linear_backward_weight(smoe_real *dw, smoe_real *db, const smoe_real *dy, const smoe_real *x,
                                 size_t n, size_t c, size_t o);

/** db [O] (NULL: nothing) += column sums of dy [N, O], rows in their order. The bias's part of smoe_linear_backward_weight. */
void smoe_linear_backward_bias(smoe_real *db, const smoe_real *dy, size_t n, size_t o);

/* ---- norm.c ---- */

/** Layer norm: y = (x - mean) rstd gamma + beta, over C; epsilon 1e-5 inside the root.
 *
 *  y     out  [N, C]
 *  mean  out  [N], rstd out [N]: kept for backward
 */
void smoe_norm_forward(smoe_real *y, smoe_real *mean, smoe_real *rstd, const smoe_real *x,
                       const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c);

/** y again from the kept mean and rstd; the same bits as smoe_norm_forward gave. */
void smoe_norm_recompute(smoe_real *y, const smoe_real *mean, const smoe_real *rstd, const smoe_real *x,
                         const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c);

/** dx [N, C] +=, dgamma [C] +=, dbeta [C] += (each NULL: not computed). */
void smoe_norm_backward(smoe_real *dx, smoe_real *dgamma, smoe_real *dbeta, const smoe_real *dy,
                        const smoe_real *x, const smoe_real *gamma, const smoe_real *mean,
                        const smoe_real *rstd, size_t n, size_t c);

/** RMS norm: y = x rrms gamma, rrms = 1 / sqrt(mean of x^2 + 1e-5), over C.
 *
 *  y     out  [N, C]
 *  rrms  out  [N]: kept for backward
 *
 *  Source: Zhang and Sennrich 2019.
 */
void smoe_rms_norm_forward(smoe_real *y, smoe_real *rrms, const smoe_real *x, const smoe_real *gamma,
                           size_t n, size_t c);

/** Recompute y from the kept rrms; bitwise identical to smoe_rms_norm_forward. */
void smoe_rms_norm_recompute(smoe_real *y, const smoe_real *rrms, const smoe_real *x, const smoe_real *gamma,
                             size_t n, size_t c);

/** dx [N, C] +=, dgamma [C] += (NULL: not computed). */
void smoe_rms_norm_backward(smoe_real *dx, smoe_real *dgamma, const smoe_real *dy, const smoe_real *x,
                            const smoe_real *gamma, const smoe_real *rrms, size_t n, size_t c);

/* ---- pointwise.c, activation.c ---- */

/** h [N, F] = relu(h + b), in place; NaN stays NaN. b NULL: no bias. */
void smoe_bias_relu_forward(smoe_real *h, const smoe_real *b, size_t n, size_t f);

/** dh [n] = h > 0 ? dh : 0, in place (the backward of relu, from its output). */
void smoe_relu_backward(smoe_real *dh, const smoe_real *h, size_t n);

/** y [N, F] = gelu(x + b), gelu(x) = x Phi(x), Phi the standard normal distribution function in its exact (erf) form.
 *
 *  y  out    [N, F]; may be x where backward is not needed
 *  x  inout  [N, F]: b is added to it; kept for backward
 *  b  in     [F], or NULL: none; then x is not written, and a second call recomputes y
 *
 *  In single precision Phi has a relative error of about 1e-6.
 *  Source: Hendrycks and Gimpel 2016.
 */
void smoe_bias_gelu_forward(smoe_real *y, smoe_real *x, const smoe_real *b, size_t n, size_t f);

/** dy [n] *= Phi(x) + x phi(x), in place; phi is the normal density, x [n] as smoe_bias_gelu_forward left it. */
void smoe_gelu_backward(smoe_real *dy, const smoe_real *x, size_t n);

/** h [N, F] = silu(a) b, silu(a) = a / (1 + exp(-a)).
 *
 *  ab  in  [N, 2 F]: the gate a [F] and then b [F] of each row, as one product gives them; kept for backward
 *
 *  Source: Shazeer 2020.
 */
void smoe_swiglu_forward(smoe_real *h, const smoe_real *ab, size_t n, size_t f);

/** dab [N, 2 F] = (written, not added); dab may be ab. */
void smoe_swiglu_backward(smoe_real *dab, const smoe_real *dh, const smoe_real *ab, size_t n, size_t f);

/** y [n] += x [n]. */
void smoe_add(smoe_real *y, const smoe_real *x, size_t n);

/** y [N, C] += s [N] * x [N, C], row by row; s has stride s_stride. */
void smoe_add_rows_scaled(smoe_real *y, const smoe_real *s, size_t s_stride, const smoe_real *x, size_t n,
                          size_t c);

/** <x, y> over n elements, in interleaved partial sums added in a fixed tree. */
smoe_real smoe_dot(const smoe_real *x, const smoe_real *y, size_t n);

/** Sum of squares in double over n elements, in interleaved partial sums added in a fixed tree. */
double smoe_sum_squares(const smoe_real *x, size_t n);

/** 1 / (1 + exp(-x)), without overflow. */
smoe_real smoe_sigmoid(smoe_real x);

/* ---- softmax.c ---- */

/** p [N, E] = softmax of each row of x [N, E]; p may be x.
 *
 *  -infinity gives exactly 0; a row of nothing but -infinity, or with a NaN, gives NaN.
 */
void smoe_softmax_forward(smoe_real *p, const smoe_real *x, size_t n, size_t e);

/** Cross entropy of each row against its target, and its gradient in place.
 *
 *  loss      out    [N] log-sum-exp - logit of the target, in nats; 0 where target is -1
 *  logits    inout  [N, V]; where gradient: overwritten with scale * (softmax - onehot), 0 where target is -1
 *  target    in     [N] ids, or -1: no target
 *  target_stride    1 for a plain array
 *  scale     in     factor of the gradient (1 / number of targets)
 */
void smoe_cross_entropy(smoe_real *loss, smoe_real *logits, const int32_t *target, size_t target_stride,
                        smoe_real scale, bool gradient, size_t n, size_t v);

/** Cross entropy of each row against a smoothed target, and its gradient in place: the target has the weight
 *  1 - epsilon, every other id epsilon / (V - 1).
 *
 *  loss     out  [N] (1 - epsilon - e) nll + e sum over ids of -log p, e = epsilon / (V - 1); 0 where target is -1
 *  nll      out  [N] -log p of the target, as smoe_cross_entropy gives it; 0 where target is -1
 *  epsilon  in   below 1; 0 gives the bits of smoe_cross_entropy
 *
 *  The rest as in smoe_cross_entropy.
 *  Source: Szegedy et al. 2016, with the weights of fairseq's label_smoothed_cross_entropy (1.0 and later; versions
 *          before divided epsilon by V).
 */
void smoe_cross_entropy_smoothed(smoe_real *loss, smoe_real *nll, smoe_real *logits, const int32_t *target,
                                 size_t target_stride, double epsilon, smoe_real scale, bool gradient,
                                 size_t n, size_t v);

/** Half of the symmetric divergence between two predictions of each row, and its gradients.
 *
 *      loss = 1/2 sum over v of (p - q) (log p - log q),  p = softmax(x), q = softmax(y)
 *
 *  loss    out  [N]; 0 where target is -1
 *  dx, dy  out  [N, V] scale times the gradients; 0 where target is -1; not over x, y
 *  x, y    in   [N, V] logits
 *  target  in   [N]
 *
 *  Errors:  none; p and q that are 0 in floating point count by their logarithms, which are finite.
 *  Source:  Zuo et al. 2021 (THOR), section 3.
 */
void smoe_consistency(smoe_real *loss, smoe_real *dx, smoe_real *dy, const smoe_real *x, const smoe_real *y,
                      const int32_t *target, smoe_real scale, size_t n, size_t v);

/* ---- embedding.c ---- */

/** x [S T, C] = scale * table[token] + position[t]; a token of -1 has a zero row of the table. position NULL:
 *  none. */
void smoe_embedding_forward(smoe_real *x, const int32_t *token, const smoe_real *table,
                            const smoe_real *position, smoe_real scale, size_t s, size_t t, size_t c);

/** dtable [V, C] +=, dposition [T, C] += (NULL: not wanted); rows in token order. A token of -1 adds to dposition
 *  only. */
void smoe_embedding_backward(smoe_real *dtable, smoe_real *dposition, const smoe_real *dx,
                             const int32_t *token, smoe_real scale, size_t s, size_t t, size_t c);

/* ---- rope.c: rotary positions ---- */

/** table [T, D] for smoe_rope_forward: row t has the cosines [D / 2] and then the sines [D / 2] of the angles
 *  t base^(-2 i / D), computed in double.
 *
 *  D must be even. Source: Su et al. 2021; base is 10000 there.
 */
void smoe_rope_table(smoe_real *table, size_t t, size_t d, double base);

/** Rotate the heads of each row by the angles of its position, in place; number i of a head is paired with i + D / 2
 *  (the convention of Llama).
 *
 *  x         inout  [N, H, D], rows ld apart (q and k of a row may be rotated in one call where k follows q)
 *  position  in     [N] rows of the table; a row with -1 stays as it is
 *  table     in     of smoe_rope_table
 *
 *  Adjoint:  smoe_rope_backward
 */
void smoe_rope_forward(smoe_real *x, size_t ld, const int32_t *position, const smoe_real *table, size_t n,
                       size_t h, size_t d);

/** Rotate the gradient dx [N, H, D] by the negative angles, in place. */
void smoe_rope_backward(smoe_real *dx, size_t ld, const int32_t *position, const smoe_real *table, size_t n,
                        size_t h, size_t d);

/* ---- attention.c: attention in blocks; the score matrix is never whole ---- */

/** Sizes, strides and masks of an attention call. Rows are where a layer's products put them: q, k and v are parts
 *  of one buffer (with its stride), or of two, or the keys are those of a cache.
 */
typedef struct smoe_attention {
  size_t sequences;            /**< S */
  size_t queries;              /**< Tq: rows of a sequence in q and out; sequence s begins at row s Tq */
  size_t keys;                 /**< Tk: rows of a sequence in k and v; sequence s begins at row s Tk */
  size_t heads, kv_heads;      /**< H and Hkv, which divides H: query head h uses key head h / (H / Hkv) */
  size_t width;                /**< D, of a head; the heads of a row follow one another */
  size_t q_stride, kv_stride;  /**< reals from row to row of q and dq, and of k, v, dk and dv */
  bool causal;                 /**< query i sees the keys 0 .. offset + i; otherwise all keys */
  const int32_t *query_length; /**< [S] queries of a sequence, the rest is padding; NULL: Tq */
  const int32_t *key_length;   /**< [S] keys of a sequence, the rest is padding and not read; NULL: Tk */
  const int32_t *offset;       /**< [S] position of query 0 among the keys; NULL: 0. Used where causal */
} smoe_attention;

/** Reals of scratch for either direction: a fixed amount per thread, for as many threads as are set now
 *  (so call smoe_threads_set before planning memory). Depends on keys and width alone.
 */
size_t smoe_attend_scratch(const smoe_attention *a);

/** out = softmax(q k^T / sqrt(D), masked) v, for every sequence and query head.
 *
 *  out  out  [S Tq, H D], contiguous; 0 for padding and where there is no key
 *  lse  out  [S, H, Tq] log-sum-exp of each score row: all that backward needs beside out
 *  q    in   [S Tq] rows of [H, D];  k, v in [S Tk] rows of [Hkv, D]
 *
 *  Order:    a row of out follows from its query and the keys that it sees: the same bits however many queries the
 *            call has, with or without padding behind it.
 *  Adjoint:  smoe_attend_backward
 */
void smoe_attend_forward(smoe_real *out, smoe_real *lse, const smoe_real *q, const smoe_real *k,
                         const smoe_real *v, smoe_real *scratch, const smoe_attention *a);

/** smoe_attend_forward for queries == 1, which decoding calls for every token.
 *
 *  out      out  [S, H D]
 *  scratch       [S, H, Tk]
 *
 *  Order:   by the sizes alone; agrees with smoe_attend_forward to rounding.
 */
void smoe_attend_row(smoe_real *out, const smoe_real *q, const smoe_real *k, const smoe_real *v,
                     smoe_real *scratch, const smoe_attention *a);

/** Gradients of q, k and v, in rows as those have (written, not added; 0 for padding). What is between the rows
 *  stays.
 *
 *  Order:   dk and dv of a key head are sums over its query heads in their order.
 */
void smoe_attend_backward(smoe_real *dq, smoe_real *dk, smoe_real *dv, const smoe_real *dout,
                          const smoe_real *q, const smoe_real *k, const smoe_real *v, const smoe_real *out,
                          const smoe_real *lse, smoe_real *scratch, const smoe_attention *a);

/** smoe_attend_scratch for the functions below: causal self-attention of whole sequences on one buffer. They are
 *  smoe_attend_* with H == Hkv, with the same bits.
 */
size_t smoe_attention_scratch(size_t t, size_t d);

/** out = softmax(q k^T / sqrt(D), causal) v, for every sequence and head.
 *
 *  out  out  [S T, C]
 *  lse  out  [S, H, T] log-sum-exp of each score row: all that backward needs beside out
 *  qkv  in   [S T, 3 C]: q, k, v of a token stand one after another, each [H, D]
 */
void smoe_attention_forward(smoe_real *out, smoe_real *lse, const smoe_real *qkv, smoe_real *scratch,
                            size_t s, size_t t, size_t h, size_t d);

/** One row of smoe_attention_forward, for one sequence: the query at place `last` against all keys up to it.
 *
 *  out      out  [C]
 *  qkv      in   [last + 1, 3 C]
 *  scratch       [H, last + 1]
 *
 *  Order:   by the sizes alone; agrees with smoe_attention_forward to rounding.
 */
void smoe_attention_row(smoe_real *out, const smoe_real *qkv, smoe_real *scratch, size_t last, size_t h,
                        size_t d);

/** dqkv [S T, 3 C] = (written, not added). */
void smoe_attention_backward(smoe_real *dqkv, const smoe_real *dout, const smoe_real *qkv,
                             const smoe_real *out, const smoe_real *lse, smoe_real *scratch, size_t s,
                             size_t t, size_t h, size_t d);

/* ---- dropout.c ---- */

/** Which dropout of a model, and how much. */
typedef struct smoe_dropout {
  double share;    /**< p, of the elements that become 0; taken in multiples of 2^-16 */
  uint64_t seed;   /**< run.seed */
  uint32_t update; /**< zero-based */
  uint32_t site;   /**< number of this dropout in the model, below 2^24 */
} smoe_dropout;

/** x [N, C] = x / (1 - p), or 0 with probability p, in place. The same call on the gradient is its backward.
 *
 *  token  in  [N] global index of each row's token in the update's batch, not negative and below 2^44; NULL: row i has
 *             first + i
 *
 *  The mask is kept nowhere: element j of a token's row depends on (seed, update, site, token, j) alone. With p
 *  rounded to P / 65536, element j is 0 where number k = j % 128 / 16 of 16 bits is below P in the block of
 *  index token 2^20 + (j / 128) 16 + j % 16 of smoe_random_lanes (SMOE_RANDOM_DROPOUT, stream site): bits 16 (k / 4)
 *  and up of word k % 4. The factor 1 / (1 - p) has the rounded p, so that the expectation stays.
 *
 *  C is at most 2^23. A share of 0 changes nothing.
 *  Source: Srivastava et al. 2014.
 */
void smoe_dropout_apply(smoe_real *x, const int64_t *token, int64_t first, size_t n, size_t c,
                        const smoe_dropout *dropout);

/* ---- adam.c ---- */

/** Constants of one optimizer step. */
typedef struct smoe_adam {
  double lr; /**< of this update */
  double beta1, beta2, epsilon;
  double decay;       /**< decoupled: w -= lr decay w */
  double correction1; /**< 1 - beta1^t, t = steps done including this one */
  double correction2;
  double scale; /**< factor of the gradient: the clip factor */
} smoe_adam;

/** One Adam step on n elements: m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
 *  w -= lr (m / c1) / (sqrt(v / c2) + epsilon) + lr decay w;  g = scale * gradient.
 */
void smoe_adam_step(smoe_real *w, smoe_real *m, smoe_real *v, const smoe_real *gradient, size_t n,
                    const smoe_adam *adam);

/** One step of gradient descent on n elements: w -= lr (scale gradient + decay w). */
void smoe_sgd_step(smoe_real *w, const smoe_real *gradient, size_t n, double lr, double decay, double scale);

#endif
