#include "open_log.h"

#include <stdio.h>

#include "probe_pairs.h"
#include "stablemoe/evaluate.h"
#include "stablemoe/family.h"

/* Sizes, without names. The probe is small: rank 0 writes all of it. */
static smoe_routing_shape shape_of(const smoe_model *model, const smoe_task *task) {
  const smoe_settings *settings = task->settings;
  const int64_t n_probe = smoe_probe_tokens(task);
  const int rank = model->params.group.rank;
  const bool routed = model->n_moe > 0;
  return (smoe_routing_shape){.terms = model->terms,
                              .n_layers = model->n_moe,
                              .n_experts = routed ? (int)settings->moe.experts : 0,
                              .n_slots = routed ? model->moe[0]->router.n_slots : 0,
                              .n_probe = n_probe,
                              .probe_first = rank == 0 ? 0 : n_probe,
                              .n_probe_local = rank == 0 ? n_probe : 0,
                              .n_tokens = smoe_task_is_language(task)
                                              ? smoe_family_batch_tokens(model->config)
                                              : settings->train.batch_sequences * settings->model.context,
                              .method = routed ? settings->router.method : "none",
                              .n_gates = smoe_model_n_skip(model)};
}

/* Of a translation model, for the log: codes of the languages, and the side of each MoE layer. */
static void describe_sides(const smoe_model *model, const smoe_task *task, char *languages, char *sides) {
  const smoe_pairs *pairs = &task->pairs;
  for (int i = 0; i < pairs->n_languages; i++)
    languages += sprintf(languages, "%s%s", i ? " " : "", pairs->language[i]);
  for (int i = 0, n = 0; i < model->n_layers; i++) {
    const smoe_layer_spec *spec = &model->layer[i].spec;
    if (spec->moe >= 0)
      sides += sprintf(sides, "%s%s", n++ ? " " : "", spec->stream == SMOE_ENCODER ? "source" : "target");
  }
}

/* Names of the gated layers, in memory of smoe_alloc. */
static char *gate_names(const smoe_model *model) {
  const int n = smoe_model_n_skip(model);
  char *names = smoe_alloc((size_t)n * (SMOE_NAME_MAX + 1) + 1), *end = names;
  *end = '\0';
  for (int k = 0; k < n; k++)
    end += sprintf(end, "%s%s", k ? " " : "", smoe_model_skip_layer(model, k)->spec.name);
  return names;
}

static void probe_pairs(smoe_routing_log *log, const smoe_task *task, int64_t n_probe) {
  const size_t bytes = (size_t)n_probe * sizeof(int32_t);
  int32_t *token = smoe_alloc(bytes), *side = smoe_alloc(bytes), *language = smoe_alloc(bytes);
  smoe_probe_pairs_describe(task, token, side, language);
  smoe_routing_log_probe_tokens(log, token);
  smoe_routing_log_probe_sides(log, side, language);
  smoe_free(token);
  smoe_free(side);
  smoe_free(language);
}

static void probe_sequences(smoe_routing_log *log, const smoe_task *task, int64_t n_probe) {
  const int64_t context = task->settings->model.context;
  int32_t *token = smoe_alloc((size_t)n_probe * sizeof *token);
  for (int64_t s = 0; s < n_probe / context; s++)
    smoe_corpus_read(&task->corpus, SMOE_VALID, s * context, (size_t)context, token + s * context);
  smoe_routing_log_probe_tokens(log, token);
  smoe_free(token);
}

smoe_routing_log *smoe_open_log(const smoe_model *model, const smoe_task *task) {
  smoe_routing_shape shape = shape_of(model, task);
  if (shape.n_layers == 0 && shape.n_gates == 0) return NULL;
  char languages[SMOE_LANGUAGES_MAX * SMOE_LANGUAGE_BYTES] = "";
  char *sides = smoe_alloc(8 * (size_t)model->n_moe + 1); /* "source " each */
  char *gates = gate_names(model);
  if (!smoe_task_is_language(task) && !smoe_task_is_images(task)) {
    describe_sides(model, task, languages, sides);
    shape.languages = languages;
    shape.layer_sides = sides;
  }
  shape.gates = shape.n_gates > 0 ? gates : NULL;
  smoe_routing_log *log = smoe_routing_log_create(&model->params.group, &shape);
  smoe_free(sides);
  smoe_free(gates);
  if (shape.n_probe_local == 0) return log;
  if (shape.languages)
    probe_pairs(log, task, shape.n_probe);
  else
    probe_sequences(log, task, shape.n_probe);
  return log;
}
