/* The contract of routers, for every method and each choice among its keys. */
#include "stablemoe/family.h"
#include "stablemoe/router.h"

#include "../model_fixture.h"
#include "../values.h"
#include "guarded.h"
#include "stablemoe/kernel.h"

enum { LANES = 2, SEQUENCES = 4, CONTEXT = 5, N = SEQUENCES * CONTEXT, C = 12, EXPERTS = 3, LAYERS = 2 };

/* ---- one call of the second MoE layer's router, for the second lane ---- */

typedef struct problem {
  const char *name; /* method and key */
  smoe_config *config;
  smoe_params params;
  smoe_arena arena;
  smoe_router router[LAYERS];
  smoe_pass context;
  smoe_route_call call;
  smoe_route_loads loads;
  int64_t load[EXPERTS];
  int32_t token[N];
  smoe_real *x, *dx, *dgate;
  smoe_real *state, *dstate; /* [N, state_reals] of the layer before, of the gradient from the layer after */
  smoe_route_sums *sums;
  size_t slots; /* of all tokens */
} problem;

/** Outputs hold numbers that no router may leave there; tape and scratch hold NaN. */
static void problem_call(problem *p, size_t n_sequences) {
  const smoe_router *router = &p->router[1];
  const size_t n = n_sequences * CONTEXT;
  guards_free();
  p->slots = n * (size_t)router->n_slots;
  p->call = (smoe_route_call){
      .context = &p->context,
      .layer = 1,
      .lane = 1,
      .n_tokens = n,
      .n_sequences = n_sequences,
      .n_context = CONTEXT,
      .first_token = N,
      .token = p->token,
      .x = p->x,
      .expert = guarded(p->slots * sizeof(int32_t), 0x7f),
      .gate = guarded(p->slots * sizeof(smoe_real), 0x7f),
      .tape = guarded(router->ops->tape_reals(router, n) * sizeof(smoe_real), 0xff),
      .integers =
          guarded((router->ops->tape_ints ? router->ops->tape_ints(router, n) : 0) * sizeof(int32_t), 0xff),
      .scratch = guarded(router->ops->scratch_reals(router, n) * sizeof(smoe_real), 0xff),
      .learned = guarded(n * sizeof(int32_t), 0xff),
      .distilled = guarded(n * sizeof(int32_t), 0xff),
  };
  const size_t state = router->ops->state_reals ? n * router->ops->state_reals(router) : 0;
  if (state > 0) {
    p->call.state_in = p->state;
    p->call.state_out = guarded(state * sizeof(smoe_real), 0xff);
    p->call.dstate_out = p->dstate;
    p->call.dstate_in = guarded(state * sizeof(smoe_real), 0xff);
  }
  p->dx = guarded(n * C * sizeof *p->dx, 0);
  p->dgate = guarded(p->slots * sizeof *p->dgate, 0);
  p->sums = guarded(smoe_route_sums_count(&router->terms) * sizeof(double), 0);
}

