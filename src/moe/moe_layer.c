#include "stablemoe/moe_layer.h"

#include <stdio.h>
#include <string.h>

#include "moe_combine.h"
#include "moe_experts.h"
#include "stablemoe/kernel.h"
#include "stablemoe/phase.h"

/* ---- setting up ---- */

static void declare_norm(smoe_moe_layer *moe) {
  const int64_t vector[] = {(int64_t)moe->width, 0};
  moe->gamma = moe->beta = -1;
  if (moe->norm == SMOE_NORM_NONE) return;
  moe->gamma =
      smoe_params_declare(moe->params, SMOE_REPLICATED, vector, (smoe_init){SMOE_INIT_CONSTANT, 1, false},
                          false, "moe%d/norm/gamma", moe->layer);
  if (moe->norm != SMOE_NORM_LAYER) return;
  moe->beta =
      smoe_params_declare(moe->params, SMOE_REPLICATED, vector, (smoe_init){SMOE_INIT_CONSTANT, 0, false},
                          false, "moe%d/norm/beta", moe->layer);
}

/* The experts that are always on are one feed-forward layer, wide as all of them. */
static void declare_shared(smoe_moe_layer *moe, const smoe_layer *layer) {
  if (layer->spec.shared == 0) return;
  smoe_layer_spec spec = layer->spec;
  spec.ops = &smoe_layer_ffn;
  spec.norm = SMOE_NORM_NONE;
  spec.inner = layer->spec.inner * (size_t)layer->spec.shared;
  snprintf(spec.name, sizeof spec.name, "moe%d/shared", moe->layer);
  smoe_layer_create(&moe->shared, &spec, layer->config, layer->params);
  spec.ops->declare(&moe->shared);
}

static void declare_moe(smoe_layer *layer) {
  smoe_moe_layer *moe = layer->state;
  *moe = (smoe_moe_layer){.layer = layer->spec.moe,
                          .stream = layer->spec.stream,
                          .norm = layer->spec.norm,
                          .width = layer->spec.width,
                          .skip_below = (smoe_real)smoe_config_settings(layer->config)->moe.skip_below,
                          .out = smoe_layer_out(&layer->spec),
                          .params = layer->params};
  declare_norm(moe);
  smoe_router_declare(&moe->router, layer);
  smoe_experts_declare(&moe->experts, layer);
  declare_shared(moe, layer);
}

static smoe_exchange_options exchange_options(const smoe_settings *settings) {
  return (smoe_exchange_options){.kind = (smoe_exchange_kind)settings->comm.exchange,
                                 .alltoallv = (smoe_alltoallv)settings->comm.alltoallv,
                                 .overlap = (int)settings->comm.overlap,
                                 .slice_bytes = settings->comm.slice_mib * 1048576};
}

static void progress(const void *exchange) {
  smoe_exchange_progress(exchange);
}

static void layout_exchange(smoe_moe_layer *moe, const smoe_settings *settings, smoe_precision precision,
                            const smoe_token_shape *tokens, smoe_arena *fixed) {
  const smoe_router *router = &moe->router;
  const smoe_exchange_shape shape = {.n_experts = router->n_experts,
                                     .n_slots = router->n_slots,
                                     .width = moe->width,
                                     .precision = precision,
                                     .n_tokens_max = tokens->n_tokens,
                                     .n_global_max = tokens->n_global,
                                     .capacity_factor = settings->moe.capacity_factor,
                                     .n_replica_max = tokens->n_replica,
                                     .options = exchange_options(settings),
                                     .expert_at =
                                         smoe_params_experts(moe->params, moe->experts.number)->expert_at};
  smoe_exchange_declare(&moe->exchange, &moe->params->topology, &shape, fixed);
  if (moe->out != moe->width) smoe_exchange_declare_with(&moe->narrow, &moe->exchange, moe->out, fixed);
  moe->load = smoe_arena_take(fixed, (size_t)router->n_experts * sizeof *moe->load);
  const size_t table = router->ops->table_ints ? router->ops->table_ints(router) : 0;
  moe->router.table = table ? smoe_arena_ints(fixed, table) : NULL;
}

