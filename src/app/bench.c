#include "stablemoe/bench.h"

#include <getopt.h>
#include <stdio.h>

#include "app.h"

static const char USAGE[] =
    "usage: mpirun -n RANKS stablemoe bench CONFIG [options]\n"
    "\n"
    "Time updates of a configuration, in both stages where the routing method has two, and compare\n"
    "them with the machine's matrix product on the same shapes. Nothing is saved. Where data.corpus is\n"
    "not set, tokens are random with the frequencies of Zipf's law.\n"
    "\n"
    "  -P, --set KEY=VALUE   set one configuration key; may be repeated\n"
    "  -n, --updates N       timed updates per stage (default 10)\n"
    "  -w, --warmup N        updates before them (default 2)\n"
    "  -v, --vocab N         vocabulary of the random tokens (default 8192)\n"
    "      --json            one JSON object instead of a table\n"
    "      --trace FILE      also write FILE.<rank>, for Perfetto or Chrome's trace viewer\n"
    "  -h, --help            this text\n";

typedef struct options {
  smoe_bench_options bench;
  int64_t vocabulary;
  bool json, help;
} options;

static const char SHORT[] = "P:n:w:v:h";
enum { JSON = 256, TRACE };
static const struct option LONG[] = {
    {"set", required_argument, NULL, 'P'},    {"updates", required_argument, NULL, 'n'},
    {"warmup", required_argument, NULL, 'w'}, {"vocab", required_argument, NULL, 'v'},
    {"json", no_argument, NULL, JSON},        {"trace", required_argument, NULL, TRACE},
    {"help", no_argument, NULL, 'h'},         {0}};

static smoe_status parse_options(options *o, int argc, char **argv) {
  int64_t updates = 10, warmup = 2;
  *o = (options){.vocabulary = 8192};
  optind = 1;
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, SHORT, LONG, NULL)) != -1;) {
    switch (c) {
    case 'P':
      break;
    case 'n':
      SMOE_TRY(smoe_app_integer("--updates", optarg, 1, 100000, &updates));
      break;
    case 'w':
      SMOE_TRY(smoe_app_integer("--warmup", optarg, 0, 100000, &warmup));
      break;
    case 'v':
      SMOE_TRY(smoe_app_integer("--vocab", optarg, 2, 1 << 24, &o->vocabulary));
      break;
    case JSON:
      o->json = true;
      break;
    case TRACE:
      o->bench.trace = optarg;
      break;
    case 'h':
      o->help = true;
      return SMOE_OK;
    default:
      return SMOE_FAIL(SMOE_ERR_CONFIG, "bench: option '%s' is unknown or lacks its value; see bench --help",
                       argv[optind - 1]);
    }
  }
  o->bench.updates = (int)updates;
  o->bench.warmup = (int)warmup;
  SMOE_CHECK(optind + 1 == argc, SMOE_ERR_CONFIG, "bench takes one CONFIG; see bench --help");
  return SMOE_OK;
}

static smoe_status configure(smoe_config *config, int argc, char **argv) {
  SMOE_TRY(smoe_config_load(config, argv[optind]));
  optind = 1;
  for (int c; (c = getopt_long(argc, argv, SHORT, LONG, NULL)) != -1;)
    if (c == 'P') SMOE_TRY(smoe_config_override(config, optarg));
  /* Far beyond the timed updates of stage 1: where the stages change is not what is measured. */
  SMOE_TRY(smoe_config_override(config, "router.stage1_updates=1000000"));
  return smoe_app_config_finish(config);
}

static smoe_status bench(const smoe_group *group, const options *o, const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  smoe_corpus corpus;
  if (settings->data.corpus[0])
    SMOE_TRY(smoe_corpus_open(&corpus, group, settings->data.corpus));
  else
    smoe_corpus_synthetic(&corpus, (int)o->vocabulary, INT64_C(1) << 32);
  smoe_bench result;
  const smoe_status status = smoe_bench_run(&result, config, group, &corpus, &o->bench);
  if (status == SMOE_OK && group->rank == 0)
    smoe_bench_print(&result, settings, group->n_ranks, o->json, stdout);
  smoe_corpus_close(&corpus);
  return status;
}

smoe_status smoe_app_bench(const smoe_group *group, int argc, char **argv) {
  options o;
  SMOE_TRY_ALL(group, parse_options(&o, argc, argv));
  if (o.help) {
    if (group->rank == 0) fputs(USAGE, stdout);
    return SMOE_OK;
  }
  smoe_config *config = smoe_app_config();
  smoe_status status = smoe_group_agree(group, configure(config, argc, argv));
  if (status == SMOE_OK) status = bench(group, &o, config);
  smoe_config_destroy(config);
  return status;
}
