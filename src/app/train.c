#include "stablemoe/train.h"

#include <getopt.h>
#include <string.h>

#include "app.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"
#include "stablemoe/router.h"

static const char USAGE[] =
    "usage: mpirun -n RANKS stablemoe train CONFIG [options]\n"
    "\n"
    "Train a model as CONFIG (YAML) says, on any number of ranks up to train.lanes.\n"
    "\n"
    "  -P, --set KEY=VALUE   set one configuration key, over what CONFIG says; may be repeated\n"
    "      --resume          go on from the newest sound checkpoint of run.directory\n"
    "      --overwrite       start anew where run.directory holds a run already\n"
    "      --dry-run         check configuration, corpus and memory, print the plan, and stop\n"
    "  -h, --help            this text and all configuration keys\n"
    "\n"
    "SIGTERM, SIGUSR1 or a file named `stop` in run.directory end the run after the update in\n"
    "progress, with a checkpoint and exit code 75.\n"
    "\n";

static void print_help(const smoe_group *group) {
  if (group->rank != 0) return;
  fputs(USAGE, stdout);
  puts("Routing methods (router.method):");
  for (size_t i = 0; smoe_router_methods[i]; i++)
    printf("  %-12s %s\n", smoe_router_methods[i]->name, smoe_router_methods[i]->title);
  puts("\nConfiguration keys, with their defaults:\n");
  smoe_config *config = smoe_app_config();
  smoe_config_help(config, stdout);
  smoe_config_destroy(config);
}

/* Read the command line into config and options; *help where help was asked for. */
static smoe_status parse(smoe_config *config, smoe_train_options *options, bool *help, int argc,
                         char **argv) {
  enum { RESUME = 256, OVERWRITE, DRY_RUN };
  static const struct option LONG[] = {{"set", required_argument, NULL, 'P'},
                                       {"resume", no_argument, NULL, RESUME},
                                       {"overwrite", no_argument, NULL, OVERWRITE},
                                       {"dry-run", no_argument, NULL, DRY_RUN},
                                       {"help", no_argument, NULL, 'h'},
                                       {0}};
  const char *path = NULL;
  /* The file comes first whatever its place on the line, so that -P is always over it. */
  optind = 1;
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, "P:h", LONG, NULL)) != -1;) {
    switch (c) {
    case 'P':
      break;
    case RESUME:
      options->resume = true;
      break;
    case OVERWRITE:
      options->overwrite = true;
      break;
    case DRY_RUN:
      options->dry_run = true;
      break;
    case 'h':
      *help = true;
      return SMOE_OK;
    default:
      return SMOE_FAIL(SMOE_ERR_CONFIG, "train: option '%s' is unknown or lacks its value; see train --help",
                       argv[optind - 1]);
    }
  }
  SMOE_CHECK(optind + 1 == argc, SMOE_ERR_CONFIG,
             optind < argc ? "train takes one CONFIG, and got '%s' too; see train --help"
                           : "train: CONFIG is missing; see train --help",
             optind < argc ? argv[argc - 1] : "");
  SMOE_CHECK(!options->resume || !options->overwrite, SMOE_ERR_CONFIG,
             "train: --resume and --overwrite exclude each other");
  path = argv[optind];
  SMOE_TRY(smoe_config_load(config, path));
  optind = 1;
  for (int c; (c = getopt_long(argc, argv, "P:h", LONG, NULL)) != -1;)
    if (c == 'P') SMOE_TRY(smoe_config_override(config, optarg));
  SMOE_CHECK(smoe_config_settings(config)->data.corpus[0], SMOE_ERR_CONFIG,
             "data.corpus is not set: make one with `stablemoe prepare TEXT... -o corpus.h5`, and give it by "
             "-P data.corpus=corpus.h5 or in '%s'",
             path);
  return smoe_app_config_finish(config);
}

smoe_status smoe_app_train(const smoe_group *group, int argc, char **argv) {
  smoe_config *config = smoe_app_config();
  smoe_train_options options = {0};
  bool help = false;
  smoe_status status = smoe_group_agree(group, parse(config, &options, &help, argc, argv));
  if (status == SMOE_OK && help) {
    print_help(group);
  } else if (status == SMOE_OK) {
    smoe_note("%d rank%s, BLAS %s, " SMOE_REAL_NAME, group->n_ranks, group->n_ranks == 1 ? "" : "s",
              smoe_blas_name());
    status = smoe_train(config, group, &options);
  }
  smoe_config_destroy(config);
  return status;
}
