#include "stablemoe/model.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"
#include "stablemoe/log.h"
#include "stablemoe/memory.h"
#include "stablemoe/phase.h"
#include "stablemoe/skip.h"
#include "stablemoe/timer.h"

/* ---- setting up ---- */

/* The backbone first, then the MoE layers, then the head: sums of the gradient norm go by this order. */
static void declare(smoe_model *model) {
  for (int part = 0; part < 3; part++)
    for (int i = 0; i < model->n_layers; i++) {
      smoe_layer *layer = &model->layer[i];
      const int own = layer->spec.moe >= 0 ? 1 : layer == model->head ? 2 : 0;
      if (own != part) continue;
      layer->first_param = model->params.n_params;
      if (layer->spec.ops->declare) layer->spec.ops->declare(layer);
      layer->end_param = model->params.n_params;
    }
}

/* Layer i + 1 runs on a lane right after layer i. */
static bool joined(const smoe_model *model, int i) {
  if (i + 1 >= model->n_layers) return false;
  const smoe_layer_spec *a = &model->layer[i].spec, *b = &model->layer[i + 1].spec;
  return a->block >= 0 && a->block == b->block && a->stream == b->stream && a->moe < 0 && b->moe < 0;
}

/* The layer that reads what layer i wrote; the encoder's last one is read by the decoder. */
static int next_in_stream(const smoe_model *model, int i) {
  const int stream = model->layer[i].spec.stream;
  for (int j = i + 1; j < model->n_layers; j++)
    if (model->layer[j].spec.stream == stream) return j;
  return model->n_layers;
}

static int previous_in_stream(const smoe_model *model, int i) {
  const int stream = model->layer[i].spec.stream;
  for (i--; i >= 0; i--)
    if (model->layer[i].spec.stream == stream) return i;
  return -1;
}

/* Whether the backward pass comes to layer i. */
static bool is_reached(const smoe_model *model, int i) {
  return model->training && i >= model->lowest;
}

static bool keeps_tape(const smoe_model *model, int i) {
  return is_reached(model, i) && !model->recompute;
}

/* One lane's rows between the layers of a block: a place for each, since the backward pass that computes them again
 * needs them all. Blocks share them. */
enum { INNER = 4 };
typedef struct inner_rows {
  smoe_real *rows[INNER];
  bool taken[INNER];
} inner_rows;

static smoe_hidden inner_hidden(smoe_model *model, inner_rows *inner, int i) {
  const int s = model->layer[i].spec.stream;
  int place = 0;
  while (i - place > 0 && joined(model, i - place - 1)) place++;
  SMOE_ASSERT(place < INNER);
  if (!inner->taken[place])
    inner->rows[place] =
        smoe_arena_reals(&model->tape, model->shape[s].lane_tokens * smoe_layer_out(&model->layer[i].spec));
  inner->taken[place] = true;
  return (smoe_hidden){inner->rows[place], true};
}

/* Widest rows of all layers. */
static size_t widest(const smoe_model *model) {
  size_t c = model->width;
  for (int i = 0; i < model->n_layers; i++) {
    const size_t out = smoe_layer_out(&model->layer[i].spec);
    if (out > c) c = out;
  }
  return c;
}

/* Where layers leave their outputs. Evaluation needs only a layer's input and output at a time. */
static void layout_hidden(smoe_model *model) {
  smoe_real *turn[SMOE_STREAMS][2] = {{NULL}};
  bool taken[SMOE_STREAMS][2] = {{false}};
  inner_rows inner[SMOE_STREAMS] = {0};
  int count[SMOE_STREAMS] = {0};
  for (int i = 0; i < model->n_layers; i++) {
    const int s = model->layer[i].spec.stream, before = previous_in_stream(model, i);
    const size_t c = smoe_layer_out(&model->layer[i].spec), n = model->shape[s].n_tokens;
    model->in[i] = before < 0 ? (smoe_hidden){0} : model->out[before];
    model->out[i] = (smoe_hidden){0};
    if (&model->layer[i] == model->head) continue;
    /* Of a segment that gradients reach in part the layers below keep nothing, but what the first above reads. */
    if (joined(model, i) && !keeps_tape(model, i + 1)) {
      model->out[i] = inner_hidden(model, &inner[s], i);
    } else if (is_reached(model, next_in_stream(model, i))) {
      model->out[i].rows = smoe_arena_reals(&model->tape, n * c);
    } else {
      const int at = count[s]++ % 2;
      if (!taken[s][at]) turn[s][at] = smoe_arena_reals(&model->tape, n * widest(model));
      taken[s][at] = true;
      model->out[i].rows = turn[s][at];
    }
  }
}

