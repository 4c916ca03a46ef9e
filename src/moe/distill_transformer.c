#include "distill_transformer.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"
#include "stablemoe/sublayer.h"

/* Parameters in order of declaration: the positions, those of each layer, the final norm. */
enum { POSITION, LAYERS };
enum { GAMMA1, BETA1, QKV, PROJ, PROJ_BIAS, GAMMA2, BETA2, W1, B1, W2, B2, PER_LAYER };
enum { GAMMA, BETA };

typedef struct sizes {
  size_t n, d, f, heads, context;
  int layers;
} sizes;

static sizes sizes_of(const smoe_router *router, const smoe_distill_options *options, size_t n) {
  return (sizes){.n = n,
                 .d = (size_t)options->width,
                 .f = 4 * (size_t)options->width,
                 .heads = (size_t)options->heads,
                 .context = router->context,
                 .layers = (int)options->layers};
}

static int declare_layer(smoe_params *params, int moe, int layer, int64_t d) {
  const int64_t f = 4 * d;
  const smoe_init one = {SMOE_INIT_CONSTANT, 1, false}, zero = {SMOE_INIT_CONSTANT, 0, false};
  const smoe_init from_d = {SMOE_INIT_UNIFORM, 1 / sqrt((double)d), false};
  const smoe_init from_f = {SMOE_INIT_UNIFORM, 1 / sqrt((double)f), false};
  const int64_t vector_d[] = {d, 0}, vector_f[] = {f, 0};
#define DECLARE(init, decay, name, ...)                                                                      \
  smoe_params_declare(params, SMOE_REPLICATED, __VA_ARGS__, init, decay,                                     \
                      "moe%d/router/distilled/layer%d/" name, moe, layer)
  const int first = DECLARE(one, false, "attention/norm/gamma", vector_d);
  DECLARE(zero, false, "attention/norm/beta", vector_d);
  DECLARE(from_d, true, "attention/qkv/weight", (int64_t[]){3 * d, d, 0});
  DECLARE(from_d, true, "attention/proj/weight", (int64_t[]){d, d, 0});
  DECLARE(zero, false, "attention/proj/bias", vector_d);
  DECLARE(one, false, "ffn/norm/gamma", vector_d);
  DECLARE(zero, false, "ffn/norm/beta", vector_d);
  DECLARE(from_d, true, "ffn/w1", (int64_t[]){f, d, 0});
  DECLARE(zero, false, "ffn/b1", vector_f);
  DECLARE(from_f, true, "ffn/w2", (int64_t[]){d, f, 0});
  DECLARE(zero, false, "ffn/b2", vector_d);
#undef DECLARE
  return first;
}

int smoe_distill_transformer_declare(const smoe_router *router, smoe_params *params,
                                     const smoe_distill_options *options) {
  const int64_t d = options->width, context = (int64_t)router->context;
  const int first = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){context, d, 0},
                                        (smoe_init){SMOE_INIT_NORMAL, 1 / sqrt((double)d), false}, true,
                                        "moe%d/router/distilled/position", router->layer);
  for (int l = 0; l < (int)options->layers; l++) declare_layer(params, router->layer, l, d);
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){d, 0}, (smoe_init){SMOE_INIT_CONSTANT, 1, false},
                      false, "moe%d/router/distilled/norm/gamma", router->layer);
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){d, 0}, (smoe_init){SMOE_INIT_CONSTANT, 0, false},
                      false, "moe%d/router/distilled/norm/beta", router->layer);
  return first;
}

/* What one layer keeps; x is its input, of which there is one more: the final norm's. */
typedef struct layer_tape {
  smoe_real *x, *u; /* [N, D] */
  smoe_attention_tape attention;
  smoe_ffn_tape ffn;
} layer_tape;

static size_t layer_reals(const sizes *s) {
  return s->n * (6 * s->d + s->f + s->heads + 4);
}

static layer_tape tape_of_layer(smoe_real *at, const sizes *s, int layer) {
  const size_t n = s->n, nd = s->n * s->d;
  at += (size_t)layer * layer_reals(s);
  layer_tape tape = {.x = at, .u = at + nd};
  tape.attention.attended.wide = at + 2 * nd;
  tape.attention.qkv = at + 3 * nd;
  tape.attention.lse = at + 6 * nd;
  tape.attention.mean = tape.attention.lse + n * s->heads;
  tape.attention.rstd = tape.attention.mean + n;
  tape.ffn.mean = tape.attention.rstd + n;
  tape.ffn.rstd = tape.ffn.mean + n;
  tape.ffn.h.wide = tape.ffn.rstd + n;
  return tape;
}

