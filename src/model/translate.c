#include "stablemoe/translate.h"

#include <string.h>

#include "beam.h"
#include "stablemoe/kernel.h"

struct smoe_translator {
  smoe_model *model;
  smoe_translate_options options;
  int32_t end;
  int n_lanes;            /* of this rank */
  size_t sentences, beam; /* of a lane; hypotheses of a sentence */
  size_t source_max;
  smoe_arena arena;
  int32_t *source, *source_length; /* [lanes sentences, source_max], [lanes sentences] */
  int32_t *token;                  /* [lanes hypotheses, length_max] decoder's input so far */
  int32_t *now;                    /* [lanes hypotheses] */
  smoe_real *side;                 /* [lanes hypotheses, ts, C] */
  int32_t *side_length;            /* [lanes hypotheses] */
  smoe_real **state;               /* [n_layers] */
  size_t *lane_state;              /* [n_layers] reals of a lane's state */
  smoe_real *x[2];                 /* [lanes hypotheses, C] */
  smoe_real *logits;               /* [hypotheses, V] of a lane */
  int32_t *from;                   /* [lanes hypotheses] */
  smoe_beam *search;               /* [lanes sentences] */
};

static size_t hypotheses(const smoe_translator *t) {
  return t->sentences * t->beam;
}

smoe_model_shape smoe_translator_shape(const smoe_config *config, int vocabulary, size_t source_max,
                                       const smoe_translate_options *options) {
  const smoe_settings *settings = smoe_config_settings(config);
  const size_t beam = (size_t)options->beam;
  /* Rows of a lane on the main stream: the layers' buffers are for one step of all hypotheses. */
  return (smoe_model_shape){.vocabulary = vocabulary,
                            .n_lanes = (int)settings->train.lanes,
                            .lane_sequences = options->lane_sentences,
                            .context = options->length_max * beam,
                            .source_context = source_max};
}

/* ---- memory ---- */

static void layout(smoe_translator *t) {
  const smoe_model *model = t->model;
  const size_t lanes = (size_t)t->n_lanes, h = hypotheses(t), c = model->width;
  smoe_arena *arena = &t->arena;
  t->source = smoe_arena_ints(arena, lanes * t->sentences * t->source_max);
  t->source_length = smoe_arena_ints(arena, lanes * t->sentences);
  t->token = smoe_arena_ints(arena, lanes * h * t->options.length_max);
  t->now = smoe_arena_ints(arena, lanes * h);
  t->from = smoe_arena_ints(arena, lanes * h);
  t->side_length = smoe_arena_ints(arena, lanes * h);
  t->side = smoe_arena_reals(arena, lanes * h * t->source_max * c);
  for (int i = 0; i < 2; i++) t->x[i] = smoe_arena_reals(arena, lanes * h * c);
  t->logits = smoe_arena_reals(arena, h * model->vocabulary);
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_layer *layer = &model->layer[i];
    const bool has = layer->spec.stream == SMOE_MAIN && layer->spec.ops->state_reals;
    t->lane_state[i] = has ? layer->spec.ops->state_reals(layer, h, t->options.length_max, t->source_max) : 0;
    t->state[i] = t->lane_state[i] ? smoe_arena_reals(arena, lanes * t->lane_state[i]) : NULL;
  }
}

smoe_status smoe_translator_create(smoe_translator **out, smoe_model *model, int32_t end,
                                   const smoe_translate_options *options) {
  smoe_translator *t = smoe_alloc(sizeof *t);
  *out = t;
  *t = (smoe_translator){.model = model,
                         .options = *options,
                         .end = end,
                         .n_lanes = model->params.lanes.count,
                         .sentences = options->lane_sentences,
                         .beam = (size_t)options->beam,
                         .source_max = model->shape[SMOE_ENCODER].context};
  t->state = smoe_alloc((size_t)model->n_layers * sizeof *t->state);
  t->lane_state = smoe_alloc((size_t)model->n_layers * sizeof *t->lane_state);
  smoe_arena_measure(&t->arena, "translator");
  layout(t);
  SMOE_TRY_ALL(&model->params.group, smoe_arena_reserve(&t->arena));
  layout(t);
  const size_t n = (size_t)t->n_lanes * t->sentences;
  t->search = smoe_alloc((n + 1) * sizeof *t->search);
  for (size_t i = 0; i < n; i++) smoe_beam_create(&t->search[i], options, end);
  return SMOE_OK;
}

void smoe_translator_destroy(smoe_translator *t) {
  if (!t) return;
  for (size_t i = 0; t->search && i < (size_t)t->n_lanes * t->sentences; i++)
    smoe_beam_destroy(&t->search[i]);
  smoe_free(t->search);
  smoe_arena_release(&t->arena);
  smoe_free(t->state);
  smoe_free(t->lane_state);
  smoe_free(t);
}

double smoe_translator_bytes(const smoe_translator *t) {
  return (double)t->arena.peak;
}