/* A layer's memory. Scratch begins at the same place for all: layers never run at the same time. */
static void layout_layer(smoe_model *model, int i, size_t scratch) {
  smoe_layer *layer = &model->layer[i];
  const smoe_layer_memory memory = {
      .fixed = &model->fixed,
      .tape = &model->tape,
      .scratch = &model->scratch,
      .shape = model->shape,
      .tape_lanes = keeps_tape(model, i) ? model->shape[layer->spec.stream].n_lanes : 1,
      .training = is_reached(model, i),
  };
  smoe_arena_reset(&model->scratch, scratch);
  layer->spec.ops->layout(layer, &memory);
}

/* Without kept tapes the blocks' tapes lie over one another. */
static bool shares_tape(const smoe_model *model, int i) {
  return !keeps_tape(model, i) && model->layer[i].spec.moe < 0 && &model->layer[i] != model->head;
}

static void layout(smoe_model *model) {
  smoe_params_layout(&model->params, &model->fixed, model->training);
  model->sums = smoe_arena_take(&model->fixed, (size_t)model->shape[SMOE_MAIN].n_lanes *
                                                   (size_t)model->n_sums * sizeof(double));
  layout_hidden(model);
  for (int s = 0; s < SMOE_STREAMS && model->training; s++)
    model->dx[s] = smoe_arena_reals(&model->scratch, model->shape[s].n_tokens * widest(model));
  const size_t scratch = model->scratch.used;
  if (model->training)
    model->reduce_scratch = smoe_arena_reals(&model->scratch, smoe_params_reduce_scratch(&model->params));
  for (int i = 0; i < model->n_layers; i++)
    if (!shares_tape(model, i)) layout_layer(model, i, scratch);
  const size_t tape = model->tape.used;
  for (int i = 0; i < model->n_layers; i++) {
    if (!shares_tape(model, i)) continue;
    if (i == 0 || !joined(model, i - 1)) smoe_arena_reset(&model->tape, tape);
    layout_layer(model, i, scratch);
  }
}

size_t smoe_model_route_sums(const smoe_model *model, int m) {
  return sizeof(smoe_lane_sums) / sizeof(double) + (size_t)model->objective->n_sums +
         (size_t)m * smoe_route_sums_count(&model->terms);
}

double smoe_model_accuracy(const smoe_model *model, const double *sums) {
  const smoe_lane_sums *common = (const smoe_lane_sums *)sums;
  return model->objective->counts ? sums[sizeof *common / sizeof(double)] / common->n_targets : NAN;
}

static smoe_status reserve(smoe_model *model) {
  SMOE_TRY(smoe_arena_reserve(&model->fixed));
  SMOE_TRY(smoe_arena_reserve(&model->tape));
  return smoe_arena_reserve(&model->scratch);
}

static void measure(smoe_model *model) {
  smoe_arena_measure(&model->fixed, "model");
  smoe_arena_measure(&model->tape, "tape");
  smoe_arena_measure(&model->scratch, "scratch");
  layout(model);
}

/* Memory that the ranks of a node have together: as much of what is asked for as the nodes can give. */
static void share(smoe_model *model, bool plan_only) {
  smoe_params *params = &model->params;
  if (params->group.planned_per_node > 0) return;
  while (smoe_params_take_window(params, plan_only) != SMOE_OK) {
    smoe_warn("%s; until then %s", smoe_last_error(), smoe_params_share_less(params));
    measure(model);
  }
}

/* Tokens that the ranks of this replica have together. */
static int64_t replica_tokens(const smoe_topology *topology, int n_lanes, size_t lane_tokens) {
  const int g = topology->experts.n_ranks, first = topology->world.rank / g * g;
  int64_t n = 0;
  for (int r = first; r < first + g; r++) n += smoe_lanes_of_rank(n_lanes, r, topology->world.n_ranks).count;
  return n * (int64_t)lane_tokens;
}

smoe_token_shape smoe_model_token_shape(const smoe_model *model, size_t lane_sequences, size_t context) {
  const smoe_lanes *lanes = &model->params.lanes;
  const size_t lane_tokens = lane_sequences * context;
  return (smoe_token_shape){.n_lanes = lanes->count,
                            .lane_sequences = lane_sequences,
                            .context = context,
                            .lane_tokens = lane_tokens,
                            .n_tokens = (size_t)lanes->count * lane_tokens,
                            .first_token = (int64_t)lanes->first * (int64_t)lane_tokens,
                            .n_global = (int64_t)lanes->n_lanes * (int64_t)lane_tokens,
                            .n_replica = replica_tokens(&model->topology, lanes->n_lanes, lane_tokens)};
}

