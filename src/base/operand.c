#include "stablemoe/operand.h"

#include <string.h>

#if defined __x86_64__
#include <immintrin.h>
#endif

enum {
  PARALLEL_MIN = 32768, /* elements below which a second thread costs more than it gains */
  PIECE = 4096,         /* elements that one thread takes at a time */
  SCALED = 512          /* elements of a row that are multiplied before they are rounded */
};

const char *smoe_precision_name(smoe_precision precision) {
  return precision == SMOE_BF16 ? "bf16" : "fp32";
}

size_t smoe_precision_bytes(smoe_precision precision) {
  return precision == SMOE_BF16 ? sizeof(smoe_bf16) : sizeof(smoe_real);
}

smoe_operand smoe_arena_operand(smoe_arena *arena, smoe_precision precision, size_t n) {
  void *memory = smoe_arena_take(arena, n * smoe_precision_bytes(precision));
  return precision == SMOE_BF16 ? (smoe_operand){.half = memory} : (smoe_operand){.wide = memory};
}

smoe_operand smoe_operand_at(smoe_operand operand, size_t first) {
  return (smoe_operand){.wide = operand.wide ? operand.wide + first : NULL,
                        .half = operand.half ? operand.half + first : NULL};
}

smoe_operand smoe_operand_of(smoe_operand memory, const smoe_real *x, size_t n) {
  if (!memory.half) return (smoe_operand){.wide = (smoe_real *)x};
  smoe_bf16_round(memory.half, x, n);
  return memory;
}

/* ---- rounding ---- */

static inline smoe_bf16 rounded(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t size = bits & 0x7fffffff, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const uint32_t nan = bits >> 16 | 0x40, zero = bits >> 16 & 0x8000;
  return (smoe_bf16)(size > 0x7f800000 ? nan : size < 0x00800000 ? zero : nearest);
}

static inline smoe_real expanded(smoe_bf16 x) {
  const uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static void round_portable(smoe_bf16 *restrict y, const smoe_real *restrict x, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = rounded((float)x[i]);
}

typedef void rounding(smoe_bf16 *restrict, const smoe_real *restrict, size_t);

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

static rounding *fastest(void) {
  static rounding *kernel;
  if (!kernel)
    kernel = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512bf16")
                 ? round_native
                 : round_portable;
  return kernel;
}
#else
static rounding *fastest(void) {
  return round_portable;
}
#endif

static void in_pieces(rounding *kernel, smoe_bf16 *y, const smoe_real *x, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) kernel(y + i, x + i, n - i < PIECE ? n - i : PIECE);
}

void smoe_bf16_round(smoe_bf16 *y, const smoe_real *x, size_t n) {
  in_pieces(fastest(), y, x, n);
}

void smoe_bf16_round_portable(smoe_bf16 *y, const smoe_real *x, size_t n) {
  in_pieces(round_portable, y, x, n);
}

void smoe_bf16_expand(smoe_real *y, const smoe_bf16 *x, size_t n) {
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE) smoe_bf16_expand_row(y + i, x + i, n - i < PIECE ? n - i : PIECE);
}

void smoe_bf16_expand_row(smoe_real *restrict y, const smoe_bf16 *restrict x, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = expanded(x[i]);
}

void smoe_bf16_add_row(smoe_real *restrict y, const smoe_bf16 *restrict x, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += expanded(x[i]);
}

void smoe_bf16_add_row_scaled(smoe_real *restrict y, smoe_real factor, const smoe_bf16 *restrict x,
                              size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += factor * expanded(x[i]);
}

void smoe_bf16_round_row(smoe_bf16 *y, const smoe_real *x, smoe_real factor, size_t n) {
  rounding *kernel = fastest();
  if (factor == 1) {
    kernel(y, x, n);
    return;
  }
  for (size_t i = 0; i < n; i += SCALED) {
    smoe_real scaled[SCALED];
    const size_t length = n - i < SCALED ? n - i : SCALED;
    for (size_t j = 0; j < length; j++) scaled[j] = factor * x[i + j];
    kernel(y + i, scaled, length);
  }
}
