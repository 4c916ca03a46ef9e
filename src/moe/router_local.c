/* LocMoE (Li et al. 2024): an expert's score is the mean of its group of the hidden state, and rows are drawn to
 * the experts of their own node.
 *
 *   g_{t,e} = mean of x_{t,j} for e C / E <= j < (e + 1) C / E      (grouped average pooling, no parameters)
 *   p_t = softmax(ReLU(g_t)),  a_t = argmax p_t,  y_t = x_t + p_{t,a} (f_a(x_t) - x_t)
 *   balance loss weight E sum_e f_e P_e; locality loss weight KL(D_c || D_l) for each lane:
 *   D_c the lane's mean of p_t, D_l even over the experts of the lane's node but for a share of the others.
 * There is nothing to learn here: both losses shape the hidden states. Nodes are those of moe.nodes.
 * doc/methods/local.md says what the paper leaves open.
 */
#include <math.h>
#include <string.h>

#include "softmax_scores.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"

typedef struct local_options {
  double balance_weight, locality_weight, remote_share;
  int ties; /* index into ties_by */
  bool relu;
} local_options;

enum { BY_MEAN, BY_NUMBER };
static const char *const ties_by[] = {"mean", "number", NULL};

static const smoe_key keys[] = {
    {"router.local.balance_weight", SMOE_KEY_REAL, offsetof(local_options, balance_weight), "0.01", 0, 1e6,
     NULL, "", "Weight of the balance loss (0.01 in the paper)."},
    {"router.local.locality_weight", SMOE_KEY_REAL, offsetof(local_options, locality_weight), "0.01", 0, 1e6,
     NULL, "", "Weight of the locality loss; the paper has one, but no value."},
    {"router.local.remote_share", SMOE_KEY_REAL, offsetof(local_options, remote_share), "0.1", 0.000001,
     0.999, NULL, "", "Share of the rows that the locality loss leaves to experts of other nodes."},
    {"router.local.relu", SMOE_KEY_BOOL, offsetof(local_options, relu), "true", 0, 0, NULL, "",
     "Scores below 0 count as 0, as in the paper; false: the means themselves are the scores."},
    {"router.local.ties", SMOE_KEY_CHOICE, offsetof(local_options, ties), "mean", 0, 0, ties_by, "",
     "Expert of a token whose means are all 0 or less, which the ReLU makes equal: that of the largest mean, "
     "or number 0, as the largest of equal scores is the first."},
};

static const smoe_keyset keyset_local = {keys, sizeof keys / sizeof *keys, sizeof(local_options)};

static smoe_status check_local(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const int64_t experts = settings->moe.experts, nodes = settings->moe.nodes;
  SMOE_CHECK(
      settings->model.width % experts == 0, SMOE_ERR_CONFIG,
      "router.method local: moe.experts %lld does not divide model.width %lld: every expert scores by an "
      "equal group of the hidden state",
      (long long)experts, (long long)settings->model.width);
  SMOE_CHECK(
      experts < nodes || experts % nodes == 0, SMOE_ERR_CONFIG,
      "router.method local: moe.nodes %lld does not divide moe.experts %lld: every node needs the same "
      "number of experts",
      (long long)nodes, (long long)experts);
  if (experts < nodes)
    smoe_warn("router.method local: moe.experts %lld are fewer than moe.nodes %lld: rows of nodes without an "
              "expert cannot stay, and have no locality loss; the paper found no gain there",
              (long long)experts, (long long)nodes);
  return SMOE_OK;
}

static int slots_local(const smoe_config *config) {
  return 1;
}

