/* Choosing ahead: what follows from token ids alone is the same choice before the pass, from the compiled
 * table, and in the midst of it.
 */
#include "../model_fixture.h"
#include "../values.h"
#include "harness.h"

enum { VOCABULARY = 700, N = VOCABULARY + 20, C = 8, CONTEXT = 24 };

typedef struct problem {
  smoe_config *config;
  smoe_params params;
  smoe_arena arena;
  smoe_router router;
  smoe_pass context;
  int32_t token[N];
  smoe_real *x;
} problem;

/* Choices and gates of one call, of K slots. */
typedef struct outcome {
  int32_t *expert, *learned, *distilled;
  smoe_real *gate;
} outcome;

static void problem_begin(problem *p, const char *method, int stage) {
  const smoe_group group = {.comm = MPI_COMM_NULL, .n_ranks = 1};
  const smoe_lanes lanes = {1, 0, 1};
  *p = (problem){.config = fixture_config(method, (const char *const[]){"model.context=24", NULL})};
  p->context = (smoe_pass){.seed = 3, .stage = stage, .training = false, .n_targets = N};
  smoe_params_begin(&p->params, &group, &lanes);
  fixture_router(&p->router, p->config, &p->params, 0, VOCABULARY);
  smoe_arena_measure(&p->arena, "test");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_try(smoe_arena_reserve(&p->arena), "memory");
  smoe_params_layout(&p->params, &p->arena, true);
  fixture_randomise(&p->params, 9);
  fixture_prepare(&p->router, &p->params);
  /* Every id of the vocabulary once, in an order of its own, and padding. */
  for (int t = 0; t < N; t++) p->token[t] = t < VOCABULARY ? (t * 37) % VOCABULARY : -1;
  p->x = values_uniform((size_t)N * C, 1);
}

static void problem_end(problem *p) {
  smoe_params_end(&p->params);
  smoe_arena_release(&p->arena);
  smoe_free(p->router.table);
  smoe_config_destroy(p->config);
  smoe_free(p->x);
}

static outcome run(problem *p, bool ahead) {
  const smoe_router_ops *ops = p->router.ops;
  const size_t slots = (size_t)N * (size_t)p->router.n_slots;
  outcome o = {.expert = smoe_alloc(slots * sizeof(int32_t)),
               .learned = smoe_alloc(N * sizeof(int32_t)),
               .distilled = smoe_alloc(N * sizeof(int32_t)),
               .gate = smoe_alloc(slots * sizeof(smoe_real))};
  smoe_real *tape = smoe_alloc(ops->tape_reals(&p->router, N) * sizeof *tape);
  int32_t *integers = smoe_alloc((ops->tape_ints ? ops->tape_ints(&p->router, N) : 0) * sizeof *integers);
  smoe_real *scratch = smoe_alloc(ops->scratch_reals(&p->router, N) * sizeof *scratch);
  smoe_route_call call = {.context = &p->context,
                          .n_tokens = N,
                          .n_sequences = N / CONTEXT,
                          .n_context = CONTEXT,
                          .token = p->token,
                          .expert = o.expert,
                          .gate = o.gate,
                          .tape = tape,
                          .integers = integers,
                          .scratch = scratch,
                          .learned = o.learned,
                          .distilled = o.distilled};
  /* Hidden states are there before the choice, or only before the gates. */
  if (!ahead) call.x = p->x;
  memset(o.learned, 0xff, N * sizeof *o.learned);
  ops->choose(&p->router, &call);
  /* The exchange marks a token as dropped: that must stay. */
  o.expert[0] = smoe_slot_dropped(o.expert[0]);
  call.x = p->x;
  ops->gate(&p->router, &call);
  CHECK(o.expert[0] < -1, "gate has overwritten what the exchange marked");
  o.expert[0] = smoe_slot_expert(o.expert[0]);
  smoe_free(tape);
  smoe_free(integers);
  smoe_free(scratch);
  return o;
}

static void outcome_free(outcome *o) {
  smoe_free(o->expert);
  smoe_free(o->learned);
  smoe_free(o->distilled);
  smoe_free(o->gate);
}

static void check_same(const problem *p, const outcome *a, const outcome *b, const char *label) {
  const size_t slots = (size_t)N * (size_t)p->router.n_slots;
  CHECK(memcmp(a->expert, b->expert, slots * sizeof *a->expert) == 0, "%s: experts", label);
  CHECK(memcmp(a->gate, b->gate, slots * sizeof *a->gate) == 0, "%s: gates", label);
  CHECK(memcmp(a->learned, b->learned, N * sizeof *a->learned) == 0, "%s: learned choice", label);
  CHECK(memcmp(a->distilled, b->distilled, N * sizeof *a->distilled) == 0, "%s: distilled choice", label);
}

/* Returns whether the method can choose ahead in this stage. */
static bool check_method(const char *method, int stage) {
  problem p;
  problem_begin(&p, method, stage);
  const smoe_router_ops *ops = p.router.ops;
  const bool ahead = ops->from_ids && ops->from_ids(&p.router, &p.context) && (stage == 1 || ops->two_stages);
  if (ahead) {
    outcome computed = run(&p, false), chosen = run(&p, true);
    check_same(&p, &computed, &chosen, method);
    const size_t table = ops->table_ints ? ops->table_ints(&p.router) : 0;
    p.router.table = table ? smoe_alloc(table * sizeof(int32_t)) : NULL;
    if (stage == 2) ops->freeze(&p.router, &p.params);
    CHECK(p.router.compiled == (table > 0), "%s", method);
    outcome looked_up = run(&p, true);
    check_same(&p, &computed, &looked_up, method);
    bool differ = false;
    for (int t = 1; t < N; t++)
      differ = differ || (p.token[t] >= 0 && computed.expert[t] != computed.expert[0]);
    CHECK(differ || strstr(method, "evaluation=one"), "%s sends all to one expert, which shows nothing",
          method);
    outcome_free(&computed);
    outcome_free(&chosen);
    outcome_free(&looked_up);
  }
  problem_end(&p);
  return ahead;
}

int main(void) {
  char **methods = fixture_methods();
  int n_ahead[2] = {0};
  for (size_t i = 0; methods[i]; i++)
    for (int stage = 1; stage <= 2; stage++) n_ahead[stage - 1] += check_method(methods[i], stage);
  CHECK(n_ahead[0] >= 4, "%d methods choose ahead in stage 1: hash should", n_ahead[0]);
  CHECK(n_ahead[1] >= 8, "%d methods choose ahead in stage 2: two methods with four features should",
        n_ahead[1]);
  fixture_methods_free(methods);
  return test_verdict("choose");
}
