#include "stablemoe/moe_layer.h"

#include <string.h>

#include "stablemoe/kernel.h"
#include "stablemoe/phase.h"

void smoe_moe_layer_declare(smoe_moe_layer *moe, const smoe_config *config, smoe_params *params, int layer,
                            int vocabulary) {
  *moe = (smoe_moe_layer){.layer = layer, .params = params};
  smoe_router_declare(&moe->router, config, params, layer, vocabulary);
  smoe_experts_declare(&moe->experts, smoe_config_settings(config), params, layer);
}

static smoe_exchange_options exchange_options(const smoe_settings *settings) {
  return (smoe_exchange_options){.kind = (smoe_exchange_kind)settings->comm.exchange,
                                 .alltoallv = (smoe_alltoallv)settings->comm.alltoallv,
                                 .overlap = (int)settings->comm.overlap,
                                 .slice_bytes = settings->comm.slice_mib * 1048576};
}

static void give_time(const void *exchange) {
  smoe_exchange_progress(exchange);
}

void smoe_moe_layer_layout(smoe_moe_layer *moe, const smoe_config *config, const smoe_token_shape *tokens,
                           smoe_arena *fixed, smoe_arena *tape, smoe_arena *scratch, bool training) {
  const smoe_settings *settings = smoe_config_settings(config);
  const smoe_router *router = &moe->router;
  const size_t n = tokens->n_tokens, k = (size_t)router->n_slots, c = router->width;
  moe->tokens = *tokens;
  const smoe_exchange_shape shape = {.n_experts = router->n_experts,
                                     .n_slots = router->n_slots,
                                     .width = c,
                                     .n_tokens_max = n,
                                     .n_global_max = tokens->n_global,
                                     .capacity_factor = settings->moe.capacity_factor,
                                     .n_replica_max = tokens->n_replica,
                                     .options = exchange_options(settings)};
  smoe_exchange_declare(&moe->exchange, &moe->params->topology, &shape, fixed);
  moe->load = smoe_arena_take(fixed, (size_t)router->n_experts * sizeof *moe->load);
  const size_t table = router->ops->table_ints ? router->ops->table_ints(router) : 0;
  moe->router.table = table ? smoe_arena_ints(fixed, table) : NULL;

  moe->expert = smoe_arena_ints(tape, n * k);
  moe->gate = smoe_arena_reals(tape, n * k);
  moe->slot = smoe_arena_reals(tape, n * k * c);
  moe->lane_tape = router->ops->tape_reals(router, tokens->lane_tokens);
  moe->router_tape = smoe_arena_reals(tape, (size_t)tokens->n_lanes * moe->lane_tape);
  moe->learned = smoe_arena_ints(tape, n);
  moe->distilled = smoe_arena_ints(tape, n);

  const size_t rows = smoe_exchange_rows_max(&moe->exchange);
  moe->packing = smoe_arena_reals(scratch, smoe_exchange_scratch_max(&moe->exchange) * c);
  moe->rows = smoe_arena_reals(scratch, rows * c);
  moe->router_scratch = smoe_arena_reals(scratch, router->ops->scratch_reals(router, tokens->lane_tokens));
  if (training) {
    moe->drows = smoe_arena_reals(scratch, rows * c);
    moe->dgate = smoe_arena_reals(scratch, n * k);
  }
  smoe_experts_layout(&moe->experts, tape, scratch, rows, training);
  if (!smoe_exchange_overlap(&moe->exchange)) return;
  moe->experts.pause = give_time;
  moe->experts.pause_of = &moe->exchange;
}

double smoe_moe_layer_row_bytes(const smoe_moe_layer *moe, bool training, bool with_scratch) {
  const double c = (double)moe->experts.width, f = (double)moe->experts.inner;
  const int sublayers = training ? moe->experts.n_sublayers : 1;
  const double tape = sublayers * (c + f + 2);
  /* packing, rows, normed; drows, doutput, dinner */
  const double packing = smoe_exchange_scratch_share(&moe->exchange);
  const double scratch = (training ? packing + 4 : packing + 2) * c + (training ? f : 0);
  return (tape + (with_scratch ? scratch : 0)) * (double)sizeof(smoe_real);
}

void smoe_moe_layer_release(smoe_moe_layer *moe) {
  smoe_exchange_release(&moe->exchange);
}

void smoe_moe_layer_begin_update(smoe_moe_layer *moe) {
  memset(moe->load, 0, (size_t)moe->router.n_experts * sizeof *moe->load);
  moe->n_assigned = 0;
  moe->n_dropped = 0;
}

