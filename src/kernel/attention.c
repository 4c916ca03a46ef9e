#include "stablemoe/kernel.h"

#include <omp.h>

#include "stablemoe/status.h"
#include "tile.h"
#include "vector.h"

/* Attention goes through the queries in groups of TILE_ROWS: a causal group meets the keys 0 .. its last query and
 * no others, which skips nearly all of the masked half, and its scores stay in the first cache. Backward sums
 * the keys' gradients over a block of groups before they go back to memory. Query heads that share a key head are
 * computed one after another by one thread, from one copy of the keys. */
enum {
  GROUP = TILE_ROWS,
  BLOCK = 4 * GROUP,
  CACHE_LINE = 64,
  SCORE_PAD = 16 /* rows a power of two apart would share few cache sets */
};

/* Sizes of one sequence's heads. */
typedef struct shape {
  size_t queries, keys;         /* that are not padding; keys that no query sees are left out */
  size_t all_queries, all_keys; /* with padding */
  size_t offset;                /* of the first query among the keys; SIZE_MAX / 2: not causal */
  size_t shared;                /* query heads of a key head */
  size_t d;
  size_t q_stride, kv_stride, width; /* reals from row to row of q, of k and v, of out */
  size_t ld; /* rows of a head's copies: whole vectors; what stands behind D reaches no result */
  size_t ld_score;
  smoe_real scale; /* 1 / sqrt(D) */
} shape;

static size_t least(size_t a, size_t b) {
  return a < b ? a : b;
}

/* The C library's logarithm in the precision of smoe_real: in double it takes three times as long. */
static smoe_real log_real(smoe_real x) {
  return sizeof x == sizeof(float) ? (smoe_real)logf((float)x) : (smoe_real)log(x);
}

/* Keys that query i sees: the first ones. */
static size_t seen_by(const shape *z, size_t i) {
  return least(z->keys, z->offset + i + 1);
}

/* Sizes that all sequences have. */
static shape shape_of_call(const smoe_attention *a) {
  return (shape){.all_queries = a->queries,
                 .all_keys = a->keys,
                 .shared = a->kv_heads ? a->heads / a->kv_heads : 0,
                 .d = a->width,
                 .q_stride = a->q_stride,
                 .kv_stride = a->kv_stride,
                 .width = a->heads * a->width,
                 .ld = round_up(a->width, TILE_VECTOR),
                 .ld_score = round_up(a->keys, PARTIALS) + SCORE_PAD,
                 .scale = 1 / sqrt_real((smoe_real)a->width)};
}

static shape shape_of(const smoe_attention *a, size_t s) {
  shape z = shape_of_call(a);
  SMOE_ASSERT(!a->query_length || (a->query_length[s] >= 0 && (size_t)a->query_length[s] <= a->queries));
  SMOE_ASSERT(!a->key_length || (a->key_length[s] >= 0 && (size_t)a->key_length[s] <= a->keys));
  SMOE_ASSERT(!a->offset || a->offset[s] >= 0);
  z.queries = a->query_length ? (size_t)a->query_length[s] : a->queries;
  z.keys = a->key_length ? (size_t)a->key_length[s] : a->keys;
  z.offset = a->offset ? (size_t)a->offset[s] : 0;
  if (!a->causal) z.offset = SIZE_MAX / 2;
  if (z.queries > 0) z.keys = seen_by(&z, z.queries - 1);
  if (z.keys == 0) z.queries = 0;
  if (z.queries == 0) z.keys = 0;
  return z;
}

/* Reals of a transposed head, of a head's copy, and of a block's copy. */
static size_t panel_reals(const shape *z) {
  return round_up(z->all_keys, TILE_COLUMNS) * z->d;
}

static size_t head_reals(const shape *z) {
  return round_up(z->all_keys, GROUP) * z->ld;
}

static size_t block_reals(const shape *z) {
  return BLOCK * z->ld;
}

