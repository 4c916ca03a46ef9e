#include "stablemoe/model.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"
#include "stablemoe/log.h"
#include "stablemoe/phase.h"
#include "stablemoe/timer.h"

static const double MIB = 1 << 20;

/* MoE layer i stands after so many blocks. */
static int64_t blocks_before_moe(const smoe_settings *settings, int i) {
  const int64_t blocks = settings->model.blocks;
  switch ((smoe_position)settings->moe.position) {
  case SMOE_MIDDLE:
    return blocks / 2;
  case SMOE_TOP:
    return blocks;
  case SMOE_BOTTOM:
    return 0;
  case SMOE_SCATTERED:
    return (i + 1) * blocks / (settings->moe.layers + 1);
  }
  return blocks;
}

static void order_layers(smoe_model *model, const smoe_settings *settings) {
  model->layer = smoe_alloc((size_t)model->n_layers * sizeof *model->layer);
  int at = 0, moe = 0;
  for (int b = 0; b <= model->n_blocks; b++) {
    while (moe < model->n_moe && blocks_before_moe(settings, moe) == b) model->layer[at++] = -1 - moe++;
    if (b < model->n_blocks) model->layer[at++] = b;
  }
  SMOE_ASSERT(at == model->n_layers);
}

static void declare(smoe_model *model, const smoe_settings *settings) {
  smoe_params *params = &model->params;
  const int64_t c = settings->model.width, v = (int64_t)model->vocabulary;
  /* The tied table is the head too: 1/sqrt(C) keeps its logits of order one, and the
   * embedding is scaled back by sqrt(C) (model.scale_embedding). */
  const smoe_init normal = {SMOE_INIT_NORMAL, 1 / sqrt((double)c), false};
  model->table =
      smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){v, c, 0}, normal, true, "embedding/table");
  model->position = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){settings->model.context, c, 0},
                                        normal, true, "embedding/position");
  for (int b = 0; b < model->n_blocks; b++) smoe_block_declare(&model->block[b], settings, params, b);
  for (int m = 0; m < model->n_moe; m++)
    smoe_moe_layer_declare(&model->moe[m], model->config, params, m, (int)v);
  model->gamma = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){c, 0},
                                     (smoe_init){SMOE_INIT_CONSTANT, 1, false}, false, "norm/gamma");
  model->beta = smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){c, 0},
                                    (smoe_init){SMOE_INIT_CONSTANT, 0, false}, false, "norm/beta");
}

/* Rows of one slice of the head: about 16 MiB of logits, whatever the vocabulary. */
static size_t head_rows(size_t vocabulary, size_t lane_tokens) {
  size_t rows = (size_t)4194304 / vocabulary / 64 * 64;
  if (rows < 64) rows = 64;
  return rows < lane_tokens ? rows : lane_tokens;
}