size_t smoe_distill_transformer_tape(const smoe_router *router, const smoe_distill_options *options,
                                     size_t n) {
  const sizes s = sizes_of(router, options, n);
  return (size_t)s.layers * layer_reals(&s) + n * (s.d + 2);
}

/* The final norm's input [N, D], then mean [N] and rstd [N]. */
static smoe_real *last_of(const smoe_real *tape, const sizes *s) {
  return (smoe_real *)tape + (size_t)s->layers * layer_reals(s);
}

typedef struct buffers {
  smoe_attention_buffers attention;
  smoe_ffn_scratch ffn; /* shares rows with the attention */
} buffers;

static buffers buffers_of(smoe_real *scratch, const sizes *s) {
  const size_t nd = s->n * s->d;
  return (buffers){
      .attention = {.normed = {.wide = scratch},
                    .dnormed = scratch + nd,
                    .dout = scratch + 2 * nd,
                    .dqkv = scratch + 3 * nd,
                    .attention = scratch + 6 * nd + s->n * s->f},
      .ffn = {.normed = {.wide = scratch}, .rows = scratch + nd, .dinner = {.wide = scratch + 6 * nd}}};
}

size_t smoe_distill_transformer_scratch(const smoe_router *router, const smoe_distill_options *options,
                                        size_t n) {
  const sizes s = sizes_of(router, options, n);
  return n * (6 * s.d + s.f) + smoe_attention_scratch(s.context, s.d / s.heads);
}

/* Parameter `name` of a layer, or of the final norm where layer is the number of layers. */
static int index_of(int first, int layer, int name) {
  return first + LAYERS + layer * PER_LAYER + name;
}

#define VALUE(layer, name) smoe_params_shared(router->params, index_of(first, layer, name))
#define WEIGHT(layer, name) smoe_params_operand(router->params, index_of(first, layer, name), 0)
#define GRAD(layer, name) smoe_params_lane_grad(router->params, index_of(first, layer, name), call->lane)

static smoe_attention_shape attention_shape(const sizes *s) {
  return (smoe_attention_shape){.width = s->d,
                                .heads = s->heads,
                                .kv_heads = s->heads,
                                .head = s->d / s->heads,
                                .norm = SMOE_NORM_LAYER,
                                .causal = true};
}

static smoe_ffn_shape ffn_shape(const sizes *s) {
  return (smoe_ffn_shape){.width = s->d, .inner = s->f, .norm = SMOE_NORM_LAYER, .activation = SMOE_RELU};
}

static smoe_attention_values attention_values(const smoe_router *router, int first, int l) {
  return (smoe_attention_values){.gamma = VALUE(l, GAMMA1),
                                 .beta = VALUE(l, BETA1),
                                 .qkv = WEIGHT(l, QKV),
                                 .proj = WEIGHT(l, PROJ),
                                 .proj_bias = VALUE(l, PROJ_BIAS)};
}

static smoe_ffn_values ffn_values(const smoe_router *router, int first, int l) {
  return (smoe_ffn_values){VALUE(l, GAMMA2), VALUE(l, BETA2), WEIGHT(l, W1),
                           VALUE(l, B1),     WEIGHT(l, W2),   VALUE(l, B2)};
}

static void layer_forward(smoe_real *y, const layer_tape *tape, const smoe_router *router,
                          const smoe_route_call *call, const sizes *s, int first, int l,
                          const buffers *buffer) {
  const smoe_attention_shape attention = attention_shape(s);
  const smoe_ffn_shape ffn = ffn_shape(s);
  const smoe_attention_values wa = attention_values(router, first, l);
  const smoe_ffn_values wf = ffn_values(router, first, l);
  const smoe_attention_rows rows = {tape->x, call->n_sequences, call->n_context, NULL, NULL, NULL, 0, NULL};
  smoe_attention_sublayer(&attention, &wa, &tape->attention, &buffer->attention, tape->u, &rows);
  smoe_add(tape->u, tape->x, s->n * s->d);
  smoe_ffn_inner(&ffn, &wf, &tape->ffn, &buffer->ffn, tape->u, s->n);
  smoe_ffn_outer(&ffn, &wf, &tape->ffn, y, s->n);
  smoe_add(y, tape->u, s->n * s->d);
}

