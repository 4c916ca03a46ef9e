#include "stablemoe/bf16.h"

#include <stdio.h>
#include <string.h>

#include "cpu.h"
#include "onednn.h"
#include "stablemoe/kernel.h"
#include "vector.h"

#if defined __x86_64__
#include <immintrin.h>
#endif

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

/* ---- rounding ---- */

static inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline smoe_bf16 rounded(float x) {
  const uint32_t bits = bits_of(x), size = bits & 0x7fffffff;
  const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const uint32_t nan = bits >> 16 | 0x40, zero = bits >> 16 & 0x8000;
  return (smoe_bf16)(size > 0x7f800000 ? nan : size < 0x00800000 ? zero : nearest);
}

static void round_portable(smoe_bf16 *restrict y, const smoe_real *restrict x, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = rounded((float)x[i]);
}

#if defined __x86_64__ && !defined SMOE_DOUBLE
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) static void
round_native(smoe_bf16 *restrict y, const float *restrict x, size_t n) {
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
    memcpy(y + i, &both, sizeof both);
  }
  for (; i < n; i++) y[i] = rounded(x[i]);
}
#endif

typedef void rounding(smoe_bf16 *restrict, const smoe_real *restrict, size_t);

static rounding *round_kernel(void) {
#if defined __x86_64__ && !defined SMOE_DOUBLE
  if (!forced && smoe_cpu_has_avx512_bf16()) return round_native;
#endif
  return round_portable;
}

static void in_pieces(rounding *kernel, smoe_bf16 *y, const smoe_real *x, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) kernel(y + i, x + i, n - i < PIECE ? n - i : PIECE);
}

void smoe_bf16_round(smoe_bf16 *y, const smoe_real *x, size_t n) {
  in_pieces(round_kernel(), y, x, n);
}

void smoe_bf16_round_portable(smoe_bf16 *y, const smoe_real *x, size_t n) {
  in_pieces(round_portable, y, x, n);
}

static inline smoe_real expanded(smoe_bf16 x) {
  const uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

void smoe_bf16_expand(smoe_real *y, const smoe_bf16 *x, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) {
    const size_t end = n - i < PIECE ? n : i + PIECE;
    for (size_t j = i; j < end; j++) y[j] = expanded(x[j]);
  }
}

void smoe_bf16_relu_backward(smoe_bf16 *d, const smoe_real *dh, const smoe_bf16 *h, size_t n) {
  rounding *kernel = round_kernel();
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) {
    smoe_real passed[PIECE];
    const size_t length = n - i < PIECE ? n - i : PIECE;
    for (size_t j = 0; j < length; j++) passed[j] = expanded(h[i + j]) > 0 ? dh[i + j] : 0;
    kernel(d + i, passed, length);
  }
}

/* ---- products ---- */

size_t smoe_bf16_scratch(size_t n, size_t c, size_t o) {
  return smoe_bf16_native() ? 0 : n * c + o * c + n * o;
}

#ifndef SMOE_DOUBLE
/* Rows of a call: a multiple of this, and what is left in a call of its own. An expert's number of rows is
 * another one in each update, and every shape is code that oneDNN has to generate. */
enum { ROWS = 64 };

static size_t whole_rows(size_t n) {
  return n < ROWS ? n : n - n % ROWS;
}

/* Rows of c [m, n] = op(a) b..., in two calls at most. */
static void by_rows(smoe_onednn_shape shape, void *c, const smoe_bf16 *a, const smoe_bf16 *b,
                    const float *bias) {
  const size_t m = shape.m, whole = whole_rows(m),
               element = shape.rounded ? sizeof(smoe_bf16) : sizeof(float);
  shape.m = whole;
  smoe_onednn_matmul(&shape, c, a, b, bias);
  if (whole == m) return;
  shape.m = m - whole;
  smoe_onednn_matmul(&shape, (char *)c + whole * shape.ldc * element, a + whole * shape.lda, b, bias);
}
#endif

static void fill_rows(smoe_real *y, const smoe_real *b, size_t n, size_t o) {
  for (size_t i = 0; i < n; i++)
    if (b)
      memcpy(y + i * o, b, o * sizeof *y);
    else
      memset(y + i * o, 0, o * sizeof *y);
}

