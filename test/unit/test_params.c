/* The parameter table: layout, slices, initial values, checksums. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "stablemoe/exchange.h"
#include "stablemoe/params.h"

/* Two MoE layers, of different numbers of experts; the last two parameters are frozen from the start. */
enum { LAYERS = 2, LANES = 4, TABLE = 500, FROZEN = 400, SEED = 7 };
static const int n_experts[LAYERS] = {4, 3};
enum { W1 = 2, B1, CENTROID, TALL, W1_OF_1, FROZEN_OF_1, TABLE_OF_1, N_PARAMS };

static void declare(smoe_params *params, int rank, int n_ranks) {
  const smoe_group group = {.comm = MPI_COMM_NULL, .rank = rank, .n_ranks = n_ranks};
  const smoe_lanes lanes = smoe_lanes_of_rank(LANES, rank, n_ranks);
  smoe_params_begin(params, &group, &lanes);
  const smoe_init normal = {SMOE_INIT_NORMAL, 0.5, false}, uniform = {SMOE_INIT_UNIFORM, 0.25, false};
  const smoe_init one = {SMOE_INIT_CONSTANT, 1.0, false}, alike = {SMOE_INIT_NORMAL, 1.0, true};
  const smoe_init orthogonal = {SMOE_INIT_ORTHOGONAL, 2.0, false};
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){300, 40, 0}, normal, true, "embedding/%s",
                      "weight");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){40, 0, 0}, one, false, "norm/gain");
  CHECK(smoe_params_begin_experts(params, n_experts[0]) == 0);
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){40, 80, 0}, uniform, true, "moe0/expert/w1");
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){33, 0, 0}, alike, false, "moe0/expert/b1");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){4, 40, 0}, orthogonal, false, "moe0/centroid");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){40, 6, 0}, orthogonal, false, "moe0/tall");
  CHECK(smoe_params_begin_experts(params, n_experts[1]) == 1);
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){30, 70, 0}, uniform, true, "moe1/expert/w1");
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){FROZEN, 0, 0}, normal, false, "moe1/expert/frozen");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){TABLE, 0, 0}, normal, false, "moe1/table");
}

/** A table as a rank would have it; nothing here talks to other ranks. */
static void build(smoe_params *params, smoe_arena *arena, int rank, int n_ranks, bool training, bool freeze) {
  declare(params, rank, n_ranks);
  if (freeze) {
    CHECK(smoe_params_freeze(params, "moe1/expert/frozen", true) == 1);
    CHECK(smoe_params_freeze(params, "moe1/table", true) == 1);
  }
  smoe_arena_measure(arena, "model");
  smoe_params_layout(params, arena, training);
  const size_t planned = arena->peak;
  CHECK(params->slab[SMOE_SLAB_REPLICATED].value == NULL);
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
  const int slab[N_PARAMS] = {0, 0, 2, 2, 0, 0, 4, 5, 1};
  size_t end[6] = {0};
  CHECK(params->n_params == N_PARAMS && params->n_slabs == 6 && params->n_moe == LAYERS);
  CHECK(params->n_experts == 4, "most experts of a layer: %d", params->n_experts);
  for (int p = 0; p < params->n_params; p++) {
    const smoe_param *param = &params->param[p];
    CHECK(param->slab == slab[p], "%s: slab %d", param->name, param->slab);
    CHECK(param->offset % SMOE_UNIT == 0 && param->offset >= end[param->slab], "%s", param->name);
    end[param->slab] = param->offset + param->count;
  }
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *at = &params->slab[s];
    CHECK(at->count % SMOE_UNIT == 0 && at->count >= end[s] && at->count < end[s] + SMOE_UNIT, "slab %d", s);
    CHECK(at->learns == (s % 2 == 0), "slab %d", s);
    CHECK(at->n_experts == (s < 2 ? 0 : n_experts[s / 2 - 1]), "slab %d: %d experts", s, at->n_experts);
  }
  CHECK(smoe_params_total(params, SMOE_REPLICATED) == 300 * 40 + 40 + 4 * 40 + 40 * 6 + TABLE);
  CHECK(smoe_params_total(params, SMOE_EXPERT) == 4 * (40 * 80 + 33) + 3 * (30 * 70 + FROZEN));
  CHECK(smoe_params_total_frozen(params) == TABLE + 3 * FROZEN);
  CHECK(smoe_params_find(params, "norm/gain") == 1 && smoe_params_find(params, "norm") == -1);
  CHECK(params->param[0].n_dims == 2 && params->param[1].n_dims == 1);
}

/** Whatever is no parameter's is zero. */
static void test_padding(const smoe_params *params) {
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    char *used = calloc(slab->count, 1);
    for (int p = 0; p < params->n_params; p++)
      if (smoe_params_slab(params, p) == slab)
        memset(used + params->param[p].offset, 1, params->param[p].count);
    size_t bad = 0;
    for (size_t i = 0; i < (size_t)slab->n_local * slab->count; i++)
      bad += !used[i % slab->count] && slab->value[i] != 0;
    CHECK(bad == 0, "slab %d: %zu elements between parameters are not zero", s, bad);
    free(used);
  }
}