/* What backward needs, which is more: k and v transposed; k, dk, dv; a block of q, dout and dq; two blocks of
 * scores. */
static size_t scratch_of_thread(const shape *z) {
  return 2 * panel_reals(z) + 3 * head_reals(z) + 3 * block_reals(z) + 2 * BLOCK * z->ld_score;
}

size_t smoe_attend_scratch(const smoe_attention *a) {
  const shape z = shape_of_call(a);
  return (size_t)omp_get_max_threads() * scratch_of_thread(&z);
}

/* to [rows, D] = scale from [rows, D]. A head's rows lie far apart in the layer's arrays, where products
 * would meet them again and again with no help of the prefetcher; hence copies. */
static void copy_rows(smoe_real *restrict to, size_t ld_to, const smoe_real *restrict from, size_t ld_from,
                      smoe_real scale, size_t rows, size_t d) {
  for (size_t i = 0; i < rows; i++)
    for (size_t x = 0; x < d; x++) to[i * ld_to + x] = scale * from[i * ld_from + x];
}

/* Rows first .. last - 1 of a head become zero. */
static void zero_rows(smoe_real *x, size_t ld, size_t first, size_t last, size_t d) {
  for (size_t i = first; i < last; i++) memset(x + i * ld, 0, d * sizeof *x);
}

/* Ask for rows of the layer's arrays, to read or to write, while there is arithmetic to wait behind: short
 * pieces so far apart are beyond the processor's own foresight, and waiting for them took a tenth of the time.
 * Inlined by force, as gcc takes a function that only prefetches for one without effect, and drops its calls. */
static inline __attribute__((always_inline)) void fetch_rows(const smoe_real *x, size_t ld, size_t rows,
                                                             const shape *z, bool write) {
  for (size_t i = 0; i < rows; i++)
    for (size_t j = 0; j < z->d; j += CACHE_LINE / sizeof *x) {
      if (write)
        __builtin_prefetch(x + i * ld + j, 1, 2);
      else
        __builtin_prefetch(x + i * ld + j, 0, 2);
    }
}

/* The arrays of one query head, from its first number on. */
typedef struct head {
  const smoe_real *q, *k, *v, *dout, *out;
  smoe_real *write_out, *lse; /* of the forward pass */
  const smoe_real *read_lse;
  smoe_real *dq, *dk, *dv;
} head;

/* The arrays of a call; the rest of the members is NULL. */
static head head_at(const head *call, const smoe_attention *a, size_t i) {
  /* Head i of S H: its sequence, its place there, and the key head. */
  const size_t s = i / a->heads, h = i % a->heads, kv = h / (a->heads / a->kv_heads);
  const size_t row_q = s * a->queries, row_k = s * a->keys;
  const size_t q = row_q * a->q_stride + h * a->width, k = row_k * a->kv_stride + kv * a->width;
  const size_t out = row_q * a->heads * a->width + h * a->width, lse = i * a->queries;
  head x = {.q = call->q + q, .k = call->k + k, .v = call->v + k};
  if (call->write_out) x.write_out = call->write_out + out, x.lse = call->lse + lse;
  if (!call->dout) return x;
  x.dout = call->dout + out, x.out = call->out + out, x.read_lse = call->read_lse + lse;
  x.dq = call->dq + q, x.dk = call->dk + k, x.dv = call->dv + k;
  return x;
}

/* Rows of k and v that are fetched together with a group of queries, so that all come in time for the next head. */
static size_t keys_of_group(const shape *z, size_t first, size_t *rows) {
  const size_t groups = (z->queries + GROUP - 1) / GROUP, each = (z->all_keys + groups - 1) / groups;
  const size_t at = least(first / GROUP * each, z->all_keys);
  *rows = least(each, z->all_keys - at);
  return at;
}

