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

void smoe_scores_sigmoid(smoe_real *s, const int32_t *token, size_t n, size_t e) {
  for (size_t i = 0; i < n * e; i++) s[i] = token[i / e] >= 0 && isfinite(s[i]) ? smoe_sigmoid(s[i]) : 0;
}

void smoe_scores_shares(smoe_real *p, const smoe_real *s, size_t n, size_t e) {
  for (size_t t = 0; t < n; t++) {
    smoe_real sum = 0;
    for (size_t i = t * e; i < (t + 1) * e; i++) sum += s[i];
    for (size_t i = t * e; i < (t + 1) * e; i++) p[i] = sum > 0 ? s[i] / sum : 0;
  }
}

void smoe_scores_in_turn(const smoe_router *router, const smoe_route_call *call) {
  const size_t k = (size_t)router->n_slots;
  for (size_t i = 0; i < call->n_tokens * k; i++) {
    const uint64_t place = (uint64_t)(call->before + call->first_token) + i / k;
    call->expert[i] =
        call->token[i / k] < 0 ? -1 : (int32_t)((place * k + i % k) % (uint64_t)router->n_experts);
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

const char *const smoe_balance_overs[] = {"batch", "lane", "sequence", NULL};

/* Rows of a part over which loads are counted. */
static size_t part_of(const smoe_route_call *call, smoe_balance_over over) {
  return over == SMOE_OVER_SEQUENCE ? call->n_context : call->n_tokens;
}

/* f [E] of the part that begins at a row. */
static void part_shares(smoe_real *f, const smoe_router *router, const smoe_route_call *call,
                        const smoe_route_loads *loads, smoe_balance_over over, size_t first) {
  const size_t e = (size_t)router->n_experts, k = (size_t)router->n_slots, n = part_of(call, over);
  if (over == SMOE_OVER_BATCH) {
    smoe_load_shares(f, loads, e);
    return;
  }
  smoe_real sum = 0;
  memset(f, 0, e * sizeof *f);
  for (size_t i = first * k; i < (first + n) * k; i++) {
    const int32_t a = smoe_slot_expert(call->expert[i]);
    if (a < 0) continue;
    f[a] += 1;
    sum += 1;
  }
  for (size_t i = 0; i < e && sum > 0; i++) f[i] /= sum;
}

double smoe_balance_term(const smoe_router *router, const smoe_route_call *call,
                         const smoe_route_loads *loads, smoe_balance_over over, const smoe_real *p,
                         smoe_real *f) {
  const size_t e = (size_t)router->n_experts, n = part_of(call, over);
  double sum = 0;
  for (size_t first = 0; first < call->n_tokens; first += n) {
    part_shares(f, router, call, loads, over, first);
    sum += smoe_balance_sum(p + first * e, f, n, e);
  }
  return sum;
}

void smoe_balance_slope(smoe_real *dp, const smoe_router *router, const smoe_route_call *call,
                        const smoe_route_loads *loads, smoe_balance_over over, smoe_real weight,
                        smoe_real *f) {
  const size_t e = (size_t)router->n_experts, n = part_of(call, over);
  for (size_t first = 0; first < call->n_tokens; first += n) {
    part_shares(f, router, call, loads, over, first);
    smoe_balance_backward(dp + first * e, f, weight, n, e);
  }
}

void smoe_scores_log_sum(smoe_real *log_sum, const smoe_real *z, const int32_t *token, size_t n, size_t e) {
  for (size_t t = 0; t < n; t++) {
    double most = -INFINITY, sum = 0;
    for (size_t i = t * e; i < (t + 1) * e; i++) most = fmax(most, (double)z[i]);
    for (size_t i = t * e; i < (t + 1) * e && isfinite(most); i++) sum += exp((double)z[i] - most);
    log_sum[t] = token[t] >= 0 && isfinite(most) ? (smoe_real)(most + log(sum)) : 0;
  }
}

double smoe_z_loss_sum(const smoe_real *log_sum, size_t n) {
  double sum = 0;
  for (size_t t = 0; t < n; t++) sum += (double)log_sum[t] * (double)log_sum[t];
  return sum;
}

void smoe_z_loss_backward(smoe_real *dz, const smoe_real *z, const smoe_real *log_sum, smoe_real weight,
                          size_t n, size_t e) {
  for (size_t i = 0; i < n * e; i++) {
    const double sum = (double)log_sum[i / e];
    if (sum != 0) dz[i] += (smoe_real)((double)weight * 2 * sum * exp((double)z[i] - sum));
  }
}
