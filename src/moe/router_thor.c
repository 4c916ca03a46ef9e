/* THOR (Zuo et al. 2021): no router; in training each of two copies of the batch goes through experts drawn at random.
 *
 *   a_{t,c} drawn uniformly from the experts, apart for each MoE layer and each copy c, for a unit of rows:
 *   the whole micro-batch as in the authors' code, or a lane, a sequence, a token;  y_t = f_a(x_t)
 *   L = CE(p_1) + CE(p_2) + weight (KL(p_1 || p_2) + KL(p_2 || p_1)) / 2    (smoe_objective_consistent)
 * In evaluation an expert is drawn for a sequence, a place or a token, or all are averaged, or one serves.
 * Draws follow from seed, update, micro-batch, layer, copy and unit, never from the rank count.
 * doc/methods/thor.md says where this differs from paper and code.
 */
#include <string.h>

#include "stablemoe/log.h"
#include "stablemoe/random.h"
#include "stablemoe/router.h"

typedef struct thor_options {
  double consistency;
  int64_t copies, expert;
  int draw, evaluation, evaluation_draw; /* indices into draws, evaluations, evaluation_draws */
  bool distinct;
} thor_options;

enum { BATCH, LANE, SEQUENCE, TOKEN };
static const char *const draws[] = {"batch", "lane", "sequence", "token", NULL};
enum { RANDOM, MEAN, ONE };
static const char *const evaluations[] = {"random", "mean", "one", NULL};
enum { BY_SEQUENCE, BY_PLACE, BY_TOKEN };
static const char *const evaluation_draws[] = {"sequence", "place", "token", NULL};

static const smoe_key keys[] = {
    {"router.thor.consistency", SMOE_KEY_REAL, offsetof(thor_options, consistency), "1", 0, 1e6, NULL, "",
     "Weight of the divergence between what the two copies predict, in units of a target's loss (1 is the "
     "default of the authors' code, 5 is in its script)."},
    {"router.thor.copies", SMOE_KEY_INT, offsetof(thor_options, copies), "2", 1, 2, NULL, "",
     "Copies of each sequence in a training pass, each with experts and dropout of its own; 1: random "
     "experts alone, without the divergence, at half the work."},
    {"router.thor.draw", SMOE_KEY_CHOICE, offsetof(thor_options, draw), "batch", 0, 0, draws, "",
     "Rows that share a drawn expert in training: a copy of the micro-batch as in the authors' code, which "
     "leaves all ranks but those of two experts idle; or of a lane, a sequence, a token."},
    {"router.thor.distinct", SMOE_KEY_BOOL, offsetof(thor_options, distinct), "false", 0, 0, NULL, "",
     "The two copies never have the same expert; false: by chance they may, as in the authors' code."},
    {"router.thor.evaluation", SMOE_KEY_CHOICE, offsetof(thor_options, evaluation), "random", 0, 0,
     evaluations, "",
     "Experts in evaluation and generation: a drawn one; the mean of all, which costs as many times the work "
     "and memory for as many slots; or router.thor.expert in every MoE layer.",
     true},
    {"router.thor.evaluation_draw", SMOE_KEY_CHOICE, offsetof(thor_options, evaluation_draw), "sequence", 0,
     0, evaluation_draws, "",
     "Rows that share a drawn expert in evaluation: a sequence; all rows at one place of their sequences, as "
     "in the authors' code; or each row has its own.",
     true},
    {"router.thor.expert", SMOE_KEY_INT, offsetof(thor_options, expert), "0", 0, 65535, NULL, "",
     "The expert that serves where router.thor.evaluation is one.", true},
};

static const smoe_keyset keyset_thor = {keys, sizeof keys / sizeof *keys, sizeof(thor_options)};

static smoe_status check_thor(const smoe_config *config) {
  const thor_options *options = smoe_config_options(config, &keyset_thor);
  const smoe_settings *settings = smoe_config_settings(config);
  SMOE_CHECK(options->evaluation != ONE || options->expert < settings->moe.experts, SMOE_ERR_CONFIG,
             "router.thor.expert %lld: there are moe.experts %lld, numbered from 0",
             (long long)options->expert, (long long)settings->moe.experts);
  SMOE_CHECK(!options->distinct || (options->copies == 2 && settings->moe.experts > 1), SMOE_ERR_CONFIG,
             "router.thor.distinct: two copies have different experts only where router.thor.copies is 2 and "
             "moe.experts is 2 or more");
  SMOE_CHECK(settings->moe.capacity_factor == 0 || options->evaluation != MEAN, SMOE_ERR_CONFIG,
             "router.thor.evaluation: mean needs room for every token in every expert: set "
             "moe.capacity_factor to 0");
  if (options->draw == BATCH && settings->moe.capacity_factor > 0)
    smoe_warn("router.thor.draw: batch sends a copy of the micro-batch to one expert, and "
              "moe.capacity_factor %g drops most of it: set it to 0, or draw by lane, sequence or token",
              settings->moe.capacity_factor);
  if (options->draw == BATCH && settings->moe.experts > 1)
    smoe_warn("router.thor.draw: batch sends all rows of a copy to one expert, so of several ranks most are "
              "idle in the MoE layers; draw by lane, sequence or token for expert parallelism");
  return SMOE_OK;
}

static int copies_thor(const smoe_config *config, double *consistency) {
  const thor_options *options = smoe_config_options(config, &keyset_thor);
  *consistency = options->consistency;
  return (int)options->copies;
}