static void problem_begin(problem *p, const char *method, int stage, bool training) {
  const smoe_group group = {.comm = MPI_COMM_NULL, .n_ranks = 1};
  const smoe_lanes lanes = {LANES, 0, LANES};
  *p = (problem){.name = method,
                 .config =
                     fixture_config(method, (const char *const[]){"moe.capacity_factor=0", "model.width=12",
                                                                  "train.batch_sequences=16", NULL})};
  p->context = (smoe_pass){.seed = 3, .update = 5, .stage = stage, .training = training, .n_targets = N};
  smoe_params_begin(&p->params, &group, &lanes);
  smoe_params_declare(&p->params, SMOE_REPLICATED, (int64_t[]){C, 0},
                      (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false, "somebody/else");
  for (int m = 0; m < LAYERS; m++)
    fixture_router(&p->router[m], p->config, &p->params, m, FIXTURE_VOCABULARY);
  smoe_arena_measure(&p->arena, "test");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_try(smoe_arena_reserve(&p->arena), "memory");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_randomise(&p->params, 9);
  for (int m = 0; m < LAYERS; m++) {
    fixture_prepare(&p->router[m], &p->params);
    if (stage == 2) p->router[m].ops->freeze(&p->router[m], &p->params);
  }
  fixture_tokens(p->token, NULL, 4, 0, N, 5);
  p->x = values_uniform(N * C, 1);
  const smoe_router *router = &p->router[1];
  const size_t state = router->ops->state_reals ? router->ops->state_reals(router) : 0;
  p->state = values_uniform(N * state, 6);
  p->dstate = values_uniform(N * state, 7);
  for (size_t i = 0; i < N * state; i++) p->dstate[i] = p->token[i / state] < 0 ? 0 : p->dstate[i];
  problem_call(p, SEQUENCES);
}

static void problem_end(problem *p) {
  guards_free();
  smoe_params_end(&p->params);
  smoe_arena_release(&p->arena);
  smoe_config_destroy(p->config);
  smoe_free(p->x);
  smoe_free(p->state);
  smoe_free(p->dstate);
}

/** What one function leaves in scratch is not there for the next. */
static void spoil_scratch(problem *p) {
  const smoe_router *router = &p->router[1];
  memset(p->call.scratch, 0xff, router->ops->scratch_reals(router, p->call.n_tokens) * sizeof(smoe_real));
}

static void route(problem *p) {
  const smoe_router *router = &p->router[1];
  const size_t bytes = p->slots * sizeof(int32_t);
  router->ops->choose(router, &p->call);
  guards_check(p->name, "choose");
  int32_t *expert = memcpy(smoe_alloc(bytes), p->call.expert, bytes);
  spoil_scratch(p);
  router->ops->gate(router, &p->call);
  guards_check(p->name, "gate");
  CHECK(memcmp(expert, p->call.expert, bytes) == 0, "%s: gate changes the choice", p->name);
  smoe_free(expert);
  spoil_scratch(p);
}

static void count_loads(problem *p) {
  memset(p->load, 0, sizeof p->load);
  p->loads = (smoe_route_loads){p->load, 0};
  for (size_t i = 0; i < p->slots; i++)
    if (p->call.expert[i] >= 0) p->load[p->call.expert[i]]++, p->loads.n_assigned++;
}

static void losses_and_backward(problem *p) {
  const smoe_router *router = &p->router[1];
  count_loads(p);
  smoe_router_losses(router, &p->call, &p->loads, p->sums);
  guards_check(p->name, "losses");
  spoil_scratch(p);
  if (!p->context.training) return;
  smoe_real *u = values_uniform(p->slots, 8);
  for (size_t i = 0; i < p->slots; i++) p->dgate[i] = p->call.expert[i] >= 0 ? u[i] : 0;
  smoe_free(u);
  router->ops->backward(router, &p->call, &p->loads, p->dx, p->dgate);
  guards_check(p->name, "backward");
}

/** Experts and gates are in range, padding goes nowhere, everything is written. */
static void check_choice(const problem *p, const char *what) {
  const size_t k = (size_t)p->router[1].n_slots;
  for (size_t i = 0; i < p->slots; i++) {
    const int32_t e = p->call.expert[i];
    const smoe_real gate = p->call.gate[i];
    CHECK(e >= -1 && e < EXPERTS, "%s, %s: slot %zu has expert %d", p->name, what, i, (int)e);
    CHECK(gate >= 0 && gate <= 1, "%s, %s: slot %zu has gate %g", p->name, what, i, (double)gate);
    CHECK(p->token[i / k] >= 0 || e == -1, "%s, %s: padding goes to expert %d", p->name, what, (int)e);
    for (size_t j = i / k * k; j < i; j++)
      CHECK(e == -1 || p->call.expert[j] != e, "%s, %s: token %zu visits expert %d twice", p->name, what,
            i / k, (int)e);
  }
  for (size_t t = 0; t < p->call.n_tokens; t++)
    for (int which = 0; which < 2; which++) {
      const int32_t *choice = which ? p->call.distilled : p->call.learned;
      const int least = p->context.stage == 1 && p->router[1].ops->two_stages && p->token[t] >= 0 ? 0 : -1;
      if (choice)
        CHECK(choice[t] >= least && choice[t] < (p->token[t] < 0 ? 0 : EXPERTS),
              "%s, %s: token %zu: %s choice %d", p->name, what, t, which ? "distilled" : "learned",
              (int)choice[t]);
    }
}

/* ---- what every method keeps to ---- */

static void test_choice(problem *p) {
  const size_t expert_bytes = p->slots * sizeof(int32_t), gate_bytes = p->slots * sizeof(smoe_real);
  route(p);
  check_choice(p, "route");
  int32_t *expert = memcpy(smoe_alloc(expert_bytes), p->call.expert, expert_bytes);
  smoe_real *gate = memcpy(smoe_alloc(gate_bytes), p->call.gate, gate_bytes);
  problem_call(p, SEQUENCES);
  p->call.learned = p->call.distilled = NULL;
  p->call.lane = 0;
  route(p);
  CHECK(memcmp(expert, p->call.expert, expert_bytes) == 0 && memcmp(gate, p->call.gate, gate_bytes) == 0,
        "%s: another choice for another slab, or where nobody asks for learned and distilled choice",
        p->name);
  smoe_free(expert);
  smoe_free(gate);
}

static void test_sums(problem *p) {
  problem_call(p, SEQUENCES);
  double n_gates = 0, gates = 0, compared = 0, agree = 0;
  route(p);
  for (size_t i = 0; i < p->slots; i++)
    if (p->call.expert[i] >= 0) n_gates += 1, gates += (double)p->call.gate[i];
  for (size_t t = 0; t < N; t++) {
    if (p->call.learned[t] < 0 || p->call.distilled[t] < 0) continue;
    compared += 1;
    agree += p->call.learned[t] == p->call.distilled[t];
  }
  CHECK(n_gates > 0, "%s: nothing is routed", p->name);
  const smoe_terms *terms = &p->router[1].terms;
  double *sum = (double *)p->sums; /* what is there is added to */
  for (size_t i = 0; i < smoe_route_sums_count(terms); i++) sum[i] = 100 * (double)(i + 1);
  losses_and_backward(p);
  for (int i = 0; i < terms->n; i++) CHECK(isfinite(p->sums->term[i]), "%s: %s", p->name, terms->name[i]);
  CHECK_NEAR(p->sums->gate, 100 + gates, 1e-6, 0);
  CHECK(p->sums->n_gates == 200 + n_gates, "%s: %g used slots, not %g", p->name, p->sums->n_gates - 200,
        n_gates);
  CHECK(p->sums->n_agree == 300 + agree && p->sums->n_compared == 400 + compared,
        "%s: %g of %g agree, not %g of %g", p->name, p->sums->n_agree - 300, p->sums->n_compared - 400, agree,
        compared);
  CHECK(p->sums->n_sent == 500 + n_gates && p->sums->n_local == 600 + n_gates, "%s: %g slots, %g local",
        p->name, p->sums->n_sent - 500, p->sums->n_local - 600);
  if (p->context.training && p->context.stage == 1) return;
  const double first = 100 * (sizeof(smoe_route_sums) / sizeof(double) + 1);
  CHECK(p->sums->term[smoe_terms_find(terms, "distill")] == first + 100, "%s: only stage 1 distils", p->name);
  for (int i = 0; i < terms->n && !p->context.training; i++)
    CHECK(p->sums->term[i] == first + 100 * (double)i, "%s: a loss in evaluation, %s", p->name,
          terms->name[i]);
}

/** Gradients go to the call's slab and to this layer's parameters that are not frozen; none comes from padding. */
static void test_gradient(problem *p) {
  const size_t slab = p->params.slab[SMOE_SLAB_REPLICATED].count, bytes = slab * sizeof(smoe_real);
  smoe_real *first = smoe_alloc(bytes), *first_dx = smoe_alloc(N * C * sizeof *first_dx);
  for (int pass = 0; pass < 2; pass++) {
    memset(p->params.slab[SMOE_SLAB_REPLICATED].grad, 0, LANES * bytes);
    problem_call(p, SEQUENCES);
    route(p);
    losses_and_backward(p);
    if (pass == 0) {
      memcpy(first, p->params.slab[SMOE_SLAB_REPLICATED].grad + slab, bytes);
      memcpy(first_dx, p->dx, N * C * sizeof *first_dx);
      for (size_t i = 0; i < N * C; i++) p->x[i] = p->token[i / C] < 0 ? 50 * p->x[i] : p->x[i];
    }
  }
  CHECK(memcmp(first, p->params.slab[SMOE_SLAB_REPLICATED].grad + slab, bytes) == 0 &&
            memcmp(first_dx, p->dx, N * C * sizeof *first_dx) == 0,
        "%s: the gradient depends on padding", p->name);
  for (size_t i = 0; i < N * C; i++)
    CHECK(isfinite(p->dx[i]) && (p->token[i / C] >= 0 || p->dx[i] == 0), "%s: row %zu has dx %g", p->name,
          i / C, (double)p->dx[i]);
  for (size_t i = 0; i < slab; i++)
    CHECK(p->params.slab[SMOE_SLAB_REPLICATED].grad[i] == 0, "%s: written to another lane", p->name);
  for (int i = 0; i < p->params.n_params; i++) {
    const smoe_param *param = &p->params.param[i];
    const smoe_real *gradient = smoe_params_lane_grad(&p->params, i, 1);
    /* "moe/": of all MoE layers together. */
    const bool own = strncmp(param->name, "moe1/", 5) == 0 || strncmp(param->name, "moe/", 4) == 0;
    const bool none = param->frozen || !own;
    CHECK(gradient || param->frozen, "%s: %s has no gradient", p->name, param->name);
    for (size_t k = 0; k < param->count && gradient; k++)
      CHECK(isfinite(gradient[k]) && (!none || gradient[k] == 0), "%s: %s has the gradient %g", p->name,
            param->name, (double)gradient[k]);
  }
  smoe_free(first);
  smoe_free(first_dx);
}

static void test_nothing(problem *p) {
  memset(p->params.slab[SMOE_SLAB_REPLICATED].grad, 0,
         LANES * p->params.slab[SMOE_SLAB_REPLICATED].count * sizeof(smoe_real));
  problem_call(p, 0);
  route(p);
  losses_and_backward(p);
  const double *sum = (const double *)p->sums;
  for (size_t i = 0; i < smoe_route_sums_count(&p->router[1].terms); i++)
    CHECK(sum[i] == 0, "%s: sums of no token", p->name);
  for (size_t i = 0; i < LANES * p->params.slab[SMOE_SLAB_REPLICATED].count; i++)
    CHECK(p->params.slab[SMOE_SLAB_REPLICATED].grad[i] == 0, "%s: a gradient of no token", p->name);
}

/** All padding is a lane too. */
static void test_padding(problem *p) {
  int32_t kept[N];
  memcpy(kept, p->token, sizeof kept);
  memset(p->token, 0xff, sizeof p->token);
  problem_call(p, SEQUENCES);
  route(p);
  check_choice(p, "padding");
  losses_and_backward(p);
  const double *sum = (const double *)p->sums;
  for (size_t i = 0; i < smoe_route_sums_count(&p->router[1].terms); i++)
    CHECK(sum[i] == 0, "%s: sums of padding", p->name);
  memcpy(p->token, kept, sizeof kept);
}

/* ---- ties, and scores that are not finite ---- */

/** Where a choice is not each token's own best one. A new method that is not here must be greedy. */
static const struct {
  const char *method;
  bool training, evaluation;
  const char *why;
} not_greedy[] = {
    {"base", true, false, "an auction balances"},
    {"base_stage2", true, false, "an auction balances"},
    {"expert_choice", true, false, "experts choose"},
    {"expert_choice router.expert_choice.evaluation=experts", true, true, "experts choose"},
    {"hash", true, true, "it has no scores"},
    {"local", true, true, "it has no parameters: equal ones are no equal scores"},
    {"mask", true, true, "a token id sees some experts alone"},
    {"pmoe", true, true, "experts choose"},
    {"replay", true, true, "the log has chosen"},
    {"sparsemixer", true, false, "experts are drawn"},
    {"thor", true, true, "experts are drawn"},
    {"thor router.thor.evaluation=mean", true, false, "experts are drawn"},
    {"thor router.thor.evaluation=one", true, false, "experts are drawn"},
    {"topk router.topk.forced_balance=true", true, true, "experts take turns"},
    {"recurrent router.recurrent.forced_balance=true", true, true, "experts take turns"},
};

static bool is_greedy(const problem *p) {
  for (size_t i = 0; i < sizeof not_greedy / sizeof *not_greedy; i++) {
    const size_t length = strlen(not_greedy[i].method);
    const bool it = strncmp(p->name, not_greedy[i].method, length) == 0 && strchr(" ", p->name[length]);
    if (it && (p->context.training ? not_greedy[i].training : not_greedy[i].evaluation)) return false;
  }
  return true;
}

static void test_ties(problem *p) {
  for (int i = 0; i < p->params.n_params; i++)
    memset(smoe_params_shared(&p->params, i), 0, p->params.param[i].count * sizeof(smoe_real));
  problem_call(p, SEQUENCES);
  route(p);
  check_choice(p, "ties");
  const size_t k = (size_t)p->router[1].n_slots;
  for (size_t i = 0; i < p->slots && is_greedy(p); i++) {
    const int32_t expected = p->token[i / k] < 0 ? -1 : (int32_t)(i % k);
    CHECK(p->call.expert[i] == expected || (i % k > 0 && p->call.expert[i] == -1),
          "%s: of equal scores slot %zu took expert %d", p->name, i % k, (int)p->call.expert[i]);
  }
}

/** Expert 0's rows in every parameter that has a row per expert. */
static void spoil_expert(problem *p, smoe_real value) {
  for (int i = 0; i < p->params.n_params; i++) {
    const smoe_param *param = &p->params.param[i];
    if (param->n_dims != 2 || param->shape[0] != EXPERTS) continue;
    for (int64_t c = 0; c < param->shape[1]; c++) smoe_params_shared(&p->params, i)[c] = value;
  }
}

static void test_not_finite(problem *p) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
    fixture_randomise(&p->params, 9);
    for (int m = 0; m < LAYERS; m++) fixture_prepare(&p->router[m], &p->params);
    spoil_expert(p, (smoe_real)bad[b]);
    problem_call(p, SEQUENCES);
    route(p);
    check_choice(p, "an expert without finite scores");
    for (size_t i = 0; i < p->slots && is_greedy(p); i++)
      CHECK(p->call.expert[i] != 0 && (p->call.expert[i] < 0 || p->call.gate[i] > 0),
            "%s: expert %d is chosen with gate %g, where the scores of expert 0 are %g", p->name,
            (int)p->call.expert[i], (double)p->call.gate[i], (double)bad[b]);
  }
  smoe_real *kept = values_copy(p->x, N * C);
  for (size_t i = 0; i < N * C; i++) {
    const size_t row = i / C;
    if (row < 3) p->x[i] = (smoe_real)bad[row];
    if (row == 3) p->x[i] = (smoe_real)(i % 2 ? 3e38 : -3e38); /* whose products overflow */
  }
  fixture_randomise(&p->params, 9);
  for (int m = 0; m < LAYERS; m++) fixture_prepare(&p->router[m], &p->params);
  problem_call(p, SEQUENCES);
  route(p);
  check_choice(p, "tokens that are not finite");
  memcpy(p->x, kept, N * C * sizeof *kept);
  smoe_free(kept);
}

