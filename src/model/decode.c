#include "stablemoe/decode.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"

/* An MoE layer that gets only the new rows. Its router is one that stands before the method's own,
 * and shows that one as much of the sequence as it wants to see. */
typedef struct decode_moe {
  smoe_moe_layer layer;   /* a copy of the model's, with the shape of one call */
  const smoe_router *own; /* the method's */
  const smoe_decoder *decoder;
  smoe_router_scope scope;
  smoe_real *x;    /* [T, C] hidden states that entered the layer so far; zero beyond */
  int32_t *expert; /* [T, K] */
  smoe_real *gate; /* [T, K] */
} decode_moe;

struct smoe_decoder {
  smoe_model *model;
  bool cached;
  int rank;         /* that has the lane */
  smoe_arena arena; /* empty on other ranks, but for the tokens */
  int32_t *token;   /* [T] read so far; -1 beyond */
  size_t first;     /* place of the call's first row */
  decode_moe *moe;  /* [n_moe] */
  smoe_real **qkv;  /* [n_blocks] of [T, 3 C]: the keys and values, and queries that nobody needs any more */
  smoe_real *x[2];  /* [T, C] a layer's input and output, in turn */
  smoe_real *normed, *u, *attended, *h;
  smoe_real *mean, *rstd, *lse;
  smoe_real *attention; /* scratch of both kernels */
};

static bool has_rows(const smoe_decoder *d) {
  return d->model->params.group.rank == d->rank;
}

/* ---- routing ---- */

static void route_decode(const smoe_router *router, const smoe_route_call *call) {
  const decode_moe *moe = router->options;
  const size_t context = moe->decoder->model->tokens.context, c = router->width;
  const size_t k = (size_t)router->n_slots, first = moe->decoder->first;
  smoe_route_call seen = *call;
  seen.learned = seen.distilled = NULL; /* nobody compares them here */
  if (moe->scope == SMOE_SCOPE_TOKEN) {
    moe->own->ops->route(moe->own, &seen);
    return;
  }
  /* The whole sequence so far in the shape of a whole pass; padding beyond. */
  memcpy(moe->x + first * c, call->x, call->n_tokens * c * sizeof *call->x);
  seen.n_tokens = seen.n_context = context;
  seen.token = moe->decoder->token;
  seen.x = moe->x;
  seen.expert = moe->expert;
  seen.gate = moe->gate;
  moe->own->ops->route(moe->own, &seen);
  memcpy(call->expert, moe->expert + first * k, call->n_tokens * k * sizeof *call->expert);
  memcpy(call->gate, moe->gate + first * k, call->n_tokens * k * sizeof *call->gate);
}

static const smoe_router_ops smoe_router_decode = {.name = "decode", .route = route_decode};

static smoe_router_scope scope_of(const smoe_router *router) {
  return router->ops->scope ? router->ops->scope(router) : SMOE_SCOPE_ALL;
}

/* The layer as it is for n rows. */
static void shape_moe(decode_moe *moe, bool rows, size_t n) {
  smoe_token_shape *tokens = &moe->layer.tokens;
  tokens->n_lanes = rows ? 1 : 0;
  tokens->context = tokens->lane_tokens = n;
  tokens->n_tokens = rows ? n : 0;
  tokens->n_global = (int64_t)n;
  tokens->first_token = 0;
}

/* ---- memory ---- */

static void layout_moe(smoe_decoder *d, int m) {
  const smoe_model *model = d->model;
  const size_t t = model->tokens.context, k = (size_t)model->moe[m].router.n_slots;
  decode_moe *moe = &d->moe[m];
  moe->layer = model->moe[m];
  moe->own = &model->moe[m].router;
  moe->decoder = d;
  moe->scope = scope_of(moe->own);
  moe->layer.router.ops = &smoe_router_decode;
  moe->layer.router.options = moe;
  moe->layer.experts.decoding = true;
  if (moe->layer.experts.pause) moe->layer.experts.pause_of = &moe->layer.exchange;
  if (!has_rows(d) || moe->scope != SMOE_SCOPE_PREFIX) return;
  moe->x = smoe_arena_reals(&d->arena, t * model->width);
  moe->expert = smoe_arena_ints(&d->arena, t * k);
  moe->gate = smoe_arena_reals(&d->arena, t * k);
  if (moe->x) memset(moe->x, 0, t * model->width * sizeof *moe->x);
}

