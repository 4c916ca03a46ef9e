/* The attention sublayer: y = x + dropout(Wo attention(W norm(x) + b) + bo); self-attention, or with keys and
 * values from the source stream. */
#include <math.h>
#include <string.h>

#include "stablemoe/layer.h"
#include "stablemoe/phase.h"

typedef struct attention {
  smoe_attention_shape shape;
  int gamma, beta, qkv, qkv_bias, kv, kv_bias, proj, proj_bias; /* parameters */
  bool kept;                                                    /* every lane has a tape of its own */
  smoe_attention_tape tape;
  smoe_attention_buffers buffer;
  smoe_real *dy;     /* scratch [lane tokens, C]: gradient behind the dropout */
  smoe_real *rope;   /* [T, D] */
  int32_t *position; /* [lane tokens] of rows; where there is a table, or rows are left out */
} attention;

static void declare_attention(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  attention *a = layer->state;
  const size_t head = spec->width / spec->heads;
  a->shape = (smoe_attention_shape){.width = spec->width,
                                    .heads = spec->heads,
                                    .kv_heads = spec->kv_heads,
                                    .head = head,
                                    .norm = spec->norm,
                                    .precision = layer->precision,
                                    .causal = spec->causal,
                                    .cross = spec->cross};
  const int64_t c = (int64_t)spec->width, columns = (int64_t)smoe_attention_columns(&a->shape);
  const int64_t kv = 2 * (int64_t)(spec->kv_heads * head);
  const smoe_init one = {SMOE_INIT_CONSTANT, 1, false}, zero = {SMOE_INIT_CONSTANT, 0, false};
  /* Xavier (gain 1/sqrt 2 where q, k, v share a matrix), as in the library that the StableMoE code is built on. */
  const smoe_init xavier = {SMOE_INIT_UNIFORM, sqrt(6.0 / (2.0 * (double)c)), false};
  const smoe_init shared = {SMOE_INIT_UNIFORM, sqrt(6.0 / (2.0 * (double)c)) / sqrt(2.0), false};
  const int64_t vector_c[] = {c, 0};
  a->gamma = a->beta = a->qkv_bias = a->kv = a->kv_bias = a->proj_bias = -1;
  if (spec->norm != SMOE_NORM_NONE) a->gamma = smoe_layer_declare(layer, "norm/gamma", vector_c, one, false);
  if (spec->norm == SMOE_NORM_LAYER) a->beta = smoe_layer_declare(layer, "norm/beta", vector_c, zero, false);
  const char *weight = spec->cross ? "q/weight" : "qkv/weight", *bias = spec->cross ? "q/bias" : "qkv/bias";
  a->qkv = smoe_layer_declare_weight(layer, weight, (int64_t[]){columns, c, 0}, shared);
  if (spec->bias) a->qkv_bias = smoe_layer_declare(layer, bias, (int64_t[]){columns, 0}, zero, false);
  if (spec->cross) a->kv = smoe_layer_declare_weight(layer, "kv/weight", (int64_t[]){kv, c, 0}, shared);
  if (spec->cross && spec->bias)
    a->kv_bias = smoe_layer_declare(layer, "kv/bias", (int64_t[]){kv, 0}, zero, false);
  a->proj = smoe_layer_declare_weight(layer, "proj/weight", (int64_t[]){c, c, 0}, xavier);
  if (spec->bias) a->proj_bias = smoe_layer_declare(layer, "proj/bias", vector_c, zero, false);
}

/* ---- memory ---- */

static void layout_positions(smoe_layer *layer, const smoe_layer_memory *memory) {
  attention *a = layer->state;
  const size_t lane = memory->shape[layer->spec.stream].lane_tokens;
  a->position = smoe_arena_ints(memory->fixed, lane);
  if (!(layer->spec.rope > 0)) return;
  a->rope = smoe_arena_reals(memory->fixed, layer->spec.context * a->shape.head);
  if (a->rope) smoe_rope_table(a->rope, layer->spec.context, a->shape.head, layer->spec.rope);
  a->shape.rope = a->rope;
}

