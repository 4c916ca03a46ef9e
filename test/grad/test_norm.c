/** Layer norm and RMS norm. */
#include "difference.h"
#include "stablemoe/kernel.h"

typedef struct problem {
  size_t n, c;
  smoe_real *x, *gamma, *beta, *y, *mean, *rstd, *weight;
} problem;

static double norm_value(void *context) {
  problem *p = context;
  smoe_norm_forward(p->y, p->mean, p->rstd, p->x, p->gamma, p->beta, p->n, p->c);
  return difference_fold(p->weight, p->y, p->n * p->c);
}

static void norm(size_t n, size_t c) {
  problem p = {.n = n, .c = c, .x = values_uniform(n * c, 1), .gamma = values_uniform(c, 2)};
  p.beta = values_uniform(c, 3), p.weight = values_uniform(n * c, 4);
  p.y = values_zero(n * c), p.mean = values_zero(n), p.rstd = values_zero(n);
  smoe_real *dx = values_zero(n * c), *dgamma = values_zero(c), *dbeta = values_zero(c);
  norm_value(&p);
  smoe_norm_backward(dx, dgamma, dbeta, p.weight, p.x, p.gamma, p.mean, p.rstd, n, c);
  difference_check("norm dx", norm_value, &p, p.x, dx, n * c);
  difference_check("norm dgamma", norm_value, &p, p.gamma, dgamma, c);
  difference_check("norm dbeta", norm_value, &p, p.beta, dbeta, c);

  smoe_real *dx1 = values_copy(dx, n * c), *dgamma1 = values_copy(dgamma, c), *dbeta1 = values_copy(dbeta, c);
  norm_value(&p);
  smoe_norm_backward(dx, dgamma, dbeta, p.weight, p.x, p.gamma, p.mean, p.rstd, n, c);
  difference_doubled("norm dx", dx1, dx, n * c);
  difference_doubled("norm dgamma", dgamma1, dgamma, c);
  difference_doubled("norm dbeta", dbeta1, dbeta, c);
  smoe_free(p.x), smoe_free(p.gamma), smoe_free(p.beta), smoe_free(p.y), smoe_free(p.mean), smoe_free(p.rstd);
  smoe_free(p.weight), smoe_free(dx), smoe_free(dgamma), smoe_free(dbeta);
  smoe_free(dx1), smoe_free(dgamma1), smoe_free(dbeta1);
}

static double rms_value(void *context) {
  problem *p = context;
  smoe_rms_norm_forward(p->y, p->rstd, p->x, p->gamma, p->n, p->c);
  return difference_fold(p->weight, p->y, p->n * p->c);
}

static void rms_norm(size_t n, size_t c) {
  problem p = {.n = n, .c = c, .x = values_uniform(n * c, 1), .gamma = values_uniform(c, 2)};
  p.weight = values_uniform(n * c, 4), p.y = values_zero(n * c), p.rstd = values_zero(n);
  smoe_real *dx = values_zero(n * c), *dgamma = values_zero(c);
  rms_value(&p);
  smoe_rms_norm_backward(dx, dgamma, p.weight, p.x, p.gamma, p.rstd, n, c);
  difference_check("rms norm dx", rms_value, &p, p.x, dx, n * c);
  difference_check("rms norm dgamma", rms_value, &p, p.gamma, dgamma, c);

  smoe_real *dx1 = values_copy(dx, n * c), *dgamma1 = values_copy(dgamma, c);
  rms_value(&p);
  smoe_rms_norm_backward(dx, dgamma, p.weight, p.x, p.gamma, p.rstd, n, c);
  difference_doubled("rms norm dx", dx1, dx, n * c);
  difference_doubled("rms norm dgamma", dgamma1, dgamma, c);
  smoe_free(p.x), smoe_free(p.gamma), smoe_free(p.y), smoe_free(p.rstd), smoe_free(p.weight);
  smoe_free(dx), smoe_free(dgamma), smoe_free(dx1), smoe_free(dgamma1);
}

int main(void) {
  norm(1, 3);
  norm(5, 7);
  norm(3, 32);
  norm(19, 45); /* more rows than one block, a remainder of columns */
  rms_norm(1, 3);
  rms_norm(5, 7);
  rms_norm(3, 32);
  rms_norm(19, 45);
  return test_verdict("grad/norm");
}
