/** Is oneDNN's sgemm faster than OpenBLAS's on the shapes of the model?
 *
 *  Whether the rule of run.products: auto fits a machine. Not built by default; where libdnnl-dev is there:
 *    ninja -C build test/bench/onednn && OMP_NUM_THREADS=1 build/test/bench/onednn
 *  Both in turn, several rounds, one thread. Of each shape the median of the rounds' ratios; at the
 *  end the time of all products of an update, each shape with its share of the FLOP.
 */
#include <cblas.h>
#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "stablemoe/arena.h"

enum { ROUNDS = 7 };

/* c [m, n] = op(a) [m, k] op(b) [k, n]; count: calls in an update, relative to the other shapes. */
typedef struct product {
  const char *name;
  bool transpose_a, transpose_b;
  int m, n, k;
  double count;
} product;

static double flops(const product *p) {
  return 2.0 * p->m * p->n * p->k;
}

static void with_openblas(const product *p, const float *a, const float *b, float *c) {
  cblas_sgemm(CblasRowMajor, p->transpose_a ? CblasTrans : CblasNoTrans,
              p->transpose_b ? CblasTrans : CblasNoTrans, p->m, p->n, p->k, 1, a,
              p->transpose_a ? p->m : p->k, b, p->transpose_b ? p->k : p->n, 0, c, p->n);
}

static void with_onednn(const product *p, const float *a, const float *b, float *c) {
  dnnl_sgemm(p->transpose_a ? 'T' : 'N', p->transpose_b ? 'T' : 'N', p->m, p->n, p->k, 1, a,
             p->transpose_a ? p->m : p->k, b, p->transpose_b ? p->k : p->n, 0, c, p->n);
}

/* Of this thread: waiting for a core that others use is not counted. */
static double processor_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double seconds(void (*gemm)(const product *, const float *, const float *, float *), const product *p,
                      const float *a, const float *b, float *c) {
  const int calls = 1 + (int)(5e8 / flops(p));
  const double before = processor_seconds();
  for (int i = 0; i < calls; i++) gemm(p, a, b, c);
  return (processor_seconds() - before) / calls;
}

static int compare_doubles(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values) {
  qsort(values, ROUNDS, sizeof *values, compare_doubles);
  return values[ROUNDS / 2];
}

static double difference(const product *p, const float *a, const float *b, float *c, float *d) {
  double worst = 0;
  with_openblas(p, a, b, c);
  with_onednn(p, a, b, d);
  for (size_t i = 0; i < (size_t)p->m * (size_t)p->n; i++) worst = fmax(worst, fabs((double)(c[i] - d[i])));
  return worst;
}

/* One width: a lane of n rows in the blocks, rows of an expert, slices of the head. */
static void width(int c, int n, int rows, int head, int blocks) {
  const int f = 4 * c, v = 8192;
  const double b = blocks, calls = 4; /* lanes */
  const struct {
    const char *name;
    int n, c, o;
    double count;
  } maps[] = {{"qkv", n, c, 3 * c, b * calls},
              {"proj", n, c, c, b * calls},
              {"up", n, c, f, b * calls},
              {"down", n, f, c, b * calls},
              {"expert up", rows, c, f, 2 * 8},
              {"expert down", rows, f, c, 2 * 8},
              {"head", head, c, v, calls * n / head}};
  const size_t most = (size_t)v * (size_t)f;
  float *x = smoe_alloc(most * sizeof *x), *w = smoe_alloc(most * sizeof *w),
        *y = smoe_alloc(most * sizeof *y), *z = smoe_alloc(most * sizeof *z);
  for (size_t i = 0; i < most; i++) x[i] = w[i] = (float)(i % 7) - 3;
  double blas = 0, dnn = 0;
  printf("width %d\n  product               m     n     k   OpenBLAS    oneDNN  GFLOP/s   ratio\n", c);
  for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
    const int m = maps[i].n, k = maps[i].c, o = maps[i].o;
    const product three[] = {{"forward", false, true, m, o, k, maps[i].count},
                             {"input", false, false, m, k, o, maps[i].count},
                             {"weight", true, false, o, k, m, maps[i].count}};
    for (int j = 0; j < 3; j++) {
      const product *p = &three[j];
      double first[ROUNDS], second[ROUNDS], ratio[ROUNDS];
      if (!(difference(p, x, w, y, z) <= 1e-3 * p->k))
        printf("  %s %s: results differ\n", maps[i].name, p->name);
      for (int r = 0; r < ROUNDS; r++) {
        first[r] = seconds(with_openblas, p, x, w, y);
        second[r] = seconds(with_onednn, p, x, w, y);
        ratio[r] = first[r] / second[r];
      }
      const double of_blas = median(first), of_dnn = median(second);
      blas += p->count * of_blas;
      dnn += p->count * of_dnn;
      printf("  %-12s %-8s %4d %5d %5d %10.1f %9.1f %16.2f\n", maps[i].name, p->name, p->m, p->n, p->k,
             1e-9 * flops(p) / of_blas, 1e-9 * flops(p) / of_dnn, median(ratio));
    }
  }
  printf("  all products of an update: oneDNN is %.2f times as fast\n", blas / dnn);
  smoe_free(x);
  smoe_free(w);
  smoe_free(y);
  smoe_free(z);
}

int main(void) {
  width(256, 1024, 512, 256, 6);
  width(768, 1024, 512, 256, 4);
  return 0;
}
