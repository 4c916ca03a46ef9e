#include "stablemoe/evaluate.h"

#include <math.h>
#include <string.h>

#include "probe_pairs.h"
#include "stablemoe/skip.h"

static smoe_pass context_of(int64_t update, int stage, const smoe_model *model) {
  return (smoe_pass){.seed = (uint64_t)smoe_config_settings(model->config)->run.seed,
                     .update = update,
                     .stage = stage,
                     .training = false,
                     .n_targets = 1};
}

/* Micro-batches of a split that an evaluation goes through. */
static smoe_status open_split(smoe_model *model, smoe_task *task, smoe_split split, int64_t sequences,
                              int64_t *n) {
  smoe_task_take(task, model);
  SMOE_TRY(task->ops->open_split(task, model, split, sequences, n));
  smoe_model_begin_sums(model);
  return SMOE_OK;
}

static smoe_batch forward(smoe_model *model, smoe_task *task, int64_t number, const smoe_pass *pass) {
  smoe_batch batch;
  task->ops->read_split(task, model, number, &batch);
  smoe_model_forward(model, &batch, pass);
  return batch;
}

/* What all passes gave. */
static smoe_evaluation result_of(const smoe_model *model) {
  double *total = smoe_alloc((size_t)model->n_sums * sizeof *total);
  smoe_lanes_sum(&model->params.group, &model->params.lanes, total, model->sums, model->n_sums);
  const smoe_lane_sums *sums = (const smoe_lane_sums *)total;
  int64_t assigned = 0, dropped = 0;
  for (int m = 0; m < model->n_moe; m++) {
    assigned += model->moe[m]->n_assigned;
    dropped += model->moe[m]->n_dropped;
  }
  const smoe_evaluation result = {.loss = sums->loss / sums->n_targets,
                                  .perplexity = exp(sums->loss / sums->n_targets),
                                  .n_targets = sums->n_targets,
                                  .accuracy = smoe_model_accuracy(model, total),
                                  .bleu = NAN,
                                  .drop_rate = assigned ? (double)dropped / (double)assigned : 0};
  smoe_free(total);
  return result;
}

smoe_status smoe_evaluate(smoe_model *model, smoe_task *task, smoe_split split, int64_t sequences,
                          int64_t update, int stage, smoe_evaluation *result) {
  int64_t n;
  SMOE_TRY(open_split(model, task, split, sequences, &n));
  const smoe_pass pass = context_of(update, stage, model);
  for (int64_t i = 0; i < n; i++) forward(model, task, i, &pass);
  *result = result_of(model);
  return SMOE_OK;
}

static int *tokens_of_ranks(const smoe_model *model) {
  const smoe_group *group = &model->params.group;
  int *count = smoe_alloc((size_t)group->n_ranks * sizeof *count);
  for (int r = 0; r < group->n_ranks; r++)
    count[r] = smoe_lanes_of_rank(model->params.lanes.n_lanes, r, group->n_ranks).count *
               (int)model->shape[SMOE_MAIN].lane_tokens;
  return count;
}

/* One pass's tokens of all ranks; the arrays are on every rank, and rank 0 looks at them. */
typedef struct shown {
  const smoe_model *model;
  size_t n_slots;
  int *tokens, *slots;      /* [R] of each rank */
  double *mine, *loss;      /* [N], [all tokens] */
  int32_t *target, *expert; /* [all tokens], [M, all tokens, K] */
  int32_t *ran;             /* [n_skip, all tokens] */
  int32_t *predicted;       /* [all tokens] images */
} shown;

static void shown_begin(shown *s, smoe_model *model) {
  const size_t n = model->shape[SMOE_MAIN].n_tokens, all = (size_t)model->shape[SMOE_MAIN].n_global;
  const int n_ranks = model->params.group.n_ranks;
  *s = (shown){.model = model, .tokens = tokens_of_ranks(model)};
  s->n_slots = model->n_moe ? (size_t)model->moe[0]->router.n_slots : 0;
  s->slots = smoe_alloc((size_t)n_ranks * sizeof *s->slots);
  for (int r = 0; r < n_ranks; r++) s->slots[r] = s->tokens[r] * (int)s->n_slots;
  s->mine = smoe_alloc((n + 1) * sizeof *s->mine);
  s->loss = smoe_alloc(all * sizeof *s->loss);
  s->target = smoe_alloc(all * sizeof *s->target);
  s->expert = smoe_alloc(((size_t)model->n_moe * all * s->n_slots + 1) * sizeof *s->expert);
  s->ran = smoe_alloc(((size_t)smoe_model_n_skip(model) * all + 1) * sizeof *s->ran);
  model->token_loss = smoe_alloc((n + 1) * sizeof *model->token_loss);
  s->predicted = smoe_alloc(all * sizeof *s->predicted);
  if (model->patch) model->predicted = smoe_alloc((n + 1) * sizeof *model->predicted);
}