static void layout(smoe_model *model) {
  const size_t n = model->tokens.n_tokens, c = model->width, lane = model->tokens.lane_tokens;
  smoe_params_layout(&model->params, &model->fixed, model->training);
  model->sums =
      smoe_arena_take(&model->fixed, (size_t)model->tokens.n_lanes * (size_t)model->n_sums * sizeof(double));

  for (int i = 0; i <= model->n_layers; i++) {
    /* Evaluation needs only the layer's input and output at a time. */
    const bool reuse = !model->training && i >= 2;
    model->x[i] = reuse ? model->x[i - 2] : smoe_arena_reals(&model->tape, n * c);
  }
  const bool keep = model->training && !model->recompute;
  for (int b = 0; b < model->n_blocks; b++)
    smoe_block_layout(&model->block[b], &model->tape, keep ? model->tokens.n_lanes : 1, lane,
                      keep || b == 0 ? NULL : &model->block[0]);
  model->mean = smoe_arena_reals(&model->tape, n);
  model->rstd = smoe_arena_reals(&model->tape, n);

  model->normed = smoe_arena_reals(&model->scratch, lane * c);
  model->row_loss = smoe_arena_reals(&model->scratch, lane);
  model->head_rows = head_rows(model->vocabulary, lane);
  model->logits = smoe_arena_reals(&model->scratch, model->head_rows * model->vocabulary);
  if (model->training) {
    model->dx = smoe_arena_reals(&model->scratch, n * c);
    model->dnormed = smoe_arena_reals(&model->scratch, lane * c);
  }
  /* Blocks, MoE layers and the reduction never run at the same time: they share what follows. */
  const size_t shared = model->scratch.used;
  if (model->training)
    model->reduce_scratch = smoe_arena_reals(&model->scratch, smoe_params_reduce_scratch(&model->params));
  smoe_arena_reset(&model->scratch, shared);
  smoe_block_scratch_layout(&model->block_scratch, &model->block[0], &model->scratch, model->training);
  for (int m = 0; m < model->n_moe; m++) {
    smoe_arena_reset(&model->scratch, shared);
    smoe_moe_layer_layout(&model->moe[m], model->config, &model->tokens, &model->fixed, &model->tape,
                          &model->scratch, model->training);
  }
}

size_t smoe_model_route_sums(int m) {
  return (sizeof(smoe_lane_sums) + (size_t)m * sizeof(smoe_route_sums)) / sizeof(double);
}

static smoe_status reserve(smoe_model *model) {
  SMOE_TRY(smoe_arena_reserve(&model->fixed));
  SMOE_TRY(smoe_arena_reserve(&model->tape));
  return smoe_arena_reserve(&model->scratch);
}

/* Tokens that the ranks of this replica have together. */
static int64_t replica_tokens(const smoe_topology *topology, int n_lanes, size_t lane_tokens) {
  const int g = topology->experts.n_ranks, first = topology->world.rank / g * g;
  int64_t n = 0;
  for (int r = first; r < first + g; r++) n += smoe_lanes_of_rank(n_lanes, r, topology->world.n_ranks).count;
  return n * (int64_t)lane_tokens;
}

/* Sizes, and the tables of layers that go by them. */
static void set_shape(smoe_model *model, const smoe_settings *settings, const smoe_lanes *lanes,
                      const smoe_model_shape *shape) {
  const size_t context = (size_t)settings->model.context, lane_tokens = shape->lane_sequences * context;
  model->training = shape->training;
  model->recompute = shape->training && settings->train.recompute;
  model->width = (size_t)settings->model.width;
  model->vocabulary = (size_t)shape->vocabulary;
  model->n_blocks = (int)settings->model.blocks;
  model->n_moe = (int)settings->moe.layers;
  model->n_layers = model->n_blocks + model->n_moe;
  model->tokens = (smoe_token_shape){.n_lanes = lanes->count,
                                     .lane_sequences = shape->lane_sequences,
                                     .context = context,
                                     .lane_tokens = lane_tokens,
                                     .n_tokens = (size_t)lanes->count * lane_tokens,
                                     .first_token = (int64_t)lanes->first * (int64_t)lane_tokens,
                                     .n_global = (int64_t)shape->n_lanes * (int64_t)lane_tokens};
  model->n_sums = (int)smoe_model_route_sums(model->n_moe);
  model->block = smoe_alloc((size_t)model->n_blocks * sizeof *model->block);
  model->moe = smoe_alloc((size_t)model->n_moe * sizeof *model->moe);
  model->x = smoe_alloc((size_t)(model->n_layers + 1) * sizeof *model->x);
  order_layers(model, settings);
}

