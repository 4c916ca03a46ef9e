#include "stablemoe/kernel.h"

#include <omp.h>

#include "vector.h"

static const smoe_real norm_epsilon = (smoe_real)1e-5;

enum {
  NORM_ROWS = 16,    /* rows whose dy and x are still in cache when the columns are summed */
  NORM_COLUMNS = 128 /* columns that one thread sums */
};

static smoe_real row_sum(const smoe_real *restrict x, size_t c) {
  smoe_real partial[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= c; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] += x[i + j];
  for (size_t j = 0; i < c; i++, j++) partial[j] += x[i];
  return partials_sum(partial);
}

/* Sum of squares about the mean: a second pass, because the difference of two large sums would cancel. */
static smoe_real row_sum_squares(const smoe_real *restrict x, smoe_real mean, size_t c) {
  smoe_real partial[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= c; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] += (x[i + j] - mean) * (x[i + j] - mean);
  for (size_t j = 0; i < c; i++, j++) partial[j] += (x[i] - mean) * (x[i] - mean);
  return partials_sum(partial);
}

static void row_apply(smoe_real *restrict y, smoe_real mean, smoe_real rstd, const smoe_real *restrict x,
                      const smoe_real *restrict gamma, const smoe_real *restrict beta, size_t c) {
  for (size_t j = 0; j < c; j++) y[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
}

void smoe_norm_forward(smoe_real *y, smoe_real *mean, smoe_real *rstd, const smoe_real *x,
                       const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c) {
#pragma omp parallel for if (n * c > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    const smoe_real *row = x + i * c;
    mean[i] = row_sum(row, c) / (smoe_real)c;
    rstd[i] = 1 / sqrt_real(row_sum_squares(row, mean[i], c) / (smoe_real)c + norm_epsilon);
    row_apply(y + i * c, mean[i], rstd[i], row, gamma, beta, c);
  }
}

void smoe_norm_recompute(smoe_real *y, const smoe_real *mean, const smoe_real *rstd, const smoe_real *x,
                         const smoe_real *gamma, const smoe_real *beta, size_t n, size_t c) {
#pragma omp parallel for if (n * c > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) row_apply(y + i * c, mean[i], rstd[i], x + i * c, gamma, beta, c);
}

/* With h = (x - mean) rstd and g = dy gamma: dx += rstd (g - <g>/C - h <g h>/C). */
static void row_backward(smoe_real *restrict dx, const smoe_real *restrict dy, const smoe_real *restrict x,
                         const smoe_real *restrict gamma, smoe_real mean, smoe_real rstd, size_t c) {
  smoe_real sum_g[PARTIALS] = {0}, sum_gh[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= c; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) {
      const smoe_real g = dy[i + j] * gamma[i + j];
      sum_g[j] += g;
      sum_gh[j] += g * ((x[i + j] - mean) * rstd);
    }
  for (size_t j = 0; i < c; i++, j++) {
    const smoe_real g = dy[i] * gamma[i];
    sum_g[j] += g;
    sum_gh[j] += g * ((x[i] - mean) * rstd);
  }
  const smoe_real mean_g = partials_sum(sum_g) / (smoe_real)c;
  const smoe_real mean_gh = partials_sum(sum_gh) / (smoe_real)c;
  for (size_t j = 0; j < c; j++) dx[j] += rstd * (dy[j] * gamma[j] - mean_g - (x[j] - mean) * rstd * mean_gh);
}

/* dgamma += sum of dy h, dbeta += sum of dy: columns first .. last - 1 of n rows, in row order. */
static void columns_backward(smoe_real *restrict dgamma, smoe_real *restrict dbeta,
                             const smoe_real *restrict dy, const smoe_real *restrict x,
                             const smoe_real *restrict mean, const smoe_real *restrict rstd, size_t n,
                             size_t c, size_t first, size_t last) {
  for (size_t i = 0; i < n && dgamma && dbeta; i++) {
    const smoe_real m = mean[i], r = rstd[i];
    for (size_t j = first; j < last; j++) {
      dgamma[j] += dy[i * c + j] * ((x[i * c + j] - m) * r);
      dbeta[j] += dy[i * c + j];
    }
  }
  if (dgamma && dbeta) return;
  /* One of them never learns, or both. */
  for (size_t i = 0; i < n && dgamma; i++)
    for (size_t j = first; j < last; j++) dgamma[j] += dy[i * c + j] * ((x[i * c + j] - mean[i]) * rstd[i]);
  for (size_t i = 0; i < n && dbeta; i++)
    for (size_t j = first; j < last; j++) dbeta[j] += dy[i * c + j];
}

