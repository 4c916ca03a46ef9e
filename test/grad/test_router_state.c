/* What routers hand on over depth: the gradient through two MoE layers, of which the second router's choice and
 * gate, and the first one's too by way of it, depend on a state that the first made; and a loss term with a name
 * of its own.
 */
#include <math.h>

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
  C = 8,
  EXPERTS = 3,
  STATE = 2,
  LAYERS = 3,
  SEED = 9
};

static smoe_group group;

/* ---- a router: h' = tanh(U x) + h / 2, scores E x + V h, gate sigmoid(score), loss 0.3 gate^2 ---- */

enum { CENTROID, INTO, FROM };

static int slots_state(const smoe_config *config) {
  return 1;
}

static void declare_state(smoe_router *router, smoe_params *params) {
  const smoe_init init = {SMOE_INIT_CONSTANT, 0, false};
  const int64_t centroid[] = {EXPERTS, C, 0}, into[] = {STATE, C, 0}, from[] = {EXPERTS, STATE, 0};
  router->index[CENTROID] = smoe_params_declare(params, SMOE_REPLICATED, centroid, init, true,
                                                "moe%d/router/centroid", router->layer);
  /* The last one hands nothing on, and the first one is handed nothing. */
  if (router->layer < router->n_layers - 1)
    router->index[INTO] =
        smoe_params_declare(params, SMOE_REPLICATED, into, init, true, "moe%d/router/into", router->layer);
  if (router->layer > 0)
    router->index[FROM] =
        smoe_params_declare(params, SMOE_REPLICATED, from, init, true, "moe%d/router/from", router->layer);
  smoe_terms_add(&router->terms, "square");
}

static size_t no_reals(const smoe_router *router, size_t n) {
  return 0;
}

static size_t state_reals(const smoe_router *router) {
  return STATE;
}

static const smoe_real *value_of(const smoe_router *router, int which) {
  return smoe_params_shared(router->params, router->index[which]);
}

static smoe_real score(const smoe_router *router, const smoe_route_call *call, size_t t, int32_t e) {
  const smoe_real own = smoe_dot(value_of(router, CENTROID) + e * C, call->x + t * C, C);
  return call->state_in
             ? own + smoe_dot(value_of(router, FROM) + e * STATE, call->state_in + t * STATE, STATE)
             : own;
}

static void choose_state(const smoe_router *router, const smoe_route_call *call) {
  CHECK((call->state_in == NULL) == (call->layer == 0), "state of the layer before");
  for (size_t t = 0; t < call->n_tokens; t++) {
    int32_t best = 0;
    for (int32_t e = 1; e < EXPERTS; e++)
      if (score(router, call, t, e) > score(router, call, t, best)) best = e;
    call->expert[t] = call->token[t] < 0 ? -1 : best;
    for (size_t s = 0; s < STATE && router->layer < router->n_layers - 1; s++)
      call->state_out[t * STATE + s] =
          (smoe_real)tanh((double)smoe_dot(value_of(router, INTO) + s * C, call->x + t * C, C)) +
          (call->state_in ? call->state_in[t * STATE + s] / 2 : 0);
  }
}

static void gate_state(const smoe_router *router, const smoe_route_call *call) {
  for (size_t t = 0; t < call->n_tokens; t++)
    call->gate[t] = call->expert[t] < 0 ? 0 : smoe_sigmoid(score(router, call, t, call->expert[t]));
}

static void losses_state(const smoe_router *router, const smoe_route_call *call,
                         const smoe_route_loads *loads, smoe_route_sums *sums) {
  for (size_t t = 0; t < call->n_tokens; t++)
    *smoe_route_term(router, sums, "square") += 0.3 * (double)(call->gate[t] * call->gate[t]);
}

