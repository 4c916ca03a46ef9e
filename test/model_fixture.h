/** A small model for tests: its configuration, random parameters, a random batch.
 *
 *  Everything is a function of numbers and global indices, so a model on several
 *  ranks has the values that one rank alone would have.
 */
#ifndef STABLEMOE_TEST_MODEL_FIXTURE_H
#define STABLEMOE_TEST_MODEL_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/model.h"
#include "stablemoe/random.h"

enum { FIXTURE_VOCABULARY = 11 };

typedef struct model_fixture {
  const smoe_group *group;
  smoe_config *config;
  const smoe_settings *settings;
  smoe_model *model;
  size_t n_micro; /**< micro-batches */
  int copies;     /**< of each sequence: smoe_family_copies */
  smoe_objective objective;
  int32_t *input, *target; /**< [n_micro, N] */
  smoe_pass context;
} model_fixture;

static inline void fixture_try(smoe_status status, const char *what) {
  if (status == SMOE_OK) return;
  fprintf(stderr, "cannot set up the test (%s): %s\n", what, smoe_last_error());
  exit(99);
}

/** The method that a text like "hash router.hash.variant=bigram" begins with. */
static inline const smoe_router_ops *fixture_method(const char *method) {
  const size_t length = strcspn(method, " ");
  for (size_t i = 0; smoe_router_methods[i]; i++) {
    const char *name = smoe_router_methods[i]->name;
    if (strlen(name) == length && strncmp(name, method, length) == 0) return smoe_router_methods[i];
  }
  fprintf(stderr, "there is no routing method '%s'\n", method);
  exit(99);
}

/** The keys of the method itself: a text that is empty by default gets some value, widths a small one. */
static inline void fixture_method_keys(smoe_config *config, const smoe_router_ops *ops) {
  for (size_t i = 0; ops->keyset && i < ops->keyset->n_keys; i++) {
    const smoe_key *key = &ops->keyset->keys[i];
    const char *dot = strrchr(key->name, '.'), *value = NULL;
    /* A table from elsewhere takes the place of other keys' choices. */
    const bool path = key->kind == SMOE_KEY_PATH && strcmp(dot, ".table") != 0;
    if ((key->kind == SMOE_KEY_TEXT || path) && !key->def[0]) value = "none";
    if (key->kind == SMOE_KEY_INT && strcmp(dot, ".width") == 0) value = "4";
    if (key->kind == SMOE_KEY_REAL && strcmp(dot, ".epsilon") == 0)
      value = "0.9"; /* several experts to draw from */
    if (!value) continue;
    char *assignment = smoe_sprintf("%s=%s", key->name, value);
    fixture_try(smoe_config_override(config, assignment), assignment);
    smoe_free(assignment);
  }
}

/** A resolved configuration: a tiny model's, then "section.key=value" overrides up to a NULL.
 *
 *  method  in  name of a routing method, which one override may follow after a blank
 *
 *  Give it back with smoe_config_destroy. Keys that nobody here names have their defaults,
 *  so a routing method with keys of its own needs no line here.
 */
static inline smoe_config *fixture_config(const char *method, const char *const *overrides) {
  static const char *const tiny[] = {
      "model.width=8",         "model.heads=2",
      "model.blocks=2",        "model.inner=12",
      "model.context=5",       "moe.experts=3",
      "moe.inner=10",          "moe.sublayers=2",
      "train.lanes=2",         "train.batch_sequences=4",
      "schedule.warmup=0",     "run.seed=3",
      "router.stable.width=4", NULL,
  };
  const smoe_keyset **sets = smoe_alloc(smoe_model_keysets(NULL) * sizeof *sets);
  smoe_config *config = smoe_config_create(sets, smoe_model_keysets(sets));
  smoe_free(sets);
  for (size_t i = 0; tiny[i]; i++) fixture_try(smoe_config_override(config, tiny[i]), tiny[i]);
  const smoe_router_ops *ops = fixture_method(method);
  char *name = smoe_sprintf("router.method=%s", ops->name);
  fixture_try(smoe_config_override(config, name), name);
  /* Groups of the hidden state: a width that 3, 4 and 6 experts divide. */
  if (strcmp(ops->name, "local") == 0) fixture_try(smoe_config_override(config, "model.width=12"), name);
  fixture_method_keys(config, ops);
  const char *blank = strchr(method, ' ');
  if (blank) fixture_try(smoe_config_override(config, blank + 1), method);
  for (size_t i = 0; overrides && overrides[i]; i++)
    fixture_try(smoe_config_override(config, overrides[i]), overrides[i]);
  fixture_try(smoe_model_check(config), name);
  fixture_try(smoe_config_resolve(config), name);
  smoe_free(name);
  return config;
}

