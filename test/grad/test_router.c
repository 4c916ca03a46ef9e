/* Every routing method by itself: L = <weight, gate> + <weight, state> + (its loss terms) / n_targets, for two
 * lanes. Where a method estimates the gradient of a sampled choice, it has to be the true one times its factor.
 */
#include "../model_fixture.h"
#include "../values.h"
#include "difference.h"
#include "piecewise.h"
#include "stablemoe/kernel.h"

enum {
  LANES = 2,
  SEQUENCES = 2,
  CONTEXT = 5,
  LANE = SEQUENCES * CONTEXT,
  N = LANES * LANE,
  C = 12,
  SEED = 9
};

static smoe_group group;

typedef struct problem {
  smoe_params params;
  smoe_arena arena;
  smoe_router router;
  smoe_pass context;
  bool observed; /* learned and distilled choice are asked for */
  bool drops;    /* some slots are marked as the exchange marks them beyond capacity */
  size_t k;
  int32_t token[N], learned[N], distilled[N];
  smoe_real *x, *dx;                            /* [N, C] */
  int32_t *expert;                              /* [N, K] */
  smoe_real *gate, *dgate, *weight;             /* [N, K] */
  size_t state;                                 /* reals per token that are handed on over depth */
  smoe_real *before, *after, *dbefore, *dafter; /* [N, state]; dafter is the state's weight in L */
  smoe_real *tape, *scratch;
  int32_t *integers;
  int64_t *load;
} problem;

static size_t ints_of(const smoe_router *router) {
  return router->ops->tape_ints ? router->ops->tape_ints(router, LANE) : 0;
}

static smoe_route_call call_of(problem *p, size_t lane) {
  const size_t first = lane * LANE, slots = first * p->k;
  return (smoe_route_call){
      .context = &p->context,
      .layer = p->router.layer,
      .lane = (int)lane,
      .global_lane = (int64_t)lane,
      .n_tokens = LANE,
      .n_sequences = SEQUENCES,
      .n_context = CONTEXT,
      .first_token = (int64_t)first,
      .token = p->token + first,
      .x = p->x + first * C,
      .expert = p->expert + slots,
      .gate = p->gate + slots,
      .tape = p->tape + lane * p->router.ops->tape_reals(&p->router, LANE),
      .integers = p->integers + lane * ints_of(&p->router),
      .scratch = p->scratch,
      .learned = p->observed ? p->learned + first : NULL,
      .distilled = p->observed ? p->distilled + first : NULL,
      .state_in = p->state ? p->before + first * p->state : NULL,
      .state_out = p->state ? p->after + first * p->state : NULL,
      .dstate_in = p->state ? p->dbefore + first * p->state : NULL,
      .dstate_out = p->state ? p->dafter + first * p->state : NULL,
  };
}

/** The loads of both lanes; then every third used slot is marked as dropped. */
static smoe_route_loads count_and_drop(problem *p) {
  smoe_route_loads loads = {p->load, 0};
  memset(p->load, 0, (size_t)p->router.n_experts * sizeof *p->load);
  for (size_t i = 0; i < N * p->k; i++) {
    if (p->expert[i] < 0) continue;
    p->load[p->expert[i]]++;
    if (p->drops && loads.n_assigned % 3 == 0) p->expert[i] = smoe_slot_dropped(p->expert[i]);
    loads.n_assigned++;
  }
  return loads;
}

static double router_value(void *context, uint64_t *piece) {
  problem *p = context;
  const smoe_router_ops *ops = p->router.ops;
  for (size_t lane = 0; lane < LANES; lane++) {
    const smoe_route_call call = call_of(p, lane);
    smoe_router_route(&p->router, &call);
  }
  piece_add_choices(piece, p->expert, N * p->k);
  if (p->observed) piece_add_choices(piece, p->learned, N);
  const smoe_route_loads loads = count_and_drop(p);
  double value = 0;
  for (size_t i = 0; i < N * p->k; i++) {
    p->dgate[i] = p->expert[i] >= 0 ? p->weight[i] : 0;
    value += (double)p->dgate[i] * (double)p->gate[i];
  }
  value += difference_fold(p->dafter, p->after, N * p->state);
  for (size_t lane = 0; lane < LANES && ops->losses; lane++) {
    const smoe_route_call call = call_of(p, lane);
    fixture_sums sums = {0};
    ops->losses(&p->router, &call, &loads, &sums.sums);
    value += fixture_terms(&sums.sums, &p->router.terms) / (double)p->context.n_targets;
  }
  return value;
}

