#include "top_choice.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"

const char *const smoe_top_scores[] = {"softmax", "sigmoid", NULL};

smoe_status smoe_top_check(const smoe_config *config, const smoe_top_options *options, const char *method) {
  const smoe_settings *settings = smoe_config_settings(config);
  SMOE_CHECK(options->k <= settings->moe.experts, SMOE_ERR_CONFIG,
             "router.%s.k %lld is more than moe.experts %lld: a token cannot visit an expert twice", method,
             (long long)options->k, (long long)settings->moe.experts);
  return SMOE_OK;
}

/* In turn means by place in the batch, which generation does not have. */
smoe_router_scope smoe_top_scope(const smoe_top_options *options) {
  return options->forced_balance ? SMOE_SCOPE_ALL : SMOE_SCOPE_TOKEN;
}

void smoe_top_declare(smoe_router *router, const smoe_top_options *options, smoe_params *params) {
  if (options->bias_rate > 0) {
    router->index[SMOE_TOP_BIAS] = smoe_params_declare(
        params, SMOE_REPLICATED, (int64_t[]){router->n_experts, 0}, (smoe_init){SMOE_INIT_CONSTANT, 0, false},
        false, "moe%d/router/bias", router->layer);
    params->param[router->index[SMOE_TOP_BIAS]].frozen = true;
  }
  if (options->z_loss_weight > 0) smoe_terms_add(&router->terms, "z_loss");
}

/* ---- memory ---- */

/* Tape: s [N, E]: probabilities or sigmoids; with a z loss the scores [N, E] and their log sums [N]. */
typedef struct top_tape {
  smoe_real *s;
  smoe_real *score, *log_sum; /* NULL: no z loss */
} top_tape;

static bool has_z_loss(const smoe_top_options *options) {
  return options->z_loss_weight > 0;
}

static bool is_sigmoid(const smoe_top_options *options) {
  return options->scores == SMOE_TOP_SIGMOID;
}

size_t smoe_top_tape_reals(const smoe_router *router, const smoe_top_options *options, size_t n) {
  const size_t scores = n * (size_t)router->n_experts;
  return scores + (has_z_loss(options) ? scores + n : 0);
}

static top_tape tape_of(const smoe_top *top) {
  const size_t scores = top->call->n_tokens * (size_t)top->router->n_experts;
  smoe_real *more = has_z_loss(top->options) ? top->tape + scores : NULL;
  return (top_tape){top->tape, more, more ? more + scores : NULL};
}

/* Scratch: gradient of the scores, or scores with bias [N, E]; shares of the load [E]; of sigmoids their shares of
 * a token's sum [N, E].
 */
typedef struct top_scratch {
  smoe_real *dz, *f, *share;
} top_scratch;

size_t smoe_top_scratch_reals(const smoe_router *router, const smoe_top_options *options, size_t n) {
  return (n + 1) * (size_t)router->n_experts + (is_sigmoid(options) ? n * (size_t)router->n_experts : 0);
}

static top_scratch scratch_of(const smoe_top *top) {
  const size_t e = (size_t)top->router->n_experts;
  smoe_real *f = top->scratch + top->call->n_tokens * e;
  return (top_scratch){top->scratch, f, f + e};
}

/* ---- choice and gates ---- */

/* What stands before s + b: 0, and minus infinity where a score is not finite. In scratch. */
static void begin_biased(const smoe_top *top, const smoe_real *z) {
  for (size_t i = 0; i < top->call->n_tokens * (size_t)top->router->n_experts; i++)
    top->scratch[i] = isfinite(z[i]) ? 0 : -(smoe_real)INFINITY;
}

/* The k largest s + b. */
static void choose_biased(const smoe_top *top, const smoe_real *s) {
  const smoe_router *router = top->router;
  const smoe_route_call *call = top->call;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const smoe_real *bias = smoe_params_shared(router->params, router->index[SMOE_TOP_BIAS]);
  for (size_t i = 0; i < n * e; i++) top->scratch[i] += s[i] + bias[i % e];
  smoe_scores_top(call->expert, k, top->scratch, call->token, n, e, k);
}

void smoe_top_choose(const smoe_top *top) {
  const smoe_top_options *options = top->options;
  const smoe_router *router = top->router;
  const smoe_route_call *call = top->call;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const top_tape tape = tape_of(top);
  if (has_z_loss(options)) {
    if (n) memcpy(tape.score, tape.s, n * e * sizeof *tape.s);
    smoe_scores_log_sum(tape.log_sum, tape.score, call->token, n, e);
  }
  if (options->bias_rate > 0)
    begin_biased(top, tape.s);
  else
    smoe_scores_top(call->expert, k, tape.s, call->token, n, e, k);
  if (is_sigmoid(options))
    smoe_scores_sigmoid(tape.s, call->token, n, e);
  else
    smoe_scores_softmax(tape.s, call->token, n, e);
  if (options->bias_rate > 0) choose_biased(top, tape.s);
  if (options->forced_balance) smoe_scores_in_turn(router, call);
}

