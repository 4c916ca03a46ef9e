/* Layers one by one: attention, feed-forward layer, the experts, the MoE layer with every routing method and with two slots per token. */
#include "../model_fixture.h"
#include "../values.h"
#include "difference.h"
#include "piecewise.h"
#include "stablemoe/kernel.h"

enum {
  LANES = 2,
  SEQUENCES = 2,
  CONTEXT = 5,
  SIDE = 4, /* rows of a sequence of the source stream */
  LANE = SEQUENCES * CONTEXT,
  N = LANES * LANE,
  C = 8,
  EXPERTS = 3,
  SEED = 9
};

/** What gradients start from: backward adds. Two to some power, so that it goes away exactly enough. */
static const smoe_real START = 0.5;

static smoe_group group;

/** A layer, its parameters, and L = <weight, y> + its own loss terms. */
typedef struct problem {
  smoe_params params;
  smoe_arena arena;
  smoe_layer layer;
  smoe_moe_layer *moe; /* its state, where it is one */
  smoe_batch batch;
  smoe_pass context;
  int64_t expert_offset[EXPERTS + 1];
  int32_t token[N];
  smoe_real *x, *y, *dx, *weight;      /* [N, C] */
  smoe_real *side, *dside;             /* [LANES SEQUENCES SIDE, C] */
  const int32_t *length, *side_length; /* [SEQUENCES] of each lane, or NULL */
} problem;

static void problem_begin(problem *p, int n_experts) {
  const smoe_lanes lanes = {LANES, 0, LANES};
  *p = (problem){.x = values_uniform(N * C, 1),
                 .y = values_zero(N * C),
                 .dx = values_zero(N * C),
                 .weight = values_uniform(N * C, 2),
                 .side = values_uniform(LANES * SEQUENCES * SIDE * C, 3),
                 .dside = values_zero(LANES * SEQUENCES * SIDE * C)};
  smoe_params_begin(&p->params, &group, &lanes);
  fixture_tokens(p->token, NULL, 5, 0, N, 6);
  p->batch = (smoe_batch){.shape = {[SMOE_MAIN] = {.n_lanes = LANES,
                                                   .lane_sequences = SEQUENCES,
                                                   .context = CONTEXT,
                                                   .lane_tokens = LANE,
                                                   .n_tokens = N,
                                                   .n_global = N}},
                          .token = {[SMOE_MAIN] = p->token}};
  p->batch.shape[SMOE_ENCODER] = p->batch.shape[SMOE_MAIN];
  p->batch.shape[SMOE_ENCODER].context = SIDE;
  p->batch.shape[SMOE_ENCODER].lane_tokens = SEQUENCES * SIDE;
  p->batch.shape[SMOE_ENCODER].n_tokens = LANES * SEQUENCES * SIDE;
}

static void problem_end(problem *p) {
  smoe_layer_destroy(&p->layer);
  smoe_params_end(&p->params);
  smoe_arena_release(&p->arena);
  smoe_free(p->x), smoe_free(p->y), smoe_free(p->dx), smoe_free(p->weight);
  smoe_free(p->side), smoe_free(p->dside);
}

static void fill_gradients(smoe_params *params, smoe_real value);

/** Lay out twice: to measure, and for good. Gradients then hold START. */
#define PROBLEM_LAYOUT(p, ...)                                                                               \
  do {                                                                                                       \
    smoe_arena_measure(&(p)->arena, "test");                                                                 \
    for (int pass_ = 0; pass_ < 2; pass_++) {                                                                \
      smoe_params_layout(&(p)->params, &(p)->arena, true);                                                   \
      __VA_ARGS__;                                                                                           \
      if (pass_ == 0) fixture_try(smoe_arena_reserve(&(p)->arena), "memory");                                \
    }                                                                                                        \
    fixture_randomise(&(p)->params, SEED);                                                                   \
    fill_gradients(&(p)->params, START);                                                                     \
  } while (0)

