/** Single precision against a naive double reference. */
#ifndef STABLEMOE_TEST_NEAR_H
#define STABLEMOE_TEST_NEAR_H

#include "harness.h"
#include "values.h"

/** Check got [n] against want [n] (doubles): relative error within tolerance, below `floor_` an absolute one. */
static inline void near_check(const char *what, const smoe_real *got, const double *want, size_t n,
                              double tolerance, double floor_) {
  for (size_t i = 0; i < n; i++) {
    const double error = test_relative(got[i], want[i], floor_);
    CHECK(error <= tolerance, "%s [%zu of %zu]: %.9g, not %.9g: relative error %.2g", what, i, n,
          (double)got[i], want[i], error);
  }
}

static inline double *near_doubles(size_t n) {
  return smoe_alloc(n * sizeof(double) + 1);
}

/** Check that two arrays are the same, bit for bit. */
static inline void near_same_bits(const char *what, const smoe_real *a, const smoe_real *b, size_t n) {
  CHECK(memcmp(a, b, n * sizeof *a) == 0, "%s: not the same bits", what);
}

#endif
