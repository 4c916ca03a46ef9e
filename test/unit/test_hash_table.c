/* Tables of Hash layers: every entry an expert, balance, clusters; and their routing by the method. */
#include "../../src/moe/hash_table.h"

#include <string.h>

#include "../../src/moe/k_means.h"
#include "../model_fixture.h"
#include "../values.h"
#include "harness.h"
#include "stablemoe/kernel.h"

enum { V = 1000, E = 8, SEED = 5, STREAM = 3 };

/** Zipf: token v stands in about 100000 / (v + 1) places, the last hundred nowhere. */
static void fill_counts(int64_t *count) {
  for (int v = 0; v < V; v++) count[v] = v < V - 100 ? 100000 / (v + 1) : 0;
}

static void check_experts(const char *what, const smoe_real *table, size_t n, int n_experts) {
  for (size_t i = 0; i < n; i++)
    CHECK(table[i] == (smoe_real)(int)table[i] && table[i] >= 0 && table[i] < (smoe_real)n_experts,
          "%s: entry %zu is %g", what, i, (double)table[i]);
}

static void test_random(void) {
  smoe_real a[V], b[V];
  int size[E] = {0};
  smoe_hash_random(a, V, E, SEED, STREAM);
  check_experts("random", a, V, E);
  for (int v = 0; v < V; v++) size[(int)a[v]]++;
  for (int e = 0; e < E; e++) CHECK(size[e] > V / E / 2 && size[e] < V / E * 2, "%d tokens", size[e]);
  smoe_hash_random(b, V, E, SEED, STREAM);
  CHECK(memcmp(a, b, sizeof a) == 0, "the same seed gives another table");
  smoe_hash_random(b, V, E, SEED + 1, STREAM);
  CHECK(memcmp(a, b, sizeof a) != 0, "another seed gives the same table");
  smoe_hash_random(b, V, E, SEED, STREAM + 1);
  CHECK(memcmp(a, b, sizeof a) != 0, "another layer has the same table");
}

/** No expert carries more than an even share and half, but for one that the commonest token fills alone. */
static void test_balanced(void) {
  smoe_real table[V];
  int64_t count[V], load[E] = {0}, sum = 0;
  int unseen[E] = {0};
  fill_counts(count);
  smoe_hash_balanced(table, count, V, E, SEED, STREAM);
  check_experts("balanced", table, V, E);
  for (int v = 0; v < V; v++) {
    load[(int)table[v]] += count[v];
    sum += count[v];
    unseen[(int)table[v]] += count[v] == 0;
  }
  for (int e = 0; e < E; e++) {
    CHECK(load[e] * 100 <= sum / E * 101 || load[e] == count[0], "expert %d carries %lld of %lld", e,
          (long long)load[e], (long long)sum);
    CHECK(unseen[e] > 0, "expert %d has none of the tokens that never occur", e);
  }
  for (int v = 0; v < E; v++) CHECK(table[v] == (smoe_real)v, "the commonest tokens are not apart");
}

/** E clouds of points far from one another: token v is in cloud v % E. */
static smoe_real *clouds(size_t c) {
  smoe_real *x = smoe_alloc(V * c * sizeof *x);
  for (size_t i = 0; i < V * c; i++) {
    const size_t v = i / c;
    x[i] = (smoe_real)(10 * smoe_random_normal(1, SMOE_RANDOM_TEST, 1, v % E * c + i % c) +
                       0.3 * smoe_random_normal(1, SMOE_RANDOM_TEST, 2, i));
  }
  return x;
}

