#include "stablemoe/kernel.h"

#include <omp.h>

#include "vector.h"

/* Attention goes through the queries in blocks. A block meets the keys 0 .. its last query and no others,
 * which skips most of the masked half, and its scores fit in the second-level cache. */
enum {
  QUERY_BLOCK = 64,
  SCORE_PAD = 16 /* rows a power of two apart would share few cache sets */
};

/* Queries first .. first + rows - 1 against keys 0 .. keys - 1. */
typedef struct block {
  size_t first, rows, keys;
  size_t ld; /* of the scores */
} block;

static size_t score_stride(size_t t) {
  return (t + 15) / 16 * 16 + SCORE_PAD;
}

static size_t score_reals(size_t t) {
  return (t < QUERY_BLOCK ? t : QUERY_BLOCK) * score_stride(t);
}

/* Two blocks of scores; q, k, v of a head, dout, and the gradients of q, k, v. */
static size_t scratch_of_thread(size_t t, size_t d) {
  return 2 * score_reals(t) + 7 * t * d;
}

size_t smoe_attention_scratch(size_t t, size_t d) {
  return (size_t)omp_get_max_threads() * scratch_of_thread(t, d);
}

static block block_at(size_t first, size_t t) {
  const size_t rows = t - first < QUERY_BLOCK ? t - first : QUERY_BLOCK;
  return (block){.first = first, .rows = rows, .keys = first + rows, .ld = score_stride(t)};
}

/* to [rows, D] = from [rows, D]. A head's rows lie C or 3 C apart in the layer's arrays, where a product
 * would meet them again and again with no help of the prefetcher. */
static void copy_rows(smoe_real *restrict to, size_t ld_to, const smoe_real *restrict from, size_t ld_from,
                      size_t rows, size_t d) {
  for (size_t i = 0; i < rows; i++) memcpy(to + i * ld_to, from + i * ld_from, d * sizeof *to);
}

/* score [rows, keys] = q k^T / sqrt(D). */
static void block_scores(smoe_real *score, const smoe_real *q, const smoe_real *k, const block *b, size_t d) {
  const smoe_real scale = 1 / sqrt_real((smoe_real)d);
  smoe_gemm(false, true, b->rows, b->keys, d, scale, q + b->first * d, d, k, d, 0, score, b->ld);
}

/* score = exp(score - row maximum), 0 behind the query; sum [rows], lse [rows]. */
static void block_softmax(smoe_real *score, smoe_real *sum, smoe_real *lse, const block *b) {
  for (size_t i = 0; i < b->rows; i++) {
    smoe_real *row = score + i * b->ld;
    const size_t seen = b->first + i + 1;
    const smoe_real max = row_max(row, seen);
    sum[i] = row_exp(row, row, max, seen);
    lse[i] = max + (smoe_real)log(sum[i]);
    memset(row + seen, 0, (b->keys - seen) * sizeof *row);
  }
}

/* out and qkv point to the head; their rows lie width and 3 width apart. */
static void head_forward(smoe_real *out, smoe_real *lse, const smoe_real *qkv, smoe_real *scratch, size_t t,
                         size_t d, size_t width) {
  smoe_real *q = scratch, *k = q + t * d, *v = k + t * d, *score = v + t * d;
  for (size_t part = 0; part < 3; part++) copy_rows(q + part * t * d, d, qkv + part * width, 3 * width, t, d);
  for (size_t first = 0; first < t; first += QUERY_BLOCK) {
    const block b = block_at(first, t);
    smoe_real *out_block = out + first * width;
    smoe_real sum[QUERY_BLOCK];
    block_scores(score, q, k, &b, d);
    block_softmax(score, sum, lse + first, &b);
    smoe_gemm(false, false, b.rows, d, b.keys, 1, score, b.ld, v, d, 0, out_block, width);
    /* Divided here rather than in the scores: D numbers per row instead of up to T. */
    for (size_t i = 0; i < b.rows; i++) {
      const smoe_real factor = 1 / sum[i];
      for (size_t j = 0; j < d; j++) out_block[i * width + j] *= factor;
    }
  }
}

void smoe_attention_forward(smoe_real *out, smoe_real *lse, const smoe_real *qkv, smoe_real *scratch,
                            size_t s, size_t t, size_t h, size_t d) {
  const size_t width = h * d;
#pragma omp parallel for if (s * h > 1)
  for (size_t i = 0; i < s * h; i++) {
    const size_t row = i / h * t, column = i % h * d;
    head_forward(out + row * width + column, lse + i * t, qkv + row * 3 * width + column,
                 scratch + (size_t)omp_get_thread_num() * scratch_of_thread(t, d), t, d, width);
  }
}