/* The list of layers, and the tables that go by it. */
static void make_layers(smoe_model *model) {
  smoe_layer_list list = {.patch = model->patch};
  model->family->describe(model->config, (int)model->vocabulary, &list);
  const size_t n = (size_t)list.n;
  model->n_layers = list.n;
  model->layer = smoe_alloc(n * sizeof *model->layer);
  model->moe = smoe_alloc(n * sizeof *model->moe);
  model->in = smoe_alloc(n * sizeof *model->in);
  model->out = smoe_alloc(n * sizeof *model->out);
  model->source_last = -1;
  for (int i = 0; i < list.n; i++) {
    smoe_layer_create(&model->layer[i], &list.spec[i], model->config, &model->params);
    model->layer[i].number = i;
    if (list.spec[i].moe >= 0) model->moe[list.spec[i].moe] = model->layer[i].state;
    if (list.spec[i].stream == SMOE_ENCODER) model->source_last = i;
  }
  model->head = &model->layer[list.n - 1];
  smoe_free(list.spec);
}

/* Each MoE layer's router takes what that of the one before it in its stream hands on. */
static void link_moe(smoe_model *model) {
  smoe_moe_layer *last[SMOE_STREAMS] = {NULL};
  for (int m = 0; m < model->n_moe; m++) {
    smoe_moe_layer *moe = model->moe[m], **before = &last[moe->stream];
    moe->previous = *before;
    if (moe->previous) moe->previous->next = moe;
    *before = moe;
  }
}

smoe_status smoe_model_create(smoe_model **out, const smoe_config *config, const smoe_group *group,
                              const smoe_model_shape *shape, bool plan_only) {
  const smoe_settings *settings = smoe_config_settings(config);
  smoe_model *model = smoe_alloc(sizeof *model);
  *out = model;
  model->library_bytes = smoe_resident_memory();
  const smoe_lanes lanes = smoe_lanes_of_rank(shape->n_lanes, group->rank, group->n_ranks);
  model->config = config;
  model->family = smoe_family_of(config);
  model->objective = shape->objective ? shape->objective : &smoe_objective_cross_entropy;
  model->training = shape->training;
  model->recompute = shape->training && settings->train.recompute;
  model->width = (size_t)settings->model.width;
  model->vocabulary = (size_t)shape->vocabulary;
  model->patch = shape->patch;
  model->n_moe = smoe_family_n_moe(config);
  const int n_experts = model->n_moe ? (int)settings->moe.experts : 0;
  SMOE_TRY(smoe_topology_create(&model->topology, group, n_experts, settings->comm.expert_ranks));
  if (settings->comm.exchange == SMOE_EXCHANGE_TWO_LEVEL && n_experts > 0)
    smoe_nodes_find(&model->topology.nodes, &model->topology.experts, settings->comm.node_ranks);
  const bool shares = settings->comm.share == SMOE_SHARE_NODE,
             sums = shape->training && settings->comm.reduction == SMOE_REDUCTION_TWO_LEVEL;
  if (group->n_ranks > 1 && (shares || sums))
    smoe_topology_find_machines(&model->topology, settings->comm.node_ranks);
  smoe_params_begin(&model->params, group, &lanes);
  smoe_params_set_topology(&model->params, &model->topology);
  smoe_params_share(&model->params, shares, sums);
  const size_t context = shape->context ? shape->context : (size_t)settings->model.context;
  model->shape[SMOE_MAIN] = smoe_model_token_shape(model, shape->lane_sequences, context);
  if (shape->source_context)
    model->shape[SMOE_ENCODER] = smoe_model_token_shape(model, shape->lane_sequences, shape->source_context);
  make_layers(model);
  declare(model);
  SMOE_TRY(smoe_model_hold(model));
  model->lowest = smoe_model_lowest(model);
  link_moe(model);
  model->terms = model->n_moe ? model->moe[0]->router.terms : smoe_terms_common;
  model->n_sums = (int)smoe_model_route_sums(model, model->n_moe);

  measure(model);
  if (model->training && settings->train.save == SMOE_SAVE_BACKGROUND)
    model->copy_bytes = (double)smoe_params_state_bytes(&model->params);
  share(model, plan_only);
  if (plan_only) return SMOE_OK;
  SMOE_TRY_ALL(group, reserve(model));
  layout(model);
  return SMOE_OK;
}

