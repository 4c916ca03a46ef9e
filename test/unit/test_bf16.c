/** Rounding to bf16 and products of bf16, with the processor's instructions and without. */
#include <float.h>

#include "near.h"
#include "stablemoe/bf16.h"
#include "stablemoe/kernel.h"
#include "stablemoe/map.h"

static float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* ---- rounding ---- */

/* Nearest bf16 by its definition: of the two neighbours the nearer, of two equally near the even one. */
static uint16_t nearest(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t down = bits >> 16, up = down + 1;
  if (isnan(x)) return (uint16_t)(down | 0x40);
  if (fabsf(x) < FLT_MIN) return (uint16_t)(down & 0x8000);
  if (isinf(x)) return (uint16_t)down;
  /* The neighbour of the largest one stands for 2^128. */
  const double low = fabs((double)from_bits(down << 16));
  const double high = (up & 0x7fff) == 0x7f80 ? ldexp(1, 128) : fabs((double)from_bits(up << 16));
  const double below = fabs((double)x) - low, above = high - fabs((double)x);
  return (uint16_t)(below < above || (below == above && down % 2 == 0) ? down : up);
}

static void round_all(void) {
  static const uint32_t lower[] = {0, 1, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff};
  enum { LOWER = sizeof lower / sizeof *lower, N = 65536 * LOWER };
  smoe_real *x = values_zero(N), *back = values_zero(N);
  smoe_bf16 *y = smoe_alloc(N * sizeof *y), *z = smoe_alloc(N * sizeof *z);
  for (size_t i = 0; i < N; i++) x[i] = from_bits((uint32_t)(i / LOWER) << 16 | lower[i % LOWER]);
  smoe_bf16_round_portable(y, x, N);
  for (size_t i = 0; i < N; i++) {
    /* A NaN of the double build has gone through a conversion, which makes it quiet. */
    const uint16_t want = nearest((float)x[i]);
    CHECK(y[i] == want, "%a is %04x, not %04x", (double)x[i], y[i], want);
    if (test_failures > 10) break;
  }
  for (size_t shift = 0; shift < 40;
       shift += 13) { /* the processor's kernel, its remainder and its alignment */
    memset(z, 0, N * sizeof *z);
    smoe_bf16_round(z + shift, x + shift, N - shift - 5);
    CHECK(memcmp(z + shift, y + shift, (N - shift - 5) * sizeof *z) == 0, "another rounding from %zu on",
          shift);
    CHECK(z[N - 1] == 0 && (shift == 0 || z[shift - 1] == 0), "wrote beyond the end");
  }
  smoe_bf16_expand(back, y, N);
  for (size_t i = 0; i < N; i++)
    if (fabs(x[i]) >= FLT_MIN && fabs(x[i]) < 3e38)
      CHECK(fabs(back[i] - x[i]) <= SMOE_BF16_EPSILON * fabs(x[i]), "%a became %a", (double)x[i],
            (double)back[i]);
  smoe_free(x), smoe_free(back), smoe_free(y), smoe_free(z);
}

/* ---- products ---- */

typedef struct sides {
  size_t n, c, o;
  smoe_bf16 *x, *w, *dy;                /* [N, C], [O, C], [N, O] */
  smoe_real *wide_x, *wide_w, *wide_dy; /* the same numbers */
  smoe_real *b;
} sides;

static smoe_bf16 *rounded(smoe_real *wide, size_t n) {
  smoe_bf16 *x = smoe_alloc(n * sizeof *x + 64);
  smoe_bf16_round(x, wide, n);
  smoe_bf16_expand(wide, x, n);
  return x;
}

static sides sides_create(size_t n, size_t c, size_t o) {
  sides s = {.n = n, .c = c, .o = o};
  s.wide_x = values_uniform(n * c, 1);
  s.wide_w = values_uniform(o * c, 2);
  s.wide_dy = values_uniform(n * o, 3);
  s.b = values_uniform(o, 4);
  s.x = rounded(s.wide_x, n * c);
  s.w = rounded(s.wide_w, o * c);
  s.dy = rounded(s.wide_dy, n * o);
  return s;
}

static void sides_free(sides *s) {
  smoe_free(s->x), smoe_free(s->w), smoe_free(s->dy), smoe_free(s->b);
  smoe_free(s->wide_x), smoe_free(s->wide_w), smoe_free(s->wide_dy);
}

/* got against a sum of `terms` products of absolute values `sizes` in all: bf16 operands make products that fp32
 * holds exactly, so what may differ is the rounding of the sum, once per term. `slack` more, relative. */
