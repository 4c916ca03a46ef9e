/* Top-k routing: the k likeliest experts of each token (Shazeer et al. 2017, equations 3 to 5, without their
 * noise), with the balance loss of Switch (Fedus et al. 2021, equation 4) over all k choices.
 *
 *   z_t = W x_t; T_t the k largest scores; g_{t,e} = s_{t,e} / sum over T_t of s_{t,i} for e in T_t
 *   y_t = x_t + sum over T_t of g_{t,e} (f_e(x_t) - x_t),   s_t = softmax(z_t), or sigmoid of each z_{t,e}
 * Without normalisation the gates are s itself. With a bias b (Wang et al. 2024, DeepSeek-V3) T_t are the k
 * largest s_{t,e} + b_e, and after each update b_e grows or falls by a rate where expert e has had less or more
 * than its share. The z loss (Zoph et al. 2022, equation 5) is the squared logarithm of sum_e exp(z_{t,e}).
 * All but the scores is in top_choice.c.
 */
#include "stablemoe/kernel.h"
#include "top_choice.h"

static const smoe_key keys[] = {SMOE_TOP_KEYS("topk", 0)};

static const smoe_keyset keyset_topk = {keys, sizeof keys / sizeof *keys, sizeof(smoe_top_options)};

enum { CENTROID };

static smoe_status check_topk(const smoe_config *config) {
  return smoe_top_check(config, smoe_config_options(config, &keyset_topk), "topk");
}

static int slots_topk(const smoe_config *config) {
  const smoe_top_options *options = smoe_config_options(config, &keyset_topk);
  return (int)options->k;
}

static smoe_router_scope scope_topk(const smoe_router *router) {
  return smoe_top_scope(router->options);
}

static void declare_topk(smoe_router *router, smoe_params *params) {
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", router->layer);
  smoe_top_declare(router, router->options, params);
}

static size_t tape_reals_topk(const smoe_router *router, size_t n) {
  return smoe_top_tape_reals(router, router->options, n);
}

static size_t scratch_reals_topk(const smoe_router *router, size_t n) {
  return smoe_top_scratch_reals(router, router->options, n);
}

static smoe_top top_of(const smoe_router *router, const smoe_route_call *call) {
  return (smoe_top){router, router->options, call, call->tape, call->scratch};
}

static void choose_topk(const smoe_router *router, const smoe_route_call *call) {
  const smoe_top top = top_of(router, call);
  smoe_scores_forward(top.tape, call->x, smoe_params_shared(router->params, router->index[CENTROID]),
                      call->n_tokens, router->width, (size_t)router->n_experts);
  smoe_top_choose(&top);
}

static void gate_topk(const smoe_router *router, const smoe_route_call *call) {
  const smoe_top top = top_of(router, call);
  smoe_top_gate(&top);
}

static void losses_topk(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                        smoe_route_sums *sums) {
  const smoe_top top = top_of(router, call);
  smoe_top_losses(&top, loads, sums);
}

static void backward_topk(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts;
  const smoe_top top = top_of(router, call);
  const smoe_real *dz = smoe_top_backward(&top, loads, dgate);
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                              NULL, dz, call->x, n, c, e);
  smoe_linear_backward_input(dx, dz, smoe_params_shared(router->params, router->index[CENTROID]), n, c, e,
                             true);
}

static void after_update_topk(smoe_router *router, smoe_params *params, const smoe_route_loads *loads,
                              int stage) {
  smoe_top_after_update(router, router->options, params, loads);
}

const smoe_router_ops smoe_router_topk = {
    .name = "topk",
    .title = "Top-k: the k likeliest experts, gates normalised over them, balance loss or bias",
    .keyset = &keyset_topk,
    .check = check_topk,
    .scope = scope_topk,
    .slots = slots_topk,
    .declare = declare_topk,
    .tape_reals = tape_reals_topk,
    .scratch_reals = scratch_reals_topk,
    .choose = choose_topk,
    .gate = gate_topk,
    .losses = losses_topk,
    .backward = backward_topk,
    .after_update = after_update_topk,
};
