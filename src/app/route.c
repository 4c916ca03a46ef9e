/* Where a text's tokens go: the experts of every token in every MoE layer. */
#include <errno.h>
#include <string.h>

#include "open_model.h"
#include "stablemoe/arena.h"
#include "stablemoe/json.h"
#include "stablemoe/tokenizer.h"
#include "stablemoe/utf8.h"
#include "text_stream.h"

typedef struct options {
  smoe_words set;
  const char *corpus;
  bool json, best;
} options;

static const smoe_option OPTIONS[] = {
    SMOE_APP_SET_OPTION(options),
    SMOE_BEST_OPTION(options),
    {0, "json", SMOE_OPTION_FLAG, offsetof(options, json), NULL, "one JSON object instead of a table"},
    {'c', "corpus", SMOE_OPTION_FILE, offsetof(options, corpus), "FILE",
     "corpus whose tokenizer to use (default: the one it was trained on)"},
};

/* The text's tokens, and what the layers chose: on every rank. */
typedef struct routing {
  const smoe_app_model *m;
  smoe_tokenizer *tokenizer;
  int32_t *ids; /* [n] */
  size_t n;
  int32_t *expert, *learned, *distilled; /* of the window, [M, T, K], [M, T], [M, T] */
  smoe_real *gate;                       /* [M, T, K] */
} routing;

/* ---- the text ---- */

static smoe_status read_input(char **text, size_t *bytes) {
  size_t room = 1 << 16;
  *text = smoe_alloc(room);
  *bytes = 0;
  for (size_t n; (n = fread(*text + *bytes, 1, room - *bytes, stdin)) > 0;) {
    *bytes += n;
    if (*bytes == room) *text = smoe_realloc(*text, room *= 2);
  }
  SMOE_CHECK(!ferror(stdin), SMOE_ERR_IO, "cannot read the text from standard input: %s", strerror(errno));
  return SMOE_OK;
}

static smoe_status get_text(const char *word, char **text, size_t *bytes) {
  if (strcmp(word, "-") == 0) {
    SMOE_TRY(read_input(text, bytes));
  } else {
    *text = smoe_strdup(word);
    *bytes = strlen(word);
  }
  SMOE_CHECK(*bytes > 0, SMOE_ERR_CONFIG, "route: the text is empty");
  const size_t good = smoe_utf8_prefix(*text, *bytes);
  SMOE_CHECK(good == *bytes, SMOE_ERR_FORMAT, "route: the text is not UTF-8 from byte %zu on", good);
  return SMOE_OK;
}

/* Standard input is rank 0's alone. */
static smoe_status share_text(const smoe_group *group, const char *word, char **text, size_t *bytes) {
  *text = NULL;
  *bytes = 0;
  SMOE_TRY_ALL(group, group->rank == 0 ? get_text(word, text, bytes) : SMOE_OK);
  smoe_group_broadcast(group, bytes, sizeof *bytes, 0);
  if (group->rank != 0) *text = smoe_alloc(*bytes + 1);
  smoe_group_broadcast(group, *text, *bytes, 0);
  return SMOE_OK;
}

/* ---- the choices ---- */

/* Route tokens ids[first ...] as one sequence; the choices go to every rank. */
static void route_window(routing *r, size_t first, int32_t *window) {
  const smoe_model *model = r->m->model;
  const smoe_group *group = &model->params.group;
  const size_t t = model->shape[SMOE_MAIN].context, k = (size_t)model->moe[0]->router.n_slots;
  const smoe_pass pass = {.seed = (uint64_t)smoe_config_settings(r->m->config)->run.seed,
                          .update = r->m->meta.update,
                          .stage = r->m->meta.stage,
                          .training = false,
                          .n_targets = 1};
  for (size_t i = 0; i < t; i++) window[i] = first + i < r->n ? r->ids[first + i] : -1;
  const smoe_batch batch = smoe_model_batch(r->m->model, window, NULL);
  smoe_model_forward(r->m->model, &batch, &pass);
  /* One lane only: it belongs to the last rank. */
  const int owner = group->n_ranks - 1;
  for (size_t m = 0; m < (size_t)model->n_moe; m++) {
    const smoe_moe_layer *moe = model->moe[m];
    if (group->rank == owner) {
      memcpy(r->expert + m * t * k, moe->expert, t * k * sizeof *r->expert);
      memcpy(r->gate + m * t * k, moe->gate, t * k * sizeof *r->gate);
      memcpy(r->learned + m * t, moe->learned, t * sizeof *r->learned);
      memcpy(r->distilled + m * t, moe->distilled, t * sizeof *r->distilled);
    }
    smoe_group_broadcast(group, r->expert + m * t * k, t * k * sizeof *r->expert, owner);
    smoe_group_broadcast(group, r->gate + m * t * k, t * k * sizeof *r->gate, owner);
    smoe_group_broadcast(group, r->learned + m * t, t * sizeof *r->learned, owner);
    smoe_group_broadcast(group, r->distilled + m * t, t * sizeof *r->distilled, owner);
  }
}

