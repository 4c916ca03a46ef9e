/* MultiHash: a token visits one segment of each group, by a hash of its own for each. */
#include "../model_fixture.h"
#include "harness.h"

enum { CONTEXT = 6, N = 4 * CONTEXT, SEGMENTS = 3, CHOICES = 4 };

static void test_segments(const char *variant, bool by_token) {
  static const smoe_lanes lanes = {1, 0, 1};
  const smoe_group group = {.comm = MPI_COMM_NULL, .n_ranks = 1};
  char *choice = smoe_sprintf("router.hash.variant=%s", variant);
  smoe_config *config =
      fixture_config("hash", (const char *const[]){choice, "moe.experts=12", "router.hash.segments=3",
                                                   "model.context=6", NULL});
  smoe_params params;
  smoe_router router;
  smoe_arena arena;
  smoe_params_begin(&params, &group, &lanes);
  fixture_router(&router, config, &params, 0, FIXTURE_VOCABULARY);
  CHECK(router.n_slots == SEGMENTS);
  smoe_arena_measure(&arena, "test");
  smoe_params_layout(&params, &arena, false);
  fixture_try(smoe_arena_reserve(&arena), "memory");
  smoe_params_layout(&params, &arena, false);
  smoe_params_initialise(&params, 3);
  router.ops->prepare(&router, &params, &(smoe_route_facts){0});

  int32_t token[N], expert[N * SEGMENTS];
  smoe_real gate[N * SEGMENTS];
  fixture_tokens(token, NULL, 5, 0, N, 0);
  token[N - 1] = -1;
  const smoe_pass context = {.seed = 3, .stage = 1, .training = true, .n_targets = N};
  const smoe_route_call call = {.context = &context,
                                .n_tokens = N,
                                .n_sequences = N / CONTEXT,
                                .n_context = CONTEXT,
                                .token = token,
                                .expert = expert,
                                .gate = gate};
  smoe_router_route(&router, &call);
  fixture_sums memory = {0};
  const smoe_route_sums *sums = &memory.sums;
  smoe_router_losses(&router, &call, &(smoe_route_loads){0}, &memory.sums);
  CHECK(sums->gate == SEGMENTS * (N - 1) && sums->n_gates == sums->gate, "%g of %g gates", sums->gate,
        sums->n_gates);
  int unlike = 0;
  for (int t = 0; t < N; t++) {
    for (int m = 0; m < SEGMENTS; m++) {
      const int32_t e = expert[t * SEGMENTS + m];
      if (token[t] < 0) {
        CHECK(e == -1 && gate[t * SEGMENTS + m] == 0, "%s: padding goes to %d", variant, (int)e);
        continue;
      }
      CHECK(e >= m * CHOICES && e < (m + 1) * CHOICES && gate[t * SEGMENTS + m] == 1,
            "%s: row %d goes to %d with gate %g for segment %d", variant, t, (int)e,
            (double)gate[t * SEGMENTS + m], m);
      unlike += e - m * CHOICES != expert[t * SEGMENTS];
      for (int u = 0; u < t && by_token; u++)
        if (token[u] == token[t]) CHECK(expert[u * SEGMENTS + m] == e, "%s: rows %d and %d", variant, u, t);
    }
  }
  CHECK(unlike > 0, "%s: the hashes of all segments are the same", variant);
  smoe_params_end(&params);
  smoe_arena_release(&arena);
  smoe_free(choice);
  smoe_config_destroy(config);
}

/* A configuration that asks for what cannot be. */
static void check_refused(const char *const *overrides, const char *expected) {
  const smoe_keyset **sets = smoe_alloc(smoe_model_keysets(NULL) * sizeof *sets);
  smoe_config *config = smoe_config_create(sets, smoe_model_keysets(sets));
  smoe_free(sets);
  for (size_t i = 0; overrides[i]; i++) fixture_try(smoe_config_override(config, overrides[i]), overrides[i]);
  CHECK(smoe_router_check(config) == SMOE_ERR_CONFIG && strstr(smoe_last_error(), expected), "%s",
        smoe_last_error());
  smoe_config_destroy(config);
}

#define LIST(...) ((const char *const[]){"router.method=hash", __VA_ARGS__, NULL})

int main(void) {
  test_segments("random", true);
  test_segments("bigram", false);
  test_segments("previous", false);
  test_segments("position", false);
  check_refused(LIST("router.hash.segments=3", "moe.experts=8"), "not a multiple of router.hash.segments");
  check_refused(LIST("router.hash.segments=2", "router.hash.variant=balanced"), "tables that differ");
  return test_verdict("multi_hash");
}