static smoe_layer_memory memory_of(problem *p) {
  return (smoe_layer_memory){.fixed = &p->arena,
                             .tape = &p->arena,
                             .scratch = &p->arena,
                             .shape = p->batch.shape,
                             .tape_lanes = LANES,
                             .training = true};
}

static size_t gradient_count(const smoe_slab *slab) {
  return slab->grad ? (size_t)slab->lanes.count * (size_t)slab->n_local * slab->count : 0;
}

static void fill_gradients(smoe_params *params, smoe_real value) {
  for (int s = 0; s < params->n_slabs; s++)
    for (size_t i = 0; i < gradient_count(&params->slab[s]); i++) params->slab[s].grad[i] = value;
}

/** Take START away again; what stands between parameters must still be START. */
static void take_start(smoe_params *params) {
  for (int s = 0; s < params->n_slabs; s++)
    for (size_t i = 0; i < gradient_count(&params->slab[s]); i++) params->slab[s].grad[i] -= START;
  const smoe_slab *slab = &params->slab[SMOE_SLAB_REPLICATED];
  char *used = smoe_alloc(slab->count);
  for (int i = 0; i < params->n_params; i++)
    if (smoe_params_slab(params, i) == slab)
      memset(used + params->param[i].offset, 1, params->param[i].count);
  for (size_t i = 0; i < gradient_count(slab); i++)
    CHECK(used[i % slab->count] || slab->grad[i] == 0, "written between parameters");
  smoe_free(used);
}

static void check(problem *p, const char *name, double (*value)(void *, uint64_t *), smoe_real *x,
                  size_t n_x) {
  piecewise gradient = {.name = name, .value = value, .context = p};
  /* A single MoE layer has no state before it. */
  gradient.idle = "moe/router/cell/hidden/weight";
  take_start(&p->params);
  piecewise_check(&gradient, "x", x, p->dx, n_x);
  piecewise_check_params(&gradient, &p->params);
  piecewise_end(&gradient);
}

/* ---- sublayers ---- */

static smoe_layer_call call_of(problem *p, int lane) {
  const size_t first = (size_t)lane * LANE, side = (size_t)lane * SEQUENCES * SIDE * C;
  return (smoe_layer_call){.pass = &p->context,
                           .lane = lane,
                           .n = LANE,
                           .n_sequences = SEQUENCES,
                           .context = CONTEXT,
                           .token = p->token + first,
                           .length = p->length,
                           .x = p->x + first * C,
                           .y = p->y + first * C,
                           .dx = p->dx + first * C,
                           .side_context = SIDE,
                           .side_length = p->side_length,
                           .side = p->side + side,
                           .dside = p->dside + side,
                           .first_index = 1000 + first};
}

static double layer_value(void *context, uint64_t *piece) {
  problem *p = context;
  const smoe_layer_spec *spec = &p->layer.spec;
  for (int lane = 0; lane < LANES; lane++) {
    const smoe_layer_call call = call_of(p, lane);
    spec->ops->forward(&p->layer, &call);
  }
  if (spec->ops == &smoe_layer_ffn && spec->activation == SMOE_RELU)
    piece_add_active(piece, smoe_layer_ffn_tape(&p->layer)->h.wide, N * spec->inner);
  return difference_fold(p->weight, p->y, N * C);
}

static void backward_all(problem *p) {
  memcpy(p->dx, p->weight, N * C * sizeof *p->dx);
  for (int lane = 0; lane < LANES; lane++) {
    const smoe_layer_call call = call_of(p, lane);
    p->layer.spec.ops->backward(&p->layer, &call);
  }
}

