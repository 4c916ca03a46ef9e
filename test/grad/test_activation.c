/** GELU and SwiGLU. */
#include "difference.h"
#include "stablemoe/kernel.h"

typedef struct problem {
  size_t n, f;
  smoe_real *x, *b, *work, *y, *weight;
} problem;

static double gelu_value(void *context) {
  problem *p = context;
  memcpy(p->work, p->x, p->n * p->f * sizeof *p->x);
  smoe_bias_gelu_forward(p->y, p->work, p->b, p->n, p->f);
  return difference_fold(p->weight, p->y, p->n * p->f);
}

static double swiglu_value(void *context) {
  problem *p = context;
  smoe_swiglu_forward(p->y, p->x, p->n, p->f);
  return difference_fold(p->weight, p->y, p->n * p->f);
}

static void activation(size_t n, size_t f) {
  problem p = {.n = n, .f = f, .x = values_uniform(2 * n * f, 1), .b = values_uniform(f, 2)};
  p.work = values_zero(n * f), p.y = values_zero(n * f), p.weight = values_uniform(n * f, 3);
  for (size_t i = 0; i < 2 * n * f; i++) p.x[i] *= 3;
  gelu_value(&p);
  smoe_real *dx = values_copy(p.weight, n * f), *dab = values_uniform(2 * n * f, 4);
  smoe_gelu_backward(dx, p.work, n * f);
  difference_check("gelu", gelu_value, &p, p.x, dx, n * f);
  smoe_swiglu_backward(dab, p.weight, p.x, n, f);
  difference_check("swiglu", swiglu_value, &p, p.x, dab, 2 * n * f);
  smoe_free(p.x), smoe_free(p.b), smoe_free(p.work), smoe_free(p.y), smoe_free(p.weight);
  smoe_free(dx), smoe_free(dab);
}

int main(void) {
  activation(1, 3);
  activation(4, 37);
  return test_verdict("grad/activation");
}