static void shown_end(shown *s, smoe_model *model) {
  smoe_free(model->token_loss);
  model->token_loss = NULL;
  smoe_free(model->predicted);
  model->predicted = NULL;
  smoe_free(s->predicted);
  smoe_free(s->tokens);
  smoe_free(s->slots);
  smoe_free(s->mine);
  smoe_free(s->loss);
  smoe_free(s->target);
  smoe_free(s->expert);
  smoe_free(s->ran);
}

/* Gather pass `number`; without the padding behind the last sequence. */
static smoe_evaluated shown_gather(shown *s, const smoe_task *task, const smoe_batch *batch, int64_t number) {
  const smoe_model *model = s->model;
  const smoe_group *group = &model->params.group;
  const size_t all = (size_t)model->shape[SMOE_MAIN].n_global * s->n_slots;
  const int64_t first = number * model->shape[SMOE_MAIN].n_global;
  const int64_t left = task->split_sequences * (int64_t)model->shape[SMOE_MAIN].context - first;
  for (size_t i = 0; i < model->shape[SMOE_MAIN].n_tokens; i++) s->mine[i] = (double)model->token_loss[i];
  smoe_group_gather_f64(group, s->loss, s->mine, s->tokens);
  smoe_group_gather_i32(group, s->target, batch->target, s->tokens);
  if (model->predicted) smoe_group_gather_i32(group, s->predicted, model->predicted, s->tokens);
  for (int m = 0; m < model->n_moe; m++)
    smoe_group_gather_i32(group, s->expert + (size_t)m * all, model->moe[m]->expert, s->slots);
  const int n_skip = smoe_model_n_skip(model);
  for (int i = 0, k = 0; i < model->n_layers; i++)
    if (model->layer[i].spec.skip)
      smoe_group_gather_i32(group, s->ran + k++ * model->shape[SMOE_MAIN].n_global,
                            smoe_skip_ran(&model->layer[i]), s->tokens);
  return (smoe_evaluated){.first = first,
                          .n = left < model->shape[SMOE_MAIN].n_global ? left
                                                                       : model->shape[SMOE_MAIN].n_global,
                          .stride = model->shape[SMOE_MAIN].n_global,
                          .n_moe = model->n_moe,
                          .n_slots = (int)s->n_slots,
                          .target = s->target,
                          .predicted = model->predicted ? s->predicted : NULL,
                          .loss = s->loss,
                          .n_skip = n_skip,
                          .ran = s->ran,
                          .expert = s->expert};
}

smoe_status smoe_evaluate_each(smoe_model *model, smoe_task *task, smoe_split split, int64_t sequences,
                               int64_t update, int stage, smoe_evaluation *result,
                               smoe_status (*see)(void *context, const smoe_evaluated *tokens),
                               void *context) {
  const smoe_group *group = &model->params.group;
  const smoe_pass pass = context_of(update, stage, model);
  int64_t n;
  shown s;
  SMOE_ASSERT(smoe_task_is_language(task) || smoe_task_is_images(task));
  SMOE_TRY(open_split(model, task, split, sequences, &n));
  shown_begin(&s, model);
  smoe_status status = SMOE_OK;
  for (int64_t i = 0; i < n && status == SMOE_OK; i++) {
    const smoe_batch batch = forward(model, task, i, &pass);
    const smoe_evaluated tokens = shown_gather(&s, task, &batch, i);
    status = smoe_group_agree(group, group->rank == 0 ? see(context, &tokens) : SMOE_OK);
  }
  shown_end(&s, model);
  if (status == SMOE_OK) *result = result_of(model);
  return status;
}

int64_t smoe_probe_tokens(const smoe_task *task) {
  const smoe_settings *settings = task->settings;
  if (!smoe_task_is_language(task)) return smoe_probe_pairs_tokens(task);
  const int64_t whole = smoe_corpus_sequences(&task->corpus, SMOE_VALID, settings->model.context);
  const int64_t requested = settings->log.probe_every > 0 ? settings->log.probe_sequences : 0;
  return (requested < whole ? requested : whole) * settings->model.context;
}