void smoe_norm_backward(smoe_real *dx, smoe_real *dgamma, smoe_real *dbeta, const smoe_real *dy,
                        const smoe_real *x, const smoe_real *gamma, const smoe_real *mean,
                        const smoe_real *rstd, size_t n, size_t c) {
  /* Rows are split for dx, columns for dgamma and dbeta. One thread goes back and forth in few rows,
   * several threads meet only twice. The order of each sum is the rows' order in both cases. */
  const bool parallel = omp_get_max_threads() > 1 && n * c > PARALLEL_MIN;
  const size_t rows = parallel ? n : NORM_ROWS, columns = parallel ? NORM_COLUMNS : c;
  for (size_t first = 0; first < n; first += rows) {
    const size_t last = n - first < rows ? n : first + rows;
#pragma omp parallel for if (parallel)
    for (size_t i = first; i < last; i++)
      row_backward(dx + i * c, dy + i * c, x + i * c, gamma, mean[i], rstd[i], c);
#pragma omp parallel for if (parallel)
    for (size_t j = 0; j < (dgamma || dbeta ? c : 0); j += columns)
      columns_backward(dgamma, dbeta, dy + first * c, x + first * c, mean + first, rstd + first, last - first,
                       c, j, c - j < columns ? c : j + columns);
  }
}

/* ---- RMS norm ---- */

static void row_scale_by(smoe_real *restrict y, smoe_real factor, const smoe_real *restrict x,
                         const smoe_real *restrict gamma, size_t c) {
  for (size_t j = 0; j < c; j++) y[j] = x[j] * factor * gamma[j];
}

void smoe_rms_norm_forward(smoe_real *y, smoe_real *rrms, const smoe_real *x, const smoe_real *gamma,
                           size_t n, size_t c) {
#pragma omp parallel for if (n * c > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    rrms[i] = 1 / sqrt_real(row_sum_squares(x + i * c, 0, c) / (smoe_real)c + norm_epsilon);
    row_scale_by(y + i * c, rrms[i], x + i * c, gamma, c);
  }
}

void smoe_rms_norm_recompute(smoe_real *y, const smoe_real *rrms, const smoe_real *x, const smoe_real *gamma,
                             size_t n, size_t c) {
#pragma omp parallel for if (n * c > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) row_scale_by(y + i * c, rrms[i], x + i * c, gamma, c);
}

/* With h = x rrms and g = dy gamma: dx += rrms (g - h <g h>/C). */
static void rms_row_backward(smoe_real *restrict dx, const smoe_real *restrict dy,
                             const smoe_real *restrict x, const smoe_real *restrict gamma, smoe_real rrms,
                             size_t c) {
  smoe_real sum[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= c; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) sum[j] += dy[i + j] * gamma[i + j] * (x[i + j] * rrms);
  for (size_t j = 0; i < c; i++, j++) sum[j] += dy[i] * gamma[i] * (x[i] * rrms);
  const smoe_real mean = partials_sum(sum) / (smoe_real)c;
  for (size_t j = 0; j < c; j++) dx[j] += rrms * (dy[j] * gamma[j] - x[j] * rrms * mean);
}

/* dgamma += sum of dy h: columns first .. last - 1 of n rows, in row order. */
static void rms_columns_backward(smoe_real *restrict dgamma, const smoe_real *restrict dy,
                                 const smoe_real *restrict x, const smoe_real *restrict rrms, size_t n,
                                 size_t c, size_t first, size_t last) {
  for (size_t i = 0; i < n; i++)
    for (size_t j = first; j < last; j++) dgamma[j] += dy[i * c + j] * (x[i * c + j] * rrms[i]);
}

void smoe_rms_norm_backward(smoe_real *dx, smoe_real *dgamma, const smoe_real *dy, const smoe_real *x,
                            const smoe_real *gamma, const smoe_real *rrms, size_t n, size_t c) {
  /* Cut as in smoe_norm_backward. */
  const bool parallel = omp_get_max_threads() > 1 && n * c > PARALLEL_MIN;
  const size_t rows = parallel ? n : NORM_ROWS, columns = parallel ? NORM_COLUMNS : c;
  for (size_t first = 0; first < n; first += rows) {
    const size_t last = n - first < rows ? n : first + rows;
#pragma omp parallel for if (parallel)
    for (size_t i = first; i < last; i++)
      rms_row_backward(dx + i * c, dy + i * c, x + i * c, gamma, rrms[i], c);
#pragma omp parallel for if (parallel)
    for (size_t j = 0; j < (dgamma ? c : 0); j += columns)
      rms_columns_backward(dgamma, dy + first * c, x + first * c, rrms + first, last - first, c, j,
                           c - j < columns ? c : j + columns);
  }
}