/* The tape alone, made again over a spoiled one, gives the same gradient. */
static void check_recompute(problem *p, const char *name) {
  smoe_real *dx = smoe_alloc(N * C * sizeof *dx);
  memcpy(dx, p->dx, N * C * sizeof *dx);
  for (size_t i = 0; i < N * C; i++) p->y[i] = 77;
  for (int lane = 0; lane < LANES; lane++) {
    const smoe_layer_call call = call_of(p, lane);
    p->layer.spec.ops->recompute(&p->layer, &call);
  }
  for (size_t i = 0; i < N * C; i++) CHECK(p->y[i] == 77, "%s: recompute writes the output", name);
  backward_all(p);
  CHECK(memcmp(dx, p->dx, N * C * sizeof *dx) == 0, "%s: another gradient after recompute", name);
  smoe_free(dx);
}

static const int32_t SHORT[SEQUENCES] = {3, 5}, SHORT_SIDE[SEQUENCES] = {4, 1};

static void test_layer(const char *name, const smoe_layer_spec *spec) {
  problem p;
  smoe_config *config = fixture_config("stable", NULL);
  problem_begin(&p, 0);
  p.context = (smoe_pass){.seed = 3, .update = 5, .training = true, .n_targets = 7};
  const bool padded = strstr(name, "padded");
  p.length = padded ? SHORT : NULL;
  p.side_length = padded ? SHORT_SIDE : NULL;
  /* Padding gets no gradient from later layers. */
  for (size_t t = 0; t < N && padded; t++)
    if ((int32_t)(t % CONTEXT) >= SHORT[t / CONTEXT % SEQUENCES])
      memset(p.weight + t * C, 0, C * sizeof *p.weight);
  smoe_layer_create(&p.layer, spec, config, &p.params);
  p.layer.number = 4;
  spec->ops->declare(&p.layer);
  const smoe_layer_memory memory = memory_of(&p);
  PROBLEM_LAYOUT(&p, spec->ops->layout(&p.layer, &memory));
  layer_value(&p, &(uint64_t){0});
  backward_all(&p);
  if (spec->cross) {
    piecewise gradient = {.name = name, .value = layer_value, .context = &p};
    piecewise_check(&gradient, "side", p.side, p.dside, LANES * SEQUENCES * SIDE * C);
    piecewise_end(&gradient);
  }
  check(&p, name, layer_value, p.x, N * C);
  check_recompute(&p, name);
  problem_end(&p);
  smoe_config_destroy(config);
}

static void test_attention(const smoe_layer_spec *base) {
  smoe_layer_spec spec = *base;
  spec.ops = &smoe_layer_attention;
  spec.heads = spec.kv_heads = 2;
  spec.causal = true;
  test_layer("attention", &spec);
  spec.causal = false;
  test_layer("attention, both ways, padded", &spec);
  spec.cross = true;
  test_layer("attention to the source", &spec);
  test_layer("attention to the source, padded", &spec);
  spec.dropout = 0.25;
  test_layer("attention to the source with dropout", &spec);
  spec = *base;
  spec.ops = &smoe_layer_attention;
  spec.causal = true;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.norm = SMOE_NORM_RMS;
  spec.bias = false;
  spec.rope = 100;
  test_layer("attention, grouped heads, rotary positions", &spec);
}

static void test_sublayers(void) {
  const smoe_layer_spec base = {.name = "layer",
                                .block = 0,
                                .width = C,
                                .norm = SMOE_NORM_LAYER,
                                .inner = 12,
                                .bias = true,
                                .context = CONTEXT,
                                .moe = -1};
  test_attention(&base);
  smoe_layer_spec spec = base;
  spec.ops = &smoe_layer_ffn;
  test_layer("feed-forward layer", &spec);
  spec.dropout = 0.4;
  test_layer("feed-forward layer with dropout", &spec);
  spec.dropout = 0;
  spec.bias = false;
  test_layer("feed-forward layer without biases", &spec);
  spec.norm = SMOE_NORM_NONE;
  test_layer("feed-forward layer without norm", &spec);
  spec.norm = SMOE_NORM_RMS;
  spec.activation = SMOE_SWIGLU;
  test_layer("feed-forward layer, SwiGLU", &spec);
  spec.bias = true;
  test_layer("feed-forward layer, SwiGLU with biases", &spec);
  spec.activation = SMOE_GELU;
  test_layer("feed-forward layer, GELU", &spec);
  spec = base;
  spec.ops = &smoe_layer_norm;
  test_layer("norm", &spec);
  spec.norm = SMOE_NORM_RMS;
  test_layer("RMS norm", &spec);
}

