#include "probe_pairs.h"

#include <string.h>

/* The pairs of the probe, and where their tokens are in it. */
typedef struct probe {
  int64_t *pair;  /* [n] of the validation split */
  int64_t *first; /* [n] place of the source's first token */
  int64_t n, n_tokens;
  int64_t rows;                /* of a lane */
  int longest[SMOE_SIDES];     /* tokens */
  int64_t sequences, n_passes; /* of a lane and pass; passes */
} probe;

static int length_of(const smoe_task *task, int64_t pair, smoe_side side) {
  return side == SMOE_SIDE_SOURCE ? smoe_pairs_length(&task->pairs, SMOE_VALID, side, pair)
                                  : smoe_pairs_target_length(&task->pairs, SMOE_VALID, pair);
}

static void add(probe *p, const smoe_task *task, int64_t pair) {
  const int length[SMOE_SIDES] = {length_of(task, pair, SMOE_SIDE_SOURCE),
                                  length_of(task, pair, SMOE_SIDE_TARGET)};
  if (length[0] > p->rows || length[1] > p->rows) return;
  p->pair[p->n] = pair;
  p->first[p->n++] = p->n_tokens;
  for (int side = 0; side < SMOE_SIDES; side++) {
    p->n_tokens += length[side];
    if (length[side] > p->longest[side]) p->longest[side] = length[side];
  }
}

static probe probe_of(const smoe_task *task) {
  const smoe_settings *s = task->settings;
  const int64_t all = task->pairs.split[SMOE_VALID].n_pairs;
  const int64_t requested = s->log.probe_every > 0 ? s->log.probe_sequences : 0;
  const int64_t n = requested < all ? requested : all;
  probe p = {.rows = s->train.batch_tokens / s->train.micro_batches / s->train.lanes};
  p.pair = smoe_alloc((size_t)(n + 1) * sizeof *p.pair);
  p.first = smoe_alloc((size_t)(n + 1) * sizeof *p.first);
  for (int64_t i = 0; i < n; i++) add(&p, task, i * all / n);
  const int longest = p.longest[0] > p.longest[1] ? p.longest[0] : p.longest[1];
  p.sequences = longest ? p.rows / longest : 1;
  const int64_t room = p.sequences * s->train.lanes;
  p.n_passes = (p.n + room - 1) / room;
  return p;
}

static void release(probe *p) {
  smoe_free(p->pair);
  smoe_free(p->first);
}

int64_t smoe_probe_pairs_tokens(const smoe_task *task) {
  probe p = probe_of(task);
  release(&p);
  return p.n_tokens;
}

void smoe_probe_pairs_describe(const smoe_task *task, int32_t *token, int32_t *side, int32_t *language) {
  probe p = probe_of(task);
  int32_t *target = smoe_alloc((size_t)(p.longest[SMOE_SIDE_TARGET] + 1) * sizeof *target);
  for (int64_t i = 0; i < p.n; i++) {
    const int64_t pair = p.pair[i];
    const int n = length_of(task, pair, SMOE_SIDE_SOURCE), m = length_of(task, pair, SMOE_SIDE_TARGET);
    const smoe_pair_batch one = {
        .lanes = 1, .sequences = 1, .source_length = n, .target_length = m, .n_pairs = 1, .pair = &pair};
    int32_t *source = token + p.first[i];
    smoe_pair_batch_read(&task->pairs, SMOE_VALID, &one, 0, source, source + n, target);
    for (int j = 0; j < n + m; j++) {
      const smoe_side s = j < n ? SMOE_SIDE_SOURCE : SMOE_SIDE_TARGET;
      side[p.first[i] + j] = (int32_t)s;
      language[p.first[i] + j] = smoe_pairs_language(&task->pairs, SMOE_VALID, s, pair);
    }
  }
  smoe_free(target);
  release(&p);
}

/* ---- routing ---- */

