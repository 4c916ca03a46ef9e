/* Hash layers (Roller et al. 2021): the expert follows from token ids by a table or hash that is fixed
 * before training. y = x + gate delta of that expert; the gate is 1, and nothing here learns, or the sigmoid of the
 * expert's learned score, as in stage 2 of StableMoE.
 *
 * random, balanced, clustered, dispersed:  a_t = table[w_t]
 * previous:  a_t = table[w_{t-1}];  position:  a_t = table[t];  bigram:  a_t = hash(w_{t-1}, w_t)
 *
 * MultiHash cuts every expert's inner layer into segments and hashes once for each: among the E experts
 * here, number m E/M + j is segment m of expert j, and y = x + sum_m delta of segment m.
 *
 * At the start of a sequence the token before is the first token itself. Tables are parameters that
 * are frozen from the start, so that the checkpoint has them; the pairs' hash follows from run.seed.
 */
#include "distill.h"
#include "hash_table.h"
#include "sigmoid_gate.h"
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
  int64_t segments;
  char model[SMOE_TEXT_MAX], table[SMOE_TEXT_MAX];
  int gate; /* index into gates */
} hash_options;

enum { ONE, SIGMOID };
static const char *const gates[] = {"one", "sigmoid", NULL};

static const smoe_key keys[] = {
    {"router.hash.variant", SMOE_KEY_CHOICE, offsetof(hash_options, variant), "random", 0, 0, variants, "",
     "What fixes the expert of a token: a random table; one that balances how often the experts' tokens "
     "occur in training; clusters of a trained model's embeddings, each to one expert or dispersed over all; "
     "or a hash of the last two tokens, of the previous token, or of the position."},
    {"router.hash.segments", SMOE_KEY_INT, offsetof(hash_options, segments), "1", 1, 64, NULL, "segments",
     "MultiHash: hashes of each token, one for each segment that experts are cut into. moe.experts counts "
     "segments and is a multiple of this; give each moe.inner an expert's inner width divided by this."},
    {"router.hash.model", SMOE_KEY_PATH, offsetof(hash_options, model), "", 0, 0, NULL, "",
     "Checkpoint of the trained model whose token embeddings make the clusters (variants clustered and "
     "dispersed)."},
    {"router.hash.table", SMOE_KEY_PATH, offsetof(hash_options, table), "", 0, 0, NULL, "",
     "Run directory or checkpoint of another run whose distilled router fixes the expert of each token id, "
     "as "
     "its stage 2 does, in place of router.hash.variant: a run of the same corpus, with the same experts and "
     "features word."},
    {"router.hash.gate", SMOE_KEY_CHOICE, offsetof(hash_options, gate), "one", 0, 0, gates, "",
     "Factor on what an expert adds: one, as in the paper, or the sigmoid of its learned score, as in stage "
     "2 of "
     "StableMoE."},
};

static const smoe_keyset keyset_hash = {keys, sizeof keys / sizeof *keys, sizeof(hash_options)};

enum { TABLE, CENTROID };

static hash_variant variant_of(const smoe_router *router) {
  return (hash_variant)((const hash_options *)router->options)->variant;
}

static bool has_gate(const smoe_router *router) {
  return ((const hash_options *)router->options)->gate == SIGMOID;
}

static bool is_clustered(hash_variant variant) {
  return variant == HASH_CLUSTERED || variant == HASH_DISPERSED;
}

/* Whether the table follows from the text or a model, not from random numbers alone. */
static bool is_fitted(hash_variant variant) {
  return variant == HASH_BALANCED || is_clustered(variant);
}

static smoe_status check_hash(const smoe_config *config) {
  const hash_options *options = smoe_config_options(config, &keyset_hash);
  SMOE_CHECK(!is_clustered((hash_variant)options->variant) || options->model[0], SMOE_ERR_CONFIG,
             "router.hash.variant %s needs the embeddings of a trained model of the same corpus: set "
             "router.hash.model to a checkpoint, such as runs/dense/checkpoints/latest",
             variants[options->variant]);
  SMOE_CHECK(!options->table[0] || (options->variant == HASH_RANDOM && options->segments == 1),
             SMOE_ERR_CONFIG,
             "router.hash.table takes the place of router.hash.variant %s and has one expert for each token "
             "id: leave "
             "router.hash.variant at random and router.hash.segments at 1",
             variants[options->variant]);
  if (options->segments == 1) return SMOE_OK;
  SMOE_CHECK(
      !is_fitted((hash_variant)options->variant), SMOE_ERR_CONFIG,
      "router.hash.segments = %lld needs tables that differ: variant %s would make the same one for each "
      "segment; set router.hash.variant to random, bigram, previous or position",
      (long long)options->segments, variants[options->variant]);
  const int64_t experts = smoe_config_settings(config)->moe.experts;
  SMOE_CHECK(
      experts % options->segments == 0, SMOE_ERR_CONFIG,
      "moe.experts = %lld is not a multiple of router.hash.segments = %lld: each segment has as many experts "
      "to choose from",
      (long long)experts, (long long)options->segments);
  return SMOE_OK;
}

static int slots_hash(const smoe_config *config) {
  return (int)((const hash_options *)smoe_config_options(config, &keyset_hash))->segments;
}

/* Experts that a hash chooses among. */
static int n_choices(const smoe_router *router) {
  return router->n_experts / router->n_slots;
}

static int64_t table_size(const smoe_router *router) {
  return variant_of(router) == HASH_POSITION ? smoe_config_settings(router->config)->model.context
                                             : router->vocabulary;
}

/* Random numbers of each MoE layer are its own, and of each segment. */
static uint32_t stream_of(const smoe_router *router, int segment) {
  return smoe_hash_text("router/hash") + (uint32_t)router->layer + 0x10000u * (uint32_t)segment;
}