smoe_status smoe_model_create(smoe_model **out, const smoe_config *config, const smoe_group *group,
                              const smoe_model_shape *shape, bool plan_only) {
  const smoe_settings *settings = smoe_config_settings(config);
  smoe_model *model = smoe_alloc(sizeof *model);
  *out = model;
  model->library_bytes = smoe_resident_memory();
  const smoe_lanes lanes = smoe_lanes_of_rank(shape->n_lanes, group->rank, group->n_ranks);
  model->config = config;
  set_shape(model, settings, &lanes, shape);
  const int n_experts = model->n_moe ? (int)settings->moe.experts : 0;
  SMOE_TRY(smoe_topology_create(&model->topology, group, n_experts, settings->comm.expert_ranks));
  if (settings->comm.exchange == SMOE_EXCHANGE_TWO_LEVEL && n_experts > 0)
    smoe_nodes_find(&model->topology.nodes, &model->topology.experts, settings->comm.node_ranks);
  model->tokens.n_replica = replica_tokens(&model->topology, lanes.n_lanes, model->tokens.lane_tokens);
  smoe_params_begin(&model->params, group, &lanes, n_experts);
  smoe_params_set_topology(&model->params, &model->topology);
  declare(model, settings);

  smoe_arena_measure(&model->fixed, "model");
  smoe_arena_measure(&model->tape, "tape");
  smoe_arena_measure(&model->scratch, "scratch");
  layout(model);
  if (plan_only) return SMOE_OK;
  SMOE_TRY_ALL(group, reserve(model));
  layout(model);
  return SMOE_OK;
}

void smoe_model_destroy(smoe_model *model) {
  if (!model) return;
  for (int m = 0; m < model->n_moe; m++) smoe_moe_layer_release(&model->moe[m]);
  smoe_params_end(&model->params);
  smoe_topology_release(&model->topology);
  smoe_arena_release(&model->fixed);
  smoe_arena_release(&model->tape);
  smoe_arena_release(&model->scratch);
  smoe_free(model->block);
  smoe_free(model->moe);
  smoe_free(model->x);
  smoe_free(model->layer);
  smoe_free(model);
}

void smoe_model_begin_update(smoe_model *model) {
  const smoe_params *params = &model->params;
  memset(params->lane_grad, 0,
         (size_t)params->lanes.count * params->shared_count * sizeof *params->lane_grad);
  memset(params->expert_grad, 0,
         (size_t)params->n_local * params->expert_count * sizeof *params->expert_grad);
  smoe_model_begin_sums(model);
}

void smoe_model_begin_sums(smoe_model *model) {
  memset(model->sums, 0, (size_t)model->tokens.n_lanes * (size_t)model->n_sums * sizeof *model->sums);
  for (int m = 0; m < model->n_moe; m++) smoe_moe_layer_begin_update(&model->moe[m]);
}

/* Final norm, logits, loss; in training the gradients of all three at once: the loss's
 * denominator is known beforehand, so the logits need not be made a second time. */
static void head(smoe_model *model, int lane, const int32_t *target, const smoe_route_context *context) {
  const size_t n = model->tokens.lane_tokens, c = model->width, v = model->vocabulary;
  const size_t first = (size_t)lane * n;
  const smoe_params *params = &model->params;
  const smoe_real *table = smoe_params_shared(params, model->table);
  const smoe_real *gamma = smoe_params_shared(params, model->gamma);
  const smoe_real *x = model->x[model->n_layers] + first * c;
  smoe_norm_forward(model->normed, model->mean + first, model->rstd + first, x, gamma,
                    smoe_params_shared(params, model->beta), n, c);
  const smoe_real scale = (smoe_real)(1.0 / (double)context->n_targets);
  for (size_t r = 0; r < n; r += model->head_rows) {
    const size_t rows = r + model->head_rows < n ? model->head_rows : n - r;
    smoe_linear_forward(model->logits, model->normed + r * c, table, NULL, rows, c, v);
    smoe_cross_entropy(model->row_loss + r, model->logits, target + r, 1, scale, context->training, rows, v);
    if (!context->training) continue;
    smoe_linear_backward_weight(smoe_params_lane_grad(params, model->table, lane), NULL, model->logits,
                                model->normed + r * c, rows, c, v);
    smoe_linear_backward_input(model->dnormed + r * c, model->logits, table, rows, c, v, false);
  }
  if (model->token_loss) memcpy(model->token_loss + first, model->row_loss, n * sizeof *model->row_loss);
  smoe_lane_sums *sums = (smoe_lane_sums *)(model->sums + (size_t)lane * (size_t)model->n_sums);
  for (size_t t = 0; t < n; t++) {
    sums->loss += (double)model->row_loss[t];
    sums->n_targets += target[t] >= 0;
  }
  if (!context->training) return;
  memset(model->dx + first * c, 0, n * c * sizeof *model->dx);
  smoe_norm_backward(model->dx + first * c, smoe_params_lane_grad(params, model->gamma, lane),
                     smoe_params_lane_grad(params, model->beta, lane), model->dnormed, x, gamma,
                     model->mean + first, model->rstd + first, n, c);
}

