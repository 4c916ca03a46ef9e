#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "stablemoe/arena.h"
#include "stablemoe/family.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"
#include "stablemoe/products.h"
#include "stablemoe/router.h"
#include "text_stream.h"

int smoe_app_threads(int64_t wanted) {
  const char *environment = getenv("OMP_NUM_THREADS");
  if (wanted == 0) wanted = environment ? strtol(environment, NULL, 10) : 1;
  return wanted < 1 ? 1 : (int)wanted;
}

smoe_config *smoe_app_config(void) {
  const size_t n = smoe_model_keysets(NULL);
  const smoe_keyset **sets = smoe_alloc(n * sizeof *sets);
  smoe_model_keysets(sets);
  smoe_config *config = smoe_config_create(sets, n);
  smoe_free(sets);
  return config;
}

smoe_status smoe_app_config_read(smoe_config *config, const char *path, const smoe_words *set) {
  SMOE_TRY(smoe_config_load(config, path));
  return smoe_app_config_override(config, set);
}

smoe_status smoe_app_config_override(smoe_config *config, const smoe_words *set) {
  for (size_t i = 0; i < set->n; i++) SMOE_TRY(smoe_config_override(config, set->word[i]));
  return SMOE_OK;
}

smoe_status smoe_app_config_finish(smoe_config *config) {
  SMOE_TRY(smoe_config_resolve(config));
  SMOE_TRY(smoe_model_check(config));
  smoe_threads_set(smoe_app_threads(smoe_config_settings(config)->run.threads));
  return smoe_products_choose((smoe_products_kind)smoe_config_settings(config)->run.products);
}

smoe_status smoe_app_config_compare(const smoe_group *group, const smoe_config *config) {
  char *text = smoe_config_text(config, false), *changes = NULL;
  int64_t bytes = (int64_t)strlen(text) + 1;
  smoe_group_broadcast(group, &bytes, sizeof bytes, 0);
  text = smoe_realloc(text, (size_t)bytes);
  smoe_group_broadcast(group, text, (size_t)bytes, 0);
  smoe_status status = smoe_config_changes(config, text, "configuration of rank 0", &changes);
  if (status == SMOE_OK && changes[0])
    status =
        SMOE_FAIL(SMOE_ERR_CONFIG,
                  "this rank has another configuration than rank 0; do files or environment variables differ "
                  "between nodes? %.*s",
                  (int)strcspn(changes, "\n"), changes);
  smoe_free(changes);
  smoe_free(text);
  return smoe_group_agree(group, status);
}

/* The names of the subcommands, as a report says them: "prepare, train or info". */
static void list_commands(char *list, size_t n) {
  list[0] = '\0';
  for (size_t i = 0; smoe_commands[i]; i++) {
    const char *before = i == 0 ? "" : smoe_commands[i + 1] ? ", " : " or ";
    strncat(list, before, n - strlen(list) - 1);
    strncat(list, smoe_commands[i]->name, n - strlen(list) - 1);
  }
}

static smoe_status run_invocation(const smoe_group *group, const smoe_command *command,
                                  const smoe_invocation *invocation) {
  if (invocation->help) {
    if (group->rank == 0) smoe_command_help(command, stdout);
    return SMOE_OK;
  }
  /* Before hours of work, not after them. */
  SMOE_TRY(smoe_group_agree(group,
                            group->rank == 0 ? smoe_command_make_directories(command, invocation) : SMOE_OK));
  if (!command->serial && !command->bare)
    return command->run(group, invocation->values, &invocation->arguments);
  const smoe_status status =
      group->rank == 0 ? command->run(group, invocation->values, &invocation->arguments) : SMOE_OK;
  return smoe_group_agree(group, status);
}

