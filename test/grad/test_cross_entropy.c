/** Cross entropy, plain and smoothed, and its gradient in place. */
#include "difference.h"
#include "stablemoe/kernel.h"

typedef struct problem {
  size_t n, v, stride;
  smoe_real *x, *work, *loss, *nll;
  const int32_t *target;
} problem;

static const smoe_real scale = 0.25;

static double entropy_value(void *context) {
  problem *p = context;
  double sum = 0;
  memcpy(p->work, p->x, p->n * p->v * sizeof *p->work);
  smoe_cross_entropy(p->loss, p->work, p->target, p->stride, scale, false, p->n, p->v);
  for (size_t i = 0; i < p->n; i++) sum += p->loss[i];
  return scale * sum;
}

static void entropy(size_t n, size_t v, size_t stride) {
  problem p = {.n = n, .v = v, .stride = stride, .x = values_uniform(n * v, 1), .work = values_zero(n * v)};
  p.loss = values_zero(n);
  int32_t *target = values_ids(n * stride, (int32_t)v, 2);
  p.target = target;
  for (size_t i = 0; i < n * v; i++) p.x[i] *= 5;
  smoe_real *dx = values_copy(p.x, n * v);
  smoe_cross_entropy(p.loss, dx, target, stride, scale, true, n, v);
  difference_check("cross entropy", entropy_value, &p, p.x, dx, n * v);
  smoe_free(p.x), smoe_free(p.work), smoe_free(p.loss), smoe_free(target), smoe_free(dx);
}

static const double epsilon = 0.2;

static double smoothed_value(void *context) {
  problem *p = context;
  double sum = 0;
  memcpy(p->work, p->x, p->n * p->v * sizeof *p->work);
  smoe_cross_entropy_smoothed(p->loss, p->nll, p->work, p->target, p->stride, epsilon, scale, false, p->n,
                              p->v);
  for (size_t i = 0; i < p->n; i++) sum += p->loss[i];
  return scale * sum;
}

static void smoothed(size_t n, size_t v, size_t stride) {
  problem p = {.n = n, .v = v, .stride = stride, .x = values_uniform(n * v, 1), .work = values_zero(n * v)};
  p.loss = values_zero(n), p.nll = values_zero(n);
  int32_t *target = values_ids(n * stride, (int32_t)v, 2);
  p.target = target;
  for (size_t i = 0; i < n * v; i++) p.x[i] *= 5;
  smoe_real *dx = values_copy(p.x, n * v);
  smoe_cross_entropy_smoothed(p.loss, p.nll, dx, target, stride, epsilon, scale, true, n, v);
  difference_check("smoothed cross entropy", smoothed_value, &p, p.x, dx, n * v);
  smoe_free(p.x), smoe_free(p.work), smoe_free(p.loss), smoe_free(p.nll), smoe_free(target), smoe_free(dx);
}

typedef struct two {
  size_t n, v;
  smoe_real *x, *y, *dx, *dy, *loss;
  const int32_t *target;
} two;

static double divergence_value(void *context) {
  two *p = context;
  double sum = 0;
  smoe_consistency(p->loss, p->dx, p->dy, p->x, p->y, p->target, 0, p->n, p->v);
  for (size_t i = 0; i < p->n; i++) sum += (double)p->loss[i];
  return scale * sum;
}

/* The definition, term by term. */
static double divergence_of(const smoe_real *x, const smoe_real *y, size_t v) {
  double sum_x = 0, sum_y = 0, sum = 0;
  for (size_t i = 0; i < v; i++) sum_x += exp((double)x[i]), sum_y += exp((double)y[i]);
  for (size_t i = 0; i < v; i++) {
    const double p = exp((double)x[i]) / sum_x, q = exp((double)y[i]) / sum_y;
    sum += (p - q) * (log(p) - log(q)) / 2;
  }
  return sum;
}

static void consistency(size_t n, size_t v) {
  const size_t all = n * v;
  two p = {.n = n, .v = v, .x = values_uniform(all, 1), .y = values_uniform(all, 3), .loss = values_zero(n)};
  int32_t *target = values_ids(n, (int32_t)v, 2);
  p.target = target;
  p.dx = values_zero(all), p.dy = values_zero(all);
  for (size_t i = 0; i < all; i++) p.x[i] *= 4, p.y[i] *= 4;
  smoe_real *dx = values_zero(all), *dy = values_zero(all);
  smoe_consistency(p.loss, dx, dy, p.x, p.y, target, scale, n, v);
  for (size_t i = 0; i < n; i++) {
    const double expect = target[i] < 0 ? 0 : divergence_of(p.x + i * v, p.y + i * v, v);
    CHECK(fabs((double)p.loss[i] - expect) <= 1e-12 * (1 + expect), "divergence %g, not %g",
          (double)p.loss[i], expect);
  }
  difference_check("divergence by the first", divergence_value, &p, p.x, dx, all);
  difference_check("divergence by the second", divergence_value, &p, p.y, dy, all);
  /* Equal predictions: nothing to learn, whatever the logits' common shift. */
  for (size_t i = 0; i < all; i++) p.y[i] = p.x[i];
  smoe_consistency(p.loss, dx, dy, p.x, p.y, target, scale, n, v);
  for (size_t i = 0; i < all; i++)
    CHECK(dx[i] == 0 && dy[i] == 0 && p.loss[i / v] == 0, "equal predictions differ by %g", (double)dx[i]);
  smoe_free(p.x), smoe_free(p.y), smoe_free(p.dx), smoe_free(p.dy), smoe_free(p.loss);
  smoe_free(target), smoe_free(dx), smoe_free(dy);
}

int main(void) {
  consistency(1, 2);
  consistency(7, 33);
  consistency(3, 64);
  entropy(1, 2, 1);
  entropy(8, 33, 1);
  entropy(5, 70, 3);
  smoothed(1, 2, 1);
  smoothed(8, 33, 1);
  smoothed(5, 70, 3);
  return test_verdict("grad/cross_entropy");
}