static void gather_batch(const smoe_model *model, int32_t *all, int64_t n_probe, int64_t first,
                         const int *count, int32_t *batch) {
  const smoe_token_shape *tokens = &model->shape[SMOE_MAIN];
  const int64_t n = first + tokens->n_global <= n_probe ? tokens->n_global : n_probe - first;
  for (int m = 0; m < model->n_moe; m++) {
    const smoe_moe_layer *moe = model->moe[m];
    const int32_t *mine[SMOE_PROBE_KINDS] = {NULL, moe->learned, moe->distilled};
    for (int kind = 0; kind < SMOE_PROBE_KINDS; kind++) {
      int32_t *out = all + ((int64_t)kind * model->n_moe + m) * n_probe + first;
      if (kind == SMOE_PROBE_EXPERT) {
        /* The first slot stands for the token; a dropped one still tells the choice. */
        int32_t *first_slot = smoe_alloc(tokens->n_tokens * sizeof *first_slot);
        for (size_t i = 0; i < tokens->n_tokens; i++) {
          const int32_t e = moe->expert[i * (size_t)moe->router.n_slots];
          first_slot[i] = smoe_slot_expert(e);
        }
        smoe_group_gather_i32(&model->params.group, batch, first_slot, count);
        smoe_free(first_slot);
      } else {
        smoe_group_gather_i32(&model->params.group, batch, mine[kind], count);
      }
      memcpy(out, batch, (size_t)n * sizeof *batch);
    }
  }
}

/* What a pass of the probe ran behind gates: into ran [G, P] from token `first` on; padding is -1. */
static void gather_ran(const smoe_model *model, const smoe_batch *tokens, int32_t *ran, int64_t n_probe,
                       int64_t first, const int *count, int32_t *batch) {
  const smoe_token_shape *shape = &model->shape[SMOE_MAIN];
  const int64_t n = first + shape->n_global <= n_probe ? shape->n_global : n_probe - first;
  int32_t *mine = smoe_alloc((shape->n_tokens + 1) * sizeof *mine);
  for (int k = 0; k < smoe_model_n_skip(model); k++) {
    const int32_t *own = smoe_skip_ran(smoe_model_skip_layer(model, k));
    for (size_t i = 0; i < shape->n_tokens; i++) mine[i] = tokens->token[SMOE_MAIN][i] < 0 ? -1 : own[i];
    smoe_group_gather_i32(&model->params.group, batch, mine, count);
    memcpy(ran + k * n_probe + first, batch, (size_t)n * sizeof *batch);
  }
  smoe_free(mine);
}

/* Choices of the whole probe on all ranks: [SMOE_PROBE_KINDS, M, P], and what ran: [G, P]. */
static void route_sequences(smoe_model *model, smoe_task *task, const smoe_pass *pass, int64_t n_probe,
                            int32_t *all, int32_t *ran) {
  int64_t n = 0;
  int32_t *batch = smoe_alloc((size_t)model->shape[SMOE_MAIN].n_global * sizeof *batch);
  int *count = tokens_of_ranks(model);
  const int64_t sequences = n_probe / task->settings->model.context;
  if (open_split(model, task, SMOE_VALID, sequences, &n) != SMOE_OK)
    SMOE_PANIC(SMOE_ERR_BUG, "%s", smoe_last_error());
  for (int64_t i = 0; i < n; i++) {
    const smoe_batch tokens = forward(model, task, i, pass);
    const int64_t first = i * model->shape[SMOE_MAIN].n_global;
    gather_batch(model, all, n_probe, first, count, batch);
    gather_ran(model, &tokens, ran, n_probe, first, count, batch);
  }
  smoe_free(batch);
  smoe_free(count);
}

void smoe_probe(smoe_model *model, smoe_task *task, smoe_routing_log *log, int64_t step, int stage) {
  const int64_t n_probe = smoe_probe_tokens(task);
  const size_t block = (size_t)model->n_moe * (size_t)n_probe;
  const size_t n_ran = (size_t)smoe_model_n_skip(model) * (size_t)n_probe;
  int32_t *all = smoe_alloc((SMOE_PROBE_KINDS * block + 1) * sizeof *all);
  int32_t *ran = smoe_alloc((n_ran + 1) * sizeof *ran);
  const smoe_pass context = context_of(step, stage, model);
  if (smoe_task_is_language(task))
    route_sequences(model, task, &context, n_probe, all, ran);
  else
    smoe_probe_pairs_route(model, task, &context, all);
  /* What training uses: in stage 1 the learned choice, where the method has one. */
  int32_t *expert = all + SMOE_PROBE_EXPERT * block, *learned = all + SMOE_PROBE_LEARNED * block;
  if (stage == 1)
    for (size_t i = 0; i < block; i++)
      if (learned[i] >= 0) expert[i] = learned[i];
  smoe_routing_log_probe(log, step, stage, expert, learned, all + SMOE_PROBE_DISTILLED * block);
  if (n_ran > 0) smoe_routing_log_probe_ran(log, ran);
  smoe_free(all);
  smoe_free(ran);
}