static void test_clusters(void) {
  enum { C = 24 };
  smoe_real *x = clouds(C), clustered[V], dispersed[V], again[V];
  int64_t count[V], load[E] = {0};
  int in[E][E] = {{0}};
  fill_counts(count);
  smoe_hash_clustered(clustered, x, V, C, E, SEED, STREAM);
  smoe_hash_dispersed(dispersed, count, x, V, C, E, SEED, STREAM);
  check_experts("clustered", clustered, V, E);
  check_experts("dispersed", dispersed, V, E);
  for (int v = 0; v < V; v++) {
    CHECK(clustered[v] == clustered[v % E], "token %d is not in the cluster of %d", v, v % E);
    in[v % E][(int)dispersed[v]]++;
    load[(int)dispersed[v]] += count[v];
  }
  for (int a = 0; a < E; a++)
    for (int b = 0; b < E; b++) {
      CHECK(a == b || clustered[a] != clustered[b], "clouds %d and %d are one cluster", a, b);
      CHECK(in[a][b] == V / E / E || in[a][b] == V / E / E + 1, "expert %d has %d of cloud %d", b, in[a][b],
            a);
    }
  int64_t least = load[0], most = load[0];
  for (int e = 0; e < E; e++) {
    least = load[e] < least ? load[e] : least;
    most = load[e] > most ? load[e] : most;
  }
  printf("dispersed: loads from %lld to %lld\n", (long long)least, (long long)most);
  smoe_threads_set(3);
  smoe_hash_clustered(again, x, V, C, E, SEED, STREAM);
  smoe_threads_set(1);
  CHECK(memcmp(clustered, again, sizeof again) == 0, "three threads make other clusters than one");
  smoe_free(x);
}

/** Every mean is the mean of its rows, and every row is nearest to its own; no cluster is empty. */
static void test_k_means(size_t n, size_t c, int k, uint64_t seed) {
  smoe_real *x = values_uniform(n * c, 2);
  int32_t *cluster = smoe_alloc(n * sizeof *cluster);
  double *mean = smoe_alloc((size_t)k * c * sizeof *mean);
  size_t *size = smoe_alloc((size_t)k * sizeof *size);
  smoe_k_means(cluster, x, n, c, k, seed, STREAM);
  for (size_t i = 0; i < n; i++) {
    size[cluster[i]]++;
    for (size_t j = 0; j < c; j++) mean[(size_t)cluster[i] * c + j] += (double)x[i * c + j];
  }
  for (size_t j = 0; j < (size_t)k; j++) {
    CHECK(size[j] > 0, "cluster %zu of %zu rows is empty", j, n);
    for (size_t d = 0; d < c; d++) mean[j * c + d] /= (double)size[j];
  }
  for (size_t i = 0; i < n; i++) {
    double own = 0, least = INFINITY;
    for (int j = 0; j < k; j++) {
      double distance = 0;
      for (size_t d = 0; d < c; d++) {
        const double difference = (double)x[i * c + d] - mean[(size_t)j * c + d];
        distance += difference * difference;
      }
      least = fmin(least, distance);
      if (j == cluster[i]) own = distance;
    }
    CHECK(own <= least * 1.001 + 1e-6, "row %zu: its mean is at %g, another at %g", i, own, least);
  }
  smoe_free(x), smoe_free(cluster), smoe_free(mean), smoe_free(size);
}

/** Alike rows are fewer than clusters: nothing to divide, but an end. */
static void test_same_rows(void) {
  smoe_real x[20];
  int32_t cluster[10];
  for (int i = 0; i < 20; i++) x[i] = (smoe_real)(i % 2);
  smoe_k_means(cluster, x, 10, 2, 4, SEED, STREAM);
  for (int i = 0; i < 10; i++) CHECK(cluster[i] >= 0 && cluster[i] < 4, "row %d in %d", i, (int)cluster[i]);
}

/* ---- the method ---- */

enum { LANE_SEQUENCES = 3, CONTEXT = 5, N = LANE_SEQUENCES * CONTEXT };

typedef struct routed {
  int32_t token[N], expert[N];
  smoe_real gate[N];
  fixture_sums sums;
} routed;

