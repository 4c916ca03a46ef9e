/* Decoding behind a gate: the state is [S] decisions, with a running mean [S, T, C] sums up to each row (a text may be
 * continued from an earlier place), then the states of the sublayers. */
#include <string.h>

#include "skip_parts.h"

static size_t own_reals(const skip *s, size_t n_sequences, size_t length_max) {
  return n_sequences * (1 + (smoe_skip_is_running(s) ? length_max * s->width : 0));
}

static size_t inner_reals(const smoe_layer *inner, size_t n_sequences, size_t length_max, size_t side_max) {
  const smoe_layer_ops *ops = inner->spec.ops;
  return ops->state_reals ? ops->state_reals(inner, n_sequences, length_max, side_max) : 0;
}

size_t smoe_skip_state_reals(const smoe_layer *layer, size_t n_sequences, size_t length_max,
                             size_t side_max) {
  const skip *s = layer->state;
  size_t n = own_reals(s, n_sequences, length_max);
  for (int i = 0; i < s->n_inner; i++) n += inner_reals(&s->inner[i], n_sequences, length_max, side_max);
  return n;
}

/* Means over the rows so far of one sequence's new rows [n, C], whose sums are kept. */
static void pool_new(const skip *s, const smoe_extend_call *call, smoe_real *pooled, smoe_real *sums) {
  const size_t c = s->width;
  smoe_real *sum = s->rows;
  if (call->first > 0)
    memcpy(sum, sums + (call->first - 1) * c, c * sizeof *sum);
  else
    memset(sum, 0, c * sizeof *sum);
  for (size_t t = 0; t < call->n; t++) {
    smoe_skip_pool_running(pooled + t * c, sum, call->first + t, 1, c);
    memcpy(sums + (call->first + t) * c, sum, c * sizeof *sum);
  }
}

/* Decisions on the new rows, in s->active. */
static void decide_new(smoe_layer *layer, const smoe_extend_call *call) {
  skip *s = layer->state;
  const size_t c = s->width, n = call->n, all = call->n_sequences * n;
  smoe_real *decided = call->state, *sums = decided + call->n_sequences;
  smoe_norm_rows(s->norm, (smoe_operand){.wide = s->pooled}, s->mean, s->rstd, call->x,
                 smoe_layer_value(layer, s->gamma), smoe_layer_value(layer, s->beta), all, c);
  for (size_t q = 0; q < call->n_sequences; q++) {
    smoe_real *own = s->pooled + q * n * c;
    if (smoe_skip_is_running(s))
      pool_new(s, call, own, sums + q * call->length_max * c);
    else if (smoe_skip_is_whole(s))
      smoe_skip_pool_whole(own, s->rows, NULL, n, c);
  }
  smoe_skip_decide_rows(layer, call->pass, s->pooled, s->r, s->ran, NULL,
                        smoe_skip_is_whole(s) ? 0 : (uint64_t)call->first, all, n);
  for (size_t i = 0; i < all; i++) s->active[i] = s->ran[i];
  if (!smoe_skip_is_whole(s)) return;
  for (size_t q = 0; q < call->n_sequences; q++) {
    if (call->first == 0) decided[q] = s->active[q * n];
    for (size_t i = 0; i < n; i++) s->active[q * n + i] = decided[q] > 0;
  }
}

static void extend_some(skip *s, smoe_layer *inner, const smoe_extend_call *call, size_t n_active) {
  const size_t all = call->n_sequences * call->n, c = s->width;
  const bool attention = inner->spec.ops == &smoe_layer_attention;
  if (n_active == all) {
    inner->spec.ops->extend(inner, call);
  } else if (attention && (n_active > 0 || !smoe_skip_is_whole(s))) {
    smoe_layer_attention_extend_some(inner, call, s->active);
  } else if (n_active == 0) {
    memcpy(call->y, call->x, all * c * sizeof *call->y);
  } else {
    const smoe_layer_call own = {
        .pass = call->pass, .n = all, .n_sequences = 1, .context = all, .x = call->x, .y = call->y};
    smoe_skip_ffn_some(s, inner, &own, s->active);
  }
}

void smoe_skip_extend(smoe_layer *layer, const smoe_extend_call *call) {
  skip *s = layer->state;
  const size_t all = call->n_sequences * call->n;
  size_t n_active = 0;
  decide_new(layer, call);
  for (size_t i = 0; i < all; i++) n_active += s->active[i];
  s->seen[0] += all;
  s->seen[1] += n_active;
  smoe_extend_call own = *call;
  own.state += own_reals(s, call->n_sequences, call->length_max);
  for (int i = 0; i < s->n_inner; i++) {
    own.y = i + 1 < s->n_inner ? s->mid : call->y;
    extend_some(s, &s->inner[i], &own, n_active);
    own.x = own.y;
    own.state += inner_reals(&s->inner[i], call->n_sequences, call->length_max, call->side_context);
  }
}

void smoe_skip_reorder(const smoe_layer *layer, smoe_real *state, const int32_t *from, size_t n_sequences,
                       size_t length, size_t length_max, size_t side_max) {
  const skip *s = layer->state;
  smoe_reorder_rows(state, from, n_sequences, 1, 1);
  if (smoe_skip_is_running(s))
    smoe_reorder_rows(state + n_sequences, from, n_sequences, length * s->width, length_max * s->width);
  state += own_reals(s, n_sequences, length_max);
  for (int i = 0; i < s->n_inner; i++) {
    const smoe_layer *inner = &s->inner[i];
    if (inner->spec.ops->reorder)
      inner->spec.ops->reorder(inner, state, from, n_sequences, length, length_max, side_max);
    state += inner_reals(inner, n_sequences, length_max, side_max);
  }
}
