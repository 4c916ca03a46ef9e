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
                                     .n_replica_max = tokens->n_replica};
  smoe_exchange_declare(&moe->exchange, &moe->params->topology, &shape, fixed);
  moe->load = smoe_arena_take(fixed, (size_t)router->n_experts * sizeof *moe->load);

  moe->expert = smoe_arena_ints(tape, n * k);
  moe->gate = smoe_arena_reals(tape, n * k);
  moe->slot = smoe_arena_reals(tape, n * k * c);
  moe->lane_tape = router->ops->tape_reals(router, tokens->lane_tokens);
  moe->router_tape = smoe_arena_reals(tape, (size_t)tokens->n_lanes * moe->lane_tape);
  moe->learned = smoe_arena_ints(tape, n);
  moe->distilled = smoe_arena_ints(tape, n);

  const size_t rows = smoe_exchange_rows_max(&moe->exchange);
  moe->packing = smoe_arena_reals(scratch, (n * k + rows) * c);
  moe->rows = smoe_arena_reals(scratch, rows * c);
  moe->router_scratch = smoe_arena_reals(scratch, router->ops->scratch_reals(router, tokens->lane_tokens));
  if (training) {
    moe->drows = smoe_arena_reals(scratch, rows * c);
    moe->dgate = smoe_arena_reals(scratch, n * k);
  }
  smoe_experts_layout(&moe->experts, tape, scratch, rows, training);
}

double smoe_moe_layer_row_bytes(const smoe_moe_layer *moe, bool training, bool with_scratch) {
  const double c = (double)moe->experts.width, f = (double)moe->experts.inner;
  const int sublayers = training ? moe->experts.n_sublayers : 1;
  const double tape = sublayers * (c + f + 2);
  const double scratch = training ? 5 * c + f : 3 * c; /* packing, rows, normed; drows, dnormed, dinner */
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
      .x = x + first * moe->router.width,
      .expert = moe->expert + first * k,
      .gate = moe->gate + first * k,
      .tape = moe->router_tape + (size_t)lane * moe->lane_tape,
      .scratch = moe->router_scratch,
      .learned = compare ? moe->learned + first : NULL,
      .distilled = compare ? moe->distilled + first : NULL,
  };
}

static smoe_route_loads loads_of(const smoe_moe_layer *moe) {
  return (smoe_route_loads){.load = moe->exchange.load, .n_assigned = moe->exchange.n_assigned};
}

static void add_loads(smoe_moe_layer *moe) {
  for (int e = 0; e < moe->router.n_experts; e++) moe->load[e] += moe->exchange.load[e];
  moe->n_assigned += moe->exchange.n_assigned;
  moe->n_dropped += moe->exchange.n_dropped;
}

void smoe_moe_layer_forward(smoe_moe_layer *moe, smoe_real *y, double *sums, size_t stride,
                            const smoe_real *x, const int32_t *token, const smoe_route_context *context) {
  const smoe_router *router = &moe->router;
  const size_t n = moe->tokens.n_tokens, k = (size_t)router->n_slots, c = router->width;
  smoe_phase(SMOE_PHASE_ROUTE);
  memset(moe->learned, 0xff, n * sizeof *moe->learned);
  memset(moe->distilled, 0xff, n * sizeof *moe->distilled);
  for (int lane = 0; lane < moe->tokens.n_lanes; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, token, context);
    router->ops->route(router, &call);
  }

  smoe_phase(SMOE_PHASE_PLAN);
  smoe_exchange_plan(&moe->exchange, moe->expert, n);
  add_loads(moe);
  smoe_phase(SMOE_PHASE_PACK);
  smoe_dispatch(&moe->exchange, moe->experts.z[0], x, NULL, moe->packing);
  smoe_phase(SMOE_PHASE_EXPERTS);
  smoe_experts_forward(&moe->experts, moe->rows, moe->exchange.expert_offset);
  smoe_phase(SMOE_PHASE_PACK);
  smoe_combine_rows(&moe->exchange, moe->slot, moe->rows, moe->packing);

  smoe_phase(SMOE_PHASE_COMBINE);
  memcpy(y, x, n * c * sizeof *y);
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

  /* ddelta = gate dy travels to the experts, their dx travels back and joins dy. */
  smoe_phase(SMOE_PHASE_PACK);
  smoe_dispatch(&moe->exchange, moe->drows, dx, moe->gate, moe->packing);
  smoe_phase(SMOE_PHASE_EXPERTS);
  smoe_experts_backward(&moe->experts, moe->rows, moe->drows, moe->exchange.expert_offset);
  smoe_phase(SMOE_PHASE_PACK);
  smoe_combine_add(&moe->exchange, dx, moe->rows, moe->packing);

  smoe_phase(SMOE_PHASE_ROUTE);
  const smoe_route_loads loads = loads_of(moe);
  for (int lane = 0; lane < moe->tokens.n_lanes; lane++) {
    const smoe_route_call call = call_of_lane(moe, lane, x, token, context);
    const size_t first = (size_t)lane * moe->tokens.lane_tokens;
    router->ops->backward(router, &call, &loads, dx + first * c, moe->dgate + first * k);
  }
}
