#include "stablemoe/router.h"

#include <math.h>
#include <string.h>

extern const smoe_router_ops smoe_router_stable;
extern const smoe_router_ops smoe_router_switch;
extern const smoe_router_ops smoe_router_gshard;
extern const smoe_router_ops smoe_router_topk;
extern const smoe_router_ops smoe_router_expert_choice;
extern const smoe_router_ops smoe_router_hash;
extern const smoe_router_ops smoe_router_mask;
extern const smoe_router_ops smoe_router_recurrent;
extern const smoe_router_ops smoe_router_sparsemixer;
extern const smoe_router_ops smoe_router_smile;
extern const smoe_router_ops smoe_router_local;
extern const smoe_router_ops smoe_router_thor;
extern const smoe_router_ops smoe_router_pmoe;
extern const smoe_router_ops smoe_router_pmoe_separate;
extern const smoe_router_ops smoe_router_replay;
extern const smoe_router_ops smoe_router_base;
extern const smoe_router_ops smoe_router_base_stage2;

const smoe_router_ops *const smoe_router_methods[] = {
    &smoe_router_stable,      &smoe_router_switch,        &smoe_router_gshard,
    &smoe_router_topk,        &smoe_router_expert_choice, &smoe_router_hash,
    &smoe_router_mask,        &smoe_router_pmoe,          &smoe_router_pmoe_separate,
    &smoe_router_recurrent,   &smoe_router_sparsemixer,   &smoe_router_smile,
    &smoe_router_local,       &smoe_router_thor,          &smoe_router_base,
    &smoe_router_base_stage2, &smoe_router_replay,        NULL,
};

const smoe_router_ops *smoe_router_find(const char *name) {
  for (size_t i = 0; smoe_router_methods[i]; i++)
    if (strcmp(smoe_router_methods[i]->name, name) == 0) return smoe_router_methods[i];
  return NULL;
}

size_t smoe_router_keysets(const smoe_keyset **sets) {
  size_t n = 0;
  if (sets) sets[n] = &smoe_settings_keys;
  n++;
  for (size_t i = 0; smoe_router_methods[i]; i++) {
    if (!smoe_router_methods[i]->keyset) continue;
    if (sets) sets[n] = smoe_router_methods[i]->keyset;
    n++;
  }
  return n;
}

smoe_status smoe_router_check(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const smoe_router_ops *ops = smoe_router_find(settings->router.method);
  if (!ops) {
    char names[512] = "";
    for (size_t i = 0; smoe_router_methods[i]; i++) {
      if (i) strncat(names, ", ", sizeof names - strlen(names) - 1);
      strncat(names, smoe_router_methods[i]->name, sizeof names - strlen(names) - 1);
    }
    return SMOE_FAIL(SMOE_ERR_CONFIG, "router.method is '%s'; the methods are: %s", settings->router.method,
                     names);
  }
  SMOE_CHECK(!ops->family || strcmp(ops->family, settings->model.family) == 0, SMOE_ERR_CONFIG,
             "router.method %s is for model.family %s, and model.family is %s", ops->name, ops->family,
             settings->model.family);
  return ops->check ? ops->check(config) : SMOE_OK;
}

void smoe_router_declare(smoe_router *router, const smoe_layer *layer) {
  const smoe_settings *settings = smoe_config_settings(layer->config);
  const smoe_router_ops *ops = smoe_router_find(settings->router.method);
  SMOE_ASSERT(ops);
  *router = (smoe_router){
      .ops = ops,
      .config = layer->config,
      .params = layer->params,
      .options = ops->keyset ? smoe_config_options(layer->config, ops->keyset) : NULL,
      .layer = layer->spec.moe,
      .n_layers = layer->spec.n_moe,
      .n_experts = layer->spec.experts,
      .n_lanes = (int)settings->train.lanes,
      .n_nodes = (int)settings->moe.nodes,
      .n_slots = ops->slots(layer->config),
      .width = layer->spec.width,
      .context = layer->spec.context,
      .vocabulary = (int)layer->spec.vocabulary,
      .terms = smoe_terms_common,
      .omega = -1,
  };
  router->typical_slots = router->n_slots;
  ops->declare(router, layer->params);
}

void smoe_router_route(const smoe_router *router, const smoe_route_call *call) {
  router->ops->choose(router, call);
  router->ops->gate(router, call);
}

double *smoe_route_term(const smoe_router *router, smoe_route_sums *sums, const char *name) {
  const int i = smoe_terms_find(&router->terms, name);
  SMOE_ASSERT(i >= 0);
  return &sums->term[i];
}

static void add_figures(const smoe_router *router, const smoe_route_call *call, smoe_route_sums *sums) {
  const int node = smoe_router_lane_node(router, call->global_lane);
  for (size_t s = 0; s < call->n_tokens * (size_t)router->n_slots; s++) {
    if (call->expert[s] == -1) continue;
    sums->gate += (double)call->gate[s];
    sums->n_gates += 1;
    if (call->expert[s] < 0) continue;
    sums->n_sent += 1;
    sums->n_local += smoe_router_expert_node(router, call->expert[s]) == node;
  }
  if (!call->learned || !call->distilled) return;
  for (size_t t = 0; t < call->n_tokens; t++) {
    if (call->learned[t] < 0 || call->distilled[t] < 0) continue;
    sums->n_compared += 1;
    sums->n_agree += call->learned[t] == call->distilled[t];
  }
}

void smoe_router_losses(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                        smoe_route_sums *sums) {
  add_figures(router, call, sums);
  if (router->ops->losses) router->ops->losses(router, call, loads, sums);
}

uint64_t smoe_route_index(const smoe_router *router, const smoe_route_call *call, size_t row) {
  const uint64_t token = (uint64_t)(call->before + call->first_token) + row;
  return token * (uint64_t)router->n_layers + (uint64_t)router->layer;
}

void smoe_route_balance_bias(smoe_real *bias, double rate, const smoe_route_loads *loads, int n_experts) {
  for (int e = 0; e < n_experts; e++) {
    const int64_t more = loads->load[e] * n_experts - loads->n_assigned;
    bias[e] += (smoe_real)(rate * (double)((more < 0) - (more > 0)));
  }
}

void smoe_route_argmax(int32_t *expert, const smoe_real *score, const int32_t *token, size_t n,
                       int n_experts) {
  for (size_t t = 0; t < n; t++) {
    const smoe_real *row = score + t * (size_t)n_experts;
    int32_t best = 0;
    smoe_real best_score = -INFINITY;
    for (int e = 0; e < n_experts; e++)
      if (isfinite(row[e]) && row[e] > best_score) {
        best_score = row[e];
        best = e;
      }
    expert[t] = token && token[t] < 0 ? -1 : best;
  }
}
