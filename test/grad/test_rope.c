/** Rotary positions. */
#include "difference.h"
#include "stablemoe/kernel.h"

typedef struct problem {
  size_t n, h, d;
  smoe_real *x, *y, *table, *weight;
  int32_t *position;
} problem;

static double rope_value(void *context) {
  problem *p = context;
  memcpy(p->y, p->x, p->n * p->h * p->d * sizeof *p->x);
  smoe_rope_forward(p->y, p->h * p->d, p->position, p->table, p->n, p->h, p->d);
  return difference_fold(p->weight, p->y, p->n * p->h * p->d);
}

static void rope(size_t n, size_t h, size_t d) {
  enum { T = 11 };
  const size_t count = n * h * d;
  problem p = {.n = n, .h = h, .d = d, .x = values_uniform(count, 1), .y = values_zero(count)};
  p.table = values_zero(T * d), p.weight = values_uniform(count, 2), p.position = values_ids(n, T, 3);
  smoe_rope_table(p.table, T, d, 10000);
  smoe_real *dx = values_copy(p.weight, count);
  smoe_rope_backward(dx, h * d, p.position, p.table, n, h, d);
  difference_check("rope", rope_value, &p, p.x, dx, count);
  smoe_free(p.x), smoe_free(p.y), smoe_free(p.table), smoe_free(p.weight), smoe_free(p.position);
  smoe_free(dx);
}

int main(void) {
  rope(1, 1, 2);
  rope(8, 2, 10);
  return test_verdict("grad/rope");
}
