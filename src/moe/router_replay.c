/* Replay: training with the assignments that another run has recorded.
 *
 * a_t = what the routing log says of this update, this place of the batch, this MoE layer;
 * y = x + sum over slots k of gate_k delta_k,  gate_k = sigmoid(E_{a_k} x_t) as in StableMoE's
 * stage 2 (equation 14), or 1 as in Hash layers. Nothing here chooses, so nothing balances.
 *
 * A log says nothing of other tokens: evaluation, generation and measurements take for each token id
 * the experts that the log has for it most often. That table is a parameter, frozen from the start, so
 * that checkpoints need the log no more.
 */
#include <string.h>

#include "hash_table.h"
#include "sigmoid_gate.h"
#include "stablemoe/random.h"
#include "stablemoe/router.h"

typedef enum replay_gate { REPLAY_SIGMOID, REPLAY_ONE } replay_gate;

static const char *const gates[] = {"sigmoid", "one", NULL};

typedef struct replay_options {
  char log[SMOE_TEXT_MAX];
  int64_t slots;
  int gate;
} replay_options;

static const smoe_key keys[] = {
    {"router.replay.log", SMOE_KEY_PATH, offsetof(replay_options, log), "", 0, 0, NULL, "",
     "Run directory, directory of routing logs, or one routing log, of a run with log.tokens_every 1 and the "
     "same corpus, seed, batch and experts: each of its updates is repeated with the experts it used."},
    {"router.replay.slots", SMOE_KEY_INT, offsetof(replay_options, slots), "1", 1, 64, NULL, "experts",
     "Experts per token in that log: 2 for gshard, router.topk.k for topk."},
    {"router.replay.gate", SMOE_KEY_CHOICE, offsetof(replay_options, gate), "sigmoid", 0, 0, gates, "",
     "Factor on what an expert adds: the sigmoid of its learned score, as in stage 2 of StableMoE, or one, "
     "as "
     "in Hash layers."},
};

static const smoe_keyset keyset_replay = {keys, sizeof keys / sizeof *keys, sizeof(replay_options)};

enum { TABLE, CENTROID };

static const replay_options *options_of(const smoe_router *router) {
  return router->options;
}

static bool has_gate(const smoe_router *router) {
  return options_of(router)->gate == REPLAY_SIGMOID;
}

static smoe_status check_replay(const smoe_config *config) {
  const replay_options *options = smoe_config_options(config, &keyset_replay);
  const int64_t experts = smoe_config_settings(config)->moe.experts;
  SMOE_CHECK(options->log[0], SMOE_ERR_CONFIG,
             "router.method replay needs the assignments of another run: set router.replay.log to the run "
             "directory of one that was made with log.tokens_every=1");
  SMOE_CHECK(options->slots <= experts, SMOE_ERR_CONFIG,
             "router.replay.slots = %lld is more than moe.experts = %lld", (long long)options->slots,
             (long long)experts);
  return SMOE_OK;
}

static int slots_replay(const smoe_config *config) {
  return (int)((const replay_options *)smoe_config_options(config, &keyset_replay))->slots;
}

static smoe_router_scope scope_replay(const smoe_router *router) {
  return SMOE_SCOPE_TOKEN;
}

static const char *log_of_replay(const smoe_router *router) {
  return options_of(router)->log;
}

static void declare_replay(smoe_router *router, smoe_params *params) {
  const int64_t experts = router->n_experts, width = (int64_t)router->width;
  router->index[TABLE] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->vocabulary, router->n_slots, 0},
      (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false, "moe%d/router/table", router->layer);
  params->param[router->index[TABLE]].frozen = true;
  if (!has_gate(router)) return;
  router->index[CENTROID] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){experts, width, 0},
                                                (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true,
                                                "moe%d/router/centroid", router->layer);
}

static const smoe_real *centroid_of(const smoe_router *router) {
  return smoe_params_shared(router->params, router->index[CENTROID]);
}

