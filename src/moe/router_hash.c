/* Hash layers (Roller et al. 2021): the expert follows from token ids by a table or hash that is fixed
 * before training. y = x + delta of that expert; nothing here learns.
 *
 * random, balanced, clustered, dispersed:  a_t = table[w_t]
 * previous:  a_t = table[w_{t-1}];  position:  a_t = table[t];  bigram:  a_t = hash(w_{t-1}, w_t)
 *
 * At the start of a sequence the token before is the first token itself. Tables are parameters that
 * are frozen from the start, so that the checkpoint has them; the pairs' hash follows from run.seed.
 */
#include "hash_table.h"
#include "stablemoe/random.h"
#include "stablemoe/router.h"

typedef enum hash_variant {
  HASH_RANDOM,
  HASH_BALANCED,
  HASH_CLUSTERED,
  HASH_DISPERSED,
  HASH_BIGRAM,
  HASH_PREVIOUS,
  HASH_POSITION
} hash_variant;

static const char *const variants[] = {"random", "balanced", "clustered", "dispersed",
                                       "bigram", "previous", "position",  NULL};

typedef struct hash_options {
  int variant;
  char model[SMOE_TEXT_MAX];
} hash_options;

static const smoe_key keys[] = {
    {"router.hash.variant", SMOE_KEY_CHOICE, offsetof(hash_options, variant), "random", 0, 0, variants, "",
     "What fixes the expert of a token: a random table; one that balances how often the experts' tokens "
     "occur in training; clusters of a trained model's embeddings, each to one expert or dispersed over all; "
     "or a hash of the last two tokens, of the previous token, or of the position."},
    {"router.hash.model", SMOE_KEY_TEXT, offsetof(hash_options, model), "", 0, 0, NULL, "",
     "Checkpoint of the trained model whose token embeddings make the clusters (variants clustered and "
     "dispersed)."},
};

static const smoe_keyset keyset_hash = {keys, sizeof keys / sizeof *keys, sizeof(hash_options)};

enum { TABLE };

static hash_variant variant_of(const smoe_router *router) {
  return (hash_variant)((const hash_options *)router->options)->variant;
}

static bool is_clustered(hash_variant variant) {
  return variant == HASH_CLUSTERED || variant == HASH_DISPERSED;
}

static smoe_status check_hash(const smoe_config *config) {
  const hash_options *options = smoe_config_options(config, &keyset_hash);
  SMOE_CHECK(!is_clustered((hash_variant)options->variant) || options->model[0], SMOE_ERR_CONFIG,
             "router.hash.variant %s needs the embeddings of a trained model of the same corpus: set "
             "router.hash.model to a checkpoint, such as runs/dense/checkpoints/latest",
             variants[options->variant]);
  return SMOE_OK;
}

static int slots_hash(const smoe_config *config) {
  return 1;
}

static int64_t table_size(const smoe_router *router) {
  return variant_of(router) == HASH_POSITION ? smoe_config_settings(router->config)->model.context
                                             : router->vocabulary;
}

/* Random numbers of each MoE layer are its own. */
static uint32_t stream_of(const smoe_router *router) {
  return smoe_hash_text("router/hash") + (uint32_t)router->layer;
}

static uint64_t seed_of(const smoe_router *router) {
  return (uint64_t)smoe_config_settings(router->config)->run.seed;
}

static void declare_hash(smoe_router *router, smoe_params *params) {
  if (variant_of(router) == HASH_BIGRAM) return;
  router->index[TABLE] = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){table_size(router), 0},
                                             (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false,
                                             "moe%d/router/table", router->layer);
  params->param[router->index[TABLE]].frozen = true;
}

static const char *embedding_of_hash(const smoe_router *router) {
  const hash_options *options = router->options;
  return is_clustered(variant_of(router)) ? options->model : NULL;
}

static void prepare_hash(smoe_router *router, smoe_params *params, const smoe_route_facts *facts) {
  const size_t v = (size_t)router->vocabulary;
  const int e = router->n_experts;
  const uint64_t seed = seed_of(router);
  const uint32_t stream = stream_of(router);
  if (variant_of(router) == HASH_BIGRAM) return;
  smoe_real *table = smoe_params_shared(params, router->index[TABLE]);
  switch (variant_of(router)) {
  case HASH_BALANCED:
    smoe_hash_balanced(table, facts->count, v, e, seed, stream);
    break;
  case HASH_CLUSTERED:
    smoe_hash_clustered(table, facts->embedding, v, facts->embedding_width, e, seed, stream);
    break;
  case HASH_DISPERSED:
    smoe_hash_dispersed(table, facts->count, facts->embedding, v, facts->embedding_width, e, seed, stream);
    break;
  default:
    smoe_hash_random(table, (size_t)table_size(router), e, seed, stream);
  }
}

static size_t reals_hash(const smoe_router *router, size_t n) {
  return 0;
}

static int32_t expert_of(const smoe_router *router, const smoe_route_call *call, const smoe_real *table,
                         size_t row) {
  const size_t t = row % call->n_context;
  const int32_t own = call->token[row];
  if (own < 0) return -1;
  const int32_t before = t > 0 && call->token[row - 1] >= 0 ? call->token[row - 1] : own;
  switch (variant_of(router)) {
  case HASH_BIGRAM:
    return smoe_hash_pair(before, own, router->vocabulary, router->n_experts, seed_of(router),
                          stream_of(router));
  case HASH_PREVIOUS:
    return (int32_t)table[before];
  case HASH_POSITION:
    return (int32_t)table[t];
  default:
    return (int32_t)table[own];
  }
}

static void route_hash(const smoe_router *router, const smoe_route_call *call) {
  const smoe_real *table =
      variant_of(router) == HASH_BIGRAM ? NULL : smoe_params_shared(router->params, router->index[TABLE]);
  for (size_t t = 0; t < call->n_tokens; t++) {
    call->expert[t] = expert_of(router, call, table, t);
    call->gate[t] = call->expert[t] < 0 ? 0 : 1;
  }
}

static void losses_hash(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                        smoe_route_sums *sums) {
  for (size_t t = 0; t < call->n_tokens; t++) {
    sums->gate += call->token[t] >= 0;
    sums->n_gates += call->token[t] >= 0;
  }
}

/* A gate of 1 and a fixed choice have no gradient. */
static void backward_hash(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
}

const smoe_router_ops smoe_router_hash = {
    .name = "hash",
    .title = "Hash: a fixed table or hash of token ids, gate 1, nothing to learn",
    .keyset = &keyset_hash,
    .check = check_hash,
    .slots = slots_hash,
    .declare = declare_hash,
    .embedding_of = embedding_of_hash,
    .prepare = prepare_hash,
    .tape_reals = reals_hash,
    .scratch_reals = reals_hash,
    .route = route_hash,
    .losses = losses_hash,
    .backward = backward_hash,
};
