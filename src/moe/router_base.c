/* BASE layers (Lewis et al. 2021), and BASE with the second stage of StableMoE (Dai et al. 2022, table 5).
 *
 * base:  s_t = E x_t; in training a_t from an auction that gives every expert the same number of
 *   tokens, lane by lane; in evaluation a_t = argmax s_t, because balance would tell of later tokens.
 *   gate = sigmoid(s_{t,a}). No loss of its own.
 * base_stage2:  in stage 1 as base, while a router on token ids alone learns argmax s_t, the greedy
 *   choice; in stage 2 that router is frozen and chooses. Evaluation routes by it in both stages.
 */
#include <string.h>

#include "auction.h"
#include "distill.h"
#include "sigmoid_gate.h"
#include "stablemoe/kernel.h"
#include "stablemoe/router.h"

#define SECTION "router.base_stage2."

typedef struct base_options {
  smoe_distill_options distill;
} base_options;

static const smoe_key keys[] = {SMOE_DISTILL_KEYS(SECTION, base_options, distill)};

static const smoe_keyset keyset_base_stage2 = {keys, sizeof keys / sizeof *keys, sizeof(base_options)};

enum { CENTROID };

static int slots_base(const smoe_config *config) {
  return 1;
}

static smoe_router_scope scope_base(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

static void declare_base(smoe_router *router, smoe_params *params) {
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", router->layer);
}

static size_t tape_reals_base(const smoe_router *router, size_t n) {
  return 0;
}

/* Scores [N, E], then the auction's own. */
static size_t scratch_reals_base(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts + smoe_auction_scratch(n, router->n_experts);
}

static const smoe_real *centroid_of(const smoe_router *router) {
  return smoe_params_shared(router->params, router->index[CENTROID]);
}

/* s = E x, into the call's scratch. */
static smoe_real *scores(const smoe_router *router, const smoe_route_call *call) {
  smoe_linear_forward(call->scratch, call->x, centroid_of(router), NULL, call->n_tokens, router->width,
                      (size_t)router->n_experts);
  return call->scratch;
}

static void choose_balanced(const smoe_router *router, const smoe_route_call *call, const smoe_real *score) {
  smoe_auction(call->expert, score, call->token, call->n_tokens, router->n_experts, SMOE_AUCTION_ROUNDS,
               call->scratch + call->n_tokens * (size_t)router->n_experts);
}

static void choose_base(const smoe_router *router, const smoe_route_call *call) {
  const smoe_real *score = scores(router, call);
  if (call->context->training)
    choose_balanced(router, call, score);
  else
    smoe_route_argmax(call->expert, score, call->token, call->n_tokens, router->n_experts);
}

static void gate_base(const smoe_router *router, const smoe_route_call *call) {
  smoe_sigmoid_gate_forward(call->gate, call->expert, centroid_of(router), NULL, call->x, call->n_tokens,
                            router->width);
}

static void backward_base(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  smoe_sigmoid_gate_backward(dx, smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                             NULL, dgate, call->gate, call->expert, centroid_of(router), call->x,
                             call->n_tokens, router->width);
}

/* ---- with a second stage ---- */

static const smoe_distill_options *distill_of(const smoe_router *router) {
  return &((const base_options *)router->options)->distill;
}

static smoe_status check_base_stage2(const smoe_config *config) {
  const base_options *options = smoe_config_options(config, &keyset_base_stage2);
  return smoe_distill_check(&options->distill, SECTION);
}

static smoe_router_scope scope_base_stage2(const smoe_router *router) {
  return smoe_distill_scope(distill_of(router));
}

static void declare_base_stage2(smoe_router *router, smoe_params *params) {
  declare_base(router, params);
  smoe_distill_declare(router, params, distill_of(router));
}

/* Tape: the distilled router's, and the greedy choice [N]. */
static size_t tape_reals_base_stage2(const smoe_router *router, size_t n) {
  return smoe_distill_tape(router, distill_of(router), n);
}

static size_t tape_ints_base_stage2(const smoe_router *router, size_t n) {
  return n;
}

static size_t scratch_reals_base_stage2(const smoe_router *router, size_t n) {
  const size_t base = scratch_reals_base(router, n);
  const size_t distill = smoe_distill_scratch(router, distill_of(router), n);
  return base > distill ? base : distill;
}

static bool learns(const smoe_route_call *call) {
  return call->context->training && call->context->stage == 1;
}

static size_t table_ints_base_stage2(const smoe_router *router) {
  return smoe_distill_table(router, distill_of(router));
}

static bool from_ids_base_stage2(const smoe_router *router, const smoe_pass *pass) {
  return pass->stage == 2;
}

/* While the router learns, the auction's choice, and the greedy one is distilled; else the distilled one. */
static void choose_base_stage2(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, bytes = n * sizeof *call->expert;
  if (!learns(call)) {
    smoe_distill_choose(router, distill_of(router), call, call->expert, call->tape, call->scratch);
    if (call->distilled) memcpy(call->distilled, call->expert, bytes);
    return;
  }
  const smoe_real *score = scores(router, call);
  smoe_route_argmax(call->integers, score, call->token, n, router->n_experts);
  if (call->learned) memcpy(call->learned, call->integers, bytes);
  choose_balanced(router, call, score);
  smoe_distill_scores(router, distill_of(router), call, call->tape, call->scratch);
  if (call->distilled) smoe_route_argmax(call->distilled, call->tape, call->token, n, router->n_experts);
}

static void gate_base_stage2(const smoe_router *router, const smoe_route_call *call) {
  if (!learns(call) && call->learned)
    smoe_route_argmax(call->learned, scores(router, call), call->token, call->n_tokens, router->n_experts);
  gate_base(router, call);
}

static void losses_base_stage2(const smoe_router *router, const smoe_route_call *call,
                               const smoe_route_loads *loads, smoe_route_sums *sums) {
  if (learns(call)) smoe_distill_loss(router, distill_of(router), call, call->integers, call->tape, sums);
}

static void backward_base_stage2(const smoe_router *router, const smoe_route_call *call,
                                 const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  backward_base(router, call, loads, dx, dgate);
  if (learns(call))
    smoe_distill_backward(router, distill_of(router), call, call->integers, call->tape, call->scratch);
}

static void freeze_base_stage2(smoe_router *router, smoe_params *params) {
  smoe_distill_freeze(router, distill_of(router), params);
}

const smoe_router_ops smoe_router_base = {
    .name = "base",
    .title = "BASE: an auction gives every expert the same number of tokens",
    .scope = scope_base,
    .slots = slots_base,
    .declare = declare_base,
    .tape_reals = tape_reals_base,
    .scratch_reals = scratch_reals_base,
    .choose = choose_base,
    .gate = gate_base,
    .backward = backward_base,
};

const smoe_router_ops smoe_router_base_stage2 = {
    .name = "base_stage2",
    .title = "BASE in stage 1; its greedy choice, distilled and frozen, in stage 2",
    .keyset = &keyset_base_stage2,
    .two_stages = true,
    .check = check_base_stage2,
    .scope = scope_base_stage2,
    .slots = slots_base,
    .declare = declare_base_stage2,
    .table_ints = table_ints_base_stage2,
    .from_ids = from_ids_base_stage2,
    .tape_reals = tape_reals_base_stage2,
    .tape_ints = tape_ints_base_stage2,
    .scratch_reals = scratch_reals_base_stage2,
    .choose = choose_base_stage2,
    .gate = gate_base_stage2,
    .losses = losses_base_stage2,
    .backward = backward_base_stage2,
    .freeze = freeze_base_stage2,
};
