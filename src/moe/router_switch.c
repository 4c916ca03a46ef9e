/* The Switch router (Fedus, Zoph, Shazeer 2021), section 2; equations by the paper's numbers.
 *
 *   p_t = softmax(W x_t) (1), a_t = argmax p_t, y_t = x_t + p_{t,a} (f_a(x_t) - x_t) (2)
 *   balance loss alpha E sum_e f_e P_e (4 to 6), f counted over all ranks before dropping.
 * In training x_t is multiplied by U(1 - jitter, 1 + jitter), each number apart, for the scores alone,
 * as the authors' code does it. doc/methods/switch.md says where this differs from other forms.
 */
#include <math.h>
#include <string.h>

#include "softmax_scores.h"
#include "stablemoe/kernel.h"
#include "stablemoe/random.h"

typedef struct switch_options {
  double balance_weight;
  double jitter;
  int init; /* index into inits */
} switch_options;

enum { ORTHOGONAL, NORMAL };
static const char *const inits[] = {"orthogonal", "normal", NULL};

static const smoe_key keys[] = {
    {"router.switch.balance_weight", SMOE_KEY_REAL, offsetof(switch_options, balance_weight), "0.01", 0, 1e6,
     NULL, "", "Weight of the balance loss (equation 4; 0.01 in the paper)."},
    {"router.switch.jitter", SMOE_KEY_REAL, offsetof(switch_options, jitter), "0.01", 0, 0.999, NULL, "",
     "Noise of the router's input in training: each number is multiplied by one drawn between 1 - jitter "
     "and 1 + jitter; 0: none."},
    {"router.switch.init", SMOE_KEY_CHOICE, offsetof(switch_options, init), "orthogonal", 0, 0, inits, "",
     "Initial router weights: orthogonal rows of length 0.1 as in the StableMoE code, or normal with "
     "variance 0.1 / model.width as in the paper."},
};

static const smoe_keyset keyset_switch = {keys, sizeof keys / sizeof *keys, sizeof(switch_options)};

enum { CENTROID };

static int slots_switch(const smoe_config *config) {
  return 1;
}

static smoe_router_scope scope_switch(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

static void declare_switch(smoe_router *router, smoe_params *params) {
  const switch_options *options = router->options;
  const smoe_init init = options->init == ORTHOGONAL
                             ? (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}
                             : (smoe_init){SMOE_INIT_NORMAL, sqrt(0.1 / (double)router->width), false};
  router->index[CENTROID] =
      smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
                          init, true, "moe%d/router/centroid", router->layer);
}

/* Tape: probabilities [N, E]. */
static size_t tape_reals_switch(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts;
}

/* Scratch: gradient of the scores [N, E], shares of the load [E]; noise [N, C], noisy input [N, C]. */
static size_t scratch_reals_switch(const smoe_router *router, size_t n) {
  const switch_options *options = router->options;
  const size_t e = (size_t)router->n_experts;
  return n * e + e + (options->jitter > 0 ? 2 * n * router->width : 0);
}

static smoe_real *shares_of(const smoe_router *router, const smoe_route_call *call) {
  return call->scratch + call->n_tokens * (size_t)router->n_experts;
}

/* Four numbers of one draw: 16 bits each are plenty for a factor that is nearly 1. */
static void draw_noise(const smoe_router *router, const smoe_route_call *call, smoe_real *noise) {
  const switch_options *options = router->options;
  const size_t c = router->width, draws = (c + 3) / 4;
#pragma omp parallel for
  for (size_t t = 0; t < call->n_tokens; t++) {
    const uint64_t first = smoe_route_index(router, call, t) * draws;
    for (size_t j = 0; j < c; j += 4) {
      uint64_t bits = smoe_random_bits(call->context->seed, SMOE_RANDOM_JITTER,
                                       (uint32_t)call->context->update, first + j / 4);
      for (size_t i = j; i < c && i < j + 4; i++, bits >>= 16) {
        const double u = ((double)(bits & 0xffff) + 0.5) / 65536; /* between 0 and 1, mean 1/2 */
        noise[t * c + i] = (smoe_real)(1 + options->jitter * (2 * u - 1));
      }
    }
  }
}

static bool is_noisy(const smoe_router *router, const smoe_route_call *call) {
  const switch_options *options = router->options;
  return call->context->training && options->jitter > 0;
}

/* What the scores are made of: x, or in training x times noise, which then stands in scratch. */
static const smoe_real *router_input(const smoe_router *router, const smoe_route_call *call) {
  if (!is_noisy(router, call)) return call->x;
  const size_t n = call->n_tokens * router->width;
  smoe_real *noise = shares_of(router, call) + router->n_experts, *noisy = noise + n;
  draw_noise(router, call, noise);
  for (size_t i = 0; i < n; i++) noisy[i] = call->x[i] * noise[i];
  return noisy;
}

static void choose_switch(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  smoe_scores_forward(call->tape, router_input(router, call),
                      smoe_params_shared(router->params, router->index[CENTROID]), n, router->width, e);
  smoe_route_argmax(call->expert, call->tape, call->token, n, router->n_experts);
  smoe_scores_softmax(call->tape, call->token, n, e); /* (1) */
}

static void gate_switch(const smoe_router *router, const smoe_route_call *call) {
  const size_t e = (size_t)router->n_experts;
  for (size_t t = 0; t < call->n_tokens; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    call->gate[t] = a < 0 ? 0 : call->tape[t * e + (size_t)a]; /* (2) */
  }
}

static void losses_switch(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_route_sums *sums) {
  const switch_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  if (!call->context->training) return;
  smoe_real *f = shares_of(router, call);
  smoe_load_shares(f, loads, e); /* (5) */
  *smoe_route_term(router, sums, "balance") +=
      options->balance_weight * smoe_balance_sum(call->tape, f, n, e); /* (4), (6) */
}

static void backward_switch(const smoe_router *router, const smoe_route_call *call,
                            const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const switch_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts;
  const smoe_real *p = call->tape, *centroid = smoe_params_shared(router->params, router->index[CENTROID]);
  smoe_real *dz = call->scratch, *f = shares_of(router, call);
  const double weight = call->context->training ? options->balance_weight : 0;
  smoe_load_shares(f, loads, e);
  smoe_balance_backward(dz, f, (smoe_real)(weight / (double)call->context->n_targets), n, e);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    if (a >= 0) dz[t * e + (size_t)a] += dgate[t]; /* gate = p_a */
  }
  smoe_scores_softmax_backward(dz, p, n, e);

  /* z = W (x noise) */
  const smoe_real *input = router_input(router, call);
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                              NULL, dz, input, n, c, e);
  if (input == call->x) {
    smoe_linear_backward_input(dx, dz, centroid, n, c, e, true);
    return;
  }
  const smoe_real *noise = f + e;
  smoe_real *dnoisy = f + e + n * c; /* over the noisy input, which is done with */
  smoe_linear_backward_input(dnoisy, dz, centroid, n, c, e, false);
  for (size_t i = 0; i < n * c; i++) dx[i] += noise[i] * dnoisy[i];
}

const smoe_router_ops smoe_router_switch = {
    .name = "switch",
    .title = "Switch: the likeliest expert, gate its softmax probability, balance loss",
    .keyset = &keyset_switch,
    .scope = scope_switch,
    .slots = slots_switch,
    .declare = declare_switch,
    .tape_reals = tape_reals_switch,
    .scratch_reals = scratch_reals_switch,
    .choose = choose_switch,
    .gate = gate_switch,
    .losses = losses_switch,
    .backward = backward_switch,
};
