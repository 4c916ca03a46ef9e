/* The paper's translation model: an encoder that sees the whole source, and a decoder that attends to it, each of L
 * blocks with pre-LN; an MoE layer after block L/2 of both, each with its own router. Embeddings of both sides and the
 * head share one table.
 *
 * Source: StableMoE (Dai et al. 2022), section 4.3; Vaswani et al. 2017.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "stablemoe/family.h"
#include "stablemoe/moe_layer.h"

#define KEY(member) offsetof(smoe_translation_options, member)

static const smoe_key keys[] = {
    {"model.translation.dropout", SMOE_KEY_REAL, KEY(dropout), "0.1", 0, 0.99, NULL, "",
     "Share of the embeddings and of what attention and feed-forward layers add that is set to zero in "
     "training."},
    {"model.translation.label_smoothing", SMOE_KEY_REAL, KEY(label_smoothing), "0.1", 0, 0.99, NULL, "",
     "Probability that the training target spreads evenly over the other tokens of the vocabulary."},
    {"model.translation.temperature", SMOE_KEY_REAL, KEY(temperature), "1", 1, 100, NULL, "",
     "Directions are sampled in proportion to their pairs to the power 1 / temperature: larger values read "
     "small "
     "corpora more often."},
};

static const smoe_keyset keyset_translation = {keys, sizeof keys / sizeof *keys,
                                               sizeof(smoe_translation_options)};

const smoe_translation_options *smoe_translation_settings(const smoe_config *config) {
  return smoe_config_options(config, &keyset_translation);
}

static smoe_status check_translation(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const int64_t parts = settings->train.lanes * settings->train.micro_batches;
  SMOE_CHECK(settings->train.batch_tokens >= parts * settings->model.context, SMOE_ERR_CONFIG,
             "train.batch_tokens %lld leaves a lane %lld tokens of a micro-batch, fewer than the longest "
             "sentence may "
             "have (model.context %lld): set it to at least %lld, or lower train.lanes or model.context",
             (long long)settings->train.batch_tokens, (long long)(settings->train.batch_tokens / parts),
             (long long)settings->model.context, (long long)(parts * settings->model.context));
  SMOE_CHECK(
      settings->log.tokens_every == 0, SMOE_ERR_CONFIG,
      "log.tokens_every records batches of equal sequences, which translation does not have: set it to 0");
  return SMOE_OK;
}

static int n_moe_translation(const smoe_config *config) {
  return smoe_config_settings(config)->moe.layers > 0 ? 2 : 0;
}

static const char *side_of(int stream) {
  return stream == SMOE_ENCODER ? "encoder" : "decoder";
}

static smoe_layer_spec *add(smoe_layer_list *list, const smoe_layer_spec *base, const smoe_layer_ops *ops,
                            const char *format, ...) __attribute__((format(printf, 4, 5)));

static smoe_layer_spec *add(smoe_layer_list *list, const smoe_layer_spec *base, const smoe_layer_ops *ops,
                            const char *format, ...) {
  smoe_layer_spec *spec = smoe_layer_list_add(list, base);
  spec->ops = ops;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(spec->name, sizeof spec->name, format, arguments);
  va_end(arguments);
  return spec;
}

static void add_block(const smoe_settings *settings, const smoe_layer_spec *base, int b,
                      smoe_layer_list *list) {
  const char *side = side_of(base->stream);
  for (int cross = 0; cross <= (base->stream == SMOE_MAIN); cross++) {
    smoe_layer_spec *attention =
        add(list, base, &smoe_layer_attention, "%s/block%d/%s", side, b, cross ? "cross" : "attention");
    attention->block = b;
    attention->heads = attention->kv_heads = (size_t)settings->model.heads;
    attention->causal = base->stream == SMOE_MAIN && !cross;
    attention->cross = cross;
  }
  smoe_layer_spec *ffn = add(list, base, &smoe_layer_ffn, "%s/block%d/ffn", side, b);
  ffn->block = b;
  ffn->inner = (size_t)settings->model.inner;
}

static void add_moe(const smoe_settings *settings, const smoe_layer_spec *base, int m,
                    smoe_layer_list *list) {
  smoe_layer_spec *moe = add(list, base, &smoe_layer_moe, "moe%d", m);
  moe->norm = SMOE_NORM_NONE;
  moe->expert_norm = SMOE_NORM_LAYER;
  moe->dropout = 0;
  moe->moe = m;
  moe->experts = (int)settings->moe.experts;
  moe->sublayers = (int)settings->moe.sublayers;
  moe->inner = (size_t)settings->moe.inner;
}

/* One side: embedding, blocks, the MoE layer after half of them. */
static void add_side(const smoe_settings *settings, const smoe_layer_spec *base, int m,
                     smoe_layer_list *list) {
  const int n_blocks = (int)settings->model.blocks;
  smoe_layer_spec *embedding = add(list, base, &smoe_layer_embedding, "%s",
                                   base->stream == SMOE_ENCODER ? "embedding" : "decoder/embedding");
  embedding->tied = base->stream == SMOE_MAIN;
  embedding->positions = true;
  embedding->scale = settings->model.scale_embedding ? sqrt((double)settings->model.width) : 1;
  for (int b = 0; b < n_blocks; b++) {
    add_block(settings, base, b, list);
    if (settings->moe.layers > 0 && b + 1 == (n_blocks + 1) / 2) add_moe(settings, base, m, list);
  }
}

static void describe_translation(const smoe_config *config, int vocabulary, smoe_layer_list *list) {
  const smoe_settings *settings = smoe_config_settings(config);
  smoe_layer_spec base = {.stream = SMOE_ENCODER,
                          .block = -1,
                          .width = (size_t)settings->model.width,
                          .norm = SMOE_NORM_LAYER,
                          .activation = SMOE_RELU,
                          .bias = true,
                          .vocabulary = (size_t)vocabulary,
                          .context = (size_t)settings->model.context,
                          .dropout = smoe_translation_settings(config)->dropout,
                          .moe = -1,
                          .n_moe = n_moe_translation(config)};
  add_side(settings, &base, 0, list);
  add(list, &base, &smoe_layer_norm, "encoder/norm");
  base.stream = SMOE_MAIN;
  add_side(settings, &base, 1, list);
  add(list, &base, &smoe_layer_head, "head")->tied = true;
}

const smoe_family smoe_family_translation = {
    .name = "translation",
    .title = "encoder and decoder for pairs of sentences, with an MoE layer in each (the StableMoE paper)",
    .task = "translation",
    .keyset = &keyset_translation,
    .check = check_translation,
    .n_moe = n_moe_translation,
    .describe = describe_translation,
};