static smoe_route_call call_of_lane(const smoe_moe_layer *moe, int lane, const smoe_real *x,
                                    const int32_t *token, const smoe_route_context *context) {
  const smoe_token_shape *tokens = &moe->tokens;
  const size_t first = (size_t)lane * tokens->lane_tokens, k = (size_t)moe->router.n_slots;
  /* Where both routers are alive their agreement is worth a look; in plain stage 2 training
   * the learned scores would cost a product that nobody reads. */
  const bool compare = context->stage == 1 || !context->training;
  return (smoe_route_call){
      .context = context,
      .layer = moe->layer,
      .lane = lane,
      .n_tokens = tokens->lane_tokens,
      .n_sequences = tokens->lane_sequences,
      .n_context = tokens->context,
      .first_token = tokens->first_token + (int64_t)first,
      .token = token + first,
      .x = x ? x + first * moe->router.width : NULL,
      .expert = moe->expert + first * k,
      .gate = moe->gate + first * k,
      .tape = moe->router_tape + (size_t)lane * moe->lane_tape,
      .scratch = moe->router_scratch,
      .learned = compare ? moe->learned + first : NULL,
      .distilled = compare ? moe->distilled + first : NULL,
  };
}

static void forget_choices(smoe_moe_layer *moe) {
  memset(moe->learned, 0xff, moe->tokens.n_tokens * sizeof *moe->learned);
  memset(moe->distilled, 0xff, moe->tokens.n_tokens * sizeof *moe->distilled);
}

static smoe_route_loads loads_of(const smoe_moe_layer *moe) {
  return (smoe_route_loads){.load = moe->exchange.load, .n_assigned = moe->exchange.n_assigned};
}

static void add_loads(smoe_moe_layer *moe) {
  for (int e = 0; e < moe->router.n_experts; e++) moe->load[e] += moe->exchange.load[e];
  moe->n_assigned += moe->exchange.n_assigned;
  moe->n_dropped += moe->exchange.n_dropped;
}

/* Let the router choose, or, where it has chosen ahead, do the rest. */
static void route(smoe_moe_layer *moe, const smoe_real *x, const int32_t *token,
                  const smoe_route_context *context) {
  for (int lane = 0; lane < moe->tokens.n_lanes; lane++) {
    smoe_route_call call = call_of_lane(moe, lane, x, token, context);
    call.chosen = moe->planned;
    moe->router.ops->route(&moe->router, &call);
  }
}

static void plan(smoe_moe_layer *moe) {
  smoe_phase(SMOE_PHASE_PLAN);
  smoe_exchange_plan(&moe->exchange, moe->expert, moe->tokens.n_tokens);
  add_loads(moe);
}

bool smoe_moe_layer_ahead(const smoe_moe_layer *moe, const smoe_route_context *context) {
  const smoe_router *router = &moe->router;
  return router->ops->ahead && router->ops->ahead(router, context);
}

static void choose(smoe_moe_layer *moe, const int32_t *token, const smoe_route_context *context) {
  for (int lane = 0; lane < moe->tokens.n_lanes; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, NULL, token, context);
    moe->router.ops->choose(&moe->router, &call);
  }
}

void smoe_moe_layer_count(smoe_moe_layer *moe, int64_t *load, const int32_t *token,
                          const smoe_route_context *context) {
  choose(moe, token, context);
  for (size_t i = 0; i < moe->tokens.n_tokens * (size_t)moe->router.n_slots; i++)
    if (moe->expert[i] >= 0) load[moe->expert[i]]++;
}

void smoe_moe_layer_plan(smoe_moe_layer *moe, const int32_t *token, const smoe_route_context *context) {
  moe->planned = smoe_moe_layer_ahead(moe, context);
  if (!moe->planned) return;
  smoe_phase(SMOE_PHASE_ROUTE);
  forget_choices(moe);
  choose(moe, token, context);
  plan(moe);
}

/* Tokens to the experts, through them, and back: slot = delta. */
static void experts_forward(smoe_moe_layer *moe, const smoe_real *x) {
  smoe_phase(SMOE_PHASE_PACK);
  smoe_dispatch(&moe->exchange, moe->experts.z[0], x, NULL, moe->packing);
  smoe_phase(SMOE_PHASE_EXPERTS);
  smoe_experts_forward(&moe->experts, moe->rows, moe->exchange.expert_offset);
  smoe_phase(SMOE_PHASE_PACK);
  smoe_combine_rows(&moe->exchange, moe->slot, moe->rows, moe->packing);
}

/* The same; a group of experts computes while rows of the others travel. */
static void groups_forward(smoe_moe_layer *moe, const smoe_real *x) {
  const smoe_exchange *ex = &moe->exchange;
  smoe_phase(SMOE_PHASE_PACK);
  smoe_exchange_begin(ex, x, NULL, moe->packing);
  for (int g = 0; g < ex->n_groups; g++) {
    int first, end;
    smoe_exchange_group(ex, g, &first, &end);
    smoe_exchange_take(ex, moe->experts.z[0], g);
    smoe_phase(SMOE_PHASE_EXPERTS);
    smoe_experts_forward_some(&moe->experts, moe->rows, ex->expert_offset, first, end);
    smoe_phase(SMOE_PHASE_PACK);
    smoe_exchange_return(ex, moe->rows, g);
  }
  smoe_exchange_end_rows(ex, moe->slot);
}

