/* The two-layer CNN of pMoE's analysis, with experts that choose patches or, without an MoE layer, plain:
 *
 *   pMoE  f = 1/l sum over experts s, their filters r and the patches j that s takes of a_{r,s} relu(<w_{r,s}, x_j>) G_{j,s}
 *   CNN   f = 1/n sum over filters r and all patches j of a_r relu(<w_r, x_j>)
 * The filters w learn, the output weights a keep their initial values. Two classes have one logit, more have one each.
 *
 * Source: Chowdhury et al., Patch-level Routing in Mixture-of-Experts is Provably Sample-efficient for Convolutional
 * Neural Networks, ICML 2023, equations 1 and 5; the division by n and the output weights of its code by choice.
 */
#include <stdio.h>
#include <string.h>

#include "stablemoe/family.h"
#include "stablemoe/moe_layer.h"
#include "stablemoe/router_pmoe.h"

typedef struct cnn_options {
  double deviation;
  int output, pool; /* indices into the names below */
} cnn_options;

enum { NORMAL, CLASS };
static const char *const outputs[] = {"normal", "class", NULL};
enum { CHOSEN, ALL };
static const char *const pools[] = {"chosen", "all", NULL};

#define KEY(member) offsetof(cnn_options, member)

static const smoe_key keys[] = {
    {"model.cnn.deviation", SMOE_KEY_REAL, KEY(deviation), "0.1", 0, 1000, NULL, "",
     "Standard deviation of the filters' initial values."},
    {"model.cnn.output", SMOE_KEY_CHOICE, KEY(output), "normal", 0, 0, outputs, "",
     "Fixed weights from filters to logits: normal random numbers, or 1 for the class that has the expert's "
     "number "
     "and 0 for others (with one logit: 1 and -1)."},
    {"model.cnn.pool", SMOE_KEY_CHOICE, KEY(pool), "chosen", 0, 0, pools, "",
     "Logits are divided by the patches that an expert takes (the paper), or by all patches of an image (its "
     "code)."},
};

static const smoe_keyset keyset_cnn = {keys, sizeof keys / sizeof *keys, sizeof(cnn_options)};

static smoe_status check_cnn(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const cnn_options *options = smoe_config_options(config, &keyset_cnn);
  SMOE_CHECK(
      settings->train.precision == SMOE_FP32, SMOE_ERR_CONFIG,
      "train.precision bf16: model.family cnn computes in fp32 alone, its products are too narrow to gain");
  if (settings->moe.layers == 0) {
    SMOE_CHECK(options->output == NORMAL, SMOE_ERR_CONFIG,
               "model.cnn.output class goes by the expert's number, and moe.layers is 0: take normal");
    return SMOE_OK;
  }
  SMOE_CHECK(
      smoe_pmoe_chosen(config), SMOE_ERR_CONFIG,
      "in model.family cnn experts take patches: router.method %s does not, take pmoe or pmoe_separate",
      settings->router.method);
  SMOE_CHECK(
      settings->moe.layers == 1 && settings->moe.sublayers == 1, SMOE_ERR_CONFIG,
      "moe.layers %lld, moe.sublayers %lld: model.family cnn has one layer of experts, of one sublayer",
      (long long)settings->moe.layers, (long long)settings->moe.sublayers);
  SMOE_CHECK(
      settings->moe.capacity_factor == 0, SMOE_ERR_CONFIG,
      "moe.capacity_factor %g: experts take router.pmoe.patches patches of each image, and none can be "
      "dropped; set it to 0",
      settings->moe.capacity_factor);
  return SMOE_OK;
}

static int n_moe_cnn(const smoe_config *config) {
  return (int)smoe_config_settings(config)->moe.layers;
}

static void describe_cnn(const smoe_config *config, int vocabulary, smoe_layer_list *list) {
  const smoe_settings *settings = smoe_config_settings(config);
  const cnn_options *options = smoe_config_options(config, &keyset_cnn);
  const bool moe = settings->moe.layers > 0;
  smoe_layer_spec base = {.stream = SMOE_MAIN,
                          .block = -1,
                          .width = (size_t)settings->model.width,
                          .patch = list->patch,
                          .norm = SMOE_NORM_NONE,
                          .activation = SMOE_RELU,
                          .vocabulary = (size_t)vocabulary,
                          .context = (size_t)settings->model.context,
                          .moe = -1,
                          .n_moe = n_moe_cnn(config)};
  smoe_layer_spec *pixels = smoe_layer_list_add(list, &base);
  pixels->ops = &smoe_layer_pixels;
  snprintf(pixels->name, sizeof pixels->name, "pixels");
  smoe_layer_spec *filters = smoe_layer_list_add(list, &base);
  filters->ops = moe ? &smoe_layer_moe : &smoe_layer_ffn;
  snprintf(filters->name, sizeof filters->name, moe ? "moe0" : "filters");
  filters->moe = moe ? 0 : -1;
  filters->experts = (int)settings->moe.experts;
  filters->sublayers = 1;
  filters->inner = (size_t)(moe ? settings->moe.inner : settings->model.inner);
  filters->out = (size_t)vocabulary;
  filters->data = true;
  filters->deviation = options->deviation;
  filters->output = options->output == CLASS ? SMOE_OUTPUT_CLASS : SMOE_OUTPUT_NORMAL;
  smoe_layer_spec *head = smoe_layer_list_add(list, &base);
  head->ops = &smoe_layer_classify;
  snprintf(head->name, sizeof head->name, "head");
  head->width = (size_t)vocabulary;
  head->bare = true;
  const bool chosen = moe && options->pool == CHOSEN;
  head->scale = 1 / (double)(chosen ? smoe_pmoe_patches(config) : settings->model.context);
}

const smoe_family smoe_family_cnn = {
    .name = "cnn",
    .title = "images: a two-layer CNN on patches, plain or with experts that choose patches (pMoE)",
    .task = "images",
    .keyset = &keyset_cnn,
    .check = check_cnn,
    .n_moe = n_moe_cnn,
    .describe = describe_cnn,
};
