/** Attention of every form (cross, grouped, padded, offset) against the whole score matrix in double. */
#include "near.h"
#include "stablemoe/kernel.h"

enum { GAP = 3, LONGEST = 4 };

/* A call with its arrays. Where fused, q, k and v are parts of the rows of one buffer. */
typedef struct problem {
  smoe_attention a;
  bool fused;
  size_t n_q, n_kv, n_out, n_lse, n_scratch;
  smoe_real *q, *k, *v, *dq, *dk, *dv; /* q and k begin their buffers; v is behind k */
  smoe_real *dout, *out, *lse, *scratch;
  double *want_out, *want_lse, *want_dq, *want_dk, *want_dv, *p;
} problem;

static size_t queries_of(const smoe_attention *a, size_t s) {
  return a->query_length ? (size_t)a->query_length[s] : a->queries;
}

static size_t seen_by(const smoe_attention *a, size_t s, size_t i) {
  const size_t keys = a->key_length ? (size_t)a->key_length[s] : a->keys;
  const size_t last = (a->offset ? (size_t)a->offset[s] : 0) + i + 1;
  return a->causal && last < keys ? last : keys;
}

static void reference_query(problem *r, size_t s, size_t h, size_t i) {
  const smoe_attention *a = &r->a;
  const size_t d = a->width, kv = h / (a->heads / a->kv_heads), n = seen_by(a, s, i);
  const size_t q = (s * a->queries + i) * a->q_stride + h * d, k = s * a->keys * a->kv_stride + kv * d;
  const size_t out = ((s * a->queries + i) * a->heads + h) * d;
  double sum = 0, delta = 0;
  if (n == 0) return;
  for (size_t j = 0; j < n; j++) {
    double score = 0;
    for (size_t x = 0; x < d; x++) score += (double)r->q[q + x] * r->k[k + j * a->kv_stride + x];
    sum += r->p[j] = exp(score / sqrt((double)d));
  }
  r->want_lse[(s * a->heads + h) * a->queries + i] = log(sum);
  for (size_t j = 0; j < n; j++)
    for (size_t x = 0; x < d; x++) r->want_out[out + x] += r->p[j] / sum * r->v[k + j * a->kv_stride + x];
  for (size_t x = 0; x < d; x++) delta += r->dout[out + x] * r->want_out[out + x];
  for (size_t j = 0; j < n; j++) {
    const size_t at = k + j * a->kv_stride;
    double dp = 0;
    for (size_t x = 0; x < d; x++) dp += (double)r->dout[out + x] * r->v[at + x];
    const double dscore = r->p[j] / sum * (dp - delta) / sqrt((double)d);
    for (size_t x = 0; x < d; x++) {
      r->want_dq[q + x] += dscore * r->k[at + x];
      r->want_dk[at + x] += dscore * r->q[q + x];
      r->want_dv[at + x] += r->p[j] / sum * r->dout[out + x];
    }
  }
}

static void fill(smoe_real *x, size_t n, smoe_real value) {
  for (size_t i = 0; i < n; i++) x[i] = value;
}

/* Padding is NaN: nobody may read it. */
static void spoil_padding(problem *r) {
  const smoe_attention *a = &r->a;
  for (size_t s = 0; s < a->sequences; s++) {
    const size_t keys = a->key_length ? (size_t)a->key_length[s] : a->keys, width = a->kv_heads * a->width;
    for (size_t i = queries_of(a, s); i < a->queries; i++) {
      fill(r->q + (s * a->queries + i) * a->q_stride, a->heads * a->width, NAN);
      fill(r->dout + (s * a->queries + i) * a->heads * a->width, a->heads * a->width, NAN);
    }
    for (size_t i = keys; i < a->keys; i++) {
      fill(r->k + (s * a->keys + i) * a->kv_stride, width, NAN);
      fill(r->v + (s * a->keys + i) * a->kv_stride, width, NAN);
    }
  }
}

