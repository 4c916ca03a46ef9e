#include "moe_combine.h"

#include "moe_experts.h"
#include "stablemoe/kernel.h"
#include "stablemoe/map.h"

/* Reals below which waking threads costs more than it saves. */
enum { PARALLEL_MIN = 32768 };

static const smoe_real *omega_of(const smoe_moe_layer *moe) {
  return moe->router.omega < 0 ? NULL : smoe_params_shared(moe->params, moe->router.omega);
}

/* The result of slot i among those in send order; no operand where it was not sent. */
static smoe_operand result_of(const smoe_moe_layer *moe, smoe_operand results, size_t i) {
  const int32_t place = smoe_moe_results(moe)->slot_place[i];
  return place < 0 ? (smoe_operand){0} : smoe_operand_at(results, (size_t)place * moe->out);
}

static bool is_there(smoe_operand result) {
  return result.wide || result.half;
}

static void add_scaled_slots(const smoe_moe_layer *moe, smoe_real *y, smoe_operand results,
                             const smoe_real *omega, size_t n) {
  const size_t k = (size_t)moe->router.n_slots, c = moe->width;
  for (size_t i = 0; i < n * k; i++) {
    const smoe_operand result = result_of(moe, results, i);
    if (!is_there(result)) continue;
    const smoe_real gate = moe->gate[i], *slot = smoe_wide_operand(result, moe->wide, c);
    smoe_real *row = y + i / k * c;
    for (size_t j = 0; j < c; j++) row[j] += gate * omega[j] * slot[j];
  }
}

void smoe_moe_add_slots(const smoe_moe_layer *moe, smoe_real *y, smoe_operand results, size_t n) {
  const size_t k = (size_t)moe->router.n_slots, c = moe->out;
  const smoe_real *omega = omega_of(moe);
  if (omega) {
    add_scaled_slots(moe, y, results, omega, n);
    return;
  }
#pragma omp parallel for schedule(static) if (n * k * c > PARALLEL_MIN)
  for (size_t t = 0; t < n; t++)
    for (size_t i = t * k; i < (t + 1) * k; i++) {
      const smoe_operand result = result_of(moe, results, i);
      if (is_there(result)) smoe_add_scaled_operand(y + t * c, moe->gate[i], result, c);
    }
}

void smoe_moe_gate_gradients(const smoe_moe_layer *moe, const smoe_real *ddelta, size_t n) {
  const size_t k = (size_t)moe->router.n_slots, o = moe->out;
#pragma omp parallel for schedule(static) if (n * k * o > PARALLEL_MIN)
  for (size_t i = 0; i < n * k; i++) {
    const smoe_operand result = result_of(moe, moe->kept, i);
    moe->dgate[i] = is_there(result) ? smoe_dot_operand(ddelta + i / k * o, result, o) : 0;
  }
}

/* domega += gate delta dy over the slots of token t. */
static void add_omega_gradient(const smoe_moe_layer *moe, smoe_real *domega, const smoe_real *dy, size_t t) {
  const size_t k = (size_t)moe->router.n_slots, c = moe->width;
  for (size_t i = t * k; i < (t + 1) * k; i++) {
    const smoe_operand result = result_of(moe, moe->kept, i);
    if (!is_there(result)) continue;
    const smoe_real gate = moe->gate[i], *slot = smoe_wide_operand(result, moe->wide, c);
    for (size_t j = 0; j < c; j++) domega[j] += gate * slot[j] * dy[j];
  }
}

const smoe_real *smoe_moe_scale_backward(const smoe_moe_layer *moe, const smoe_token_shape *tokens,
                                         const smoe_real *dy) {
  const size_t n = tokens->lane_tokens, c = moe->width;
  const smoe_real *omega = omega_of(moe);
  if (!omega) return dy;
  for (int lane = 0; lane < tokens->n_lanes; lane++) {
    smoe_real *domega = smoe_params_lane_grad(moe->params, moe->router.omega, lane);
    for (size_t t = (size_t)lane * n; t < ((size_t)lane + 1) * n; t++) {
      if (domega) add_omega_gradient(moe, domega, dy + t * c, t);
      for (size_t j = 0; j < c; j++) moe->dscaled[t * c + j] = omega[j] * dy[t * c + j];
    }
  }
  return moe->dscaled;
}

void smoe_moe_spread(const smoe_moe_layer *moe, const smoe_route_call *call, smoe_real *spread) {
  moe->router.ops->estimate(&moe->router, call, spread);
  for (size_t i = 0; i < call->n_tokens * (size_t)moe->router.n_slots; i++) spread[i] *= call->gate[i];
}
