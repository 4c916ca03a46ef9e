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

static void activations(void) {
  enum { N = 6, F = 37 };
  name_of_case = "gelu";
  smoe_real *x = values_uniform(2 * N * F, 1), *b = values_uniform(F, 2), *dy = values_uniform(N * F, 3);
  smoe_real *y = values_zero(N * F), *kept = values_zero(N * F), *dx = values_copy(dy, N * F);
  for (size_t i = 0; i < 2 * N * F; i++) x[i] *= 4;
  memcpy(kept, x, N * F * sizeof *x);
  smoe_bias_gelu_forward(y, kept, b, N, F);
  smoe_gelu_backward(dx, kept, N * F);
  write_number("width", F);
  write_reals("x", x, N * F), write_reals("b", b, F), write_reals("dy", dy, N * F);
  write_reals("y", y, N * F), write_reals("dx", dx, N * F);

  name_of_case = "swiglu";
  smoe_real *dab = values_zero(2 * N * F);
  smoe_swiglu_forward(y, x, N, F);
  smoe_swiglu_backward(dab, dy, x, N, F);
  write_number("width", F);
  write_reals("ab", x, 2 * N * F), write_reals("dh", dy, N * F);
  write_reals("h", y, N * F), write_reals("dab", dab, 2 * N * F);
  smoe_free(x), smoe_free(b), smoe_free(dy), smoe_free(y), smoe_free(kept), smoe_free(dx), smoe_free(dab);
}

static void rope(void) {
  enum { N = 9, H = 2, D = 12, T = 40 };
  name_of_case = "rope";
  smoe_real *table = values_zero(T * D), *x = values_uniform(N * H * D, 1);
  int32_t *position = values_ids(N, T, 2);
  double place[N];
  for (size_t i = 0; i < N; i++) place[i] = position[i];
  smoe_rope_table(table, T, D, 5000);
  write_number("heads", H), write_number("base", 5000), write_doubles("position", place, N);
  write_reals("x", x, N * H * D);
  smoe_rope_forward(x, H * D, position, table, N, H, D);
  write_reals("y", x, N * H * D);
  smoe_free(table), smoe_free(x), smoe_free(position);
}

int main(int argc, char **argv) {
  if (argc != 2 || !(output = fopen(argv[1], "wb"))) {
    fprintf(stderr, "usage: kernels OUTPUT\n");
    return 2;
  }
  rms_norm();
  activations();
  rope();
  return fclose(output) ? 1 : 0;
}