size_t smoe_translator_batch(const smoe_translator *t) {
  return (size_t)t->model->params.lanes.n_lanes * t->sentences;
}

/* ---- the encoder ---- */

/* Sentence i of the batch is in lane i / sentences. The encoder's rows are then copied for each hypothesis. */
static size_t encode(smoe_translator *t, const int32_t *const *source, const int32_t *length, size_t n,
                     const smoe_pass *pass) {
  smoe_model *model = t->model;
  const size_t first = (size_t)model->params.lanes.first * t->sentences, c = model->width;
  const size_t own = (size_t)t->n_lanes * t->sentences;
  size_t ts = 1;
  for (size_t i = 0; i < n; i++) ts = (size_t)length[i] > ts ? (size_t)length[i] : ts;
  for (size_t i = 0; i < own; i++) {
    const bool there = first + i < n;
    t->source_length[i] = there ? length[first + i] : 0;
    memset(t->source + i * ts, 0xff, ts * sizeof *t->source);
    if (there) memcpy(t->source + i * ts, source[first + i], (size_t)length[first + i] * sizeof *t->source);
    smoe_beam_begin(&t->search[i], there);
  }
  smoe_batch batch = {.token = {[SMOE_ENCODER] = t->source}, .length = {[SMOE_ENCODER] = t->source_length}};
  batch.shape[SMOE_ENCODER] = smoe_model_token_shape(model, t->sentences, ts);
  const smoe_real *rows = smoe_model_encode(model, &batch, pass);
  for (size_t i = 0; i < own * t->beam; i++) {
    memcpy(t->side + i * ts * c, rows + i / t->beam * ts * c, ts * c * sizeof *rows);
    t->side_length[i] = t->source_length[i / t->beam];
  }
  return ts;
}

/* ---- one step of the decoder ---- */

static void layer_step(smoe_translator *t, int i, const smoe_pass *pass, size_t step, size_t ts, int at) {
  smoe_layer *layer = &t->model->layer[i];
  const size_t h = hypotheses(t), c = t->model->width, length = t->options.length_max;
  const bool whole = layer->spec.moe >= 0; /* all lanes at once */
  for (int lane = 0; lane < (whole ? 1 : t->n_lanes); lane++) {
    const size_t l = (size_t)lane;
    const smoe_extend_call call = {
        .pass = pass,
        .n_sequences = h,
        .first = step,
        .n = 1,
        .length_max = length,
        .token = t->token + l * h * length,
        .x = t->x[at] + l * h * c,
        .y = t->x[!at] + l * h * c,
        .state = t->state[i] ? t->state[i] + l * t->lane_state[i] : NULL,
        .lane_state = t->lane_state[i],
        .side_context = ts,
        .side_length = t->side_length + l * h,
        .side = t->side + l * h * ts * c,
    };
    layer->spec.ops->extend(layer, &call);
  }
}

/* The last tokens of all hypotheses, and where the rows of the step are. */
static smoe_batch step_batch(smoe_translator *t, size_t step) {
  const size_t h = hypotheses(t);
  for (size_t i = 0; i < (size_t)t->n_lanes * h; i++) {
    t->now[i] = smoe_beam_last(&t->search[i / t->beam], i % t->beam);
    t->token[i * t->options.length_max + step] = t->now[i];
  }
  /* Hypotheses are copies of their sentence to a router that draws by sentence. */
  smoe_batch batch = {.token = {[SMOE_MAIN] = t->now}, .copies = (int)t->beam};
  batch.shape[SMOE_MAIN] = smoe_model_token_shape(t->model, h, 1);
  return batch;
}

/* The states go where the hypotheses went. */
static void reorder(smoe_translator *t, size_t step, size_t ts) {
  const size_t h = hypotheses(t), length = t->options.length_max;
  for (int lane = 0; lane < t->n_lanes; lane++) {
    const int32_t *from = t->from + (size_t)lane * h;
    for (int i = 0; i < t->model->n_layers; i++) {
      const smoe_layer *layer = &t->model->layer[i];
      /* Hypotheses of one sentence share its source. */
      if (t->state[i] && !layer->spec.cross && layer->spec.ops->reorder)
        layer->spec.ops->reorder(layer, t->state[i] + (size_t)lane * t->lane_state[i], from, h, step + 1,
                                 length, ts);
    }
    int32_t *token = t->token + (size_t)lane * h * length, *old = smoe_alloc(h * length * sizeof *old);
    memcpy(old, token, h * length * sizeof *old);
    for (size_t i = 0; i < h; i++)
      memcpy(token + i * length, old + (size_t)from[i] * length, length * sizeof *old);
    smoe_free(old);
  }
}