/* Whether a backward pass asks for the experts' results again. */
static bool learns_from_results(const smoe_router *router) {
  return router->omega >= 0 || !router->ops->gates_learn || router->ops->gates_learn(router);
}

static void layout_moe(smoe_layer *layer, const smoe_layer_memory *memory) {
  smoe_moe_layer *moe = layer->state;
  const smoe_router *router = &moe->router;
  const smoe_token_shape *tokens = &memory->shape[moe->stream];
  const size_t n = tokens->n_tokens, k = (size_t)router->n_slots, c = moe->width, o = moe->out;
  const size_t wide = c > o ? c : o;
  smoe_arena *tape = memory->tape, *scratch = memory->scratch;
  layout_exchange(moe, smoe_config_settings(layer->config), layer->precision, tokens, memory->fixed);
  if (moe->norm != SMOE_NORM_NONE) {
    moe->x = smoe_arena_reals(tape, n * c);
    moe->mean = smoe_arena_reals(tape, n);
    moe->rstd = smoe_arena_reals(tape, n);
  }
  moe->expert = smoe_arena_ints(tape, n * k);
  moe->gate = smoe_arena_reals(tape, n * k);
  moe->keeps = memory->training && learns_from_results(router);
  if (moe->keeps) moe->kept = smoe_arena_operand(tape, layer->precision, n * k * o);
  moe->lane_tape = router->ops->tape_reals(router, tokens->lane_tokens);
  moe->router_tape = smoe_arena_reals(tape, (size_t)tokens->n_lanes * moe->lane_tape);
  moe->lane_ints = router->ops->tape_ints ? router->ops->tape_ints(router, tokens->lane_tokens) : 0;
  moe->router_ints = moe->lane_ints ? smoe_arena_ints(tape, (size_t)tokens->n_lanes * moe->lane_ints) : NULL;
  moe->state_reals = router->ops->state_reals ? router->ops->state_reals(router) : 0;
  if (moe->state_reals > 0) {
    moe->state = smoe_arena_reals(tape, n * moe->state_reals);
    if (memory->training) moe->dstate = smoe_arena_reals(tape, n * moe->state_reals);
  }
  moe->learned = smoe_arena_ints(tape, n);
  moe->distilled = smoe_arena_ints(tape, n);

  const size_t rows = smoe_exchange_rows_max(&moe->exchange);
  const size_t row_bytes =
      moe->narrow.row_bytes > moe->exchange.row_bytes ? moe->narrow.row_bytes : moe->exchange.row_bytes;
  moe->packing = smoe_arena_take(scratch, smoe_exchange_scratch_max(&moe->exchange) * row_bytes);
  moe->rows = smoe_arena_reals(scratch, rows * wide);
  if (router->omega >= 0) moe->wide = smoe_arena_reals(scratch, o);
  moe->router_scratch = smoe_arena_reals(scratch, router->ops->scratch_reals(router, tokens->lane_tokens));
  if (memory->training) {
    moe->drows = smoe_arena_reals(scratch, rows * o);
    if (moe->keeps) moe->dgate = smoe_arena_reals(scratch, n * k);
    if (moe->norm != SMOE_NORM_NONE) moe->dnormed = smoe_arena_reals(scratch, n * c);
    if (router->omega >= 0) moe->dscaled = smoe_arena_reals(scratch, n * c);
    if (router->ops->estimates_experts && router->ops->estimates_experts(router))
      moe->spread = smoe_arena_reals(scratch, n * k);
  }
  smoe_experts_layout(&moe->experts, tape, scratch, rows, memory->training);
  if (moe->shared.state) {
    smoe_layer_memory own = *memory;
    own.tape_lanes = memory->training ? tokens->n_lanes : 1;
    moe->shared.spec.ops->layout(&moe->shared, &own);
  }
  if (!smoe_moe_overlaps(moe)) return;
  moe->experts.shape.pause = progress;
  moe->experts.shape.pause_of = &moe->exchange;
}

static void release_moe(smoe_layer *layer) {
  smoe_moe_layer *moe = layer->state;
  smoe_exchange_release(&moe->narrow);
  smoe_exchange_release(&moe->exchange);
  if (moe->shared.state) smoe_layer_destroy(&moe->shared);
}