/* The choices of one MoE layer on all ranks' rows of a pass. */
static void gather(const smoe_model *model, const smoe_moe_layer *moe, const smoe_token_shape *shape,
                   int kind, int32_t *out) {
  const smoe_group *group = &model->params.group;
  int *count = smoe_alloc((size_t)group->n_ranks * sizeof *count);
  int32_t *first_slot = smoe_alloc((shape->n_tokens + 1) * sizeof *first_slot);
  for (int r = 0; r < group->n_ranks; r++)
    count[r] =
        smoe_lanes_of_rank(model->params.lanes.n_lanes, r, group->n_ranks).count * (int)shape->lane_tokens;
  /* The first slot stands for the token; a dropped one still tells the choice. */
  for (size_t i = 0; i < shape->n_tokens; i++)
    first_slot[i] = kind == SMOE_PROBE_EXPERT ? smoe_slot_expert(moe->expert[i * (size_t)moe->router.n_slots])
                    : kind == SMOE_PROBE_LEARNED ? moe->learned[i]
                                                 : moe->distilled[i];
  smoe_group_gather_i32(group, out, first_slot, count);
  smoe_free(first_slot);
  smoe_free(count);
}

/* The probe's tokens of pass `number` in the rows of a side. */
static void take(const probe *p, const smoe_task *task, int64_t number, smoe_side side, size_t context,
                 const int32_t *rows, int32_t *choice) {
  const int64_t room = p->sequences * task->settings->train.lanes;
  for (int64_t i = 0; i < room && number * room + i < p->n; i++) {
    const int64_t j = number * room + i;
    const int n = length_of(task, p->pair[j], SMOE_SIDE_SOURCE);
    const int length = side == SMOE_SIDE_SOURCE ? n : length_of(task, p->pair[j], side);
    memcpy(choice + p->first[j] + (side == SMOE_SIDE_SOURCE ? 0 : n), rows + (size_t)i * context,
           (size_t)length * sizeof *rows);
  }
}

static void route_pass(smoe_model *model, smoe_task *task, const probe *p, int64_t number,
                       const smoe_pass *pass, int32_t *choice) {
  const int64_t room = p->sequences * task->settings->train.lanes;
  int64_t *pair = smoe_alloc((size_t)room * sizeof *pair);
  for (int64_t i = 0; i < room; i++) pair[i] = number * room + i < p->n ? p->pair[number * room + i] : -1;
  const smoe_pair_batch pairs = {.lanes = (int)task->settings->train.lanes,
                                 .sequences = (int)p->sequences,
                                 .source_length = p->longest[SMOE_SIDE_SOURCE],
                                 .target_length = p->longest[SMOE_SIDE_TARGET],
                                 .pair = pair};
  smoe_batch batch;
  smoe_task_read_pairs(task, model, SMOE_VALID, &pairs, 1, &batch);
  smoe_model_forward(model, &batch, pass);
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_layer_spec *spec = &model->layer[i].spec;
    if (spec->moe < 0) continue;
    const smoe_token_shape *shape = &batch.shape[spec->stream];
    const smoe_side side = spec->stream == SMOE_ENCODER ? SMOE_SIDE_SOURCE : SMOE_SIDE_TARGET;
    int32_t *rows = smoe_alloc((size_t)shape->n_global * sizeof *rows);
    for (int kind = 0; kind < SMOE_PROBE_KINDS; kind++) {
      gather(model, model->moe[spec->moe], shape, kind, rows);
      take(p, task, number, side, shape->context, rows,
           choice + ((int64_t)kind * model->n_moe + spec->moe) * p->n_tokens);
    }
    smoe_free(rows);
  }
  smoe_free(pair);
}

void smoe_probe_pairs_route(smoe_model *model, smoe_task *task, const smoe_pass *pass, int32_t *choice) {
  probe p = probe_of(task);
  const size_t n = (size_t)SMOE_PROBE_KINDS * (size_t)model->n_moe * (size_t)p.n_tokens;
  for (size_t i = 0; i < n; i++) choice[i] = -1;
  smoe_task_take(task, model);
  smoe_model_begin_sums(model);
  for (int64_t i = 0; i < p.n_passes; i++) route_pass(model, task, &p, i, pass, choice);
  release(&p);
}
