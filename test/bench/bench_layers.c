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
  smoe_real *x = reals(2 * N * F), *y = reals(2 * N * F), *z = reals(2 * N * F), *b = reals(F);
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
  BENCH("swiglu backward", "G/s", elements, smoe_swiglu_backward(z, y, x, N, F));
  compare("relu backward", backward);
  smoe_free(x), smoe_free(y), smoe_free(z), smoe_free(b);
}

/* The same queries over fewer key heads, and over all keys; flops are those of the scores that are computed. */
static void bench_attention(size_t d) {
  enum { SEQUENCES = 4, CONTEXT = 256 };
  const size_t rows = (size_t)SEQUENCES * CONTEXT, h = 512 / d, c = h * d;
  smoe_real *qkv = reals(rows * 3 * c), *dqkv = reals(rows * 3 * c), *out = reals(rows * c),
            *dout = reals(rows * c);
  smoe_attention a = {.sequences = SEQUENCES, .queries = CONTEXT, .keys = CONTEXT, .heads = h, .width = d};
  smoe_real *lse = reals(rows * h), *scratch = reals(smoe_attend_scratch(&a));
  const double causal = 2.0 * SEQUENCES * (double)c * CONTEXT * (CONTEXT + 1);
  char name[64];
  printf("attention, %d sequences of %d, %zu heads of width %zu\n", SEQUENCES, CONTEXT, h, d);
  BENCH("self, forward", "GFLOP/s", causal,
        smoe_attention_forward(out, lse, qkv, scratch, SEQUENCES, CONTEXT, h, d));
  const double forward = best;
  BENCH("self, backward", "GFLOP/s", 2.5 * causal,
        smoe_attention_backward(dqkv, dout, qkv, out, lse, scratch, SEQUENCES, CONTEXT, h, d));
  const double backward = best;
  for (int i = 0; i < 3; i++) {
    a.causal = i < 2, a.kv_heads = i == 1 ? h / 4 : h;
    a.q_stride = a.kv_stride = (h + 2 * a.kv_heads) * d;
    const double flops = a.causal ? causal : 4.0 * SEQUENCES * (double)c * CONTEXT * CONTEXT;
    smoe_real *k = qkv + h * d, *v = k + a.kv_heads * d, *dk = dqkv + h * d, *dv = dk + a.kv_heads * d;
    snprintf(name, sizeof name, "%s, %zu key heads, forward", a.causal ? "causal" : "all keys", a.kv_heads);
    BENCH(name, "GFLOP/s", flops, smoe_attend_forward(out, lse, qkv, k, v, scratch, &a));
    compare("self, forward", forward);
    snprintf(name, sizeof name, "%s, %zu key heads, backward", a.causal ? "causal" : "all keys", a.kv_heads);
    BENCH(name, "GFLOP/s", 2.5 * flops,
          smoe_attend_backward(dqkv, dk, dv, dout, qkv, k, v, out, lse, scratch, &a));
    compare("self, backward", backward);
  }
  smoe_free(qkv), smoe_free(dqkv), smoe_free(out), smoe_free(dout), smoe_free(lse), smoe_free(scratch);
}

static void bench_rope(void) {
  enum { D = 64 };
  smoe_real *x = reals(N * F), *table = reals(N * D);
  int32_t *position = smoe_alloc(N * sizeof *position);
  for (int32_t i = 0; i < N; i++) position[i] = i;
  smoe_rope_table(table, N, D, 10000);
  BENCH("rope", "GB/s", 2.0 * N * F * sizeof *x, smoe_rope_forward(x, F, position, table, N, F / D, D));
  smoe_free(x), smoe_free(table), smoe_free(position);
}

static void bench_dropout(void) {
  smoe_real *x = reals(N * C), *y = reals(N * C), *w = reals(C * C);
  const smoe_dropout dropout = {.share = 0.1, .seed = 1};
  BENCH("gemm [N, C] x [C, C]", "GFLOP/s", 2.0 * N * C * C,
        smoe_gemm(false, false, N, C, C, 1, x, C, w, C, 0, y, C));
  const double gemm = best;
  BENCH("dropout of 0.1", "G/s", (double)N * C, smoe_dropout_apply(y, NULL, 0, N, C, &dropout));
  compare("that gemm", gemm);
  smoe_free(x), smoe_free(y), smoe_free(w);
}

static void bench_loss(void) {
  enum { ROWS = 128, VOCABULARY = 8192 };
  smoe_real *x = reals(ROWS * VOCABULARY), loss[ROWS], nll[ROWS];
  int32_t target[ROWS];
  for (int32_t i = 0; i < ROWS; i++) target[i] = i;
  const double elements = (double)ROWS * VOCABULARY;
  BENCH("cross entropy and gradient", "G/s", elements,
        smoe_cross_entropy(loss, x, target, 1, (smoe_real)1e-3, true, ROWS, VOCABULARY));
  const double plain = best;
  BENCH("smoothed", "G/s", elements,
        smoe_cross_entropy_smoothed(loss, nll, x, target, 1, 0.1, (smoe_real)1e-3, true, ROWS, VOCABULARY));
  compare("cross entropy", plain);
  smoe_free(x);
}

int main(void) {
  smoe_threads_set(1);
  printf("%d rows, widths %d and %d, BLAS core %s, %s\n", N, C, F, smoe_blas_name(), SMOE_REAL_NAME);
  bench_norms();
  bench_activations();
  bench_rope();
  bench_dropout();
  bench_loss();
  bench_attention(32);
  bench_attention(64);
  return 0;
}
