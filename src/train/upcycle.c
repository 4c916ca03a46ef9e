#include "upcycle.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/random.h"

/* Counters of the random numbers, apart from those of initial values by their name. */
typedef struct draws {
  uint64_t seed;
  uint32_t noise, unit, redrawn;
} draws;

static const smoe_layer_spec *spec_of(const smoe_model *model, int m) {
  for (int i = 0; i < model->n_layers; i++)
    if (model->layer[i].spec.moe == m) return &model->layer[i].spec;
  return NULL;
}

static bool wanted(const smoe_model *model) {
  return smoe_config_settings(model->config)->moe.from == SMOE_FROM_FFN;
}

int smoe_upcycle_source(const smoe_model *model, int param, char *name) {
  const char *own = model->params.param[param].name;
  int m, used = 0;
  if (!wanted(model) || sscanf(own, "moe%d/%n", &m, &used) < 1 || used == 0) return -1;
  const smoe_layer_spec *spec = spec_of(model, m);
  const char *rest = own + used;
  if (strncmp(rest, "expert/ffn0/", 12) == 0)
    rest += 12;
  else if (strncmp(rest, "norm/", 5) != 0)
    return -1;
  snprintf(name, SMOE_NAME_MAX, "%s/%s", spec->from, rest);
  return m;
}

smoe_status smoe_upcycle_check(const smoe_model *model, int m, const smoe_layer_spec *dense,
                               const smoe_checkpoint_content *w2, int64_t *slices) {
  const smoe_layer_spec *spec = spec_of(model, m);
  const int64_t c = (int64_t)spec->width, f = (int64_t)spec->inner, k = model->moe[m]->router.n_slots;
  SMOE_CHECK(dense && dense->ops == &smoe_layer_ffn && w2 && w2->n_dims == 2, SMOE_ERR_CONFIG,
             "moe.from: ffn: train.initial has no feed-forward layer '%s' to make the experts of moe%d from",
             spec->from, m);
  SMOE_CHECK(dense->norm == spec->norm && dense->activation == spec->activation && dense->bias == spec->bias,
             SMOE_ERR_CONFIG,
             "moe.from: ffn: '%s' of train.initial has another norm, activation or use of biases than the "
             "experts of "
             "moe%d",
             spec->from, m);
  SMOE_CHECK(spec->shared == 0, SMOE_ERR_CONFIG,
             "moe.from: ffn makes routed experts alone: set model.decoder.shared_experts=0");
  SMOE_CHECK(
      w2->shape[0] == c && w2->shape[1] % f == 0, SMOE_ERR_CONFIG,
      "moe.from: ffn: '%s' is %lld wide with %lld inner units; the experts of moe%d are %lld wide with "
      "moe.inner=%lld, which has to divide those",
      spec->from, (long long)w2->shape[0], (long long)w2->shape[1], m, (long long)c, (long long)f);
  *slices = w2->shape[1] / f;
  SMOE_CHECK(spec->experts % *slices == 0 && k % *slices == 0, SMOE_ERR_CONFIG,
             "moe.from: ffn: moe.inner cuts '%s' into %lld slices, and moe.experts %d and the %lld experts "
             "of a token "
             "have to be multiples of that",
             spec->from, (long long)*slices, spec->experts, (long long)k);
  return SMOE_OK;
}

static double mean_of(const smoe_real *x, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += (double)x[i];
  return sum / (double)n;
}

static double deviation(const smoe_real *x, size_t n, double mean) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += ((double)x[i] - mean) * ((double)x[i] - mean);
  return sqrt(sum / (double)n);
}

/* One element of an expert: the dense one, redrawn, or with noise. */
typedef struct element {
  double mean, deviation, rms; /* of the dense parameter */
  double noise, redrawn;       /* shares */
  draws draws;
  uint64_t first; /* index of the expert's first element */
  uint64_t unit0; /* and of its first inner unit */
} element;

static bool is_redrawn(const element *e, int64_t unit) {
  return e->redrawn > 0 && smoe_random_uniform(e->draws.seed, SMOE_RANDOM_INIT, e->draws.unit,
                                               e->unit0 + (uint64_t)unit) < e->redrawn;
}

static smoe_real value_of(const element *e, double dense, bool redrawn, uint64_t index) {
  if (redrawn)
    return (smoe_real)(e->mean + e->deviation * smoe_random_normal(e->draws.seed, SMOE_RANDOM_INIT,
                                                                   e->draws.redrawn, e->first + index));
  if (e->noise > 0)
    dense += e->noise * e->rms *
             smoe_random_normal(e->draws.seed, SMOE_RANDOM_INIT, e->draws.noise, e->first + index);
  return (smoe_real)dense;
}

