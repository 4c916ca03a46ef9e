/* Write inputs and results of kernels for test_kernels.py:  kernels OUTPUT
 *
 * Each array is a line "<case>/<name> <count>", then so many doubles.
 */
#include <stdio.h>

#include "stablemoe/kernel.h"
#include "values.h"

static FILE *output;
static const char *name_of_case;

static void write_doubles(const char *name, const double *x, size_t n) {
  fprintf(output, "%s/%s %zu\n", name_of_case, name, n);
  fwrite(x, sizeof *x, n, output);
}

static void write_reals(const char *name, const smoe_real *x, size_t n) {
  double *copy = smoe_alloc(n * sizeof *copy + 1);
  for (size_t i = 0; i < n; i++) copy[i] = x[i];
  write_doubles(name, copy, n);
  smoe_free(copy);
}

static void write_number(const char *name, double x) {
  write_doubles(name, &x, 1);
}

static void rms_norm(void) {
  enum { N = 7, C = 45 };
  name_of_case = "rms_norm";
  smoe_real *x = values_uniform(N * C, 1), *gamma = values_uniform(C, 2), *dy = values_uniform(N * C, 3);
  smoe_real *y = values_zero(N * C), *rrms = values_zero(N), *dx = values_zero(N * C),
            *dgamma = values_zero(C);
  smoe_rms_norm_forward(y, rrms, x, gamma, N, C);
  smoe_rms_norm_backward(dx, dgamma, dy, x, gamma, rrms, N, C);
  write_number("width", C);
  write_reals("x", x, N * C), write_reals("gamma", gamma, C), write_reals("dy", dy, N * C);
  write_reals("y", y, N * C), write_reals("dx", dx, N * C), write_reals("dgamma", dgamma, C);
  smoe_free(x), smoe_free(gamma), smoe_free(dy), smoe_free(y), smoe_free(rrms), smoe_free(dx);
  smoe_free(dgamma);
}

int main(int argc, char **argv) {
  if (argc != 2 || !(output = fopen(argv[1], "wb"))) {
    fprintf(stderr, "usage: kernels OUTPUT\n");
    return 2;
  }
  rms_norm();
  return fclose(output) ? 1 : 0;
}