/* score = exp(score - row maximum), 0 from behind what the query sees to what the group sees; sum [rows], lse [rows]. */
static void group_softmax(smoe_real *score, smoe_real *sum, smoe_real *lse, size_t first, size_t rows,
                          const shape *z) {
  const size_t last = seen_by(z, first + rows - 1);
  for (size_t i = 0; i < rows; i++) {
    smoe_real *row = score + i * z->ld_score;
    /* Filled up to whole vectors: a remainder of single numbers would take longer than the rest. */
    const size_t seen = seen_by(z, first + i), end = round_up(seen, PARTIALS);
    for (size_t j = seen; j < end; j++) row[j] = -(smoe_real)INFINITY;
    const smoe_real max = row_max(row, end);
    sum[i] = row_exp(row, row, max, end);
    lse[i] = max + log_real(sum[i]);
    for (size_t j = end; j < last; j++) row[j] = 0;
  }
}

static void head_forward(const head *x, const head *next, smoe_real *keys, const smoe_real *v,
                         smoe_real *scratch, const shape *z) {
  const size_t width = z->width;
  smoe_real *q = scratch, *sums = q + GROUP * z->ld, *score = sums + GROUP * z->ld;
  const bool other_keys = next->k != x->k;
  for (size_t first = 0; first < z->queries; first += GROUP) {
    const size_t rows = least(GROUP, z->queries - first), seen = seen_by(z, first + rows - 1);
    smoe_real sum[GROUP];
    fetch_rows(next->q + first * z->q_stride, z->q_stride, rows, z, false);
    if (other_keys) {
      size_t n;
      const size_t at = keys_of_group(z, first, &n) * z->kv_stride;
      fetch_rows(next->k + at, z->kv_stride, n, z, false);
      fetch_rows(next->v + at, z->kv_stride, n, z, false);
    }
    fetch_rows(x->write_out + first * width, width, rows, z, true);
    copy_rows(q, z->ld, x->q + first * z->q_stride, z->q_stride, z->scale, rows, z->d);
    smoe_tile_rows(score, z->ld_score, q, z->ld, keys, TILE_COLUMNS, z->d * TILE_COLUMNS,
                   round_up(seen, TILE_VECTOR), z->d);
    group_softmax(score, sum, x->lse + first, first, rows, z);
    smoe_tile_rows(sums, z->ld, score, z->ld_score, v, z->ld, TILE_COLUMNS, z->ld, seen);
    /* Divided here rather than in the scores: D numbers per row instead of up to T. */
    for (size_t i = 0; i < rows; i++)
      copy_rows(x->write_out + (first + i) * width, width, sums + i * z->ld, z->ld, 1 / sum[i], 1, z->d);
  }
  zero_rows(x->write_out, width, z->queries, z->all_queries, z->d);
  for (size_t i = z->queries; i < z->all_queries; i++) x->lse[i] = 0;
}

/* All query heads that share a key head: `first` is the first of them, counted over sequences. */
static void heads_forward(const head *call, const smoe_attention *a, size_t first, smoe_real *scratch) {
  const shape z = shape_of(a, first / a->heads);
  smoe_real *keys = scratch, *v = keys + panel_reals(&z);
  head x = head_at(call, a, first);
  smoe_tile_pack(keys, x.k, z.kv_stride, z.keys, z.d);
  copy_rows(v, z.ld, x.v, z.kv_stride, 1, z.keys, z.d);
  for (size_t i = first; i < first + z.shared; i++) {
    const head next = i + 1 < a->sequences * a->heads ? head_at(call, a, i + 1) : x;
    head_forward(&x, &next, keys, v, v + head_reals(&z), &z);
    x = next;
  }
}

void smoe_attend_forward(smoe_real *out, smoe_real *lse, const smoe_real *q, const smoe_real *k,
                         const smoe_real *v, smoe_real *scratch, const smoe_attention *a) {
  SMOE_ASSERT(a->kv_heads == 0 ? a->heads == 0 : a->heads > 0 && a->heads % a->kv_heads == 0);
  const head call = {.q = q, .k = k, .v = v, .write_out = out, .lse = lse};
  const shape z = shape_of_call(a);
  const size_t n = a->sequences * a->kv_heads;
#pragma omp parallel for if (n > 1)
  for (size_t i = 0; i < n; i++)
    heads_forward(&call, a, i * z.shared, scratch + (size_t)omp_get_thread_num() * scratch_of_thread(&z));
}