static void layout(smoe_decoder *d) {
  const smoe_model *model = d->model;
  const size_t t = model->tokens.context, c = model->width, heads = model->block[0].heads;
  smoe_arena *arena = &d->arena;
  d->token = smoe_arena_ints(arena, t);
  if (d->token) memset(d->token, 0xff, t * sizeof *d->token);
  if (!d->cached) return;
  for (int m = 0; m < model->n_moe; m++) layout_moe(d, m);
  if (!has_rows(d)) return;
  for (int b = 0; b < model->n_blocks; b++) d->qkv[b] = smoe_arena_reals(arena, t * 3 * c);
  d->x[0] = smoe_arena_reals(arena, t * c);
  d->x[1] = smoe_arena_reals(arena, t * c);
  d->normed = smoe_arena_reals(arena, t * c);
  d->u = smoe_arena_reals(arena, t * c);
  d->attended = smoe_arena_reals(arena, t * c);
  d->h = smoe_arena_reals(arena, t * model->block[0].inner);
  d->mean = smoe_arena_reals(arena, t);
  d->rstd = smoe_arena_reals(arena, t);
  d->lse = smoe_arena_reals(arena, t * heads);
  const size_t whole = smoe_attention_scratch(t, c / heads), row = heads * t;
  d->attention = smoe_arena_reals(arena, whole > row ? whole : row);
}

smoe_status smoe_decoder_create(smoe_decoder **out, smoe_model *model, bool cached) {
  const smoe_group *group = &model->params.group;
  smoe_decoder *d = smoe_alloc(sizeof *d);
  *out = d;
  *d = (smoe_decoder){.model = model, .cached = cached};
  SMOE_ASSERT(!model->training && model->params.lanes.n_lanes == 1 && model->tokens.lane_sequences == 1);
  while (smoe_lanes_of_rank(1, d->rank, group->n_ranks).count == 0) d->rank++;
  for (int m = 0; m < model->n_moe; m++)
    if (scope_of(&model->moe[m].router) == SMOE_SCOPE_ALL) d->cached = false;
  d->moe = smoe_alloc((size_t)(model->n_moe + 1) * sizeof *d->moe);
  d->qkv = smoe_alloc((size_t)model->n_blocks * sizeof *d->qkv);
  smoe_arena_measure(&d->arena, "decoder");
  layout(d);
  SMOE_TRY_ALL(group, smoe_arena_reserve(&d->arena));
  layout(d);
  return SMOE_OK;
}

void smoe_decoder_destroy(smoe_decoder *d) {
  if (!d) return;
  smoe_arena_release(&d->arena);
  smoe_free(d->moe);
  smoe_free(d->qkv);
  smoe_free(d);
}

bool smoe_decoder_is_cached(const smoe_decoder *d) {
  return d->cached;
}

int smoe_decoder_rank(const smoe_decoder *d) {
  return d->rank;
}

size_t smoe_decoder_window(size_t n, size_t context) {
  const size_t step = context > 1 ? context / 2 : 1;
  return n <= context ? 0 : (n - context + step - 1) / step * step;
}

/* ---- the pass ---- */

static const smoe_real *value(const smoe_decoder *d, int index) {
  return smoe_params_shared(&d->model->params, index);
}

/* Rows first .. first + n - 1 attend to themselves and those before. */
static void attend(smoe_decoder *d, const smoe_real *qkv, size_t first, size_t n, size_t heads) {
  const size_t c = d->model->width;
  if (first == 0 && n > 1) {
    smoe_attention_forward(d->attended, d->lse, qkv, d->attention, 1, n, heads, c / heads);
    return;
  }
  for (size_t i = 0; i < n; i++)
    smoe_attention_row(d->attended + i * c, qkv, d->attention, first + i, heads, c / heads);
}

