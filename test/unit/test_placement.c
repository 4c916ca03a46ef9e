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

/** Pack; returns the imbalance, and with *order that of expert e at place e. */
static double pack(const int64_t *load, int n_layers, int n_experts, int n_ranks, double *order,
                   const char *label) {
  int32_t *expert_at = smoe_alloc((size_t)n_experts * sizeof *expert_at);
  smoe_placement_pack(expert_at, load, n_layers, n_experts, n_ranks);
  check_table(expert_at, n_experts, n_ranks, label);
  *order = smoe_placement_imbalance(NULL, load, n_layers, n_experts, n_ranks);
  const double packed = smoe_placement_imbalance(expert_at, load, n_layers, n_experts, n_ranks);
  CHECK(packed >= 1 - 1e-12 && packed <= *order + 1e-12, "%s: %g where order gives %g", label, packed,
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
  CHECK(pack(load, 1, 4, 2, &order, "even") == 1, "packed");
  CHECK(order == 1.5, "in order: %g", order);
  /* One expert has more than a rank's share: nothing can be better than it alone with the lightest. */
  const int64_t heavy[] = {1, 90, 2, 7};
  CHECK(pack(heavy, 1, 4, 2, &order, "heavy") == 91 / 50.0, "packed");
  /* Two layers that pull in different ways: 0 and 1 must part, and so must 2 and 3. */
  const int64_t layers[] = {5, 5, 0, 0, 0, 0, 5, 5};
  CHECK(pack(layers, 2, 4, 2, &order, "layers") == 1, "packed");
  CHECK(order == 2, "in order: %g", order);
  /* Swaps do what longest-first does not: 3 + 3 + 2 + 2 + 2 on three ranks of 2, 2, 2 with a zero. */
  const int64_t none[6] = {0};
  CHECK(pack(none, 1, 6, 3, &order, "no load") == 1, "packed");
}

static void test_zipf(void) {
  enum { MOST = 128 };
  int64_t load[2 * MOST];
  double order, worst = 0;
  for (int n_experts = 32; n_experts <= MOST; n_experts *= 2)
    for (int n_ranks = 2; n_ranks <= 8; n_ranks++) {
      char label[64];
      snprintf(label, sizeof label, "%d experts on %d ranks", n_experts, n_ranks);
      zipf(load, n_experts, 8192, (uint32_t)n_experts);
      /* Every rank's mean is over the places it has. */
      if (n_experts % n_ranks != 0) {
        pack(load, 1, n_experts, n_ranks, &order, label);
        continue;
      }
      const double packed = pack(load, 1, n_experts, n_ranks, &order, label);
      CHECK(packed <= 1.05, "%s: %.3f -> %.3f", label, order, packed);
      if (packed > worst) worst = packed;
      zipf(load + n_experts, n_experts, 8192, 77);
      CHECK(pack(load, 2, n_experts, n_ranks, &order, label) <= 1.05, "%s, two layers", label);
    }
  printf("largest over mean rank load after packing: at most %.4f\n", worst);
}

static void test_uneven(void) {
  int64_t load[7] = {3, 1, 4, 1, 5, 9, 2};
  double order;
  for (int n_ranks = 1; n_ranks <= 7; n_ranks++) pack(load, 1, 7, n_ranks, &order, "uneven");
}

int main(void) {
  test_known();
  test_zipf();
  test_uneven();
  return test_verdict("placement");
}