/* One query against the keys 0 .. n - 1. */
static void head_row(smoe_real *restrict out, const smoe_real *restrict q, const smoe_real *restrict k,
                     const smoe_real *restrict v, smoe_real *restrict score, size_t n, size_t d,
                     size_t stride) {
  const smoe_real scale = 1 / sqrt_real((smoe_real)d);
  memset(out, 0, d * sizeof *out);
  if (n == 0) return;
  for (size_t i = 0; i < n; i++) score[i] = scale * smoe_dot(q, k + i * stride, d);
  const smoe_real factor = 1 / row_exp(score, score, row_max(score, n), n);
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < d; j++) out[j] += score[i] * v[i * stride + j];
  for (size_t j = 0; j < d; j++) out[j] *= factor;
}

void smoe_attend_row(smoe_real *out, const smoe_real *q, const smoe_real *k, const smoe_real *v,
                     smoe_real *scratch, const smoe_attention *a) {
  SMOE_ASSERT(a->queries == 1);
  const head call = {.q = q, .k = k, .v = v};
  const size_t n = a->sequences * a->heads, d = a->width;
#pragma omp parallel for if (n * a->keys * d > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    const shape z = shape_of(a, i / a->heads);
    const head x = head_at(&call, a, i);
    head_row(out + i * d, x.q, x.k, x.v, scratch + i * a->keys, z.keys, d, z.kv_stride);
  }
}

/* What a thread works with in the backward pass. */
typedef struct backward {
  smoe_real *keys, *values;       /* transposed: [D, keys] in panels */
  smoe_real *k, *dk, *dv;         /* [keys, D] */
  smoe_real *q, *dout_block, *dq; /* [BLOCK, D]; q with the scale */
  smoe_real *p, *ds;              /* [BLOCK, keys]: probabilities, the scores' gradient */
} backward;

static backward backward_place(smoe_real *scratch, const shape *z) {
  backward b = {.keys = scratch};
  b.values = b.keys + panel_reals(z);
  b.k = b.values + panel_reals(z);
  b.dk = b.k + head_reals(z);
  b.dv = b.dk + head_reals(z);
  b.q = b.dv + head_reals(z);
  b.dout_block = b.q + block_reals(z);
  b.dq = b.dout_block + block_reals(z);
  b.p = b.dq + block_reals(z);
  b.ds = b.p + BLOCK * z->ld_score;
  return b;
}

/* p = exp(p - lse), the probabilities again;  ds = p (ds - delta), the scores' gradient without its scale. */
static void row_backward(smoe_real *restrict p, smoe_real *restrict ds, smoe_real lse, smoe_real delta,
                         size_t n) {
  for (size_t j = 0; j < n; j++) {
    const smoe_real probability = exp_real(p[j] - lse);
    p[j] = probability;
    ds[j] = probability * (ds[j] - delta);
  }
}