void smoe_model_destroy(smoe_model *model) {
  if (!model) return;
  for (int i = 0; i < model->n_layers; i++) smoe_layer_destroy(&model->layer[i]);
  smoe_params_end(&model->params);
  smoe_topology_release(&model->topology);
  smoe_arena_release(&model->fixed);
  smoe_arena_release(&model->tape);
  smoe_arena_release(&model->scratch);
  smoe_free(model->layer);
  smoe_free(model->moe);
  smoe_free(model->in);
  smoe_free(model->out);
  smoe_free(model);
}

/* ---- the pass ---- */

void smoe_model_begin_update(smoe_model *model) {
  smoe_params_clear_gradients(&model->params);
  smoe_model_begin_sums(model);
}

void smoe_model_begin_sums(smoe_model *model) {
  memset(model->sums, 0,
         (size_t)model->shape[SMOE_MAIN].n_lanes * (size_t)model->n_sums * sizeof *model->sums);
  for (int m = 0; m < model->n_moe; m++) smoe_moe_layer_begin_update(model->moe[m]);
  for (int i = 0; i < model->n_layers; i++)
    if (model->layer[i].spec.skip) smoe_skip_begin(&model->layer[i]);
}

smoe_batch smoe_model_batch(const smoe_model *model, const int32_t *input, const int32_t *target) {
  return (smoe_batch){
      .shape = {[SMOE_MAIN] = model->shape[SMOE_MAIN]}, .token = {[SMOE_MAIN] = input}, .target = target};
}

static smoe_real *rows_of(const smoe_hidden *hidden, const smoe_token_shape *shape, int lane, size_t c) {
  return hidden->rows ? hidden->rows + (hidden->one_lane ? 0 : (size_t)lane * shape->lane_tokens * c) : NULL;
}

/* One lane's call of layer i. */
static smoe_layer_call call_of(const smoe_model *model, int i, int lane) {
  const smoe_batch *batch = &model->batch;
  const int s = model->layer[i].spec.stream;
  const smoe_token_shape *shape = &batch->shape[s], *source = &batch->shape[SMOE_ENCODER];
  const size_t l = (size_t)lane, c = model->layer[i].spec.width, first = l * shape->lane_tokens;
  const size_t out = smoe_layer_out(&model->layer[i].spec);
  smoe_layer_call call = {
      .pass = &model->pass,
      .lane = lane,
      .n = shape->lane_tokens,
      .n_sequences = shape->lane_sequences,
      .context = shape->context,
      .token = batch->token[s] + first,
      .length = batch->length[s] ? batch->length[s] + l * shape->lane_sequences : NULL,
      .x = rows_of(&model->in[i], shape, lane, c),
      .y = rows_of(&model->out[i], shape, lane, out),
      .dx = model->dx[s] ? model->dx[s] + first * out : NULL,
      .patch = batch->patch ? batch->patch + first * model->patch : NULL,
      .first_index = (uint64_t)(batch->before[s] + shape->first_token) + first,
  };
  if (s == SMOE_MAIN && model->source_last >= 0) {
    call.side_context = source->context;
    call.side_length =
        batch->length[SMOE_ENCODER] ? batch->length[SMOE_ENCODER] + l * source->lane_sequences : NULL;
    call.side = rows_of(&model->out[model->source_last], source, lane, c);
    call.dside = model->dx[SMOE_ENCODER] ? model->dx[SMOE_ENCODER] + l * source->lane_tokens * c : NULL;
  }
  if (&model->layer[i] == model->head) {
    call.target = batch->target + first;
    call.objective = model->objective;
    call.token_loss = model->token_loss ? model->token_loss + first : NULL;
    call.predicted = model->predicted ? model->predicted + first : NULL;
    call.sums = model->sums + l * (size_t)model->n_sums;
  }
  return call;
}

/* Layers first to last, lane by lane. */
static void forward_lanes(smoe_model *model, int first, int last) {
  const smoe_layer_spec *spec = &model->layer[first].spec;
  for (int lane = 0; lane < model->batch.shape[spec->stream].n_lanes; lane++) {
    smoe_phase(SMOE_PHASE_NORM);
    for (int i = first; i <= last; i++) {
      const smoe_layer_call call = call_of(model, i, lane);
      model->layer[i].spec.ops->forward(&model->layer[i], &call);
    }
  }
}

