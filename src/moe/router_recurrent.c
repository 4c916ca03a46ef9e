/* RMoE (Qiu et al. 2024, arXiv 2408.06793): a recurrent router over depth.
 *
 *   v_{t,m} = P_m x_{t,m};  h_{t,m} = GRU(v_{t,m}, h_{t,m-1}), h_{t,0} = 0;  z_{t,m} = G_m h_{t,m}
 * and from the scores z on top-k: gates normalised over the k best, balance loss of Switch. P_m and G_m are of MoE
 * layer m, the cell is one for all MoE layers. A token carries its state from MoE layer to MoE layer; nothing goes
 * from token to token. The gradient goes back through all layers' states. doc/methods/recurrent.md has the rest.
 */
#include <math.h>
#include <string.h>

#include "depth_cell.h"
#include "stablemoe/kernel.h"
#include "top_choice.h"

typedef struct recurrent_options {
  int64_t width;
  int cell;       /* smoe_depth_kind */
  int recurrence; /* index into recurrences */
  smoe_top_options top;
} recurrent_options;

enum { FULL, DETACH, NONE };
static const char *const recurrences[] = {"full", "detach", "none", NULL};

#define KEY(member) offsetof(recurrent_options, member)

static const smoe_key keys[] = {
    {"router.recurrent.width", SMOE_KEY_INT, KEY(width), "128", 1, 65536, NULL, "",
     "Width of the router's state, and of the projection in front of it."},
    {"router.recurrent.cell", SMOE_KEY_CHOICE, KEY(cell), "gru", 0, 0, smoe_depth_kinds, "",
     "What makes a token's state at an MoE layer: a GRU or a tanh cell, whose parameters all MoE layers "
     "share, or no recurrence but a tanh layer of its own in each: a router with one hidden layer."},
    {"router.recurrent.recurrence", SMOE_KEY_CHOICE, KEY(recurrence), "full", 0, 0, recurrences, "",
     "State that an MoE layer's router begins with: that of the MoE layer before; the same, but without its "
     "gradient; or zero, with as many parameters."},
    SMOE_TOP_KEYS("recurrent", KEY(top)),
};

static const smoe_keyset keyset_recurrent = {keys, sizeof keys / sizeof *keys, sizeof(recurrent_options)};

enum { PROJECTION, HEAD, INPUT, INPUT_BIAS, HIDDEN, HIDDEN_BIAS };

static smoe_status check_recurrent(const smoe_config *config) {
  const recurrent_options *options = smoe_config_options(config, &keyset_recurrent);
  return smoe_top_check(config, &options->top, "recurrent");
}

static int slots_recurrent(const smoe_config *config) {
  const recurrent_options *options = smoe_config_options(config, &keyset_recurrent);
  return (int)options->top.k;
}

/* The state of a token comes from its own hidden states alone. */
static smoe_router_scope scope_recurrent(const smoe_router *router) {
  const recurrent_options *options = router->options;
  return smoe_top_scope(&options->top);
}

static size_t width_of(const smoe_router *router) {
  return (size_t)((const recurrent_options *)router->options)->width;
}

static smoe_depth_kind kind_of(const smoe_router *router) {
  return (smoe_depth_kind)((const recurrent_options *)router->options)->cell;
}

/* Whether the state goes on to the next MoE layer. */
static bool hands_on(const smoe_router *router) {
  const recurrent_options *options = router->options;
  return kind_of(router) != SMOE_DEPTH_MLP && options->recurrence != NONE;
}

/* ---- parameters ---- */

static smoe_init uniform(size_t fan_in) {
  return (smoe_init){SMOE_INIT_UNIFORM, 1 / sqrt((double)fan_in), false};
}

/* The cell's parameters are declared with the first MoE layer's router, and found by the others'. */
static void declare_cell(smoe_router *router, smoe_params *params) {
  static const char *const names[] = {[INPUT] = "moe/router/cell/input/weight",
                                      [INPUT_BIAS] = "moe/router/cell/input/bias",
                                      [HIDDEN] = "moe/router/cell/hidden/weight",
                                      [HIDDEN_BIAS] = "moe/router/cell/hidden/bias"};
  const int64_t p = (int64_t)width_of(router), wide = p * (int64_t)smoe_depth_parts(kind_of(router));
  for (int i = INPUT; i <= HIDDEN_BIAS && wide > 0; i++) {
    const bool matrix = i == INPUT || i == HIDDEN;
    router->index[i] = smoe_params_find(params, names[i]);
    if (router->index[i] < 0)
      router->index[i] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){wide, matrix ? p : 0, 0},
                                             uniform((size_t)p), matrix, "%s", names[i]);
  }
}

