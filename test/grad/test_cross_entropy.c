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

int main(void) {
  entropy(1, 2, 1);
  entropy(8, 33, 1);
  entropy(5, 70, 3);
  smoothed(1, 2, 1);
  smoothed(8, 33, 1);
  smoothed(5, 70, 3);
  return test_verdict("grad/cross_entropy");
}