static void layout_tape(smoe_layer *layer, const smoe_layer_memory *memory) {
  attention *a = layer->state;
  const size_t lanes = (size_t)memory->tape_lanes, n = lanes * memory->shape[layer->spec.stream].lane_tokens;
  const size_t side = lanes * memory->shape[SMOE_ENCODER].lane_tokens, head = a->shape.head;
  a->kept = memory->tape_lanes > 1;
  a->tape = (smoe_attention_tape){
      .mean = smoe_arena_reals(memory->tape, n),
      .rstd = smoe_arena_reals(memory->tape, n),
      .qkv = smoe_arena_reals(memory->tape, n * smoe_attention_columns(&a->shape)),
      .attended = smoe_arena_operand(memory->tape, a->shape.precision, n * a->shape.heads * head),
      .lse = smoe_arena_reals(memory->tape, n * a->shape.heads)};
  if (a->shape.cross) a->tape.kv = smoe_arena_reals(memory->tape, side * 2 * a->shape.kv_heads * head);
}

static void layout_attention(smoe_layer *layer, const smoe_layer_memory *memory) {
  attention *a = layer->state;
  const smoe_token_shape *shape = &memory->shape[layer->spec.stream], *source = &memory->shape[SMOE_ENCODER];
  const size_t lane = shape->lane_tokens, c = a->shape.width, wide = a->shape.heads * a->shape.head;
  layout_positions(layer, memory);
  layout_tape(layer, memory);
  const smoe_attention_rows rows = {
      .sequences = shape->lane_sequences, .context = shape->context, .side_context = source->context};
  const smoe_attention sizes = smoe_attention_sizes(&a->shape, &rows);
  const size_t scratch = smoe_attend_scratch(&sizes),
               row = shape->lane_sequences * a->shape.heads * sizes.keys;
  const size_t side = a->shape.cross ? source->lane_tokens : 0, kv = 2 * a->shape.kv_heads * a->shape.head;
  const size_t columns = smoe_attention_columns(&a->shape);
  const bool half = a->shape.precision == SMOE_BF16;
  smoe_arena *arena = memory->scratch;
  a->buffer = (smoe_attention_buffers){
      .normed = smoe_arena_operand(arena, a->shape.precision, lane * c),
      .attention = smoe_arena_reals(arena, memory->training || scratch > row ? scratch : row)};
  if (half) {
    a->buffer.side = smoe_arena_operand(arena, SMOE_BF16, side * c);
    a->buffer.out = smoe_arena_reals(arena, lane * wide);
  }
  if (!memory->training) return;
  a->buffer.dnormed = smoe_arena_reals(arena, lane * c);
  a->buffer.dqkv = smoe_arena_reals(arena, lane * columns);
  a->buffer.dout = smoe_arena_reals(arena, lane * wide);
  if (a->shape.cross) a->buffer.dkv = smoe_arena_reals(arena, side * kv);
  if (half) {
    a->buffer.dy = smoe_arena_operand(arena, SMOE_BF16, lane * c);
    a->buffer.dqkv_half = smoe_arena_operand(arena, SMOE_BF16, lane * columns);
    a->buffer.dkv_half = smoe_arena_operand(arena, SMOE_BF16, side * kv);
  }
  if (layer->spec.dropout > 0) a->dy = smoe_arena_reals(memory->scratch, lane * c);
}

/* ---- the pass ---- */

static smoe_attention_values values_of(const smoe_layer *layer) {
  const attention *a = layer->state;
  return (smoe_attention_values){smoe_layer_value(layer, a->gamma), smoe_layer_value(layer, a->beta),
                                 smoe_layer_weight(layer, a->qkv),  smoe_layer_value(layer, a->qkv_bias),
                                 smoe_layer_weight(layer, a->kv),   smoe_layer_value(layer, a->kv_bias),
                                 smoe_layer_weight(layer, a->proj), smoe_layer_value(layer, a->proj_bias)};
}

static smoe_attention_grads grads_of(const smoe_layer *layer, int lane) {
  const attention *a = layer->state;
  return (smoe_attention_grads){
      smoe_layer_grad(layer, a->gamma, lane), smoe_layer_grad(layer, a->beta, lane),
      smoe_layer_grad(layer, a->qkv, lane),   smoe_layer_grad(layer, a->qkv_bias, lane),
      smoe_layer_grad(layer, a->kv, lane),    smoe_layer_grad(layer, a->kv_bias, lane),
      smoe_layer_grad(layer, a->proj, lane),  smoe_layer_grad(layer, a->proj_bias, lane)};
}

