/** Rates of the kernels of other models' sublayers, each next to one that it replaces.
 *
 *  As in bench_kernels.c every figure is the best of several rounds; here of processor time, on one thread.
 */
#include <string.h>

#define BENCH_CLOCK smoe_processor_seconds
#include "bench.h"
#include "stablemoe/kernel.h"

enum { N = 2048, F = 1024, C = 256 };

/* Print how long the last BENCH took compared with `seconds`. */
static void compare(const char *with, double seconds) {
  printf("  %-34s %9.2f times %s\n", "", best / seconds, with);
}

static void bench_norms(void) {
  smoe_real *x = reals(N * C), *y = reals(N * C), *dx = reals(N * C), *gamma = reals(C), *beta = reals(C);
  smoe_real *mean = reals(N), *rstd = reals(N);
  const double bytes = sizeof(smoe_real) * (double)(N * C);
  BENCH("layer norm forward", "GB/s", 2 * bytes, smoe_norm_forward(y, mean, rstd, x, gamma, beta, N, C));
  const double forward = best;
  BENCH("RMS norm forward", "GB/s", 2 * bytes, smoe_rms_norm_forward(y, rstd, x, gamma, N, C));
  compare("layer norm", forward);
  BENCH("layer norm backward", "GB/s", 4 * bytes,
        smoe_norm_backward(dx, gamma, beta, y, x, gamma, mean, rstd, N, C));
  const double backward = best;
  BENCH("RMS norm backward", "GB/s", 4 * bytes, smoe_rms_norm_backward(dx, gamma, y, x, gamma, rstd, N, C));
  compare("layer norm", backward);
  smoe_free(x), smoe_free(y), smoe_free(dx), smoe_free(gamma), smoe_free(beta), smoe_free(mean);
  smoe_free(rstd);
}

static void bench_activations(void) {
  smoe_real *x = reals(2 * N * F), *y = reals(2 * N * F), *b = reals(F);
  memset(b, 0, F * sizeof *b); /* a sum that grows from round to round would leave the range of activations */
  const double elements = (double)N * F;
  BENCH("bias and relu", "G/s", elements, smoe_bias_relu_forward(x, b, N, F));
  const double forward = best;
  BENCH("bias and gelu", "G/s", elements, smoe_bias_gelu_forward(y, x, b, N, F));
  compare("bias and relu", forward);
  BENCH("swiglu", "G/s", elements, smoe_swiglu_forward(y, x, N, F));
  compare("bias and relu", forward);
  BENCH("relu backward", "G/s", elements, smoe_relu_backward(y, x, N * F));
  const double backward = best;
  BENCH("gelu backward", "G/s", elements, smoe_gelu_backward(y, x, N * F));
  compare("relu backward", backward);
  BENCH("swiglu backward", "G/s", elements, smoe_swiglu_backward(x, y, x, N, F));
  compare("relu backward", backward);
  smoe_free(x), smoe_free(y), smoe_free(b);
}

int main(void) {
  smoe_threads_set(1);
  printf("%d rows, widths %d and %d, BLAS core %s, %s\n", N, C, F, smoe_blas_name(), SMOE_REAL_NAME);
  bench_norms();
  bench_activations();
  return 0;
}
