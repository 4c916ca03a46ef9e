/* A sublayer behind a gate. In training every row is computed, so that the gate's gradient is known for all; in evaluation
 * and decoding rows that skip cost no product. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "skip_parts.h"
#include "stablemoe/phase.h"
#include "stablemoe/random.h"

/* ---- setting up ---- */

static void add_inner(smoe_layer *layer, const smoe_layer_ops *ops, const char *suffix) {
  skip *s = layer->state;
  smoe_layer_spec spec = layer->spec;
  spec.ops = ops;
  spec.skip = SMOE_SKIP_NOTHING;
  if (suffix) snprintf(spec.name, sizeof spec.name, "%.32s/%s", layer->spec.name, suffix);
  smoe_layer *inner = &s->inner[s->n_inner++];
  smoe_layer_create(inner, &spec, layer->config, layer->params);
  /* Two layers of a block draw different numbers for their dropout. */
  inner->number = layer->number + (s->n_inner - 1) * 0x10000;
  ops->declare(inner);
}

static void declare_skip(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  skip *s = layer->state;
  s->options = smoe_config_options(layer->config, &smoe_skip_keys);
  s->width = spec->width;
  s->norm = spec->norm;
  s->gamma = s->beta = s->gate = -1;
  const bool block = spec->skip == SMOE_SKIP_BLOCK;
  if (spec->skip != SMOE_SKIP_FFN) add_inner(layer, &smoe_layer_attention, block ? "attention" : NULL);
  if (spec->skip != SMOE_SKIP_ATTENTION) add_inner(layer, &smoe_layer_ffn, block ? "ffn" : NULL);
  char name[SMOE_NAME_MAX];
  snprintf(name, sizeof name, "%s/norm/gamma", s->inner[0].spec.name);
  s->gamma = smoe_params_find(layer->params, name);
  snprintf(name, sizeof name, "%s/norm/beta", s->inner[0].spec.name);
  s->beta = smoe_params_find(layer->params, name);
  if (s->options->choice == SMOE_SKIP_BY_GATE)
    s->gate = smoe_layer_declare(layer, "gate", (int64_t[]){(int64_t)spec->width, 0},
                                 (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false);
}

static void layout_skip(smoe_layer *layer, const smoe_layer_memory *memory) {
  skip *s = layer->state;
  const smoe_token_shape *shape = &memory->shape[layer->spec.stream];
  const size_t lane = shape->lane_tokens, n = (size_t)memory->tape_lanes * lane, c = s->width;
  s->kept = memory->tape_lanes > 1;
  s->n_lanes = shape->n_lanes;
  s->count = smoe_arena_take(memory->fixed, (size_t)shape->n_lanes * 2 * sizeof *s->count);
  s->mean = smoe_arena_reals(memory->tape, n);
  s->rstd = smoe_arena_reals(memory->tape, n);
  s->pooled = smoe_arena_reals(memory->tape, n * c);
  s->r = smoe_arena_reals(memory->tape, n);
  /* Layers share tapes, and this is read after the pass. */
  s->ran = smoe_arena_ints(memory->fixed, shape->n_tokens);
  s->delta = memory->training ? smoe_arena_reals(memory->tape, n * c) : NULL;
  s->mid = s->n_inner > 1 ? smoe_arena_reals(memory->tape, n * c) : NULL;
  s->active = smoe_arena_take(memory->scratch, lane * sizeof *s->active);
  s->full = smoe_arena_reals(memory->scratch, lane * c);
  s->rows = smoe_arena_reals(memory->scratch, lane * c);
  s->passed = s->dpooled = NULL;
  if (memory->training) {
    s->passed = smoe_arena_reals(memory->scratch, lane * c);
    s->dpooled = smoe_arena_reals(memory->scratch, lane * c);
  }
  for (int i = 0; i < s->n_inner; i++) s->inner[i].spec.ops->layout(&s->inner[i], memory);
}

static void release_skip(smoe_layer *layer) {
  skip *s = layer->state;
  for (int i = 0; i < s->n_inner; i++) smoe_layer_destroy(&s->inner[i]);
}

/* ---- decisions ---- */

bool smoe_skip_is_whole(const skip *s) {
  return s->options->unit == SMOE_SKIP_SEQUENCE && s->options->mean == SMOE_SKIP_WHOLE;
}

bool smoe_skip_is_running(const skip *s) {
  return s->options->unit == SMOE_SKIP_SEQUENCE && s->options->mean == SMOE_SKIP_RUNNING;
}

/* Rows of one sequence in pooled: norm(x) in, what the gate looks at out. sum [C] continues over `before` rows. */
void smoe_skip_pool_running(smoe_real *pooled, smoe_real *sum, size_t before, size_t n, size_t c) {
  for (size_t t = 0; t < n; t++) {
    const smoe_real count = (smoe_real)(before + t + 1);
    for (size_t j = 0; j < c; j++) {
      sum[j] += pooled[t * c + j];
      pooled[t * c + j] = sum[j] / count;
    }
  }
}

/* All rows get the mean of the real ones. */
void smoe_skip_pool_whole(smoe_real *pooled, smoe_real *sum, const int32_t *token, size_t n, size_t c) {
  size_t real = 0;
  memset(sum, 0, c * sizeof *sum);
  for (size_t t = 0; t < n; t++) {
    if (token && token[t] < 0) continue;
    smoe_add(sum, pooled + t * c, c);
    real++;
  }
  for (size_t j = 0; j < c; j++) sum[j] /= (smoe_real)(real ? real : 1);
  for (size_t t = 0; t < n; t++) memcpy(pooled + t * c, sum, c * sizeof *sum);
}

static double chance(const smoe_layer *layer, const smoe_pass *pass, uint64_t index) {
  const uint32_t stream = smoe_hash_text(layer->spec.name) + (pass->training ? (uint32_t)pass->update : 0);
  return smoe_random_uniform(pass->seed, SMOE_RANDOM_ROUTER, stream, index);
}

/* M and R of rows whose pooled values are known. first: index of row 0; t: rows of a sequence. */
void smoe_skip_decide_rows(const smoe_layer *layer, const smoe_pass *pass, const smoe_real *pooled,
                           smoe_real *r, int32_t *ran, const int32_t *token, uint64_t first, size_t n,
                           size_t t) {
  const skip *s = layer->state;
  const smoe_real *w = smoe_layer_value(layer, s->gate);
  const bool whole = smoe_skip_is_whole(s);
  for (size_t i = 0; i < n; i++) {
    const smoe_real score = w ? smoe_dot(w, pooled + i * s->width, s->width) : 0;
    const uint64_t index = first + (whole ? i - i % t : i);
    r[i] = smoe_sigmoid(score);
    if (pass->skip_nothing || s->options->choice == SMOE_SKIP_BY_GATE)
      ran[i] = pass->skip_nothing || !(score < 0);
    else
      ran[i] = s->options->choice == SMOE_SKIP_AT_RANDOM && !(chance(layer, pass, index) < s->options->share);
    if (token && token[i] < 0) ran[i] = 0;
  }
}

static size_t tape_first(const skip *s, const smoe_layer_call *call) {
  return s->kept ? (size_t)call->lane * call->n : 0;
}

static int32_t *ran_of(const skip *s, const smoe_layer_call *call) {
  return s->ran + (size_t)call->lane * call->n;
}

static void decide(smoe_layer *layer, const smoe_layer_call *call) {
  skip *s = layer->state;
  const size_t first = tape_first(s, call), c = s->width, t = call->context;
  smoe_real *pooled = s->pooled + first * c;
  int32_t *ran = ran_of(s, call);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  smoe_norm_rows(s->norm, (smoe_operand){.wide = pooled}, s->mean + first, s->rstd + first, call->x,
                 smoe_layer_value(layer, s->gamma), smoe_layer_value(layer, s->beta), call->n, c);
  for (size_t q = 0; q < call->n_sequences; q++) {
    smoe_real *sum = s->rows;
    if (smoe_skip_is_running(s)) {
      memset(sum, 0, c * sizeof *sum);
      smoe_skip_pool_running(pooled + q * t * c, sum, 0, t, c);
    } else if (smoe_skip_is_whole(s)) {
      smoe_skip_pool_whole(pooled + q * t * c, sum, call->token + q * t, t, c);
    }
  }
  smoe_skip_decide_rows(layer, call->pass, pooled, s->r + first, ran, call->token, call->first_index, call->n,
                        t);
  uint64_t *count = s->count + 2 * call->lane;
  count[0] = count[1] = 0;
  for (size_t i = 0; i < call->n; i++) {
    count[0] += call->token[i] >= 0;
    count[1] += ran[i] != 0;
  }
}

/* ---- forward ---- */

/* F of all rows, with the residual: both sublayers of a block. */
static void run_inner(skip *s, const smoe_layer_call *call, smoe_real *y) {
  smoe_layer_call own = *call;
  for (int i = 0; i < s->n_inner; i++) {
    smoe_real *mid = i + 1 < s->n_inner ? s->mid + tape_first(s, call) * s->width : y;
    own.y = mid;
    s->inner[i].spec.ops->forward(&s->inner[i], &own);
    own.x = mid;
  }
}

/* y = x + F(x) of a feed-forward layer on the active rows, x elsewhere. */
void smoe_skip_ffn_some(skip *s, smoe_layer *inner, const smoe_layer_call *call, const bool *active) {
  const size_t c = s->width;
  size_t n = 0;
  for (size_t i = 0; i < call->n; i++)
    if (active[i]) memcpy(s->rows + n++ * c, call->x + i * c, c * sizeof *s->rows);
  smoe_layer_call own = *call;
  own.lane = 0;
  own.n = own.context = n;
  own.n_sequences = 1;
  own.x = s->rows;
  own.y = s->full;
  if (n) inner->spec.ops->forward(inner, &own);
  n = 0;
  for (size_t i = 0; i < call->n; i++)
    memcpy(call->y + i * c, active[i] ? s->full + n++ * c : call->x + i * c, c * sizeof *call->y);
}

static void run_some(skip *s, const smoe_layer_call *call, const bool *active) {
  smoe_layer_call own = *call;
  for (int i = 0; i < s->n_inner; i++) {
    own.y = i + 1 < s->n_inner ? s->mid + tape_first(s, call) * s->width : call->y;
    if (s->inner[i].spec.ops == &smoe_layer_attention)
      smoe_layer_attention_some(&s->inner[i], &own, active);
    else
      smoe_skip_ffn_some(s, &s->inner[i], &own, active);
    own.x = own.y;
  }
}

static void evaluate_skip(skip *s, const smoe_layer_call *call) {
  const int32_t *ran = ran_of(s, call);
  bool all = true;
  /* Padding never runs. Other rows may attend to it, so it is left as it is in training. */
  for (size_t i = 0; i < call->n; i++) {
    s->active[i] = ran[i];
    all = all && ran[i];
  }
  for (int k = 0; k < 2; k++) s->seen[k] += s->count[2 * call->lane + k];
  if (all)
    run_inner(s, call, call->y);
  else
    run_some(s, call, s->active);
}

static bool gives_gradient(const skip *s, bool ran);

/* y + (R - base) F(x), of the rows that give the gate a gradient. */
static void straighten(const skip *s, const smoe_layer_call *call) {
  const size_t first = tape_first(s, call), c = s->width;
  const int32_t *ran = ran_of(s, call);
  for (size_t i = 0; s->base && i < call->n; i++) {
    const smoe_real more = s->r[first + i] - s->base[first + i];
    if (call->token[i] >= 0 && gives_gradient(s, ran[i]))
      smoe_add_rows_scaled(call->y + i * c, &more, 1, s->delta + (first + i) * c, 1, c);
  }
}

static void forward_skip(smoe_layer *layer, const smoe_layer_call *call) {
  skip *s = layer->state;
  const size_t c = s->width;
  decide(layer, call);
  if (!call->pass->training) {
    evaluate_skip(s, call);
    return;
  }
  const int32_t *ran = ran_of(s, call);
  smoe_real *delta = s->delta + tape_first(s, call) * c;
  run_inner(s, call, s->full);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  for (size_t i = 0; i < call->n * c; i++) delta[i] = s->full[i] - call->x[i];
  for (size_t i = 0; i < call->n; i++)
    memcpy(call->y + i * c, (ran[i] ? s->full : call->x) + i * c, c * sizeof *call->y);
  straighten(s, call);
}

/* ---- backward ---- */

static void settle_skip(smoe_layer *layer, const smoe_pass *pass) {
  skip *s = layer->state;
  uint64_t sum[2] = {0};
  for (int lane = 0; lane < s->n_lanes; lane++)
    for (int k = 0; k < 2; k++) sum[k] += s->count[2 * lane + k];
  for (int k = 0; k < 2; k++) s->seen[k] += sum[k];
  smoe_group_sum_u64(&layer->params->group, sum, 2);
  s->n_rows = sum[0];
  s->n_ran = sum[1];
  const double share = sum[0] ? (double)sum[1] / (double)sum[0] : 0;
  const double parts = (double)smoe_config_settings(layer->config)->train.micro_batches;
  s->loss += s->options->weight * fmax(0, share - s->options->target) / parts;
}

/* The capacity term's dR of one row: the share of rows is what is above the target. */
static double capacity_slope(const smoe_layer *layer) {
  const skip *s = layer->state;
  if (s->n_rows == 0 || !((double)s->n_ran > s->options->target * (double)s->n_rows)) return 0;
  return s->options->weight /
         ((double)s->n_rows * (double)smoe_config_settings(layer->config)->train.micro_batches);
}

static bool gives_gradient(const skip *s, bool ran) {
  switch ((smoe_skip_rule)s->options->gradient) {
  case SMOE_SKIP_FULL:
    return true;
  case SMOE_SKIP_ACTIVE:
    return ran;
  case SMOE_SKIP_MASKED:
    return ran && s->n_ran < s->n_rows;
  }
  return true;
}

/* dR of each row, in dr [N]. A sequence's one decision has the sum over its rows, which row 0 gets. */
static void gate_slopes(const smoe_layer *layer, const smoe_layer_call *call, smoe_real *dr) {
  const skip *s = layer->state;
  const size_t first = tape_first(s, call), c = s->width, t = call->context;
  const int32_t *ran = ran_of(s, call);
  const smoe_real capacity = (smoe_real)capacity_slope(layer);
  for (size_t i = 0; i < call->n; i++) {
    dr[i] = 0;
    if (call->token[i] < 0) continue;
    if (gives_gradient(s, ran[i])) dr[i] = smoe_dot(call->dx + i * c, s->delta + (first + i) * c, c);
    dr[i] += capacity;
  }
  for (size_t q = 0; smoe_skip_is_whole(s) && q < call->n_sequences; q++)
    for (size_t i = 1; i < t; i++) {
      dr[q * t] += dr[q * t + i];
      dr[q * t + i] = 0;
    }
}

/* dpooled, and the gate's own gradient. */
static void gate_backward(const smoe_layer *layer, const smoe_layer_call *call, const smoe_real *dr) {
  const skip *s = layer->state;
  const size_t first = tape_first(s, call), c = s->width;
  const smoe_real *w = smoe_layer_value(layer, s->gate);
  smoe_real *dw = smoe_layer_grad(layer, s->gate, call->lane);
  memset(s->dpooled, 0, call->n * c * sizeof *s->dpooled);
  for (size_t i = 0; i < call->n; i++) {
    const smoe_real r = s->r[first + i], ds = dr[i] * r * (1 - r);
    if (dw) smoe_add_rows_scaled(dw, &ds, 1, s->pooled + (first + i) * c, 1, c);
    smoe_add_rows_scaled(s->dpooled + i * c, &ds, 1, w, 1, c);
  }
}

/* From dpooled to the gradient of norm(x), in place. */
static void pool_backward(const skip *s, const smoe_layer_call *call) {
  const size_t c = s->width, t = call->context;
  for (size_t q = 0; q < call->n_sequences; q++) {
    smoe_real *d = s->dpooled + q * t * c;
    if (smoe_skip_is_running(s)) { /* row t is in the means of all rows from t on */
      for (size_t i = t; i-- > 0;)
        for (size_t j = 0; j < c; j++) {
          d[i * c + j] /= (smoe_real)(i + 1);
          if (i + 1 < t) d[i * c + j] += d[(i + 1) * c + j];
        }
    } else if (smoe_skip_is_whole(s)) {
      size_t real = 0;
      for (size_t i = 0; i < t; i++) real += call->token[q * t + i] >= 0;
      for (size_t j = 0; j < c; j++) d[j] /= (smoe_real)(real ? real : 1);
      for (size_t i = t; i-- > 0;) {
        if (call->token[q * t + i] >= 0)
          memmove(d + i * c, d, c * sizeof *d);
        else
          memset(d + i * c, 0, c * sizeof *d);
      }
    }
  }
}

/* Gradient through F of the rows that ran; those that skipped pass theirs on. */
static void inner_backward(skip *s, const smoe_layer_call *call) {
  const size_t c = s->width, first = tape_first(s, call);
  const int32_t *ran = ran_of(s, call);
  for (size_t i = 0; i < call->n; i++) {
    if (ran[i]) continue;
    memcpy(s->passed + i * c, call->dx + i * c, c * sizeof *s->passed);
    memset(call->dx + i * c, 0, c * sizeof *call->dx);
  }
  for (int i = s->n_inner - 1; i >= 0; i--) {
    smoe_layer_call own = *call;
    if (i > 0) own.x = s->mid + first * c;
    s->inner[i].spec.ops->backward(&s->inner[i], &own);
  }
  for (size_t i = 0; i < call->n; i++)
    if (!ran[i]) smoe_add(call->dx + i * c, s->passed + i * c, c);
}

static void backward_skip(smoe_layer *layer, const smoe_layer_call *call) {
  skip *s = layer->state;
  const size_t first = tape_first(s, call), c = s->width;
  smoe_real *dr = s->rows;
  if (s->gate >= 0) {
    gate_slopes(layer, call, dr);
    gate_backward(layer, call, dr);
    pool_backward(s, call);
  }
  inner_backward(s, call);
  if (s->gate < 0) return;
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  const smoe_real *gamma = smoe_layer_value(layer, s->gamma);
  smoe_norm_rows_backward(s->norm, call->dx, smoe_layer_grad(layer, s->gamma, call->lane),
                          smoe_layer_grad(layer, s->beta, call->lane), s->dpooled, call->x, gamma,
                          s->mean + first, s->rstd + first, call->n, c);
}

/* ---- figures ---- */

static void work_skip(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const skip *s = layer->state;
  for (int i = 0; i < s->n_inner; i++) s->inner[i].spec.ops->work(&s->inner[i], shape, work);
}

const uint64_t *smoe_skip_seen(const smoe_layer *layer) {
  return ((const skip *)layer->state)->seen;
}

double smoe_skip_loss(const smoe_layer *layer) {
  return ((const skip *)layer->state)->loss;
}

void smoe_skip_begin(smoe_layer *layer) {
  skip *s = layer->state;
  s->seen[0] = s->seen[1] = 0;
  s->loss = 0;
}

const int32_t *smoe_skip_ran(const smoe_layer *layer) {
  return ((const skip *)layer->state)->ran;
}

const smoe_real *smoe_skip_r(const smoe_layer *layer) {
  return ((const skip *)layer->state)->r;
}

void smoe_skip_straighten(smoe_layer *layer, const smoe_real *base) {
  ((skip *)layer->state)->base = base;
}

const smoe_layer_ops smoe_layer_skip = {
    .kind = "skip",
    .bytes = sizeof(skip),
    .declare = declare_skip,
    .layout = layout_skip,
    .forward = forward_skip,
    .recompute = forward_skip,
    .backward = backward_skip,
    .settle = settle_skip,
    .state_reals = smoe_skip_state_reals,
    .extend = smoe_skip_extend,
    .reorder = smoe_skip_reorder,
    .work = work_skip,
    .release = release_skip,
};