static void test_method(const char *method, int stage, bool training) {
  problem p;
  problem_begin(&p, method, stage, training);
  test_choice(&p);
  test_sums(&p);
  if (training) test_gradient(&p);
  test_nothing(&p);
  test_padding(&p);
  test_not_finite(&p);
  test_ties(&p);
  problem_end(&p);
}

/* ---- stage 2 ---- */

/** Freezing concerns one layer's router, and then nothing that still learns moves a token to another expert. */
static void test_freeze(const char *method) {
  problem p;
  problem_begin(&p, method, 1, true);
  bool *before = smoe_alloc((size_t)p.params.n_params * sizeof *before);
  for (int i = 0; i < p.params.n_params; i++) before[i] = p.params.param[i].frozen;
  p.router[1].ops->freeze(&p.router[1], &p.params);
  int n_frozen = 0;
  for (int i = 0; i < p.params.n_params; i++) {
    const smoe_param *param = &p.params.param[i];
    CHECK(param->frozen == before[i] || strncmp(param->name, "moe1/router/", 12) == 0, "%s: froze %s", method,
          param->name);
    n_frozen += param->frozen && !before[i];
  }
  CHECK(n_frozen > 0, "%s: froze nothing", method);
  p.context.stage = 2;
  route(&p);
  int32_t expert[N];
  memcpy(expert, p.call.expert, sizeof expert);
  for (int i = 0; i < p.params.n_params; i++)
    for (size_t k = 0; k < p.params.param[i].count && !p.params.param[i].frozen; k++)
      smoe_params_shared(&p.params, i)[k] *= -3;
  for (size_t i = 0; i < N * C; i++) p.x[i] = -p.x[i];
  for (int training = 1; training >= 0; training--) {
    p.context.training = training;
    problem_call(&p, SEQUENCES);
    route(&p);
    CHECK(memcmp(expert, p.call.expert, sizeof expert) == 0, "%s: routing is not frozen in stage 2 (%s)",
          method, training ? "training" : "evaluation");
  }
  smoe_free(before);
  problem_end(&p);
}

