/** Layer norm and RMS norm. */
#include "near.h"
#include "stablemoe/kernel.h"

typedef struct reference {
  double *y, *dx, *dgamma, *dbeta;
} reference;

/* One row, in double; dy is the gradient of y. */
static void reference_row(reference *r, const smoe_real *x, const smoe_real *gamma, const smoe_real *beta,
                          const smoe_real *dy, size_t row, size_t c) {
  double mean = 0, variance = 0, mean_g = 0, mean_gh = 0;
  for (size_t j = 0; j < c; j++) mean += x[j] / (double)c;
  for (size_t j = 0; j < c; j++) variance += (x[j] - mean) * (x[j] - mean) / (double)c;
  const double rstd = 1 / sqrt(variance + 1e-5);
  for (size_t j = 0; j < c; j++) {
    const double h = (x[j] - mean) * rstd, g = (double)dy[j] * gamma[j];
    r->y[row * c + j] = h * gamma[j] + beta[j];
    r->dgamma[j] += dy[j] * h;
    r->dbeta[j] += dy[j];
    mean_g += g / (double)c, mean_gh += g * h / (double)c;
  }
  for (size_t j = 0; j < c; j++)
    r->dx[row * c + j] += rstd * ((double)dy[j] * gamma[j] - mean_g - (x[j] - mean) * rstd * mean_gh);
}

static void norm(size_t n, size_t c, double offset) {
  smoe_real *x = values_uniform(n * c, 1), *gamma = values_uniform(c, 2), *beta = values_uniform(c, 3);
  smoe_real *dy = values_uniform(n * c, 4), *dx = values_uniform(n * c, 5), *dgamma = values_uniform(c, 6);
  smoe_real *dbeta = values_uniform(c, 7), *y = values_zero(n * c), *again = values_zero(n * c);
  smoe_real *mean = values_zero(n), *rstd = values_zero(n);
  reference r = {near_doubles(n * c), near_doubles(n * c), near_doubles(c), near_doubles(c)};
  for (size_t i = 0; i < n * c; i++) x[i] += (smoe_real)offset;
  for (size_t i = 0; i < n * c; i++) r.dx[i] = dx[i];
  for (size_t j = 0; j < c; j++) r.dgamma[j] = dgamma[j], r.dbeta[j] = dbeta[j];
  for (size_t i = 0; i < n; i++) reference_row(&r, x + i * c, gamma, beta, dy + i * c, i, c);

  smoe_norm_forward(y, mean, rstd, x, gamma, beta, n, c);
  smoe_norm_recompute(again, mean, rstd, x, gamma, beta, n, c);
  smoe_norm_backward(dx, dgamma, dbeta, dy, x, gamma, mean, rstd, n, c);
  /* The mean of large values has their rounding. */
  const double tolerance = 1e-5 * fmax(1, fabs(offset));
  near_check("norm y", y, r.y, n * c, tolerance, 1);
  near_same_bits("norm again", again, y, n * c);
  near_check("norm dx", dx, r.dx, n * c, tolerance, 10);
  near_check("norm dgamma", dgamma, r.dgamma, c, tolerance, 10);
  near_check("norm dbeta", dbeta, r.dbeta, c, tolerance, 10);
  smoe_free(x), smoe_free(gamma), smoe_free(beta), smoe_free(dy), smoe_free(dx), smoe_free(dgamma);
  smoe_free(dbeta), smoe_free(y), smoe_free(again), smoe_free(mean), smoe_free(rstd);
  smoe_free(r.y), smoe_free(r.dx), smoe_free(r.dgamma), smoe_free(r.dbeta);
}

/* RMS norm in double; dy is the gradient of y. */
static void reference_rms(reference *r, const smoe_real *x, const smoe_real *gamma, const smoe_real *dy,
                          size_t row, size_t c) {
  double squares = 0, mean_gh = 0;
  for (size_t j = 0; j < c; j++) squares += (double)x[j] * x[j];
  const double rrms = 1 / sqrt(squares / (double)c + 1e-5);
  for (size_t j = 0; j < c; j++) mean_gh += (double)dy[j] * gamma[j] * x[j] * rrms / (double)c;
  for (size_t j = 0; j < c; j++) {
    const double h = x[j] * rrms;
    r->y[row * c + j] = h * gamma[j];
    r->dgamma[j] += dy[j] * h;
    r->dx[row * c + j] += rrms * ((double)dy[j] * gamma[j] - h * mean_gh);
  }
}

static void rms_norm(size_t n, size_t c) {
  smoe_real *x = values_uniform(n * c, 1), *gamma = values_uniform(c, 2), *dy = values_uniform(n * c, 4);
  smoe_real *dx = values_uniform(n * c, 5), *dgamma = values_uniform(c, 6);
  smoe_real *y = values_zero(n * c), *second = values_zero(n * c), *rrms = values_zero(n);
  reference r = {.y = near_doubles(n * c), .dx = near_doubles(n * c), .dgamma = near_doubles(c)};
  for (size_t i = 0; i < n * c; i++) r.dx[i] = dx[i];
  for (size_t j = 0; j < c; j++) r.dgamma[j] = dgamma[j];
  for (size_t i = 0; i < n; i++) reference_rms(&r, x + i * c, gamma, dy + i * c, i, c);
  smoe_rms_norm_forward(y, rrms, x, gamma, n, c);
  smoe_rms_norm_recompute(second, rrms, x, gamma, n, c);
  smoe_rms_norm_backward(dx, dgamma, dy, x, gamma, rrms, n, c);
  near_check("rms norm y", y, r.y, n * c, 1e-5, 1);
  near_same_bits("rms norm recompute", second, y, n * c);
  near_check("rms norm dx", dx, r.dx, n * c, 1e-5, 10);
  near_check("rms norm dgamma", dgamma, r.dgamma, c, 1e-5, 10);
  smoe_free(x), smoe_free(gamma), smoe_free(dy), smoe_free(dx), smoe_free(dgamma), smoe_free(y);
  smoe_free(second), smoe_free(rrms), smoe_free(r.y), smoe_free(r.dx), smoe_free(r.dgamma);
}

int main(void) {
  const size_t rows[] = {0, 1, 15, 16, 37}, columns[] = {0, 1, 2, 31, 32, 33, 256};
  for (size_t i = 0; i < 5; i++)
    for (size_t j = 0; j < 7; j++) norm(rows[i], columns[j], 0), rms_norm(rows[i], columns[j]);
  norm(5, 100, 30); /* a variance small beside the mean must not cancel */
  return test_verdict("norm");
}
