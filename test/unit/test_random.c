/* Random numbers: the streams never change, and they are what they are called. */
#include "stablemoe/random.h"

#include <stdlib.h>

#include "harness.h"
#include "stablemoe/arena.h"

static const uint64_t SEED = 42;

/** Philox4x32-10's published vectors (Random123, kat_vectors): counter and key all zeros, all ones, digits of pi. */
static void test_philox(void) {
  CHECK(smoe_random_bits(0, (smoe_purpose)0, 0, 0) == UINT64_C(0xe169c58d6627e8d5));
  CHECK(smoe_random_bits(UINT64_MAX, (smoe_purpose)UINT32_MAX, UINT32_MAX, UINT64_MAX) ==
        UINT64_C(0x41c83b0e408f276d));
  CHECK(smoe_random_bits(UINT64_C(0x299f31d0a4093822), (smoe_purpose)0x03707344, 0x13198a2e,
                         UINT64_C(0x85a308d3243f6a88)) == UINT64_C(0x94fdccebd16cfe09));
}

/** A run is repeated by its seed: whoever changes one of these breaks every checkpoint there is. */
static void test_golden(void) {
  CHECK(smoe_random_bits(1, SMOE_RANDOM_INIT, 0, 0) == UINT64_C(0x1e047488127bee41));
  CHECK(smoe_random_bits(1, SMOE_RANDOM_ORDER, 0, 0) == UINT64_C(0x6b5c693b2fe424f7));
  CHECK(smoe_random_bits(1, SMOE_RANDOM_JITTER, 2, 3) == UINT64_C(0x3aacd5b3a5c840ea));
  CHECK(smoe_random_bits(1, SMOE_RANDOM_DROPOUT, 2, 3) == UINT64_C(0x57b21cbd1f052bf1));
  CHECK(smoe_random_bits(1, SMOE_RANDOM_SAMPLE, 2, 3) == UINT64_C(0xbd51e4b845920f22));
  CHECK(smoe_random_bits(1, SMOE_RANDOM_SPLIT, 0, 3) == UINT64_C(0x2722a5f0718fcf0f));
  CHECK(smoe_random_bits(1, SMOE_RANDOM_TEST, 0, 3) == UINT64_C(0x94912ce6bd22719c));
  CHECK(smoe_random_bits(1, SMOE_RANDOM_ROUTER, 2, 3) == UINT64_C(0x40f990f262e85499));
  CHECK(smoe_random_uniform(1, SMOE_RANDOM_INIT, 0, 0) == 0x1.e047488127be8p-4);
  CHECK(smoe_random_uniform(SEED, SMOE_RANDOM_SAMPLE, 7, UINT64_C(123456789012)) == 0x1.ad439830ba3b2p-2);
  CHECK_NEAR(smoe_random_normal(1, SMOE_RANDOM_INIT, 0, 0), 0.48379819510815664, 1e-14, 0);
  CHECK_NEAR(smoe_random_normal(SEED, SMOE_RANDOM_INIT, 7, UINT64_C(123456789012)), -1.6650042618397374,
             1e-14, 0);
  CHECK(smoe_random_permute(1, SMOE_RANDOM_ORDER, 0, 10, 0) == 1);
  CHECK(smoe_random_permute(1, SMOE_RANDOM_ORDER, 0, 10, 9) == 4);
  CHECK(smoe_random_permute(SEED, SMOE_RANDOM_ORDER, 3, 1000003, 500000) == 646565);
  CHECK(smoe_random_permute(SEED, SMOE_RANDOM_ORDER, 3, UINT64_C(1000000000000), 5) == 5727079818);
}

/** The published vectors again, and word by word the numbers that come one at a time. */
static void test_lanes(void) {
  uint32_t word[4][SMOE_RANDOM_LANES];
  smoe_random_lanes(word, 0, (smoe_purpose)0, 0, 0, 0);
  CHECK(word[0][0] == 0x6627e8d5u && word[1][0] == 0xe169c58du && word[2][0] == 0xbc57ac4cu &&
        word[3][0] == 0x9b00dbd8u);
  smoe_random_lanes(word, UINT64_C(0x299f31d0a4093822), (smoe_purpose)0x44, 0x037073, 0x13198a2e,
                    UINT64_C(0x85a308d3243f6a88));
  CHECK(word[0][0] == 0xd16cfe09u && word[1][0] == 0x94fdccebu && word[2][0] == 0x5001e420u &&
        word[3][0] == 0x24126ea1u);
  const uint64_t first = UINT64_C(0xfffffff9); /* the lower half of the index overflows on the way */
  const smoe_purpose purpose = (smoe_purpose)(SMOE_RANDOM_DROPOUT | 77 << 8);
  smoe_random_lanes(word, SEED, SMOE_RANDOM_DROPOUT, 77, 5, first);
  for (uint64_t i = 0; i < SMOE_RANDOM_LANES; i++)
    CHECK(smoe_random_bits(SEED, purpose, 5, first + i) == ((uint64_t)word[1][i] << 32 | word[0][i]),
          "lane %d", (int)i);
}