void smoe_moe_layer_begin_update(smoe_moe_layer *moe) {
  memset(moe->load, 0, (size_t)moe->router.n_experts * sizeof *moe->load);
  moe->n_assigned = 0;
  moe->n_dropped = 0;
  moe->n_skipped = 0;
}

/* ---- routing ---- */

static const smoe_token_shape *shape_of(const smoe_moe_layer *moe, const smoe_pass *pass) {
  return &pass->batch->shape[moe->stream];
}

static smoe_route_call call_of_lane(const smoe_moe_layer *moe, int lane, const smoe_real *x,
                                    const smoe_pass *pass) {
  const smoe_token_shape *tokens = shape_of(moe, pass);
  const size_t first = (size_t)lane * tokens->lane_tokens, k = (size_t)moe->router.n_slots;
  /* Where both routers are alive their agreement is worth a look; in plain stage 2 training
   * the learned scores would cost a product that nobody reads. */
  const bool compare = pass->stage == 1 || !pass->training;
  const size_t state = first * moe->state_reals;
  const bool hands_on = moe->state_reals > 0;
  const smoe_moe_layer *previous = hands_on ? moe->previous : NULL;
  return (smoe_route_call){
      .context = pass,
      .layer = moe->layer,
      .lane = lane,
      .global_lane = moe->params->lanes.first + lane,
      .copies = pass->batch->copies,
      .n_tokens = tokens->lane_tokens,
      .n_sequences = tokens->lane_sequences,
      .n_context = tokens->context,
      .before = pass->batch->before[moe->stream],
      .first_token = tokens->first_token + (int64_t)first,
      .token = pass->batch->token[moe->stream] + first,
      .x = x ? x + first * moe->width : NULL,
      .expert = moe->expert + first * k,
      .gate = moe->gate + first * k,
      .tape = moe->router_tape + (size_t)lane * moe->lane_tape,
      .integers = moe->router_ints ? moe->router_ints + (size_t)lane * moe->lane_ints : NULL,
      .scratch = moe->router_scratch,
      .learned = compare ? moe->learned + first : NULL,
      .distilled = compare ? moe->distilled + first : NULL,
      .state_in = previous ? previous->state + state : NULL,
      .state_out = hands_on ? moe->state + state : NULL,
      .dstate_out = hands_on && moe->next && moe->dstate ? moe->dstate + state : NULL,
      .dstate_in = previous && previous->dstate ? previous->dstate + state : NULL,
  };
}

static void forget_choices(smoe_moe_layer *moe, const smoe_pass *pass) {
  const size_t n = shape_of(moe, pass)->n_tokens;
  memset(moe->learned, 0xff, n * sizeof *moe->learned);
  memset(moe->distilled, 0xff, n * sizeof *moe->distilled);
}

static smoe_route_loads loads_of(const smoe_moe_layer *moe) {
  return (smoe_route_loads){.load = moe->exchange.load, .n_assigned = moe->exchange.n_assigned};
}

static void add_loads(smoe_moe_layer *moe) {
  for (int e = 0; e < moe->router.n_experts; e++) moe->load[e] += moe->exchange.load[e];
  moe->n_assigned += moe->exchange.n_assigned;
  moe->n_dropped += moe->exchange.n_dropped;
}

static void plan(smoe_moe_layer *moe, size_t n) {
  smoe_phase(SMOE_PHASE_PLAN);
  smoe_exchange_plan(&moe->exchange, moe->expert, n);
  if (moe->out != moe->width) smoe_exchange_follow(&moe->narrow, &moe->exchange);
  add_loads(moe);
}

bool smoe_moe_layer_from_ids(const smoe_moe_layer *moe, const smoe_pass *pass) {
  const smoe_router *router = &moe->router;
  return router->ops->from_ids && router->ops->from_ids(router, pass);
}

/* x NULL: before any layer has run. */
static void choose(smoe_moe_layer *moe, const smoe_real *x, const smoe_pass *pass) {
  forget_choices(moe, pass);
  for (int lane = 0; lane < shape_of(moe, pass)->n_lanes; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, pass);
    moe->router.ops->choose(&moe->router, &call);
  }
}

