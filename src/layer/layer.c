#include "stablemoe/layer.h"

#include <stdio.h>
#include <string.h>

void smoe_layer_create(smoe_layer *layer, const smoe_layer_spec *spec, const smoe_config *config,
                       smoe_params *params) {
  *layer = (smoe_layer){.spec = *spec,
                        .config = config,
                        .params = params,
                        .precision = (smoe_precision)smoe_config_settings(config)->train.precision,
                        .state = smoe_alloc(spec->ops->bytes)};
}

void smoe_layer_destroy(smoe_layer *layer) {
  if (layer->state && layer->spec.ops->release) layer->spec.ops->release(layer);
  smoe_free(layer->state);
  *layer = (smoe_layer){0};
}

int smoe_layer_declare_weight(smoe_layer *layer, const char *name, const int64_t *shape, smoe_init init) {
  const int index = smoe_layer_declare(layer, name, shape, init, true);
  if (layer->precision == SMOE_BF16) smoe_params_keep_rounded(layer->params, index);
  return index;
}

smoe_operand smoe_layer_weight(const smoe_layer *layer, int index) {
  return index < 0 ? (smoe_operand){0} : smoe_params_operand(layer->params, index, 0);
}

const smoe_real *smoe_layer_value(const smoe_layer *layer, int index) {
  return index < 0 ? NULL : smoe_params_shared(layer->params, index);
}

smoe_real *smoe_layer_grad(const smoe_layer *layer, int index, int lane) {
  return index < 0 ? NULL : smoe_params_lane_grad(layer->params, index, lane);
}

smoe_init smoe_layer_output_init(smoe_output output, smoe_init learned) {
  if (output == SMOE_OUTPUT_LEARNED) return learned;
  return (smoe_init){output == SMOE_OUTPUT_CLASS ? SMOE_INIT_CLASS : SMOE_INIT_NORMAL, 1, false};
}

int smoe_layer_declare(smoe_layer *layer, const char *name, const int64_t *shape, smoe_init init,
                       bool decay) {
  return smoe_params_declare(layer->params, SMOE_REPLICATED, shape, init, decay, "%s/%s", layer->spec.name,
                             name);
}

void smoe_layer_dropout(const smoe_layer *layer, const smoe_layer_call *call, smoe_real *x) {
  if (!(layer->spec.dropout > 0) || !call->pass->training) return;
  const smoe_dropout dropout = {.share = layer->spec.dropout,
                                .seed = call->pass->seed,
                                .update = (uint32_t)call->pass->update,
                                .site = (uint32_t)layer->number};
  smoe_dropout_apply(x, NULL, (int64_t)call->first_index, call->n, layer->spec.width, &dropout);
}

const smoe_real *smoe_layer_dropout_backward(const smoe_layer *layer, const smoe_layer_call *call,
                                             smoe_real *dy) {
  if (!(layer->spec.dropout > 0) || !call->pass->training) return call->dx;
  memcpy(dy, call->dx, call->n * layer->spec.width * sizeof *dy);
  smoe_layer_dropout(layer, call, dy);
  return dy;
}

static void add_product(smoe_work *work, smoe_product product) {
  work->product = smoe_realloc(work->product, (work->n + 1) * sizeof *work->product);
  work->product[work->n++] = product;
}

bool smoe_layer_learns(const smoe_layer *layer, int index) {
  return index >= 0 && smoe_params_slab(layer->params, index)->learns;
}

void smoe_work_linear(smoe_work *work, size_t n, size_t c, size_t o, double count, bool learns) {
  add_product(work, (smoe_product){false, true, n, o, c, count});
  if (work->forward_only) return;
  add_product(work, (smoe_product){false, false, n, c, o, count});
  if (learns || work->everything) add_product(work, (smoe_product){true, false, o, c, n, count});
}

void smoe_work_attention(smoe_work *work, double s, double t, double tk, double h, double d, bool causal) {
  /* q k^T and p v forward, four products of that size backward. */
  const double pairs = causal ? t * (t + 1) / 2 : t * tk;
  work->other += (work->forward_only ? 1 : 3) * 2 * 2.0 * s * h * d * pairs;
}

void smoe_reorder_rows(smoe_real *state, const int32_t *from, size_t n, size_t used, size_t stride) {
  smoe_real *old = smoe_alloc(n * used * sizeof *old);
  for (size_t i = 0; i < n; i++) memcpy(old + i * used, state + i * stride, used * sizeof *old);
  for (size_t i = 0; i < n; i++)
    if ((size_t)from[i] != i) memcpy(state + i * stride, old + (size_t)from[i] * used, used * sizeof *old);
  smoe_free(old);
}