static void declare_recurrent(smoe_router *router, smoe_params *params) {
  const recurrent_options *options = router->options;
  const int64_t p = options->width, c = (int64_t)router->width;
  router->index[PROJECTION] =
      smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){p, c, 0}, uniform(router->width), true,
                          "moe%d/router/projection", router->layer);
  router->index[HEAD] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){router->n_experts, p, 0},
                                            uniform((size_t)p), true, "moe%d/router/head", router->layer);
  declare_cell(router, params);
  smoe_top_declare(router, &options->top, params);
}

static const smoe_real *value_of(const smoe_router *router, int which) {
  return smoe_params_shared(router->params, router->index[which]);
}

static smoe_real *grad_of(const smoe_router *router, const smoe_route_call *call, int which) {
  return smoe_params_lane_grad(router->params, router->index[which], call->lane);
}

static smoe_depth_cell cell_of(const smoe_router *router) {
  smoe_depth_cell cell = {.kind = kind_of(router), .width = width_of(router)};
  if (cell.kind == SMOE_DEPTH_MLP) return cell;
  cell.input = value_of(router, INPUT);
  cell.input_bias = value_of(router, INPUT_BIAS);
  cell.hidden = value_of(router, HIDDEN);
  cell.hidden_bias = value_of(router, HIDDEN_BIAS);
  return cell;
}

static smoe_depth_grad grads_of(const smoe_router *router, const smoe_route_call *call) {
  if (kind_of(router) == SMOE_DEPTH_MLP) return (smoe_depth_grad){NULL};
  return (smoe_depth_grad){grad_of(router, call, INPUT), grad_of(router, call, INPUT_BIAS),
                           grad_of(router, call, HIDDEN), grad_of(router, call, HIDDEN_BIAS)};
}

/* ---- memory ---- */

static size_t state_reals_recurrent(const smoe_router *router) {
  return hands_on(router) ? width_of(router) : 0;
}

/* Tape: that of the choice; v [N, P]; that of the cell; the state [N, P] where it is not handed on. */
typedef struct recurrent_tape {
  smoe_real *top, *v, *cell, *h;
} recurrent_tape;

static size_t tape_reals_recurrent(const smoe_router *router, size_t n) {
  const recurrent_options *options = router->options;
  const size_t p = width_of(router);
  return smoe_top_tape_reals(router, &options->top, n) + n * p +
         smoe_depth_tape_reals(kind_of(router), p, n) + (hands_on(router) ? 0 : n * p);
}

static recurrent_tape tape_of(const smoe_router *router, const smoe_route_call *call) {
  const recurrent_options *options = router->options;
  const size_t n = call->n_tokens, p = width_of(router);
  recurrent_tape tape = {.top = call->tape};
  tape.v = tape.top + smoe_top_tape_reals(router, &options->top, n);
  tape.cell = tape.v + n * p;
  tape.h = hands_on(router) ? call->state_out : tape.cell + smoe_depth_tape_reals(kind_of(router), p, n);
  return tape;
}

/* Scratch: that of the choice; gradients of h and v [N, P]; that of the cell. */
typedef struct recurrent_scratch {
  smoe_real *top, *dh, *dv, *cell;
} recurrent_scratch;

static size_t scratch_reals_recurrent(const smoe_router *router, size_t n) {
  const recurrent_options *options = router->options;
  const size_t p = width_of(router);
  return smoe_top_scratch_reals(router, &options->top, n) + 2 * n * p +
         smoe_depth_scratch_reals(kind_of(router), p, n);
}