void smoe_moe_layer_count(smoe_moe_layer *moe, int64_t *load, const smoe_pass *pass) {
  choose(moe, NULL, pass);
  for (size_t i = 0; i < shape_of(moe, pass)->n_tokens * (size_t)moe->router.n_slots; i++)
    if (moe->expert[i] >= 0) load[moe->expert[i]]++;
}

/* Whether the exchange can be planned before any layer has run: skipping needs the gates. */
static bool plans_early(const smoe_moe_layer *moe, const smoe_pass *pass) {
  return !(moe->skip_below > 0) && smoe_moe_layer_from_ids(moe, pass);
}

static void plan_moe(smoe_layer *layer, const smoe_pass *pass) {
  smoe_moe_layer *moe = layer->state;
  if (!plans_early(moe, pass)) return;
  smoe_phase(SMOE_PHASE_ROUTE);
  choose(moe, NULL, pass);
  plan(moe, shape_of(moe, pass)->n_tokens);
}

/* The choice and the plan of the exchange, unless plan_moe has made them, and the gates. */
static void route(smoe_moe_layer *moe, const smoe_real *x, const smoe_pass *pass) {
  const smoe_token_shape *tokens = shape_of(moe, pass);
  const bool planned = plans_early(moe, pass);
  smoe_phase(SMOE_PHASE_ROUTE);
  if (!planned) choose(moe, x, pass);
  for (int lane = 0; lane < tokens->n_lanes; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, pass);
    moe->router.ops->gate(&moe->router, &call);
  }
  if (planned) return;
  smoe_moe_skip_slots(moe, tokens->n_tokens);
  plan(moe, tokens->n_tokens);
}

/* ---- the layer ---- */

static const smoe_real *normed_input(smoe_moe_layer *moe, const smoe_real *x, size_t n) {
  if (moe->norm == SMOE_NORM_NONE) return x;
  const smoe_params *params = moe->params;
  smoe_phase(SMOE_PHASE_NORM);
  smoe_norm_rows(moe->norm, (smoe_operand){.wide = moe->x}, moe->mean, moe->rstd, x,
                 smoe_params_shared(params, moe->gamma),
                 moe->beta < 0 ? NULL : smoe_params_shared(params, moe->beta), n, moe->width);
  return moe->x;
}

/* Shared experts of one lane, on norm(x); the feed-forward layer adds its input, which is taken away by not
 * being there: it works from moe->x, and its result is added to y by the caller. */
static smoe_layer_call shared_call(const smoe_moe_layer *moe, const smoe_pass *pass, int lane,
                                   const smoe_real *x) {
  const smoe_token_shape *tokens = shape_of(moe, pass);
  return (smoe_layer_call){.pass = pass,
                           .lane = lane,
                           .n = tokens->lane_tokens,
                           .n_sequences = tokens->lane_sequences,
                           .context = tokens->context,
                           .x = x + (size_t)lane * tokens->lane_tokens * moe->width};
}

static void forward_moe(smoe_layer *layer, const smoe_pass *pass, smoe_real *y, const smoe_real *in,
                        double *sums, size_t stride) {
  smoe_moe_layer *moe = layer->state;
  const smoe_router *router = &moe->router;
  const smoe_token_shape *tokens = shape_of(moe, pass);
  const size_t n = tokens->n_tokens, c = moe->width;
  const smoe_real *x = normed_input(moe, in, n);
  route(moe, x, pass);
  const smoe_operand results = smoe_moe_experts_forward(moe, x);

  smoe_phase(SMOE_PHASE_COMBINE);
  /* A rank without tokens may have no arrays. */
  if (n && layer->spec.out) memset(y, 0, n * moe->out * sizeof *y);
  if (n && !layer->spec.out) memcpy(y, in, n * c * sizeof *y);
  smoe_moe_add_slots(moe, y, results, n);
  smoe_phase(SMOE_PHASE_EXPERTS);
  for (int lane = 0; lane < tokens->n_lanes && moe->shared.state; lane++) {
    const smoe_layer_call call = shared_call(moe, pass, lane, x);
    smoe_layer_ffn_add(&moe->shared, &call, y + (size_t)lane * tokens->lane_tokens * c);
  }

  smoe_phase(SMOE_PHASE_ROUTE);
  const smoe_route_loads loads = loads_of(moe);
  for (int lane = 0; lane < tokens->n_lanes; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, pass);
    smoe_router_losses(router, &call, &loads, (smoe_route_sums *)(sums + (size_t)lane * stride));
  }
}