static smoe_router_scope scope_local(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

static void declare_local(smoe_router *router, smoe_params *params) {
  smoe_terms_add(&router->terms, "locality");
}

/* Tape: means g [N, E], probabilities p [N, E]. */
static size_t tape_reals_local(const smoe_router *router, size_t n) {
  return 2 * n * (size_t)router->n_experts;
}

static smoe_real *p_of(const smoe_router *router, const smoe_route_call *call) {
  return call->tape + call->n_tokens * (size_t)router->n_experts;
}

/* Scratch: gradient of the scores [N, E], shares of the load [E], slope of the locality loss [E]. */
static size_t scratch_reals_local(const smoe_router *router, size_t n) {
  return (n + 2) * (size_t)router->n_experts;
}

static smoe_real *shares_of(const smoe_router *router, const smoe_route_call *call) {
  return call->scratch + call->n_tokens * (size_t)router->n_experts;
}

static void pool(const smoe_router *router, const smoe_route_call *call, smoe_real *g) {
  const size_t c = router->width, e = (size_t)router->n_experts, group = c / e;
  for (size_t i = 0; i < call->n_tokens * e; i++) {
    const smoe_real *x = call->x + i / e * c + i % e * group;
    smoe_real sum = 0;
    for (size_t j = 0; j < group; j++) sum += x[j];
    g[i] = isfinite(sum) ? sum / (smoe_real)group : -(smoe_real)INFINITY;
  }
}

static smoe_real score_of(const local_options *options, smoe_real g) {
  return options->relu && g < 0 && isfinite(g) ? 0 : g;
}

static void choose_local(const smoe_router *router, const smoe_route_call *call) {
  const local_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  smoe_real *g = call->tape, *p = p_of(router, call);
  pool(router, call, g);
  for (size_t i = 0; i < n * e; i++) p[i] = score_of(options, g[i]);
  smoe_route_argmax(call->expert, options->ties == BY_MEAN ? g : p, call->token, n, router->n_experts);
  smoe_scores_softmax(p, call->token, n, e);
}

static void gate_local(const smoe_router *router, const smoe_route_call *call) {
  const size_t e = (size_t)router->n_experts;
  for (size_t t = 0; t < call->n_tokens; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    call->gate[t] = a < 0 ? 0 : p_of(router, call)[t * e + (size_t)a];
  }
}

/* log(D_c / D_l) [E] of the lane. Returns KL(D_c || D_l) times the lane's tokens; 0, and slope 0, for a lane without
 * tokens, or whose node has no expert. */
static double locality(const smoe_router *router, const smoe_route_call *call, smoe_real *slope) {
  const local_options *options = router->options;
  const size_t e = (size_t)router->n_experts;
  const int node = smoe_router_lane_node(router, call->global_lane);
  const smoe_real *p = p_of(router, call);
  double n_local = 0, n = 0, sum = 0;
  for (int i = 0; i < router->n_experts; i++) n_local += smoe_router_expert_node(router, i) == node;
  for (size_t t = 0; t < call->n_tokens; t++) n += call->expert[t] != -1;
  for (size_t i = 0; i < e; i++) {
    const bool is_local = smoe_router_expert_node(router, (int32_t)i) == node;
    const double others = (double)e - n_local, s = others > 0 ? options->remote_share : 0;
    const double wanted = is_local ? (1 - s) / n_local : s / others;
    double mean = 0;
    slope[i] = 0;
    for (size_t t = 0; t < call->n_tokens; t++) mean += (double)p[t * e + i];
    if (!(mean > 0) || n_local == 0) continue;
    slope[i] = (smoe_real)log(mean / n / wanted);
    sum += mean * log(mean / n / wanted);
  }
  return sum;
}

/* Cosine between a token and its expert's group, which is a vector of equal numbers; whether all means are 0 or
 * less. */
static void add_own(const smoe_router *router, const smoe_route_call *call, smoe_route_sums *sums) {
  const size_t c = router->width, e = (size_t)router->n_experts;
  for (size_t t = 0; t < call->n_tokens; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    if (a < 0) continue;
    const smoe_real *x = call->x + t * c, *g = call->tape + t * e;
    const double length = sqrt((double)smoe_dot(x, x, c));
    bool all = true;
    for (size_t i = 0; i < e; i++) all = all && !(g[i] > 0);
    if (length > 0) sums->own[0] += (double)g[a] * sqrt((double)c / (double)e) / length;
    sums->own[1] += all;
  }
}

static void losses_local(const smoe_router *router, const smoe_route_call *call,
                         const smoe_route_loads *loads, smoe_route_sums *sums) {
  const local_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts;
  if (!call->context->training) return;
  smoe_real *f = shares_of(router, call);
  smoe_load_shares(f, loads, e);
  *smoe_route_term(router, sums, "balance") +=
      options->balance_weight * smoe_balance_sum(p_of(router, call), f, n, e);
  *smoe_route_term(router, sums, "locality") += options->locality_weight * locality(router, call, f + e);
  add_own(router, call, sums);
}

/* Theorem 1 of the paper: rows that an expert needs for one that is characteristic of it, if rows are spread evenly
 * over the directions and are its own from a cosine of delta on; a lower bound of it. */
static double least_rows(double delta, double width, double experts) {
  return 1 / (experts * erfc(sqrt(delta * delta * width / (2 - delta * delta))));
}

static double least_rows_below(double delta, double width, double experts) {
  return exp(delta * delta * width / (2 - delta * delta)) / experts;
}

static void report_local(const smoe_router *router, const double *own, int64_t n) {
  const smoe_settings *settings = smoe_config_settings(router->config);
  const double delta = own[0], c = (double)router->width, e = router->n_experts;
  const double even = (double)n / (double)settings->train.micro_batches / e;
  char room[64] = "no limit (moe.capacity_factor 0)";
  if (settings->moe.capacity_factor > 0)
    snprintf(room, sizeof room, "%.0f rows", floor(settings->moe.capacity_factor * even));
  smoe_note(
      "MoE layer %d: first batch: mean cosine of a row with its expert's group %.4f; capacity of an expert "
      "at least %.3g rows for each characteristic one (bound below: %.3g), has %s, gets %.0f on average; "
      "%.1f %% of the rows have no mean above 0",
      router->layer, delta, least_rows(delta, c, e), least_rows_below(delta, c, e), room, even, 100 * own[1]);
}

static void backward_local(const smoe_router *router, const smoe_route_call *call,
                           const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const local_options *options = router->options;
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts, group = c / e;
  const double scale = call->context->training ? 1 / (double)call->context->n_targets : 0;
  smoe_real *dz = call->scratch, *f = shares_of(router, call), *slope = f + e;
  smoe_load_shares(f, loads, e);
  smoe_balance_backward(dz, f, (smoe_real)(options->balance_weight * scale), n, e);
  locality(router, call, slope);
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(call->expert[t]);
    for (size_t i = 0; i < e; i++)
      dz[t * e + i] +=
          (smoe_real)(options->locality_weight * scale) * slope[i]; /* + 1 falls out in the softmax */
    if (a >= 0) dz[t * e + (size_t)a] += dgate[t];                  /* gate = p_a */
  }
  smoe_scores_softmax_backward(dz, p_of(router, call), n, e);
  for (size_t i = 0; i < n * e; i++) {
    const smoe_real g = call->tape[i];
    if (!isfinite(g) || (options->relu && !(g > 0))) continue;
    smoe_real *d = dx + i / e * c + i % e * group;
    for (size_t j = 0; j < group; j++) d[j] += dz[i] / (smoe_real)group;
  }
}

const smoe_router_ops smoe_router_local = {
    .name = "local",
    .title = "LocMoE: scores without parameters; losses that balance, and keep rows on their node",
    .keyset = &keyset_local,
    .check = check_local,
    .scope = scope_local,
    .slots = slots_local,
    .declare = declare_local,
    .tape_reals = tape_reals_local,
    .scratch_reals = scratch_reals_local,
    .choose = choose_local,
    .gate = gate_local,
    .losses = losses_local,
    .report = report_local,
    .backward = backward_local,
};
