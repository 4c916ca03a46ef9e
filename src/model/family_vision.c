/* A Transformer on the patches of an image: patch embedding, blocks with pre-LN whose attention sees all patches,
 * experts in place of the feed-forward layer of every n-th block, the mean of the patches, a linear classifier.
 *
 * Sources: Dosovitskiy et al. 2021 (patch embedding); Zhou et al. 2022 (experts that choose), with an image in place
 * of the batch, as in Chowdhury et al. 2023.
 */
#include <stdio.h>
#include <string.h>

#include "stablemoe/family.h"
#include "stablemoe/moe_layer.h"

typedef struct vision_options {
  int64_t moe_every;
  double dropout;
} vision_options;

#define KEY(member) offsetof(vision_options, member)

static const smoe_key keys[] = {
    {"model.vision.moe_every", SMOE_KEY_INT, KEY(moe_every), "1", 1, 1000, NULL, "blocks",
     "Experts take the place of the feed-forward layer of every so many-th block."},
    {"model.vision.dropout", SMOE_KEY_REAL, KEY(dropout), "0", 0, 0.99, NULL, "",
     "Share of the embeddings and of what layers add that is set to zero in training."},
};

static const smoe_keyset keyset_vision = {keys, sizeof keys / sizeof *keys, sizeof(vision_options)};

/* Methods that go by the token's hidden state: a patch has no id of its own. */
static const char *const methods[] = {"expert_choice", "pmoe", "topk", "switch", "gshard", "base", NULL};

static smoe_status check_vision(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const vision_options *options = smoe_config_options(config, &keyset_vision);
  bool known = settings->moe.layers == 0;
  for (size_t i = 0; methods[i]; i++) known |= strcmp(methods[i], settings->router.method) == 0;
  SMOE_CHECK(
      known, SMOE_ERR_CONFIG,
      "router.method %s goes by token ids, or by what a family of its own has, and model.family vision reads "
      "patches: take expert_choice, pmoe, topk, switch, gshard or base",
      settings->router.method);
  SMOE_CHECK(settings->moe.layers == 0 || options->moe_every <= settings->model.blocks, SMOE_ERR_CONFIG,
             "model.vision.moe_every %lld leaves none of model.blocks %lld with experts: lower it, or set "
             "moe.layers=0 for a dense model",
             (long long)options->moe_every, (long long)settings->model.blocks);
  SMOE_CHECK(settings->moe.layers == 0 || settings->moe.sublayers == 1, SMOE_ERR_CONFIG,
             "moe.sublayers %lld: in family vision an expert is one feed-forward layer",
             (long long)settings->moe.sublayers);
  return SMOE_OK;
}

static int n_moe_vision(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const vision_options *options = smoe_config_options(config, &keyset_vision);
  return settings->moe.layers == 0 ? 0 : (int)(settings->model.blocks / options->moe_every);
}

static void add_block(const smoe_config *config, const smoe_layer_spec *base, int b, smoe_layer_list *list) {
  const smoe_settings *settings = smoe_config_settings(config);
  const vision_options *options = smoe_config_options(config, &keyset_vision);
  smoe_layer_spec *attention = smoe_layer_list_add(list, base);
  attention->ops = &smoe_layer_attention;
  snprintf(attention->name, sizeof attention->name, "block%d/attention", b);
  attention->block = b;
  attention->heads = attention->kv_heads = (size_t)settings->model.heads;
  const bool moe = settings->moe.layers > 0 && (b + 1) % options->moe_every == 0;
  smoe_layer_spec *ffn = smoe_layer_list_add(list, base);
  ffn->block = b;
  ffn->inner = (size_t)(moe ? settings->moe.inner : settings->model.inner);
  ffn->ops = moe ? &smoe_layer_moe : &smoe_layer_ffn;
  if (!moe) {
    snprintf(ffn->name, sizeof ffn->name, "block%d/ffn", b);
    return;
  }
  ffn->moe = (int)(b / options->moe_every);
  snprintf(ffn->name, sizeof ffn->name, "moe%d", ffn->moe);
  ffn->experts = (int)settings->moe.experts;
  ffn->sublayers = 1;
}

static void describe_vision(const smoe_config *config, int vocabulary, smoe_layer_list *list) {
  const smoe_settings *settings = smoe_config_settings(config);
  const vision_options *options = smoe_config_options(config, &keyset_vision);
  const smoe_layer_spec base = {.stream = SMOE_MAIN,
                                .block = -1,
                                .width = (size_t)settings->model.width,
                                .patch = list->patch,
                                .norm = SMOE_NORM_LAYER,
                                .activation = SMOE_GELU,
                                .bias = true,
                                .vocabulary = (size_t)vocabulary,
                                .context = (size_t)settings->model.context,
                                .dropout = options->dropout,
                                .moe = -1,
                                .n_moe = n_moe_vision(config)};
  smoe_layer_spec *patches = smoe_layer_list_add(list, &base);
  patches->ops = &smoe_layer_patches;
  snprintf(patches->name, sizeof patches->name, "patches");
  for (int b = 0; b < (int)settings->model.blocks; b++) add_block(config, &base, b, list);
  smoe_layer_spec *head = smoe_layer_list_add(list, &base);
  head->ops = &smoe_layer_classify;
  snprintf(head->name, sizeof head->name, "head");
  head->scale = 1 / (double)settings->model.context;
}

const smoe_family smoe_family_vision = {
    .name = "vision",
    .title = "images: a Transformer on patches, with experts in place of feed-forward layers",
    .task = "images",
    .keyset = &keyset_vision,
    .check = check_vision,
    .n_moe = n_moe_vision,
    .describe = describe_vision,
};