void smoe_top_gates(smoe_real *gate, const smoe_real *s, const int32_t *expert, size_t k, bool normalise) {
  smoe_real sum = 0;
  for (size_t j = 0; j < k; j++) {
    const int32_t a = smoe_slot_expert(expert[j]);
    gate[j] = a < 0 ? 0 : s[a];
    sum += gate[j];
  }
  for (size_t j = 0; j < k && normalise && sum > 0; j++) gate[j] /= sum;
}

void smoe_top_gate(const smoe_top *top) {
  const smoe_route_call *call = top->call;
  const size_t e = (size_t)top->router->n_experts, k = (size_t)top->router->n_slots;
  for (size_t t = 0; t < call->n_tokens; t++)
    smoe_top_gates(call->gate + t * k, top->tape + t * e, call->expert + t * k, k, top->options->normalise);
}

/* ---- losses and gradients ---- */

/* What the balance loss takes for a token's probabilities: they add up to 1. */
static const smoe_real *probabilities(const smoe_top *top) {
  if (!is_sigmoid(top->options)) return top->tape;
  smoe_real *share = scratch_of(top).share;
  smoe_scores_shares(share, top->tape, top->call->n_tokens, (size_t)top->router->n_experts);
  return share;
}

void smoe_top_losses(const smoe_top *top, const smoe_route_loads *loads, smoe_route_sums *sums) {
  const smoe_top_options *options = top->options;
  if (!top->call->context->training) return;
  *smoe_route_term(top->router, sums, "balance") +=
      options->balance_weight * smoe_balance_term(top->router, top->call, loads,
                                                  (smoe_balance_over)options->balance_over,
                                                  probabilities(top), scratch_of(top).f);
  if (has_z_loss(options))
    *smoe_route_term(top->router, sums, "z_loss") +=
        options->z_loss_weight * smoe_z_loss_sum(tape_of(top).log_sum, top->call->n_tokens);
}

/* Gates that add up to 1: of a softmax dz_j += g_j (dg_j - <g, dg>), of sigmoids that times 1 - s_j. */
void smoe_top_gates_backward(smoe_real *dz, const smoe_real *s, const smoe_real *gate, const smoe_real *dgate,
                             const int32_t *expert, size_t k, bool sigmoid) {
  smoe_real mean = 0;
  for (size_t j = 0; j < k; j++) mean += gate[j] * dgate[j];
  for (size_t j = 0; j < k; j++) {
    const int32_t a = smoe_slot_expert(expert[j]);
    if (a < 0) continue;
    const smoe_real d = gate[j] * (dgate[j] - mean);
    dz[a] += sigmoid ? d * (1 - s[a]) : d;
  }
}

/* dz of the balance loss and of gates that are s itself. */
static void scores_backward(const smoe_top *top, const smoe_route_loads *loads, const smoe_real *dgate) {
  const smoe_top_options *options = top->options;
  const smoe_router *router = top->router;
  const smoe_route_call *call = top->call;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const double weight = call->context->training ? options->balance_weight : 0;
  const top_scratch scratch = scratch_of(top);
  const smoe_real *s = top->tape;
  smoe_real *dz = scratch.dz;
  smoe_balance_slope(dz, router, call, loads, (smoe_balance_over)options->balance_over,
                     (smoe_real)(weight / (double)call->context->n_targets), scratch.f);
  if (is_sigmoid(options)) { /* of the shares s / sum s: times p (dp - <p, dp>) (1 - s) */
    smoe_scores_softmax_backward(dz, probabilities(top), n, e);
    for (size_t i = 0; i < n * e; i++) dz[i] *= 1 - s[i];
  }
  for (size_t i = 0; i < n * k && !options->normalise; i++) {
    const int32_t a = smoe_slot_expert(call->expert[i]);
    if (a < 0) continue;
    const size_t at = i / k * e + (size_t)a;
    dz[at] += is_sigmoid(options) ? s[at] * (1 - s[at]) * dgate[i] : dgate[i]; /* gate = s */
  }
  if (!is_sigmoid(options)) smoe_scores_softmax_backward(dz, s, n, e);
}

smoe_real *smoe_top_backward(const smoe_top *top, const smoe_route_loads *loads, const smoe_real *dgate) {
  const smoe_top_options *options = top->options;
  const smoe_route_call *call = top->call;
  const size_t n = call->n_tokens, e = (size_t)top->router->n_experts, k = (size_t)top->router->n_slots;
  const top_tape tape = tape_of(top);
  smoe_real *dz = top->scratch;
  scores_backward(top, loads, dgate);
  for (size_t t = 0; t < n && options->normalise; t++)
    smoe_top_gates_backward(dz + t * e, tape.s + t * e, call->gate + t * k, dgate + t * k,
                            call->expert + t * k, k, is_sigmoid(options));
  if (has_z_loss(options) && call->context->training)
    smoe_z_loss_backward(dz, tape.score, tape.log_sum,
                         (smoe_real)(options->z_loss_weight / (double)call->context->n_targets), n, e);
  return dz;
}

void smoe_top_after_update(smoe_router *router, const smoe_top_options *options, smoe_params *params,
                           const smoe_route_loads *loads) {
  if (options->bias_rate == 0) return;
  smoe_route_balance_bias(smoe_params_shared(params, router->index[SMOE_TOP_BIAS]), options->bias_rate, loads,
                          router->n_experts);
}
