/* SparseMixer: the mean of its estimate over all draws and coins, by the program's own choose, gate and backward,
 * against the gradient of the expected loss  L = sum_i p_i f(p_i a_i)  for polynomials f; and how often it draws.
 */
#include <math.h>

#include "../model_fixture.h"
#include "../values.h"
#include "harness.h"
#include "stablemoe/kernel.h"

enum { E = 4, C = 4, COINS = 2, DRAWS = 20000 };

static smoe_group group;

typedef struct problem {
  smoe_config *config;
  smoe_params params;
  smoe_arena arena;
  smoe_router router;
  smoe_pass context;
  int32_t token, expert[E];
  int64_t load[E];
  smoe_real x[C], gate[E], *tape, *scratch;
} problem;

static void problem_begin(problem *p, const char *version, bool best_whole, const char *more) {
  const smoe_lanes lanes = {1, 0, 1};
  char *method = smoe_sprintf("sparsemixer router.sparsemixer.version=%s", version);
  char *best = smoe_sprintf("router.sparsemixer.best_whole=%s", best_whole ? "true" : "false");
  const char *const overrides[] = {"moe.experts=4",
                                   "model.width=4",
                                   "router.sparsemixer.epsilon=1000000",
                                   "router.sparsemixer.balance_weight=0",
                                   "train.lanes=1",
                                   best,
                                   more,
                                   NULL};
  *p = (problem){.config = fixture_config(method, overrides), .token = 3};
  p->context = (smoe_pass){.seed = 7, .stage = 1, .training = true, .n_targets = 1};
  smoe_params_begin(&p->params, &group, &lanes);
  fixture_router(&p->router, p->config, &p->params, 0, FIXTURE_VOCABULARY);
  smoe_arena_measure(&p->arena, "test");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_try(smoe_arena_reserve(&p->arena), "memory");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_randomise(&p->params, 1);
  smoe_real *x = values_uniform(C, 5);
  memcpy(p->x, x, sizeof p->x);
  smoe_free(x);
  p->tape = values_zero(p->router.ops->tape_reals(&p->router, 1));
  p->scratch = values_zero(p->router.ops->scratch_reals(&p->router, 1));
  smoe_free(method), smoe_free(best);
}

static void problem_end(problem *p) {
  smoe_params_end(&p->params);
  smoe_arena_release(&p->arena);
  smoe_config_destroy(p->config);
  smoe_free(p->tape), smoe_free(p->scratch);
}

static smoe_route_call call_of(problem *p) {
  return (smoe_route_call){.context = &p->context,
                           .n_tokens = 1,
                           .n_sequences = 1,
                           .n_context = 1,
                           .token = &p->token,
                           .x = p->x,
                           .expert = p->expert,
                           .gate = p->gate,
                           .tape = p->tape,
                           .scratch = p->scratch};
}

/* The update's draw: the first expert, and its gate. Probabilities [E] of the first draw come behind the scores. */
static int32_t route(problem *p, int64_t update) {
  p->context.update = update;
  const smoe_route_call call = call_of(p);
  smoe_router_route(&p->router, &call);
  return p->expert[0];
}

static const smoe_real *probabilities(const problem *p) {
  return p->tape + E;
}

/* The gradient of the scores: that of their offset. */
static void backward(problem *p, smoe_real dgate, double *dz) {
  smoe_real dx[C] = {0}, dgates[E] = {dgate};
  const smoe_route_call call = call_of(p);
  const smoe_route_loads loads = {p->load, 0};
  smoe_real *gradient =
      smoe_params_lane_grad(&p->params, smoe_params_find(&p->params, "moe0/router/offset"), 0);
  memset(gradient, 0, E * sizeof *gradient);
  p->router.ops->backward(&p->router, &call, &loads, dx, dgates);
  for (int i = 0; i < E; i++) dz[i] = (double)gradient[i];
}

/* ---- polynomials with f(0) = 0, and what experts add ---- */

static const double coefficients[] = {0, 0.7, -0.9, 1.1, 0.8};
static const double added[E] = {1.3, -0.8, 0.6, 2.1};

static double f_of(double h, int degree, bool slope) {
  double sum = 0;
  for (int d = 1; d <= degree; d++) sum += coefficients[d] * (slope ? d * pow(h, d - 1) : pow(h, d));
  return sum;
}

/* The gradient of L by the scores; detached: of sum_i p_i f(constant). temperature: of the softmax. */
static void exact(const smoe_real *p, int degree, bool detached, double temperature, double *dz) {
  double dp[E], mean = 0;
  for (int i = 0; i < E; i++) {
    const double h = (double)p[i] * added[i];
    dp[i] = f_of(h, degree, false) + (detached ? 0 : (double)p[i] * f_of(h, degree, true) * added[i]);
    mean += (double)p[i] * dp[i];
  }
  for (int i = 0; i < E; i++) dz[i] = (double)p[i] * (dp[i] - mean) / temperature;
}

/* The estimate's mean: every expert with either coin, weighted by how likely that is. */
static void mean_estimate(problem *p, int degree, double whole, bool best_whole, double *dz) {
  double seen[E][COINS][E];
  bool has[E][COINS] = {{false}};
  for (int64_t update = 0; update < 2000; update++) {
    const int32_t d = route(p, update);
    const double gate = (double)p->gate[0];
    const int coin = gate < 0.999 * (double)probabilities(p)[d];
    if (has[d][coin]) continue;
    has[d][coin] = true;
    backward(p, (smoe_real)(f_of(gate * added[d], degree, true) * added[d]), seen[d][coin]);
  }
  const smoe_real *prob = probabilities(p);
  int best = 0;
  for (int i = 1; i < E; i++) best = prob[i] > prob[best] ? i : best;
  memset(dz, 0, E * sizeof *dz);
  for (int d = 0; d < E; d++)
    for (int coin = 0; coin < COINS; coin++) {
      const double first = d == best && best_whole ? 1 : whole, weight = coin ? 1 - first : first;
      CHECK(has[d][coin] == (weight > 0), "expert %d with coin %d: drawn %d, weight %g", d, coin,
            has[d][coin], weight);
      for (int i = 0; i < E && has[d][coin]; i++) dz[i] += (double)prob[d] * weight * seen[d][coin][i];
    }
}