static void check_sum(const char *what, double got, double want, double sizes, size_t terms, double slack) {
  const double bound = (double)(terms + 2) * ldexp(1, -24) * sizes + slack * fabs(want);
  CHECK(fabs(got - want) <= bound, "%s: %.9g, not %.9g: beyond %.2g", what, got, want, bound);
}

static void relu_forward(smoe_bf16 *h, const sides *s, const smoe_real *b, size_t n) {
  smoe_map_relu_forward((smoe_operand){.half = h}, (smoe_operand){.half = s->x}, (smoe_operand){.half = s->w},
                        b, n, s->c, s->o, false);
}

static void check_forward(const sides *s, bool bias) {
  const size_t n = s->n, c = s->c, o = s->o;
  smoe_real *y = values_uniform(n * o, 5);
  smoe_bf16 *h = smoe_alloc(n * o * sizeof *h + 1);
  smoe_real *wide_h = values_zero(n * o);
  for (size_t i = 0; i < n * o; i++) y[i] = NAN; /* must not be read */
  smoe_bf16_linear_forward(y, s->x, s->w, bias ? s->b : NULL, n, c, o);
  relu_forward(h, s, bias ? s->b : NULL, n);
  smoe_bf16_expand(wide_h, h, n * o);
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < o; j++) {
      double sum = bias ? s->b[j] : 0, sizes = fabs(sum);
      for (size_t l = 0; l < c; l++) {
        const double term = (double)s->wide_x[i * c + l] * s->wide_w[j * c + l];
        sum += term;
        sizes += fabs(term);
      }
      check_sum("forward", y[i * o + j], sum, sizes, c, 0);
      check_sum("forward relu", wide_h[i * o + j], sum > 0 ? sum : 0, sizes, c, SMOE_BF16_EPSILON);
    }
  smoe_free(y), smoe_free(h), smoe_free(wide_h);
}

/* The gradients of <dy, x w^T>: by their definition, written out. */
static void check_backward(const sides *s) {
  const size_t n = s->n, c = s->c, o = s->o;
  smoe_real *dx = values_uniform(n * c, 6), *dw = values_uniform(o * c, 7),
            *dw_before = values_copy(dw, o * c);
  for (size_t i = 0; i < n * c; i++) dx[i] = NAN;
  for (int add = 0; add < 2; add++) {
    smoe_bf16_linear_backward_input(dx, s->dy, s->w, n, c, o, add);
    for (size_t i = 0; i < n; i++)
      for (size_t l = 0; l < c; l++) {
        double sum = 0, sizes = 0;
        for (size_t j = 0; j < o; j++) {
          const double term = (double)s->wide_dy[i * o + j] * s->wide_w[j * c + l];
          sum += term;
          sizes += fabs(term);
        }
        check_sum("input gradient", dx[i * c + l], (1 + add) * sum, (1 + add) * sizes, o + 1, 0);
      }
  }
  smoe_bf16 *rounded_dx = smoe_alloc(n * c * sizeof *rounded_dx + 1);
  smoe_real *wide_dx = values_zero(n * c), *db = values_zero(o);
  smoe_bf16_linear_backward_input(dx, s->dy, s->w, n, c, o, false);
  smoe_bf16_linear_backward_input_rounded(rounded_dx, s->dy, s->w, n, c, o);
  smoe_bf16_expand(wide_dx, rounded_dx, n * c);
  for (size_t i = 0; i < n * c; i++)
    check_sum("input gradient, rounded", wide_dx[i], dx[i], (double)o, o, SMOE_BF16_EPSILON);
  smoe_bf16_linear_backward_bias(db, s->dy, n, o);
  for (size_t j = 0; j < o; j++) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += s->wide_dy[i * o + j];
    check_sum("bias gradient", db[j], sum, (double)n, n, 0);
  }
  smoe_free(rounded_dx), smoe_free(wide_dx), smoe_free(db);
  smoe_bf16_linear_backward_weight(dw, s->dy, s->x, n, c, o);
  for (size_t j = 0; j < o; j++)
    for (size_t l = 0; l < c; l++) {
      double sum = dw_before[j * c + l], sizes = fabs(sum);
      for (size_t i = 0; i < n; i++) {
        const double term = (double)s->wide_dy[i * o + j] * s->wide_x[i * c + l];
        sum += term;
        sizes += fabs(term);
      }
      check_sum("weight gradient", dw[j * c + l], sum, sizes, n + 1, 0);
    }
  smoe_free(dx), smoe_free(dw), smoe_free(dw_before);
}

static void products(size_t n, size_t c, size_t o) {
  sides s = sides_create(n, c, o);
  check_forward(&s, false);
  check_forward(&s, true);
  check_backward(&s);
  sides_free(&s);
}

