/** The exponential, softmax and cross entropy. */
#include <float.h>

#include "../../src/kernel/vector.h"
#include "near.h"
#include "stablemoe/kernel.h"

static void exponential(void) {
  double worst = 0;
  for (double x = -87; x <= 1; x += 1.0 / 8191) {
    const smoe_real argument = (smoe_real)x;
    worst = fmax(worst, test_relative(exp_real(argument), exp((double)argument), 0));
  }
  CHECK(worst <= 1.5 * FLT_EPSILON, "relative error of exp: %.3g", worst);
  CHECK(exp_real(0) == 1 && exp_real(-(smoe_real)INFINITY) == 0 && exp_real(-1e30f) == 0, "exp at its ends");
  CHECK(isnan(exp_real(NAN)), "exp of NaN");
}

static void softmax(size_t n, size_t e, double spread) {
  smoe_real *x = values_uniform(n * e, 1), *p = values_zero(n * e);
  double *want = near_doubles(n * e);
  for (size_t i = 0; i < n * e; i++) x[i] *= (smoe_real)spread;
  for (size_t i = 0; i < n; i++) {
    double sum = 0;
    for (size_t j = 0; j < e; j++) sum += exp((double)x[i * e + j]);
    for (size_t j = 0; j < e; j++) want[i * e + j] = exp((double)x[i * e + j]) / sum;
  }
  smoe_softmax_forward(p, x, n, e);
  near_check("softmax", p, want, n * e, 1e-5, 1e-30);
  smoe_softmax_forward(x, x, n, e);
  near_same_bits("softmax in place", x, p, n * e);
  smoe_free(x), smoe_free(p), smoe_free(want);
}

static void special(void) {
  smoe_real x[] = {-INFINITY, 1000, 1000, -INFINITY, NAN, 0, 1, 2};
  smoe_softmax_forward(x, x, 2, 4);
  CHECK(x[0] == 0 && x[1] == 0.5 && x[2] == 0.5 && x[3] == 0, "softmax with -inf");
  for (size_t i = 4; i < 8; i++) CHECK(isnan(x[i]), "a NaN must spread over its row");
  smoe_real far[] = {0, -500}, loss;
  const int32_t target = 1;
  smoe_cross_entropy(&loss, far, &target, 1, 1, true, 1, 2);
  CHECK(loss == 500 && far[0] == 1 && far[1] == -1, "a hopeless target: %g %g %g", (double)loss,
        (double)far[0], (double)far[1]);
}

static void entropy(size_t n, size_t v, size_t stride) {
  const double scale = 0.125;
  smoe_real *x = values_uniform(n * v, 2), *kept, *loss = values_uniform(n, 3), *again = values_zero(n);
  double *want = near_doubles(n), *want_dx = near_doubles(n * v);
  int32_t *target = values_ids(n * stride, (int32_t)v, 4);
  for (size_t i = 0; i < n * v; i++) x[i] *= 10;
  kept = values_copy(x, n * v);
  for (size_t i = 0; i < n; i++) {
    const int32_t id = target[i * stride];
    double sum = 0;
    if (id < 0) continue;
    for (size_t j = 0; j < v; j++) sum += exp((double)x[i * v + j]);
    want[i] = log(sum) - x[i * v + (size_t)id];
    for (size_t j = 0; j < v; j++)
      want_dx[i * v + j] = scale * (exp((double)x[i * v + j]) / sum - (j == (size_t)id));
  }
  smoe_cross_entropy(loss, x, target, stride, (smoe_real)scale, false, n, v);
  near_same_bits("logits are left alone", x, kept, n * v);
  near_check("cross entropy", loss, want, n, 2e-6, 1);
  smoe_cross_entropy(again, x, target, stride, (smoe_real)scale, true, n, v);
  near_same_bits("loss with gradient", again, loss, n);
  near_check("cross entropy's gradient", x, want_dx, n * v, 1e-5, 1e-2);
  smoe_free(x), smoe_free(kept), smoe_free(loss), smoe_free(again), smoe_free(want), smoe_free(want_dx);
  smoe_free(target);
}

int main(void) {
  exponential();
  special();
  const size_t columns[] = {1, 2, 31, 32, 33, 64, 1000};
  for (size_t n = 0; n < 10; n += 3)
    for (size_t j = 0; j < 7; j++) {
      softmax(n, columns[j], 10);
      entropy(n, columns[j], 1);
      entropy(n, columns[j], 2);
    }
  softmax(3, 0, 1);
  return test_verdict("softmax");
}
