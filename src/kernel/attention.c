#include "stablemoe/kernel.h"

#include <omp.h>

#include "tile.h"
#include "vector.h"

/* Attention goes through the queries in groups of TILE_ROWS: a group meets the keys 0 .. its last query and no
 * others, which skips nearly all of the masked half, and its scores stay in the first cache. Backward sums
 * the keys' gradients over a block of groups before they go back to memory. */
enum {
  GROUP = TILE_ROWS,
  BLOCK = 4 * GROUP,
  CACHE_LINE = 64,
  SCORE_PAD = 16 /* rows a power of two apart would share few cache sets */
};

/* Sizes of one head's arrays. */
typedef struct shape {
  size_t t, d;
  size_t width; /* C: rows of out lie that far apart, rows of qkv three times */
  size_t ld;    /* rows of a head's copies: whole vectors; what stands behind D reaches no result */
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

static shape shape_of(size_t t, size_t h, size_t d) {
  return (shape){.t = t,
                 .d = d,
                 .width = h * d,
                 .ld = round_up(d, TILE_VECTOR),
                 .ld_score = round_up(t, PARTIALS) + SCORE_PAD,
                 .scale = 1 / sqrt_real((smoe_real)d)};
}

/* Reals of a transposed head, of a head's copy, and of a block's copy. */
static size_t panel_reals(const shape *z) {
  return round_up(z->t, TILE_COLUMNS) * z->d;
}

static size_t head_reals(const shape *z) {
  return round_up(z->t, GROUP) * z->ld;
}

static size_t block_reals(const shape *z) {
  return BLOCK * z->ld;
}

/* What backward needs, which is more: k and v transposed; k, dk, dv; a block of q, dout and dq; two blocks of
 * scores. */
static size_t scratch_of_thread(const shape *z) {
  return 2 * panel_reals(z) + 3 * head_reals(z) + 3 * block_reals(z) + 2 * BLOCK * z->ld_score;
}

size_t smoe_attention_scratch(size_t t, size_t d) {
  const shape z = shape_of(t, 1, d);
  return (size_t)omp_get_max_threads() * scratch_of_thread(&z);
}

/* Where head i (of S H) begins in an array whose rows have `width` numbers. */
static size_t head_at(size_t i, size_t h, const shape *z, size_t width) {
  return i / h * z->t * width + i % h * z->d;
}

/* to [rows, D] = scale from [rows, D]. A head's rows lie C or 3 C apart in the layer's arrays, where products
 * would meet them again and again with no help of the prefetcher; hence copies. */
static void copy_rows(smoe_real *restrict to, size_t ld_to, const smoe_real *restrict from, size_t ld_from,
                      smoe_real scale, size_t rows, size_t d) {
  for (size_t i = 0; i < rows; i++)
    for (size_t x = 0; x < d; x++) to[i * ld_to + x] = scale * from[i * ld_from + x];
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

/* score = exp(score - row maximum), 0 from behind the query to the group's last; sum [rows], lse [rows]. */
static void group_softmax(smoe_real *score, smoe_real *sum, smoe_real *lse, size_t first, size_t rows,
                          const shape *z) {
  for (size_t i = 0; i < rows; i++) {
    smoe_real *row = score + i * z->ld_score;
    /* Filled up to whole vectors: a remainder of single numbers would take longer than the rest. */
    const size_t seen = first + i + 1, end = round_up(seen, PARTIALS);
    for (size_t j = seen; j < end; j++) row[j] = -(smoe_real)INFINITY;
    const smoe_real max = row_max(row, end);
    sum[i] = row_exp(row, row, max, end);
    lse[i] = max + log_real(sum[i]);
    for (size_t j = end; j < first + rows; j++) row[j] = 0;
  }
}

/* out, qkv and next point to a head; next is the one that comes after. */
static void head_forward(smoe_real *out, smoe_real *lse, const smoe_real *qkv, const smoe_real *next,
                         smoe_real *scratch, const shape *z) {
  const size_t width = z->width;
  smoe_real *keys = scratch, *v = keys + panel_reals(z), *q = v + head_reals(z);
  smoe_real *sums = q + GROUP * z->ld, *score = sums + GROUP * z->ld;
  smoe_tile_pack(keys, qkv + width, 3 * width, z->t, z->d);
  copy_rows(v, z->ld, qkv + 2 * width, 3 * width, 1, z->t, z->d);
  for (size_t first = 0; first < z->t; first += GROUP) {
    const size_t rows = least(GROUP, z->t - first), seen = first + rows;
    smoe_real sum[GROUP];
    fetch_rows(next + first * 3 * width, width, 3 * rows, z, false);
    fetch_rows(out + first * width, width, rows, z, true);
    copy_rows(q, z->ld, qkv + first * 3 * width, 3 * width, z->scale, rows, z->d);
    smoe_tile_rows(score, z->ld_score, q, z->ld, keys, TILE_COLUMNS, z->d * TILE_COLUMNS,
                   round_up(seen, TILE_VECTOR), z->d);
    group_softmax(score, sum, lse + first, first, rows, z);
    smoe_tile_rows(sums, z->ld, score, z->ld_score, v, z->ld, TILE_COLUMNS, z->ld, seen);
    /* Divided here rather than in the scores: D numbers per row instead of up to T. */
    for (size_t i = 0; i < rows; i++)
      copy_rows(out + (first + i) * width, width, sums + i * z->ld, z->ld, 1 / sum[i], 1, z->d);
  }
}

void smoe_attention_forward(smoe_real *out, smoe_real *lse, const smoe_real *qkv, smoe_real *scratch,
                            size_t s, size_t t, size_t h, size_t d) {
  const shape z = shape_of(t, h, d);
#pragma omp parallel for if (s * h > 1)
  for (size_t i = 0; i < s * h; i++) {
    const size_t next = i + 1 < s * h ? i + 1 : i;
    head_forward(out + head_at(i, h, &z, z.width), lse + i * t, qkv + head_at(i, h, &z, 3 * z.width),
                 qkv + head_at(next, h, &z, 3 * z.width),
                 scratch + (size_t)omp_get_thread_num() * scratch_of_thread(&z), &z);
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

/* The arrays of a head in the backward pass. */
typedef struct backward {
  const smoe_real *qkv, *dout, *out, *lse; /* of the layer, from the head's first number on */
  smoe_real *dqkv;
  smoe_real *keys, *values;       /* transposed: [D, T] in panels */
  smoe_real *k, *dk, *dv;         /* [T, D] */
  smoe_real *q, *dout_block, *dq; /* [BLOCK, D]; q with the scale */
  smoe_real *p, *ds;              /* [BLOCK, T]: probabilities, the scores' gradient */
} backward;

static void backward_place(backward *b, smoe_real *scratch, const shape *z) {
  b->keys = scratch;
  b->values = b->keys + panel_reals(z);
  b->k = b->values + panel_reals(z);
  b->dk = b->k + head_reals(z);
  b->dv = b->dk + head_reals(z);
  b->q = b->dv + head_reals(z);
  b->dout_block = b->q + block_reals(z);
  b->dq = b->dout_block + block_reals(z);
  b->p = b->dq + block_reals(z);
  b->ds = b->p + BLOCK * z->ld_score;
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
static void group_backward(const backward *b, size_t first, size_t at, size_t rows, const shape *z) {
  const size_t seen = first + at + rows, end = round_up(seen, TILE_VECTOR), panel = z->d * TILE_COLUMNS;
  smoe_real *p = b->p + at * z->ld_score, *ds = b->ds + at * z->ld_score;
  const smoe_real *dout = b->dout_block + at * z->ld;
  smoe_tile_rows(p, z->ld_score, b->q + at * z->ld, z->ld, b->keys, TILE_COLUMNS, panel, end, z->d);
  smoe_tile_rows(ds, z->ld_score, dout, z->ld, b->values, TILE_COLUMNS, panel, end, z->d);
  for (size_t i = 0; i < rows; i++) {
    const size_t query = first + at + i;
    smoe_real *p_row = p + i * z->ld_score, *ds_row = ds + i * z->ld_score;
    /* <dp, p> over the keys is <dout, out> over D. */
    const smoe_real delta = smoe_dot(dout + i * z->ld, b->out + query * z->width, z->d);
    row_backward(p_row, ds_row, b->lse[query], delta, end);
    for (size_t j = query + 1; j < end; j++) p_row[j] = ds_row[j] = 0;
  }
  smoe_tile_rows(b->dq, z->ld, ds, z->ld_score, b->k, z->ld, TILE_COLUMNS, z->ld, seen);
  copy_rows(b->dqkv + (first + at) * 3 * z->width, 3 * z->width, b->dq, z->ld, z->scale, rows, z->d);
}

/* The rows of the layer's arrays that the next head reads, and those that this one writes. */
static inline __attribute__((always_inline)) void group_fetch(const backward *b, const backward *next,
                                                              size_t first, size_t rows, const shape *z) {
  const size_t place = first * z->width;
  fetch_rows(next->qkv + 3 * place, z->width, 3 * rows, z, false);
  fetch_rows(next->dout + place, z->width, rows, z, false);
  fetch_rows(next->out + place, z->width, rows, z, false);
  fetch_rows(b->dqkv + 3 * place, z->width, 3 * rows, z, true);
}

static void head_backward(const backward *b, const backward *next, const shape *z) {
  const size_t width = z->width;
  smoe_tile_pack(b->keys, b->qkv + width, 3 * width, z->t, z->d);
  smoe_tile_pack(b->values, b->qkv + 2 * width, 3 * width, z->t, z->d);
  copy_rows(b->k, z->ld, b->qkv + width, 3 * width, 1, z->t, z->d);
  /* From the last block to the first: the last one sees every key, so it writes dk and dv, the others add. */
  const size_t n_blocks = (z->t + BLOCK - 1) / BLOCK;
  for (size_t n = n_blocks; n-- > 0;) {
    const size_t first = n * BLOCK, rows = least(BLOCK, z->t - first);
    const bool add = n + 1 < n_blocks;
    copy_rows(b->q, z->ld, b->qkv + first * 3 * width, 3 * width, z->scale, rows, z->d);
    copy_rows(b->dout_block, z->ld, b->dout + first * width, width, 1, rows, z->d);
    for (size_t at = 0; at < rows; at += GROUP) {
      const size_t n_group = least(GROUP, rows - at);
      group_fetch(b, next, first + at, n_group, z);
      group_backward(b, first, at, n_group, z);
    }
    for (size_t j = 0; j < first + rows; j += TILE_ROWS) {
      const size_t at = j > first ? j - first : 0, score = at * z->ld_score + j; /* queries that see key j */
      smoe_tile_columns(b->dk + j * z->ld, z->ld, b->ds + score, z->ld_score, b->q + at * z->ld, z->ld, z->ld,
                        rows - at, add);
      smoe_tile_columns(b->dv + j * z->ld, z->ld, b->p + score, z->ld_score, b->dout_block + at * z->ld,
                        z->ld, z->ld, rows - at, add);
    }
  }
  copy_rows(b->dqkv + width, 3 * width, b->dk, z->ld, 1, z->t, z->d);
  copy_rows(b->dqkv + 2 * width, 3 * width, b->dv, z->ld, 1, z->t, z->d);
}

void smoe_attention_backward(smoe_real *dqkv, const smoe_real *dout, const smoe_real *qkv,
                             const smoe_real *out, const smoe_real *lse, smoe_real *scratch, size_t s,
                             size_t t, size_t h, size_t d) {
  const shape z = shape_of(t, h, d);
#pragma omp parallel for if (s * h > 1)
  for (size_t i = 0; i < s * h; i++) {
    backward b[2]; /* this head and the next */
    for (size_t j = 0; j < 2; j++) {
      const size_t head = i + j < s * h ? i + j : i, place = head_at(head, h, &z, z.width);
      const size_t place3 = head_at(head, h, &z, 3 * z.width);
      b[j] = (backward){.qkv = qkv + place3, .dout = dout + place, .out = out + place};
      b[j].dqkv = dqkv + place3;
      b[j].lse = lse + head * t;
    }
    backward_place(b, scratch + (size_t)omp_get_thread_num() * scratch_of_thread(&z), &z);
    head_backward(b, b + 1, &z);
  }
}