/* Both ways: how far they may be from each other follows from the length of the sums. */
static void ways(size_t n, size_t c, size_t o) {
  smoe_bf16_force_fallback(true);
  sides s = sides_create(n, c, o);
  smoe_real *slow = values_zero(n * o), *fast = values_zero(n * o);
  smoe_bf16_linear_forward(slow, s.x, s.w, s.b, n, c, o);
  CHECK(!smoe_bf16_native(), "the fallback is forced");
  smoe_bf16_force_fallback(false);
  smoe_bf16_linear_forward(fast, s.x, s.w, s.b, n, c, o);
  for (size_t i = 0; i < n * o; i++)
    check_sum("one way and the other", fast[i], slow[i], (double)c, 2 * c, 0);
  smoe_free(slow), smoe_free(fast);
  sides_free(&s);
}

/* ---- bits ---- */

typedef struct results {
  smoe_real *y, *dx, *dw;
  smoe_bf16 *h;
} results;

static void compute(results r, const sides *s, size_t n) {
  smoe_bf16_linear_forward(r.y, s->x, s->w, s->b, n, s->c, s->o);
  relu_forward(r.h, s, s->b, n);
  smoe_bf16_linear_backward_input(r.dx, s->dy, s->w, n, s->c, s->o, false);
  memset(r.dw, 0, s->o * s->c * sizeof *r.dw);
  smoe_bf16_linear_backward_weight(r.dw, s->dy, s->x, n, s->c, s->o);
}

/* Where an expert's rows are in memory follows from the number of ranks; the bits must not. */
static void places(size_t n, size_t c, size_t o) {
  enum { SHIFTS = 33 };
  const size_t most = n * c + n * o + o * c + SHIFTS;
  sides s = sides_create(n, c, o), moved = s;
  results want = {values_zero(n * o), values_zero(n * c), values_zero(o * c), smoe_alloc(most * 2)};
  results room = {values_zero(most), values_zero(most), values_zero(most), smoe_alloc(most * 2)};
  smoe_bf16 *x = smoe_alloc(most * 2), *w = smoe_alloc(most * 2), *dy = smoe_alloc(most * 2);
  compute(want, &s, n);
  for (size_t shift = 0; shift < SHIFTS; shift += shift < 3 ? 1 : 5) {
    moved.x = memcpy(x + shift, s.x, n * c * sizeof *x);
    moved.w = memcpy(w + SHIFTS - shift, s.w, o * c * sizeof *w);
    moved.dy = memcpy(dy + shift, s.dy, n * o * sizeof *dy);
    const results got = {room.y + SHIFTS - shift, room.dx + shift, room.dw + shift, room.h + shift};
    compute(got, &moved, n);
    near_same_bits("y elsewhere in memory", got.y, want.y, n * o);
    near_same_bits("dx elsewhere in memory", got.dx, want.dx, n * c);
    near_same_bits("dw elsewhere in memory", got.dw, want.dw, o * c);
    CHECK(memcmp(got.h, want.h, n * o * sizeof *want.h) == 0, "h elsewhere in memory: not the same bits");
  }
  smoe_free(want.y), smoe_free(want.dx), smoe_free(want.dw), smoe_free(want.h);
  smoe_free(room.y), smoe_free(room.dx), smoe_free(room.dw), smoe_free(room.h);
  smoe_free(x), smoe_free(w), smoe_free(dy);
  sides_free(&s);
}

/* Shapes in between do not disturb what was generated for one. */
static void repeated(void) {
  const size_t n = 130, c = 96, o = 160;
  sides s = sides_create(n, c, o);
  results first = {values_zero(n * o), values_zero(n * c), values_zero(o * c), smoe_alloc(n * o * 2)};
  results other = {values_zero(n * o), values_zero(n * c), values_zero(o * c), smoe_alloc(n * o * 2)};
  compute(first, &s, n);
  for (size_t rows = 1; rows < n; rows += 7) compute(other, &s, rows);
  compute(other, &s, n);
  near_same_bits("y repeated", other.y, first.y, n * o);
  near_same_bits("dx repeated", other.dx, first.dx, n * c);
  near_same_bits("dw repeated", other.dw, first.dw, o * c);
  smoe_free(first.y), smoe_free(first.dx), smoe_free(first.dw), smoe_free(first.h);
  smoe_free(other.y), smoe_free(other.dx), smoe_free(other.dw), smoe_free(other.h);
  sides_free(&s);
}