/** Every method, and every method with each other value of each of its keys that is a choice or true or
 *  false: NULL-terminated texts for `method` above, in memory of smoe_alloc. A new method is in it.
 */
static inline char **fixture_methods(void) {
  /* Numbers that bring something with them where they are not 0. */
  static const char *const more[] = {"topk router.topk.bias_rate=0.1", "topk router.topk.z_loss_weight=0.5",
                                     "stable router.stable.bias_rate=0.1"};
  const size_t n_more = sizeof more / sizeof *more;
  char **all = smoe_alloc(n_more * sizeof *all);
  size_t n = 0;
  for (; n < n_more; n++) all[n] = smoe_strdup(more[n]);
  for (size_t i = 0; smoe_router_methods[i]; i++) {
    const smoe_router_ops *ops = smoe_router_methods[i];
    if (ops->family) continue; /* of a family that has a test of its own */
    all = smoe_realloc(all, (n + 2) * sizeof *all);
    all[n++] = smoe_strdup(ops->name);
    for (size_t k = 0; ops->keyset && k < ops->keyset->n_keys; k++) {
      static const char *const truths[] = {"false", "true", NULL};
      const smoe_key *key = &ops->keyset->keys[k];
      const char *const *values = key->kind == SMOE_KEY_BOOL ? truths : key->choices;
      for (size_t v = 0; values && values[v]; v++) {
        if (strcmp(values[v], key->def) == 0) continue;
        all = smoe_realloc(all, (n + 2) * sizeof *all);
        all[n++] = smoe_sprintf("%s %s=%s", ops->name, key->name, values[v]);
      }
    }
  }
  all[n] = NULL;
  return all;
}

static inline void fixture_methods_free(char **methods) {
  for (size_t i = 0; methods[i]; i++) smoe_free(methods[i]);
  smoe_free(methods);
}

/** Let the router fill its tables, from counts and embeddings that are functions of the token id. */
static inline void fixture_prepare(smoe_router *router, smoe_params *params) {
  enum { WIDTH = 3 };
  if (!router->ops->prepare) return;
  const size_t v = (size_t)router->vocabulary;
  int64_t *count = smoe_alloc(v * sizeof *count);
  smoe_real *embedding = smoe_alloc(v * WIDTH * sizeof *embedding);
  for (size_t i = 0; i < v; i++) count[i] = (int64_t)(100 / (i + 1));
  for (size_t i = 0; i < v * WIDTH; i++)
    embedding[i] = (smoe_real)smoe_random_normal(5, SMOE_RANDOM_TEST, 2, i);
  router->ops->prepare(router, params, &(smoe_route_facts){count, embedding, WIDTH});
  smoe_free(count);
  smoe_free(embedding);
}

