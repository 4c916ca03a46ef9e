/** Rates of the kernels beside plain matrix products of comparable shapes.
 *
 *  Speeds of a shared machine move by a factor of two, so every figure is the best of
 *  several rounds and only ratios within one run mean something. The last line of each
 *  width says what share of the matrix product's rate a whole Transformer block reaches.
 */
#include <string.h>

#include "bench.h"
#include "stablemoe/kernel.h"

enum { CONTEXT = 256, SEQUENCES = 4, TOKENS = CONTEXT * SEQUENCES, VOCABULARY = 8192 };

/* A linear map's three products; returns the seconds of all. */
static double bench_linear(const char *what, smoe_real *y, smoe_real *x, smoe_real *w, smoe_real *b, size_t c,
                           size_t o) {
  const double flops = 2.0 * TOKENS * (double)c * (double)o;
  char name[64];
  double total = 0;
  snprintf(name, sizeof name, "linear %s forward", what);
  BENCH(name, "GFLOP/s", flops, smoe_linear_forward(y, x, w, b, TOKENS, c, o));
  total += best;
  snprintf(name, sizeof name, "linear %s backward input", what);
  BENCH(name, "GFLOP/s", flops, smoe_linear_backward_input(x, y, w, TOKENS, c, o, false));
  total += best;
  memset(x, 0, TOKENS * c * sizeof *x);
  snprintf(name, sizeof name, "linear %s backward weight", what);
  BENCH(name, "GFLOP/s", flops, smoe_linear_backward_weight(w, b, y, x, TOKENS, c, o));
  return total + best;
}

typedef struct memory {
  smoe_real *x, *y, *wide, *w, *b, *lse, *scratch, *logits;
  int32_t *token;
} memory;

static double bench_attention(memory *m, size_t c, size_t d) {
  const size_t h = c / d;
  /* The products of queries and keys that the mask leaves. */
  const double flops = 2.0 * SEQUENCES * (double)c * CONTEXT * (CONTEXT + 1);
  char name[64];
  double total = 0;
  snprintf(name, sizeof name, "attention forward, D = %zu", d);
  BENCH(name, "GFLOP/s", flops,
        smoe_attention_forward(m->y, m->lse, m->wide, m->scratch, SEQUENCES, CONTEXT, h, d));
  total += best;
  snprintf(name, sizeof name, "attention backward, D = %zu", d);
  BENCH(name, "GFLOP/s", 2.5 * flops,
        smoe_attention_backward(m->wide + TOKENS * 3 * c, m->x, m->wide, m->y, m->lse, m->scratch, SEQUENCES,
                                CONTEXT, h, d));
  return total + best;
}

/* What a block spends beside products and attention. */
static double bench_rest(memory *m, size_t c) {
  const double bytes = sizeof(smoe_real) * TOKENS * (double)c;
  smoe_real *mean = m->lse, *rstd = m->lse + TOKENS, *gamma = m->b, *beta = m->b + c;
  double total = 0;
  BENCH("norm forward", "GB/s", 2 * bytes, smoe_norm_forward(m->y, mean, rstd, m->x, gamma, beta, TOKENS, c));
  total += 2 * best;
  BENCH("norm again", "GB/s", 2 * bytes, smoe_norm_recompute(m->y, mean, rstd, m->x, gamma, beta, TOKENS, c));
  total += 2 * best;
  BENCH("norm backward", "GB/s", 4 * bytes,
        smoe_norm_backward(m->wide, gamma, beta, m->y, m->x, gamma, mean, rstd, TOKENS, c));
  total += 2 * best;
  BENCH("bias and relu (4 C)", "GB/s", 8 * bytes, smoe_bias_relu_forward(m->wide, m->b, TOKENS, 4 * c));
  total += best;
  BENCH("relu backward (4 C)", "GB/s", 12 * bytes,
        smoe_relu_backward(m->wide, m->wide + TOKENS * 4 * c, TOKENS * 4 * c));
  total += best;
  BENCH("add", "GB/s", 3 * bytes, smoe_add(m->y, m->x, TOKENS * c));
  total += 2 * best;
  BENCH("add rows scaled", "GB/s", 3 * bytes, smoe_add_rows_scaled(m->y, m->lse, 1, m->x, TOKENS, c));
  BENCH("dot", "GB/s", 2 * bytes, m->b[0] = smoe_dot(m->y, m->x, TOKENS * c));
  BENCH("sum of squares", "GB/s", bytes, m->b[0] = (smoe_real)smoe_sum_squares(m->x, TOKENS * c));
  BENCH("embedding forward", "GB/s", 2 * bytes,
        smoe_embedding_forward(m->y, m->token, m->logits, m->wide, 1, SEQUENCES, CONTEXT, c));
  BENCH("embedding backward", "GB/s", 5 * bytes,
        smoe_embedding_backward(m->logits, m->wide, m->x, m->token, 1, SEQUENCES, CONTEXT, c));
  return total;
}

