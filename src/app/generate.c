#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "open_model.h"
#include "stablemoe/random.h"
#include "stablemoe/tokenizer.h"

static const char USAGE[] =
    "usage: mpirun -n RANKS stablemoe generate CHECKPOINT|RUN [options]\n"
    "\n"
    "Continue a text with a trained model.\n"
    "\n"
    "  -p, --prompt TEXT       text to continue (default: the beginning of a document)\n"
    "  -n, --tokens N          tokens to add at most (default 128)\n"
    "  -t, --temperature X     0 takes the likeliest token always (default 0.8)\n"
    "  -k, --top-k N           choose among the N likeliest tokens (default 0: all)\n"
    "      --seed N            another seed, another text (default 1)\n"
    "  -c, --corpus FILE       corpus whose tokenizer to use (default: the one it was trained on)\n"
    "  -h, --help              this text\n";

typedef struct options {
  const char *path, *corpus, *prompt;
  int64_t n_tokens, top_k, seed;
  double temperature;
  bool help;
} options;

static smoe_status parse(options *o, int argc, char **argv) {
  enum { SEED = 256 };
  static const struct option LONG[] = {{"prompt", required_argument, NULL, 'p'},
                                       {"tokens", required_argument, NULL, 'n'},
                                       {"temperature", required_argument, NULL, 't'},
                                       {"top-k", required_argument, NULL, 'k'},
                                       {"seed", required_argument, NULL, SEED},
                                       {"corpus", required_argument, NULL, 'c'},
                                       {"help", no_argument, NULL, 'h'},
                                       {0}};
  *o = (options){.prompt = "", .n_tokens = 128, .seed = 1, .temperature = 0.8};
  optind = 1;
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, "p:n:t:k:c:h", LONG, NULL)) != -1;) {
    switch (c) {
    case 'p':
      o->prompt = optarg;
      break;
    case 'n':
      SMOE_TRY(smoe_app_integer("--tokens", optarg, 1, 1000000, &o->n_tokens));
      break;
    case 't':
      SMOE_TRY(smoe_app_real("--temperature", optarg, 0, 100, &o->temperature));
      break;
    case 'k':
      SMOE_TRY(smoe_app_integer("--top-k", optarg, 0, 1000000, &o->top_k));
      break;
    case SEED:
      SMOE_TRY(smoe_app_integer("--seed", optarg, 0, INT64_MAX, &o->seed));
      break;
    case 'c':
      o->corpus = optarg;
      break;
    case 'h':
      o->help = true;
      return SMOE_OK;
    default:
      return SMOE_FAIL(SMOE_ERR_CONFIG,
                       "generate: option '%s' is unknown or lacks its value; see generate --help",
                       argv[optind - 1]);
    }
  }
  SMOE_CHECK(optind + 1 == argc, SMOE_ERR_CONFIG,
             "generate takes one CHECKPOINT or run directory; see generate --help");
  o->path = argv[optind];
  return SMOE_OK;
}

/* Logit below which a token is out of the top k; -inf where k = 0. */
static double threshold(const smoe_real *logits, int n, int64_t k) {
  if (k <= 0 || k >= n) return -INFINITY;
  double limit = INFINITY;
  for (int64_t found = 0; found < k;) {
    double next = -INFINITY;
    int64_t equal = 0;
    for (int i = 0; i < n; i++) {
      const double x = (double)logits[i];
      if (x >= limit) continue;
      if (x > next) equal = 0;
      if (x >= next) equal++;
      next = fmax(next, x);
    }
    limit = next;
    found += equal;
    if (equal == 0) break;
  }
  return limit;
}