/* ---- experts ---- */

static double experts_value(void *context, uint64_t *piece) {
  problem *p = context;
  smoe_experts *experts = &p->moe->experts;
  smoe_experts_forward(experts, p->y, p->expert_offset);
  for (int s = 0; s < experts->n_sublayers; s++)
    piece_add_active(piece, experts->tape[s].h.wide,
                     (size_t)p->expert_offset[EXPERTS] * experts->shape.inner);
  return difference_fold(p->weight, p->y, (size_t)p->expert_offset[EXPERTS] * C);
}

static void test_experts(const char *name, const char *const *overrides, const int64_t *offset) {
  problem p;
  smoe_config *config = fixture_config("stable", overrides);
  problem_begin(&p, EXPERTS);
  memcpy(p.expert_offset, offset, sizeof p.expert_offset);
  fixture_moe(&p.layer, config, &p.params, 0, FIXTURE_VOCABULARY);
  p.moe = p.layer.state;
  smoe_experts_declare(&p.moe->experts, &p.layer);
  PROBLEM_LAYOUT(&p, smoe_experts_layout(&p.moe->experts, &p.arena, &p.arena, N, true));
  memcpy(p.moe->experts.z[0], p.x, N * C * sizeof *p.x);
  experts_value(&p, &(uint64_t){0});
  for (size_t i = 0; i < N * C; i++) p.dx[i] = 99; /* dx is written, not added to */
  smoe_experts_backward(&p.moe->experts, p.dx, p.weight, offset);
  check(&p, name, experts_value, p.moe->experts.z[0], (size_t)offset[EXPERTS] * C);
  for (size_t i = (size_t)offset[EXPERTS] * C; i < N * C; i++) CHECK(p.dx[i] == 99, "dx beyond the rows");
  problem_end(&p);
  smoe_config_destroy(config);
}

/** An expert without rows keeps its gradients, and the others do not feel it. */
static void test_expert_without_rows(void) {
  problem p;
  const int64_t offset[] = {0, 4, 4, 9};
  smoe_config *config = fixture_config("stable", NULL);
  problem_begin(&p, EXPERTS);
  fixture_moe(&p.layer, config, &p.params, 0, FIXTURE_VOCABULARY);
  p.moe = p.layer.state;
  smoe_experts_declare(&p.moe->experts, &p.layer);
  PROBLEM_LAYOUT(&p, smoe_experts_layout(&p.moe->experts, &p.arena, &p.arena, N, true));
  memcpy(p.moe->experts.z[0], p.x, N * C * sizeof *p.x);
  smoe_experts_forward(&p.moe->experts, p.y, offset);
  smoe_experts_backward(&p.moe->experts, p.dx, p.weight, offset);
  const smoe_slab *slab = smoe_params_experts(&p.params, p.moe->experts.number);
  size_t changed[EXPERTS] = {0};
  for (size_t i = 0; i < EXPERTS * slab->count; i++) changed[i / slab->count] += slab->grad[i] != START;
  CHECK(changed[0] > 0 && changed[1] == 0 && changed[2] > 0, "gradients changed: %zu, %zu, %zu", changed[0],
        changed[1], changed[2]);
  problem_end(&p);
  smoe_config_destroy(config);
}

/* ---- MoE layer ---- */