/* ---- the array, and what methods share ---- */

static void test_array(void) {
  for (size_t i = 0; smoe_router_methods[i]; i++) {
    const smoe_router_ops *ops = smoe_router_methods[i];
    CHECK(smoe_router_find(ops->name) == ops, "two methods are called %s", ops->name);
    CHECK(ops->title && ops->title[0] && ops->slots && ops->declare && ops->tape_reals &&
              ops->scratch_reals && ops->choose && ops->gate && ops->backward,
          "%s lacks something", ops->name);
    CHECK(ops->two_stages == (ops->freeze != NULL), "%s", ops->name);
    char *section = smoe_sprintf("router.%s.", ops->name);
    for (size_t k = 0; ops->keyset && k < ops->keyset->n_keys; k++)
      CHECK(strncmp(ops->keyset->keys[k].name, section, strlen(section)) == 0, "%s has a key %s", ops->name,
            ops->keyset->keys[k].name);
    smoe_free(section);
  }
  CHECK(smoe_router_find("") == NULL && smoe_router_find("stabl") == NULL &&
        smoe_router_find("stable ") == NULL);
  smoe_config *config = fixture_config("stable", NULL);
  fixture_try(smoe_config_override(config, "router.method=stabel"), "method");
  CHECK(smoe_router_check(config) == SMOE_ERR_CONFIG && strstr(smoe_last_error(), "'stabel'"), "%s",
        smoe_last_error());
  for (size_t i = 0; smoe_router_methods[i]; i++)
    CHECK(strstr(smoe_last_error(), smoe_router_methods[i]->name), "%s is not named: %s",
          smoe_router_methods[i]->name, smoe_last_error());
  smoe_config_destroy(config);
}