static int32_t choose(const smoe_real *logits, int n, const options *o, int64_t position) {
  int32_t best = 0;
  for (int i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  if (o->temperature == 0) return best;
  const double limit = threshold(logits, n, o->top_k), max = (double)logits[best];
  double sum = 0;
  for (int i = 0; i < n; i++)
    if ((double)logits[i] >= limit) sum += exp(((double)logits[i] - max) / o->temperature);
  double left = sum * smoe_random_uniform((uint64_t)o->seed, SMOE_RANDOM_SAMPLE, 0, (uint64_t)position);
  for (int i = 0; i < n; i++) {
    if ((double)logits[i] < limit) continue;
    left -= exp(((double)logits[i] - max) / o->temperature);
    if (left <= 0) return i;
  }
  return best;
}

/* The next token after ids[0 .. n); the same on all ranks. */
static int32_t next_token(const smoe_app_model *m, const options *o, const int32_t *ids, int64_t n,
                          smoe_real *logits, int32_t *window) {
  const smoe_group *group = &m->model->params.group;
  const int64_t context = (int64_t)m->model->tokens.context, kept = n < context ? n : context;
  const smoe_route_context pass = {
      .update = m->meta.update, .stage = m->meta.stage, .training = false, .n_targets = 1};
  for (int64_t t = 0; t < context; t++) window[t] = t < kept ? ids[n - kept + t] : -1;
  smoe_model_forward(m->model, window, NULL, &pass);
  int32_t token = 0;
  /* One lane only: it belongs to the last rank (lanes floor(r L / R) onwards). */
  const int owner = group->n_ranks - 1;
  if (group->rank == owner) {
    smoe_model_logits(m->model, (size_t)(kept - 1), logits);
    token = choose(logits, m->corpus.vocabulary, o, n);
  }
  smoe_group_broadcast(group, &token, sizeof token, owner);
  return token;
}

static smoe_status generate(const smoe_app_model *m, const options *o, smoe_tokenizer *tokenizer) {
  int32_t *prompt = NULL;
  size_t n_prompt = 0;
  SMOE_TRY(smoe_tokenizer_encode(tokenizer, o->prompt, strlen(o->prompt), &prompt, &n_prompt));
  int32_t *ids = smoe_alloc((n_prompt + 1 + (size_t)o->n_tokens) * sizeof *ids);
  const int32_t end = smoe_tokenizer_end(tokenizer);
  /* A document begins after the end of another. */
  int64_t n = 0;
  ids[n++] = end;
  for (size_t i = 0; i < n_prompt; i++) ids[n++] = prompt[i];
  smoe_real *logits = smoe_alloc((size_t)m->corpus.vocabulary * sizeof *logits);
  int32_t *window = smoe_alloc(m->model->tokens.context * sizeof *window);
  for (int64_t i = 0; i < o->n_tokens; i++) {
    ids[n] = next_token(m, o, ids, n, logits, window);
    if (ids[n] == end) break;
    n++;
  }
  char *text = NULL;
  const smoe_status status = smoe_tokenizer_decode(tokenizer, ids + 1, (size_t)n - 1, &text);
  if (status == SMOE_OK && m->model->params.group.rank == 0) puts(text);
  smoe_free(text);
  smoe_free(prompt);
  smoe_free(ids);
  smoe_free(logits);
  smoe_free(window);
  return status;
}

static smoe_status with_tokenizer(const smoe_app_model *m, const options *o) {
  SMOE_CHECK(m->corpus.model, SMOE_ERR_CONFIG,
             "'%s' holds no tokenizer (it was made from token shards): give a corpus of the same vocabulary "
             "that has one with --corpus",
             m->corpus.path);
  smoe_tokenizer *tokenizer;
  SMOE_TRY(smoe_tokenizer_open(&tokenizer, m->corpus.model, m->corpus.model_bytes));
  const smoe_status status = generate(m, o, tokenizer);
  smoe_tokenizer_close(tokenizer);
  return status;
}

smoe_status smoe_app_generate(const smoe_group *group, int argc, char **argv) {
  options o;
  SMOE_TRY_ALL(group, parse(&o, argc, argv));
  if (o.help) {
    if (group->rank == 0) fputs(USAGE, stdout);
    return SMOE_OK;
  }
  smoe_app_model m;
  smoe_status status = smoe_app_model_open(&m, group, o.path, o.corpus, true);
  if (status == SMOE_OK) status = with_tokenizer(&m, &o);
  smoe_app_model_close(&m);
  return status;
}
