/** Dropout: the mask is a function of seed, update, site, token and element, with the right share of zeros. */
#include "near.h"
#include "stablemoe/kernel.h"

static const smoe_dropout tenth = {.share = 0.1, .seed = 5, .update = 3, .site = 2};

/* Bit for bit from the random numbers one at a time, as the header writes it down. */
static void by_definition(size_t n, size_t c) {
  smoe_real *x = values_uniform(n * c, 1), *kept = values_copy(x, n * c);
  const double share = 6554.0 / 65536; /* 0.1 of 16 bits */
  const smoe_real scale = (smoe_real)(1 / (1 - share));
  smoe_dropout_apply(x, NULL, 1000, n, c, &tenth);
  for (size_t i = 0; i < n * c; i++) {
    const uint64_t token = 1000 + i / c, j = i % c, block = j / 128 * 16 + j % 16, number = j % 128 / 16;
    uint32_t word[4][SMOE_RANDOM_LANES];
    smoe_random_lanes(word, 5, SMOE_RANDOM_DROPOUT, 2, 3, token << 20 | block);
    const uint32_t bits = word[number % 4][0] >> 16 * (number / 4) & 0xffff;
    const smoe_real want = bits < 6554 ? 0 : kept[i] * scale;
    CHECK(x[i] == want, "row %zu, element %zu: %g, not %g", i / c, i % c, (double)x[i], (double)want);
  }
  smoe_free(x), smoe_free(kept);
}

static size_t zeros(const smoe_real *x, size_t n) {
  size_t count = 0;
  for (size_t i = 0; i < n; i++) count += x[i] == 0;
  return count;
}

/* Shares of zeros, within 5 standard errors, and of zeros in two masks at once: they are independent. */
static void shares(void) {
  enum { N = 500, C = 300 };
  const double ps[] = {0.1, 0.5, 0.9};
  for (size_t k = 0; k < 3; k++) {
    const double p = ps[k], error = 5 * sqrt(p * (1 - p) / (N * C));
    const smoe_dropout dropout[] = {{.share = p, .seed = 1, .update = 1, .site = 1},
                                    {.share = p, .seed = 2, .update = 1, .site = 1},
                                    {.share = p, .seed = 1, .update = 2, .site = 1},
                                    {.share = p, .seed = 1, .update = 1, .site = 2}};
    smoe_real *first = values_zero(N * C);
    for (size_t i = 0; i < N * C; i++) first[i] = 1;
    smoe_dropout_apply(first, NULL, 0, N, C, &dropout[0]);
    const double mean = (double)zeros(first, N * C) / (N * C);
    CHECK(fabs(mean - p) <= error, "share %g: %g of the elements are zero", p, mean);
    double sum = 0;
    for (size_t i = 0; i < N * C; i++) sum += first[i];
    CHECK(fabs(sum / (N * C) - 1) <= error / (1 - p), "share %g: the mean is %g", p, sum / (N * C));
    for (size_t other = 0; other < 4; other++) { /* other 0: the next token's mask */
      smoe_real *x = values_copy(first, N * C);
      smoe_dropout_apply(x, NULL, other == 0 ? N : 0, N, C, &dropout[other]);
      const double both = (double)zeros(x, N * C) / (N * C), want = 1 - (1 - p) * (1 - p);
      CHECK(fabs(both - want) <= 5 * sqrt(want * (1 - want) / (N * C)), "share %g, mask %zu: %g, not %g", p,
            other, both, want);
      smoe_free(x);
    }
    smoe_free(first);
  }
}

/* The mask of a row goes with its token, and the gradient has the mask of the activations. */
static void rows(void) {
  enum { N = 40, C = 77 };
  int64_t token[N];
  smoe_real *x = values_uniform(N * C, 1), *all = values_copy(x, N * C), *moved = values_copy(x, N * C);
  smoe_real *dx = values_uniform(N * C, 2), *before = values_copy(dx, N * C);
  for (int64_t i = 0; i < N; i++) token[i] = 7 + (i * 17) % N;
  smoe_dropout_apply(all, NULL, 7, N, C, &tenth);
  for (size_t i = 0; i < N; i++) memcpy(moved + i * C, x + (size_t)(token[i] - 7) * C, C * sizeof *moved);
  smoe_dropout_apply(moved, token, 0, N, C, &tenth);
  for (size_t i = 0; i < N; i++)
    near_same_bits("a row elsewhere", moved + i * C, all + (size_t)(token[i] - 7) * C, C);
  smoe_dropout_apply(dx, NULL, 7, N, C, &tenth);
  for (size_t i = 0; i < N * C; i++) {
    const double want = all[i] == 0 ? 0 : before[i] * 65536.0 / (65536 - 6554);
    CHECK_NEAR(dx[i], want, 1e-6, 1e-3);
  }
  smoe_real *same = values_copy(x, N * C);
  smoe_dropout_apply(same, NULL, 7, N, C, &(smoe_dropout){.share = 0, .seed = 5});
  near_same_bits("a share of 0", same, x, N * C);
  smoe_free(x), smoe_free(all), smoe_free(moved), smoe_free(dx), smoe_free(before), smoe_free(same);
}

int main(void) {
  by_definition(3, 300);
  by_definition(2, 128);
  by_definition(5, 1);
  by_definition(0, 8);
  shares();
  rows();
  return test_verdict("dropout");
}
