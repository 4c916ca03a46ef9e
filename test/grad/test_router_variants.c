/* Variants of the distilled router: gradients of the distillation loss by every parameter, features by hand. */
#include <string.h>

#include "../../src/moe/distill.h"
#include "../model_fixture.h"
#include "../values.h"
#include "piecewise.h"
#include "stablemoe/kernel.h"

enum { LANES = 2, SEQUENCES = 2, CONTEXT = 7, LANE = SEQUENCES * CONTEXT, N = LANES * LANE, C = 8, E = 3 };

static smoe_group group;

typedef struct problem {
  smoe_config *config;
  smoe_params params;
  smoe_arena arena;
  smoe_router router;
  smoe_pass context;
  int32_t token[N], expert[N], learned[N], distilled[N];
  int64_t load[E];
  smoe_real gate[N], dgate[N];
  smoe_real *x, *dx, *tape, *scratch;
  int32_t *integers;
} problem;

static size_t ints_of(const smoe_router *router) {
  return router->ops->tape_ints ? router->ops->tape_ints(router, LANE) : 0;
}

static smoe_route_call call_of(problem *p, size_t lane) {
  const size_t first = lane * LANE;
  return (smoe_route_call){.context = &p->context,
                           .lane = (int)lane,
                           .n_tokens = LANE,
                           .n_sequences = SEQUENCES,
                           .n_context = CONTEXT,
                           .first_token = (int64_t)first,
                           .token = p->token + first,
                           .x = p->x + first * C,
                           .expert = p->expert + first,
                           .gate = p->gate + first,
                           .tape = p->tape + lane * p->router.ops->tape_reals(&p->router, LANE),
                           .integers = p->integers + lane * ints_of(&p->router),
                           .scratch = p->scratch,
                           .learned = p->learned + first,
                           .distilled = p->distilled + first};
}

static void problem_begin(problem *p, const char *method, const char *const *overrides, int stage) {
  const smoe_lanes lanes = {LANES, 0, LANES};
  *p = (problem){.config = fixture_config(method, overrides)};
  p->context = (smoe_pass){.seed = 3, .update = 5, .stage = stage, .training = true, .n_targets = 5};
  smoe_params_begin(&p->params, &group, &lanes);
  fixture_router(&p->router, p->config, &p->params, 0, FIXTURE_VOCABULARY);
  smoe_arena_measure(&p->arena, "test");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_try(smoe_arena_reserve(&p->arena), "memory");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_randomise(&p->params, 9);
  if (stage == 2) p->router.ops->freeze(&p->router, &p->params);
  fixture_tokens(p->token, NULL, 5, 0, N, 6);
  p->x = values_uniform(N * C, 1);
  p->dx = values_zero(N * C);
  p->tape = values_zero(LANES * p->router.ops->tape_reals(&p->router, LANE));
  p->integers = smoe_alloc(LANES * ints_of(&p->router) * sizeof *p->integers);
  p->scratch = values_zero(p->router.ops->scratch_reals(&p->router, LANE));
}

static void problem_end(problem *p) {
  smoe_params_end(&p->params);
  smoe_arena_release(&p->arena);
  smoe_config_destroy(p->config);
  smoe_free(p->x), smoe_free(p->dx), smoe_free(p->tape), smoe_free(p->scratch), smoe_free(p->integers);
}

/** The relus of the Transformer cannot be seen from here: a piece is the choice of experts, and the numbers
 *  of this test are such that no relu flips within a step.
 */
static double value(void *context, uint64_t *piece) {
  problem *p = context;
  double sum = 0;
  memset(p->load, 0, sizeof p->load);
  for (size_t lane = 0; lane < LANES; lane++) {
    const smoe_route_call call = call_of(p, lane);
    smoe_router_route(&p->router, &call);
  }
  for (size_t t = 0; t < N; t++)
    if (p->expert[t] >= 0) p->load[p->expert[t]]++;
  smoe_route_loads loads = {p->load, 0};
  for (int e = 0; e < E; e++) loads.n_assigned += p->load[e];
  piece_add_choices(piece, p->expert, N);
  piece_add_choices(piece, p->learned, N);
  for (size_t lane = 0; lane < LANES; lane++) {
    const smoe_route_call call = call_of(p, lane);
    fixture_sums sums = {0};
    smoe_router_losses(&p->router, &call, &loads, &sums.sums);
    sum += fixture_terms(&sums.sums, &p->router.terms) / (double)p->context.n_targets;
  }
  for (size_t t = 0; t < N; t++) sum += (double)p->dgate[t] * (double)p->gate[t];
  return sum;
}

static void test_gradient(const char *method, const char *const *overrides, int stage) {
  problem p;
  problem_begin(&p, method, overrides, stage);
  char *name = smoe_sprintf("%s, %s, %s, stage %d", method, overrides[0], overrides[1], stage);
  smoe_real *weight = values_uniform(N, 2);
  piecewise gradient = {.name = name, .value = value, .context = &p};
  value(&p, &(uint64_t){0});
  for (size_t t = 0; t < N; t++) p.dgate[t] = p.expert[t] >= 0 ? weight[t] : 0;
  value(&p, &(uint64_t){0});
  smoe_route_loads loads = {p.load, 0};
  for (int e = 0; e < E; e++) loads.n_assigned += p.load[e];
  for (size_t lane = 0; lane < LANES; lane++) {
    const smoe_route_call call = call_of(&p, lane);
    p.router.ops->backward(&p.router, &call, &loads, p.dx + lane * LANE * C, p.dgate + lane * LANE);
  }
  piecewise_check(&gradient, "x", p.x, p.dx, N * C);
  piecewise_check_params(&gradient, &p.params);
  piecewise_end(&gradient);
  smoe_free(weight);
  smoe_free(name);
  problem_end(&p);
}