static recurrent_scratch scratch_of(const smoe_router *router, const smoe_route_call *call) {
  const recurrent_options *options = router->options;
  const size_t n = call->n_tokens, p = width_of(router);
  recurrent_scratch scratch = {.top = call->scratch};
  scratch.dh = scratch.top + smoe_top_scratch_reals(router, &options->top, n);
  scratch.dv = scratch.dh + n * p;
  scratch.cell = scratch.dv + n * p;
  return scratch;
}

static smoe_top top_of(const smoe_router *router, const smoe_route_call *call) {
  const recurrent_options *options = router->options;
  return (smoe_top){router, &options->top, call, call->tape, call->scratch};
}

/* The state that a layer begins with; NULL: 0. */
static const smoe_real *state_before(const smoe_router *router, const smoe_route_call *call) {
  return hands_on(router) ? call->state_in : NULL;
}

/* ---- routing ---- */

static void choose_recurrent(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, p = width_of(router);
  const recurrent_tape tape = tape_of(router, call);
  const smoe_depth_cell cell = cell_of(router);
  const smoe_top top = top_of(router, call);
  smoe_linear_forward(tape.v, call->x, value_of(router, PROJECTION), NULL, n, router->width, p);
  smoe_depth_forward(&cell, tape.h, tape.v, state_before(router, call), n, tape.cell,
                     scratch_of(router, call).cell);
  smoe_scores_forward(tape.top, tape.h, value_of(router, HEAD), n, p, (size_t)router->n_experts);
  smoe_top_choose(&top);
}

static void gate_recurrent(const smoe_router *router, const smoe_route_call *call) {
  const smoe_top top = top_of(router, call);
  smoe_top_gate(&top);
}

static void losses_recurrent(const smoe_router *router, const smoe_route_call *call,
                             const smoe_route_loads *loads, smoe_route_sums *sums) {
  const smoe_top top = top_of(router, call);
  smoe_top_losses(&top, loads, sums);
}

static void backward_recurrent(const smoe_router *router, const smoe_route_call *call,
                               const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const recurrent_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts, p = width_of(router);
  const recurrent_tape tape = tape_of(router, call);
  const recurrent_scratch scratch = scratch_of(router, call);
  const smoe_depth_cell cell = cell_of(router);
  const smoe_depth_grad grad = grads_of(router, call);
  const smoe_top top = top_of(router, call);
  const smoe_real *dz = smoe_top_backward(&top, loads, dgate);
  smoe_linear_backward_weight(grad_of(router, call, HEAD), NULL, dz, tape.h, n, p, e);
  smoe_linear_backward_input(scratch.dh, dz, value_of(router, HEAD), n, p, e, false);
  for (size_t i = 0; i < n * p && call->dstate_out; i++) scratch.dh[i] += call->dstate_out[i];
  const bool goes_back = options->recurrence == FULL && hands_on(router);
  smoe_depth_backward(&cell, scratch.dv, goes_back ? call->dstate_in : NULL, &grad, scratch.dh, tape.h,
                      tape.v, state_before(router, call), n, tape.cell, scratch.cell);
  if (call->dstate_in && !goes_back && n) memset(call->dstate_in, 0, n * p * sizeof *call->dstate_in);
  smoe_linear_backward_weight(grad_of(router, call, PROJECTION), NULL, scratch.dv, call->x, n, c, p);
  smoe_linear_backward_input(dx, scratch.dv, value_of(router, PROJECTION), n, c, p, true);
}

static void after_update_recurrent(smoe_router *router, smoe_params *params, const smoe_route_loads *loads,
                                   int stage) {
  const recurrent_options *options = router->options;
  smoe_top_after_update(router, &options->top, params, loads);
}

const smoe_router_ops smoe_router_recurrent = {
    .name = "recurrent",
    .title = "RMoE: a GRU over depth, shared by all MoE layers, makes the scores of top-k",
    .keyset = &keyset_recurrent,
    .check = check_recurrent,
    .scope = scope_recurrent,
    .slots = slots_recurrent,
    .declare = declare_recurrent,
    .tape_reals = tape_reals_recurrent,
    .scratch_reals = scratch_reals_recurrent,
    .state_reals = state_reals_recurrent,
    .choose = choose_recurrent,
    .gate = gate_recurrent,
    .losses = losses_recurrent,
    .backward = backward_recurrent,
    .after_update = after_update_recurrent,
};
