#include "stablemoe/evaluate.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "evaluate_images.h"
#include "evaluate_pairs.h"
#include "evaluate_print.h"
#include "open_model.h"
#include "stablemoe/plain_file.h"
#include "stablemoe/tokenizer.h"
#include "stablemoe/utf8.h"
#include "text_stream.h"

typedef struct options {
  smoe_words set;
  const char *corpus, *tokens, *translations, *images;
  int split; /* smoe_split */
  int precision;
  int64_t sequences, documents;
  bool experts, json, best;
} options;

static const char *const SPLITS[] = {"train", "valid", "test", NULL};

static const options DEFAULTS = {.split = SMOE_TEST};

static const smoe_option OPTIONS[] = {
    {'s', "split", SMOE_OPTION_CHOICE, offsetof(options, split), NULL,
     "part of the corpus to evaluate on (default test)", .choices = SPLITS},
    {'c', "corpus", SMOE_OPTION_FILE, offsetof(options, corpus), "FILE",
     "corpus to evaluate on (default: the one it was trained on)"},
    {'n', "sequences", SMOE_OPTION_INT, offsetof(options, sequences), "N",
     "only the first N sequences (default 0: all)", 0, INT64_MAX},
    {0, "precision", SMOE_OPTION_CHOICE, offsetof(options, precision), NULL, SMOE_APP_PRECISION_HELP,
     .choices = smoe_app_precisions},
    {'d', "documents", SMOE_OPTION_INT, offsetof(options, documents), "N",
     "list the N documents of the highest loss per token, of those that have 10 tokens (default 0)", 0,
     1000000},
    {'e', "experts", SMOE_OPTION_FLAG, offsetof(options, experts), NULL,
     "list the loss of every expert's tokens"},
    {0, "tokens", SMOE_OPTION_OUTPUT, offsetof(options, tokens), "FILE",
     "write each token's loss and experts to FILE, as a table of tab-separated values"},
    {0, "translations", SMOE_OPTION_OUTPUT, offsetof(options, translations), "FILE",
     "of a translation model: write direction, source, reference and translation of each pair to FILE, "
     "separated "
     "by tabs"},
    SMOE_APP_SET_OPTION(options),
    SMOE_BEST_OPTION(options),
    {0, "images", SMOE_OPTION_OUTPUT, offsetof(options, images), "FILE",
     "of a model of images: write class, prediction and loss of each image, and the patches that each expert "
     "takes, "
     "to FILE, separated by tabs"},
    {0, "json", SMOE_OPTION_FLAG, offsetof(options, json), NULL,
     "print one JSON object, with all of it, instead of text"},
};

/* What rank 0 does with the tokens. */
typedef struct viewer {
  smoe_breakdown breakdown;
  smoe_plain_file file; /* zeroed: no table of tokens */
  char **beginning;     /* of the worst documents */
} viewer;

static smoe_status open_viewer(viewer *v, const options *o, const smoe_app_model *m) {
  SMOE_TRY(smoe_breakdown_begin(&v->breakdown, &m->task.corpus, (smoe_split)o->split, m->model->n_moe,
                                m->model->params.n_experts, o->documents));
  if (!o->tokens) return SMOE_OK;
  SMOE_TRY(smoe_plain_create(&v->file, o->tokens, 0));
  fputs("place\ttoken\tnats", v->file.stream);
  for (int i = 0; i < m->model->n_moe; i++) fprintf(v->file.stream, "\texperts%d", i);
  for (int k = 0; k < smoe_model_n_skip(m->model); k++)
    fprintf(v->file.stream, "\t%s", smoe_model_skip_layer(m->model, k)->spec.name);
  fputc('\n', v->file.stream);
  return SMOE_OK;
}

/* The experts of a token in one MoE layer: "3", "3,7", "-3" for one that dropped it, "" for none. */
static void print_experts(FILE *out, const int32_t *expert, int n_slots) {
  bool first = true;
  for (int s = 0; s < n_slots; s++) {
    if (expert[s] == -1) continue;
    fprintf(out, "%s%s%d", first ? "" : ",", expert[s] < 0 ? "-" : "", smoe_slot_expert(expert[s]));
    first = false;
  }
}

