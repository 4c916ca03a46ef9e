/* What the methods choose that route by a softmax: Switch, GShard, top-k, Expert Choice.
 *
 * The router's weights are rows of the unit matrix, so that x holds the scores.
 */
#include "../model_fixture.h"
#include "near.h"

enum { C = 8 };

static smoe_group group;

typedef struct problem {
  smoe_config *config;
  smoe_params params;
  smoe_arena arena;
  smoe_router router;
  smoe_pass context;
  smoe_route_call call;
  smoe_real *x;
  int32_t *token;
} problem;

/* N = sequences * positions tokens, all scores 0. */
static void begin(problem *p, const char *method, size_t sequences, size_t positions,
                  const char *const *overrides) {
  const smoe_lanes lanes = {1, 0, 1};
  const size_t n = sequences * positions;
  *p = (problem){.config = fixture_config(method, overrides)};
  smoe_params_begin(&p->params, &group, &lanes);
  fixture_router(&p->router, p->config, &p->params, 0, FIXTURE_VOCABULARY);
  smoe_arena_measure(&p->arena, "test");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_try(smoe_arena_reserve(&p->arena), "memory");
  smoe_params_layout(&p->params, &p->arena, true);
  smoe_real *weight = smoe_params_shared(&p->params, 0);
  for (int64_t e = 0; e < p->params.param[0].shape[0]; e++) weight[e * C + e] = 1;

  const size_t slots = n * (size_t)p->router.n_slots;
  p->x = values_zero(n * C);
  p->token = smoe_alloc(n * sizeof *p->token);
  p->context = (smoe_pass){.seed = 3, .update = 5, .stage = 1, .training = true, .n_targets = 1};
  p->call = (smoe_route_call){
      .context = &p->context,
      .n_tokens = n,
      .n_sequences = sequences,
      .n_context = positions,
      .token = p->token,
      .x = p->x,
      .expert = smoe_alloc(slots * sizeof(int32_t)),
      .gate = values_zero(slots),
      .integers = smoe_alloc((p->router.ops->tape_ints ? p->router.ops->tape_ints(&p->router, n) : 0) *
                             sizeof(int32_t)),
      .tape = values_zero(p->router.ops->tape_reals(&p->router, n)),
      .scratch = values_zero(p->router.ops->scratch_reals(&p->router, n)),
  };
}

static void end(problem *p) {
  smoe_free(p->x), smoe_free(p->token), smoe_free(p->call.expert), smoe_free(p->call.gate);
  smoe_free(p->call.tape), smoe_free(p->call.integers), smoe_free(p->call.scratch);
  smoe_params_end(&p->params);
  smoe_arena_release(&p->arena);
  smoe_config_destroy(p->config);
}

static void set_scores(problem *p, size_t t, double a, double b, double c) {
  p->x[t * C] = (smoe_real)a, p->x[t * C + 1] = (smoe_real)b, p->x[t * C + 2] = (smoe_real)c;
}

static void route(problem *p) {
  smoe_router_route(&p->router, &p->call);
}

/* Check slot k of token t. */
static void check_slot(const problem *p, size_t t, size_t k, int32_t expert, double gate) {
  const size_t s = t * (size_t)p->router.n_slots + k;
  CHECK(p->call.expert[s] == expert, "%s, token %zu, slot %zu: expert %d, not %d", p->router.ops->name, t, k,
        p->call.expert[s], expert);
  CHECK_NEAR((double)p->call.gate[s], gate, 1e-6, 1e-6);
}