static void test_hash(void) {
  CHECK(smoe_hash_text("") == 0x811c9dc5u && smoe_hash_text("a") == 0xe40c292cu);
  CHECK(smoe_hash_text("foobar") == 0xbf9cf968u); /* published values of FNV-1a */
  CHECK(smoe_hash_text("\xff") == 0x7a0b824eu);   /* (offset ^ 255) * prime: bytes have no sign */
}

typedef double draw(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t index);

/** The first four moments, within 4 standard errors; spread: standard deviation of x^k. */
static void test_moments(const char *name, draw *number, const double *moment, const double *spread) {
  enum { COUNT = 1000000 };
  double sum[4] = {0};
  for (uint64_t i = 0; i < COUNT; i++) {
    const double x = number(SEED, SMOE_RANDOM_TEST, 0, i);
    double power = 1;
    for (int k = 0; k < 4; k++) sum[k] += power *= x;
  }
  for (int k = 0; k < 4; k++)
    CHECK(fabs(sum[k] / COUNT - moment[k]) <= 4 * spread[k] / sqrt(COUNT), "%s: moment %d is %g, not %g",
          name, k + 1, sum[k] / COUNT, moment[k]);
}

static void test_uniform(void) {
  enum { COUNT = 100000, BINS = 64 };
  int bin[BINS] = {0};
  uint64_t ones = 0, zeros = 0;
  for (uint64_t i = 0; i < COUNT; i++) {
    const double x = smoe_random_uniform(SEED, SMOE_RANDOM_SAMPLE, 3, i);
    CHECK(x >= 0 && x < 1, "%g", x);
    const uint64_t digits = (uint64_t)ldexp(x, 53);
    CHECK(ldexp((double)digits, -53) == x, "more than 53 bits");
    ones |= digits, zeros |= ~digits;
    bin[(int)(x * BINS)]++;
  }
  CHECK((ones & zeros) == (UINT64_C(1) << 53) - 1, "a bit never changes");
  double chi2 = 0;
  for (int b = 0; b < BINS; b++) chi2 += pow(bin[b] - (double)COUNT / BINS, 2) / ((double)COUNT / BINS);
  CHECK(fabs(chi2 - (BINS - 1)) <= 4 * sqrt(2.0 * (BINS - 1)), "chi squared is %g in %d bins", chi2, BINS);
  const double moment[] = {1 / 2.0, 1 / 3.0, 1 / 4.0, 1 / 5.0};
  double spread[4];
  for (int k = 1; k <= 4; k++) spread[k - 1] = sqrt(1 / (2.0 * k + 1) - moment[k - 1] * moment[k - 1]);
  test_moments("uniform", smoe_random_uniform, moment, spread);
}

/** Neighbours in each coordinate of the counter have nothing to do with each other. */
static void test_independence(draw *number, double mean, double variance) {
  enum { COUNT = 100000 };
  double sum[4] = {0};
  for (uint64_t i = 0; i < COUNT; i++) {
    const double x = number(SEED, SMOE_RANDOM_TEST, 0, i) - mean;
    sum[0] += x * (number(SEED, SMOE_RANDOM_TEST, 0, i + 1) - mean);
    sum[1] += x * (number(SEED, SMOE_RANDOM_TEST, 1, i) - mean);
    sum[2] += x * (number(SEED + 1, SMOE_RANDOM_TEST, 0, i) - mean);
    sum[3] += x * (number(SEED, SMOE_RANDOM_INIT, 0, i) - mean);
  }
  for (int k = 0; k < 4; k++)
    CHECK(fabs(sum[k]) <= 4 * variance * sqrt(COUNT), "neighbour %d: correlation %g", k,
          sum[k] / (variance * COUNT));
  /* Not only the low halves of the 64-bit numbers count. */
  CHECK(number(SEED, SMOE_RANDOM_TEST, 0, 7) != number(SEED, SMOE_RANDOM_TEST, 0, 7 + (UINT64_C(1) << 32)));
  CHECK(number(SEED, SMOE_RANDOM_TEST, 0, 7) != number(SEED + (UINT64_C(1) << 32), SMOE_RANDOM_TEST, 0, 7));
}