static void bench_head(memory *m, size_t c) {
  enum { SLICE = 128 };
  const double flops = 2.0 * SLICE * VOCABULARY * (double)c, elements = (double)SLICE * VOCABULARY;
  BENCH("logits, slice of 128 rows", "GFLOP/s", flops,
        smoe_linear_forward(m->logits, m->x, m->w, NULL, SLICE, c, VOCABULARY));
  const double product = best;
  BENCH("cross entropy and gradient", "G/s", elements,
        smoe_cross_entropy(m->lse, m->logits, m->token, 1, (smoe_real)1e-3, true, SLICE, VOCABULARY));
  printf("  %-34s %9.1f %% of the head's products\n", "", 100 * best / (3 * product));
  BENCH("cross entropy", "G/s", elements,
        smoe_cross_entropy(m->lse, m->logits, m->token, 1, (smoe_real)1e-3, false, SLICE, VOCABULARY));
  BENCH("softmax, 64 experts", "G/s", TOKENS * 64.0, smoe_softmax_forward(m->logits, m->x, TOKENS, 64));
  const smoe_adam adam = {.lr = 1e-3,
                          .beta1 = 0.9,
                          .beta2 = 0.98,
                          .epsilon = 1e-8,
                          .decay = 0.01,
                          .correction1 = 1,
                          .correction2 = 1,
                          .scale = 1};
  const size_t n = (size_t)12 * c * c / 4;
  BENCH("adam", "GB/s", 7.0 * (double)n * sizeof(smoe_real),
        smoe_adam_step(m->wide, m->wide + n, m->wide + 2 * n, m->wide + 3 * n, n, &adam));
}

static void bench_width(size_t c, size_t d) {
  memory m = {.x = reals(TOKENS * 4 * c),
              .y = reals(TOKENS * 4 * c),
              .wide = reals(TOKENS * 12 * c),
              .w = reals(VOCABULARY * c),
              .b = reals(4 * c),
              .lse = reals(TOKENS * c),
              .scratch = reals(smoe_attention_scratch(CONTEXT, d)),
              .logits = reals((size_t)VOCABULARY * (c > 128 ? c : 128)),
              .token = smoe_alloc(TOKENS * sizeof(int32_t))};
  for (size_t i = 0; i < TOKENS; i++)
    m.token[i] = (int32_t)(smoe_random_bits(1, SMOE_RANDOM_TEST, 1, i) % VOCABULARY);
  const double flops = 2.0 * TOKENS * 4.0 * (double)(c * c);
  printf("width %zu, %d tokens\n", c, TOKENS);
  BENCH("gemm [N, C] x [C, 4 C]", "GFLOP/s", flops,
        smoe_gemm(false, false, TOKENS, 4 * c, c, 1, m.x, c, m.w, 4 * c, 0, m.y, 4 * c));
  const double before = best;
  double total = bench_linear("C -> 3 C", m.y, m.x, m.w, m.b, c, 3 * c);
  total += bench_linear("C -> C", m.y, m.x, m.w, m.b, c, c);
  total += bench_linear("C -> 4 C", m.y, m.x, m.w, m.b, c, 4 * c);
  total += bench_linear("4 C -> C", m.y, m.x, m.w, m.b, 4 * c, c);
  const double products = total;
  const double attention = bench_attention(&m, c, d);
  const double rest = bench_rest(&m, c);
  total += attention + rest;
  const double all =
      3 * 2.0 * TOKENS * 12.0 * (double)(c * c) + 3.5 * 2.0 * SEQUENCES * (double)c * CONTEXT * (CONTEXT + 1);
  bench_head(&m, c);
  BENCH("gemm [N, C] x [C, 4 C] again", "GFLOP/s", flops,
        smoe_gemm(false, false, TOKENS, 4 * c, c, 1, m.x, c, m.w, 4 * c, 0, m.y, 4 * c));
  const double rate = 2 * flops / (before + best);
  printf("  block forward and backward: %.2f ms (linear %.0f %%, attention %.0f %%, rest %.0f %%): %.1f "
         "GFLOP/s, "
         "%.0f %% of gemm\n",
         1e3 * total, 100 * products / total, 100 * attention / total, 100 * rest / total, 1e-9 * all / total,
         100 * all / total / rate);
  smoe_free(m.x), smoe_free(m.y), smoe_free(m.wide), smoe_free(m.w), smoe_free(m.b), smoe_free(m.lse);
  smoe_free(m.scratch), smoe_free(m.logits), smoe_free(m.token);
}

int main(void) {
  printf("BLAS core %s, %s\n", smoe_blas_name(), SMOE_REAL_NAME);
  bench_width(256, 32);
  bench_width(768, 64);
  return 0;
}
