/* A decoder as language models have it since: blocks of attention and experts in place of the feed-forward layer,
 * each with a norm before it; rotary positions, SwiGLU and grouped key and value heads by default. */
#include <math.h>
#include <stdio.h>

#include "stablemoe/family.h"
#include "stablemoe/moe_layer.h"
#include "stablemoe/skip.h"

typedef struct decoder_options {
  int norm;      /* index into norms */
  int positions; /* index into kinds of positions */
  double rope_base;
  int activation; /* smoe_activation */
  int64_t kv_heads, moe_every, shared_experts;
  bool biases, tied;
  double dropout;
} decoder_options;

enum { RMS, LAYER };
enum { ROPE, LEARNED };
static const char *const norms[] = {"rms", "layer", NULL};
static const char *const positions[] = {"rope", "learned", NULL};
static const char *const activations[] = {"relu", "gelu", "swiglu", NULL};

#define KEY(member) offsetof(decoder_options, member)

static const smoe_key keys[] = {
    {"model.decoder.norm", SMOE_KEY_CHOICE, KEY(norm), "rms", 0, 0, norms, "",
     "Norm before every sublayer and the head: RMSNorm, or LayerNorm."},
    {"model.decoder.positions", SMOE_KEY_CHOICE, KEY(positions), "rope", 0, 0, positions, "",
     "Positions: rotary ones in attention, or a learned table added to the embedding."},
    {"model.decoder.rope_base", SMOE_KEY_REAL, KEY(rope_base), "10000", 1, 1e12, NULL, "",
     "Base of the rotary angles."},
    {"model.decoder.activation", SMOE_KEY_CHOICE, KEY(activation), "swiglu", 0, 0, activations, "",
     "Activation of feed-forward layers and experts; SwiGLU has a second matrix of model.inner or moe.inner "
     "rows."},
    {"model.decoder.kv_heads", SMOE_KEY_INT, KEY(kv_heads), "0", 0, 1024, NULL, "",
     "Heads of keys and values, each shared by as many query heads; must divide model.heads; 0: "
     "model.heads."},
    {"model.decoder.moe_every", SMOE_KEY_INT, KEY(moe_every), "1", 1, 1000, NULL, "blocks",
     "Every so many blocks have experts in place of their feed-forward layer (moe.layers 0: none has)."},
    {"model.decoder.shared_experts", SMOE_KEY_INT, KEY(shared_experts), "0", 0, 64, NULL, "experts",
     "Experts of each MoE layer that every token visits besides those it is routed to; on the token's own "
     "rank."},
    {"model.decoder.biases", SMOE_KEY_BOOL, KEY(biases), "false", 0, 0, NULL, "",
     "Biases of the linear maps."},
    {"model.decoder.tied", SMOE_KEY_BOOL, KEY(tied), "false", 0, 0, NULL, "",
     "The head's matrix is the embedding's table."},
    {"model.decoder.dropout", SMOE_KEY_REAL, KEY(dropout), "0", 0, 0.99, NULL, "",
     "Share of the embedding and of what attention and dense feed-forward layers add that is set to zero in "
     "training."},
};

static const smoe_keyset keyset_decoder = {keys, sizeof keys / sizeof *keys, sizeof(decoder_options)};

static size_t kv_heads(const smoe_settings *settings, const decoder_options *options) {
  return (size_t)(options->kv_heads ? options->kv_heads : settings->model.heads);
}

static bool is_moe(const smoe_settings *settings, const decoder_options *options, int b) {
  return settings->moe.layers > 0 && (b + 1) % options->moe_every == 0;
}

static smoe_status check_decoder(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const decoder_options *options = smoe_config_options(config, &keyset_decoder);
  const int64_t heads = settings->model.heads, head = settings->model.width / heads;
  const int64_t kv = (int64_t)kv_heads(settings, options);
  SMOE_CHECK(heads % kv == 0, SMOE_ERR_CONFIG, "model.decoder.kv_heads %lld does not divide model.heads %lld",
             (long long)kv, (long long)heads);
  SMOE_CHECK(
      options->positions != ROPE || head % 2 == 0, SMOE_ERR_CONFIG,
      "rotary positions turn pairs of numbers, and a head has model.width / model.heads = %lld: make it even",
      (long long)head);
  SMOE_CHECK(settings->moe.layers == 0 || options->moe_every <= settings->model.blocks, SMOE_ERR_CONFIG,
             "model.decoder.moe_every %lld leaves none of model.blocks %lld with experts: lower it, or set "
             "moe.layers=0 for a dense model",
             (long long)options->moe_every, (long long)settings->model.blocks);
  for (int b = 0; b < (int)settings->model.blocks; b++)
    SMOE_CHECK(smoe_skip_of(config, b) < SMOE_SKIP_FFN || !is_moe(settings, options, b), SMOE_ERR_CONFIG,
               "model.skip.what: block %d has experts in place of its feed-forward layer: a gate may skip "
               "its attention, "
               "and moe.skip_below its experts",
               b);
  SMOE_CHECK(settings->moe.layers == 0 || settings->moe.sublayers == 1, SMOE_ERR_CONFIG,
             "moe.sublayers %lld: in family decoder an expert is one feed-forward layer",
             (long long)settings->moe.sublayers);
  return SMOE_OK;
}