/* Returns true while some sentence of any rank goes on. */
static bool step(smoe_translator *t, size_t number, size_t ts, const smoe_pass *pass) {
  const smoe_model *model = t->model;
  const size_t h = hypotheses(t), c = model->width, v = model->vocabulary;
  const smoe_batch batch = step_batch(t, number);
  smoe_pass own = *pass;
  own.batch = &batch;
  int at = 0;
  for (int i = 0; i + 1 < model->n_layers; i++) {
    if (model->layer[i].spec.stream != SMOE_MAIN) continue;
    layer_step(t, i, &own, number, ts, at);
    at = !at;
  }
  double going = 0;
  for (int lane = 0; lane < t->n_lanes; lane++) {
    const size_t l = (size_t)lane;
    smoe_layer_head_logits(model->head, t->logits, t->x[at] + l * h * c, h, true);
    for (size_t s = 0; s < t->sentences; s++) {
      smoe_beam *beam = &t->search[l * t->sentences + s];
      int32_t *from = t->from + l * h + s * t->beam;
      smoe_beam_step(beam, t->logits + s * t->beam * v, v, from);
      for (size_t k = 0; k < t->beam; k++) from[k] += (int32_t)(s * t->beam);
      going += !beam->finished;
    }
  }
  reorder(t, number, ts);
  smoe_group_max_f64(&model->params.group, &going, 1);
  return going > 0;
}

/* ---- the result ---- */

/* What a rank has of each sentence, for all: number of hypotheses; of each its length, score, probability, tokens. */
static void collect(const smoe_translator *t, size_t n, smoe_translations *out) {
  const smoe_group *group = &t->model->params.group;
  const size_t k = t->beam, length = t->options.length_max, all = smoe_translator_batch(t);
  const size_t own = (size_t)t->n_lanes * t->sentences,
               first = (size_t)t->model->params.lanes.first * t->sentences;
  int *counts = smoe_alloc((size_t)group->n_ranks * sizeof *counts);
  int32_t *mine = smoe_alloc((own * (1 + k * (1 + length)) + 1) * sizeof *mine);
  int32_t *whole = smoe_alloc(all * (1 + k * (1 + length)) * sizeof *whole);
  double *score = smoe_alloc((own * 2 * k + 1) * sizeof *score),
         *scores = smoe_alloc(all * 2 * k * sizeof *scores);
  const size_t ints = 1 + k * (1 + length);
  for (size_t i = 0; i < own; i++) {
    const smoe_beam *beam = &t->search[i];
    mine[i * ints] = first + i < n ? (int32_t)beam->n_done : 0;
    for (size_t j = 0; j < beam->n_done && first + i < n; j++) {
      mine[i * ints + 1 + j] = (int32_t)beam->done[j].n;
      memcpy(mine + i * ints + 1 + k + j * length, beam->done_token + j * length, length * sizeof *mine);
      score[(i * k + j) * 2] = beam->done[j].log_p;
      score[(i * k + j) * 2 + 1] = beam->done[j].score;
    }
  }
  for (int pass = 0; pass < 2; pass++) {
    for (int r = 0; r < group->n_ranks; r++) {
      const smoe_lanes lanes = smoe_lanes_of_rank(t->model->params.lanes.n_lanes, r, group->n_ranks);
      counts[r] = lanes.count * (int)(t->sentences * (pass ? 2 * k : ints));
    }
    if (pass)
      smoe_group_gather_f64(group, scores, score, counts);
    else
      smoe_group_gather_i32(group, whole, mine, counts);
  }
  *out = (smoe_translations){.n_sentences = n, .beam = k, .memory = whole};
  out->best = smoe_alloc((n * k + 1) * sizeof *out->best);
  out->n_best = smoe_alloc((n + 1) * sizeof *out->n_best);
  for (size_t i = 0; i < n; i++) {
    out->n_best[i] = (size_t)whole[i * ints];
    for (size_t j = 0; j < out->n_best[i]; j++)
      out->best[i * k + j] = (smoe_hypothesis){.token = whole + i * ints + 1 + k + j * length,
                                               .n = (size_t)whole[i * ints + 1 + j],
                                               .log_p = scores[(i * k + j) * 2],
                                               .score = scores[(i * k + j) * 2 + 1]};
  }
  smoe_free(counts);
  smoe_free(mine);
  smoe_free(score);
  smoe_free(scores);
}

void smoe_translator_run(smoe_translator *t, const int32_t *const *source, const int32_t *length, size_t n,
                         const smoe_pass *pass, smoe_translations *out) {
  const size_t rows = (size_t)t->n_lanes * hypotheses(t) * t->options.length_max;
  SMOE_ASSERT(n > 0 && n <= smoe_translator_batch(t));
  if (rows) memset(t->token, 0xff, rows * sizeof *t->token);
  const size_t ts = encode(t, source, length, n, pass);
  for (size_t i = 0; i < t->options.length_max && step(t, i, ts, pass);) i++;
  collect(t, n, out);
}

void smoe_translations_release(smoe_translations *translations) {
  smoe_free(translations->best);
  smoe_free(translations->n_best);
  smoe_free(translations->memory);
  *translations = (smoe_translations){0};
}
