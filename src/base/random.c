#include "stablemoe/random.h"

#include <math.h>

/* Random123 is a third-party header; its own warnings are not ours. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#include <Random123/philox.h>
#pragma GCC diagnostic pop

static const double TWO_TO_MINUS_53 = 0x1p-53;

static philox4x32_ctr_t draw(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t index) {
  const philox4x32_ctr_t counter = {{(uint32_t)index, (uint32_t)(index >> 32), update, (uint32_t)purpose}};
  const philox4x32_key_t key = {{(uint32_t)seed, (uint32_t)(seed >> 32)}};
  return philox4x32(counter, key);
}

uint64_t smoe_random_bits(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t index) {
  const philox4x32_ctr_t r = draw(seed, purpose, update, index);
  return (uint64_t)r.v[1] << 32 | r.v[0];
}

double smoe_random_uniform(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t index) {
  return (double)(smoe_random_bits(seed, purpose, update, index) >> 11) * TWO_TO_MINUS_53;
}

double smoe_random_normal(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t index) {
  const philox4x32_ctr_t r = draw(seed, purpose, update, index);
  const uint64_t a = (uint64_t)r.v[1] << 32 | r.v[0];
  const uint64_t b = (uint64_t)r.v[3] << 32 | r.v[2];
  const double u = 1.0 - (double)(a >> 11) * TWO_TO_MINUS_53; /* in (0, 1]: its logarithm is finite */
  const double angle = 2.0 * 3.14159265358979323846 * ((double)(b >> 11) * TWO_TO_MINUS_53);
  return sqrt(-2.0 * log(u)) * cos(angle);
}

uint64_t smoe_random_permute(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t n, uint64_t i) {
  enum { ROUNDS = 6 };
  int half = 1;
  while (half < 32 && (UINT64_C(1) << (2 * half)) < n) half++;
  const uint64_t mask = (UINT64_C(1) << half) - 1;
  /* Fewer than 4n numbers are walked through, so the walk is short: 4 steps on average at worst. */
  do {
    uint64_t left = i >> half, right = i & mask;
    for (uint64_t round = 0; round < ROUNDS; round++) {
      const uint64_t mixed = smoe_random_bits(seed, purpose, update, round << 32 | right) & mask;
      const uint64_t next = left ^ mixed;
      left = right;
      right = next;
    }
    i = left << half | right;
  } while (i >= n);
  return i;
}

uint32_t smoe_hash_text(const char *text) {
  uint32_t hash = 2166136261u;
  for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 16777619u;
  return hash;
}
