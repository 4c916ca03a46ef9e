/* The embedding: y = dropout(scale table[token] + position), the first layer of a stream. */
#include <math.h>

#include "stablemoe/layer.h"
#include "stablemoe/phase.h"

typedef struct embedding {
  int table, position;
} embedding;

static void declare_embedding(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  embedding *e = layer->state;
  const int64_t c = (int64_t)spec->width;
  /* The table is the head too where that is tied: 1/sqrt(C) keeps its logits of order one, and spec->scale is
   * sqrt(C) then (model.scale_embedding). */
  const smoe_init normal = {SMOE_INIT_NORMAL, 1 / sqrt((double)c), false};
  e->position = -1;
  if (spec->tied)
    e->table = smoe_params_find(layer->params, "embedding/table");
  else
    e->table = smoe_layer_declare(layer, "table", (int64_t[]){(int64_t)spec->vocabulary, c, 0}, normal, true);
  if (spec->positions)
    e->position =
        smoe_layer_declare(layer, "position", (int64_t[]){(int64_t)spec->context, c, 0}, normal, true);
}

static void layout_embedding(smoe_layer *layer, const smoe_layer_memory *memory) {
}

static void forward_embedding(smoe_layer *layer, const smoe_layer_call *call) {
  const embedding *e = layer->state;
  smoe_phase(SMOE_PHASE_EMBEDDING);
  smoe_embedding_forward(call->y, call->token, smoe_layer_value(layer, e->table),
                         smoe_layer_value(layer, e->position), (smoe_real)layer->spec.scale,
                         call->n_sequences, call->context, layer->spec.width);
  smoe_layer_dropout(layer, call, call->y);
}

static void backward_embedding(smoe_layer *layer, const smoe_layer_call *call) {
  const embedding *e = layer->state;
  smoe_phase(SMOE_PHASE_EMBEDDING);
  smoe_layer_dropout(layer, call, call->dx);
  smoe_embedding_backward(smoe_layer_grad(layer, e->table, call->lane),
                          smoe_layer_grad(layer, e->position, call->lane), call->dx, call->token,
                          (smoe_real)layer->spec.scale, call->n_sequences, call->context, layer->spec.width);
}

static void extend_embedding(smoe_layer *layer, const smoe_extend_call *call) {
  const embedding *e = layer->state;
  const size_t c = layer->spec.width;
  const smoe_real *position = smoe_layer_value(layer, e->position);
  for (size_t s = 0; s < call->n_sequences; s++)
    smoe_embedding_forward(call->y + s * call->n * c, call->token + s * call->length_max + call->first,
                           smoe_layer_value(layer, e->table), position ? position + call->first * c : NULL,
                           (smoe_real)layer->spec.scale, 1, call->n, c);
}

const smoe_layer_ops smoe_layer_embedding = {
    .kind = "embedding",
    .bytes = sizeof(embedding),
    .declare = declare_embedding,
    .layout = layout_embedding,
    .forward = forward_embedding,
    .backward = backward_embedding,
    .extend = extend_embedding,
};