static int n_moe_decoder(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const decoder_options *options = smoe_config_options(config, &keyset_decoder);
  return settings->moe.layers == 0 ? 0 : (int)(settings->model.blocks / options->moe_every);
}

static void add_block(const smoe_config *config, const smoe_settings *settings,
                      const decoder_options *options, const smoe_layer_spec *base, int b,
                      smoe_layer_list *list) {
  smoe_layer_spec *attention = smoe_layer_list_add(list, base);
  attention->ops = &smoe_layer_attention;
  snprintf(attention->name, sizeof attention->name, "block%d/attention", b);
  attention->block = b;
  attention->heads = (size_t)settings->model.heads;
  attention->kv_heads = kv_heads(settings, options);
  attention->causal = true;
  attention->rope = options->positions == ROPE ? options->rope_base : 0;
  const bool moe = is_moe(settings, options, b);
  const smoe_skip_kind skip = smoe_skip_of(config, b);
  if (skip == SMOE_SKIP_ATTENTION || skip == SMOE_SKIP_BLOCK) smoe_skip_wrap(attention, skip, b);
  if (skip == SMOE_SKIP_BLOCK) {
    attention->activation = (smoe_activation)options->activation;
    attention->inner = (size_t)settings->model.inner;
    return;
  }
  smoe_layer_spec *ffn = smoe_layer_list_add(list, base);
  ffn->block = b;
  ffn->activation = (smoe_activation)options->activation;
  ffn->inner = (size_t)(moe ? settings->moe.inner : settings->model.inner);
  ffn->ops = moe ? &smoe_layer_moe : &smoe_layer_ffn;
  if (!moe) {
    snprintf(ffn->name, sizeof ffn->name, "block%d/ffn", b);
    if (skip == SMOE_SKIP_FFN) smoe_skip_wrap(ffn, skip, b);
    return;
  }
  ffn->moe = (int)(b / options->moe_every);
  snprintf(ffn->name, sizeof ffn->name, "moe%d", ffn->moe);
  ffn->experts = (int)settings->moe.experts;
  ffn->sublayers = 1;
  ffn->shared = (int)options->shared_experts;
  snprintf(ffn->from, sizeof ffn->from, "block%d/ffn", b);
}

static void describe_decoder(const smoe_config *config, int vocabulary, smoe_layer_list *list) {
  const smoe_settings *settings = smoe_config_settings(config);
  const decoder_options *options = smoe_config_options(config, &keyset_decoder);
  const smoe_layer_spec base = {.stream = SMOE_MAIN,
                                .block = -1,
                                .width = (size_t)settings->model.width,
                                .norm = options->norm == RMS ? SMOE_NORM_RMS : SMOE_NORM_LAYER,
                                .bias = options->biases,
                                .vocabulary = (size_t)vocabulary,
                                .context = (size_t)settings->model.context,
                                .dropout = options->dropout,
                                .moe = -1,
                                .n_moe = n_moe_decoder(config)};
  smoe_layer_spec *embedding = smoe_layer_list_add(list, &base);
  embedding->ops = &smoe_layer_embedding;
  snprintf(embedding->name, sizeof embedding->name, "embedding");
  embedding->positions = options->positions == LEARNED;
  embedding->scale = settings->model.scale_embedding ? sqrt((double)settings->model.width) : 1;
  for (int b = 0; b < (int)settings->model.blocks; b++) add_block(config, settings, options, &base, b, list);
  smoe_layer_spec *head = smoe_layer_list_add(list, &base);
  head->ops = &smoe_layer_head;
  snprintf(head->name, sizeof head->name, "head");
  head->tied = options->tied;
}

const smoe_family smoe_family_decoder = {
    .name = "decoder",
    .title = "blocks of attention and experts in place of feed-forward layers (Mixtral, OLMoE and others)",
    .task = "language",
    .keyset = &keyset_decoder,
    .check = check_decoder,
    .n_moe = n_moe_decoder,
    .describe = describe_decoder,
};