/** Route one lane by a variant; token ids: padding at the end of the last sequence. */
static void route(routed *r, const char *variant, smoe_params *params) {
  static const smoe_lanes lanes = {1, 0, 1};
  const smoe_group group = {.comm = MPI_COMM_NULL, .n_ranks = 1};
  char *choice = smoe_sprintf("router.hash.variant=%s", variant);
  const char *const overrides[] = {choice, "router.hash.model=some.h5", "moe.experts=7", NULL};
  smoe_config *config = fixture_config("hash", overrides);
  smoe_router router;
  smoe_arena arena;
  smoe_params_begin(params, &group, &lanes);
  fixture_router(&router, config, params, 0, FIXTURE_VOCABULARY);
  smoe_arena_measure(&arena, "test");
  smoe_params_layout(params, &arena, false);
  fixture_try(smoe_arena_reserve(&arena), "memory");
  smoe_params_layout(params, &arena, false);
  smoe_params_initialise(params, 3);
  int64_t count[FIXTURE_VOCABULARY];
  for (int v = 0; v < FIXTURE_VOCABULARY; v++) count[v] = v;
  smoe_real *embedding = values_uniform(FIXTURE_VOCABULARY * 4, 1);
  router.ops->prepare(&router, params, &(smoe_route_facts){count, embedding, 4});

  fixture_tokens(r->token, NULL, 5, 0, N, 0);
  r->token[1] = r->token[6] = 4; /* the same token in other places */
  r->token[5] = r->token[0];
  r->token[N - 1] = r->token[N - 2] = -1;
  const smoe_pass context = {.seed = 3, .stage = 1, .training = true, .n_targets = N};
  const smoe_route_call call = {.context = &context,
                                .n_tokens = N,
                                .n_sequences = LANE_SEQUENCES,
                                .n_context = CONTEXT,
                                .token = r->token,
                                .expert = r->expert,
                                .gate = r->gate};
  r->sums = (fixture_sums){0};
  smoe_router_route(&router, &call);
  smoe_router_losses(&router, &call, &(smoe_route_loads){0}, &r->sums.sums);
  const smoe_route_call none = {.context = &context, .n_context = CONTEXT};
  smoe_router_route(&router, &none);
  for (int p = 0; p < params->n_params; p++)
    CHECK(params->param[p].frozen, "%s learns", params->param[p].name);
  smoe_params_end(params);
  smoe_arena_release(&arena);
  smoe_free(embedding);
  smoe_free(choice);
  smoe_config_destroy(config);
}

static int32_t before(const routed *r, int i) {
  return r->token[i % CONTEXT ? i - 1 : i];
}

/** Same keys, same expert; and unlike keys are not all of one expert. */
static void test_variant(const char *variant, bool by_token, bool by_before, bool by_position) {
  routed r;
  smoe_params params;
  route(&r, variant, &params);
  bool all_alike = true;
  for (int i = 0; i < N; i++) {
    if (r.token[i] < 0) {
      CHECK(r.expert[i] == -1 && r.gate[i] == 0, "%s: padding goes to %d", variant, (int)r.expert[i]);
      continue;
    }
    CHECK(r.expert[i] >= 0 && r.expert[i] < 7 && r.gate[i] == 1, "%s: row %d: expert %d, gate %g", variant, i,
          (int)r.expert[i], (double)r.gate[i]);
    all_alike = all_alike && r.expert[i] == r.expert[0];
    for (int j = 0; j < i; j++)
      if ((!by_token || r.token[i] == r.token[j]) && (!by_before || before(&r, i) == before(&r, j)) &&
          (!by_position || i % CONTEXT == j % CONTEXT))
        CHECK(r.expert[i] == r.expert[j], "%s: rows %d and %d", variant, i, j);
  }
  CHECK(!all_alike, "%s: all tokens go to expert %d", variant, (int)r.expert[0]);
  CHECK(r.sums.sums.gate == N - 2 && r.sums.sums.n_gates == N - 2, "%s: %g of %g gates", variant,
        r.sums.sums.gate, r.sums.sums.n_gates);
}

int main(void) {
  test_random();
  test_balanced();
  test_clusters();
  test_k_means(300, 5, 7, SEED);
  test_k_means(40, 3, 40, SEED);
  test_k_means(64, 40, 1, SEED);
  test_same_rows();
  static const char *const by_token[] = {"random", "balanced", "clustered", "dispersed"};
  for (size_t i = 0; i < 4; i++) test_variant(by_token[i], true, false, false);
  test_variant("previous", false, true, false);
  test_variant("bigram", true, true, false);
  test_variant("position", false, false, true);
  return test_verdict("hash_table");
}