static void relu_backward(void) {
  const smoe_real h[] = {1, 0, -0.0, 0.5, NAN, -1, INFINITY, 1e-38, 2},
                  dh[] = {1, 2, 3, 1.00390625, 5, 6, 7, 8, NAN};
  const double want[] = {1, 0, 0, 1, 0, 0, 7, 0, NAN}; /* 1 + 2^-8 is a tie: to the even one; 1e-38 is zero */
  smoe_bf16 hb[9], d[9];
  smoe_real back[9];
  smoe_bf16_round(hb, h, 9);
  smoe_bf16_round(d, dh, 9);
  smoe_bf16_relu_backward(d, hb, 9);
  smoe_bf16_expand(back, d, 9);
  for (int i = 0; i < 9; i++)
    CHECK(back[i] == want[i] || (isnan(back[i]) && isnan(want[i])), "relu backward [%d]: %g, not %g", i,
          (double)back[i], want[i]);
}

/* A number that is none must not be hidden by a product: it is how a run notices that it has gone wrong. */
static void not_a_number(void) {
  const size_t n = 70, c = 64, o = 48;
  sides s = sides_create(n, c, o);
  results r = {values_zero(n * o), values_zero(n * c), values_zero(o * c), smoe_alloc(n * o * 2)};
  smoe_real *wide = values_zero(n * o);
  s.x[3 * c + 5] = 0x7fc0;
  s.dy[3 * o + 5] = 0x7fc0;
  compute(r, &s, n);
  smoe_bf16_expand(wide, r.h, n * o);
  CHECK(isnan(r.y[3 * o]) && isnan(wide[3 * o]) && isnan(r.dx[3 * c]) && isnan(r.dw[5 * c]),
        "a NaN became %g, %g, %g, %g", (double)r.y[3 * o], (double)wide[3 * o], (double)r.dx[3 * c],
        (double)r.dw[5 * c]);
  CHECK(!isnan(r.y[4 * o]) && !isnan(r.dx[2 * c]), "a NaN spread to other rows");
  smoe_free(r.y), smoe_free(r.dx), smoe_free(r.dw), smoe_free(r.h), smoe_free(wide);
  sides_free(&s);
}

/* Rows that were kept as operands: the bits of the same numbers in fp32, over several expanded pieces. */
static void kept_rows(size_t n) {
  smoe_real *x = values_uniform(n, 21), *wide = values_uniform(n, 22), *y = values_uniform(n, 23);
  smoe_real *same = values_copy(y, n), *buffer = values_copy(y, n);
  smoe_bf16 *half = smoe_alloc((n + 1) * sizeof *half);
  const smoe_operand row = {.half = half}, plain = {.wide = wide};
  smoe_bf16_round(half, wide, n);
  smoe_bf16_expand(wide, half, n);
  const smoe_real dot = smoe_dot(x, wide, n), half_dot = smoe_dot_operand(x, row, n), scale = -0.7f;
  CHECK(dot == half_dot && dot == smoe_dot_operand(x, plain, n), "%zu: %g for %g", n, half_dot, dot);
  CHECK(smoe_wide_operand(plain, buffer, n) == wide, "%zu", n);
  CHECK(memcmp(smoe_wide_operand(row, buffer, n), wide, n * sizeof *wide) == 0, "%zu", n);
  smoe_add_scaled_operand(y, scale, row, n);
  smoe_add_scaled_operand(same, scale, plain, n);
  CHECK(memcmp(y, same, n * sizeof *y) == 0, "%zu", n);
  smoe_free(x), smoe_free(wide), smoe_free(y), smoe_free(same), smoe_free(buffer), smoe_free(half);
}

static void all(void) {
  const size_t size[] = {0, 1, 5, 33};
  for (size_t i = 0; i < 4; i++)
    for (size_t j = 0; j < 4; j++)
      for (size_t l = 0; l < 4; l++) products(size[i], size[j], size[l]);
  products(64, 40, 72);
  products(131, 256, 65); /* more than one block of rows, and a remainder */
  products(66, 1030, 34); /* long sums, and of an odd number of pairs */
  products(20, 31, 1100);
  places(37, 20, 80);
  places(130, 67, 96);
  repeated();
  relu_backward();
  for (size_t i = 0; i < 6; i++) kept_rows((const size_t[]){0, 1, 31, 512, 1056, 2000}[i]);
  not_a_number();
}

int main(void) {
  round_all();
  CHECK(smoe_bf16_name()[0], "the way has no name");
  all();
  ways(150, 300, 70);
  smoe_threads_set(2);
  all();
  smoe_threads_set(1);
  smoe_bf16_force_fallback(true);
  round_all();
  all();
  return test_verdict("bf16");
}