/** MoE layer m of a configuration as a layer of its own: its spec, nothing declared. Destroy with smoe_layer_destroy. */
static inline void fixture_moe(smoe_layer *layer, const smoe_config *config, smoe_params *params, int m,
                               int vocabulary) {
  const smoe_settings *settings = smoe_config_settings(config);
  smoe_layer_create(layer,
                    &(smoe_layer_spec){.ops = &smoe_layer_moe,
                                       .block = -1,
                                       .width = (size_t)settings->model.width,
                                       .expert_norm = SMOE_NORM_LAYER,
                                       .inner = (size_t)settings->moe.inner,
                                       .bias = true,
                                       .vocabulary = (size_t)vocabulary,
                                       .context = (size_t)settings->model.context,
                                       .moe = m,
                                       .n_moe = (int)settings->moe.layers,
                                       .experts = (int)settings->moe.experts,
                                       .sublayers = (int)settings->moe.sublayers},
                    config, params);
}

/** The router of MoE layer m alone, declared. */
static inline void fixture_router(smoe_router *router, const smoe_config *config, smoe_params *params, int m,
                                  int vocabulary) {
  smoe_layer layer;
  fixture_moe(&layer, config, params, m, vocabulary);
  smoe_router_declare(router, &layer);
  smoe_free(layer.state);
}

/** Every parameter N(0, 0.3^2), gains of norms around 1: nothing is zero, nothing alike. */
static inline void fixture_randomise(smoe_params *params, uint64_t seed) {
  smoe_params_fence(params);
  for (int p = 0; p < params->n_params; p++) {
    const smoe_param *param = &params->param[p];
    const char *gamma = strstr(param->name, "norm/gamma");
    const bool expert = param->sharding == SMOE_EXPERT;
    const smoe_slab *slab = smoe_params_slab(params, p);
    for (int j = 0; j < slab->n_local && (expert || smoe_params_writes(params)); j++) {
      smoe_real *value = expert ? smoe_params_expert(params, p, j) : smoe_params_shared(params, p);
      const uint64_t first = (uint64_t)smoe_slab_expert_number(slab, j) * param->count;
      for (size_t i = 0; i < param->count; i++)
        value[i] =
            (smoe_real)((gamma ? 1 : 0) + 0.3 * smoe_random_normal(seed, SMOE_RANDOM_TEST,
                                                                   smoe_hash_text(param->name), first + i));
    }
  }
  smoe_params_round(params);
}

/** Token ids and targets by global token index: about one in `one_in` is padding; 0: none is. */
static inline void fixture_tokens(int32_t *input, int32_t *target, uint64_t seed, uint64_t first, size_t n,
                                  uint64_t one_in) {
  for (size_t t = 0; t < n; t++) {
    const uint64_t bits = smoe_random_bits(seed, SMOE_RANDOM_TEST, 1, first + t);
    const bool padding = one_in > 0 && (bits >> 32) % one_in == 0;
    input[t] = padding ? -1 : (int32_t)(bits % FIXTURE_VOCABULARY);
    if (target) target[t] = padding ? -1 : (int32_t)((bits >> 16) % FIXTURE_VOCABULARY);
  }
}