static void print_tokens(FILE *out, const smoe_evaluated *t) {
  for (int64_t i = 0; i < t->n; i++) {
    if (t->target[i] < 0) continue;
    fprintf(out, "%lld\t%d\t%.9g", (long long)(t->first + i + 1), t->target[i], t->loss[i]);
    for (int m = 0; m < t->n_moe; m++) {
      fputc('\t', out);
      print_experts(out, t->expert + (m * t->stride + i) * t->n_slots, t->n_slots);
    }
    for (int k = 0; k < t->n_skip; k++) fprintf(out, "\t%d", (int)t->ran[k * t->stride + i]);
    fputc('\n', out);
  }
}

static smoe_status see(void *context, const smoe_evaluated *tokens) {
  viewer *v = context;
  SMOE_TRY(smoe_breakdown_add(&v->breakdown, tokens));
  if (!v->file.stream) return SMOE_OK;
  print_tokens(v->file.stream, tokens);
  SMOE_CHECK(!ferror(v->file.stream), SMOE_ERR_IO, "cannot write '%s': %s", v->file.path, strerror(errno));
  return SMOE_OK;
}

/* The first words of a document in one line, in memory of smoe_alloc; "" where they cannot be had. */
static char *beginning_of(const smoe_corpus *corpus, smoe_split split, const smoe_tokenizer *tokenizer,
                          int64_t number) {
  enum { TOKENS = 24, BYTES = 72 };
  int32_t token[TOKENS];
  int64_t bound[2] = {0, 0}; /* where the document begins and ends */
  const int64_t first = number > 0 ? number - 1 : 0;
  if (smoe_corpus_document_ends(corpus, split, first, (size_t)(number - first + 1),
                                bound + 1 - (number - first)))
    return smoe_strdup("");
  const int64_t n = bound[1] - bound[0] < TOKENS ? bound[1] - bound[0] : TOKENS;
  char *text = NULL;
  smoe_corpus_read(corpus, split, bound[0], (size_t)n, token);
  if (smoe_tokenizer_decode(tokenizer, token, (size_t)n, &text) != SMOE_OK) return smoe_strdup("");
  const size_t length = strlen(text);
  if (length > BYTES) text[smoe_utf8_cut(text, BYTES)] = '\0';
  for (char *c = text; *c; c++)
    if ((unsigned char)*c < ' ') *c = ' ';
  return text;
}

/* Of the worst documents; NULL where there is none, or no tokenizer. */
static char **beginnings_of(const smoe_corpus *corpus, const smoe_breakdown *b) {
  smoe_tokenizer *tokenizer;
  if (b->n_worst == 0 || !corpus->model) return NULL;
  if (smoe_tokenizer_open(&tokenizer, corpus->model, corpus->model_bytes) != SMOE_OK) return NULL;
  char **text = smoe_alloc((size_t)b->n_worst * sizeof *text);
  for (int64_t i = 0; i < b->n_worst; i++)
    text[i] = beginning_of(corpus, b->split, tokenizer, b->worst[i].number);
  smoe_tokenizer_close(tokenizer);
  return text;
}

/* Of the whole split's text, by the loss of what was evaluated. */
static double bits_per_byte(const smoe_corpus *corpus, smoe_split split, double loss) {
  const double bytes = (double)corpus->n_bytes[split], tokens = (double)corpus->n_tokens[split];
  return bytes > 0 ? loss / log(2.0) * tokens / bytes : NAN;
}

static smoe_status finish(const options *o, const smoe_app_model *m, viewer *v, const smoe_evaluation *e) {
  smoe_breakdown_end(&v->breakdown);
  if (v->file.stream) {
    SMOE_TRY(smoe_plain_finish(&v->file));
    SMOE_TRY(smoe_plain_publish(&v->file));
  }
  v->beginning = beginnings_of(&m->task.corpus, &v->breakdown);
  const smoe_evaluation_report report = {.split = SPLITS[o->split],
                                         .update = m->meta.update,
                                         .stage = m->meta.stage,
                                         .bits_per_byte =
                                             bits_per_byte(&m->task.corpus, (smoe_split)o->split, e->loss),
                                         .result = e,
                                         .breakdown = &v->breakdown,
                                         .beginning = v->beginning,
                                         .experts = o->experts};
  (o->json ? smoe_evaluation_print_json : smoe_evaluation_print_text)(stdout, &report);
  return smoe_output_flush(stdout);
}

