/** GEMM of the model's shapes in fp32, by either library, and in bf16, against what the core can do at most.
 *
 *  Not built by default:
 *    ninja -C build test/bench/products && OMP_NUM_THREADS=1 build/test/bench/products
 *  Single calls in turn, the best of many by the wall clock: on a busy machine some meet no other program.
 */
#include <math.h>
#include <stdio.h>

#include "stablemoe/arena.h"
#include "stablemoe/bf16.h"
#include "stablemoe/core_peak.h"
#include "stablemoe/kernel.h"
#include "stablemoe/products.h"
#include "stablemoe/timer.h"

enum { ROUNDS = 24, WAYS = 3 };

typedef struct memory {
  smoe_real *x, *w, *y;
  smoe_bf16 *bx, *bw;
} memory;

/* Pass 0 is forward, 1 the input's gradient, 2 the weight's; of a map of n rows from c to o. */
static void in_fp32(const memory *m, int pass, size_t n, size_t c, size_t o) {
  if (pass == 0)
    smoe_linear_forward(m->y, m->x, m->w, NULL, n, c, o);
  else if (pass == 1)
    smoe_linear_backward_input(m->y, m->x, m->w, n, c, o, false);
  else
    smoe_linear_backward_weight(m->y, NULL, m->x, m->w, n, c, o);
}

static void in_bf16(const memory *m, int pass, size_t n, size_t c, size_t o) {
  if (pass == 0)
    smoe_bf16_linear_forward(m->y, m->bx, m->bw, NULL, n, c, o);
  else if (pass == 1)
    smoe_bf16_linear_backward_input(m->y, m->bx, m->bw, n, c, o, false);
  else
    smoe_bf16_linear_backward_weight(m->y, m->bx, m->bw, n, c, o);
}

static double once(const memory *m, int way, int pass, size_t n, size_t c, size_t o) {
  if (way < 2) (void)smoe_products_choose(way == 0 ? SMOE_PRODUCTS_OPENBLAS : SMOE_PRODUCTS_ONEDNN);
  const double before = smoe_seconds();
  if (way < 2)
    in_fp32(m, pass, n, c, o);
  else
    in_bf16(m, pass, n, c, o);
  return smoe_seconds() - before;
}

static void width(const memory *m, size_t c, double blocks) {
  const struct {
    const char *name;
    size_t n, c, o;
    double
        count; /* in an update: 4 lanes of 1024 tokens, 8 experts of 2 sublayers, the head in slices of 256 */
  } maps[] = {{"qkv", 1024, c, 3 * c, 4 * blocks}, {"proj", 1024, c, c, 4 * blocks},
              {"up", 1024, c, 4 * c, 4 * blocks},  {"down", 1024, 4 * c, c, 4 * blocks},
              {"expert up", 512, c, 4 * c, 16},    {"expert down", 512, 4 * c, c, 16},
              {"head", 256, c, 8192, 16}};
  static const char *const passes[] = {"forward", "input", "weight"};
  double seconds[WAYS] = {0}, flops = 0;
  printf("width %zu, GFLOP/s\n  %-20s  OpenBLAS    oneDNN      bf16\n", c, "product");
  for (size_t i = 0; i < sizeof maps / sizeof *maps; i++)
    for (int pass = 0; pass < 3; pass++) {
      const double f = 2.0 * (double)maps[i].n * (double)maps[i].c * (double)maps[i].o;
      double best[WAYS] = {INFINITY, INFINITY, INFINITY};
      for (int r = 0; r < ROUNDS; r++)
        for (int way = 0; way < WAYS; way++)
          if (way != 0 || r < ROUNDS / 4)
            best[way] = fmin(best[way], once(m, way, pass, maps[i].n, maps[i].c, maps[i].o));
      printf("  %-11s %-8s", maps[i].name, passes[pass]);
      for (int way = 0; way < WAYS; way++) {
        printf("  %8.1f", 1e-9 * f / best[way]);
        seconds[way] += maps[i].count * best[way];
      }
      putchar('\n');
      flops += maps[i].count * f;
    }
  printf("  %-20s", "all of an update");
  for (int way = 0; way < WAYS; way++) printf("  %8.1f", 1e-9 * flops / seconds[way]);
  putchar('\n');
}

int main(void) {
  smoe_threads_set(1);
  setvbuf(stdout, NULL, _IOLBF, 0);
  const size_t most = (size_t)8192 * 3072;
  memory m = {smoe_alloc(most * sizeof(smoe_real)), smoe_alloc(most * sizeof(smoe_real)),
              smoe_alloc(most * sizeof(smoe_real)), smoe_alloc(most * sizeof(smoe_bf16)),
              smoe_alloc(most * sizeof(smoe_bf16))};
  for (size_t i = 0; i < most; i++) m.x[i] = m.w[i] = (smoe_real)(i % 7) - 3;
  smoe_bf16_round(m.bx, m.x, most);
  smoe_bf16_round(m.bw, m.w, most);
  smoe_core_peak peak;
  smoe_core_peak_measure(&peak);
  printf("%s; bf16 by %s\ncore's peak: fp32 %.1f GFLOP/s (%s), bf16 %.1f (%s)\n", smoe_blas_description(),
         smoe_bf16_name(), 1e-9 * peak.fp32, peak.fp32_isa, 1e-9 * peak.bf16, peak.bf16_isa);
  width(&m, 256, 6);
  width(&m, 768, 4);
  smoe_core_peak_measure(&peak);
  printf("core's peak again: fp32 %.1f, bf16 %.1f\n", 1e-9 * peak.fp32, 1e-9 * peak.bf16);
  return 0;
}