static void problem_create(problem *r, smoe_attention a, bool fused) {
  const size_t q_width = a.heads * a.width, kv_width = a.kv_heads * a.width;
  a.q_stride = fused ? q_width + 2 * kv_width : q_width + GAP;
  a.kv_stride = fused ? a.q_stride : 2 * kv_width + GAP;
  *r = (problem){.a = a, .fused = fused, .n_scratch = smoe_attend_scratch(&a)};
  r->n_q = a.sequences * a.queries * a.q_stride, r->n_kv = a.sequences * a.keys * a.kv_stride;
  r->n_out = a.sequences * a.queries * q_width, r->n_lse = a.sequences * a.heads * a.queries;
  r->q = values_uniform(r->n_q, 1), r->dq = values_zero(r->n_q);
  for (size_t i = 0; i < r->n_q; i++) r->q[i] *= 3;
  r->k = fused ? r->q + q_width : values_uniform(r->n_kv, 2);
  r->dk = fused ? r->dq + q_width : values_zero(r->n_kv);
  r->v = r->k + kv_width, r->dv = r->dk + kv_width;
  r->dout = values_uniform(r->n_out, 3), r->out = values_zero(r->n_out), r->lse = values_zero(r->n_lse);
  r->scratch = values_zero(r->n_scratch + 1);
  r->want_out = near_doubles(r->n_out), r->want_lse = near_doubles(r->n_lse), r->p = near_doubles(a.keys);
  r->want_dq = near_doubles(r->n_q);
  r->want_dk = fused ? r->want_dq + q_width : near_doubles(r->n_kv);
  r->want_dv = r->want_dk + kv_width;
  spoil_padding(r);
}

static void problem_destroy(problem *r) {
  if (!r->fused) smoe_free(r->k), smoe_free(r->dk), smoe_free(r->want_dk);
  smoe_free(r->q), smoe_free(r->dq), smoe_free(r->dout), smoe_free(r->out), smoe_free(r->lse);
  smoe_free(r->scratch), smoe_free(r->want_out), smoe_free(r->want_lse), smoe_free(r->want_dq);
  smoe_free(r->p);
}

static void run(problem *r) {
  fill(r->scratch, r->n_scratch, NAN);
  fill(r->out, r->n_out, NAN);
  fill(r->lse, r->n_lse, NAN);
  r->scratch[r->n_scratch] = 42;
  smoe_attend_forward(r->out, r->lse, r->q, r->k, r->v, r->scratch, &r->a);
  smoe_attend_backward(r->dq, r->dk, r->dv, r->dout, r->q, r->k, r->v, r->out, r->lse, r->scratch, &r->a);
  CHECK(r->scratch[r->n_scratch] == 42, "wrote beyond the scratch");
}

/* What is between the rows of the gradients has to stay: the reference has 7 there, too. */
static void mark_gaps(problem *r) {
  const smoe_attention *a = &r->a;
  const size_t q_width = a->heads * a->width, kv_width = 2 * a->kv_heads * a->width;
  fill(r->dq, r->n_q, NAN);
  if (r->fused) return;
  fill(r->dk, r->n_kv, NAN);
  for (size_t i = 0; i < a->sequences * a->queries; i++)
    for (size_t x = q_width; x < a->q_stride; x++)
      r->dq[i * a->q_stride + x] = 7, r->want_dq[i * a->q_stride + x] = 7;
  for (size_t i = 0; i < a->sequences * a->keys; i++)
    for (size_t x = kv_width; x < a->kv_stride; x++)
      r->dk[i * a->kv_stride + x] = 7, r->want_dk[i * a->kv_stride + x] = 7;
}

static void attend(smoe_attention a, bool fused) {
  problem r;
  problem_create(&r, a, fused);
  for (size_t s = 0; s < a.sequences; s++)
    for (size_t h = 0; h < a.heads; h++)
      for (size_t i = 0; i < queries_of(&a, s); i++) reference_query(&r, s, h, i);
  mark_gaps(&r);
  run(&r);
  near_check("attend out", r.out, r.want_out, r.n_out, 1e-5, 1);
  near_check("attend lse", r.lse, r.want_lse, r.n_lse, 1e-5, 1);
  near_check("attend dq", r.dq, r.want_dq, r.n_q, 1e-5, 10);
  if (!fused) near_check("attend dk and dv", r.dk, r.want_dk, r.n_kv, 1e-5, 10);
  if (a.queries == 1) {
    smoe_real *row = values_zero(a.sequences * a.heads * a.keys + 1);
    row[a.sequences * a.heads * a.keys] = 42;
    fill(r.out, r.n_out, NAN);
    smoe_attend_row(r.out, r.q, r.k, r.v, row, &r.a);
    near_check("attend row", r.out, r.want_out, r.n_out, 1e-5, 1);
    CHECK(row[a.sequences * a.heads * a.keys] == 42, "wrote beyond the scratch of a row");
    smoe_free(row);
  }
  problem_destroy(&r);
}

