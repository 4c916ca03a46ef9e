#include "moe_combine.h"

#include "stablemoe/kernel.h"

static const smoe_real *omega_of(const smoe_moe_layer *moe) {
  return moe->router.omega < 0 ? NULL : smoe_params_shared(moe->params, moe->router.omega);
}

static void add_scaled_slots(const smoe_moe_layer *moe, smoe_real *y, const smoe_real *omega, size_t n) {
  const size_t k = (size_t)moe->router.n_slots, c = moe->width;
  for (size_t i = 0; i < n * k; i++) {
    const smoe_real gate = moe->gate[i], *slot = moe->slot + i * c;
    smoe_real *row = y + i / k * c;
    for (size_t j = 0; j < c; j++) row[j] += gate * omega[j] * slot[j];
  }
}

void smoe_moe_add_slots(const smoe_moe_layer *moe, smoe_real *y, size_t n) {
  const size_t k = (size_t)moe->router.n_slots, c = moe->out;
  const smoe_real *omega = omega_of(moe);
  if (omega) {
    add_scaled_slots(moe, y, omega, n);
    return;
  }
  if (k == 1) {
    smoe_add_rows_scaled(y, moe->gate, 1, moe->slot, n, c);
    return;
  }
  for (size_t t = 0; t < n; t++)
    for (size_t i = t * k; i < (t + 1) * k; i++)
      smoe_add_rows_scaled(y + t * c, moe->gate + i, 1, moe->slot + i * c, 1, c);
}

const smoe_real *smoe_moe_scale_backward(const smoe_moe_layer *moe, const smoe_token_shape *tokens,
                                         const smoe_real *dy) {
  const size_t n = tokens->lane_tokens, k = (size_t)moe->router.n_slots, c = moe->width;
  const smoe_real *omega = omega_of(moe);
  if (!omega) return dy;
  for (int lane = 0; lane < tokens->n_lanes; lane++) {
    smoe_real *domega = smoe_params_lane_grad(moe->params, moe->router.omega, lane);
    for (size_t t = (size_t)lane * n; t < ((size_t)lane + 1) * n; t++) {
      for (size_t i = t * k; domega && i < (t + 1) * k; i++)
        for (size_t j = 0; j < c; j++) domega[j] += moe->gate[i] * moe->slot[i * c + j] * dy[t * c + j];
      for (size_t j = 0; j < c; j++) moe->dscaled[t * c + j] = omega[j] * dy[t * c + j];
    }
  }
  return moe->dscaled;
}

void smoe_moe_spread(const smoe_moe_layer *moe, const smoe_route_call *call, smoe_real *spread) {
  moe->router.ops->estimate(&moe->router, call, spread);
  for (size_t i = 0; i < call->n_tokens * (size_t)moe->router.n_slots; i++) spread[i] *= call->gate[i];
}