/** Each element of a replicated parameter is in the slice of exactly one rank, each expert on one rank. */
static void test_slices(int n_ranks) {
  int experts[LAYERS] = {0};
  size_t covered[N_PARAMS] = {0};
  for (int rank = 0; rank < n_ranks; rank++) {
    smoe_params params;
    smoe_arena arena;
    build(&params, &arena, rank, n_ranks, true, true);
    for (int m = 0; m < LAYERS; m++) {
      const smoe_slab *slab = smoe_params_experts(&params, m);
      CHECK(slab->place_first == experts[m], "layer %d of rank %d begins with %d", m, rank,
            slab->place_first);
      for (int j = 0; j < slab->n_local; j++) CHECK(smoe_slab_expert_number(slab, j) == experts[m] + j);
      experts[m] += slab->n_local;
    }
    for (int p = 0; p < params.n_params; p++) {
      const smoe_slab *slab = smoe_params_slab(&params, p);
      const bool expert = params.param[p].sharding == SMOE_EXPERT;
      for (int j = 0; j < slab->n_local; j++) {
        size_t first, own;
        const size_t n = smoe_params_in_slice(&params, p, j, &first, &own);
        CHECK(n == 0 || (first == (expert ? 0 : covered[p]) && first % SMOE_UNIT == 0), "%s: from %zu on",
              params.param[p].name, first);
        CHECK(n == 0 || slab->slice_first + own == (size_t)j * slab->count + params.param[p].offset + first,
              "%s: at %zu of the slice", params.param[p].name, own);
        covered[p] += n;
      }
    }
    drop(&params, &arena);
  }
  for (int m = 0; m < LAYERS; m++) CHECK(experts[m] == n_experts[m], "layer %d: %d experts", m, experts[m]);
  smoe_params whole;
  smoe_arena arena;
  build(&whole, &arena, 0, 1, false, true);
  CHECK(whole.slab[0].m == NULL && whole.slab[0].grad == NULL);
  for (int p = 0; p < whole.n_params; p++) {
    const int copies = smoe_params_slab(&whole, p)->n_local;
    CHECK(covered[p] == (size_t)copies * whole.param[p].count, "%s: %zu", whole.param[p].name, covered[p]);
  }
  drop(&whole, &arena);
}

/** A rank's values are those that one rank alone would have. */
static void test_same_on_any_ranks(const smoe_params *whole, int n_ranks) {
  for (int rank = 0; rank < n_ranks; rank++) {
    smoe_params params;
    smoe_arena arena;
    build(&params, &arena, rank, n_ranks, true, true);
    for (int s = 0; s < params.n_slabs; s++) {
      const smoe_slab *part = &params.slab[s], *all = &whole->slab[s];
      CHECK(memcmp(part->value, all->value + (size_t)part->place_first * all->count,
                   (size_t)part->n_local * part->count * sizeof(smoe_real)) == 0,
            "slab %d on rank %d of %d", s, rank, n_ranks);
    }
    drop(&params, &arena);
  }
}

/** What is frozen before the layout costs its values alone, and has the same ones. */
static void test_frozen_from_the_start(const smoe_params *frozen) {
  smoe_params params, other;
  smoe_arena arena, other_arena;
  build(&params, &arena, 0, 1, true, false);
  build(&other, &other_arena, 0, 1, true, true);
  /* A table: first and second moments, own slice, and a gradient for each lane; an expert's has one lane. */
  const size_t saved = (3 + LANES + 3 * 3) * SMOE_UNIT * sizeof(smoe_real);
  CHECK(arena.used - other_arena.used == saved, "%zu bytes saved, not %zu", arena.used - other_arena.used,
        saved);
  CHECK(memcmp(smoe_params_shared(&params, TABLE_OF_1), smoe_params_shared(frozen, TABLE_OF_1),
               TABLE * sizeof(smoe_real)) == 0);
  CHECK(memcmp(smoe_params_expert(&params, FROZEN_OF_1, 2), smoe_params_expert(frozen, FROZEN_OF_1, 2),
               FROZEN * sizeof(smoe_real)) == 0);
  CHECK(smoe_params_lane_grad(frozen, TABLE_OF_1, 0) == NULL);
  CHECK(smoe_params_expert_grad(frozen, FROZEN_OF_1, 1) == NULL);
  CHECK(smoe_params_lane_grad(&params, TABLE_OF_1, 0) && smoe_params_expert_grad(&params, FROZEN_OF_1, 1));
  /* Frozen later, a parameter keeps its place. */
  CHECK(smoe_params_freeze(&params, "moe1/table", true) == 1);
  smoe_params_layout(&params, &(smoe_arena){0}, true);
  CHECK(params.param[TABLE_OF_1].slab == SMOE_SLAB_REPLICATED);
  drop(&params, &arena);
  drop(&other, &other_arena);
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
  CHECK(smoe_params_freeze(params, "none/such", true) == 0);
  CHECK(params->param[2].frozen && params->param[4].frozen && !params->param[0].frozen);
  CHECK(smoe_params_freeze(params, "moe0/expert", false) == 2);
  CHECK(!params->param[2].frozen && params->param[4].frozen);
}

int main(void) {
  smoe_params params;
  smoe_arena arena;
  build(&params, &arena, 0, 1, true, true);
  test_layout(&params);
  test_padding(&params);
  for (int n_ranks = 1; n_ranks <= 5; n_ranks++) {
    test_slices(n_ranks);
    test_same_on_any_ranks(&params, n_ranks);
  }
  test_slices(40); /* more ranks than units and experts */
  test_distributions(&params);
  test_orthogonal(smoe_params_shared(&params, CENTROID), 4, 40, 40, 1);
  test_orthogonal(smoe_params_shared(&params, TALL), 6, 40, 1, 6);
  test_checksum();
  test_frozen_from_the_start(&params);
  test_freeze(&params);
  drop(&params, &arena);
  return test_verdict("params");
}