static void test_argmax(void) {
  const smoe_real inf = (smoe_real)INFINITY, nan = (smoe_real)NAN;
  const smoe_real score[][3] = {{1, 2, 3},    {3, 2, 1},     {2, 2, 1},       {1, 2, 2},       {-1, -1, -1},
                                {nan, -5, 1}, {inf, -5, -9}, {-inf, -9, nan}, {nan, nan, inf}, {0, -0.f, 0}};
  static const int32_t expected[] = {2, 0, 0, 1, 0, 2, 1, 1, 0, 0};
  enum { ROWS = sizeof expected / sizeof *expected };
  int32_t expert[ROWS + 1], token[ROWS];
  expert[ROWS] = 77;
  smoe_route_argmax(expert, score[0], NULL, ROWS, 3);
  for (int t = 0; t < ROWS; t++) CHECK(expert[t] == expected[t], "row %d: expert %d", t, (int)expert[t]);
  for (int t = 0; t < ROWS; t++) token[t] = t % 2 ? -1 : t;
  smoe_route_argmax(expert, score[0], token, ROWS, 3);
  for (int t = 0; t < ROWS; t++)
    CHECK(expert[t] == (t % 2 ? -1 : expected[t]), "row %d: expert %d", t, (int)expert[t]);
  smoe_route_argmax(expert, score[0], NULL, 0, 3);
  CHECK(expert[ROWS] == 77);
}

int main(void) {
  smoe_threads_set(1);
  test_array();
  test_argmax();
  char **methods = fixture_methods();
  for (size_t i = 0; methods[i]; i++) {
    const bool two_stages = fixture_method(methods[i])->two_stages;
    for (int stage = 1; stage <= (two_stages ? 2 : 1); stage++) {
      test_method(methods[i], stage, true);
      test_method(methods[i], stage, false);
    }
    if (two_stages) test_freeze(methods[i]);
  }
  fixture_methods_free(methods);
  return test_verdict("router");
}