/* ---- printing; rank 0 ---- */

enum { DIGITS = sizeof(smoe_real) == sizeof(float) ? 9 : 17 };

static void print_choice(int32_t expert) {
  if (expert < 0)
    printf("\t-");
  else
    printf("\t%d", expert);
}

/* A piece in a column: it may hold what ends one. */
static void print_piece(const char *piece) {
  for (const char *s = piece; *s; s++) {
    const char *escaped = *s == '\t'   ? "\\t"
                          : *s == '\n' ? "\\n"
                          : *s == '\r' ? "\\r"
                          : *s == '\\' ? "\\\\"
                                       : NULL;
    if (escaped)
      fputs(escaped, stdout);
    else
      putchar(*s);
  }
}

/* Row t of the window, the token at this position of the text: a line for each layer and slot. */
static void print_rows(const routing *r, size_t t, size_t position, const char *piece) {
  const smoe_model *model = r->m->model;
  const size_t context = model->shape[SMOE_MAIN].context, k = (size_t)model->moe[0]->router.n_slots;
  for (size_t m = 0; m < (size_t)model->n_moe; m++)
    for (size_t s = 0; s < k; s++) {
      const size_t row = m * context + t, slot = row * k + s;
      /* A token that no expert took has a line too. */
      if (s > 0 && r->expert[slot] < 0) continue;
      printf("%zu\t", position);
      print_piece(piece);
      printf("\t%d\t%zu", r->ids[position + 1], m);
      print_choice(r->learned[row]);
      print_choice(r->distilled[row]);
      printf("\t%.*g", DIGITS, (double)r->gate[slot]);
      print_choice(r->expert[slot]);
      printf("\t%zu\n", s);
    }
}

static void json_choice(smoe_json *json, const char *key, int32_t expert) {
  if (expert < 0)
    smoe_json_null(json, key);
  else
    smoe_json_int(json, key, expert);
}

static void json_layer(smoe_json *json, const routing *r, size_t m, size_t row) {
  const size_t k = (size_t)r->m->model->moe[0]->router.n_slots;
  smoe_json_object(json, NULL);
  smoe_json_int(json, "layer", (int64_t)m);
  json_choice(json, "learned", r->learned[row]);
  json_choice(json, "distilled", r->distilled[row]);
  smoe_json_array(json, "slots");
  for (size_t s = row * k; s < (row + 1) * k; s++) {
    if (r->expert[s] < 0) continue;
    smoe_json_object(json, NULL);
    smoe_json_int(json, "expert", r->expert[s]);
    smoe_json_real(json, "gate", (double)r->gate[s], DIGITS);
    smoe_json_end(json);
  }
  smoe_json_end(json);
  smoe_json_end(json);
}

/* print_rows as an object. */
static void json_token(smoe_json *json, const routing *r, size_t t, size_t position, const char *piece) {
  const smoe_model *model = r->m->model;
  smoe_json_object(json, NULL);
  smoe_json_int(json, "position", (int64_t)position);
  smoe_json_text(json, "token", piece);
  smoe_json_int(json, "id", r->ids[position + 1]);
  smoe_json_array(json, "layers");
  for (size_t m = 0; m < (size_t)model->n_moe; m++)
    json_layer(json, r, m, m * model->shape[SMOE_MAIN].context + t);
  smoe_json_end(json);
  smoe_json_end(json);
}

static void json_head(smoe_json *json, const routing *r) {
  const smoe_settings *settings = smoe_config_settings(r->m->config);
  smoe_json_begin(json, stdout, 2);
  smoe_json_object(json, NULL);
  smoe_json_int(json, "update", r->m->meta.update);
  smoe_json_int(json, "stage", r->m->meta.stage);
  smoe_json_text(json, "method", settings->router.method);
  smoe_json_int(json, "layers", r->m->model->n_moe);
  smoe_json_int(json, "experts", settings->moe.experts);
  smoe_json_array(json, "tokens");
}

static void json_foot(smoe_json *json) {
  smoe_json_end(json);
  smoe_json_end(json);
  smoe_json_finish(json);
}

static void print_token(smoe_json *json, const routing *r, size_t t, size_t position) {
  const char *piece = smoe_tokenizer_piece(r->tokenizer, r->ids[position + 1]);
  if (json)
    json_token(json, r, t, position, piece);
  else
    print_rows(r, t, position, piece);
}