static double moe_value(void *context, uint64_t *piece) {
  problem *p = context;
  smoe_moe_layer *moe = p->moe;
  fixture_sums sums[LANES] = {{{0}}};
  const size_t stride = sizeof *sums / sizeof(double);
  p->context.batch = &p->batch;
  smoe_layer_moe.plan_all(&p->layer, &p->context);
  smoe_layer_moe.forward_all(&p->layer, &p->context, p->y, p->x, (double *)sums, stride);
  piece_add_choices(piece, moe->expert, N * (size_t)moe->router.n_slots);
  piece_add_choices(piece, moe->learned, N);
  for (int s = 0; s < moe->experts.n_sublayers; s++)
    if (moe->experts.shape.activation == SMOE_RELU)
      piece_add_active(piece, moe->experts.tape[s].h.wide, moe->exchange.n_recv * moe->experts.shape.inner);
  double terms = 0;
  for (int lane = 0; lane < LANES; lane++) terms += fixture_terms(&sums[lane].sums, &moe->router.terms);
  return difference_fold(p->weight, p->y, N * C) + terms / (double)p->context.n_targets;
}

/** ops: NULL for the method of the configuration. */
static void test_moe_layer(const char *name, const char *method, const smoe_router_ops *ops, int stage,
                           const char *const *overrides, bool drops) {
  problem p;
  smoe_config *config = fixture_config(method, overrides);
  problem_begin(&p, EXPERTS);
  p.context = (smoe_pass){.seed = 3, .update = 5, .stage = stage, .training = true, .n_targets = 7};
  fixture_moe(&p.layer, config, &p.params, 0, FIXTURE_VOCABULARY);
  p.moe = p.layer.state;
  if (strstr(name, "in place")) { /* of a feed-forward layer: a norm before it, shared experts, SwiGLU */
    p.layer.spec.norm = SMOE_NORM_RMS;
    p.layer.spec.expert_norm = SMOE_NORM_NONE;
    p.layer.spec.activation = SMOE_SWIGLU;
    p.layer.spec.bias = false;
    p.layer.spec.sublayers = 1;
    p.layer.spec.shared = 2;
  }
  if (ops) {
    *p.moe = (smoe_moe_layer){.params = &p.params,
                              .width = C,
                              .out = C,
                              .gamma = -1,
                              .beta = -1,
                              .router = {.ops = ops,
                                         .config = config,
                                         .params = &p.params,
                                         .n_layers = 1,
                                         .n_lanes = LANES,
                                         .n_nodes = 1,
                                         .n_experts = EXPERTS,
                                         .n_slots = ops->slots(config),
                                         .width = C}};
    ops->declare(&p.moe->router, &p.params);
    smoe_experts_declare(&p.moe->experts, &p.layer);
  } else {
    smoe_layer_moe.declare(&p.layer);
  }
  const smoe_layer_memory memory = memory_of(&p);
  PROBLEM_LAYOUT(&p, smoe_layer_moe.layout(&p.layer, &memory));
  fixture_prepare(&p.moe->router, &p.params);
  if (stage == 2) p.moe->router.ops->freeze(&p.moe->router, &p.params);
  moe_value(&p, &(uint64_t){0});
  CHECK((p.moe->n_dropped > 0) == drops, "%s: %lld slots dropped", name, (long long)p.moe->n_dropped);
  memcpy(p.dx, p.weight, N * C * sizeof *p.dx);
  smoe_layer_moe.backward_all(&p.layer, &p.context, p.dx, p.x);
  check(&p, name, moe_value, p.x, N * C);
  problem_end(&p);
  smoe_config_destroy(config);
}

/* ---- a router with two slots: the two best experts, each with a sigmoid gate ---- */

static int slots_two(const smoe_config *config) {
  return 2;
}

static void declare_two(smoe_router *router, smoe_params *params) {
  router->index[0] =
      smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){EXPERTS, C, 0},
                          (smoe_init){SMOE_INIT_CONSTANT, 0, false}, true, "moe0/router/centroid");
}

static size_t reals_two(const smoe_router *router, size_t n) {
  return 0;
}

static smoe_real score_two(const smoe_router *router, const smoe_route_call *call, size_t t, int e) {
  return smoe_dot(smoe_params_shared(router->params, router->index[0]) + e * C, call->x + t * C, C);
}

