/** Loops that the compiler turns into vector code, with one order of every sum.
 *
 *  A sum over a row runs in interleaved partial sums held in a small array: element
 *  i goes to partial sum i % PARTIALS, and those are added in a fixed binary tree. The
 *  order is written down in the source, so it is the same for every vector width,
 *  and no flag that reorders floating-point arithmetic is needed.
 */
#ifndef STABLEMOE_KERNEL_VECTOR_H
#define STABLEMOE_KERNEL_VECTOR_H

#include <math.h>
#include <string.h>

#include "stablemoe/real.h"

/** Partial sums of a row; a power of two. Two AVX-512 or four AVX registers of float hide the adder's latency. */
enum { PARTIALS = 32 };

/** Elements below which a second thread costs more than it gains. */
enum { PARALLEL_MIN = 32768 };

/** Elements of a piece that one thread takes of a flat array. */
enum { PIECE = 4096 };

/** Sum of the partial sums, in a fixed tree. */
static inline smoe_real partials_sum(const smoe_real *partial) {
  smoe_real a[16], b[8], c[4];
  for (size_t j = 0; j < 16; j++) a[j] = partial[j] + partial[j + 16];
  for (size_t j = 0; j < 8; j++) b[j] = a[j] + a[j + 8];
  for (size_t j = 0; j < 4; j++) c[j] = b[j] + b[j + 4];
  return (c[0] + c[2]) + (c[1] + c[3]);
}

/** Add the products of n elements to the partial sums; of a row in several calls all n but the last are multiples of
 *  PARTIALS. */
static inline void partials_add_products(smoe_real *restrict partial, const smoe_real *restrict x,
                                         const smoe_real *restrict y, size_t n) {
  size_t i = 0;
  for (; i + PARTIALS <= n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] += x[i + j] * y[i + j];
  for (size_t j = 0; i < n; i++, j++) partial[j] += x[i] * y[i];
}

/** The larger one; b where a is NaN. */
static inline smoe_real larger(smoe_real a, smoe_real b) {
  return a > b ? a : b;
}

/** Largest of n elements; -infinity where there is none. */
static inline smoe_real row_max(const smoe_real *restrict x, size_t n) {
  smoe_real partial[PARTIALS];
  for (size_t j = 0; j < PARTIALS; j++) partial[j] = -(smoe_real)INFINITY;
  size_t i = 0;
  for (; i + PARTIALS <= n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] = larger(x[i + j], partial[j]);
  for (size_t j = 0; i < n; i++, j++) partial[j] = larger(x[i], partial[j]);
  for (size_t j = 0; j < 16; j++) partial[j] = larger(partial[j], partial[j + 16]);
  for (size_t j = 0; j < 8; j++) partial[j] = larger(partial[j], partial[j + 8]);
  for (size_t j = 0; j < 4; j++) partial[j] = larger(partial[j], partial[j + 4]);
  return larger(larger(partial[0], partial[2]), larger(partial[1], partial[3]));
}

/* sqrt_real: the root in the precision of smoe_real.
 * exp_real: exp(x) for x <= 1, the only arguments softmax has; 0 below -87 in single precision; NaN of NaN. */
#ifdef SMOE_DOUBLE
static inline double sqrt_real(double x) {
  return sqrt(x);
}

static inline double exp_real(double x) {
  return exp(x);
}
#else
static inline float sqrt_real(float x) {
  return sqrtf(x);
}

/* The C library's expf is a call per element. Here: x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by a
 * polynomial of degree 6 (fitted for the least relative error, 3e-9), 2^n put together from its bits. */
static inline float exp_real(float x) {
  const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, in the low bits */
  const float shifted = x * 1.44269504f + shift;
  const float n = shifted - shift;
  const float r =
      (x - n * 0.693359375f) - n * -2.12194440e-4f; /* ln 2 in two parts: n times the first is exact */
  const float q =
      (((0.00138145399f * r + 0.00836874513f) * r + 0.0416683908f) * r + 0.166665204f) * r + 0.499999934f;
  const float mantissa = 1.0f + (r + r * r * q);
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127u << 23);
  float power;
  memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : mantissa * power;
}
#endif

/** p = exp(x - shift), and the sum of p; p may be x. */
static inline smoe_real row_exp(smoe_real *p, const smoe_real *x, smoe_real shift, size_t n) {
  smoe_real partial[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= n; i += PARTIALS)
#pragma omp simd /* p and x are equal or apart: the compiler need not check */
    for (size_t j = 0; j < PARTIALS; j++) {
      const smoe_real e = exp_real(x[i + j] - shift);
      p[i + j] = e;
      partial[j] += e;
    }
  for (size_t j = 0; i < n; i++, j++) partial[j] += p[i] = exp_real(x[i] - shift);
  return partials_sum(partial);
}

#endif