static void test_normal(void) {
  const double moment[] = {0, 1, 0, 3}, spread[] = {1, sqrt(2), sqrt(15), sqrt(96)};
  test_moments("normal", smoe_random_normal, moment, spread);
  enum { COUNT = 100000 };
  int beyond[3] = {0};
  for (uint64_t i = 0; i < COUNT; i++) {
    const double x = smoe_random_normal(SEED, SMOE_RANDOM_TEST, 9, i);
    CHECK(isfinite(x), "%g", x);
    for (int k = 0; k < 3; k++) beyond[k] += fabs(x) > k + 1;
  }
  for (int k = 0; k < 3; k++) {
    const double p = erfc((k + 1) / sqrt(2));
    CHECK(fabs(beyond[k] - COUNT * p) <= 4 * sqrt(COUNT * p * (1 - p)), "%d numbers beyond %d, %.0f expected",
          beyond[k], k + 1, COUNT * p);
  }
}

/** All images of 0..n-1, each once. */
static void test_permutation(uint64_t n, uint64_t seed, uint32_t update) {
  char *seen = smoe_alloc(n);
  for (uint64_t i = 0; i < n; i++) {
    const uint64_t image = smoe_random_permute(seed, SMOE_RANDOM_ORDER, update, n, i);
    CHECK(image < n && !seen[image], "n = %llu: image of %llu is %llu", (unsigned long long)n,
          (unsigned long long)i, (unsigned long long)image);
    if (image < n) seen[image] = 1;
  }
  smoe_free(seen);
}

static int compare_u64(const void *a, const void *b) {
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

/** Of a permutation too large to see whole: images of some numbers are in range, differ, and are spread out. */
static void test_large_permutation(uint64_t n) {
  enum { COUNT = 20000 };
  uint64_t *image = smoe_alloc(COUNT * sizeof *image);
  double mean = 0;
  for (uint64_t i = 0; i < COUNT; i++) {
    const uint64_t at = i < COUNT / 2 ? i : n - 1 - (i - COUNT / 2);
    image[i] = smoe_random_permute(SEED, SMOE_RANDOM_ORDER, 1, n, at);
    CHECK(image[i] < n, "n = %llu", (unsigned long long)n);
    mean += (double)image[i] / (double)n / COUNT;
  }
  qsort(image, COUNT, sizeof *image, compare_u64);
  for (int i = 1; i < COUNT; i++)
    CHECK(image[i] != image[i - 1], "n = %llu: an image twice", (unsigned long long)n);
  CHECK(fabs(mean - 0.5) <= 4 / sqrt(12.0 * COUNT), "n = %llu: mean image %g n", (unsigned long long)n, mean);
  smoe_free(image);
}

/** Over many seeds every number goes everywhere equally often, also where the walk is long (n just above 4^k).
 *
 *  The network's few bits cannot be quite fair for the smallest n, which no corpus has: `bias` is
 *  allowed then, relative, at each place.
 */
static void test_fair(uint64_t n, int n_seeds, double bias) {
  const double expected = n_seeds / (double)n, noise = sqrt(expected * (1 - 1 / (double)n));
  double chi2 = 0, worst = 0;
  int *count = smoe_alloc(n * n * sizeof *count);
  for (int seed = 0; seed < n_seeds; seed++)
    for (uint64_t i = 0; i < n; i++)
      count[i * n + smoe_random_permute((uint64_t)seed, SMOE_RANDOM_ORDER, 0, n, i)]++;
  for (uint64_t i = 0; i < n * n; i++) {
    chi2 += pow(count[i] - expected, 2) / expected;
    worst = fmax(worst, fabs(count[i] - expected));
  }
  /* chi2 (n - 1) / n has (n - 1)^2 degrees of freedom: rows and columns have fixed sums. */
  const double m = (double)(n - 1);
  CHECK(bias > 0 || fabs(chi2 - m * (double)n) <= 5 * sqrt(2) * (double)n, "n = %llu: chi squared %g, not %g",
        (unsigned long long)n, chi2, m * (double)n);
  CHECK(worst <= bias * expected + 5 * noise, "n = %llu: a count is off by %g of %g", (unsigned long long)n,
        worst, expected);
  smoe_free(count);
}

int main(void) {
  test_philox();
  test_lanes();
  test_golden();
  test_hash();
  test_uniform();
  test_normal();
  test_independence(smoe_random_uniform, 0.5, 1 / 12.0);
  test_independence(smoe_random_normal, 0, 1);
  for (uint64_t n = 1; n <= 1000; n++) test_permutation(n, SEED, (uint32_t)n);
  test_permutation(65536, SEED, 0);
  test_permutation(65537, SEED, 0);
  test_permutation(1000003, SEED + 1, 7);
  test_large_permutation((UINT64_C(1) << 32) + 1);
  test_large_permutation(UINT64_C(1000000000000));
  test_large_permutation(UINT64_MAX);
  test_fair(2, 10000, 0);
  test_fair(5, 10000, 0.1);
  test_fair(16, 10000, 0);
  test_fair(17, 10000, 0);
  return test_verdict("random");
}