static const int32_t query_lengths[LONGEST] = {9, 0, 5, 1}, key_lengths[LONGEST] = {20, 7, 0, 11},
                     offsets[LONGEST] = {0, 3, 17, 8};

static smoe_attention sizes(size_t s, size_t tq, size_t tk, size_t h, size_t hkv, size_t d) {
  return (smoe_attention){.sequences = s, .queries = tq, .keys = tk, .heads = h, .kv_heads = hkv, .width = d};
}

/* All masks. */
static void masks(size_t s, size_t tq, size_t tk, size_t h, size_t hkv, size_t d) {
  int32_t queries[LONGEST];
  for (size_t i = 0; i < LONGEST; i++)
    queries[i] = query_lengths[i] < (int32_t)tq ? query_lengths[i] : (int32_t)tq;
  for (int mask = 0; mask < 16; mask++) {
    smoe_attention a = sizes(s, tq, tk, h, hkv, d);
    a.causal = mask & 1;
    if (mask & 2) a.query_length = queries;
    if (mask & 4) a.key_length = key_lengths;
    if (mask & 8) a.offset = offsets;
    attend(a, false);
    if (tq == tk) attend(a, true);
  }
}

/* Same as the functions of one buffer, and queries one by one are the same as all in one call. */
static void same_bits(void) {
  enum { S = 2, T = 45, H = 3, D = 12, C = H * D, FIRST = 19 };
  problem r;
  smoe_attention a = sizes(S, T, T, H, H, D);
  a.causal = true;
  problem_create(&r, a, true);
  run(&r);
  smoe_real *out = values_zero(r.n_out), *lse = values_zero(r.n_lse), *dqkv = values_zero(r.n_q);
  smoe_attention_forward(out, lse, r.q, r.scratch, S, T, H, D);
  smoe_attention_backward(dqkv, r.dout, r.q, out, lse, r.scratch, S, T, H, D);
  near_same_bits("attention forward", out, r.out, r.n_out);
  near_same_bits("attention backward", dqkv, r.dq, r.n_q);

  for (int32_t first = 0; first < T; first += first < FIRST ? FIRST : 1) { /* 0 .. 18, and then one by one */
    const int32_t rows = first < FIRST ? FIRST : 1, seen = first + rows;
    smoe_attention part = sizes(1, (size_t)rows, (size_t)seen, H, H, D);
    part.causal = true, part.q_stride = part.kv_stride = 3 * C, part.offset = &first;
    smoe_attend_forward(out, lse, r.q + first * 3 * C, r.k, r.v, r.scratch, &part);
    near_same_bits("a part of the queries", out, r.out + first * C, (size_t)rows * C);
  }

  /* The second sequence with padding behind it, next to an empty one. */
  enum { PADDED = 61 };
  const int32_t lengths[] = {T, 0};
  smoe_attention padded = sizes(2, PADDED, PADDED, H, H, D);
  padded.causal = true, padded.q_stride = padded.kv_stride = 3 * C;
  padded.query_length = padded.key_length = lengths;
  smoe_real *qkv = values_uniform(2 * PADDED * 3 * C, 9), *more = values_zero(2 * PADDED * C);
  smoe_real *more_lse = values_zero(2 * PADDED * H), *scratch = values_zero(smoe_attend_scratch(&padded));
  memcpy(qkv, r.q + T * 3 * C, T * 3 * C * sizeof *qkv);
  smoe_attend_forward(more, more_lse, qkv, qkv + C, qkv + 2 * C, scratch, &padded);
  near_same_bits("a padded sequence", more, r.out + T * C, T * C);
  smoe_free(out), smoe_free(lse), smoe_free(dqkv), smoe_free(qkv), smoe_free(more), smoe_free(more_lse);
  smoe_free(scratch);
  problem_destroy(&r);
}

int main(void) {
  masks(0, 3, 3, 2, 1, 4);
  masks(4, 9, 20, 4, 2, 8);
  masks(3, 20, 20, 2, 2, 5);
  masks(4, 1, 33, 6, 1, 16);  /* one row: decoding */
  masks(2, 70, 40, 2, 1, 32); /* more queries than a block, and than keys */
  masks(2, 40, 100, 3, 3, 20);
  same_bits();
  return test_verdict("attend");
}
