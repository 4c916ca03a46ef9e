#include "stablemoe/core_peak.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu.h"
#include "stablemoe/timer.h"
#include "tile.h"

/* On processors without a kernel below, a product and a sum shall be one instruction where there is one. */
#if defined __GNUC__ && !defined __clang__
#pragma GCC optimize("fp-contract=fast")
#endif

#if defined __x86_64__
#include <immintrin.h>
#endif

/* Kernels: `rounds` rounds of multiply-adds; the sums start at *x and end there, or the compiler would drop them.
 * The number of sums hides the latency of one: four cycles and two instructions in each at least. */
typedef void kernel(float *x, size_t rounds);

typedef struct instructions {
  const char *name;
  kernel *run;
  double flops; /* of a round */
} instructions;

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
enum { SUMS = 12 };

static void fma_portable(float *x, size_t rounds) {
  vector sum[SUMS], a = (vector){0} + x[0], b = (vector){0} + x[1];
  for (int j = 0; j < SUMS; j++) sum[j] = a;
  for (size_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < SUMS; j++) sum[j] += a * b;
  for (int j = 1; j < SUMS; j++) sum[0] += sum[j];
  x[2] = sum[0][0];
}

#if defined __x86_64__
__attribute__((target("avx2,fma"))) static void fma_avx2(float *x, size_t rounds) {
  const __m256 a = _mm256_set1_ps(x[0]), b = _mm256_set1_ps(x[1]);
  __m256 sum[SUMS];
  for (int j = 0; j < SUMS; j++) sum[j] = a;
  for (size_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < SUMS; j++) sum[j] = _mm256_fmadd_ps(a, b, sum[j]);
  for (int j = 1; j < SUMS; j++) sum[0] = _mm256_add_ps(sum[0], sum[j]);
  x[2] = _mm256_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f"))) static void fma_avx512(float *x, size_t rounds) {
  const __m512 a = _mm512_set1_ps(x[0]), b = _mm512_set1_ps(x[1]);
  __m512 sum[SUMS];
  for (int j = 0; j < SUMS; j++) sum[j] = a;
  for (size_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < SUMS; j++) sum[j] = _mm512_fmadd_ps(a, b, sum[j]);
  for (int j = 1; j < SUMS; j++) sum[0] = _mm512_add_ps(sum[0], sum[j]);
  x[2] = _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f,avx512bf16"))) static void dot_avx512(float *x, size_t rounds) {
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(x[0]), _mm512_set1_ps(x[0]));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(x[1]), _mm512_set1_ps(x[1]));
  __m512 sum[SUMS];
  for (int j = 0; j < SUMS; j++) sum[j] = _mm512_set1_ps(x[0]);
  for (size_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < SUMS; j++) sum[j] = _mm512_dpbf16_ps(sum[j], a, b);
  for (int j = 1; j < SUMS; j++) sum[0] = _mm512_add_ps(sum[0], sum[j]);
  x[2] = _mm512_cvtss_f32(sum[0]);
}

/* How LDTILECFG reads it: palette 1, eight tiles of 16 rows of 64 bytes. */
typedef struct tile_shapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} tile_shapes;

/* Four tiles of sums, two of each operand: a tile instruction takes 16 cycles, and its result about 52. */
__attribute__((target("amx-tile,amx-bf16"))) static void dot_amx(float *x, size_t rounds) {
  tile_shapes shapes = {.palette = 1};
  for (int t = 0; t < 8; t++) shapes.bytes[t] = 64, shapes.rows[t] = 16;
  float memory[16 * 16];
  for (int i = 0; i < 16 * 16; i++) memory[i] = x[i % 2];
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, memory, 64);
  _tile_loadd(5, memory, 64);
  _tile_loadd(6, memory, 64);
  _tile_loadd(7, memory, 64);
  for (size_t i = 0; i < rounds; i++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(3, memory, 64);
  _tile_release();
  x[2] = memory[0];
}
#endif

/* The best of several short runs: what else runs on the core leaves some of them alone. */
static double best_rate(const instructions *kind) {
  enum { RUNS = 24, ENOUGH = 6 };
  const double shortest = 1e-4, patience = 2e-2;
  static volatile float seed[] = {1e-3F, 1e-3F};
  float x[3] = {seed[0], seed[1], 0};
  const double begin = smoe_seconds();
  double best = 0;
  size_t rounds = 64;
  for (int r = 0; r < RUNS && (r < ENOUGH || smoe_seconds() - begin < patience);) {
    const double before = smoe_seconds();
    kind->run(x, rounds);
    const double seconds = smoe_seconds() - before;
    if (seconds <
        shortest) { /* too short for the clock; and the core may not run at its full frequency yet */
      rounds *= 2;
      continue;
    }
    best = fmax(best, (double)rounds * kind->flops / seconds);
    r++;
  }
  return best;
}

double smoe_core_peak_fp32(const char **isa) {
  instructions kind = {"compiled", fma_portable, 2.0 * SUMS * VECTOR_BYTES / sizeof(float)};
#if defined __x86_64__
  if (smoe_cpu_has_avx2()) kind = (instructions){"AVX2", fma_avx2, 2.0 * SUMS * 8};
  if (smoe_cpu_has_avx512()) kind = (instructions){"AVX-512", fma_avx512, 2.0 * SUMS * 16};
#endif
  *isa = kind.name;
  return best_rate(&kind);
}

double smoe_core_peak_bf16(const char **isa) {
  double best = NAN;
  *isa = "none";
#if defined __x86_64__
  const instructions dot = {"AVX512_BF16", dot_avx512, 2.0 * SUMS * 32},
                     tiles = {"AMX", dot_amx, 4 * 2.0 * 16 * 16 * 32};
  if (smoe_cpu_has_avx512_bf16()) {
    best = best_rate(&dot);
    *isa = dot.name;
  }
  if (smoe_cpu_has_amx_bf16()) {
    const double rate = best_rate(&tiles);
    if (!(best >= rate)) {
      best = rate;
      *isa = tiles.name;
    }
  }
#endif
  return best;
}

void smoe_core_peak_measure(smoe_core_peak *peak) {
  peak->fp32 = smoe_core_peak_fp32(&peak->fp32_isa);
  peak->bf16 = smoe_core_peak_bf16(&peak->bf16_isa);
}
