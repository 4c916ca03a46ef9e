/* The parameter table: layout, slices, initial values, checksums. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "stablemoe/exchange.h"
#include "stablemoe/params.h"

enum { EXPERTS = 4, SEED = 7 };

/** A table as a rank would have it; nothing here talks to other ranks. */
static void build(smoe_params *params, smoe_arena *arena, int rank, int n_ranks, bool training) {
  const smoe_group group = {.comm = MPI_COMM_NULL, .rank = rank, .n_ranks = n_ranks};
  const smoe_lanes lanes = smoe_lanes_of_rank(4, rank, n_ranks);
  smoe_params_begin(params, &group, &lanes, EXPERTS);
  const smoe_init normal = {SMOE_INIT_NORMAL, 0.5, false}, uniform = {SMOE_INIT_UNIFORM, 0.25, false};
  const smoe_init one = {SMOE_INIT_CONSTANT, 1.0, false}, alike = {SMOE_INIT_NORMAL, 1.0, true};
  const smoe_init orthogonal = {SMOE_INIT_ORTHOGONAL, 2.0, false};
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){300, 40, 0}, normal, true, "embedding/%s",
                      "weight");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){40, 0, 0}, one, false, "norm/gain");
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){40, 80, 0}, uniform, true, "moe0/expert/w1");
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){33, 0, 0}, alike, false, "moe0/expert/b1");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){4, 40, 0}, orthogonal, false, "moe0/centroid");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){40, 6, 0}, orthogonal, false, "moe0/tall");
  smoe_arena_measure(arena, "model");
  smoe_params_layout(params, arena, training);
  const size_t planned = arena->peak;
  CHECK(params->shared == NULL);
  CHECK(smoe_arena_reserve(arena) == SMOE_OK, "%s", smoe_last_error());
  smoe_params_layout(params, arena, training);
  CHECK(arena->used == planned, "%zu planned, %zu taken", planned, arena->used);
  smoe_params_initialise(params, SEED);
}

static void drop(smoe_params *params, smoe_arena *arena) {
  smoe_params_end(params);
  smoe_arena_release(arena);
}

static void test_layout(const smoe_params *params) {
  size_t end[2] = {0, 0};
  for (int p = 0; p < params->n_params; p++) {
    const smoe_param *param = &params->param[p];
    CHECK(param->offset % SMOE_UNIT == 0 && param->offset >= end[param->sharding], "%s", param->name);
    end[param->sharding] = param->offset + param->count;
  }
  CHECK(params->shared_count % SMOE_UNIT == 0 && params->shared_count >= end[SMOE_REPLICATED]);
  CHECK(params->expert_count % SMOE_UNIT == 0 && params->expert_count >= end[SMOE_EXPERT]);
  CHECK(smoe_params_total(params, SMOE_REPLICATED) == 300 * 40 + 40 + 4 * 40 + 40 * 6);
  CHECK(smoe_params_total(params, SMOE_EXPERT) == EXPERTS * (40 * 80 + 33));
  CHECK(smoe_params_find(params, "norm/gain") == 1 && smoe_params_find(params, "norm") == -1);
  CHECK(params->param[0].n_dims == 2 && params->param[1].n_dims == 1);
}

/** Whatever is no parameter's is zero. */
static void test_padding(const smoe_params *params) {
  char *used = calloc(params->shared_count, 1);
  for (int p = 0; p < params->n_params; p++)
    if (params->param[p].sharding == SMOE_REPLICATED)
      memset(used + params->param[p].offset, 1, params->param[p].count);
  size_t bad = 0;
  for (size_t i = 0; i < params->shared_count; i++) bad += !used[i] && params->shared[i] != 0;
  CHECK(bad == 0, "%zu elements between parameters are not zero", bad);
  free(used);
}

/** Each element of a replicated parameter is in the slice of exactly one rank. */
static void test_slices(int n_ranks) {
  int n_experts = 0;
  size_t covered[6] = {0};
  for (int rank = 0; rank < n_ranks; rank++) {
    smoe_params params;
    smoe_arena arena;
    build(&params, &arena, rank, n_ranks, true);
    CHECK(params.place_first == n_experts);
    n_experts += params.n_local;
    for (int p = 0; p < params.n_params; p++) {
      size_t first;
      const size_t n = smoe_params_in_slice(&params, p, &first);
      CHECK(n == 0 || (first == covered[p] && first % SMOE_UNIT == 0), "%s: from %zu on",
            params.param[p].name, first);
      covered[p] += n;
    }
    drop(&params, &arena);
  }
  CHECK(n_experts == EXPERTS);
  smoe_params whole;
  smoe_arena arena;
  build(&whole, &arena, 0, 1, false);
  CHECK(whole.shared_m == NULL && whole.lane_grad == NULL);
  for (int p = 0; p < whole.n_params; p++)
    CHECK(covered[p] == (whole.param[p].sharding == SMOE_EXPERT ? 0 : whole.param[p].count), "%s: %zu",
          whole.param[p].name, covered[p]);
  drop(&whole, &arena);
}

