#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "stablemoe/arena.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"
#include "stablemoe/router.h"

static const char USAGE[] =
    "stablemoe: two-stage Mixture-of-Experts language-model training over MPI\n"
    "\n"
    "usage: stablemoe prepare TEXT... -o CORPUS.h5      make a corpus from text files or directories\n"
    "       mpirun -n R stablemoe train CONFIG          train a model\n"
    "       mpirun -n R stablemoe evaluate CHECKPOINT   perplexity on a split\n"
    "       mpirun -n R stablemoe generate CHECKPOINT   text from a model\n"
    "       mpirun -n R stablemoe bench CONFIG          speed, beside what the machine's GEMM allows\n"
    "       stablemoe info FILE                         what a checkpoint or corpus holds\n"
    "       stablemoe --version | --help\n"
    "\n"
    "Every subcommand has a --help of its own; `stablemoe train --help` lists all configuration keys.\n"
    "Exit codes: 0 fine, 2 configuration, 3 file system, 4 file format, 5 memory, 6 not a number,\n"
    "7 MPI, 8 bug, 75 stopped on request after a checkpoint (start again with --resume).\n";

smoe_config *smoe_app_config(void) {
  const size_t n = smoe_router_keysets(NULL);
  const smoe_keyset **sets = smoe_alloc(n * sizeof *sets);
  smoe_router_keysets(sets);
  smoe_config *config = smoe_config_create(sets, n);
  smoe_free(sets);
  return config;
}

smoe_status smoe_app_config_finish(smoe_config *config) {
  SMOE_TRY(smoe_config_resolve(config));
  SMOE_TRY(smoe_router_check(config));
  int64_t threads = smoe_config_settings(config)->run.threads;
  const char *environment = getenv("OMP_NUM_THREADS");
  if (threads == 0) threads = environment ? strtol(environment, NULL, 10) : 1;
  if (threads < 1) threads = 1;
  smoe_threads_set((int)threads);
  return SMOE_OK;
}

smoe_status smoe_app_integer(const char *option, const char *text, int64_t min, int64_t max, int64_t *value) {
  char *end;
  *value = strtoll(text, &end, 10);
  SMOE_CHECK(*text && !*end && *value >= min && *value <= max, SMOE_ERR_CONFIG,
             "%s %s: expected a whole number from %lld to %lld", option, text, (long long)min,
             (long long)max);
  return SMOE_OK;
}

smoe_status smoe_app_real(const char *option, const char *text, double min, double max, double *value) {
  char *end;
  *value = strtod(text, &end);
  SMOE_CHECK(*text && !*end && *value >= min && *value <= max, SMOE_ERR_CONFIG,
             "%s %s: expected a number from %g to %g", option, text, min, max);
  return SMOE_OK;
}

static smoe_status run(const smoe_group *group, int argc, char **argv) {
  const char *command = argc > 1 ? argv[1] : "--help";
  if (strcmp(command, "train") == 0) return smoe_app_train(group, argc - 1, argv + 1);
  if (strcmp(command, "evaluate") == 0) return smoe_app_evaluate(group, argc - 1, argv + 1);
  if (strcmp(command, "generate") == 0) return smoe_app_generate(group, argc - 1, argv + 1);
  if (strcmp(command, "bench") == 0) return smoe_app_bench(group, argc - 1, argv + 1);
  if (strcmp(command, "info") == 0) return smoe_app_info(group, argc - 1, argv + 1);
  if (strcmp(command, "prepare") == 0)
    return smoe_group_agree(group, group->rank == 0 ? smoe_app_prepare(argc - 1, argv + 1) : SMOE_OK);
  const bool help = strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0;
  if (help || strcmp(command, "--version") == 0) {
    if (group->rank == 0 && help) fputs(USAGE, stdout);
    if (group->rank == 0 && !help) printf("stablemoe %s\n", SMOE_VERSION);
    return SMOE_OK;
  }
  return SMOE_FAIL(SMOE_ERR_CONFIG,
                   "unknown subcommand '%s': it is prepare, train, evaluate, generate, bench or info",
                   command);
}

static void print_end(const smoe_group *group, smoe_status status) {
  const char *report = smoe_report(), *where = strrchr(report, '[');
  if (status == SMOE_STOPPED) {
    /* No fault of the program: where in its source it ended is of no use. */
    smoe_note("%.*s", where ? (int)(where - report) : (int)strlen(report), report);
  } else if (status != SMOE_OK && group->rank == 0) {
    const bool ranked = strncmp(report, "on rank ", 8) == 0;
    fprintf(stderr, "stablemoe: error (%s)%s %s\n", smoe_status_name(status), ranked ? "" : ":", report);
  }
}

int main(int argc, char **argv) {
  smoe_group group;
  smoe_group_start(&group, &argc, &argv);
  const smoe_status status = run(&group, argc, argv);
  print_end(&group, status);
  smoe_group_end(&group);
  return (int)status;
}
