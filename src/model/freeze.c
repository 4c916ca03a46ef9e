/* What a run learns: patterns over the parameters' names, and the layers that gradients reach. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/model.h"

bool smoe_model_matches(const char *list, const char *name) {
  char pattern[SMOE_TEXT_MAX];
  while (*list) {
    list = smoe_config_next(list, pattern);
    if (fnmatch(pattern, name, 0) == 0) return true;
  }
  return false;
}

/* Every pattern has to hit something: a misspelt one would freeze nothing without a word. */
static smoe_status check_patterns(const smoe_params *params, const char *key, const char *list) {
  char pattern[SMOE_TEXT_MAX];
  while (*list) {
    list = smoe_config_next(list, pattern);
    bool hit = false;
    for (int p = 0; p < params->n_params && !hit; p++) hit = fnmatch(pattern, params->param[p].name, 0) == 0;
    SMOE_CHECK(
        hit, SMOE_ERR_CONFIG,
        "%s: no parameter matches '%s'; names are like '%s' and '%s' (stablemoe info CHECKPOINT lists them), "
        "and * stands for any text",
        key, pattern, params->param[0].name, params->param[params->n_params - 1].name);
  }
  return SMOE_OK;
}

smoe_status smoe_model_hold(smoe_model *model) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const char *frozen = settings->train.frozen, *only = settings->train.only;
  smoe_params *params = &model->params;
  if (!frozen[0] && !only[0]) return SMOE_OK;
  SMOE_TRY(check_patterns(params, "train.frozen", frozen));
  SMOE_TRY(check_patterns(params, "train.only", only));
  int n = 0;
  for (int p = 0; p < params->n_params; p++) {
    smoe_param *param = &params->param[p];
    param->held =
        (only[0] && !smoe_model_matches(only, param->name)) || smoe_model_matches(frozen, param->name);
    param->frozen |= param->held;
    n += !param->frozen;
  }
  SMOE_CHECK(n > 0, SMOE_ERR_CONFIG, "train.frozen and train.only leave no parameter to learn");
  return SMOE_OK;
}

static bool learns(const smoe_model *model, const smoe_layer *layer) {
  for (int p = layer->first_param; p < layer->end_param; p++)
    if (!model->params.param[p].frozen) return true;
  return false;
}

int smoe_model_lowest(const smoe_model *model) {
  int lowest = 0;
  while (lowest + 1 < model->n_layers && !learns(model, &model->layer[lowest])) lowest++;
  return lowest;
}

bool smoe_model_router_held(const smoe_model *model, int m) {
  char prefix[SMOE_NAME_MAX];
  snprintf(prefix, sizeof prefix, "moe%d/router/", m);
  bool any = false;
  for (int p = 0; p < model->params.n_params; p++) {
    const smoe_param *param = &model->params.param[p];
    if (strncmp(param->name, prefix, strlen(prefix)) != 0) continue;
    if (!param->held) return false;
    any = true;
  }
  return any;
}