static void choose_two(const smoe_router *router, const smoe_route_call *call) {
  for (size_t t = 0; t < call->n_tokens; t++) {
    int worst = 0;
    for (int e = 1; e < EXPERTS; e++)
      if (score_two(router, call, t, e) < score_two(router, call, t, worst)) worst = e;
    for (int k = 0; k < 2; k++) {
      const int e = k + (k >= worst);
      const bool used = call->token[t] >= 0 && (k == 0 || t % 3 > 0); /* some tokens use one slot only */
      call->expert[2 * t + (size_t)k] = used ? e : -1;
    }
  }
}

static void gate_two(const smoe_router *router, const smoe_route_call *call) {
  for (size_t i = 0; i < 2 * call->n_tokens; i++) {
    const int e = smoe_slot_expert(call->expert[i]);
    call->gate[i] = e < 0 ? 0 : smoe_sigmoid(score_two(router, call, i / 2, e));
  }
}

static void backward_two(const smoe_router *router, const smoe_route_call *call,
                         const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const smoe_real *centroid = smoe_params_shared(router->params, router->index[0]);
  smoe_real *dcentroid = smoe_params_lane_grad(router->params, router->index[0], call->lane);
  for (size_t i = 0; i < 2 * call->n_tokens; i++) {
    const int e = call->expert[i];
    CHECK(e >= 0 || dgate[i] == 0, "an unused or dropped slot has the gradient %g", (double)dgate[i]);
    if (e < 0) continue;
    const smoe_real ds = call->gate[i] * (1 - call->gate[i]) * dgate[i];
    for (size_t c = 0; c < C; c++) {
      dcentroid[(size_t)e * C + c] += ds * call->x[i / 2 * C + c];
      dx[i / 2 * C + c] += ds * centroid[(size_t)e * C + c];
    }
  }
}

static const smoe_router_ops two_slots = {.name = "two",
                                          .slots = slots_two,
                                          .declare = declare_two,
                                          .tape_reals = reals_two,
                                          .scratch_reals = reals_two,
                                          .choose = choose_two,
                                          .gate = gate_two,
                                          .backward = backward_two};

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  test_sublayers();
  test_experts("experts, one sublayer", LIST("moe.sublayers=1"), (int64_t[]){0, 4, 5, 13});
  test_experts("experts, two sublayers", NULL, (int64_t[]){0, 7, 12, N});
  test_experts("experts, three sublayers", LIST("moe.sublayers=3", "moe.inner=5"), (int64_t[]){0, 3, 6, 10});
  test_expert_without_rows();
  char **methods = fixture_methods();
  for (size_t i = 0; methods[i]; i++)
    for (int stage = 1; stage <= (fixture_method(methods[i])->two_stages ? 2 : 1); stage++) {
      /* Its experts must divide the width, which 3 do not divide here; test_router and test_model have it. */
      if (strncmp(methods[i], "local", 5) == 0) continue;
      /* Estimates another gradient by design, but in its plain version; test_sparsemixer has the others. */
      if (strncmp(methods[i], "sparsemixer", 11) == 0 && !strstr(methods[i], "version=plain")) continue;
      char *name = smoe_sprintf("MoE layer, %s, stage %d", methods[i], stage);
      test_moe_layer(name, methods[i], NULL, stage, NULL, false);
      smoe_free(name);
    }
  fixture_methods_free(methods);
  test_moe_layer("MoE layer in place of a feed-forward layer", "topk", NULL, 1, NULL, false);
  test_moe_layer("MoE layer in place of a feed-forward layer, capacity, overlap", "topk", NULL, 1,
                 LIST("moe.capacity_factor=0.7", "comm.overlap=2"), true);
  test_moe_layer("MoE layer, two slots", "stable", &two_slots, 1, NULL, false);
  test_moe_layer("MoE layer, two slots, capacity", "stable", &two_slots, 1, LIST("moe.capacity_factor=0.7"),
                 true);
  smoe_group_end(&group);
  return test_verdict("grad/layers");
}
