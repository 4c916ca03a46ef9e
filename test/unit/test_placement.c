/* Packing experts onto ranks: every rank keeps its number of experts, and the busiest has little. */
#include "stablemoe/placement.h"

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/random.h"

/** A table of places is a permutation, ascending within each rank. */
static void check_table(const int32_t *expert_at, int n_experts, int n_ranks, const char *label) {
  bool *seen = smoe_alloc((size_t)n_experts * sizeof *seen);
  for (int r = 0; r < n_ranks; r++)
    for (int i = smoe_expert_first(n_experts, r, n_ranks); i < smoe_expert_first(n_experts, r + 1, n_ranks);
         i++) {
      const int expert = expert_at[i];
      CHECK(expert >= 0 && expert < n_experts && !seen[expert], "%s: place %d has expert %d", label, i,
            expert);
      if (expert >= 0 && expert < n_experts) seen[expert] = true;
      CHECK(i == smoe_expert_first(n_experts, r, n_ranks) || expert_at[i - 1] < expert, "%s: place %d", label,
            i);
    }
  smoe_free(seen);
}

/** Pack; returns the busiest rank's load over the mean, and with *order that of expert e at place e. */
static double pack(const int64_t *load, int n_experts, int n_ranks, double *order, const char *label) {
  int32_t *expert_at = smoe_alloc((size_t)n_experts * sizeof *expert_at);
  double all = 0;
  for (int e = 0; e < n_experts; e++) all += (double)load[e];
  const double mean = all > 0 ? all / n_ranks : 1;
  smoe_placement_pack(expert_at, load, n_experts, n_ranks);
  check_table(expert_at, n_experts, n_ranks, label);
  *order = (double)smoe_placement_busiest(NULL, load, n_experts, n_ranks) / mean;
  const double packed = (double)smoe_placement_busiest(expert_at, load, n_experts, n_ranks) / mean;
  CHECK(packed >= (all > 0) - 1e-12 && packed <= *order + 1e-12, "%s: %g where order gives %g", label, packed,
        *order);
  smoe_free(expert_at);
  return packed;
}

/** Loads of experts whose token ids are spread by a hash, with frequencies after Zipf's law. */
static void zipf(int64_t *load, int n_experts, int vocabulary, uint32_t salt) {
  for (int e = 0; e < n_experts; e++) load[e] = 0;
  for (int w = 0; w < vocabulary; w++)
    load[smoe_random_bits(3, SMOE_RANDOM_TEST, salt, (uint64_t)w) % (uint64_t)n_experts] +=
        (int64_t)(1e9 / (w + 20));
}

static void test_known(void) {
  double order;
  /* 9 + 1 against 6 + 4: even, though first come the two heaviest. */
  const int64_t load[] = {9, 6, 4, 1};
  CHECK(pack(load, 4, 2, &order, "even") == 1, "packed");
  CHECK(order == 1.5, "in order: %g", order);
  /* One expert has more than a rank's share: nothing can be better than it alone with the lightest. */
  const int64_t heavy[] = {1, 90, 2, 7};
  CHECK(pack(heavy, 4, 2, &order, "heavy") == 91 / 50.0, "packed");
  /* Heaviest first gives 3 + 2 + 2 and 3 + 2 + 0; a swap makes it 2 + 2 + 2 and 3 + 3 + 0. */
  const int64_t thirds[] = {3, 3, 2, 2, 2, 0};
  CHECK(pack(thirds, 6, 2, &order, "swaps") == 1, "packed");
  CHECK(order == 8 / 6.0, "in order: %g", order);
  const int64_t none[6] = {0};
  CHECK(pack(none, 6, 3, &order, "no load") == 0, "packed");
}

static void test_zipf(void) {
  enum { MOST = 128 };
  int64_t load[MOST];
  double order, worst = 0;
  for (int n_experts = 32; n_experts <= MOST; n_experts *= 2)
    for (int n_ranks = 2; n_ranks <= 8; n_ranks++) {
      char label[64];
      snprintf(label, sizeof label, "%d experts on %d ranks", n_experts, n_ranks);
      zipf(load, n_experts, 8192, (uint32_t)n_experts);
      /* Every rank's mean is over the places it has. */
      if (n_experts % n_ranks != 0) {
        pack(load, n_experts, n_ranks, &order, label);
        continue;
      }
      const double packed = pack(load, n_experts, n_ranks, &order, label);
      CHECK(packed <= 1.05, "%s: %.3f -> %.3f", label, order, packed);
      if (packed > worst) worst = packed;
    }
  printf("largest over mean rank load after packing: at most %.4f\n", worst);
}

static void test_uneven(void) {
  int64_t load[7] = {3, 1, 4, 1, 5, 9, 2};
  double order;
  for (int n_ranks = 1; n_ranks <= 7; n_ranks++) pack(load, 7, n_ranks, &order, "uneven");
}

int main(void) {
  test_known();
  test_zipf();
  test_uneven();
  return test_verdict("placement");
}
