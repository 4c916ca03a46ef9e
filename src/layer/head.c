/* The head: logits = W norm(x) in slices of rows, and the objective; in training the gradients of all of it at
 * once: the loss's denominator is known beforehand, so logits are never held whole nor computed twice. */
#include <math.h>
#include <string.h>

#include "stablemoe/layer.h"
#include "stablemoe/phase.h"

typedef struct head {
  int gamma, beta, weight;
  size_t rows;            /* of a slice */
  smoe_real *mean, *rstd; /* tape [N] */
  smoe_operand normed;    /* scratch [lane tokens, C] */
  smoe_real *dnormed;     /* scratch [lane tokens, C] */
  smoe_real *logits;      /* scratch [rows, V] */
  smoe_operand dlogits;   /* scratch [rows, V]: bf16 alone */
  smoe_real *loss;        /* scratch [lane tokens] */
  int32_t *target;        /* scratch [lane tokens] of the first copies, where there are several */
} head;

static void declare_head(smoe_layer *layer) {
  const smoe_layer_spec *spec = &layer->spec;
  head *h = layer->state;
  const int64_t c = (int64_t)spec->width;
  h->gamma = h->beta = -1;
  if (spec->norm != SMOE_NORM_NONE)
    h->gamma = smoe_params_declare(layer->params, SMOE_REPLICATED, (int64_t[]){c, 0},
                                   (smoe_init){SMOE_INIT_CONSTANT, 1, false}, false, "norm/gamma");
  if (spec->norm == SMOE_NORM_LAYER)
    h->beta = smoe_params_declare(layer->params, SMOE_REPLICATED, (int64_t[]){c, 0},
                                  (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false, "norm/beta");
  if (spec->tied)
    h->weight = smoe_params_find(layer->params, "embedding/table");
  else
    h->weight = smoe_layer_declare_weight(layer, "weight", (int64_t[]){(int64_t)spec->vocabulary, c, 0},
                                          (smoe_init){SMOE_INIT_NORMAL, 1 / sqrt((double)c), false});
  if (layer->precision == SMOE_BF16) smoe_params_keep_rounded(layer->params, h->weight);
}

/* Rows of a slice: about 16 MiB of logits, whatever the vocabulary. */
static size_t slice_rows(size_t vocabulary, size_t lane_tokens) {
  size_t rows = (size_t)4194304 / vocabulary / 64 * 64;
  if (rows < 64) rows = 64;
  return rows < lane_tokens ? rows : lane_tokens;
}

static void layout_head(smoe_layer *layer, const smoe_layer_memory *memory) {
  head *h = layer->state;
  const smoe_token_shape *shape = &memory->shape[layer->spec.stream];
  const size_t n = shape->n_tokens, lane = shape->lane_tokens, c = layer->spec.width;
  h->mean = smoe_arena_reals(memory->tape, n);
  h->rstd = smoe_arena_reals(memory->tape, n);
  h->normed = smoe_arena_operand(memory->scratch, layer->precision, lane * c);
  h->loss = smoe_arena_reals(memory->scratch, lane);
  h->target = smoe_arena_ints(memory->scratch, lane);
  h->rows = slice_rows(layer->spec.vocabulary, lane);
  h->logits = smoe_arena_reals(memory->scratch, h->rows * layer->spec.vocabulary);
  if (!memory->training) return;
  h->dnormed = smoe_arena_reals(memory->scratch, lane * c);
  if (layer->precision == SMOE_BF16)
    h->dlogits = smoe_arena_operand(memory->scratch, SMOE_BF16, h->rows * layer->spec.vocabulary);
}

/* How the rows of a lane are worked on: the first copies of all sequences, then the second ones. */
typedef struct order {
  size_t copies, targets; /* rows of each copy */
  const int32_t *target;  /* [targets] */
} order;

static size_t copies_of(const smoe_layer_call *call) {
  const smoe_batch *batch = call->pass->batch;
  return batch && batch->copies > 1 ? (size_t)batch->copies : 1;
}

/* Where the rows of the call's sequence s are in that order. */
static size_t place_of(const order *o, const smoe_layer_call *call, size_t s) {
  return s % o->copies * o->targets + s / o->copies * call->context;
}

static order order_of(const head *h, const smoe_layer_call *call) {
  order o = {.copies = copies_of(call), .target = call->target};
  o.targets = call->n / o.copies;
  if (o.copies == 1) return o;
  o.target = h->target;
  for (size_t s = 0; s < call->n_sequences; s += o.copies)
    memcpy(h->target + place_of(&o, call, s), call->target + s * call->context,
           call->context * sizeof *h->target);
  return o;
}

/* Rows r to r + rows of every copy. */
static void slice(smoe_layer *layer, const smoe_layer_call *call, const order *o, size_t r, size_t rows) {
  const head *h = layer->state;
  const size_t c = layer->spec.width, v = layer->spec.vocabulary;
  const smoe_operand weight = smoe_layer_weight(layer, h->weight);
  for (size_t i = 0; i < o->copies; i++)
    smoe_map_forward(h->logits + i * rows * v, smoe_operand_at(h->normed, (i * o->targets + r) * c), weight,
                     NULL, rows, c, v);
  smoe_real *loss = o->copies == 1 ? h->loss + r : smoe_alloc(o->copies * rows * sizeof *loss);
  call->objective->rows(call->objective,
                        &(smoe_objective_call){.logits = h->logits,
                                               .loss = loss,
                                               .sums = call->sums + sizeof(smoe_lane_sums) / sizeof(double),
                                               .target = o->target + r,
                                               .rows = rows,
                                               .vocabulary = v,
                                               .copies = (int)o->copies,
                                               .scale = (smoe_real)(1.0 / (double)call->pass->n_targets),
                                               .gradient = call->pass->training});
  for (size_t i = 0; i < o->copies && o->copies > 1; i++)
    memcpy(h->loss + i * o->targets + r, loss + i * rows, rows * sizeof *loss);
  if (o->copies > 1) smoe_free(loss);
  for (size_t i = 0; i < o->copies && call->pass->training; i++) {
    const size_t at = (i * o->targets + r) * c;
    const smoe_operand dlogits = smoe_operand_of(h->dlogits, h->logits + i * rows * v, rows * v);
    smoe_map_backward_weight(smoe_layer_grad(layer, h->weight, call->lane), NULL, dlogits,
                             smoe_operand_at(h->normed, at), rows, c, v);
    smoe_map_backward_input(h->dnormed + at, dlogits, weight, rows, c, v, false);
  }
}

/* Rows of the call that follow one another in both orders, from row `first`; where the others have them. */
static size_t stretch(const order *o, const smoe_layer_call *call, size_t first, size_t *place) {
  *place = o->copies == 1 ? first : place_of(o, call, first / call->context);
  return o->copies == 1 ? call->n : call->context;
}

static void add_sums(const head *h, const smoe_layer_call *call, const order *o) {
  smoe_lane_sums *sums = (smoe_lane_sums *)call->sums;
  for (size_t t = 0; t < call->n; t++) sums->loss += (double)h->loss[t] / (double)o->copies;
  for (size_t t = 0; t < o->targets; t++) sums->n_targets += o->target[t] >= 0;
}

/* Writes dx = dL/dx in training: there is no backward of its own. */
static void forward_head(smoe_layer *layer, const smoe_layer_call *call) {
  const head *h = layer->state;
  const size_t n = call->n, c = layer->spec.width, first = (size_t)call->lane * n;
  const smoe_norm_kind norm = layer->spec.norm;
  const smoe_real *gamma = smoe_layer_value(layer, h->gamma), *beta = smoe_layer_value(layer, h->beta);
  smoe_phase(SMOE_PHASE_HEAD);
  const order o = order_of(h, call);
  size_t place, rows;
  for (size_t t = 0; t < n; t += rows) {
    rows = stretch(&o, call, t, &place);
    smoe_norm_rows(norm, smoe_operand_at(h->normed, place * c), h->mean + first + t, h->rstd + first + t,
                   call->x + t * c, gamma, beta, rows, c);
  }
  const size_t most = h->rows / o.copies;
  SMOE_ASSERT(most > 0 || n == 0);
  for (size_t r = 0; r < o.targets; r += most)
    slice(layer, call, &o, r, r + most < o.targets ? most : o.targets - r);
  if (call->token_loss)
    for (size_t t = 0; t < n; t += rows) {
      rows = stretch(&o, call, t, &place);
      memcpy(call->token_loss + t, h->loss + place, rows * sizeof *h->loss);
    }
  add_sums(h, call, &o);
  if (!call->pass->training) return;
  memset(call->dx, 0, n * c * sizeof *call->dx);
  for (size_t t = 0; t < n; t += rows) {
    rows = stretch(&o, call, t, &place);
    smoe_norm_rows_backward(norm, call->dx + t * c, smoe_layer_grad(layer, h->gamma, call->lane),
                            smoe_layer_grad(layer, h->beta, call->lane), h->dnormed + place * c,
                            call->x + t * c, gamma, h->mean + first + t, h->rstd + first + t, rows, c);
  }
}

void smoe_layer_head_logits(smoe_layer *layer, smoe_real *logits, const smoe_real *x, size_t n,
                            bool decoding) {
  const head *h = layer->state;
  const size_t c = layer->spec.width;
  smoe_norm_rows(layer->spec.norm, h->normed, h->mean, h->rstd, x, smoe_layer_value(layer, h->gamma),
                 smoe_layer_value(layer, h->beta), n, c);
  (decoding ? smoe_map_rows : smoe_map_forward)(logits, h->normed, smoe_layer_weight(layer, h->weight), NULL,
                                                n, c, layer->spec.vocabulary);
}

size_t *smoe_layer_head_rows(smoe_layer *layer) {
  return &((head *)layer->state)->rows;
}

static void work_head(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work) {
  const head *h = layer->state;
  const smoe_token_shape *s = &shape[layer->spec.stream];
  smoe_work_linear(work, h->rows, layer->spec.width, layer->spec.vocabulary,
                   s->n_lanes * (double)s->lane_tokens / (double)h->rows,
                   smoe_layer_learns(layer, h->weight));
}

const smoe_layer_ops smoe_layer_head = {
    .kind = "head",
    .bytes = sizeof(head),
    .declare = declare_head,
    .layout = layout_head,
    .forward = forward_head,
    .work = work_head,
};