/* The recorded experts of each token id; a token that the log does not know gets some. */
static void prepare_replay(smoe_router *router, smoe_params *params, const smoe_route_facts *facts) {
  const size_t v = (size_t)router->vocabulary, k = (size_t)router->n_slots;
  const int32_t *recorded = facts->recorded ? facts->recorded + (size_t)router->layer * v * k : NULL;
  smoe_real *table = smoe_params_shared(params, router->index[TABLE]);
  smoe_real *random = smoe_alloc(v * sizeof *random);
  smoe_hash_random(random, v, router->n_experts, (uint64_t)smoe_config_settings(router->config)->run.seed,
                   smoe_hash_text("router/replay") + (uint32_t)router->layer);
  for (size_t i = 0; i < v; i++) {
    const bool known = recorded && recorded[i * k] >= 0;
    for (size_t s = 0; s < k; s++)
      table[i * k + s] =
          known ? (smoe_real)recorded[i * k + s] : (smoe_real)(((int)random[i] + (int)s) % router->n_experts);
  }
  smoe_free(random);
}

static size_t tape_reals_replay(const smoe_router *router, size_t n) {
  return 0;
}

static size_t scratch_reals_replay(const smoe_router *router, size_t n) {
  return 0;
}

/* Where the log has the experts of the lane's first token. */
static const int32_t *recorded_of(const smoe_router *router, const smoe_route_call *call) {
  const smoe_settings *settings = smoe_config_settings(router->config);
  const int64_t batch = settings->train.batch_sequences * settings->model.context;
  return call->context->recorded +
         (router->layer * batch + call->before + call->first_token) * (int64_t)router->n_slots;
}

static void choose_replay(const smoe_router *router, const smoe_route_call *call) {
  const size_t k = (size_t)router->n_slots;
  const smoe_real *table = smoe_params_shared(router->params, router->index[TABLE]);
  const bool replays = call->context->training && call->context->recorded;
  const int32_t *recorded = replays ? recorded_of(router, call) : NULL;
  for (size_t i = 0; i < call->n_tokens * k; i++) {
    const int32_t token = call->token[i / k];
    if (token < 0)
      call->expert[i] = -1;
    else if (recorded) /* whether an expert that had no room then has it now is for the exchange to say */
      call->expert[i] = smoe_slot_expert(recorded[i]);
    else
      call->expert[i] = (int32_t)table[(size_t)token * k + i % k];
  }
}

static void gate_replay(const smoe_router *router, const smoe_route_call *call) {
  const size_t k = (size_t)router->n_slots, c = router->width;
  for (size_t i = 0; i < call->n_tokens * k; i++) {
    if (has_gate(router))
      smoe_sigmoid_gate_forward(call->gate + i, call->expert + i, centroid_of(router), NULL,
                                call->x + i / k * c, 1, c);
    else
      call->gate[i] = call->expert[i] == -1 ? 0 : 1;
  }
}

static void backward_replay(const smoe_router *router, const smoe_route_call *call,
                            const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const size_t k = (size_t)router->n_slots, c = router->width;
  if (!has_gate(router)) return;
  smoe_real *dcentroid = smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane);
  for (size_t i = 0; i < call->n_tokens * k; i++)
    smoe_sigmoid_gate_backward(dx + i / k * c, dcentroid, NULL, dgate + i, call->gate + i, call->expert + i,
                               centroid_of(router), call->x + i / k * c, 1, c);
}

const smoe_router_ops smoe_router_replay = {
    .name = "replay",
    .title = "Replay: the experts that a routing log of another run has for every token",
    .keyset = &keyset_replay,
    .check = check_replay,
    .scope = scope_replay,
    .slots = slots_replay,
    .declare = declare_replay,
    .log_of = log_of_replay,
    .prepare = prepare_replay,
    .tape_reals = tape_reals_replay,
    .scratch_reals = scratch_reals_replay,
    .choose = choose_replay,
    .gate = gate_replay,
    .gates_learn = has_gate,
    .backward = backward_replay,
};
