#include "softmax_scores.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"

void smoe_scores_forward(smoe_real *z, const smoe_real *x, const smoe_real *w, size_t n, size_t c, size_t e) {
  smoe_linear_forward(z, x, w, NULL, n, c, e);
  for (size_t i = 0; i < n * e; i++)
    if (!isfinite(z[i])) z[i] = -(smoe_real)INFINITY;
}

/* The best expert after `last` in the order of falling scores, the lower one first on ties; -1: none. */
static int32_t next_best(const smoe_real *z, size_t e, int32_t last) {
  int32_t best = -1;
  for (size_t i = 0; i < e; i++) {
    const bool taken = last >= 0 && (z[i] > z[last] || (z[i] == z[last] && i <= (size_t)last));
    if (taken || !isfinite(z[i])) continue;
    if (best < 0 || z[i] > z[best]) best = (int32_t)i;
  }
  return best;
}

void smoe_scores_top(int32_t *expert, size_t slots, const smoe_real *z, const int32_t *token, size_t n,
                     size_t e, size_t k) {
  for (size_t t = 0; t < n; t++) {
    int32_t last = -1;
    bool more = token[t] >= 0;
    for (size_t j = 0; j < k; j++) {
      last = more ? next_best(z + t * e, e, last) : -1;
      more = last >= 0;
      expert[t * slots + j] = last;
    }
    if (k > 0 && token[t] >= 0 && expert[t * slots] < 0) expert[t * slots] = 0;
  }
}

void smoe_scores_softmax(smoe_real *p, const int32_t *token, size_t n, size_t e) {
  smoe_softmax_forward(p, p, n, e);
  for (size_t t = 0; t < n; t++) /* A row of nothing but minus infinity comes out as NaN. */
    if (token[t] < 0 || isnan(p[t * e])) memset(p + t * e, 0, e * sizeof *p);
}

void smoe_scores_softmax_backward(smoe_real *dp, const smoe_real *p, size_t n, size_t e) {
  for (size_t t = 0; t < n; t++) {
    const smoe_real mean = smoe_dot(p + t * e, dp + t * e, e);
    for (size_t i = t * e; i < (t + 1) * e; i++) dp[i] = p[i] * (dp[i] - mean);
  }
}

void smoe_load_shares(smoe_real *f, const smoe_route_loads *loads, size_t e) {
  for (size_t i = 0; i < e; i++)
    f[i] = loads->n_assigned > 0 ? (smoe_real)((double)loads->load[i] / (double)loads->n_assigned) : 0;
}

double smoe_balance_sum(const smoe_real *p, const smoe_real *f, size_t n, size_t e) {
  double sum = 0;
  for (size_t t = 0; t < n; t++) sum += (double)smoe_dot(p + t * e, f, e);
  return (double)e * sum;
}

void smoe_balance_backward(smoe_real *dp, const smoe_real *f, smoe_real weight, size_t n, size_t e) {
  for (size_t t = 0; t < n; t++)
    for (size_t i = 0; i < e; i++) dp[t * e + i] = weight * (smoe_real)e * f[i];
}
