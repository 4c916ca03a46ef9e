/** Cross entropy with label smoothing, against the distribution of the smoothed target in double. */
#include "near.h"
#include "stablemoe/kernel.h"

static const smoe_real scale = 0.25;

static void smoothed(size_t n, size_t v, size_t stride, double epsilon) {
  smoe_real *x = values_uniform(n * v, 1), *loss = values_zero(n), *nll = values_zero(n);
  int32_t *target = values_ids(n * stride, (int32_t)v, 2);
  double *want_loss = near_doubles(n), *want_nll = near_doubles(n), *want_dx = near_doubles(n * v);
  for (size_t i = 0; i < n * v; i++) x[i] *= 6;
  for (size_t i = 0; i < n; i++) {
    const int32_t id = target[i * stride];
    double sum = 0;
    for (size_t j = 0; j < v; j++) sum += exp((double)x[i * v + j]);
    for (size_t j = 0; j < v && id >= 0; j++) {
      const double p = exp((double)x[i * v + j]) / sum;
      const double q = (size_t)id == j ? (v > 1 ? 1 - epsilon : 1) : epsilon / (double)(v - 1);
      want_loss[i] -= q * log(p);
      want_nll[i] -= (size_t)id == j ? log(p) : 0;
      want_dx[i * v + j] = scale * (p - q);
    }
  }
  smoe_real *kept = values_copy(x, n * v);
  smoe_cross_entropy_smoothed(loss, nll, x, target, stride, epsilon, scale, false, n, v);
  near_same_bits("logits without gradient", x, kept, n * v);
  near_check("smoothed loss alone", loss, want_loss, n, 1e-5, 1);
  smoe_cross_entropy_smoothed(loss, nll, x, target, stride, epsilon, scale, true, n, v);
  near_check("smoothed loss", loss, want_loss, n, 1e-5, 1);
  near_check("nll", nll, want_nll, n, 1e-5, 1);
  near_check("smoothed gradient", x, want_dx, n * v, 1e-5, 1e-1);

  smoe_real *plain = values_copy(kept, n * v), *plain_loss = values_zero(n);
  smoe_cross_entropy(plain_loss, plain, target, stride, scale, true, n, v);
  near_same_bits("nll and the plain loss", nll, plain_loss, n);
  smoe_cross_entropy_smoothed(loss, nll, kept, target, stride, 0, scale, true, n, v);
  near_same_bits("loss without smoothing", loss, plain_loss, n);
  near_same_bits("gradient without smoothing", kept, plain, n * v);
  smoe_free(x), smoe_free(loss), smoe_free(nll), smoe_free(target), smoe_free(want_loss);
  smoe_free(want_nll), smoe_free(want_dx), smoe_free(kept), smoe_free(plain), smoe_free(plain_loss);
}

int main(void) {
  smoothed(0, 5, 1, 0.1);
  smoothed(3, 1, 1, 0.1);
  smoothed(9, 2, 1, 0.3);
  smoothed(20, 33, 3, 0.1);
  smoothed(8, 1000, 1, 0.1);
  return test_verdict("smoothing");
}