static uint64_t seed_of(const smoe_router *router) {
  return (uint64_t)smoe_config_settings(router->config)->run.seed;
}

/* Tables of the token's own id need nothing else. */
static smoe_router_scope scope_hash(const smoe_router *router) {
  const hash_variant variant = variant_of(router);
  const bool place = variant == HASH_BIGRAM || variant == HASH_PREVIOUS || variant == HASH_POSITION;
  return place ? SMOE_SCOPE_PREFIX : SMOE_SCOPE_TOKEN;
}

static void declare_table(smoe_router *router, smoe_params *params) {
  const int64_t size = table_size(router), segments = router->n_slots;
  const int64_t *shape = segments == 1 ? (int64_t[]){size, 0} : (int64_t[]){segments, size, 0};
  router->index[TABLE] =
      smoe_params_declare(params, SMOE_REPLICATED, shape, (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false,
                          "moe%d/router/table", router->layer);
  params->param[router->index[TABLE]].frozen = true;
}

static void declare_hash(smoe_router *router, smoe_params *params) {
  if (variant_of(router) != HASH_BIGRAM) declare_table(router, params);
  if (!has_gate(router)) return;
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", router->layer);
}

static const char *embedding_of_hash(const smoe_router *router) {
  const hash_options *options = router->options;
  return is_clustered(variant_of(router)) ? options->model : NULL;
}

static const char *distilled_of_hash(const smoe_router *router) {
  const hash_options *options = router->options;
  return options->table[0] ? options->table : NULL;
}

static void prepare_hash(smoe_router *router, smoe_params *params, const smoe_route_facts *facts) {
  const size_t v = (size_t)router->vocabulary, size = (size_t)table_size(router);
  const int e = n_choices(router);
  const uint64_t seed = seed_of(router);
  const uint32_t stream = stream_of(router, 0);
  if (variant_of(router) == HASH_BIGRAM) return;
  smoe_real *table = smoe_params_shared(params, router->index[TABLE]);
  if (facts->word) {
    smoe_distill_words(table, facts->word, facts->centroid, v, facts->distilled_width, e);
    return;
  }
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
    for (int m = 0; m < router->n_slots; m++)
      smoe_hash_random(table + (size_t)m * size, size, e, seed, stream_of(router, m));
  }
}

static size_t reals_hash(const smoe_router *router, size_t n) {
  return 0;
}

/* Choice of one segment for a token; `table` is the segment's. */
static int32_t choice_of(const smoe_router *router, const smoe_route_call *call, const smoe_real *table,
                         size_t row, int segment) {
  const size_t t = row % call->n_context;
  const int32_t own = call->token[row];
  const int32_t before = t > 0 && call->token[row - 1] >= 0 ? call->token[row - 1] : own;
  switch (variant_of(router)) {
  case HASH_BIGRAM:
    return smoe_hash_pair(before, own, router->vocabulary, n_choices(router), seed_of(router),
                          stream_of(router, segment));
  case HASH_PREVIOUS:
    return (int32_t)table[before];
  case HASH_POSITION:
    return (int32_t)table[t];
  default:
    return (int32_t)table[own];
  }
}

static bool from_ids_hash(const smoe_router *router, const smoe_pass *pass) {
  return true;
}

static void choose_hash(const smoe_router *router, const smoe_route_call *call) {
  const smoe_real *table =
      variant_of(router) == HASH_BIGRAM ? NULL : smoe_params_shared(router->params, router->index[TABLE]);
  const size_t size = table ? (size_t)table_size(router) : 0, k = (size_t)router->n_slots;
  for (size_t t = 0; t < call->n_tokens; t++) {
    for (size_t m = 0; m < k; m++) {
      const bool real = call->token[t] >= 0;
      const int32_t choice = real ? choice_of(router, call, table ? table + m * size : NULL, t, (int)m) : -1;
      call->expert[t * k + m] = real ? (int32_t)m * n_choices(router) + choice : -1;
    }
  }
}

static void gate_hash(const smoe_router *router, const smoe_route_call *call) {
  const size_t k = (size_t)router->n_slots, c = router->width;
  for (size_t i = 0; i < call->n_tokens * k; i++) {
    if (has_gate(router))
      smoe_sigmoid_gate_forward(call->gate + i, call->expert + i,
                                smoe_params_shared(router->params, router->index[CENTROID]), NULL,
                                call->x + i / k * c, 1, c);
    else
      call->gate[i] = call->expert[i] != -1;
  }
}

/* A gate of 1 and a fixed choice have no gradient. */
static void backward_hash(const smoe_router *router, const smoe_route_call *call,
                          const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const size_t k = (size_t)router->n_slots, c = router->width;
  if (!has_gate(router)) return;
  smoe_real *dcentroid = smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane);
  for (size_t i = 0; i < call->n_tokens * k; i++)
    smoe_sigmoid_gate_backward(dx + i / k * c, dcentroid, NULL, dgate + i, call->gate + i, call->expert + i,
                               smoe_params_shared(router->params, router->index[CENTROID]),
                               call->x + i / k * c, 1, c);
}

const smoe_router_ops smoe_router_hash = {
    .name = "hash",
    .title = "Hash: a fixed table or hash of token ids; gate 1, or learned",
    .keyset = &keyset_hash,
    .check = check_hash,
    .scope = scope_hash,
    .slots = slots_hash,
    .declare = declare_hash,
    .embedding_of = embedding_of_hash,
    .distilled_of = distilled_of_hash,
    .prepare = prepare_hash,
    .from_ids = from_ids_hash,
    .tape_reals = reals_hash,
    .scratch_reals = reals_hash,
    .choose = choose_hash,
    .gate = gate_hash,
    .gates_learn = has_gate,
    .backward = backward_hash,
};