static void backward_norm(smoe_moe_layer *moe, const smoe_pass *pass, smoe_real *dx, const smoe_real *in) {
  const smoe_token_shape *tokens = shape_of(moe, pass);
  const smoe_params *params = moe->params;
  const size_t n = tokens->lane_tokens, c = moe->width;
  smoe_phase(SMOE_PHASE_NORM);
  for (int lane = 0; lane < tokens->n_lanes; lane++) {
    const size_t first = (size_t)lane * n;
    smoe_norm_rows_backward(moe->norm, dx + first * c, smoe_params_lane_grad(params, moe->gamma, lane),
                            moe->beta < 0 ? NULL : smoe_params_lane_grad(params, moe->beta, lane),
                            moe->dnormed + first * c, in + first * c, smoe_params_shared(params, moe->gamma),
                            moe->mean + first, moe->rstd + first, n, c);
  }
}

static void backward_moe(smoe_layer *layer, const smoe_pass *pass, smoe_real *dy, const smoe_real *in) {
  smoe_moe_layer *moe = layer->state;
  const smoe_router *router = &moe->router;
  const smoe_token_shape *tokens = shape_of(moe, pass);
  const size_t n = tokens->n_tokens, k = (size_t)router->n_slots, c = moe->width;
  const bool norm = moe->norm != SMOE_NORM_NONE;
  const smoe_real *x = norm ? moe->x : in;
  /* Gradient of norm(x); without a norm it joins dy at once. */
  smoe_real *dx = norm ? moe->dnormed : dy;
  smoe_phase(SMOE_PHASE_COMBINE);
  /* y = x + sum_k gate_k delta_k: dgate = <dy, delta>. */
  const smoe_real *ddelta = smoe_moe_scale_backward(moe, tokens, dy);
  if (moe->keeps) smoe_moe_gate_gradients(moe, ddelta, n);
  for (int lane = 0; lane < tokens->n_lanes && moe->spread; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, pass);
    smoe_moe_spread(moe, &call, moe->spread + (size_t)lane * tokens->lane_tokens * k);
  }
  if (norm && n) memset(dx, 0, n * c * sizeof *dx);

  smoe_phase(SMOE_PHASE_EXPERTS);
  for (int lane = 0; lane < tokens->n_lanes && moe->shared.state; lane++) {
    smoe_layer_call call = shared_call(moe, pass, lane, x);
    const size_t first = (size_t)lane * tokens->lane_tokens * c;
    call.dx = dx + first;
    smoe_layer_ffn_add_backward(&moe->shared, &call, dy + first);
  }
  smoe_moe_experts_backward(moe, dx, ddelta);

  smoe_phase(SMOE_PHASE_ROUTE);
  const smoe_route_loads loads = loads_of(moe);
  for (int lane = 0; lane < tokens->n_lanes; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, pass);
    const size_t first = (size_t)lane * tokens->lane_tokens;
    router->ops->backward(router, &call, &loads, layer->spec.data ? NULL : dx + first * c,
                          moe->keeps ? moe->dgate + first * k : NULL);
  }
  if (norm) backward_norm(moe, pass, dy, in);
}

/* ---- decoding ---- */

static smoe_router_scope scope_of(const smoe_router *router) {
  return router->ops->scope ? router->ops->scope(router) : SMOE_SCOPE_ALL;
}

/* Where the choice looks at the sequence before a token: hidden states [S, T, C] that entered the router so far. */
static size_t state_reals_moe(const smoe_layer *layer, size_t n_sequences, size_t length_max,
                              size_t side_max) {
  const smoe_moe_layer *moe = layer->state;
  const size_t k = (size_t)moe->router.n_slots;
  return scope_of(&moe->router) == SMOE_SCOPE_PREFIX ? n_sequences * length_max * (moe->width + 2 * k) : 0;
}