static smoe_status evaluate(const smoe_group *group, const options *o, smoe_app_model *m, viewer *v) {
  smoe_evaluation e;
  SMOE_TRY_ALL(group, group->rank == 0 ? open_viewer(v, o, m) : SMOE_OK);
  SMOE_TRY(smoe_evaluate_each(m->model, &m->task, (smoe_split)o->split, o->sequences, m->meta.update,
                              m->meta.stage, &e, see, v));
  smoe_model_note_skips(m->model);
  return smoe_group_agree(group, group->rank == 0 ? finish(o, m, v, &e) : SMOE_OK);
}

/* Options of one kind of model alone. */
static smoe_status check_options(const options *o, const smoe_app_model *m, const char *path) {
  const bool language = smoe_task_is_language(&m->task), images = smoe_task_is_images(&m->task);
  const char *const of_tokens = o->tokens      ? "tokens"
                                : o->documents ? "documents"
                                : o->experts   ? "experts"
                                               : NULL;
  SMOE_CHECK(
      !images || (!of_tokens && !o->translations), SMOE_ERR_CONFIG,
      "--%s: '%s' is a model of images; --images FILE writes what it predicts, and the patches that each "
      "expert takes",
      of_tokens ? of_tokens : "translations", path);
  SMOE_CHECK(images || !o->images, SMOE_ERR_CONFIG, "--images: '%s' is a %s model, which reads none", path,
             language ? "language" : "translation");
  SMOE_CHECK(!language || !o->translations, SMOE_ERR_CONFIG,
             "--translations: '%s' is a language model, which does not translate", path);
  return SMOE_OK;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  smoe_app_model m;
  viewer v = {0};
  const smoe_app_opening opening = {.corpus = o->corpus, .precision = o->precision, .set = &o->set};
  char path[4096];
  SMOE_TRY(smoe_app_checkpoint_choose(path, sizeof path, group, arguments->word[0], o->best));
  smoe_status status = smoe_app_task_open(&m, group, path, &opening);
  if (status == SMOE_OK) status = check_options(o, &m, arguments->word[0]);
  if (status == SMOE_OK && smoe_task_is_images(&m.task)) {
    status =
        smoe_evaluate_images(&m, (smoe_split)o->split, SPLITS[o->split], o->sequences, o->json, o->images);
    smoe_app_model_close(&m);
    return status;
  }
  if (status == SMOE_OK && !smoe_task_is_language(&m.task)) {
    status = smoe_evaluate_pairs(&m, (smoe_split)o->split, SPLITS[o->split], o->sequences, o->json,
                                 o->translations);
    smoe_app_model_close(&m);
    return status;
  }
  smoe_app_model_close(&m);
  if (status != SMOE_OK) return status;
  status = smoe_app_model_open(&m, group, path, &opening);
  if (status == SMOE_OK) status = evaluate(group, o, &m, &v);
  for (int64_t i = 0; v.beginning && i < v.breakdown.n_worst; i++) smoe_free(v.beginning[i]);
  smoe_free(v.beginning);
  smoe_plain_release(&v.file);
  smoe_breakdown_release(&v.breakdown);
  smoe_app_model_close(&m);
  return status;
}

const smoe_command smoe_command_evaluate = {
    .name = "evaluate",
    .arguments = "CHECKPOINT|RUN",
    .title = "perplexity on a split, and of which tokens",
    .text =
        "Perplexity of a trained language model: per token and byte, by document, by how frequent tokens are "
        "in training, by expert. Of a translation model: loss, BLEU and chrF of each direction. Of a model "
        "of images: "
        "accuracy, by class, and how often experts take the patch that decides an image. Tokens are "
        "routed as in deployment (the frozen or distilled router).",
    .example = "mpirun -n 2 stablemoe evaluate runs/stable --split valid --documents 5",
    .usage = "one CHECKPOINT or run directory",
    .min_args = 1,
    .max_args = 1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .run = run,
};