static smoe_attention_tape tape_of(const attention *a, const smoe_layer_call *call) {
  const size_t first = a->kept ? (size_t)call->lane * call->n : 0, wide = a->shape.heads * a->shape.head;
  const size_t side = a->kept ? (size_t)call->lane * call->n_sequences * call->side_context : 0;
  const smoe_attention_tape *tape = &a->tape;
  return (smoe_attention_tape){.mean = tape->mean + first,
                               .rstd = tape->rstd + first,
                               .qkv = tape->qkv + first * smoe_attention_columns(&a->shape),
                               .kv =
                                   tape->kv ? tape->kv + side * 2 * a->shape.kv_heads * a->shape.head : NULL,
                               .attended = smoe_operand_at(tape->attended, first * wide),
                               .lse = tape->lse + first * a->shape.heads};
}

static smoe_attention_rows rows_of(const attention *a, const smoe_layer_call *call) {
  for (size_t i = 0; i < call->n && a->rope; i++) a->position[i] = (int32_t)(i % call->context);
  return (smoe_attention_rows){.x = call->x,
                               .sequences = call->n_sequences,
                               .context = call->context,
                               .length = call->length,
                               .position = a->position,
                               .side = call->side,
                               .side_context = call->side_context,
                               .side_length = call->side_length};
}

static void forward_attention(smoe_layer *layer, const smoe_layer_call *call) {
  const attention *a = layer->state;
  const smoe_attention_values w = values_of(layer);
  const smoe_attention_tape tape = tape_of(a, call);
  const smoe_attention_rows rows = rows_of(a, call);
  smoe_attention_sublayer(&a->shape, &w, &tape, &a->buffer, call->y, &rows);
  smoe_layer_dropout(layer, call, call->y);
  smoe_add(call->y, call->x, call->n * a->shape.width);
}

static void recompute_attention(smoe_layer *layer, const smoe_layer_call *call) {
  const attention *a = layer->state;
  const smoe_attention_values w = values_of(layer);
  const smoe_attention_tape tape = tape_of(a, call);
  const smoe_attention_rows rows = rows_of(a, call);
  smoe_attention_sublayer(&a->shape, &w, &tape, &a->buffer, NULL, &rows);
}

static void backward_attention(smoe_layer *layer, const smoe_layer_call *call) {
  const attention *a = layer->state;
  const smoe_attention_values w = values_of(layer);
  const smoe_attention_tape tape = tape_of(a, call);
  const smoe_attention_grads g = grads_of(layer, call->lane);
  const smoe_attention_rows rows = rows_of(a, call);
  const smoe_real *dy = smoe_layer_dropout_backward(layer, call, a->dy);
  smoe_attention_sublayer_backward(&a->shape, &w, &g, &tape, &a->buffer, call->dx, call->dside, dy, &rows);
}

/* ---- on some rows alone (skip.h), of self-attention ---- */

/* x [N, columns] = rows [N, C] times rows first .. first + columns - 1 of W, with their bias. */
static void project_part(const attention *a, const smoe_attention_values *w, smoe_real *out,
                         smoe_operand rows, size_t n, size_t first, size_t columns) {
  const size_t c = a->shape.width;
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_map_rows(out, rows, smoe_operand_at(w->qkv, first * c), w->qkv_bias ? w->qkv_bias + first : NULL, n, c,
                columns);
  smoe_phase_sublayer(SMOE_PHASE_ATTENTION);
}

/* The queries [first, first + n) of one sequence, which are rows of q, against its keys up to them. */
static void attend_run(const attention *a, smoe_real *out, const smoe_real *q, const smoe_real *k,
                       size_t kv_stride, size_t first, size_t n) {
  const smoe_attention_shape *shape = &a->shape;
  const size_t wide = shape->heads * shape->head;
  const int32_t offset = (int32_t)first;
  const smoe_attention sizes = {.sequences = 1,
                                .queries = n,
                                .keys = first + n,
                                .heads = shape->heads,
                                .kv_heads = shape->kv_heads,
                                .width = shape->head,
                                .q_stride = wide,
                                .kv_stride = kv_stride,
                                .causal = shape->causal,
                                .offset = &offset};
  smoe_attend_forward(out, a->tape.lse, q, k, k + shape->kv_heads * shape->head, a->buffer.attention, &sizes);
}