/* The equations of block.h, on n rows. */
static void block_rows(smoe_decoder *d, int number, smoe_real *y, const smoe_real *x, size_t n) {
  const smoe_block *block = &d->model->block[number];
  const size_t c = block->width, f = block->inner;
  smoe_real *qkv = d->qkv[number];
  smoe_norm_forward(d->normed, d->mean, d->rstd, x, value(d, block->gamma1), value(d, block->beta1), n, c);
  smoe_linear_rows(qkv + d->first * 3 * c, d->normed, value(d, block->qkv), value(d, block->qkv_bias), n, c,
                   3 * c);
  attend(d, qkv, d->first, n, block->heads);
  smoe_linear_rows(d->u, d->attended, value(d, block->proj), value(d, block->proj_bias), n, c, c);
  smoe_add(d->u, x, n * c);
  smoe_norm_forward(d->normed, d->mean, d->rstd, d->u, value(d, block->gamma2), value(d, block->beta2), n, c);
  smoe_linear_rows(d->h, d->normed, value(d, block->w1), NULL, n, c, f);
  smoe_bias_relu_forward(d->h, value(d, block->b1), n, f);
  smoe_linear_rows(y, d->h, value(d, block->w2), value(d, block->b2), n, f, c);
  smoe_add(y, d->u, n * c);
}

static void embed(smoe_decoder *d, const int32_t *token, size_t n) {
  const smoe_model *model = d->model;
  const size_t c = model->width;
  const bool scaled = smoe_config_settings(model->config)->model.scale_embedding;
  smoe_embedding_forward(d->x[0], token, value(d, model->table), value(d, model->position) + d->first * c,
                         scaled ? (smoe_real)sqrt((double)c) : 1, 1, n, c);
}

/* Final norm and logits of one row. */
static void head(smoe_decoder *d, const smoe_real *x, smoe_real *logits) {
  const smoe_model *model = d->model;
  const size_t c = model->width;
  smoe_norm_forward(d->normed, d->mean, d->rstd, x, value(d, model->gamma), value(d, model->beta), 1, c);
  smoe_linear_rows(logits, d->normed, value(d, model->table), NULL, 1, c, model->vocabulary);
}

static void read_cached(smoe_decoder *d, const int32_t *token, size_t n, const smoe_route_context *context,
                        smoe_real *logits) {
  const smoe_model *model = d->model;
  const bool rows = has_rows(d);
  int at = 0;
  if (rows) embed(d, token, n);
  for (int i = 0; i < model->n_layers; i++, at = !at) {
    const int m = -1 - model->layer[i];
    if (m < 0) {
      if (rows) block_rows(d, model->layer[i], d->x[!at], d->x[at], n);
      continue;
    }
    shape_moe(&d->moe[m], rows, n);
    smoe_moe_layer_forward(&d->moe[m].layer, d->x[!at], model->sums + smoe_model_route_sums(m),
                           (size_t)model->n_sums, d->x[at], token, context);
  }
  if (rows) head(d, d->x[at] + (n - 1) * model->width, logits);
}

void smoe_decoder_read(smoe_decoder *d, const int32_t *token, size_t first, size_t n,
                       const smoe_route_context *context, smoe_real *logits) {
  const size_t t = d->model->tokens.context;
  SMOE_ASSERT(n > 0 && first + n <= t);
  d->first = first;
  memcpy(d->token + first, token, n * sizeof *token);
  memset(d->token + first + n, 0xff, (t - first - n) * sizeof *token);
  if (d->cached) {
    read_cached(d, token, n, context, logits);
    return;
  }
  smoe_model_forward(d->model, d->token, NULL, context);
  if (has_rows(d)) smoe_model_logits(d->model, first + n - 1, logits);
}