/** Build model and batch. Collective over group. method, overrides: as for fixture_config. */
static inline void fixture_open(model_fixture *f, const smoe_group *group, const char *method,
                                const char *const *overrides, int stage) {
  *f = (model_fixture){.group = group, .config = fixture_config(method, overrides)};
  f->settings = smoe_config_settings(f->config);
  const uint64_t seed = (uint64_t)f->settings->run.seed;
  const int64_t parts = f->settings->train.lanes * f->settings->train.micro_batches;
  f->n_micro = (size_t)f->settings->train.micro_batches;
  double consistency;
  f->copies = smoe_family_copies(f->config, &consistency);
  f->objective = f->copies > 1 ? smoe_objective_consistent(&smoe_objective_cross_entropy, consistency)
                               : smoe_objective_cross_entropy;
  const int64_t sequences = f->settings->train.batch_sequences / parts * f->copies;
  const smoe_model_shape shape = {.vocabulary = FIXTURE_VOCABULARY,
                                  .n_lanes = (int)f->settings->train.lanes,
                                  .lane_sequences = (size_t)sequences,
                                  .training = true,
                                  .objective = &f->objective};
  fixture_try(smoe_model_create(&f->model, f->config, group, &shape, false), "model");
  fixture_randomise(&f->model->params, seed);
  for (int m = 0; m < f->model->n_moe && smoe_params_writes(&f->model->params); m++)
    fixture_prepare(&f->model->moe[m]->router, &f->model->params);
  smoe_params_fence(&f->model->params);
  if (stage == 2) smoe_model_freeze(f->model);

  const smoe_token_shape *tokens = &f->model->shape[SMOE_MAIN];
  f->input = smoe_alloc(f->n_micro * tokens->n_tokens * sizeof *f->input);
  f->target = smoe_alloc(f->n_micro * tokens->n_tokens * sizeof *f->target);
  int64_t n_targets = 0;
  for (size_t m = 0; m < f->n_micro; m++)
    fixture_tokens(f->input + m * tokens->n_tokens, f->target + m * tokens->n_tokens, seed,
                   (uint64_t)((int64_t)m * tokens->n_global + tokens->first_token), tokens->n_tokens, 6);
  const size_t context = tokens->context, copies = (size_t)f->copies;
  for (size_t t = 0; t < f->n_micro * tokens->n_tokens; t++) {
    const size_t first = t - t / context % copies * context; /* the same token of the first copy */
    f->input[t] = f->input[first];
    f->target[t] = f->target[first];
    n_targets += first == t && f->target[t] >= 0;
  }
  smoe_group_sum_i64(group, &n_targets, 1);
  f->context =
      (smoe_pass){.seed = seed, .update = 5, .stage = stage, .training = true, .n_targets = n_targets};
}

static inline void fixture_close(model_fixture *f) {
  smoe_model_destroy(f->model);
  smoe_config_destroy(f->config);
  smoe_free(f->input);
  smoe_free(f->target);
}

/** All loss terms of some sums. */
static inline double fixture_terms(const smoe_route_sums *sums, const smoe_terms *terms) {
  double sum = 0;
  for (int i = 0; i < terms->n; i++) sum += sums->term[i];
  return sum;
}

/** Memory for the sums of a call, all zero. */
typedef union fixture_sums {
  smoe_route_sums sums;
  double memory[16];
} fixture_sums;

/** The loss of all parts per target, from model->sums. Collective. */
static inline double fixture_loss_of_sums(const model_fixture *f) {
  const smoe_model *model = f->model;
  double *total = smoe_alloc((size_t)model->n_sums * sizeof *total);
  smoe_lanes_sum(f->group, &model->params.lanes, total, model->sums, model->n_sums);
  double loss = ((const smoe_lane_sums *)total)->loss * (f->copies > 1 ? f->copies : 1);
  for (int i = 0; i < model->objective->n_sums; i++)
    if (smoe_terms_find(&model->terms, model->objective->sum_names[i]) >= 0)
      loss += total[sizeof(smoe_lane_sums) / sizeof(double) + (size_t)i];
  for (int m = 0; m < model->n_moe; m++) {
    const smoe_route_sums *route = (const smoe_route_sums *)(total + smoe_model_route_sums(model, m));
    loss += fixture_terms(route, &model->terms);
  }
  smoe_free(total);
  return loss / (double)f->context.n_targets;
}

/** Forward of micro-batch m. Collective. */
static inline void fixture_forward(model_fixture *f, size_t m) {
  const size_t n = f->model->shape[SMOE_MAIN].n_tokens;
  smoe_batch batch = smoe_model_batch(f->model, f->input + m * n, f->target + m * n);
  batch.before[SMOE_MAIN] = f->context.micro_batch * f->model->shape[SMOE_MAIN].n_global;
  batch.copies = f->copies;
  smoe_model_forward(f->model, &batch, &f->context);
}

/** Forward and backward of all micro-batches: the gradients of one update. Collective. */
static inline void fixture_gradients(model_fixture *f) {
  smoe_model_begin_update(f->model);
  for (size_t m = 0; m < f->n_micro; m++) {
    fixture_forward(f, m);
    smoe_model_backward(f->model);
  }
}

#endif