/* Queries of the active ones of n rows from the normed rows, which lose the others; their rows begin at q. Returns
 * how many. */
static size_t active_queries(const attention *a, const smoe_attention_values *w, smoe_real *q,
                             smoe_operand normed, const int32_t *position, const bool *active, size_t n,
                             int32_t *kept) {
  const size_t c = a->shape.width, wide = a->shape.heads * a->shape.head;
  size_t m = 0;
  for (size_t i = 0; i < n; i++) {
    if (!active[i]) continue;
    if (normed.half)
      memmove(normed.half + m * c, normed.half + i * c, c * sizeof *normed.half);
    else
      memmove(normed.wide + m * c, normed.wide + i * c, c * sizeof *normed.wide);
    kept[m++] = position[i];
  }
  project_part(a, w, q, normed, m, 0, wide);
  if (a->rope) smoe_rope_forward(q, wide, kept, a->rope, m, a->shape.heads, a->shape.head);
  return m;
}

/* Where attention leaves its results, which are rounded afterwards in bf16. */
static smoe_real *attended_of(const attention *a) {
  return a->tape.attended.wide ? a->tape.attended.wide : a->buffer.out;
}

/* y = x + Wo attended of the active rows, x elsewhere. The queries are not needed any more. */
static void put_active(const attention *a, const smoe_attention_values *w, smoe_real *y, const smoe_real *x,
                       const bool *active, size_t n, size_t m) {
  const size_t c = a->shape.width, wide = a->shape.heads * a->shape.head;
  smoe_real *from = a->tape.qkv;
  smoe_phase_sublayer(SMOE_PHASE_LINEAR);
  smoe_map_rows(from, smoe_operand_of(a->tape.attended, attended_of(a), m * wide), w->proj, w->proj_bias, m,
                wide, c);
  smoe_phase_sublayer(SMOE_PHASE_NORM);
  memcpy(y, x, n * c * sizeof *y);
  for (size_t i = 0; i < n; i++) {
    if (!active[i]) continue;
    smoe_add(y + i * c, from, c);
    from += c;
  }
}

/* The m queries at q to their places among n rows, with zeros between. */
static void spread_queries(smoe_real *q, const bool *active, size_t n, size_t m, size_t wide) {
  for (size_t i = n; i-- > 0;) {
    if (!active[i])
      memset(q + i * wide, 0, wide * sizeof *q);
    else if (--m != i)
      memcpy(q + i * wide, q + m * wide, wide * sizeof *q);
  }
}

/* Results of the m queries at q, those of the active ones of n rows, one after another. Runs of active rows are mostly
 * short, and a call for each costs more than one over all rows from the first active one on. */
static void attend_active(const attention *a, smoe_real *q, const smoe_real *keys, size_t kv,
                          const bool *active, size_t n, size_t m) {
  const size_t wide = a->shape.heads * a->shape.head;
  smoe_real *out = attended_of(a);
  size_t first = 0;
  while (first < n && !active[first]) first++;
  if (m < n - first) spread_queries(q, active + first, n - first, m, wide);
  if (m > 0) attend_run(a, out, q, keys, kv, first, n - first);
  for (size_t i = first, row = 0; m < n - first && i < n; i++)
    if (active[i]) memmove(out + row++ * wide, out + (i - first) * wide, wide * sizeof *out);
}

/* Rows of each sequence that an active row sees. */
static size_t seen_rows(const bool *active, size_t t) {
  while (t > 0 && !active[t - 1]) t--;
  return t;
}

