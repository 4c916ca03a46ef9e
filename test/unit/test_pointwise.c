/** Elementwise kernels, sums, embedding, and Adam. */
#include "near.h"
#include "stablemoe/kernel.h"

static const size_t sizes[] = {0, 1, 15, 31, 32, 33, 100, 5000};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static void flat(size_t n) {
  smoe_real *x = values_uniform(n, 1), *y = values_uniform(n, 2), *sum = values_copy(y, n);
  smoe_real *dh = values_copy(y, n);
  double dot = 0, squares = 0;
  for (size_t i = 0; i < n; i++) dot += (double)x[i] * y[i], squares += (double)x[i] * x[i];
  CHECK_NEAR(smoe_dot(x, y, n), dot, 1e-5, 1 + 1e-2 * (double)n);
  CHECK_NEAR(smoe_sum_squares(x, n), squares, 1e-13, 1);
  smoe_add(sum, x, n);
  smoe_relu_backward(dh, x, n);
  for (size_t i = 0; i < n; i++) {
    CHECK(sum[i] == y[i] + x[i], "add [%zu]", i);
    CHECK(dh[i] == (x[i] > 0 ? y[i] : 0), "relu backward [%zu]", i);
  }
  smoe_free(x), smoe_free(y), smoe_free(sum), smoe_free(dh);
}

static void rows(size_t n, size_t c) {
  smoe_real *h = values_uniform(n * c, 3), *b = values_uniform(c, 4), *got = values_copy(h, n * c);
  smoe_real *scaled = values_uniform(n * c, 5), *before = values_copy(scaled, n * c);
  smoe_real *s = values_uniform(n * 2, 6);
  smoe_bias_relu_forward(got, b, n, c);
  smoe_add_rows_scaled(scaled, s, 2, h, n, c);
  for (size_t i = 0; i < n * c; i++) {
    const smoe_real value = h[i] + b[i % c];
    CHECK(got[i] == (value > 0 ? value : 0), "bias and relu [%zu]", i);
    CHECK_NEAR(scaled[i], before[i] + (double)s[i / c * 2] * h[i], 1e-6, 1);
  }
  smoe_free(h), smoe_free(b), smoe_free(got), smoe_free(scaled), smoe_free(before), smoe_free(s);
}

static void special(void) {
  smoe_real h[] = {NAN, -INFINITY, INFINITY}, b[] = {0, 0, 0};
  smoe_bias_relu_forward(h, b, 1, 3);
  CHECK(isnan(h[0]) && h[1] == 0 && h[2] == (smoe_real)INFINITY, "relu of NaN, -inf, inf: %g %g %g",
        (double)h[0], (double)h[1], (double)h[2]);
  for (double x = -100; x <= 100; x += 0.37)
    CHECK_NEAR(smoe_sigmoid((smoe_real)x), 1 / (1 + exp(-(double)(smoe_real)x)), 1e-6, 1e-30);
  CHECK(smoe_sigmoid(-INFINITY) == 0 && smoe_sigmoid(INFINITY) == 1, "sigmoid at infinity");
  CHECK(isnan(smoe_sigmoid(NAN)), "sigmoid of NaN");
}

static void embedding(size_t s, size_t t, size_t c, size_t v) {
  smoe_real *table = values_uniform(v * c, 7), *position = values_uniform(t * c, 8);
  smoe_real *x = values_zero(s * t * c), *dx = values_uniform(s * t * c, 9);
  smoe_real *dtable = values_uniform(v * c, 10), *dposition = values_uniform(t * c, 11);
  double *want = near_doubles(s * t * c), *want_dt = near_doubles(v * c), *want_dp = near_doubles(t * c);
  int32_t *token = values_ids(s * t, (int32_t)v, 12);
  for (size_t i = 0; i < v * c; i++) want_dt[i] = dtable[i];
  for (size_t i = 0; i < t * c; i++) want_dp[i] = dposition[i];
  for (size_t i = 0; i < s * t; i++)
    for (size_t j = 0; j < c; j++) {
      want[i * c + j] = position[i % t * c + j];
      want_dp[i % t * c + j] += dx[i * c + j];
      if (token[i] < 0) continue;
      want[i * c + j] += 16.0 * table[(size_t)token[i] * c + j];
      want_dt[(size_t)token[i] * c + j] += 16.0 * dx[i * c + j];
    }
  smoe_embedding_forward(x, token, table, position, 16, s, t, c);
  smoe_embedding_backward(dtable, dposition, dx, token, 16, s, t, c);
  near_check("embedding", x, want, s * t * c, 1e-6, 1);
  near_check("embedding dtable", dtable, want_dt, v * c, 1e-5, 10);
  near_check("embedding dposition", dposition, want_dp, t * c, 1e-5, 10);
  smoe_free(table), smoe_free(position), smoe_free(x), smoe_free(dx), smoe_free(dtable);
  smoe_free(dposition), smoe_free(want), smoe_free(want_dt), smoe_free(want_dp), smoe_free(token);
}

static void adam(size_t n) {
  const double b1 = 0.9, b2 = 0.98;
  smoe_real *w = values_uniform(n, 13), *m = values_zero(n), *v = values_zero(n), *g = values_uniform(n, 14);
  double *want = near_doubles(n), *m1 = near_doubles(n), *v1 = near_doubles(n);
  for (size_t i = 0; i < n; i++) want[i] = w[i];
  for (int step = 1; step <= 3; step++) {
    smoe_adam a = {.lr = 0.01, .beta1 = b1, .beta2 = b2, .epsilon = 1e-8, .decay = 0.1, .scale = 0.5 / step};
    a.correction1 = 1 - pow(b1, step), a.correction2 = 1 - pow(b2, step);
    smoe_adam_step(w, m, v, g, n, &a);
    for (size_t i = 0; i < n; i++) {
      const double gradient = a.scale * g[i];
      m1[i] = b1 * m1[i] + (1 - b1) * gradient;
      v1[i] = b2 * v1[i] + (1 - b2) * gradient * gradient;
      want[i] -= a.lr * (m1[i] / a.correction1) / (sqrt(v1[i] / a.correction2) + a.epsilon) +
                 a.lr * a.decay * want[i];
    }
  }
  near_check("adam w", w, want, n, 1e-6, 1);
  near_check("adam m", m, m1, n, 1e-6, 1e-2);
  near_check("adam v", v, v1, n, 1e-6, 1e-2);
  smoe_free(w), smoe_free(m), smoe_free(v), smoe_free(g), smoe_free(want), smoe_free(m1), smoe_free(v1);
}

int main(void) {
  for (size_t i = 0; i < N_SIZES; i++) {
    flat(sizes[i]);
    adam(sizes[i]);
    rows(3, sizes[i]);
    rows(sizes[i], 1);
  }
  special();
  embedding(0, 4, 3, 2);
  embedding(2, 9, 1, 5);
  embedding(3, 17, 141, 6); /* more columns than one thread takes */
  return test_verdict("pointwise");
}