/** A rank's values are those that one rank alone would have. */
static void test_same_on_any_ranks(const smoe_params *whole, int n_ranks) {
  for (int rank = 0; rank < n_ranks; rank++) {
    smoe_params params;
    smoe_arena arena;
    build(&params, &arena, rank, n_ranks, true);
    CHECK(memcmp(params.shared, whole->shared, whole->shared_count * sizeof(smoe_real)) == 0);
    for (int j = 0; j < params.n_local; j++)
      CHECK(memcmp(params.expert + (size_t)j * params.expert_count,
                   whole->expert + (size_t)(params.place_first + j) * params.expert_count,
                   params.expert_count * sizeof(smoe_real)) == 0,
            "expert %d on rank %d of %d", params.place_first + j, rank, n_ranks);
    drop(&params, &arena);
  }
}

static void test_distributions(const smoe_params *params) {
  const smoe_real *w = smoe_params_shared(params, 0);
  const size_t n = params->param[0].count;
  double sum = 0, square = 0;
  for (size_t i = 0; i < n; i++) {
    sum += w[i];
    square += (double)w[i] * w[i];
  }
  CHECK(fabs(sum / (double)n) <= 4 * 0.5 / sqrt((double)n), "mean %g", sum / (double)n);
  CHECK_NEAR(sqrt(square / (double)n), 0.5, 0.03, 0);
  double low = 1, high = -1;
  const smoe_real *u = smoe_params_expert(params, 2, 0);
  for (size_t i = 0; i < params->param[2].count; i++) {
    low = fmin(low, u[i]);
    high = fmax(high, u[i]);
  }
  CHECK(low >= -0.25 && low <= -0.24 && high <= 0.25 && high >= 0.24, "uniform in %g .. %g", low, high);
  for (size_t i = 0; i < 40; i++) CHECK(smoe_params_shared(params, 1)[i] == 1);
  CHECK(memcmp(u, smoe_params_expert(params, 2, 1), 40 * sizeof *u) != 0, "experts must differ");
  CHECK(memcmp(smoe_params_expert(params, 3, 0), smoe_params_expert(params, 3, 3), 33 * sizeof *u) == 0,
        "these experts must be alike");
}

/** Vectors i of stride s_vector, with elements of stride s_element, are orthogonal and of length 2. */
static void test_orthogonal(const smoe_real *w, int n, int size, int s_vector, int s_element) {
  for (int i = 0; i < n; i++)
    for (int j = 0; j <= i; j++) {
      double dot = 0;
      for (int k = 0; k < size; k++)
        dot += (double)w[i * s_vector + k * s_element] * w[j * s_vector + k * s_element];
      CHECK(fabs(dot - (i == j ? 4.0 : 0.0)) <= 2e-6, "vectors %d and %d: %g", i, j, dot);
    }
}

static void test_checksum(void) {
  enum { N = 5 * SMOE_UNIT + 17 };
  smoe_real *values = malloc(N * sizeof *values);
  for (int i = 0; i < N; i++) values[i] = (smoe_real)i / 7;
  const uint64_t whole = smoe_checksum(values, 0, N);
  for (size_t cut = 0; cut <= 5 * SMOE_UNIT; cut += SMOE_UNIT)
    CHECK(smoe_checksum(values, 0, cut) + smoe_checksum(values + cut, cut, N - cut) == whole, "cut at %zu",
          cut);
  CHECK(smoe_checksum(values, 0, 0) == 0);
  ((unsigned char *)values)[N * sizeof *values - 1] ^= 1;
  CHECK(smoe_checksum(values, 0, N) != whole, "a flipped bit");
  ((unsigned char *)values)[N * sizeof *values - 1] ^= 1;
  for (int i = 0; i < SMOE_UNIT; i++) {
    const smoe_real keep = values[i];
    values[i] = values[i + SMOE_UNIT];
    values[i + SMOE_UNIT] = keep;
  }
  CHECK(smoe_checksum(values, 0, N) != whole, "two blocks that changed places");
  free(values);
}

static void test_freeze(smoe_params *params) {
  CHECK(smoe_params_freeze(params, "moe0/", true) == 4);
  CHECK(params->param[2].frozen && params->param[4].frozen && !params->param[0].frozen);
  CHECK(smoe_params_freeze(params, "moe0/expert", false) == 2);
  CHECK(!params->param[2].frozen && params->param[4].frozen);
}

int main(void) {
  smoe_params params;
  smoe_arena arena;
  build(&params, &arena, 0, 1, true);
  test_layout(&params);
  test_padding(&params);
  for (int n_ranks = 1; n_ranks <= 5; n_ranks++) {
    test_slices(n_ranks);
    test_same_on_any_ranks(&params, n_ranks);
  }
  test_slices(40); /* more ranks than units and experts */
  test_distributions(&params);
  test_orthogonal(smoe_params_shared(&params, 4), 4, 40, 40, 1);
  test_orthogonal(smoe_params_shared(&params, 5), 6, 40, 1, 6);
  test_checksum();
  test_freeze(&params);
  drop(&params, &arena);
  return test_verdict("params");
}