/* ddelta = gate dy travels to the experts, their dx travels back and joins dy. */
static void experts_backward(smoe_moe_layer *moe, smoe_real *dx) {
  smoe_phase(SMOE_PHASE_PACK);
  smoe_dispatch(&moe->exchange, moe->drows, dx, moe->gate, moe->packing);
  smoe_phase(SMOE_PHASE_EXPERTS);
  smoe_experts_backward(&moe->experts, moe->rows, moe->drows, moe->exchange.expert_offset);
  smoe_phase(SMOE_PHASE_PACK);
  smoe_combine_add(&moe->exchange, dx, moe->rows, moe->packing);
}

/* The same; weights' gradients are computed when the rows have left. */
static void groups_backward(smoe_moe_layer *moe, smoe_real *dx) {
  const smoe_exchange *ex = &moe->exchange;
  smoe_phase(SMOE_PHASE_PACK);
  smoe_exchange_begin(ex, dx, moe->gate, moe->packing);
  for (int g = 0; g < ex->n_groups; g++) {
    int first, end;
    smoe_exchange_group(ex, g, &first, &end);
    smoe_exchange_take(ex, moe->drows, g);
    smoe_phase(SMOE_PHASE_EXPERTS);
    smoe_experts_backward_rows(&moe->experts, moe->rows, moe->drows, ex->expert_offset, first, end);
    smoe_phase(SMOE_PHASE_PACK);
    smoe_exchange_return(ex, moe->rows, g);
    smoe_phase(SMOE_PHASE_EXPERTS);
    smoe_experts_backward_weights(&moe->experts, moe->drows, ex->expert_offset, first, end);
    smoe_phase(SMOE_PHASE_PACK);
  }
  smoe_exchange_end_add(ex, dx);
}

void smoe_moe_layer_forward(smoe_moe_layer *moe, smoe_real *y, double *sums, size_t stride,
                            const smoe_real *x, const int32_t *token, const smoe_route_context *context) {
  const smoe_router *router = &moe->router;
  const size_t n = moe->tokens.n_tokens, k = (size_t)router->n_slots, c = router->width;
  smoe_phase(SMOE_PHASE_ROUTE);
  if (!moe->planned) forget_choices(moe);
  route(moe, x, token, context);
  if (!moe->planned) plan(moe);
  moe->planned = false;
  if (smoe_exchange_overlap(&moe->exchange))
    groups_forward(moe, x);
  else
    experts_forward(moe, x);

  smoe_phase(SMOE_PHASE_COMBINE);
  if (n) memcpy(y, x, n * c * sizeof *y); /* a rank without tokens may have no arrays */
  if (k == 1) {
    smoe_add_rows_scaled(y, moe->gate, 1, moe->slot, n, c);
  } else {
    for (size_t t = 0; t < n; t++)
      for (size_t i = t * k; i < (t + 1) * k; i++)
        smoe_add_rows_scaled(y + t * c, moe->gate + i, 1, moe->slot + i * c, 1, c);
  }

  smoe_phase(SMOE_PHASE_ROUTE);
  const smoe_route_loads loads = loads_of(moe);
  for (int lane = 0; lane < moe->tokens.n_lanes && router->ops->losses; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, token, context);
    router->ops->losses(router, &call, &loads, (smoe_route_sums *)(sums + (size_t)lane * stride));
  }
}

void smoe_moe_layer_backward(smoe_moe_layer *moe, smoe_real *dx, const smoe_real *x, const int32_t *token,
                             const smoe_route_context *context) {
  const smoe_router *router = &moe->router;
  const size_t n = moe->tokens.n_tokens, k = (size_t)router->n_slots, c = router->width;
  smoe_phase(SMOE_PHASE_COMBINE);
  /* y = x + sum_k gate_k delta_k: dgate = <dy, delta>; slots unused or dropped have delta = 0. */
  for (size_t i = 0; i < n * k; i++) moe->dgate[i] = smoe_dot(dx + i / k * c, moe->slot + i * c, c);

  if (smoe_exchange_overlap(&moe->exchange))
    groups_backward(moe, dx);
  else
    experts_backward(moe, dx);

  smoe_phase(SMOE_PHASE_ROUTE);
  const smoe_route_loads loads = loads_of(moe);
  for (int lane = 0; lane < moe->tokens.n_lanes; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, token, context);
    const size_t first = (size_t)lane * moe->tokens.lane_tokens;
    router->ops->backward(router, &call, &loads, dx + first * c, moe->dgate + first * k);
  }
}