static double distance(const double *a, const double *b) {
  double far = 0, size = 0;
  for (int i = 0; i < E; i++) far += (a[i] - b[i]) * (a[i] - b[i]), size += b[i] * b[i];
  return sqrt(far / size);
}

/* ---- the table ---- */

static const struct {
  const char *version;
  bool best_whole;
  double whole, temperature;
  bool detached;
  int exact; /* degree up to which the mean is the gradient */
} forms[] = {{"plain", true, 1, 1, false, 0},        {"v1_first", true, 1, 1, false, 1},
             {"v1", false, 0.5, 1, false, 2},        {"v1", true, 0.5, 1, false, 1},
             {"v2_star", false, 0.625, 2, false, 3}, {"v2_star", true, 0.625, 2, false, 1},
             {"v2", false, 0.25, 1, true, 3},        {"v2", true, 0.25, 1, true, 1}};

static void test_table(void) {
  printf("relative error of the estimate's mean       linear  quadratic      cubic    quartic\n");
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    problem p;
    problem_begin(&p, forms[i].version, forms[i].best_whole, NULL);
    printf("%-10s %-28s", forms[i].version, forms[i].best_whole ? "best whole" : "");
    for (int degree = 1; degree <= 4; degree++) {
      double mean[E], gradient[E];
      mean_estimate(&p, degree, forms[i].whole, forms[i].best_whole, mean);
      exact(probabilities(&p), degree, forms[i].detached, forms[i].temperature, gradient);
      const double error = distance(mean, gradient);
      printf(" %10.2g", error);
      if (degree <= forms[i].exact)
        CHECK(error <= 1e-12, "%s: degree %d: %g off", forms[i].version, degree, error);
      else
        CHECK(error > 1e-6 && error < 1, "%s: degree %d: %g off", forms[i].version, degree, error);
      if (i == 0 && degree == 1) CHECK_NEAR(error, 0.5, 1e-12, 0);
    }
    printf("\n");
    problem_end(&p);
  }
}

/* ---- draws ---- */

static void check_share(const char *what, double n, double of, double share) {
  const double deviation = sqrt(of * share * (1 - share));
  CHECK(fabs(n - of * share) <= 4.5 * deviation, "%s: %g of %g, not a share of %g", what, n, of, share);
}

static void test_draws(void) {
  problem p;
  problem_begin(&p, "v2", false, "router.sparsemixer.k=2");
  double first[E] = {0}, second[E] = {0}, prob[E], whole = 0, after[E][E] = {{0}};
  for (int64_t update = 0; update < DRAWS; update++) {
    const int32_t d = route(&p, update);
    CHECK(d != p.expert[1] && p.expert[1] >= 0, "second draw: expert %d after %d", (int)p.expert[1], (int)d);
    first[d]++, second[p.expert[1]]++, after[d][p.expert[1]]++;
    for (int i = 0; i < E; i++) prob[i] = (double)probabilities(&p)[i];
    whole += (double)p.gate[0] > 0.9 * prob[d];
  }
  for (int i = 0; i < E; i++) check_share("first draw", first[i], DRAWS, prob[i]);
  check_share("coin", whole, DRAWS, 0.25);
  for (int i = 1; i < E; i++)
    check_share("second draw after the first expert", after[0][i], first[0], prob[i] / (1 - prob[0]));
  /* The same numbers again, and others for another token. */
  const int32_t d = route(&p, 3);
  const smoe_real gate = p.gate[0];
  int differ = 0;
  CHECK(route(&p, 3) == d && p.gate[0] == gate, "a draw does not repeat itself");
  for (int64_t token = 1; token < 30; token++) {
    smoe_route_call call = call_of(&p);
    call.first_token = token;
    smoe_router_route(&p.router, &call);
    differ += p.expert[0] != d;
  }
  CHECK(differ > 5, "%d of 29 tokens draw another expert", differ);
  problem_end(&p);
}

/* Nothing is drawn in evaluation; with epsilon 0 the best expert has gate 1, and its router no gradient. */
static void test_evaluation(void) {
  problem p;
  problem_begin(&p, "v1", true, "router.sparsemixer.k=2");
  p.context.training = false;
  const int32_t d = route(&p, 1);
  const smoe_real gate = p.gate[0];
  CHECK(gate == probabilities(&p)[d], "gate %g", (double)gate);
  for (int64_t update = 2; update < 40; update++)
    CHECK(route(&p, update) == d && p.gate[0] == gate, "update %d draws in evaluation", (int)update);
  problem_end(&p);
  problem_begin(&p, "v1", true, "router.sparsemixer.epsilon=0");
  double dz[E];
  for (int64_t update = 0; update < 40; update++)
    CHECK(route(&p, update) == d && p.gate[0] == 1, "epsilon 0");
  backward(&p, 1, dz);
  for (int i = 0; i < E; i++) CHECK(dz[i] == 0, "epsilon 0: a gradient of %g", dz[i]);
  problem_end(&p);
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  test_table();
  test_draws();
  test_evaluation();
  smoe_group_end(&group);
  return test_verdict("grad/sparsemixer");
}
