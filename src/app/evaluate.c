#include "stablemoe/evaluate.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "open_model.h"

static const char USAGE[] =
    "usage: mpirun -n RANKS stablemoe evaluate CHECKPOINT|RUN [options]\n"
    "\n"
    "Perplexity of a trained model; tokens are routed as in deployment (the frozen or distilled router).\n"
    "\n"
    "  -s, --split NAME       train, valid or test (default test)\n"
    "  -c, --corpus FILE      corpus to evaluate on (default: the one it was trained on)\n"
    "  -n, --sequences N      only the first N sequences (default 0: all)\n"
    "      --json             print one JSON object instead of text\n"
    "  -h, --help             this text\n";

typedef struct options {
  const char *path, *corpus;
  smoe_split split;
  int64_t sequences;
  bool json, help;
} options;

static const char *const SPLITS[] = {"train", "valid", "test"};

static smoe_status parse_split(const char *name, smoe_split *split) {
  for (int i = 0; i < SMOE_SPLITS; i++)
    if (strcmp(name, SPLITS[i]) == 0) {
      *split = (smoe_split)i;
      return SMOE_OK;
    }
  return SMOE_FAIL(SMOE_ERR_CONFIG, "--split %s: it is train, valid or test", name);
}

static smoe_status parse(options *o, int argc, char **argv) {
  enum { JSON = 256 };
  static const struct option LONG[] = {{"split", required_argument, NULL, 's'},
                                       {"corpus", required_argument, NULL, 'c'},
                                       {"sequences", required_argument, NULL, 'n'},
                                       {"json", no_argument, NULL, JSON},
                                       {"help", no_argument, NULL, 'h'},
                                       {0}};
  *o = (options){.split = SMOE_TEST};
  optind = 1;
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, "s:c:n:h", LONG, NULL)) != -1;) {
    switch (c) {
    case 's':
      SMOE_TRY(parse_split(optarg, &o->split));
      break;
    case 'c':
      o->corpus = optarg;
      break;
    case 'n':
      SMOE_TRY(smoe_app_integer("--sequences", optarg, 0, INT64_MAX, &o->sequences));
      break;
    case JSON:
      o->json = true;
      break;
    case 'h':
      o->help = true;
      return SMOE_OK;
    default:
      return SMOE_FAIL(SMOE_ERR_CONFIG,
                       "evaluate: option '%s' is unknown or lacks its value; see evaluate --help",
                       argv[optind - 1]);
    }
  }
  SMOE_CHECK(optind + 1 == argc, SMOE_ERR_CONFIG,
             "evaluate takes one CHECKPOINT or run directory; see evaluate --help");
  o->path = argv[optind];
  return SMOE_OK;
}

static void print(const options *o, const smoe_app_model *m, const smoe_evaluation *e) {
  const double bytes = (double)m->corpus.n_bytes[o->split], tokens = (double)m->corpus.n_tokens[o->split];
  const double bits = bytes > 0 ? e->loss / log(2.0) * tokens / bytes : NAN;
  if (o->json) {
    printf("{\"split\": \"%s\", \"update\": %lld, \"stage\": %d, \"tokens\": %.0f, \"loss\": %.9g, "
           "\"perplexity\": %.9g, ",
           SPLITS[o->split], (long long)m->meta.update, m->meta.stage, e->n_targets, e->loss, e->perplexity);
    if (bytes > 0) printf("\"bits_per_byte\": %.9g, ", bits);
    printf("\"drop_rate\": %.9g}\n", e->drop_rate);
    return;
  }
  printf("%s split, %.0f tokens\n", SPLITS[o->split], e->n_targets);
  printf("  cross entropy   %.4f nats per token\n", e->loss);
  printf("  perplexity      %.2f per token\n", e->perplexity);
  if (bytes > 0) printf("  bits per byte   %.4f\n", bits);
  if (e->drop_rate > 0) printf("  dropped         %.2f %% of rows, by capacity\n", 100 * e->drop_rate);
}

smoe_status smoe_app_evaluate(const smoe_group *group, int argc, char **argv) {
  options o;
  SMOE_TRY_ALL(group, parse(&o, argc, argv));
  if (o.help) {
    if (group->rank == 0) fputs(USAGE, stdout);
    return SMOE_OK;
  }
  smoe_app_model m;
  smoe_evaluation e;
  smoe_status status = smoe_app_model_open(&m, group, o.path, o.corpus, false);
  if (status == SMOE_OK)
    status = smoe_evaluate(m.model, &m.corpus, o.split, o.sequences, m.meta.update, m.meta.stage, &e);
  if (status == SMOE_OK && group->rank == 0) print(&o, &m, &e);
  smoe_app_model_close(&m);
  return status;
}