static smoe_status run_command(const smoe_group *group, const smoe_command *command, int argc, char **argv) {
  smoe_invocation invocation;
  smoe_status status = smoe_group_agree(group, smoe_command_parse(command, argc, argv, &invocation));
  if (status == SMOE_OK) status = run_invocation(group, command, &invocation);
  smoe_invocation_release(command, &invocation);
  return status;
}

static bool is_option(const char *name) {
  return strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "--version") == 0;
}

static void print_about(const char *option) {
  if (strcmp(option, "--version") == 0)
    smoe_app_version(stdout);
  else
    smoe_commands_help(stdout);
}

static smoe_status run(const smoe_group *group, int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "--help";
  const smoe_command *command = smoe_command_find(name);
  if (command) return run_command(group, command, argc - 1, argv + 1);
  if (is_option(name)) {
    if (group->rank == 0) print_about(name);
    return SMOE_OK;
  }
  char list[512];
  list_commands(list, sizeof list);
  return SMOE_FAIL(SMOE_ERR_CONFIG, "unknown subcommand '%s': it is %s", name, list);
}

static void print_end(const smoe_group *group, smoe_status status) {
  /* Of a stop on request, which is no error, the run has told itself. */
  if (status == SMOE_OK || status == SMOE_STOPPED || status == SMOE_STOPPED_BY_HAND || group->rank != 0)
    return;
  const char *report = smoe_last_error();
  const bool ranked = strncmp(report, "on rank ", 8) == 0;
  smoe_log_error("error (%s)%s %s", smoe_status_name(status), ranked ? "" : ":", report);
}

/* The first of these variables that is there; -1: none is. */
static long first_number(const char *const *names) {
  for (; *names; names++)
    if (getenv(*names)) return strtol(getenv(*names), NULL, 10);
  return -1;
}

long smoe_app_launched(void) {
  /* Under mpirun a Slurm step counts its daemons, so that comes last. */
  static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", NULL};
  static const char *const ranks[] = {"PMIX_RANK", "PMI_RANK", NULL};
  static long n = -1;
  if (n >= 0) return n;
  n = first_number(sizes);
  if (n < 0) n = first_number(ranks) >= 0;
  return n;
}

static smoe_status run_bare_command(const smoe_command *command, int argc, char **argv) {
  smoe_invocation invocation;
  smoe_status status = smoe_command_parse(command, argc, argv, &invocation);
  if (status == SMOE_OK && invocation.help)
    smoe_command_help(command, stdout);
  else if (status == SMOE_OK)
    status = command->run(NULL, invocation.values, &invocation.arguments);
  smoe_invocation_release(command, &invocation);
  return status;
}

/* What only prints needs no MPI, which does not start on every machine that builds, or shows a page.
 * False: this is not such a thing.
 */
static bool run_bare(int argc, char **argv, smoe_status *status) {
  const char *name = argc > 1 ? argv[1] : "--help";
  const smoe_command *command = smoe_command_find(name);
  if (smoe_app_launched() || !(is_option(name) || (command && command->bare))) return false;
  *status = SMOE_OK;
  if (command)
    *status = run_bare_command(command, argc - 1, argv + 1);
  else
    print_about(name);
  return true;
}

int main(int argc, char **argv) {
  smoe_group group = {.n_ranks = 1};
  smoe_status status;
  const bool bare = run_bare(argc, argv, &status);
  if (!bare) {
    const smoe_command *command = argc > 1 ? smoe_command_find(argv[1]) : NULL;
    if (command && command->early) command->early(argc - 1, argv + 1);
    smoe_group_start(&group, &argc, &argv);
    status = run(&group, argc, argv);
  }
  /* Whatever a command prints, a full disk is an error. */
  if (status == SMOE_OK && bare) status = smoe_output_flush(stdout);
  if (status == SMOE_OK && !bare)
    status = smoe_group_agree(&group, group.rank == 0 ? smoe_output_flush(stdout) : SMOE_OK);
  print_end(&group, status);
  if (!bare) smoe_group_end(&group);
  return (int)status;
}