static void add_scaled(smoe_real *y, smoe_real a, const smoe_real *x, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void backward_state(const smoe_router *router, const smoe_route_call *call,
                           const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  smoe_real *grad[3] = {NULL};
  const bool has[3] = {
      [CENTROID] = true, [INTO] = call->layer<LAYERS - 1, [FROM] = call->layer> 0}; /* as declared */
  for (int i = 0; i < 3; i++)
    if (has[i]) grad[i] = smoe_params_lane_grad(router->params, router->index[i], call->lane);
  CHECK((call->dstate_in == NULL) == (call->layer == 0) &&
            (call->dstate_out == NULL) == (call->layer == LAYERS - 1),
        "gradient of the state in layer %d", call->layer);
  for (size_t t = 0; t < call->n_tokens; t++) {
    const smoe_real *x = call->x + t * C, g = call->gate[t];
    const int32_t chosen = call->expert[t];
    for (size_t s = 0; s < STATE && call->dstate_in; s++) call->dstate_in[t * STATE + s] = 0;
    if (chosen >= 0) {
      const smoe_real ds =
          g * (1 - g) * (dgate[t] + (smoe_real)0.6 * g / (smoe_real)call->context->n_targets);
      add_scaled(grad[CENTROID] + chosen * C, ds, x, C);
      add_scaled(dx + t * C, ds, value_of(router, CENTROID) + chosen * C, C);
      if (call->state_in) {
        add_scaled(grad[FROM] + chosen * STATE, ds, call->state_in + t * STATE, STATE);
        add_scaled(call->dstate_in + t * STATE, ds, value_of(router, FROM) + chosen * STATE, STATE);
      }
    }
    for (size_t s = 0; s < STATE && call->dstate_out; s++) {
      const smoe_real d = call->dstate_out[t * STATE + s],
                      before = call->state_in ? call->state_in[t * STATE + s] : 0;
      const smoe_real u = call->state_out[t * STATE + s] - before / 2; /* tanh */
      add_scaled(grad[INTO] + s * C, d * (1 - u * u), x, C);
      add_scaled(dx + t * C, d * (1 - u * u), value_of(router, INTO) + s * C, C);
      if (call->dstate_in) call->dstate_in[t * STATE + s] += d / 2;
    }
  }
}

static const smoe_router_ops with_state = {.name = "state",
                                           .slots = slots_state,
                                           .declare = declare_state,
                                           .tape_reals = no_reals,
                                           .scratch_reals = no_reals,
                                           .state_reals = state_reals,
                                           .choose = choose_state,
                                           .gate = gate_state,
                                           .losses = losses_state,
                                           .backward = backward_state};

/* ---- three MoE layers, one after another ---- */

typedef struct problem {
  smoe_config *config;
  smoe_params params;
  smoe_arena arena;
  smoe_layer layer[LAYERS];
  smoe_batch batch;
  smoe_pass context;
  int32_t token[N];
  smoe_real *x[LAYERS + 1]; /* input of each layer; the last output */
  smoe_real *dx, *weight;
} problem;

static double value(void *context, uint64_t *piece) {
  problem *p = context;
  double terms = 0;
  for (int m = 0; m < LAYERS; m++) {
    fixture_sums sums[LANES] = {{{0}}};
    smoe_moe_layer *moe = p->layer[m].state;
    smoe_layer_moe.plan_all(&p->layer[m], &p->context);
    smoe_layer_moe.forward_all(&p->layer[m], &p->context, p->x[m + 1], p->x[m], (double *)sums,
                               sizeof *sums / sizeof(double));
    piece_add_choices(piece, moe->expert, N);
    for (int s = 0; s < moe->experts.n_sublayers; s++)
      piece_add_active(piece, moe->experts.tape[s].h.wide, moe->exchange.n_recv * moe->experts.shape.inner);
    for (int lane = 0; lane < LANES; lane++) terms += fixture_terms(&sums[lane].sums, &moe->router.terms);
  }
  return difference_fold(p->weight, p->x[LAYERS], N * C) + terms / (double)p->context.n_targets;
}

static void declare(problem *p, int m) {
  fixture_moe(&p->layer[m], p->config, &p->params, m, FIXTURE_VOCABULARY);
  smoe_layer_moe.declare(&p->layer[m]);
  smoe_moe_layer *moe = p->layer[m].state;
  moe->router.ops = &with_state;
  with_state.declare(&moe->router, &p->params);
  moe->previous = m > 0 ? p->layer[m - 1].state : NULL;
  if (m > 0) moe->previous->next = moe;
}

static void layout(problem *p) {
  const smoe_layer_memory memory = {.fixed = &p->arena,
                                    .tape = &p->arena,
                                    .scratch = &p->arena,
                                    .shape = p->batch.shape,
                                    .tape_lanes = LANES,
                                    .training = true};
  smoe_params_layout(&p->params, &p->arena, true);
  for (int m = 0; m < LAYERS; m++) smoe_layer_moe.layout(&p->layer[m], &memory);
}

static void test_gradient(void) {
  const smoe_lanes lanes = {LANES, 0, LANES};
  problem p = {.config = fixture_config(
                   "hash router.hash.variant=bigram",
                   (const char *const[]){"moe.layers=3", "moe.position=scattered", "model.blocks=4", NULL}),
               .dx = values_zero(N * C),
               .weight = values_uniform(N * C, 2)};
  p.x[0] = values_uniform(N * C, 1);
  for (int m = 0; m < LAYERS; m++) p.x[m + 1] = values_zero(N * C);
  smoe_params_begin(&p.params, &group, &lanes);
  fixture_tokens(p.token, NULL, 5, 0, N, 6);
  p.batch = (smoe_batch){.shape = {[SMOE_MAIN] = {.n_lanes = LANES,
                                                  .lane_sequences = SEQUENCES,
                                                  .context = CONTEXT,
                                                  .lane_tokens = LANE,
                                                  .n_tokens = N,
                                                  .n_global = N}},
                         .token = {[SMOE_MAIN] = p.token}};
  p.context =
      (smoe_pass){.seed = 3, .update = 5, .stage = 1, .training = true, .n_targets = 7, .batch = &p.batch};
  for (int m = 0; m < LAYERS; m++) declare(&p, m);
  smoe_arena_measure(&p.arena, "test");
  layout(&p);
  fixture_try(smoe_arena_reserve(&p.arena), "memory");
  layout(&p);
  fixture_randomise(&p.params, SEED);
  value(&p, &(uint64_t){0});
  memcpy(p.dx, p.weight, N * C * sizeof *p.dx);
  for (int m = LAYERS - 1; m >= 0; m--) smoe_layer_moe.backward_all(&p.layer[m], &p.context, p.dx, p.x[m]);
  piecewise gradient = {.name = "three routers with a state", .value = value, .context = &p};
  piecewise_check(&gradient, "x", p.x[0], p.dx, N * C);
  piecewise_check_params(&gradient, &p.params);
  piecewise_end(&gradient);
  for (int m = 0; m < LAYERS; m++) smoe_layer_destroy(&p.layer[m]);
  smoe_params_end(&p.params);
  smoe_arena_release(&p.arena);
  smoe_config_destroy(p.config);
  for (int m = 0; m <= LAYERS; m++) smoe_free(p.x[m]);
  smoe_free(p.dx), smoe_free(p.weight);
}

/* A model links its MoE layers in order; without a state nothing is kept. */
static void test_links(void) {
  model_fixture f;
  fixture_open(&f, &group, "switch", (const char *const[]){"moe.layers=2", "moe.position=scattered", NULL},
               1);
  smoe_moe_layer *const *moe = f.model->moe;
  CHECK(f.model->n_moe == 2 && !moe[0]->previous && moe[0]->next == moe[1] && moe[1]->previous == moe[0] &&
            !moe[1]->next,
        "links of two MoE layers");
  CHECK(!moe[0]->state && !moe[0]->dstate, "a state of a router that has none");
  fixture_close(&f);
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  test_gradient();
  test_links();
  smoe_group_end(&group);
  return test_verdict("grad/router_state");
}
