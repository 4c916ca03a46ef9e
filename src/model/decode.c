#include "stablemoe/decode.h"

#include <string.h>

#include "stablemoe/kernel.h"

struct smoe_decoder {
  smoe_model *model;
  bool cached;
  int rank;          /* that has the lane, and so the rows */
  smoe_arena arena;  /* empty on other ranks, but for the tokens */
  int32_t *token;    /* [T] read so far; -1 beyond */
  smoe_real **state; /* [n_layers] of each layer */
  smoe_real *x[2];   /* [T, C] a layer's input and output, in turn */
};

static bool has_rows(const smoe_decoder *d) {
  return d->model->params.group.rank == d->rank;
}

/* ---- memory ---- */

static void layout(smoe_decoder *d) {
  const smoe_model *model = d->model;
  const size_t t = model->shape[SMOE_MAIN].context, c = model->width;
  smoe_arena *arena = &d->arena;
  d->token = smoe_arena_ints(arena, t);
  if (d->token) memset(d->token, 0xff, t * sizeof *d->token);
  if (!d->cached || !has_rows(d)) return;
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_layer_ops *ops = model->layer[i].spec.ops;
    const size_t n = ops->state_reals ? ops->state_reals(&model->layer[i], 1, t, 0) : 0;
    d->state[i] = n ? smoe_arena_reals(arena, n) : NULL;
  }
  for (int i = 0; i < 2; i++) d->x[i] = smoe_arena_reals(arena, t * c);
}

static smoe_router_scope scope_of(const smoe_router *router) {
  return router->ops->scope ? router->ops->scope(router) : SMOE_SCOPE_ALL;
}

smoe_status smoe_decoder_create(smoe_decoder **out, smoe_model *model, bool cached) {
  const smoe_group *group = &model->params.group;
  smoe_decoder *d = smoe_alloc(sizeof *d);
  *out = d;
  *d = (smoe_decoder){.model = model, .cached = cached};
  SMOE_ASSERT(!model->training && model->params.lanes.n_lanes == 1 &&
              model->shape[SMOE_MAIN].lane_sequences == 1);
  while (smoe_lanes_of_rank(1, d->rank, group->n_ranks).count == 0) d->rank++;
  for (int m = 0; m < model->n_moe; m++)
    if (scope_of(&model->moe[m]->router) == SMOE_SCOPE_ALL) d->cached = false;
  d->state = smoe_alloc((size_t)model->n_layers * sizeof *d->state);
  smoe_arena_measure(&d->arena, "decoder");
  layout(d);
  SMOE_TRY_ALL(group, smoe_arena_reserve(&d->arena));
  layout(d);
  return SMOE_OK;
}

void smoe_decoder_destroy(smoe_decoder *d) {
  if (!d) return;
  smoe_arena_release(&d->arena);
  smoe_free(d->state);
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

static void read_cached(smoe_decoder *d, size_t first, size_t n, const smoe_pass *pass, smoe_real *logits) {
  const smoe_model *model = d->model;
  const bool rows = has_rows(d);
  const smoe_batch batch = {.shape = {[SMOE_MAIN] = {.n_lanes = rows ? 1 : 0,
                                                     .lane_sequences = 1,
                                                     .context = n,
                                                     .lane_tokens = n,
                                                     .n_tokens = rows ? n : 0,
                                                     .n_global = (int64_t)n}},
                            .token = {[SMOE_MAIN] = d->token + first}};
  smoe_pass own = *pass;
  own.batch = &batch;
  smoe_extend_call call = {.pass = &own,
                           .n_sequences = 1,
                           .first = first,
                           .n = n,
                           .length_max = model->shape[SMOE_MAIN].context,
                           .token = d->token};
  int at = 0;
  for (int i = 0; i + 1 < model->n_layers; i++) {
    smoe_layer *layer = &model->layer[i];
    if (!rows && layer->spec.moe < 0) continue;
    call.x = d->x[at];
    call.y = d->x[!at];
    call.state = d->state[i];
    layer->spec.ops->extend(layer, &call);
    at = !at;
  }
  if (rows) smoe_layer_head_logits(model->head, logits, d->x[at] + (n - 1) * model->width, 1, true);
}

void smoe_decoder_read(smoe_decoder *d, const int32_t *token, size_t first, size_t n, const smoe_pass *pass,
                       smoe_real *logits) {
  const size_t t = d->model->shape[SMOE_MAIN].context;
  SMOE_ASSERT(n > 0 && first + n <= t);
  memcpy(d->token + first, token, n * sizeof *token);
  memset(d->token + first + n, 0xff, (t - first - n) * sizeof *token);
  if (d->cached) {
    read_cached(d, first, n, pass, logits);
    return;
  }
  const smoe_batch batch = smoe_model_batch(d->model, d->token, NULL);
  smoe_model_forward(d->model, &batch, pass);
  if (has_rows(d)) smoe_model_logits(d->model, first + n - 1, logits);
}