/* The whole sequences of a lane so far in the shape of a whole pass; padding beyond. */
static void route_history(smoe_moe_layer *moe, const smoe_extend_call *call, int lane,
                          const smoe_route_call *new) {
  const size_t k = (size_t)moe->router.n_slots, c = moe->width, t = call->length_max, n = call->n;
  smoe_real *history = call->state + (size_t)lane * call->lane_state,
            *gate = history + call->n_sequences * t * c;
  int32_t *expert = (int32_t *)(gate + call->n_sequences * t * k);
  for (size_t s = 0; s < call->n_sequences; s++) {
    smoe_real *own = history + s * t * c;
    memcpy(own + call->first * c, new->x + s *n *c, n * c * sizeof *own);
    memset(own + (call->first + n) * c, 0, (t - call->first - n) * c * sizeof *own);
  }
  smoe_route_call whole = *new;
  whole.n_tokens = call->n_sequences * t;
  whole.n_context = t;
  whole.token = call->token + (size_t)lane * call->n_sequences * t;
  whole.x = history;
  whole.expert = expert;
  whole.gate = gate;
  smoe_router_route(&moe->router, &whole);
  for (size_t s = 0; s < call->n_sequences; s++) {
    const size_t from = (s * t + call->first) * k, to = s * n * k;
    memcpy(new->expert + to, expert + from, n * k * sizeof *expert);
    memcpy(new->gate + to, gate + from, n * k * sizeof *gate);
  }
}

/* Choices and gates of the new rows alone. What a router hands on over depth is on the tape for the rows that
 * it was called with: the new ones, or all. */
static void route_new(smoe_moe_layer *moe, const smoe_extend_call *call, const smoe_real *x) {
  const bool prefix = scope_of(&moe->router) == SMOE_SCOPE_PREFIX;
  for (int lane = 0; lane < shape_of(moe, call->pass)->n_lanes; lane++) {
    smoe_route_call new = call_of_lane(moe, lane, x, call->pass);
    new.learned = new.distilled = NULL; /* not compared here */
    if (prefix)
      route_history(moe, call, lane, &new);
    else
      smoe_router_route(&moe->router, &new);
  }
}

/* Collective: the rows travel to their experts, whatever rank has them. */
static void extend_moe(smoe_layer *layer, const smoe_extend_call *call) {
  smoe_moe_layer *moe = layer->state;
  const size_t n = shape_of(moe, call->pass)->n_tokens, c = moe->width;
  const smoe_real *x = normed_input(moe, call->x, n);
  if (n) route_new(moe, call, x);
  smoe_moe_skip_slots(moe, n);
  smoe_exchange_plan(&moe->exchange, moe->expert, n);
  moe->experts.shape.decoding = true;
  const smoe_operand results = smoe_moe_experts_forward(moe, x);
  moe->experts.shape.decoding = false;
  if (!n) return;
  memcpy(call->y, call->x, n * c * sizeof *call->y);
  smoe_moe_add_slots(moe, call->y, results, n);
  const size_t lane_rows = shape_of(moe, call->pass)->lane_tokens;
  for (size_t first = 0; first < n && moe->shared.state; first += lane_rows) {
    const smoe_layer_call shared = {.pass = call->pass,
                                    .n = lane_rows,
                                    .n_sequences = call->n_sequences,
                                    .context = call->n,
                                    .x = x + first * c};
    smoe_layer_ffn_add(&moe->shared, &shared, call->y + first * c);
  }
}

static void reorder_moe(const smoe_layer *layer, smoe_real *state, const int32_t *from, size_t n_sequences,
                        size_t length, size_t length_max, size_t side_max) {
  const smoe_moe_layer *moe = layer->state;
  if (scope_of(&moe->router) == SMOE_SCOPE_PREFIX)
    smoe_reorder_rows(state, from, n_sequences, length * moe->width, length_max * moe->width);
}

const smoe_layer_ops smoe_layer_moe = {
    .kind = "moe",
    .bytes = sizeof(smoe_moe_layer),
    .declare = declare_moe,
    .layout = layout_moe,
    .plan_all = plan_moe,
    .forward_all = forward_moe,
    .backward_all = backward_moe,
    .state_reals = state_reals_moe,
    .extend = extend_moe,
    .reorder = reorder_moe,
    .work = smoe_moe_work,
    .untouched = smoe_moe_untouched,
    .release = release_moe,
};
