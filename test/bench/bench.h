/** What the benchmarks of kernels share: the best of several rounds, and values to compute with. */
#ifndef STABLEMOE_TEST_BENCH_H
#define STABLEMOE_TEST_BENCH_H

#include <stdio.h>

#include "stablemoe/arena.h"
#include "stablemoe/random.h"
#include "stablemoe/timer.h"

enum { ROUNDS = 5 };

/* Of wall time, unless a benchmark of one thread takes processor time, which other work on the machine disturbs less. */
#ifndef BENCH_CLOCK
#define BENCH_CLOCK smoe_seconds
#endif

static double best; /* seconds of the last BENCH */

/* Run the statement in rounds of at least 20 ms; work is in units of 1e-9 per second. */
#define BENCH(name, unit, work, statement)                                                                   \
  do {                                                                                                       \
    best = 1e30;                                                                                             \
    statement;                                                                                               \
    for (int round_ = 0; round_ < ROUNDS; round_++) {                                                        \
      const double start_ = BENCH_CLOCK();                                                                   \
      int n_ = 0;                                                                                            \
      double spent_;                                                                                         \
      do {                                                                                                   \
        statement;                                                                                           \
        n_++;                                                                                                \
      } while ((spent_ = BENCH_CLOCK() - start_) < 0.02);                                                    \
      if (spent_ / n_ < best) best = spent_ / n_;                                                            \
    }                                                                                                        \
    printf("  %-34s %9.1f us %8.1f %s\n", name, 1e6 * best, 1e-9 * (work) / best, unit);                     \
  } while (0)

static inline smoe_real *reals(size_t n) {
  smoe_real *x = smoe_alloc(n * sizeof *x);
  for (size_t i = 0; i < n; i++)
    x[i] = (smoe_real)(smoe_random_uniform(1, SMOE_RANDOM_TEST, 0, i % 4096) - 0.5);
  return x;
}

#endif
