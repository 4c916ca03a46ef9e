#include "stablemoe/bf16.h"

#include <stdio.h>
#include <string.h>

#include "cpu.h"
#include "onednn.h"
#include "stablemoe/kernel.h"
#include "vector.h"

static bool forced; /* smoe_bf16_force_fallback */

bool smoe_bf16_native(void) {
#ifdef SMOE_DOUBLE
  return false;
#else
  return !forced && smoe_onednn_has_bf16();
#endif
}

bool smoe_bf16_pays(void) {
  return smoe_bf16_native() && (smoe_onednn_has_amx() || smoe_cpu_is_amd());
}

const char *smoe_bf16_name(void) {
  static char text[64];
  if (!smoe_bf16_native()) return "fp32 GEMM of rounded operands";
  snprintf(text, sizeof text, "oneDNN %s", smoe_onednn_isa());
  return text;
}

void smoe_bf16_force_fallback(bool fallback) {
  forced = fallback;
}

/* ---- by oneDNN ---- */

#ifndef SMOE_DOUBLE
/* Rows of a call: a multiple of ROWS, and what is left in calls of a multiple of REST and less than that. An
 * expert's number of rows is another one in each update, and every shape is code that oneDNN has to generate. */
enum { ROWS = 64, REST = 8 };

static size_t next_rows(size_t left) {
  return left >= ROWS ? left - left % ROWS : left >= REST ? left - left % REST : left;
}

/* c [m, n] = (+=) a [m, k] op(b) + bias, in calls of some rows each. */
static void by_rows(smoe_onednn_shape shape, void *c, const smoe_bf16 *a, const smoe_bf16 *b,
                    const float *bias) {
  const size_t m = shape.m, element = shape.rounded ? sizeof(smoe_bf16) : sizeof(float);
  for (size_t first = 0; first < m; first += shape.m) {
    shape.m = next_rows(m - first);
    smoe_onednn_matmul(&shape, (char *)c + first * shape.ldc * element, a + first * shape.lda, b, bias);
  }
}
#endif

/* ---- by fp32 ---- */

/* Operands and results in fp32. Products are made some rows at a time, so that memory stays bounded. */
enum { WIDE_ROWS = 512, WIDE = 3 };

static struct {
  smoe_real *real;
  size_t n;
} space[WIDE];

static smoe_real *wide_space(int i, size_t n) {
  if (space[i].n < n) {
    smoe_free(space[i].real);
    space[i].real = smoe_alloc(n * sizeof *space[i].real);
    space[i].n = n;
  }
  return space[i].real;
}

static const smoe_real *widened(int i, const smoe_bf16 *x, size_t n) {
  smoe_real *wide = wide_space(i, n);
  smoe_bf16_expand(wide, x, n);
  return wide;
}

static size_t fewer(size_t n) {
  return n < WIDE_ROWS ? n : WIDE_ROWS;
}

/* y or, rounded, h. */
static void wide_forward(smoe_real *y, smoe_bf16 *h, const smoe_bf16 *x, const smoe_bf16 *w,
                         const smoe_real *b, size_t n, size_t c, size_t o) {
  const smoe_real *wide_w = widened(0, w, o * c);
  for (size_t first = 0, rows; first < n; first += rows) {
    rows = fewer(n - first);
    smoe_real *out = h ? wide_space(2, rows * o) : y + first * o;
    smoe_linear_forward(out, widened(1, x + first * c, rows * c), wide_w, b, rows, c, o);
    if (h) smoe_bf16_round(h + first * o, out, rows * o);
  }
}

/* dx or, rounded, d. */
static void wide_backward_input(smoe_real *dx, smoe_bf16 *d, const smoe_bf16 *dy, const smoe_bf16 *w,
                                size_t n, size_t c, size_t o, bool add) {
  const smoe_real *wide_w = widened(0, w, o * c);
  for (size_t first = 0, rows; first < n; first += rows) {
    rows = fewer(n - first);
    smoe_real *out = d ? wide_space(2, rows * c) : dx + first * c;
    smoe_linear_backward_input(out, widened(1, dy + first * o, rows * o), wide_w, rows, c, o, add);
    if (d) smoe_bf16_round(d + first * c, out, rows * c);
  }
}

static void wide_backward_weight(smoe_real *dw, const smoe_bf16 *dy, const smoe_bf16 *x, size_t n, size_t c,
                                 size_t o) {
  for (size_t first = 0, rows; first < n; first += rows) {
    rows = fewer(n - first);
    smoe_linear_backward_weight(dw, NULL, widened(0, dy + first * o, rows * o),
                                widened(1, x + first * c, rows * c), rows, c, o);
  }
}

/* ---- products ---- */

/* A sum of no terms: the bias, or 0. */
static void fill_rows(smoe_real *y, smoe_bf16 *h, const smoe_real *b, size_t n, size_t o) {
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < o; j++) {
      const smoe_real value = b ? b[j] : 0;
      if (h)
        smoe_bf16_round_row(h + i * o + j, &value, 1, 1);
      else
        y[i * o + j] = value;
    }
}

