/** Linear map, bias and relu. */
#include "difference.h"
#include "stablemoe/kernel.h"

typedef struct problem {
  size_t n, c, o;
  smoe_real *x, *w, *b, *y, *weight;
} problem;

static double linear_value(void *context) {
  problem *p = context;
  smoe_linear_forward(p->y, p->x, p->w, p->b, p->n, p->c, p->o);
  return difference_fold(p->weight, p->y, p->n * p->o);
}

static void linear(size_t n, size_t c, size_t o) {
  problem p = {.n = n, .c = c, .o = o, .x = values_uniform(n * c, 1), .w = values_uniform(o * c, 2)};
  p.b = values_uniform(o, 3), p.y = values_zero(n * o), p.weight = values_uniform(n * o, 4);
  smoe_real *dx = values_uniform(n * c, 5), *dw = values_zero(o * c), *db = values_zero(o);
  smoe_linear_backward_input(dx, p.weight, p.w, n, c, o, false);
  smoe_linear_backward_weight(dw, db, p.weight, p.x, n, c, o);
  difference_check("linear dx", linear_value, &p, p.x, dx, n * c);
  difference_check("linear dw", linear_value, &p, p.w, dw, o * c);
  difference_check("linear db", linear_value, &p, p.b, db, o);

  smoe_real *dx1 = values_copy(dx, n * c), *dw1 = values_copy(dw, o * c), *db1 = values_copy(db, o);
  smoe_linear_backward_input(dx, p.weight, p.w, n, c, o, true);
  smoe_linear_backward_weight(dw, db, p.weight, p.x, n, c, o);
  difference_doubled("linear dx", dx1, dx, n * c);
  difference_doubled("linear dw", dw1, dw, o * c);
  difference_doubled("linear db", db1, db, o);
  smoe_free(p.x), smoe_free(p.w), smoe_free(p.b), smoe_free(p.y), smoe_free(p.weight);
  smoe_free(dx), smoe_free(dw), smoe_free(db), smoe_free(dx1), smoe_free(dw1), smoe_free(db1);
}

static double relu_value(void *context) {
  problem *p = context;
  memcpy(p->y, p->x, p->n * p->o * sizeof *p->y);
  smoe_bias_relu_forward(p->y, p->b, p->n, p->o);
  return difference_fold(p->weight, p->y, p->n * p->o);
}

static void relu(size_t n, size_t f) {
  problem p = {.n = n, .o = f, .x = values_uniform(n * f, 6), .b = values_uniform(f, 7)};
  p.y = values_zero(n * f), p.weight = values_uniform(n * f, 8);
  /* No difference quotient may reach over the kink. */
  for (size_t i = 0; i < n * f; i++)
    if (fabs(p.x[i] + p.b[i % f]) < 0.01) p.x[i] += 0.05;
  relu_value(&p);
  smoe_real *dh = values_copy(p.weight, n * f);
  smoe_relu_backward(dh, p.y, n * f);
  difference_check("relu dh", relu_value, &p, p.x, dh, n * f);
  smoe_free(p.x), smoe_free(p.b), smoe_free(p.y), smoe_free(p.weight), smoe_free(dh);
}

int main(void) {
  linear(1, 1, 1);
  linear(7, 5, 3);
  linear(6, 17, 40);
  linear(3, 4, 300); /* more columns than one block of the bias gradient */
  relu(5, 33);
  return test_verdict("grad/linear");
}
