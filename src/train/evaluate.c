#include "stablemoe/evaluate.h"

#include <math.h>
#include <string.h>

/* One pass over consecutive sequences of a split, micro-batch by micro-batch. */
typedef struct pass {
  smoe_model *model;
  const smoe_corpus *corpus;
  smoe_split split;
  int64_t n_sequences; /* beyond it everything is padding */
  int32_t *input, *target;
} pass;

static void pass_begin(pass *p) {
  const size_t n = p->model->shape[SMOE_MAIN].n_tokens;
  p->input = smoe_alloc(n * sizeof *p->input);
  p->target = smoe_alloc(n * sizeof *p->target);
}

static void pass_end(pass *p) {
  smoe_free(p->input);
  smoe_free(p->target);
}

static int64_t pass_batches(const pass *p) {
  const int64_t batch = p->model->shape[SMOE_MAIN].n_global / (int64_t)p->model->shape[SMOE_MAIN].context;
  return (p->n_sequences + batch - 1) / batch;
}

static void pass_forward(pass *p, int64_t number, const smoe_pass *context) {
  const smoe_token_shape *tokens = &p->model->shape[SMOE_MAIN];
  const int64_t t = (int64_t)tokens->context;
  const int64_t first = (number * tokens->n_global + tokens->first_token) / t;
  for (int64_t i = 0; i < (int64_t)tokens->n_tokens / t; i++) {
    if (first + i < p->n_sequences) {
      smoe_corpus_sequence(p->corpus, p->split, first + i, t, p->input + i * t, p->target + i * t);
    } else {
      memset(p->input + i * t, 0xff, (size_t)t * sizeof *p->input);
      memset(p->target + i * t, 0xff, (size_t)t * sizeof *p->target);
    }
  }
  const smoe_batch batch = smoe_model_batch(p->model, p->input, p->target);
  smoe_model_forward(p->model, &batch, context);
}

static smoe_pass context_of(int64_t update, int stage, const smoe_model *model) {
  return (smoe_pass){.seed = (uint64_t)smoe_config_settings(model->config)->run.seed,
                     .update = update,
                     .stage = stage,
                     .training = false,
                     .n_targets = 1};
}

/* Sequences of a split that an evaluation goes through. */
static smoe_status pass_open(pass *p, int64_t sequences) {
  const int64_t t = (int64_t)p->model->shape[SMOE_MAIN].context, n = p->corpus->n_tokens[p->split];
  p->n_sequences = (n - 1 + t - 1) / t;
  SMOE_CHECK(n > 1, SMOE_ERR_CONFIG, "the split of '%s' to evaluate is empty", p->corpus->path);
  if (sequences > 0 && sequences < p->n_sequences) p->n_sequences = sequences;
  pass_begin(p);
  smoe_model_begin_sums(p->model);
  return SMOE_OK;
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
                                  .drop_rate = assigned ? (double)dropped / (double)assigned : 0};
  smoe_free(total);
  return result;
}

smoe_status smoe_evaluate(smoe_model *model, const smoe_corpus *corpus, smoe_split split, int64_t sequences,
                          int64_t update, int stage, smoe_evaluation *result) {
  pass p = {.model = model, .corpus = corpus, .split = split};
  SMOE_TRY(pass_open(&p, sequences));
  const smoe_pass context = context_of(update, stage, model);
  for (int64_t i = 0; i < pass_batches(&p); i++) pass_forward(&p, i, &context);
  pass_end(&p);
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
  model->token_loss = smoe_alloc((n + 1) * sizeof *model->token_loss);
}

static void shown_end(shown *s, smoe_model *model) {
  smoe_free(model->token_loss);
  model->token_loss = NULL;
  smoe_free(s->tokens);
  smoe_free(s->slots);
  smoe_free(s->mine);
  smoe_free(s->loss);
  smoe_free(s->target);
  smoe_free(s->expert);
}

/* Gather pass `number`; without the padding behind the last sequence. */
static smoe_evaluated shown_gather(shown *s, const pass *p, int64_t number) {
  const smoe_model *model = s->model;
  const smoe_group *group = &model->params.group;
  const size_t all = (size_t)model->shape[SMOE_MAIN].n_global * s->n_slots;
  const int64_t first = number * model->shape[SMOE_MAIN].n_global;
  const int64_t left = p->n_sequences * (int64_t)model->shape[SMOE_MAIN].context - first;
  for (size_t i = 0; i < model->shape[SMOE_MAIN].n_tokens; i++) s->mine[i] = (double)model->token_loss[i];
  smoe_group_gather_f64(group, s->loss, s->mine, s->tokens);
  smoe_group_gather_i32(group, s->target, p->target, s->tokens);
  for (int m = 0; m < model->n_moe; m++)
    smoe_group_gather_i32(group, s->expert + (size_t)m * all, model->moe[m]->expert, s->slots);
  return (smoe_evaluated){.first = first,
                          .n = left < model->shape[SMOE_MAIN].n_global ? left
                                                                       : model->shape[SMOE_MAIN].n_global,
                          .stride = model->shape[SMOE_MAIN].n_global,
                          .n_moe = model->n_moe,
                          .n_slots = (int)s->n_slots,
                          .target = s->target,
                          .loss = s->loss,
                          .expert = s->expert};
}