static void problem_begin(problem *p, const smoe_config *config, int stage) {
  const smoe_lanes lanes = {LANES, 0, LANES};
  const size_t n_experts = (size_t)smoe_config_settings(config)->moe.experts;
  smoe_params_begin(&p->params, &group, &lanes);
  fixture_router(&p->router, config, &p->params, 0, FIXTURE_VOCABULARY);
  smoe_arena_measure(&p->arena, "test");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_try(smoe_arena_reserve(&p->arena), "memory");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_randomise(&p->params, SEED);
  fixture_prepare(&p->router, &p->params);
  if (stage == 2) p->router.ops->freeze(&p->router, &p->params);

  const size_t slots = N * (p->k = (size_t)p->router.n_slots);
  fixture_tokens(p->token, NULL, 5, 0, N, 6);
  p->x = values_uniform(N * C, 1);
  p->dx = values_uniform(N * C, 3);
  p->expert = smoe_alloc(slots * sizeof *p->expert);
  p->gate = values_zero(slots), p->dgate = values_zero(slots), p->weight = values_uniform(slots, 2);
  p->tape = values_zero(LANES * p->router.ops->tape_reals(&p->router, LANE));
  p->integers = smoe_alloc(LANES * ints_of(&p->router) * sizeof *p->integers);
  p->scratch = values_zero(p->router.ops->scratch_reals(&p->router, LANE));
  p->load = smoe_alloc(n_experts * sizeof *p->load);
  p->state = p->router.ops->state_reals ? p->router.ops->state_reals(&p->router) : 0;
  p->before = values_uniform(N * p->state, 4), p->after = values_zero(N * p->state);
  p->dafter = values_uniform(N * p->state, 6), p->dbefore = values_uniform(N * p->state, 7);
}

static void problem_end(problem *p) {
  smoe_params_end(&p->params);
  smoe_arena_release(&p->arena);
  smoe_free(p->x), smoe_free(p->dx), smoe_free(p->expert), smoe_free(p->gate), smoe_free(p->dgate);
  smoe_free(p->weight), smoe_free(p->tape), smoe_free(p->scratch), smoe_free(p->load), smoe_free(p->integers);
  smoe_free(p->before), smoe_free(p->after), smoe_free(p->dbefore), smoe_free(p->dafter);
}

/* Gradients of gates for which an estimate comes out as the true gradient. */
static void undo_estimate(const problem *p, const smoe_route_call *call, smoe_real *dgate) {
  if (!p->router.ops->estimate) return;
  smoe_real *factor = values_zero(LANE * p->k);
  p->router.ops->estimate(&p->router, call, factor);
  for (size_t i = 0; i < LANE * p->k; i++) dgate[i] /= factor[i];
  smoe_free(factor);
}

/* What has no gradient in some forms of a method. */
static const char *idle_of(const char *method) {
  if (strstr(method, "recurrence=none")) return "moe/router/cell/hidden/weight";
  return "moe0/router/omega"; /* whose gradient the MoE layer makes */
}

static void test_gradient(const char *method, int stage, bool observed, bool drops,
                          const char *const *overrides) {
  smoe_config *config = fixture_config(method, overrides);
  problem p = {.observed = observed, .drops = drops};
  p.context = (smoe_pass){.seed = SEED, .update = 5, .stage = stage, .training = true, .n_targets = 5};
  problem_begin(&p, config, stage);
  char *name = smoe_sprintf("%s, stage %d%s%s, %d experts", method, stage, observed ? ", observed" : "",
                            drops ? ", drops" : "", p.router.n_experts);
  piecewise gradient = {.name = name, .value = router_value, .context = &p, .idle = idle_of(method)};
  router_value(&p, &(uint64_t){0});
  smoe_route_loads loads = {p.load, 0};
  for (int e = 0; e < p.router.n_experts; e++) loads.n_assigned += p.load[e];
  for (size_t lane = 0; lane < LANES; lane++) {
    const smoe_route_call call = call_of(&p, lane);
    undo_estimate(&p, &call, p.dgate + lane * LANE * p.k);
    p.router.ops->backward(&p.router, &call, &loads, p.dx + lane * LANE * C, p.dgate + lane * LANE * p.k);
  }
  smoe_real *before = values_uniform(N * C, 3);
  for (size_t i = 0; i < N * C; i++) p.dx[i] -= before[i]; /* dx is added to */
  piecewise_check(&gradient, "x", p.x, p.dx, N * C);
  if (p.state && !strstr(method, "detach"))
    CHECK(piecewise_check(&gradient, "state", p.before, p.dbefore, N * p.state) > 0,
          "%s: no gradient of the state", name);
  piecewise_check_params(&gradient, &p.params);
  piecewise_end(&gradient);
  smoe_free(before);
  smoe_free(name);
  problem_end(&p);
  smoe_config_destroy(config);
}

int main(int argc, char **argv) {
  static const char *const three[] = {"model.width=12", NULL}, *const six[] = {
                                                                   "model.width=12", "moe.experts=6",
                                                                   "train.batch_sequences=16", NULL};
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  char **methods = fixture_methods();
  for (size_t i = 0; methods[i]; i++)
    for (int stage = 1; stage <= (fixture_method(methods[i])->two_stages ? 2 : 1); stage++) {
      test_gradient(methods[i], stage, false, false, three);
      test_gradient(methods[i], stage, true, true, three);
      test_gradient(methods[i], stage, false, true, six);
    }
  fixture_methods_free(methods);
  smoe_group_end(&group);
  return test_verdict("grad/router");
}
