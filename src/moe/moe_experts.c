#include "moe_experts.h"

#include "stablemoe/phase.h"

const smoe_exchange *smoe_moe_results(const smoe_moe_layer *moe) {
  return moe->out == moe->width ? &moe->exchange : &moe->narrow;
}

/* Groups travel both ways in one schedule, whose rows have one width. */
bool smoe_moe_overlaps(const smoe_moe_layer *moe) {
  return moe->out == moe->width && smoe_exchange_overlap(&moe->exchange);
}

static void *keep_of(const smoe_moe_layer *moe) {
  return moe->kept.half ? (void *)moe->kept.half : moe->kept.wide;
}

/* Tokens to the experts, through them, and back. */
static smoe_operand experts_forward(smoe_moe_layer *moe, const smoe_real *x) {
  const smoe_exchange *back = smoe_moe_results(moe);
  smoe_real *rows = moe->keeps && smoe_exchange_in_place(back) ? moe->kept.wide : moe->rows;
  smoe_phase(SMOE_PHASE_PACK);
  smoe_dispatch(&moe->exchange, moe->experts.z[0], x, NULL, moe->packing);
  smoe_phase(SMOE_PHASE_EXPERTS);
  smoe_experts_forward(&moe->experts, rows, moe->exchange.expert_offset);
  smoe_phase(SMOE_PHASE_PACK);
  return smoe_combine_rows(back, keep_of(moe), rows, moe->packing);
}

/* The same; a group of experts computes while rows of the others travel. */
static smoe_operand groups_forward(smoe_moe_layer *moe, const smoe_real *x) {
  const smoe_exchange *ex = &moe->exchange;
  smoe_phase(SMOE_PHASE_PACK);
  smoe_exchange_begin(ex, x, NULL, keep_of(moe), moe->packing);
  for (int g = 0; g < ex->n_groups; g++) {
    int first, end;
    smoe_exchange_group(ex, g, &first, &end);
    smoe_exchange_take(ex, moe->experts.z[0], g);
    smoe_phase(SMOE_PHASE_EXPERTS);
    smoe_experts_forward_some(&moe->experts, moe->rows, ex->expert_offset, first, end);
    smoe_phase(SMOE_PHASE_PACK);
    smoe_exchange_return(ex, moe->rows, g);
  }
  return smoe_exchange_end_rows(ex);
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
  smoe_exchange_begin(ex, dy, spread(moe), NULL, moe->packing);
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

smoe_operand smoe_moe_experts_forward(smoe_moe_layer *moe, const smoe_real *x) {
  return smoe_moe_overlaps(moe) ? groups_forward(moe, x) : experts_forward(moe, x);
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

/* Rows of an expert as a share of all tokens, where loads are even. */
static double typical_share(const smoe_router *router) {
  return router->ops->load_share ? router->ops->load_share(router)
                                 : router->typical_slots / (double)router->n_experts;
}

double smoe_moe_untouched(const smoe_layer *layer, bool training, bool with_scratch) {
  const smoe_moe_layer *moe = layer->state;
  const smoe_exchange *ex = &moe->exchange;
  const double share = typical_share(&moe->router);
  const double slots = moe->router.n_slots - share * moe->router.n_experts;
  const double kept = moe->keeps && slots > 0
                          ? slots * (double)ex->shape.n_tokens_max * (double)smoe_moe_results(moe)->row_bytes
                          : 0;
  const double balanced = (double)ex->shape.n_replica_max * share * (double)ex->n_local;
  const double rows = (double)smoe_exchange_rows_max(ex) - balanced;
  if (!(rows > 0)) return kept;
  const double c = (double)moe->width * (double)sizeof(smoe_real);
  const double packing = smoe_exchange_scratch_share(ex) * (double)ex->row_bytes;
  /* packing, rows, drows */
  const double scratch =
      packing + (training ? 2 : 1) * c + smoe_experts_scratch_bytes(&moe->experts, training);
  return kept + rows * (smoe_experts_tape_bytes(&moe->experts, training) + (with_scratch ? scratch : 0));
}

void smoe_moe_work(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const smoe_moe_layer *moe = layer->state;
  const smoe_token_shape *s = &shape[moe->stream];
  const smoe_ffn_shape *ffn = &moe->experts.shape;
  const int e = moe->router.n_experts;
  const double share = typical_share(&moe->router);
  const size_t rows = (size_t)((double)s->n_global * share + 0.5);
  const double calls = (double)moe->experts.n_sublayers * (double)e;
  smoe_work_linear(work, rows, ffn->width, smoe_ffn_columns(ffn), calls,
                   smoe_layer_learns(layer, moe->experts.sublayer[0].w1));
  smoe_work_linear(work, rows, ffn->inner, smoe_ffn_out(ffn), calls,
                   smoe_layer_learns(layer, moe->experts.sublayer[0].w2));
  if (moe->shared.state) moe->shared.spec.ops->work(&moe->shared, shape, work);
}