/* In place: dx holds dL/dy on entry, dL/dx on return. */
static void layer_backward(smoe_real *dx, const layer_tape *tape, const smoe_router *router,
                           const smoe_route_call *call, const sizes *s, int first, int l,
                           const buffers *buffer) {
  const smoe_attention_shape attention = attention_shape(s);
  const smoe_ffn_shape ffn = ffn_shape(s);
  const smoe_attention_values wa = attention_values(router, first, l);
  const smoe_ffn_values wf = ffn_values(router, first, l);
  const smoe_ffn_grads gf = {GRAD(l, GAMMA2), GRAD(l, BETA2), GRAD(l, W1),
                             GRAD(l, B1),     GRAD(l, W2),    GRAD(l, B2)};
  const smoe_attention_grads ga = {.gamma = GRAD(l, GAMMA1),
                                   .beta = GRAD(l, BETA1),
                                   .qkv = GRAD(l, QKV),
                                   .proj = GRAD(l, PROJ),
                                   .proj_bias = GRAD(l, PROJ_BIAS)};
  const smoe_operand dy = {.wide = dx};
  smoe_ffn_backward_outer_weights(&ffn, &gf, &tape->ffn, dy, s->n);
  smoe_ffn_backward_inner(&ffn, &wf, &tape->ffn, &buffer->ffn, dy, s->n);
  smoe_ffn_backward_inner_weights(&ffn, &wf, &gf, &tape->ffn, &buffer->ffn, tape->u, s->n);
  smoe_ffn_backward_input(&ffn, &wf, &gf, &tape->ffn, &buffer->ffn, dx, tape->u, s->n);

  const smoe_attention_rows rows = {tape->x, call->n_sequences, call->n_context, NULL, NULL, NULL, 0, NULL};
  smoe_attention_sublayer_backward(&attention, &wa, &ga, &tape->attention, &buffer->attention, dx, NULL, dx,
                                   &rows);
}

void smoe_distill_transformer_forward(smoe_real *h, const smoe_router *router,
                                      const smoe_distill_options *options, const smoe_route_call *call,
                                      int first, const smoe_real *table, smoe_real *tape,
                                      smoe_real *scratch) {
  const sizes s = sizes_of(router, options, call->n_tokens);
  SMOE_ASSERT(call->n_context <= s.context);
  const buffers buffer = buffers_of(scratch, &s);
  smoe_real *last = last_of(tape, &s), *mean = last + s.n * s.d, *rstd = mean + s.n;
  smoe_embedding_forward(tape_of_layer(tape, &s, 0).x, call->token, table,
                         smoe_params_shared(router->params, first + POSITION), 1, call->n_sequences,
                         call->n_context, s.d);
  for (int l = 0; l < s.layers; l++) {
    const layer_tape layer = tape_of_layer(tape, &s, l);
    smoe_real *y = l + 1 < s.layers ? tape_of_layer(tape, &s, l + 1).x : last;
    layer_forward(y, &layer, router, call, &s, first, l, &buffer);
  }
  smoe_norm_forward(h, mean, rstd, last, VALUE(s.layers, GAMMA), VALUE(s.layers, BETA), s.n, s.d);
}

void smoe_distill_transformer_recompute(smoe_real *h, const smoe_router *router,
                                        const smoe_distill_options *options, const smoe_route_call *call,
                                        int first, const smoe_real *tape) {
  const sizes s = sizes_of(router, options, call->n_tokens);
  const smoe_real *last = last_of(tape, &s), *mean = last + s.n * s.d;
  smoe_norm_recompute(h, mean, mean + s.n, last, VALUE(s.layers, GAMMA), VALUE(s.layers, BETA), s.n, s.d);
}

void smoe_distill_transformer_backward(smoe_real *dtable, smoe_real *dh, const smoe_router *router,
                                       const smoe_distill_options *options, const smoe_route_call *call,
                                       int first, const smoe_real *tape, smoe_real *scratch) {
  const sizes s = sizes_of(router, options, call->n_tokens);
  const buffers buffer = buffers_of(scratch, &s);
  const smoe_real *last = last_of(tape, &s), *mean = last + s.n * s.d;
  /* The norm adds to its dx and dh is its dy, so the gradient changes places. */
  smoe_real *dx = dh;
  memcpy(buffer.ffn.rows, dh, s.n * s.d * sizeof *dh);
  memset(dx, 0, s.n * s.d * sizeof *dx);
  smoe_norm_backward(dx, GRAD(s.layers, GAMMA), GRAD(s.layers, BETA), buffer.ffn.rows, last,
                     VALUE(s.layers, GAMMA), mean, mean + s.n, s.n, s.d);
  for (int l = s.layers - 1; l >= 0; l--) {
    const layer_tape layer = tape_of_layer((smoe_real *)tape, &s, l);
    layer_backward(dx, &layer, router, call, &s, first, l, &buffer);
  }
  smoe_embedding_backward(dtable, smoe_params_lane_grad(router->params, first + POSITION, call->lane), dx,
                          call->token, 1, call->n_sequences, call->n_context, s.d);
}