/* p, ds and the layer's dq of the queries at first + at ..; `at` counts from the block's first query. */
static void group_backward(const backward *b, const head *x, size_t first, size_t at, size_t rows,
                           const shape *z) {
  const size_t seen = seen_by(z, first + at + rows - 1), end = round_up(seen, TILE_VECTOR);
  const size_t panel = z->d * TILE_COLUMNS;
  /* A tile of keys that begins with one that is seen ends here at the latest. */
  const size_t clear = round_up(seen + TILE_ROWS, TILE_VECTOR);
  smoe_real *p = b->p + at * z->ld_score, *ds = b->ds + at * z->ld_score;
  const smoe_real *dout = b->dout_block + at * z->ld;
  smoe_tile_rows(p, z->ld_score, b->q + at * z->ld, z->ld, b->keys, TILE_COLUMNS, panel, end, z->d);
  smoe_tile_rows(ds, z->ld_score, dout, z->ld, b->values, TILE_COLUMNS, panel, end, z->d);
  for (size_t i = 0; i < rows; i++) {
    const size_t query = first + at + i;
    smoe_real *p_row = p + i * z->ld_score, *ds_row = ds + i * z->ld_score;
    /* <dp, p> over the keys is <dout, out> over D. */
    const smoe_real delta = smoe_dot(dout + i * z->ld, x->out + query * z->width, z->d);
    row_backward(p_row, ds_row, x->read_lse[query], delta, end);
    for (size_t j = seen_by(z, query); j < clear; j++) p_row[j] = ds_row[j] = 0;
  }
  smoe_tile_rows(b->dq, z->ld, ds, z->ld_score, b->k, z->ld, TILE_COLUMNS, z->ld, seen);
  copy_rows(x->dq + (first + at) * z->q_stride, z->q_stride, b->dq, z->ld, z->scale, rows, z->d);
}

/* The rows of the layer's arrays that the next head reads, and those that this one writes. */
static inline __attribute__((always_inline)) void group_fetch(const head *x, const head *next, size_t first,
                                                              size_t rows, const shape *z) {
  const size_t out = first * z->width, q = first * z->q_stride;
  size_t n;
  const size_t k = keys_of_group(z, first, &n) * z->kv_stride;
  fetch_rows(next->q + q, z->q_stride, rows, z, false);
  fetch_rows(next->dout + out, z->width, rows, z, false);
  fetch_rows(next->out + out, z->width, rows, z, false);
  fetch_rows(x->dq + q, z->q_stride, rows, z, true);
  if (next->k == x->k) return;
  fetch_rows(next->k + k, z->kv_stride, n, z, false);
  fetch_rows(next->v + k, z->kv_stride, n, z, false);
  fetch_rows(x->dk + k, z->kv_stride, n, z, true);
  fetch_rows(x->dv + k, z->kv_stride, n, z, true);
}

/* dq of a head, and its part of dk and dv: written, or added to those of the heads before. */
static void head_backward(const backward *b, const head *x, const head *next, bool add, const shape *z) {
  /* From the last block to the first: the last one sees every key, so it may write dk and dv, the others add. */
  for (size_t n = (z->queries + BLOCK - 1) / BLOCK; n-- > 0; add = true) {
    const size_t first = n * BLOCK, rows = least(BLOCK, z->queries - first);
    copy_rows(b->q, z->ld, x->q + first * z->q_stride, z->q_stride, z->scale, rows, z->d);
    copy_rows(b->dout_block, z->ld, x->dout + first * z->width, z->width, 1, rows, z->d);
    for (size_t at = 0; at < rows; at += GROUP) {
      const size_t n_group = least(GROUP, rows - at);
      group_fetch(x, next, first + at, n_group, z);
      group_backward(b, x, first, at, n_group, z);
    }
    for (size_t j = 0; j < seen_by(z, first + rows - 1); j += TILE_ROWS) {
      const size_t before = z->offset + first; /* keys that all queries of the block see, but for one */
      const size_t at = j > before ? j - before : 0,
                   score = at * z->ld_score + j; /* queries that see key j */
      smoe_tile_columns(b->dk + j * z->ld, z->ld, b->ds + score, z->ld_score, b->q + at * z->ld, z->ld, z->ld,
                        rows - at, add);
      smoe_tile_columns(b->dv + j * z->ld, z->ld, b->p + score, z->ld_score, b->dout_block + at * z->ld,
                        z->ld, z->ld, rows - at, add);
    }
  }
  zero_rows(x->dq, z->q_stride, z->queries, z->all_queries, z->d);
}