/* Of the segment first to last those from `lowest` on; where activations are computed again, all of it. */
static void backward_lanes(smoe_model *model, int first, int lowest, int last) {
  const smoe_layer_spec *spec = &model->layer[first].spec;
  for (int lane = 0; lane < model->batch.shape[spec->stream].n_lanes; lane++) {
    smoe_phase(SMOE_PHASE_NORM);
    for (int i = first; i <= last && model->recompute; i++) {
      const smoe_layer_ops *ops = model->layer[i].spec.ops;
      const smoe_layer_call call = call_of(model, i, lane);
      if (i < last)
        ops->forward(&model->layer[i], &call);
      else if (ops->recompute)
        ops->recompute(&model->layer[i], &call);
    }
    for (int i = last; i >= lowest; i--) {
      const smoe_layer_call call = call_of(model, i, lane);
      if (model->layer[i].spec.ops->backward) model->layer[i].spec.ops->backward(&model->layer[i], &call);
    }
  }
}

static void begin_pass(smoe_model *model, const smoe_batch *batch, const smoe_pass *pass) {
  smoe_arena_forget(&model->tape);
  smoe_arena_forget(&model->scratch);
  model->batch = *batch;
  model->pass = *pass;
  model->pass.batch = &model->batch;
}

/* Layers of one stream, or of all (-1). */
static void forward_stream(smoe_model *model, int stream) {
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_layer_spec *spec = &model->layer[i].spec;
    if ((stream < 0 || spec->stream == stream) && spec->ops->plan_all)
      spec->ops->plan_all(&model->layer[i], &model->pass);
  }
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_layer_spec *spec = &model->layer[i].spec;
    if (stream >= 0 && spec->stream != stream) continue;
    if (&model->layer[i] == model->head && !model->batch.target) continue;
    if (spec->moe >= 0) {
      spec->ops->forward_all(&model->layer[i], &model->pass, model->out[i].rows, model->in[i].rows,
                             model->sums + smoe_model_route_sums(model, spec->moe), (size_t)model->n_sums);
      continue;
    }
    const int first = i;
    while (joined(model, i)) i++;
    forward_lanes(model, first, i);
  }
}

void smoe_model_forward(smoe_model *model, const smoe_batch *batch, const smoe_pass *pass) {
  begin_pass(model, batch, pass);
  forward_stream(model, -1);
}

const smoe_real *smoe_model_encode(smoe_model *model, const smoe_batch *batch, const smoe_pass *pass) {
  begin_pass(model, batch, pass);
  forward_stream(model, SMOE_ENCODER);
  return model->out[model->source_last].rows;
}

void smoe_model_backward(smoe_model *model) {
  for (int i = model->lowest; i < model->n_layers; i++)
    if (model->layer[i].spec.ops->settle) model->layer[i].spec.ops->settle(&model->layer[i], &model->pass);
  if (model->source_last >= 0)
    memset(model->dx[SMOE_ENCODER], 0,
           model->batch.shape[SMOE_ENCODER].n_tokens * model->width * sizeof *model->dx[SMOE_ENCODER]);
  for (int i = model->n_layers - 1; i >= model->lowest; i--) {
    const smoe_layer_spec *spec = &model->layer[i].spec;
    if (spec->moe >= 0) {
      spec->ops->backward_all(&model->layer[i], &model->pass, model->dx[spec->stream], model->in[i].rows);
      continue;
    }
    const int last = i;
    while (i > 0 && joined(model, i - 1)) i--;
    backward_lanes(model, i, i > model->lowest ? i : model->lowest, last);
  }
}

void smoe_model_logits(smoe_model *model, size_t row, smoe_real *logits) {
  smoe_layer_head_logits(model->head, logits, model->in[model->n_layers - 1].rows + row * model->width, 1,
                         false);
}

static void add_work(const smoe_model *model, int layer, smoe_work *work) {
  const smoe_layer *l = &model->layer[layer];
  smoe_token_shape shape[SMOE_STREAMS];
  for (int s = 0; s < SMOE_STREAMS; s++) {
    shape[s] = model->shape[s];
    shape[s].n_lanes = model->params.lanes.n_lanes; /* of all ranks: theirs may differ */
  }
  work->forward_only = model->training && !is_reached(model, layer) && !work->everything;
  if (l->spec.ops->work) l->spec.ops->work(l, shape, work);
}

smoe_work smoe_model_work(const smoe_model *model, bool everything) {
  smoe_work work = {.everything = everything};
  for (int i = 0; i < model->n_layers; i++) add_work(model, i, &work);
  return work;
}

smoe_work smoe_model_layer_work(const smoe_model *model, int layer, bool everything) {
  smoe_work work = {.everything = everything};
  add_work(model, layer, &work);
  return work;
}

void smoe_model_freeze(smoe_model *model) {
  for (int m = 0; m < model->n_moe; m++) {
    smoe_router *router = &model->moe[m]->router;
    if (router->ops->freeze) router->ops->freeze(router, &model->params);
  }
}