static int slots_thor(const smoe_config *config) {
  const thor_options *options = smoe_config_options(config, &keyset_thor);
  return options->evaluation == MEAN ? (int)smoe_config_settings(config)->moe.experts : 1;
}

static smoe_router_scope scope_thor(const smoe_router *router) {
  const thor_options *options = router->options;
  return options->evaluation == RANDOM ? SMOE_SCOPE_PREFIX : SMOE_SCOPE_TOKEN;
}

static void declare_thor(smoe_router *router, smoe_params *params) {
  const thor_options *options = router->options;
  if (options->copies > 1) smoe_terms_add(&router->terms, "consistency");
  router->typical_slots = 1;
  router->draws_alike = options->draw == BATCH || options->draw == LANE;
}

static bool from_ids_thor(const smoe_router *router, const smoe_pass *pass) {
  return true;
}

static size_t no_reals_thor(const smoe_router *router, size_t n) {
  return 0;
}

/* In place of the update: evaluations at different updates have the same draws. */
static const uint32_t EVALUATION = UINT32_MAX;

/* Draw `number` of a unit. */
static double uniform_of(const smoe_router *router, const smoe_route_call *call, uint64_t unit,
                         uint64_t number) {
  const smoe_pass *pass = call->context;
  const uint32_t update = pass->training ? (uint32_t)pass->update : EVALUATION;
  return smoe_random_uniform(pass->seed, SMOE_RANDOM_ROUTER, update,
                             (unit * 2 + number) * (uint64_t)router->n_layers + (uint64_t)router->layer);
}

static int32_t one_of(double uniform, int n) {
  const int32_t i = (int32_t)(uniform * n);
  return i < n ? i : n - 1;
}

/* Training: the unit of a row, the same for its copies. */
static uint64_t unit_of(const smoe_router *router, const smoe_route_call *call, size_t row) {
  const thor_options *options = router->options;
  const size_t t = call->n_context, copies = call->copies > 1 ? (size_t)call->copies : 1;
  const size_t first = row / (t * copies) * (t * copies); /* of the sequence's first copy */
  const uint64_t lanes = (uint64_t)smoe_config_settings(router->config)->train.lanes;
  const uint64_t at = (uint64_t)(call->before + call->first_token),
                 micro = (uint64_t)call->context->micro_batch;
  if (options->draw == BATCH) return micro;
  if (options->draw == LANE) return micro * lanes + (uint64_t)call->global_lane;
  return at + first + (options->draw == TOKEN ? row % t : 0);
}

static int32_t drawn_in_training(const smoe_router *router, const smoe_route_call *call, size_t row) {
  const thor_options *options = router->options;
  const uint64_t unit = unit_of(router, call, row), copy = (uint64_t)smoe_route_copy(call, row);
  const int e = router->n_experts;
  if (copy == 0 || !options->distinct) return one_of(uniform_of(router, call, unit, copy), e);
  const int32_t other = one_of(uniform_of(router, call, unit, 0), e);
  return (other + 1 + one_of(uniform_of(router, call, unit, copy), e - 1)) % e;
}

static int32_t drawn_in_evaluation(const smoe_router *router, const smoe_route_call *call, size_t row) {
  const thor_options *options = router->options;
  const size_t t = call->n_context, copies = call->copies > 1 ? (size_t)call->copies : 1;
  const uint64_t place = row % t;
  const uint64_t sequence =
      ((uint64_t)call->global_lane * call->n_sequences + row / t) / copies; /* hypotheses: of a sentence */
  const uint64_t unit = options->evaluation_draw == BY_SEQUENCE ? sequence
                        : options->evaluation_draw == BY_PLACE  ? place
                                                               : sequence * (uint64_t)router->context + place;
  return one_of(uniform_of(router, call, unit, 0), router->n_experts);
}

static void choose_thor(const smoe_router *router, const smoe_route_call *call) {
  const thor_options *options = router->options;
  const size_t k = (size_t)router->n_slots;
  for (size_t t = 0; t < call->n_tokens; t++) {
    int32_t *expert = call->expert + t * k;
    const bool real = call->token[t] >= 0, mean = options->evaluation == MEAN && !call->context->training;
    for (size_t i = 0; i < k; i++) expert[i] = real && mean ? (int32_t)i : -1;
    if (!real || mean) continue;
    expert[0] = call->context->training      ? drawn_in_training(router, call, t)
                : options->evaluation == ONE ? (int32_t)options->expert
                                             : drawn_in_evaluation(router, call, t);
  }
}

/* Nothing weights an expert; the mean has equal weights. */
static void gate_thor(const smoe_router *router, const smoe_route_call *call) {
  const smoe_real gate = call->context->training ? 1 : 1 / (smoe_real)router->n_slots;
  for (size_t i = 0; i < call->n_tokens * (size_t)router->n_slots; i++)
    call->gate[i] = call->expert[i] == -1 ? 0 : gate;
}

static bool gates_learn_thor(const smoe_router *router) {
  return false;
}

static void backward_thor(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
}

const smoe_router_ops smoe_router_thor = {
    .name = "thor",
    .title = "THOR: random experts for two copies of each sequence, which learn to agree",
    .keyset = &keyset_thor,
    .check = check_thor,
    .scope = scope_thor,
    .copies = copies_thor,
    .slots = slots_thor,
    .declare = declare_thor,
    .from_ids = from_ids_thor,
    .tape_reals = no_reals_thor,
    .scratch_reals = no_reals_thor,
    .choose = choose_thor,
    .gate = gate_thor,
    .gates_learn = gates_learn_thor,
    .backward = backward_thor,
};