/** Distilled scores of a row, by hand: Ehat sum_j weight_j e(token_j). */
static void expect_row(const problem *p, size_t row, const int32_t *token, const double *weight, int n,
                       const smoe_real *score) {
  const int d =
      (int)p->params.param[smoe_params_find(&p->params, "moe0/router/distilled/embedding")].shape[1];
  const smoe_real *table =
      smoe_params_shared(&p->params, smoe_params_find(&p->params, "moe0/router/distilled/embedding"));
  const smoe_real *centroid =
      smoe_params_shared(&p->params, smoe_params_find(&p->params, "moe0/router/distilled/centroid"));
  for (int e = 0; e < E; e++) {
    double expected = 0;
    for (int j = 0; j < n; j++)
      for (int i = 0; i < d && token[j] >= 0; i++)
        expected += (double)centroid[e * d + i] * weight[j] * (double)table[token[j] * d + i];
    CHECK(fabs((double)score[e] - expected) <= 1e-12, "row %zu, expert %d: %g instead of %g", row, e,
          (double)score[e], expected);
  }
}

static void test_features(const char *features) {
  problem p;
  char *choice = smoe_sprintf("router.stable.features=%s", features);
  const char *const overrides[] = {choice, "model.context=7", NULL};
  problem_begin(&p, "stable", overrides, 1);
  smoe_free(choice);
  const int tap = smoe_params_find(&p.params, "moe0/router/distilled/tap");
  for (size_t t = 0; t < N; t++) p.token[t] = (int32_t)(t * 5 % FIXTURE_VOCABULARY);
  value(&p, &(uint64_t){0}); /* losses have made probabilities of the scores: route again */
  const smoe_route_call call = call_of(&p, 1);
  smoe_router_route(&p.router, &call);
  const smoe_real *score = call.tape; /* of the method stable: those of the distilled router come first */
  for (size_t t = 0; t < LANE; t++) {
    const size_t place = t % CONTEXT;
    int32_t token[5];
    double weight[5];
    int n = 0;
    if (tap >= 0) {
      for (; n < 5; n++) {
        token[n] = place < (size_t)n ? -1 : call.token[t - (size_t)n];
        weight[n] = (double)smoe_params_shared(&p.params, tap)[n];
      }
    } else {
      token[n] = call.token[t], weight[n++] = 0.5;
      token[n] = call.token[place == 0 ? t : t - 1], weight[n++] = 0.5;
    }
    expect_row(&p, t, token, weight, n, score + t * E);
  }
  problem_end(&p);
}

/** A later token has no say in an earlier one's scores, and another sequence none at all. */
static void test_causal(const char *features) {
  problem p;
  char *choice = smoe_sprintf("router.stable.features=%s", features);
  const char *const overrides[] = {choice, "model.context=7", "router.stable.layers=2", NULL};
  problem_begin(&p, "stable", overrides, 1);
  smoe_free(choice);
  smoe_real before[LANE * E];
  const smoe_route_call call = call_of(&p, 0);
  const smoe_real *score = call.tape; /* of the method stable: those of the distilled router come first */
  for (size_t t = 0; t < N; t++) p.token[t] = (int32_t)(t * 5 % FIXTURE_VOCABULARY);
  smoe_router_route(&p.router, &call);
  memcpy(before, score, sizeof before);
  p.token[4] = p.token[4] == 0 ? 1 : 0;
  smoe_router_route(&p.router, &call);
  CHECK(memcmp(before, score, 4 * E * sizeof *before) == 0, "%s: a token has changed what was before it",
        features);
  CHECK(memcmp(before + 4 * E, score + 4 * E, E * sizeof *before) != 0, "%s: the token has changed nothing",
        features);
  CHECK(memcmp(before + CONTEXT * E, score + CONTEXT * E, CONTEXT * E * sizeof *before) == 0,
        "%s: a token has changed another sequence", features);
  problem_end(&p);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  for (int stage = 1; stage <= 2; stage++) {
    test_gradient("stable", LIST("router.stable.features=word", "model.context=7"), stage);
    test_gradient("stable", LIST("router.stable.features=bigram", "model.context=7"), stage);
    test_gradient("stable", LIST("router.stable.features=cnn", "model.context=7"), stage);
    test_gradient("base_stage2",
                  LIST("router.base_stage2.features=cnn", "router.base_stage2.distill_weight=0.3",
                       "router.base_stage2.width=6", "model.context=7"),
                  stage);
    test_gradient("stable",
                  LIST("router.stable.features=transformer", "router.stable.layers=1", "model.context=7"),
                  stage);
    test_gradient("stable",
                  LIST("router.stable.features=transformer", "router.stable.layers=3",
                       "router.stable.heads=4", "model.context=7"),
                  stage);
    test_gradient("base_stage2",
                  LIST("router.base_stage2.features=transformer", "router.base_stage2.layers=2",
                       "router.base_stage2.width=6", "model.context=9"),
                  stage);
  }
  test_features("bigram");
  test_features("cnn");
  for (const char *const *features = smoe_distill_features; *features; features++) test_causal(*features);
  smoe_group_end(&group);
  return test_verdict("grad/router_variants");
}