/* [halves f, columns] of [halves F, columns]: the rows of the slice's units. */
static void fill_rows(smoe_real *out, const smoe_real *source, const element *e, int64_t halves,
                      int64_t inner, int64_t f, int64_t columns, int64_t slice) {
  for (int64_t h = 0; h < halves; h++)
    for (int64_t u = 0; u < f; u++) {
      const bool redrawn = is_redrawn(e, u);
      const smoe_real *from = source + (h * inner + slice * f + u) * columns;
      for (int64_t i = 0; i < columns; i++) {
        const int64_t at = (h * f + u) * columns + i;
        out[at] = value_of(e, (double)from[i], redrawn, (uint64_t)at);
      }
    }
}

/* [C, f] of [C, F], times the number of slices, whose gates share the sum 1. */
static void fill_columns(smoe_real *out, const smoe_real *source, const element *e, int64_t rows,
                         int64_t inner, int64_t f, int64_t slice, int64_t slices) {
  for (int64_t u = 0; u < f; u++) {
    const bool redrawn = is_redrawn(e, u);
    for (int64_t r = 0; r < rows; r++) {
      const uint64_t at = (uint64_t)(r * f + u);
      out[r * f + u] =
          (smoe_real)slices * value_of(e, (double)source[r * inner + slice * f + u], redrawn, at);
    }
  }
}

static void fill_expert(const smoe_model *model, int param, const smoe_real *source, const element *e,
                        int64_t slice, int64_t slices, smoe_real *out) {
  const smoe_param *p = &model->params.param[param];
  int m;
  sscanf(p->name, "moe%d/", &m);
  const smoe_layer_spec *spec = spec_of(model, m);
  const int64_t f = (int64_t)spec->inner, inner = f * slices,
                halves = spec->activation == SMOE_SWIGLU ? 2 : 1;
  const char *last = strrchr(p->name, '/') + 1;
  if (strcmp(last, "w1") == 0)
    fill_rows(out, source, e, halves, inner, f, (int64_t)spec->width, slice);
  else if (strcmp(last, "b1") == 0)
    fill_rows(out, source, e, halves, inner, f, 1, slice);
  else if (strcmp(last, "w2") == 0)
    fill_columns(out, source, e, (int64_t)spec->width, inner, f, slice, slices);
  else
    for (size_t i = 0; i < p->count; i++) out[i] = value_of(e, (double)source[i], false, i);
}

void smoe_upcycle_fill(smoe_model *model, int param, const smoe_checkpoint_content *content,
                       const smoe_real *source, int64_t slices) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const smoe_param *p = &model->params.param[param];
  if (p->sharding == SMOE_REPLICATED) {
    if (smoe_params_writes(&model->params))
      memcpy(smoe_params_shared(&model->params, param), source, p->count * sizeof *source);
    return;
  }
  size_t n = 1;
  for (int d = 0; d < content->n_dims; d++) n *= (size_t)content->shape[d];
  char text[SMOE_NAME_MAX + 32];
  int m;
  sscanf(p->name, "moe%d/", &m);
  element e = {.noise = settings->moe.from_noise, .redrawn = settings->moe.from_redrawn};
  e.draws.seed = (uint64_t)settings->run.seed;
  snprintf(text, sizeof text, "%s noise", p->name);
  e.draws.noise = smoe_hash_text(text);
  snprintf(text, sizeof text, "%s redrawn", p->name);
  e.draws.redrawn = smoe_hash_text(text);
  snprintf(text, sizeof text, "moe%d units", m);
  e.draws.unit = smoe_hash_text(text);
  e.mean = mean_of(source, n);
  e.deviation = deviation(source, n, e.mean);
  e.rms = deviation(source, n, 0);
  const smoe_slab *slab = smoe_params_slab(&model->params, param);
  for (int j = 0; j < slab->n_local; j++) {
    const int64_t expert = smoe_slab_expert_number(slab, j);
    e.first = (uint64_t)expert * p->count;
    e.unit0 = (uint64_t)expert * (uint64_t)spec_of(model, m)->inner;
    fill_expert(model, param, source, &e, expert % slices, slices,
                smoe_params_expert(&model->params, param, j));
  }
}

void smoe_upcycle_tie(smoe_model *model, int m, int64_t slices) {
  char prefix[SMOE_NAME_MAX];
  snprintf(prefix, sizeof prefix, "moe%d/router/", m);
  const int64_t n_experts = spec_of(model, m)->experts;
  for (int p = 0; p < model->params.n_params && smoe_params_writes(&model->params); p++) {
    const smoe_param *param = &model->params.param[p];
    if (strncmp(param->name, prefix, strlen(prefix)) != 0 || param->sharding != SMOE_REPLICATED) continue;
    if (param->shape[0] != n_experts) continue;
    const size_t row = param->count / (size_t)n_experts;
    smoe_real *values = smoe_params_shared(&model->params, p);
    for (int64_t e = 0; e < n_experts; e++)
      if (e % slices)
        memcpy(values + (size_t)e * row, values + (size_t)(e - e % slices) * row, row * sizeof *values);
  }
}