void smoe_bf16_linear_forward(smoe_real *y, const smoe_bf16 *x, const smoe_bf16 *w, const smoe_real *b,
                              smoe_real *scratch, size_t n, size_t c, size_t o) {
  if (n == 0 || o == 0) return;
  if (c == 0) {
    fill_rows(y, b, n, o);
    return;
  }
#ifndef SMOE_DOUBLE
  if (smoe_bf16_native()) {
    by_rows(
        (smoe_onednn_shape){
            .transpose_b = true, .bias = b, .m = n, .n = o, .k = c, .lda = c, .ldb = c, .ldc = o},
        y, x, w, b);
    return;
  }
#endif
  smoe_real *wide_x = scratch, *wide_w = scratch + n * c;
  smoe_bf16_expand(wide_x, x, n * c);
  smoe_bf16_expand(wide_w, w, o * c);
  smoe_linear_forward(y, wide_x, wide_w, b, n, c, o);
}

#ifndef SMOE_DOUBLE
/* oneDNN has a ReLU, too, but it turns NaN into 0. */
static void relu(smoe_bf16 *h, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) {
    const size_t end = n - i < PIECE ? n : i + PIECE;
    for (size_t j = i; j < end; j++) h[j] = h[j] >= 0x8000 && h[j] <= 0xff80 ? 0 : h[j];
  }
}
#endif

void smoe_bf16_linear_relu_forward(smoe_bf16 *h, const smoe_bf16 *x, const smoe_bf16 *w, const smoe_real *b,
                                   smoe_real *scratch, size_t n, size_t c, size_t f) {
  if (n == 0 || f == 0) return;
  if (c == 0) {
    for (size_t i = 0; i < n * f; i++) h[i] = rounded(b && !(b[i % f] < 0) ? (float)b[i % f] : 0);
    return;
  }
#ifndef SMOE_DOUBLE
  if (smoe_bf16_native()) {
    by_rows((smoe_onednn_shape){.transpose_b = true,
                                .bias = b,
                                .rounded = true,
                                .m = n,
                                .n = f,
                                .k = c,
                                .lda = c,
                                .ldb = c,
                                .ldc = f},
            h, x, w, b);
    relu(h, n * f);
    return;
  }
#endif
  smoe_real *wide = scratch;
  smoe_bf16_linear_forward(wide, x, w, b, scratch + n * f, n, c, f);
  for (size_t i = 0; i < n * f; i++) wide[i] = wide[i] < 0 ? 0 : wide[i];
  smoe_bf16_round(h, wide, n * f);
}

void smoe_bf16_linear_backward_input(smoe_real *dx, const smoe_bf16 *dy, const smoe_bf16 *w,
                                     smoe_real *scratch, size_t n, size_t c, size_t o, bool add) {
  if (n == 0 || c == 0) return;
  if (o == 0) {
    if (!add) memset(dx, 0, n * c * sizeof *dx);
    return;
  }
#ifndef SMOE_DOUBLE
  if (smoe_bf16_native()) {
    by_rows((smoe_onednn_shape){.add = add, .m = n, .n = c, .k = o, .lda = o, .ldb = c, .ldc = c}, dx, dy, w,
            NULL);
    return;
  }
#endif
  smoe_real *wide_dy = scratch, *wide_w = scratch + n * o;
  smoe_bf16_expand(wide_dy, dy, n * o);
  smoe_bf16_expand(wide_w, w, o * c);
  smoe_linear_backward_input(dx, wide_dy, wide_w, n, c, o, add);
}

void smoe_bf16_linear_backward_weight(smoe_real *dw, const smoe_bf16 *dy, const smoe_bf16 *x,
                                      smoe_real *scratch, size_t n, size_t c, size_t o) {
  if (n == 0 || c == 0 || o == 0) return;
#ifndef SMOE_DOUBLE
  if (smoe_bf16_native()) {
    smoe_onednn_shape shape = {
        .transpose_a = true, .add = true, .m = o, .n = c, .lda = o, .ldb = c, .ldc = c};
    const size_t whole = whole_rows(n);
    shape.k = whole;
    smoe_onednn_matmul(&shape, dw, dy, x, NULL);
    if (whole == n) return;
    shape.k = n - whole;
    smoe_onednn_matmul(&shape, dw, dy + whole * o, x + whole * c, NULL);
    return;
  }
#endif
  smoe_real *wide_dy = scratch, *wide_x = scratch + n * o;
  smoe_bf16_expand(wide_dy, dy, n * o);
  smoe_bf16_expand(wide_x, x, n * c);
  smoe_linear_backward_weight(dw, NULL, wide_dy, wide_x, n, c, o);
}
