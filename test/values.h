/** Values for tests: functions of (salt, index), so a test sees the same ones in every run. */
#ifndef STABLEMOE_TEST_VALUES_H
#define STABLEMOE_TEST_VALUES_H

#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/random.h"

/** n reals, uniform in [-1, 1), in memory of smoe_alloc; at least one byte, so never NULL. */
static inline smoe_real *values_uniform(size_t n, uint32_t salt) {
  smoe_real *x = smoe_alloc(n * sizeof *x + 1);
  for (size_t i = 0; i < n; i++)
    x[i] = (smoe_real)(2 * smoe_random_uniform(7, SMOE_RANDOM_TEST, salt, i) - 1);
  return x;
}

/** n zeros. */
static inline smoe_real *values_zero(size_t n) {
  return smoe_alloc(n * sizeof(smoe_real) + 1);
}

/** A copy of n reals. */
static inline smoe_real *values_copy(const smoe_real *x, size_t n) {
  smoe_real *copy = values_zero(n);
  memcpy(copy, x, n * sizeof *copy);
  return copy;
}

/** n ids below `below`; every seventh is -1. */
static inline int32_t *values_ids(size_t n, int32_t below, uint32_t salt) {
  int32_t *id = smoe_alloc(n * sizeof *id + 1);
  for (size_t i = 0; i < n; i++)
    id[i] = i % 7 == 6 ? -1 : (int32_t)(smoe_random_bits(7, SMOE_RANDOM_TEST, salt, i) % (uint64_t)below);
  return id;
}

#endif