static void forward(smoe_real *y, smoe_bf16 *h, const smoe_bf16 *x, const smoe_bf16 *w, const smoe_real *b,
                    size_t n, size_t c, size_t o) {
  if (n == 0 || o == 0) return;
  if (c == 0) {
    fill_rows(y, h, b, n, o);
    return;
  }
#ifndef SMOE_DOUBLE
  if (smoe_bf16_native()) {
    const smoe_onednn_shape shape = {
        .transpose_b = true, .bias = b, .rounded = h, .m = n, .n = o, .k = c, .lda = c, .ldb = c, .ldc = o};
    by_rows(shape, h ? (void *)h : y, x, w, b);
    return;
  }
#endif
  wide_forward(y, h, x, w, b, n, c, o);
}

void smoe_bf16_linear_forward(smoe_real *y, const smoe_bf16 *x, const smoe_bf16 *w, const smoe_real *b,
                              size_t n, size_t c, size_t o) {
  forward(y, NULL, x, w, b, n, c, o);
}

void smoe_bf16_linear_forward_rounded(smoe_bf16 *y, const smoe_bf16 *x, const smoe_bf16 *w,
                                      const smoe_real *b, size_t n, size_t c, size_t o) {
  forward(NULL, y, x, w, b, n, c, o);
}

static void backward_input(smoe_real *dx, smoe_bf16 *d, const smoe_bf16 *dy, const smoe_bf16 *w, size_t n,
                           size_t c, size_t o, bool add) {
  if (n == 0 || c == 0) return;
  if (o == 0) {
    if (!add) fill_rows(dx, d, NULL, n, c);
    return;
  }
#ifndef SMOE_DOUBLE
  if (smoe_bf16_native()) {
    const smoe_onednn_shape shape = {
        .add = add, .rounded = d, .m = n, .n = c, .k = o, .lda = o, .ldb = c, .ldc = c};
    by_rows(shape, d ? (void *)d : dx, dy, w, NULL);
    return;
  }
#endif
  wide_backward_input(dx, d, dy, w, n, c, o, add);
}

void smoe_bf16_linear_backward_input(smoe_real *dx, const smoe_bf16 *dy, const smoe_bf16 *w, size_t n,
                                     size_t c, size_t o, bool add) {
  backward_input(dx, NULL, dy, w, n, c, o, add);
}

void smoe_bf16_linear_backward_input_rounded(smoe_bf16 *dx, const smoe_bf16 *dy, const smoe_bf16 *w, size_t n,
                                             size_t c, size_t o) {
  backward_input(NULL, dx, dy, w, n, c, o, false);
}

void smoe_bf16_linear_backward_weight(smoe_real *dw, const smoe_bf16 *dy, const smoe_bf16 *x, size_t n,
                                      size_t c, size_t o) {
  if (n == 0 || c == 0 || o == 0) return;
#ifndef SMOE_DOUBLE
  if (smoe_bf16_native()) {
    smoe_onednn_shape shape = {
        .transpose_a = true, .add = true, .m = o, .n = c, .lda = o, .ldb = c, .ldc = c};
    for (size_t first = 0; first < n; first += shape.k) {
      shape.k = next_rows(n - first);
      smoe_onednn_matmul(&shape, dw, dy + first * o, x + first * c, NULL);
    }
    return;
  }
#endif
  wide_backward_weight(dw, dy, x, n, c, o);
}

/* ---- what stands between products ---- */

/* Columns that one thread sums at a time: their sums stay in the first cache. */
enum { COLUMN_BLOCK = 256 };

void smoe_bf16_linear_backward_bias(smoe_real *db, const smoe_bf16 *dy, size_t n, size_t o) {
#pragma omp parallel for if (n * o > PARALLEL_MIN)
  for (size_t j = 0; j < o; j += COLUMN_BLOCK)
    for (size_t i = 0; i < n; i++)
      smoe_bf16_add_row(db + j, dy + i * o + j, o - j < COLUMN_BLOCK ? o - j : COLUMN_BLOCK);
}

/* Greater than 0 as a bf16 has its bits: neither zero, nor negative, nor NaN. */
static inline bool positive(smoe_bf16 x) {
  return x > 0 && x <= 0x7f80;
}

/* Below 0, infinity included; NaN is not. */
static inline bool negative(smoe_bf16 x) {
  return x >= 0x8000 && x <= 0xff80;
}

static void piece_relu(smoe_bf16 *h, size_t n) {
  for (size_t i = 0; i < n; i++) h[i] = negative(h[i]) ? 0 : h[i];
}

void smoe_bf16_relu_forward(smoe_bf16 *h, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) piece_relu(h + i, n - i < PIECE ? n - i : PIECE);
}

static void piece_relu_backward(smoe_bf16 *restrict d, const smoe_bf16 *restrict h, size_t n) {
  for (size_t i = 0; i < n; i++) d[i] = positive(h[i]) ? d[i] : 0;
}

void smoe_bf16_relu_backward(smoe_bf16 *d, const smoe_bf16 *h, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) piece_relu_backward(d + i, h + i, n - i < PIECE ? n - i : PIECE);
}
