/** What a model decides in a forward pass: between two points with the same decisions its loss is smooth. */
#ifndef STABLEMOE_TEST_DECISIONS_H
#define STABLEMOE_TEST_DECISIONS_H

#include "../model_fixture.h"
#include "piecewise.h"
#include "stablemoe/moe_layer.h"

/** Add which units are active and which experts were chosen.
 *  shape  in  [SMOE_STREAMS] of the batch
 */
static inline void piece_add_model(uint64_t *piece, const smoe_model *model, const smoe_token_shape *shape) {
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_layer_spec *spec = &model->layer[i].spec;
    if (spec->ops == &smoe_layer_ffn && spec->activation == SMOE_RELU)
      piece_add_active(piece, smoe_layer_ffn_tape(&model->layer[i])->h.wide,
                       shape[spec->stream].n_tokens * spec->inner);
  }
  for (int m = 0; m < model->n_moe; m++) {
    const smoe_moe_layer *moe = model->moe[m];
    const size_t n = shape[moe->stream].n_tokens;
    piece_add_choices(piece, moe->expert, n * (size_t)moe->router.n_slots);
    piece_add_choices(piece, moe->learned, n);
    for (int s = 0; s < moe->experts.n_sublayers && moe->experts.shape.activation == SMOE_RELU; s++)
      piece_add_active(piece, moe->experts.tape[s].h.wide, moe->exchange.n_recv * moe->experts.shape.inner);
  }
}

#endif