static void head_row(smoe_real *restrict out, const smoe_real *restrict qkv, smoe_real *restrict score,
                     size_t last, size_t d, size_t width) {
  const smoe_real scale = 1 / sqrt_real((smoe_real)d);
  const smoe_real *q = qkv + last * 3 * width;
  for (size_t i = 0; i <= last; i++) score[i] = scale * smoe_dot(q, qkv + i * 3 * width + width, d);
  const smoe_real factor = 1 / row_exp(score, score, row_max(score, last + 1), last + 1);
  memset(out, 0, d * sizeof *out);
  for (size_t i = 0; i <= last; i++) {
    const smoe_real *restrict v = qkv + i * 3 * width + 2 * width;
    for (size_t j = 0; j < d; j++) out[j] += score[i] * v[j];
  }
  for (size_t j = 0; j < d; j++) out[j] *= factor;
}

void smoe_attention_row(smoe_real *out, const smoe_real *qkv, smoe_real *scratch, size_t last, size_t h,
                        size_t d) {
  const size_t width = h * d;
#pragma omp parallel for if ((last + 1) * width > PARALLEL_MIN)
  for (size_t i = 0; i < h; i++) head_row(out + i * d, qkv + i * d, scratch + i * (last + 1), last, d, width);
}

/* p = exp(p - lse), the probabilities again;  dp = p (dp - delta) / sqrt(D), the scores' gradient. */
static void row_backward(smoe_real *restrict p, smoe_real *restrict dp, smoe_real lse, smoe_real delta,
                         smoe_real scale, size_t n) {
  for (size_t j = 0; j < n; j++) {
    const smoe_real probability = exp_real(p[j] - lse);
    p[j] = probability;
    dp[j] = probability * (dp[j] - delta) * scale;
  }
}

/* The scores p and the gradient dp of the probabilities turn into probabilities and the scores' gradient;
 * dout and out are the block's rows. */
static void block_backward(smoe_real *p, smoe_real *dp, const smoe_real *lse, const smoe_real *dout,
                           const smoe_real *out, const block *b, size_t d, size_t width) {
  const smoe_real scale = 1 / sqrt_real((smoe_real)d);
  for (size_t i = 0; i < b->rows; i++) {
    const size_t seen = b->first + i + 1, hidden = b->keys - seen;
    smoe_real *p_row = p + i * b->ld, *dp_row = dp + i * b->ld;
    /* <dp, p> over the keys is <dout, out> over D. */
    const smoe_real delta = smoe_dot(dout + i * d, out + i * width, d);
    row_backward(p_row, dp_row, lse[i], delta, scale, seen);
    memset(p_row + seen, 0, hidden * sizeof *p_row);
    memset(dp_row + seen, 0, hidden * sizeof *dp_row);
  }
}

static void head_backward(smoe_real *dqkv, const smoe_real *dout_head, const smoe_real *qkv,
                          const smoe_real *out, const smoe_real *lse, smoe_real *scratch, size_t t, size_t d,
                          size_t width) {
  smoe_real *q = scratch, *k = q + t * d, *v = k + t * d, *dout = v + t * d;
  smoe_real *dq = dout + t * d, *dk = dq + t * d, *dv = dk + t * d;
  smoe_real *p = dv + t * d, *dp = p + score_reals(t);
  for (size_t part = 0; part < 3; part++) copy_rows(q + part * t * d, d, qkv + part * width, 3 * width, t, d);
  copy_rows(dout, d, dout_head, width, t, d);
  /* From the last block to the first: the last one sees every key, so it writes dk and dv, the others add. */
  const size_t n_blocks = (t + QUERY_BLOCK - 1) / QUERY_BLOCK;
  for (size_t n = n_blocks; n-- > 0;) {
    const block b = block_at(n * QUERY_BLOCK, t);
    const smoe_real beta = n + 1 == n_blocks ? 0 : 1;
    const smoe_real *q_block = q + b.first * d, *dout_block = dout + b.first * d;
    block_scores(p, q, k, &b, d);
    smoe_gemm(false, true, b.rows, b.keys, d, 1, dout_block, d, v, d, 0, dp, b.ld);
    block_backward(p, dp, lse + b.first, dout_block, out + b.first * width, &b, d, width);
    smoe_gemm(false, false, b.rows, d, b.keys, 1, dp, b.ld, k, d, 0, dq + b.first * d, d);
    smoe_gemm(true, false, b.keys, d, b.rows, 1, dp, b.ld, q_block, d, beta, dk, d);
    smoe_gemm(true, false, b.keys, d, b.rows, 1, p, b.ld, dout_block, d, beta, dv, d);
  }
  for (size_t part = 0; part < 3; part++)
    copy_rows(dqkv + part * width, 3 * width, dq + part * t * d, d, t, d);
}

void smoe_attention_backward(smoe_real *dqkv, const smoe_real *dout, const smoe_real *qkv,
                             const smoe_real *out, const smoe_real *lse, smoe_real *scratch, size_t s,
                             size_t t, size_t h, size_t d) {
  const size_t width = h * d;
#pragma omp parallel for if (s * h > 1)
  for (size_t i = 0; i < s * h; i++) {
    const size_t row = i / h * t, column = i % h * d, place = row * width + column;
    head_backward(dqkv + row * 3 * width + column, dout + place, qkv + row * 3 * width + column, out + place,
                  lse + i * t, scratch + (size_t)omp_get_thread_num() * scratch_of_thread(t, d), t, d, width);
  }
}