smoe_status smoe_evaluate_each(smoe_model *model, const smoe_corpus *corpus, smoe_split split,
                               int64_t sequences, int64_t update, int stage, smoe_evaluation *result,
                               smoe_status (*see)(void *context, const smoe_evaluated *tokens),
                               void *context) {
  const smoe_group *group = &model->params.group;
  const smoe_pass route = context_of(update, stage, model);
  pass p = {.model = model, .corpus = corpus, .split = split};
  shown s;
  SMOE_TRY(pass_open(&p, sequences));
  shown_begin(&s, model);
  smoe_status status = SMOE_OK;
  for (int64_t i = 0; i < pass_batches(&p) && status == SMOE_OK; i++) {
    pass_forward(&p, i, &route);
    const smoe_evaluated tokens = shown_gather(&s, &p, i);
    status = smoe_group_agree(group, group->rank == 0 ? see(context, &tokens) : SMOE_OK);
  }
  shown_end(&s, model);
  pass_end(&p);
  if (status == SMOE_OK) *result = result_of(model);
  return status;
}

int64_t smoe_probe_tokens(const smoe_corpus *corpus, const smoe_settings *settings) {
  const int64_t whole = smoe_corpus_sequences(corpus, SMOE_VALID, settings->model.context);
  const int64_t requested = settings->log.probe_every > 0 ? settings->log.probe_sequences : 0;
  return (requested < whole ? requested : whole) * settings->model.context;
}

/* Choices of the whole probe on all ranks: [kind, M, P] with kind expert, learned, distilled. */
enum { EXPERT, LEARNED, DISTILLED, KINDS };

static void gather_batch(const smoe_model *model, int32_t *all, int64_t n_probe, int64_t first,
                         const int *count, int32_t *batch) {
  const smoe_token_shape *tokens = &model->shape[SMOE_MAIN];
  const int64_t n = first + tokens->n_global <= n_probe ? tokens->n_global : n_probe - first;
  for (int m = 0; m < model->n_moe; m++) {
    const smoe_moe_layer *moe = model->moe[m];
    const int32_t *mine[KINDS] = {NULL, moe->learned, moe->distilled};
    for (int kind = 0; kind < KINDS; kind++) {
      int32_t *out = all + ((int64_t)kind * model->n_moe + m) * n_probe + first;
      if (kind == EXPERT) {
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

void smoe_probe(smoe_model *model, const smoe_corpus *corpus, const smoe_settings *settings,
                smoe_routing_log *log, int64_t step, int stage) {
  const int64_t n_probe = smoe_probe_tokens(corpus, settings);
  const size_t block = (size_t)model->n_moe * (size_t)n_probe;
  int32_t *all = smoe_alloc(KINDS * block * sizeof *all);
  int32_t *batch = smoe_alloc((size_t)model->shape[SMOE_MAIN].n_global * sizeof *batch);
  int *count = tokens_of_ranks(model);
  pass p = {.model = model,
            .corpus = corpus,
            .split = SMOE_VALID,
            .n_sequences = n_probe / settings->model.context};
  const smoe_pass context = context_of(step, stage, model);
  pass_begin(&p);
  smoe_model_begin_sums(model);
  for (int64_t i = 0; i < pass_batches(&p); i++) {
    pass_forward(&p, i, &context);
    gather_batch(model, all, n_probe, i * model->shape[SMOE_MAIN].n_global, count, batch);
  }
  pass_end(&p);
  /* What training uses: in stage 1 the learned choice, where the method has one. */
  int32_t *expert = all + EXPERT * block, *learned = all + LEARNED * block;
  if (stage == 1)
    for (size_t i = 0; i < block; i++)
      if (learned[i] >= 0) expert[i] = learned[i];
  smoe_routing_log_probe(log, step, stage, expert, learned, all + DISTILLED * block);
  smoe_free(all);
  smoe_free(batch);
  smoe_free(count);
}