static smoe_real embedding_scale(const smoe_model *model) {
  const bool scaled = smoe_config_settings(model->config)->model.scale_embedding;
  return scaled ? (smoe_real)sqrt((double)model->width) : 1;
}

void smoe_model_forward(smoe_model *model, const int32_t *input, const int32_t *target,
                        const smoe_route_context *context) {
  const smoe_token_shape *tokens = &model->tokens;
  const size_t n = tokens->lane_tokens, c = model->width;
  smoe_arena_forget(&model->tape);
  smoe_arena_forget(&model->scratch);
  for (int m = 0; m < model->n_moe; m++) smoe_moe_layer_plan(&model->moe[m], input, context);
  smoe_phase(SMOE_PHASE_EMBEDDING);
  for (int lane = 0; lane < tokens->n_lanes; lane++)
    smoe_embedding_forward(model->x[0] + (size_t)lane * n * c, input + (size_t)lane * n,
                           smoe_params_shared(&model->params, model->table),
                           smoe_params_shared(&model->params, model->position), embedding_scale(model),
                           tokens->lane_sequences, tokens->context, c);
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_real *x = model->x[i];
    smoe_real *y = model->x[i + 1];
    if (model->layer[i] < 0) {
      const int m = -1 - model->layer[i];
      smoe_moe_layer_forward(&model->moe[m], y, model->sums + smoe_model_route_sums(m), (size_t)model->n_sums,
                             x, input, context);
    } else {
      for (int lane = 0; lane < tokens->n_lanes; lane++)
        smoe_block_forward(&model->block[model->layer[i]], &model->block_scratch, lane,
                           y + (size_t)lane * n * c, x + (size_t)lane * n * c);
    }
  }
  smoe_phase(SMOE_PHASE_HEAD);
  for (int lane = 0; lane < tokens->n_lanes && target; lane++)
    head(model, lane, target + (size_t)lane * n, context);
}

void smoe_model_backward(smoe_model *model, const int32_t *input, const smoe_route_context *context) {
  const smoe_token_shape *tokens = &model->tokens;
  const size_t n = tokens->lane_tokens, c = model->width;
  for (int i = model->n_layers - 1; i >= 0; i--) {
    const smoe_real *x = model->x[i];
    if (model->layer[i] < 0) {
      smoe_moe_layer_backward(&model->moe[-1 - model->layer[i]], model->dx, x, input, context);
    } else {
      smoe_block *block = &model->block[model->layer[i]];
      for (int lane = 0; lane < tokens->n_lanes; lane++) {
        const smoe_real *lane_x = x + (size_t)lane * n * c;
        if (model->recompute) smoe_block_recompute(block, &model->block_scratch, lane, lane_x);
        smoe_block_backward(block, &model->block_scratch, lane, model->dx + (size_t)lane * n * c, lane_x);
      }
    }
  }
  smoe_phase(SMOE_PHASE_EMBEDDING);
  for (int lane = 0; lane < tokens->n_lanes; lane++)
    smoe_embedding_backward(smoe_params_lane_grad(&model->params, model->table, lane),
                            smoe_params_lane_grad(&model->params, model->position, lane),
                            model->dx + (size_t)lane * n * c, input + (size_t)lane * n,
                            embedding_scale(model), tokens->lane_sequences, tokens->context, c);
}

