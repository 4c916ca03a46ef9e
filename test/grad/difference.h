/** Gradients against difference quotients.
 *
 *  Every output is folded into one number by fixed weights, sum of w y; the backward
 *  function, given w as the outputs' gradient, must give that number's derivatives.
 */
#ifndef STABLEMOE_TEST_DIFFERENCE_H
#define STABLEMOE_TEST_DIFFERENCE_H

#include <math.h>

#include "harness.h"
#include "values.h"

/** sum of w y. */
static inline double difference_fold(const smoe_real *w, const smoe_real *y, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += w[i] * y[i];
  return sum;
}

/** Check dx [n] against the four-point central difference (error h^4) of value(context) by each x [n]. */
static inline void difference_check(const char *what, double (*value)(void *), void *context, smoe_real *x,
                                    const smoe_real *dx, size_t n) {
  const double h = 1e-3;
  double largest = 0;
  for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(dx[i]));
  CHECK(n == 0 || largest > 0, "%s: the gradient is zero everywhere", what);
  for (size_t i = 0; i < n; i++) {
    const double kept = x[i], step[] = {-2 * h, -h, h, 2 * h};
    double at[4];
    for (size_t j = 0; j < 4; j++) {
      x[i] = kept + step[j];
      at[j] = value(context);
    }
    x[i] = kept;
    const double quotient = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h);
    const double error = test_relative(dx[i], quotient, 1e-2 * largest);
    CHECK(error <= 1e-7, "%s [%zu]: %.12g, but the difference quotient is %.12g: relative error %.2g", what,
          i, (double)dx[i], quotient, error);
  }
}

/** Check that a function that adds (+=) to twice the same memory doubles: b = 2 a. */
static inline void difference_doubled(const char *what, const smoe_real *a, const smoe_real *b, size_t n) {
  for (size_t i = 0; i < n; i++)
    CHECK(fabs(b[i] - 2 * a[i]) <= 1e-12 * fmax(1, fabs(a[i])), "%s [%zu] is not added to: %.12g after %.12g",
          what, i, (double)b[i], (double)a[i]);
}

#endif
