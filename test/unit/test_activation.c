/** GELU and SwiGLU against double precision and the C library. */
#include "near.h"
#include "stablemoe/kernel.h"

static double distribution(double x) {
  return erfc(-x / sqrt(2)) / 2;
}

static double density(double x) {
  return exp(-x * x / 2) / sqrt(2 * acos(-1));
}

static double sigmoid(double x) {
  return 1 / (1 + exp(-x));
}

static void gelu(size_t n, size_t f) {
  smoe_real *x = values_uniform(n * f, 1), *b = values_uniform(f, 2), *y = values_zero(n * f);
  smoe_real *dy = values_uniform(n * f, 3), *second = values_zero(n * f);
  double *want = near_doubles(n * f), *want_dy = near_doubles(n * f), *sum = near_doubles(n * f);
  for (size_t i = 0; i < n * f; i++) {
    x[i] *= 8;
    sum[i] = (double)x[i] + b[i % f];
    want[i] = sum[i] * distribution(sum[i]);
    want_dy[i] = dy[i] * (distribution(sum[i]) + sum[i] * density(sum[i]));
  }
  smoe_bias_gelu_forward(y, x, b, n, f);
  smoe_bias_gelu_forward(second, x, NULL, n, f);
  smoe_gelu_backward(dy, x, n * f);
  near_check("gelu x + b", x, sum, n * f, 1e-6, 1);
  near_check("gelu", y, want, n * f, 1e-6, 1e-1);
  near_same_bits("gelu of the kept x", second, y, n * f);
  near_check("gelu backward", dy, want_dy, n * f, 1e-6, 1);
  smoe_bias_gelu_forward(x, x, NULL, n, f);
  near_same_bits("gelu in place", x, y, n * f);
  smoe_free(x), smoe_free(b), smoe_free(y), smoe_free(dy), smoe_free(second);
  smoe_free(want), smoe_free(want_dy), smoe_free(sum);
}

/* The tail keeps its relative accuracy: to 5e-6 at -12, where x^2 / 2 itself is rounded by 4e-6. */
static void gelu_range(void) {
  enum { N = 26001 };
  smoe_real *x = values_zero(N), *y = values_zero(N), *slope = values_zero(N);
  for (int i = 0; i < N; i++) x[i] = (smoe_real)((i - 13000) * 1e-3), slope[i] = 1;
  smoe_bias_gelu_forward(y, x, NULL, 1, N);
  smoe_gelu_backward(slope, x, N);
  for (int i = 0; i < N; i++) {
    const double p = distribution(x[i]);
    CHECK_NEAR(y[i], x[i] * p, x[i] < -4 ? 8e-6 : 1e-6, 1e-30);
    CHECK_NEAR(slope[i], p + x[i] * density(x[i]), 1e-6, 0.1);
  }
  smoe_free(x), smoe_free(y), smoe_free(slope);
}

static void swiglu(size_t n, size_t f) {
  smoe_real *ab = values_uniform(2 * n * f, 1), *h = values_zero(n * f), *dh = values_uniform(n * f, 2);
  smoe_real *dab = values_uniform(2 * n * f, 3);
  double *want = near_doubles(n * f), *want_dab = near_doubles(2 * n * f);
  for (size_t i = 0; i < 2 * n * f; i++) ab[i] *= 9;
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < f; j++) {
      const double a = ab[i * 2 * f + j], b = ab[i * 2 * f + f + j], s = sigmoid(a), d = dh[i * f + j];
      want[i * f + j] = a * s * b;
      want_dab[i * 2 * f + j] = d * b * s * (1 + a * (1 - s));
      want_dab[i * 2 * f + f + j] = d * a * s;
    }
  smoe_swiglu_forward(h, ab, n, f);
  smoe_swiglu_backward(dab, dh, ab, n, f);
  near_check("swiglu", h, want, n * f, 1e-6, 1e-1);
  near_check("swiglu backward", dab, want_dab, 2 * n * f, 2e-6, 1e-1);
  smoe_swiglu_backward(ab, dh, ab, n, f);
  near_same_bits("swiglu backward in place", ab, dab, 2 * n * f);
  smoe_free(ab), smoe_free(h), smoe_free(dh), smoe_free(dab), smoe_free(want), smoe_free(want_dab);
}

static void special(void) {
  smoe_real x[] = {NAN, INFINITY, 0, -100}, y[4], h[4], d[4] = {1, 1, 1, 1};
  smoe_bias_gelu_forward(y, x, NULL, 1, 4);
  CHECK(isnan(y[0]) && isinf(y[1]) && y[2] == 0 && y[3] == 0, "gelu of NaN, inf, 0, -100: %g %g %g %g",
        (double)y[0], (double)y[1], (double)y[2], (double)y[3]);
  smoe_gelu_backward(d, x, 4);
  CHECK(isnan(d[0]) && fabs((double)d[2] - 0.5) <= 1e-6 && d[3] == 0, "gelu' of NaN, 0, -100: %g %g %g",
        (double)d[0], (double)d[2], (double)d[3]);
  smoe_real ab[] = {NAN, INFINITY, 0, -100, 1, 1, 1, 1};
  smoe_swiglu_forward(h, ab, 1, 4);
  CHECK(isnan(h[0]) && isinf(h[1]) && h[2] == 0 && fabs((double)h[3]) <= 1e-35,
        "silu of NaN, inf, 0, -100: %g %g %g %g", (double)h[0], (double)h[1], (double)h[2], (double)h[3]);
}

int main(void) {
  const size_t rows[] = {0, 1, 5}, columns[] = {0, 1, 15, 16, 33, 300};
  for (size_t i = 0; i < 3; i++)
    for (size_t j = 0; j < 6; j++) gelu(rows[i], columns[j]), swiglu(rows[i], columns[j]);
  gelu_range();
  special();
  return test_verdict("activation");
}