void smoe_layer_attention_some(smoe_layer *layer, const smoe_layer_call *call, const bool *active) {
  const attention *a = layer->state;
  const smoe_attention_shape *shape = &a->shape;
  const smoe_attention_values w = values_of(layer);
  const size_t c = shape->width, t = call->context, wide = shape->heads * shape->head;
  const size_t kv = 2 * shape->kv_heads * shape->head;
  SMOE_ASSERT(!shape->cross && shape->causal);
  /* Sequences one after another, so that what one of them costs follows from its own rows. */
  for (size_t s = 0; s < call->n_sequences; s++) {
    const smoe_real *x = call->x + s * t * c;
    const bool *own = active + s * t;
    const size_t n = seen_rows(own, t);
    smoe_real *q = a->tape.qkv, *keys = q + t * wide;
    if (n > 0) {
      smoe_norm_rows(shape->norm, a->buffer.normed, a->tape.mean, a->tape.rstd, x, w.gamma, w.beta, n, c);
      for (size_t i = 0; i < n; i++) a->position[i] = (int32_t)i;
      project_part(a, &w, keys, a->buffer.normed, n, wide, kv);
      if (a->rope) smoe_rope_forward(keys, kv, a->position, a->rope, n, shape->kv_heads, shape->head);
    }
    const size_t m = active_queries(a, &w, q, a->buffer.normed, a->position, own, n, a->position);
    attend_active(a, q, keys, kv, own, n, m);
    put_active(a, &w, call->y + s * t * c, x, own, t, m);
  }
}

/* ---- decoding: the state is qkv [S, length_max, columns], or with a source stream kv [S, side_max, 2 Hkv D] ---- */

static size_t state_reals_attention(const smoe_layer *layer, size_t n_sequences, size_t length_max,
                                    size_t side_max) {
  const attention *a = layer->state;
  return a->shape.cross ? n_sequences * side_max * 2 * a->shape.kv_heads * a->shape.head
                        : n_sequences * length_max * smoe_attention_columns(&a->shape);
}

/* Queries of the new rows against the keys and values of the state. */
static void attend_state(const attention *a, const smoe_extend_call *call, smoe_real *attended,
                         const smoe_real *state) {
  const smoe_attention_shape *shape = &a->shape;
  const size_t columns = smoe_attention_columns(shape), kv = 2 * shape->kv_heads * shape->head;
  const size_t stride = shape->cross ? kv : columns,
               length = shape->cross ? call->side_context : call->length_max;
  const smoe_real *k = state + (shape->cross ? 0 : shape->heads * shape->head);
  for (size_t s = 0; s < call->n_sequences; s++) {
    const int32_t first = (int32_t)call->first, keys = (int32_t)(call->first + call->n);
    const smoe_attention sizes = {
        .sequences = 1,
        .queries = call->n,
        .keys = length,
        .heads = shape->heads,
        .kv_heads = shape->kv_heads,
        .width = shape->head,
        .q_stride = columns,
        .kv_stride = stride,
        .causal = shape->causal,
        .key_length = !shape->cross       ? &keys
                      : call->side_length ? call->side_length + s
                                          : NULL,
        .offset = &first,
    };
    const smoe_real *q = a->tape.qkv + s * call->n * columns, *own = k + s * length * stride;
    smoe_real *out = attended + s * call->n * shape->heads * shape->head;
    if (call->n == 1)
      smoe_attend_row(out, q, own, own + shape->kv_heads * shape->head, a->buffer.attention, &sizes);
    else
      smoe_attend_forward(out, a->tape.lse, q, own, own + shape->kv_heads * shape->head, a->buffer.attention,
                          &sizes);
  }
}

static void extend_attention(smoe_layer *layer, const smoe_extend_call *call) {
  const attention *a = layer->state;
  const smoe_attention_shape *shape = &a->shape;
  const smoe_attention_values w = values_of(layer);
  const size_t c = shape->width, n = call->n_sequences * call->n, columns = smoe_attention_columns(shape);
  smoe_norm_rows(shape->norm, a->buffer.normed, a->tape.mean, a->tape.rstd, call->x, w.gamma, w.beta, n, c);
  for (size_t i = 0; i < n && a->rope; i++) a->position[i] = (int32_t)(call->first + i % call->n);
  smoe_attention_project(shape, &w, a->tape.qkv, a->buffer.normed, a->position, n, true);
  if (shape->cross && call->first == 0) {
    const size_t n_side = call->n_sequences * call->side_context;
    smoe_attention_project_side(shape, &w, call->state,
                                smoe_operand_of(a->buffer.side, call->side, n_side * c), n_side);
  }
  for (size_t s = 0; s < call->n_sequences && !shape->cross; s++)
    memcpy(call->state + (s * call->length_max + call->first) * columns, a->tape.qkv + s * call->n * columns,
           call->n * columns * sizeof *call->state);
  smoe_real *out = a->tape.attended.wide ? a->tape.attended.wide : a->buffer.out;
  attend_state(a, call, out, call->state);
  const size_t wide = shape->heads * shape->head;
  smoe_map_rows(call->y, smoe_operand_of(a->tape.attended, out, n * wide), w.proj, w.proj_bias, n, wide, c);
  smoe_add(call->y, call->x, n * c);
}