/* json: NULL for a table. */
static void route_windows(routing *r, bool prints, smoe_json *json) {
  const size_t t = r->m->model->shape[SMOE_MAIN].context;
  int32_t *window = smoe_alloc(t * sizeof *window);
  for (size_t first = 0; first < r->n; first += t) {
    route_window(r, first, window);
    for (size_t i = 0; i < t && first + i < r->n && prints; i++) {
      /* What stands before the text is none of it. */
      if (first + i > 0) print_token(json, r, i, first + i - 1);
    }
  }
  smoe_free(window);
}

static void route_text(routing *r, bool as_json) {
  const bool prints = r->m->model->params.group.rank == 0;
  smoe_json json;
  if (prints && as_json)
    json_head(&json, r);
  else if (prints)
    printf("position\ttoken\tid\tlayer\tlearned\tdistilled\tgate\texpert\tslot\n");
  route_windows(r, prints, as_json ? &json : NULL);
  if (prints && as_json) json_foot(&json);
}

static smoe_status route(routing *r, const char *text, size_t bytes, bool json) {
  const smoe_model *model = r->m->model;
  const size_t rows = (size_t)model->n_moe * model->shape[SMOE_MAIN].context;
  const size_t slots = rows * (size_t)model->moe[0]->router.n_slots;
  int32_t *ids;
  size_t n;
  SMOE_TRY(smoe_tokenizer_encode(r->tokenizer, text, bytes, &ids, &n));
  r->ids = smoe_alloc((n + 1) * sizeof *r->ids);
  r->n = n + 1;
  r->ids[0] = smoe_tokenizer_end(r->tokenizer); /* a document begins after the end of another */
  memcpy(r->ids + 1, ids, n * sizeof *ids);
  smoe_free(ids);
  r->expert = smoe_alloc(slots * sizeof *r->expert);
  r->gate = smoe_alloc(slots * sizeof *r->gate);
  r->learned = smoe_alloc(rows * sizeof *r->learned);
  r->distilled = smoe_alloc(rows * sizeof *r->distilled);
  route_text(r, json);
  smoe_free(r->ids);
  smoe_free(r->expert);
  smoe_free(r->gate);
  smoe_free(r->learned);
  smoe_free(r->distilled);
  const smoe_group *group = &model->params.group;
  return smoe_group_agree(group, group->rank == 0 ? smoe_output_flush(stdout) : SMOE_OK);
}

static smoe_status with_model(const smoe_app_model *m, const options *o, const char *text, size_t bytes) {
  SMOE_CHECK(m->model->n_moe > 0, SMOE_ERR_CONFIG, "this model is dense: it has no experts to route to");
  SMOE_CHECK(m->task.corpus.model, SMOE_ERR_CONFIG,
             "'%s' holds no tokenizer (it was made from token shards): give a corpus of the same vocabulary "
             "that has one with --corpus",
             m->task.corpus.path);
  routing r = {.m = m};
  SMOE_TRY(smoe_tokenizer_open(&r.tokenizer, m->task.corpus.model, m->task.corpus.model_bytes));
  const smoe_status status = route(&r, text, bytes, o->json);
  smoe_tokenizer_close(r.tokenizer);
  return status;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  char *text;
  size_t bytes;
  smoe_app_model m = {0};
  smoe_status status = share_text(group, arguments->word[1], &text, &bytes);
  char path[4096];
  if (status == SMOE_OK)
    status = smoe_app_checkpoint_choose(path, sizeof path, group, arguments->word[0], o->best);
  if (status == SMOE_OK)
    status = smoe_app_model_open(&m, group, path,
                                 &(smoe_app_opening){.corpus = o->corpus, .single = true, .set = &o->set});
  if (status == SMOE_OK) status = with_model(&m, o, text, bytes);
  smoe_app_model_close(&m);
  smoe_free(text);
  return status;
}

const smoe_command smoe_command_route = {
    .name = "route",
    .arguments = "CHECKPOINT|RUN TEXT|-",
    .title = "the experts of every token of a text",
    .text =
        "Print which experts the tokens of TEXT go to (-: of standard input), in every MoE layer, and with "
        "what gate: a table with tabs, a line for each token, layer and expert.",
    .after =
        "Columns: position of the token in the text, its piece (a tab, newline or backslash in it as \\t, "
        "\\n, \\\\), its id, the MoE layer, the expert that the learned router would choose, the one that "
        "the distilled router would (- where the method has none), the gate, the expert that the model "
        "uses, and which of the token's experts this is. The text is routed as a document: after the end "
        "of another, in pieces of model.context tokens, without capacity. Any number of ranks prints the "
        "same.",
    .example = "stablemoe route runs/stable 'The cat sat on the mat.'",
    .usage = "one CHECKPOINT or run directory and one TEXT",
    .min_args = 2,
    .max_args = 2,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .run = run,
};
