#include "stablemoe/random.h"

#include <math.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

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

/* 64-bit lanes, of which the lower halves count: a product of two of them is one instruction where there are
 * vectors. GCC's own product of such vectors takes three times as long. */
#ifdef __AVX512F__
enum { VECTOR_LANES = 8 };
typedef __m512i lanes;

static inline lanes lower_product(lanes a, uint32_t factor) {
  return _mm512_mul_epu32(a, _mm512_set1_epi64(factor));
}
#elif defined __AVX2__
enum { VECTOR_LANES = 4 };
typedef __m256i lanes;

static inline lanes lower_product(lanes a, uint32_t factor) {
  return _mm256_mul_epu32(a, _mm256_set1_epi64x(factor));
}
#else
enum { VECTOR_LANES = 1 };
typedef uint64_t lanes;

static inline lanes lower_product(lanes a, uint32_t factor) {
  return (a & UINT32_MAX) * factor;
}
#endif

/* A vector and its numbers. */
typedef union numbers {
  lanes vector;
  uint64_t lane[VECTOR_LANES];
  uint64_t wide __attribute__((vector_size(VECTOR_LANES * sizeof(uint64_t))));
} numbers;

/* Philox4x32-10 (Salmon et al. 2011) on VECTOR_LANES counters at once. */
static void philox_lanes(numbers c[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; round++) {
    numbers p0, p1;
    p0.vector = lower_product(c[0].vector, 0xD2511F53u);
    p1.vector = lower_product(c[2].vector, 0xCD9E8D57u);
    c[0].wide = (p1.wide >> 32) ^ c[1].wide ^ (uint64_t)key0;
    c[1] = p1;
    c[2].wide = (p0.wide >> 32) ^ c[3].wide ^ (uint64_t)key1;
    c[3] = p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

void smoe_random_lanes(uint32_t word[4][SMOE_RANDOM_LANES], uint64_t seed, smoe_purpose purpose,
                       uint32_t stream, uint32_t update, uint64_t index) {
  for (size_t first = 0; first < SMOE_RANDOM_LANES; first += VECTOR_LANES) {
    numbers c[4];
    for (size_t i = 0; i < VECTOR_LANES; i++) {
      const uint64_t at = index + first + i;
      c[0].lane[i] = at & UINT32_MAX, c[1].lane[i] = at >> 32;
      c[2].lane[i] = update, c[3].lane[i] = (uint32_t)purpose | stream << 8;
    }
    philox_lanes(c, (uint32_t)seed, (uint32_t)(seed >> 32));
    for (size_t k = 0; k < 4; k++)
      for (size_t i = 0; i < VECTOR_LANES; i++) word[k][first + i] = (uint32_t)c[k].lane[i];
  }
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
