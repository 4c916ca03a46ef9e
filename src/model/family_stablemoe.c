/* The paper's language model: L blocks of attention and feed-forward layer with MoE layers between them. */
#include <math.h>
#include <stdio.h>

#include "stablemoe/family.h"
#include "stablemoe/moe_layer.h"
#include "stablemoe/skip.h"

/* MoE layer i comes after so many blocks. */
static int64_t blocks_before_moe(const smoe_settings *settings, int i) {
  const int64_t blocks = settings->model.blocks;
  switch ((smoe_position)settings->moe.position) {
  case SMOE_MIDDLE:
    return blocks / 2;
  case SMOE_TOP:
    return blocks;
  case SMOE_BOTTOM:
    return 0;
  case SMOE_SCATTERED:
    return (i + 1) * blocks / (settings->moe.layers + 1);
  }
  return blocks;
}

static void add_moe(const smoe_settings *settings, const smoe_layer_spec *base, int m,
                    smoe_layer_list *list) {
  smoe_layer_spec *moe = smoe_layer_list_add(list, base);
  moe->ops = &smoe_layer_moe;
  snprintf(moe->name, sizeof moe->name, "moe%d", m);
  moe->norm = SMOE_NORM_NONE;
  moe->expert_norm = SMOE_NORM_LAYER;
  moe->moe = m;
  moe->experts = (int)settings->moe.experts;
  moe->sublayers = (int)settings->moe.sublayers;
  moe->inner = (size_t)settings->moe.inner;
}

static void add_block(const smoe_config *config, const smoe_settings *settings, const smoe_layer_spec *base,
                      int b, smoe_layer_list *list) {
  smoe_layer_spec *attention = smoe_layer_list_add(list, base);
  attention->ops = &smoe_layer_attention;
  snprintf(attention->name, sizeof attention->name, "block%d/attention", b);
  attention->block = b;
  attention->heads = attention->kv_heads = (size_t)settings->model.heads;
  attention->causal = true;
  const smoe_skip_kind skip = smoe_skip_of(config, b);
  if (skip == SMOE_SKIP_ATTENTION || skip == SMOE_SKIP_BLOCK) smoe_skip_wrap(attention, skip, b);
  if (skip == SMOE_SKIP_BLOCK) {
    attention->inner = (size_t)settings->model.inner;
    return;
  }
  smoe_layer_spec *ffn = smoe_layer_list_add(list, base);
  ffn->ops = &smoe_layer_ffn;
  snprintf(ffn->name, sizeof ffn->name, "block%d/ffn", b);
  ffn->block = b;
  ffn->inner = (size_t)settings->model.inner;
  if (skip == SMOE_SKIP_FFN) smoe_skip_wrap(ffn, skip, b);
}

static int n_moe_stablemoe(const smoe_config *config) {
  return (int)smoe_config_settings(config)->moe.layers;
}

static void describe_stablemoe(const smoe_config *config, int vocabulary, smoe_layer_list *list) {
  const smoe_settings *settings = smoe_config_settings(config);
  const int n_blocks = (int)settings->model.blocks, n_moe = (int)settings->moe.layers;
  const smoe_layer_spec base = {.stream = SMOE_MAIN,
                                .block = -1,
                                .width = (size_t)settings->model.width,
                                .norm = SMOE_NORM_LAYER,
                                .activation = SMOE_RELU,
                                .bias = true,
                                .vocabulary = (size_t)vocabulary,
                                .context = (size_t)settings->model.context,
                                .moe = -1,
                                .n_moe = n_moe};
  smoe_layer_spec *embedding = smoe_layer_list_add(list, &base);
  embedding->ops = &smoe_layer_embedding;
  snprintf(embedding->name, sizeof embedding->name, "embedding");
  embedding->positions = true;
  embedding->scale = settings->model.scale_embedding ? sqrt((double)settings->model.width) : 1;
  int m = 0;
  for (int b = 0; b <= n_blocks; b++) {
    for (; m < n_moe && blocks_before_moe(settings, m) == b; m++) add_moe(settings, &base, m, list);
    if (b < n_blocks) add_block(config, settings, &base, b, list);
  }
  SMOE_ASSERT(m == n_moe);
  smoe_layer_spec *head = smoe_layer_list_add(list, &base);
  head->ops = &smoe_layer_head;
  snprintf(head->name, sizeof head->name, "head");
  head->tied = true;
}

const smoe_family smoe_family_stablemoe = {
    .name = "stablemoe",
    .title = "blocks of attention and feed-forward layer, with MoE layers between them (the StableMoE paper)",
    .task = "language",
    .n_moe = n_moe_stablemoe,
    .describe = describe_stablemoe,
};
