/** A test is a plain program; its exit status is the verdict.
 *
 *  CHECK fails the test and goes on, so that one run shows every failure.
 *  Comparisons are written !(err <= tol), so that NaN fails.
 */
#ifndef STABLEMOE_TEST_HARNESS_H
#define STABLEMOE_TEST_HARNESS_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

static int test_failures;

/** Count a failure and print it: in one write, since ranks of a test fail at the same time. */
__attribute__((format(printf, 4, 5))) static inline void
test_fail(const char *file, int line, const char *condition, const char *format, ...) {
  char text[4096];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  test_failures++;
  fprintf(stderr, "%s:%d: failed: %s: %s\n", file, line, condition, text);
}

#define CHECK(condition, ...)                                                                                \
  do {                                                                                                       \
    if (!(condition)) test_fail(__FILE__, __LINE__, #condition, " " __VA_ARGS__);                            \
  } while (0)

/** |a - b| relative to the larger of both and to floor_. */
static inline double test_relative(double a, double b, double floor_) {
  const double size = fmax(fmax(fabs(a), fabs(b)), floor_);
  return fabs(a - b) / size;
}

#define CHECK_NEAR(a, b, tolerance, floor_)                                                                  \
  do {                                                                                                       \
    const double near_a_ = (a), near_b_ = (b);                                                               \
    const double near_e_ = test_relative(near_a_, near_b_, (floor_));                                        \
    CHECK(near_e_ <= (tolerance), "%.17g against %.17g: relative error %.3g", near_a_, near_b_, near_e_);    \
  } while (0)

/** The value of main: 0 where nothing failed. */
static inline int test_verdict(const char *name) {
  if (test_failures) fprintf(stderr, "%s: %d checks failed\n", name, test_failures);
  return test_failures ? 1 : 0;
}

#endif