static double softmax(double z, double a, double b, double c) {
  return exp(z) / (exp(a) + exp(b) + exp(c));
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

static void test_switch(void) {
  problem p;
  begin(&p, "switch", 1, 7, LIST("router.switch.jitter=0", "router.switch.balance_weight=0.5"));
  set_scores(&p, 0, 0.5, 2, 1);
  set_scores(&p, 1, 3, 3, 1); /* a tie */
  set_scores(&p, 2, 1, 2, 9);
  p.x[2 * C + 2] = NAN; /* makes all scores NaN: 0 times NaN */
  set_scores(&p, 3, 1, 2, 3);
  p.token[4] = -1;
  set_scores(&p, 4, 5, 6, 7);
  set_scores(&p, 5, 1e30, 0, 0); /* far apart: a probability of 1, the others 0 */
  set_scores(&p, 6, -1, 1, 0);
  route(&p);
  check_slot(&p, 0, 0, 1, softmax(2, 0.5, 2, 1));
  check_slot(&p, 1, 0, 0, softmax(3, 3, 3, 1));
  check_slot(&p, 2, 0, 0, 0);
  check_slot(&p, 3, 0, 2, softmax(3, 1, 2, 3));
  check_slot(&p, 4, 0, -1, 0);
  check_slot(&p, 5, 0, 0, 1);
  check_slot(&p, 6, 0, 1, softmax(1, -1, 1, 0));

  const int64_t load[] = {10, 30, 0}; /* of all ranks */
  const smoe_route_loads loads = {load, 40};
  fixture_sums memory = {0};
  smoe_route_sums *sums = &memory.sums;
  smoe_router_losses(&p.router, &p.call, &loads, sums);
  double want = 0;
  const double z[4][3] = {{0.5, 2, 1}, {3, 3, 1}, {1, 2, 3}, {-1, 1, 0}};
  for (int t = 0; t < 4; t++)
    for (int e = 0; e < 2; e++)
      want += 0.5 * 3 * (e ? 0.75 : 0.25) * softmax(z[t][e], z[t][0], z[t][1], z[t][2]);
  want += 0.5 * 3 * 0.25; /* the token that is sure of expert 0 */
  CHECK_NEAR(*smoe_route_term(&p.router, sums, "balance"), want, 1e-6, 0);
  CHECK(sums->n_gates == 6, "%g gates", sums->n_gates);
  end(&p);
}

/* A flat router whose weights are sums of those of a node and of a place routes as the two levels do: the softmax of a
 * sum is a product. With one level of one choice it is the other level, bit for bit. */
static void test_smile(int nodes, int places) {
  enum { SEQUENCES = 3, POSITIONS = 5, TOKENS = SEQUENCES * POSITIONS };
  char *experts = smoe_sprintf("moe.experts=%d", nodes * places), *of = smoe_sprintf("moe.nodes=%d", nodes);
  problem one, two;
  begin(&one, "switch", SEQUENCES, POSITIONS,
        LIST("router.switch.jitter=0", "router.switch.balance_weight=0", experts, "train.lanes=4"));
  begin(&two, "smile", SEQUENCES, POSITIONS,
        LIST(experts, "train.lanes=4", of, "router.smile.balance_weight=0",
             "router.smile.place_balance_weight=0"));
  fixture_randomise(&two.params, 4);
  smoe_real *flat = smoe_params_shared(&one.params, 0);
  const smoe_real *node = nodes > 1 ? smoe_params_shared(&two.params, two.router.index[0]) : NULL,
                  *place = places > 1 ? smoe_params_shared(&two.params, two.router.index[1]) : NULL;
  for (int e = 0; e < nodes * places; e++)
    for (int c = 0; c < C; c++)
      flat[e * C + c] =
          (nodes > 1 ? node[e / places * C + c] : 0) + (places > 1 ? place[e % places * C + c] : 0);
  fixture_tokens(two.token, NULL, 4, 0, TOKENS, 5);
  memcpy(one.token, two.token, TOKENS * sizeof *one.token);
  smoe_real *dgate = values_uniform(TOKENS, 8), *dx[2] = {values_zero(TOKENS * C), values_zero(TOKENS * C)};
  const int64_t load[16] = {0};
  problem *const p[] = {&one, &two};
  for (int i = 0; i < 2; i++) {
    smoe_real *x = values_uniform(TOKENS * C, 1);
    memcpy(p[i]->x, x, TOKENS * C * sizeof *x);
    smoe_free(x);
    route(p[i]);
    p[i]->router.ops->backward(&p[i]->router, &p[i]->call, &(smoe_route_loads){load, 0}, dx[i], dgate);
  }
  const double tolerance = nodes > 1 && places > 1 ? 1e-5 : 0;
  for (size_t t = 0; t < TOKENS; t++) {
    CHECK(one.call.expert[t] == two.call.expert[t], "%d nodes of %d: token %zu: expert %d, %d", nodes, places,
          t, one.call.expert[t], two.call.expert[t]);
    CHECK_NEAR((double)two.call.gate[t], (double)one.call.gate[t], tolerance, 1e-2);
  }
  for (size_t i = 0; i < TOKENS * C; i++) CHECK_NEAR((double)dx[1][i], (double)dx[0][i], tolerance, 1e-2);
  const int *index = two.router.index;
  const smoe_real *d = smoe_params_lane_grad(&one.params, 0, 0),
                  *dnode = nodes > 1 ? smoe_params_lane_grad(&two.params, index[0], 0) : NULL,
                  *dplace = places > 1 ? smoe_params_lane_grad(&two.params, index[1], 0) : NULL;
  for (int c = 0; c < C; c++) {
    for (int i = 0; i < nodes && nodes > 1; i++) {
      double sum = 0;
      for (int j = 0; j < places; j++) sum += (double)d[(i * places + j) * C + c];
      CHECK_NEAR((double)dnode[i * C + c], sum, tolerance, 1e-2);
    }
    for (int j = 0; j < places && places > 1; j++) {
      double sum = 0;
      for (int i = 0; i < nodes; i++) sum += (double)d[(i * places + j) * C + c];
      CHECK_NEAR((double)dplace[j * C + c], sum, tolerance, 1e-2);
    }
  }
  smoe_free(experts), smoe_free(of), smoe_free(dgate), smoe_free(dx[0]), smoe_free(dx[1]);
  end(&one);
  end(&two);
}

/* One score that overflows: that expert is out, and the others are as if there were no such expert. */
static void test_infinite_score(const char *method) {
  problem p;
  begin(&p, method, 1, 1, NULL);
  p.context.training = false;
  smoe_params_shared(&p.params, 0)[1 * C + 1] = 1e38F;
  set_scores(&p, 0, 1, 100, 2);
  route(&p);
  check_slot(&p, 0, 0, 2, exp(2) / (exp(1) + exp(2)));
  for (size_t s = 0; s < (size_t)p.router.n_slots; s++)
    CHECK(p.call.expert[s] != 1, "%s chose an expert of infinite score", method);
  end(&p);
}

/* Scores as far as noise moves them: x = 1 for expert 0 and a very low score for others. */
static void noisy_scores(problem *p, double *z) {
  for (size_t t = 0; t < p->call.n_tokens; t++) set_scores(p, t, 1, 0, 0);
  route(p);
  for (size_t t = 0; t < p->call.n_tokens; t++) {
    const double g = (double)p->call.gate[t]; /* e^z / (e^z + 2) */
    z[t] = log(2 * g / (1 - g));
  }
}

static void test_jitter(void) {
  enum { TOKENS = 2000, HALF = TOKENS / 2 };
  problem p;
  double z[TOKENS], other[TOKENS];
  begin(&p, "switch", 1, TOKENS, LIST("router.switch.jitter=0.25"));
  noisy_scores(&p, z);
  double mean = 0, least = 2, most = 0;
  for (size_t t = 0; t < TOKENS; t++) {
    mean += z[t] / TOKENS;
    least = fmin(least, z[t]);
    most = fmax(most, z[t]);
  }
  CHECK(fabs(mean - 1) < 0.01, "mean %g", mean);
  CHECK(least > 0.7499 && least < 0.76 && most < 1.2501 && most > 1.24, "from %g to %g", least, most);

  /* The second half of the tokens alone has the same noise: it goes by the global token. */
  p.call.first_token = HALF;
  p.call.n_tokens = HALF;
  noisy_scores(&p, other);
  for (size_t t = 0; t < HALF; t++)
    CHECK(other[t] == z[HALF + t], "token %zu: %g, %g", t, other[t], z[HALF + t]);
  p.call.first_token = 0;
  p.call.n_tokens = TOKENS;
  for (int i = 0; i < 3; i++) { /* another update, another micro-batch, another layer */
    p.context.update = i == 0 ? 6 : 5;
    p.call.before = i == 1 ? TOKENS : 0;
    p.router.layer = p.call.layer = i == 2;
    noisy_scores(&p, other);
    size_t same = 0;
    for (size_t t = 0; t < TOKENS; t++) same += other[t] == z[t];
    CHECK(same < 20, "%d: %zu tokens have the same noise", i, same);
  }
  p.context.training = false;
  noisy_scores(&p, other);
  for (size_t t = 0; t < TOKENS; t++) CHECK_NEAR(other[t], 1, 1e-5, 1);
  end(&p);
}

static void test_gshard(void) {
  enum { TOKENS = 4000 };
  problem p;
  begin(&p, "gshard", 1, TOKENS, NULL);
  for (size_t t = 0; t < TOKENS; t++) set_scores(&p, t, -9, log(4), 0); /* gates 0.8 and 0.2 */
  set_scores(&p, 0, 1, 0, 1);                                           /* gates 1/2: always kept */
  p.token[1] = -1;
  route(&p);
  check_slot(&p, 0, 0, 0, 0.5);
  check_slot(&p, 0, 1, 2, 0.5);
  check_slot(&p, 1, 0, -1, 0);
  check_slot(&p, 1, 1, -1, 0);
  double kept = 0;
  for (size_t t = 2; t < TOKENS; t++) {
    const bool second = p.call.expert[2 * t + 1] >= 0;
    check_slot(&p, t, 0, 1, 0.8);
    check_slot(&p, t, 1, second ? 2 : -1, second ? 0.2 : 0);
    kept += second;
  }
  CHECK(fabs(kept / (TOKENS - 2) - 0.4) < 0.03, "the second expert is visited by %g", kept / (TOKENS - 2));
  p.context.training = false;
  route(&p);
  for (size_t t = 2; t < TOKENS; t++) check_slot(&p, t, 1, 2, 0.2);
  end(&p);
}

/* weight E sum_e (c_e / S) m_e, first choices only. */
static void test_gshard_balance(void) {
  problem p;
  begin(&p, "gshard", 1, 4, LIST("router.gshard.balance_weight=2"));
  const double z[4][3] = {{1, 2, 0}, {1, 2, 0.5}, {3, 1, 1}, {0, 2, 1}};
  for (size_t t = 0; t < 4; t++) set_scores(&p, t, z[t][0], z[t][1], z[t][2]);
  route(&p);
  const int64_t load[] = {100, 0, 0};
  fixture_sums memory = {0};
  smoe_route_sums *sums = &memory.sums;
  smoe_router_losses(&p.router, &p.call, &(smoe_route_loads){load, 100}, sums);
  double want = 0;
  for (int t = 0; t < 4; t++)
    want += 2 * 3 *
            (0.25 * softmax(z[t][0], z[t][0], z[t][1], z[t][2]) +
             0.75 * softmax(z[t][1], z[t][0], z[t][1], z[t][2]));
  CHECK_NEAR(*smoe_route_term(&p.router, sums, "balance"), want, 1e-6, 0);
  end(&p);
}

static void test_topk(void) {
  problem p;
  begin(&p, "topk", 1, 2, LIST("router.topk.k=3"));
  set_scores(&p, 0, 1, 3, 1); /* a tie behind the first */
  p.token[1] = -1;
  route(&p);
  check_slot(&p, 0, 0, 1, softmax(3, 1, 3, 1));
  check_slot(&p, 0, 1, 0, softmax(1, 1, 3, 1));
  check_slot(&p, 0, 2, 2, softmax(1, 1, 3, 1));
  for (size_t k = 0; k < 3; k++) check_slot(&p, 1, k, -1, 0);
  end(&p);
  for (int normalise = 0; normalise < 2; normalise++) {
    begin(&p, "topk", 1, 1,
          LIST("router.topk.k=2", normalise ? "router.topk.normalise=true" : "router.topk.normalise=false"));
    set_scores(&p, 0, 1, 0, 2);
    route(&p);
    check_slot(&p, 0, 0, 2, normalise ? exp(2) / (exp(1) + exp(2)) : softmax(2, 1, 0, 2));
    check_slot(&p, 0, 1, 0, normalise ? exp(1) / (exp(1) + exp(2)) : softmax(1, 1, 0, 2));
    end(&p);
  }
  smoe_config *config = fixture_config("topk", NULL);
  fixture_try(smoe_config_override(config, "router.topk.k=4"), "k");
  CHECK(smoe_router_check(config) == SMOE_ERR_CONFIG && strstr(smoe_last_error(), "moe.experts 3"), "%s",
        smoe_last_error());
  smoe_config_destroy(config);
}

/* How many tokens each expert has among rows first, first + stride, ... */
static void count_loads(const problem *p, size_t first, size_t stride, int *load) {
  memset(load, 0, (size_t)p->router.n_experts * sizeof *load);
  const size_t k = (size_t)p->router.n_slots;
  for (size_t t = first; t < p->call.n_tokens; t += stride)
    for (size_t s = t * k; s < (t + 1) * k; s++)
      if (p->call.expert[s] >= 0) load[p->call.expert[s]]++;
}

static void random_scores(problem *p) {
  smoe_real *x = values_uniform(p->call.n_tokens * C, 4);
  memcpy(p->x, x, p->call.n_tokens * C * sizeof *x);
  smoe_free(x);
}

static void test_expert_choice(void) {
  problem p;
  int load[3];
  begin(&p, "expert_choice", 3, 11, NULL); /* capacity 2: 22 of 33 tokens for each of 3 experts */
  random_scores(&p);
  route(&p);
  count_loads(&p, 0, 1, load);
  for (int e = 0; e < 3; e++) CHECK(load[e] == 22, "expert %d has %d tokens", e, load[e]);
  /* A token's gates fall, and no token that an expert left has a larger probability than one it took. */
  for (int e = 0; e < 3; e++) {
    double least = 2, most = -1;
    for (size_t t = 0; t < 33; t++) {
      const double g = softmax((double)p.x[t * C + (size_t)e], (double)p.x[t * C], (double)p.x[t * C + 1],
                               (double)p.x[t * C + 2]);
      bool taken = false;
      for (size_t k = 0; k < 3; k++) {
        if (p.call.expert[t * 3 + k] != e) continue;
        taken = true;
        CHECK_NEAR((double)p.call.gate[t * 3 + k], g, 1e-6, 0);
        CHECK(k == 0 || p.call.gate[t * 3 + k] <= p.call.gate[t * 3 + k - 1], "slots of token %zu", t);
      }
      if (taken) least = fmin(least, g);
      if (!taken) most = fmax(most, g);
    }
    CHECK(most <= least + 1e-7, "expert %d left %g and took %g", e, most, least);
  }
  for (size_t t = 0; t < 33; t++) p.token[t] = t % 3 ? 1 : -1; /* 22 tokens are left: 14 for each expert */
  route(&p);
  count_loads(&p, 0, 3, load);
  CHECK(load[0] + load[1] + load[2] == 0, "padding was chosen");
  count_loads(&p, 0, 1, load);
  for (int e = 0; e < 3; e++) CHECK(load[e] == 14, "expert %d has %d tokens", e, load[e]);
  end(&p);

  /* All alike: the first tokens, and of them the lower experts. */
  begin(&p, "expert_choice", 1, 9, LIST("router.expert_choice.max_experts=2"));
  route(&p);
  for (size_t t = 0; t < 9; t++)
    for (size_t k = 0; k < 2; k++) check_slot(&p, t, k, t < 6 ? (int32_t)k : -1, t < 6 ? 1.0 / 3 : 0);
  end(&p);

  /* All but one of the tokens. */
  begin(&p, "expert_choice", 1, 3, NULL);
  random_scores(&p);
  route(&p);
  count_loads(&p, 0, 1, load);
  for (int e = 0; e < 3; e++) CHECK(load[e] == 2, "expert %d has %d tokens of 3", e, load[e]);
  end(&p);

  /* Evaluation: two for each token, whatever the others are. */
  begin(&p, "expert_choice", 1, 2, NULL);
  p.context.training = false;
  set_scores(&p, 0, 1, 2, 3);
  set_scores(&p, 1, 1, 2, 3);
  route(&p);
  for (size_t t = 0; t < 2; t++) {
    check_slot(&p, t, 0, 2, softmax(3, 1, 2, 3));
    check_slot(&p, t, 1, 1, softmax(2, 1, 2, 3));
    check_slot(&p, t, 2, -1, 0);
  }
  end(&p);
}

static void test_causal(void) {
  enum { S = 6, T = 5 };
  problem p;
  int load[3];
  int32_t before[S * T * 3];
  begin(&p, "expert_choice", S, T,
        LIST("router.expert_choice.causal=true", "router.expert_choice.capacity=1.5"));
  random_scores(&p);
  route(&p);
  for (size_t t = 0; t < T; t++) {
    count_loads(&p, t, T, load);
    for (int e = 0; e < 3; e++) CHECK(load[e] == 3, "position %zu, expert %d: %d sequences", t, e, load[e]);
  }
  memcpy(before, p.call.expert, sizeof before);
  for (size_t s = 0; s < S; s++) /* other tokens from position 3 on */
    for (size_t t = 3; t < T; t++) set_scores(&p, s * T + t, s % 2 ? 3 : -3, t == 3, 1);
  route(&p);
  size_t n_changed = 0;
  for (size_t i = 0; i < S * T * 3; i++) {
    const bool later = i / 3 % T >= 3, same = before[i] == p.call.expert[i];
    CHECK(later || same, "an earlier choice changed: row %zu", i / 3);
    n_changed += !same;
  }
  CHECK(n_changed > 0, "no choice changed");
  end(&p);
  smoe_config *config = fixture_config("expert_choice", LIST("router.expert_choice.causal=true"));
  fixture_try(smoe_config_override(config, "moe.experts=5"), "experts");
  CHECK(smoe_router_check(config) == SMOE_ERR_CONFIG && strstr(smoe_last_error(), "too few"), "%s",
        smoe_last_error());
  smoe_config_destroy(config);
}

static void test_no_tokens(const char *method) {
  problem p;
  begin(&p, method, 0, 4, NULL);
  const int64_t load[3] = {0};
  const smoe_route_loads loads = {load, 0};
  fixture_sums memory = {0};
  smoe_route_sums *sums = &memory.sums;
  route(&p);
  smoe_router_losses(&p.router, &p.call, &loads, sums);
  p.router.ops->backward(&p.router, &p.call, &loads, p.x, p.call.gate);
  CHECK(*smoe_route_term(&p.router, sums, "balance") == 0 && sums->n_gates == 0, "%s: %g", method,
        *smoe_route_term(&p.router, sums, "balance"));
  end(&p);
}

int main(int argc, char **argv) {
  static const char *const methods[] = {"switch", "gshard", "topk", "expert_choice"};
  smoe_group_start(&group, &argc, &argv);
  test_smile(1, 4);
  test_smile(4, 1);
  test_smile(2, 3);
  test_smile(4, 2);
  test_switch();
  test_jitter();
  test_gshard();
  test_gshard_balance();
  test_topk();
  test_expert_choice();
  test_causal();
  for (size_t i = 0; i < 4; i++) {
    test_infinite_score(methods[i]);
    test_no_tokens(methods[i]);
  }
  smoe_group_end(&group);
  return test_verdict("softmax_routers");
}