void smoe_model_logits(smoe_model *model, size_t row, smoe_real *logits) {
  const size_t c = model->width;
  smoe_norm_forward(model->normed, model->mean + row, model->rstd + row, model->x[model->n_layers] + row * c,
                    smoe_params_shared(&model->params, model->gamma),
                    smoe_params_shared(&model->params, model->beta), 1, c);
  smoe_linear_forward(logits, model->normed, smoe_params_shared(&model->params, model->table), NULL, 1, c,
                      model->vocabulary);
}

void smoe_model_freeze(smoe_model *model) {
  for (int m = 0; m < model->n_moe; m++) {
    smoe_router *router = &model->moe[m].router;
    if (router->ops->freeze) router->ops->freeze(router, &model->params);
  }
}

/* Bytes of the worst case that balanced routing leaves untouched. */
static double untouched(const smoe_model *model) {
  double bytes = 0;
  for (int m = 0; m < model->n_moe; m++) {
    const smoe_moe_layer *moe = &model->moe[m];
    const double share = (double)model->params.n_local / (double)model->params.n_experts;
    const double balanced = (double)model->tokens.n_replica * moe->router.n_slots * share;
    const double rows = (double)smoe_exchange_rows_max(&moe->exchange) - balanced;
    if (rows > 0) bytes += rows * smoe_moe_layer_row_bytes(moe, model->training, m == 0);
  }
  return bytes;
}

double smoe_model_expected_bytes(const smoe_model *model) {
  return (double)(model->fixed.peak + model->tape.peak + model->scratch.peak) - untouched(model);
}

smoe_status smoe_model_print_plan(const smoe_model *model) {
  const smoe_params *params = &model->params;
  const double worst = (double)(model->fixed.peak + model->tape.peak + model->scratch.peak);
  double bytes[] = {(double)model->fixed.peak,        (double)model->tape.peak,
                    (double)model->scratch.peak,      worst,
                    smoe_model_expected_bytes(model), model->library_bytes};
  smoe_group_max_f64(&params->group, bytes, 6);
  smoe_note("parameters: %lld shared, %lld in experts", (long long)smoe_params_total(params, SMOE_REPLICATED),
            (long long)smoe_params_total(params, SMOE_EXPERT));
  smoe_note("memory per rank (largest of %d): %.1f MiB expected with balanced routing; at most %.1f MiB "
            "(model %.1f, tape %.1f, scratch %.1f)",
            params->group.n_ranks, bytes[4] / MIB, bytes[3] / MIB, bytes[0] / MIB, bytes[1] / MIB,
            bytes[2] / MIB);
  smoe_note("libraries per rank, in memory already: %.1f MiB; with the expected part of the plan %.1f MiB",
            bytes[5] / MIB, (bytes[4] + bytes[5]) / MIB);
  if (model->n_moe) {
    char text[256];
    smoe_exchange_describe(&model->moe[0].exchange, text, sizeof text);
    smoe_note("exchange of tokens: %s", text);
  }
  const double machine = smoe_free_memory();
  const int ranks_here = smoe_group_ranks_here(&params->group);
  const double here = bytes[4] * ranks_here;
  if (machine > 0 && here > machine)
    return SMOE_FAIL(SMOE_ERR_MEMORY,
                     "%.1f MiB expected for the ranks on this machine, which can give %.1f MiB: use more "
                     "machines, a smaller train.batch_sequences, or more train.micro_batches",
                     here / MIB, machine / MIB);
  if (machine > 0 && bytes[3] * ranks_here > machine)
    smoe_warn("if all tokens went to one rank's experts, memory would not suffice: moe.capacity_factor "
              "bounds that");
  return SMOE_OK;
}
