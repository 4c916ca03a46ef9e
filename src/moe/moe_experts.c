#include "moe_experts.h"

#include "stablemoe/phase.h"

const smoe_exchange *smoe_moe_results(const smoe_moe_layer *moe) {
  return moe->out == moe->width ? &moe->exchange : &moe->narrow;
}

/* Groups travel both ways in one schedule, whose rows have one width. */
bool smoe_moe_overlaps(const smoe_moe_layer *moe) {
  return moe->out == moe->width && smoe_exchange_overlap(&moe->exchange);
}

/* Tokens to the experts, through them, and back: slot = delta. */
static void experts_forward(smoe_moe_layer *moe, const smoe_real *x) {
  smoe_phase(SMOE_PHASE_PACK);
  smoe_dispatch(&moe->exchange, moe->experts.z[0], x, NULL, moe->packing);
  smoe_phase(SMOE_PHASE_EXPERTS);
  smoe_experts_forward(&moe->experts, moe->rows, moe->exchange.expert_offset);
  smoe_phase(SMOE_PHASE_PACK);
  smoe_combine_rows(smoe_moe_results(moe), moe->slot, moe->rows, moe->packing);
}

/* The same; a group of experts computes while rows of the others travel. */
static void groups_forward(smoe_moe_layer *moe, const smoe_real *x) {
  const smoe_exchange *ex = &moe->exchange;
  smoe_phase(SMOE_PHASE_PACK);
  smoe_exchange_begin(ex, x, NULL, moe->packing);
  for (int g = 0; g < ex->n_groups; g++) {
    int first, end;
    smoe_exchange_group(ex, g, &first, &end);
    smoe_exchange_take(ex, moe->experts.z[0], g);
    smoe_phase(SMOE_PHASE_EXPERTS);
    smoe_experts_forward_some(&moe->experts, moe->rows, ex->expert_offset, first, end);
    smoe_phase(SMOE_PHASE_PACK);
    smoe_exchange_return(ex, moe->rows, g);
  }
  smoe_exchange_end_rows(ex, moe->slot);
}

/* What rows of gradients are multiplied by on their way to the experts. */
static const smoe_real *spread(const smoe_moe_layer *moe) {
  return moe->spread ? moe->spread : moe->gate;
}

/* ddelta = gate dy travels to the experts; their dx travels back and is added to dx. dy may be dx. */
static void experts_backward(smoe_moe_layer *moe, smoe_real *dx, const smoe_real *dy) {
  smoe_phase(SMOE_PHASE_PACK);
  smoe_dispatch(smoe_moe_results(moe), moe->drows, dy, spread(moe), moe->packing);
  smoe_phase(SMOE_PHASE_EXPERTS);
  smoe_experts_backward(&moe->experts, moe->rows, moe->drows, moe->exchange.expert_offset);
  smoe_phase(SMOE_PHASE_PACK);
  if (!moe->experts.data) smoe_combine_add(&moe->exchange, dx, moe->rows, moe->packing);
}

/* The same; weights' gradients are computed when the rows have left. */
static void groups_backward(smoe_moe_layer *moe, smoe_real *dx, const smoe_real *dy) {
  const smoe_exchange *ex = &moe->exchange;
  smoe_phase(SMOE_PHASE_PACK);
  smoe_exchange_begin(ex, dy, spread(moe), moe->packing);
  for (int g = 0; g < ex->n_groups; g++) {
    int first, end;
    smoe_exchange_group(ex, g, &first, &end);
    smoe_exchange_take(ex, moe->drows, g);
    smoe_phase(SMOE_PHASE_EXPERTS);
    smoe_experts_backward_rows(&moe->experts, moe->rows, moe->drows, ex->expert_offset, first, end);
    smoe_phase(SMOE_PHASE_PACK);
    smoe_exchange_return(ex, moe->rows, g);
    smoe_phase(SMOE_PHASE_EXPERTS);
    smoe_experts_backward_weights(&moe->experts, moe->drows, ex->expert_offset, first, end);
    smoe_phase(SMOE_PHASE_PACK);
  }
  smoe_exchange_end_add(ex, dx);
}

void smoe_moe_experts_forward(smoe_moe_layer *moe, const smoe_real *x) {
  if (smoe_moe_overlaps(moe))
    groups_forward(moe, x);
  else
    experts_forward(moe, x);
}

void smoe_moe_experts_backward(smoe_moe_layer *moe, smoe_real *dx, const smoe_real *dy) {
  if (smoe_moe_overlaps(moe))
    groups_backward(moe, dx, dy);
  else
    experts_backward(moe, dx, dy);
}

void smoe_moe_skip_slots(smoe_moe_layer *moe, size_t n) {
  for (size_t i = 0; moe->skip_below > 0 && i < n * (size_t)moe->router.n_slots; i++) {
    if (moe->expert[i] < 0 || !(moe->gate[i] < moe->skip_below)) continue;
    moe->expert[i] = smoe_slot_dropped(moe->expert[i]);
    moe->n_skipped++;
  }
}

void smoe_moe_work(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const smoe_moe_layer *moe = layer->state;
  const smoe_token_shape *s = &shape[moe->stream];
  const smoe_ffn_shape *ffn = &moe->experts.shape;
  const int e = moe->router.n_experts;
  const double share = moe->router.ops->load_share ? moe->router.ops->load_share(&moe->router)
                                                   : (double)moe->router.typical_slots / (double)e;
  const size_t rows = (size_t)((double)s->n_global * share + 0.5);
  const double calls = (double)moe->experts.n_sublayers * (double)e;
  smoe_work_linear(work, rows, ffn->width, smoe_ffn_columns(ffn), calls,
                   smoe_layer_learns(layer, moe->experts.sublayer[0].w1));
  smoe_work_linear(work, rows, ffn->inner, smoe_ffn_out(ffn), calls,
                   smoe_layer_learns(layer, moe->experts.sublayer[0].w2));
  if (moe->shared.state) moe->shared.spec.ops->work(&moe->shared, shape, work);
}