void smoe_layer_attention_extend_some(smoe_layer *layer, const smoe_extend_call *call, const bool *active) {
  const attention *a = layer->state;
  const smoe_attention_shape *shape = &a->shape;
  const smoe_attention_values w = values_of(layer);
  const size_t c = shape->width, t = call->n, wide = shape->heads * shape->head;
  const size_t kv = 2 * shape->kv_heads * shape->head, columns = smoe_attention_columns(shape);
  for (size_t s = 0; s < call->n_sequences; s++) {
    const smoe_real *x = call->x + s * t * c;
    const bool *own = active + s * t;
    smoe_real *q = a->tape.qkv, *fresh = q + t * wide;
    smoe_real *state = call->state + s * call->length_max * columns, *keys = state + wide;
    smoe_norm_rows(shape->norm, a->buffer.normed, a->tape.mean, a->tape.rstd, x, w.gamma, w.beta, t, c);
    for (size_t i = 0; i < t; i++) a->position[i] = (int32_t)(call->first + i);
    project_part(a, &w, fresh, a->buffer.normed, t, wide, kv);
    if (a->rope) smoe_rope_forward(fresh, kv, a->position, a->rope, t, shape->kv_heads, shape->head);
    for (size_t i = 0; i < t; i++)
      memcpy(keys + (call->first + i) * columns, fresh + i * kv, kv * sizeof *keys);
    const size_t m = active_queries(a, &w, q, a->buffer.normed, a->position, own, t, a->position);
    for (size_t i = 0, row = 0; i < t; i++)
      if (own[i]) {
        attend_run(a, attended_of(a) + row * wide, q + row * wide, keys, columns, call->first + i, 1);
        row++;
      }
    put_active(a, &w, call->y + s * t * c, x, own, t, m);
  }
}

static void reorder_attention(const smoe_layer *layer, smoe_real *state, const int32_t *from,
                              size_t n_sequences, size_t length, size_t length_max, size_t side_max) {
  const attention *a = layer->state;
  const size_t kv = 2 * a->shape.kv_heads * a->shape.head, columns = smoe_attention_columns(&a->shape);
  if (a->shape.cross)
    smoe_reorder_rows(state, from, n_sequences, side_max * kv, side_max * kv);
  else
    smoe_reorder_rows(state, from, n_sequences, length * columns, length_max * columns);
}

/* ---- arithmetic ---- */

static void work_attention(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const attention *a = layer->state;
  const smoe_token_shape *s = &shape[layer->spec.stream], *source = &shape[SMOE_ENCODER];
  const size_t c = a->shape.width, wide = a->shape.heads * a->shape.head;
  smoe_work_linear(work, s->lane_tokens, c, smoe_attention_columns(&a->shape), s->n_lanes,
                   smoe_layer_learns(layer, a->qkv));
  if (a->shape.cross)
    smoe_work_linear(work, source->lane_tokens, c, 2 * a->shape.kv_heads * a->shape.head, s->n_lanes,
                     smoe_layer_learns(layer, a->kv));
  smoe_work_linear(work, s->lane_tokens, wide, c, s->n_lanes, smoe_layer_learns(layer, a->proj));
  smoe_work_attention(work, (double)s->n_lanes * (double)s->lane_sequences, (double)s->context,
                      (double)(a->shape.cross ? source->context : s->context), (double)a->shape.heads,
                      (double)a->shape.head, a->shape.causal);
}

const smoe_layer_ops smoe_layer_attention = {
    .kind = "attention",
    .bytes = sizeof(attention),
    .declare = declare_attention,
    .layout = layout_attention,
    .forward = forward_attention,
    .recompute = recompute_attention,
    .backward = backward_attention,
    .state_reals = state_reals_attention,
    .extend = extend_attention,
    .reorder = reorder_attention,
    .work = work_attention,
};