static void heads_backward(const head *call, const smoe_attention *a, size_t first, smoe_real *scratch) {
  const shape z = shape_of(a, first / a->heads);
  const backward b = backward_place(scratch, &z);
  head x = head_at(call, a, first);
  const head own = x;
  smoe_tile_pack(b.keys, x.k, z.kv_stride, z.keys, z.d);
  smoe_tile_pack(b.values, x.v, z.kv_stride, z.keys, z.d);
  copy_rows(b.k, z.ld, x.k, z.kv_stride, 1, z.keys, z.d);
  for (size_t i = first; i < first + z.shared; i++) {
    const head next = i + 1 < a->sequences * a->heads ? head_at(call, a, i + 1) : x;
    head_backward(&b, &x, &next, i > first, &z);
    x = next;
  }
  copy_rows(own.dk, z.kv_stride, b.dk, z.ld, 1, z.keys, z.d);
  copy_rows(own.dv, z.kv_stride, b.dv, z.ld, 1, z.keys, z.d);
  zero_rows(own.dk, z.kv_stride, z.keys, z.all_keys, z.d);
  zero_rows(own.dv, z.kv_stride, z.keys, z.all_keys, z.d);
}

void smoe_attend_backward(smoe_real *dq, smoe_real *dk, smoe_real *dv, const smoe_real *dout,
                          const smoe_real *q, const smoe_real *k, const smoe_real *v, const smoe_real *out,
                          const smoe_real *lse, smoe_real *scratch, const smoe_attention *a) {
  SMOE_ASSERT(a->kv_heads == 0 ? a->heads == 0 : a->heads > 0 && a->heads % a->kv_heads == 0);
  const head call = {
      .q = q, .k = k, .v = v, .dout = dout, .out = out, .read_lse = lse, .dq = dq, .dk = dk, .dv = dv};
  const shape z = shape_of_call(a);
  const size_t n = a->sequences * a->kv_heads;
#pragma omp parallel for if (n > 1)
  for (size_t i = 0; i < n; i++)
    heads_backward(&call, a, i * z.shared, scratch + (size_t)omp_get_thread_num() * scratch_of_thread(&z));
}

/* ---- causal self-attention on one buffer ---- */

static smoe_attention self_attention(size_t s, size_t t, size_t h, size_t d) {
  return (smoe_attention){.sequences = s,
                          .queries = t,
                          .keys = t,
                          .heads = h,
                          .kv_heads = h,
                          .width = d,
                          .q_stride = 3 * h * d,
                          .kv_stride = 3 * h * d,
                          .causal = true};
}

size_t smoe_attention_scratch(size_t t, size_t d) {
  const smoe_attention a = self_attention(1, t, 1, d);
  return smoe_attend_scratch(&a);
}

void smoe_attention_forward(smoe_real *out, smoe_real *lse, const smoe_real *qkv, smoe_real *scratch,
                            size_t s, size_t t, size_t h, size_t d) {
  const smoe_attention a = self_attention(s, t, h, d);
  smoe_attend_forward(out, lse, qkv, qkv + h * d, qkv + 2 * h * d, scratch, &a);
}

void smoe_attention_row(smoe_real *out, const smoe_real *qkv, smoe_real *scratch, size_t last, size_t h,
                        size_t d) {
  smoe_attention a = self_attention(1, last + 1, h, d);
  a.queries = 1;
  a.causal = false;
  smoe_attend_row(out, qkv + last * a.q_stride, qkv + h * d, qkv + 2 * h * d, scratch, &a);
}

void smoe_attention_backward(smoe_real *dqkv, const smoe_real *dout, const smoe_real *qkv,
                             const smoe_real *out, const smoe_real *lse, smoe_real *scratch, size_t s,
                             size_t t, size_t h, size_t d) {
  const smoe_attention a = self_attention(s, t, h, d);
  const size_t c = h * d;
  smoe_attend_backward(dqkv, dqkv + c, dqkv + 2 * c, dout, qkv, qkv + c, qkv + 2 * c, out, lse, scratch, &a);
}
