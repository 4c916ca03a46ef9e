/* The mean of several checkpoints of a run. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "open_model.h"
#include "stablemoe/log.h"

typedef struct options {
  int64_t last;
  const char *output;
} options;

static const smoe_option OPTIONS[] = {
    {'k', "last", SMOE_OPTION_INT, offsetof(options, last), "N",
     "of a run directory: its newest N checkpoints (default: all that have the newest one's stage)", 1,
     1000000},
    {'o', "output", SMOE_OPTION_OUTPUT, offsetof(options, output), "FILE",
     "checkpoint to write (default: average.h5 in the run directory)"},
};

static const options DEFAULTS = {0};

typedef struct input {
  char *path;
  smoe_checkpoint_meta meta;
} input;

static int by_update(const void *a, const void *b) {
  const int64_t x = ((const input *)a)->meta.update, y = ((const input *)b)->meta.update;
  return (x > y) - (x < y);
}

/* ---- which checkpoints ---- */

static void add(input **in, size_t *n, const char *path) {
  *in = smoe_realloc(*in, (*n + 1) * sizeof **in);
  (*in)[(*n)++] = (input){.path = smoe_strdup(path)};
}

static smoe_status read_metas(input *in, size_t n) {
  const smoe_group alone = {.comm = MPI_COMM_SELF, .rank = 0, .n_ranks = 1};
  for (size_t i = 0; i < n; i++) SMOE_TRY(smoe_checkpoint_read_meta(in[i].path, &alone, &in[i].meta));
  return SMOE_OK;
}

static void drop(input *in, size_t from, size_t *n) {
  for (size_t i = from; i < *n; i++) {
    smoe_free(in[i].path);
    smoe_free(in[i].meta.configuration);
  }
  *n = from;
}

/* The newest k of a run's checkpoints; k 0: as many as have the stage of the newest. Newest first. */
static smoe_status of_run(input **in, size_t *n, const char *run, int64_t k) {
  char *directory = smoe_sprintf("%s/checkpoints", run);
  char **list = smoe_checkpoint_list(directory);
  size_t found = 0;
  while (list[found]) found++;
  for (size_t i = 0; i < found && (k == 0 || i < (size_t)k); i++) add(in, n, list[i]);
  for (size_t i = 0; i < found; i++) smoe_free(list[i]);
  smoe_free(list);
  smoe_free(directory);
  SMOE_CHECK(found > 0, SMOE_ERR_IO, "there is no checkpoint in '%s/checkpoints'", run);
  SMOE_CHECK(found >= (size_t)k, SMOE_ERR_CONFIG,
             "'%s' has %zu checkpoints, --last asks for %lld; train.keep_last is how many a run keeps, "
             "train.checkpoint_every how often it saves one",
             run, found, (long long)k);
  SMOE_TRY(read_metas(*in, *n));
  if (k > 0) return SMOE_OK;
  for (size_t i = 1; i < *n; i++)
    if ((*in)[i].meta.stage != (*in)[0].meta.stage) drop(*in, i, n);
  return SMOE_OK;
}

static bool is_directory(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static smoe_status find_inputs(input **in, size_t *n, const options *o, const smoe_arguments *arguments) {
  if (arguments->n == 1 && is_directory(arguments->word[0]))
    return of_run(in, n, arguments->word[0], o->last);
  SMOE_CHECK(o->last == 0, SMOE_ERR_CONFIG,
             "--last chooses among the checkpoints of a run directory; here they are named one by one");
  SMOE_CHECK(o->output, SMOE_ERR_CONFIG, "--output is missing: the checkpoint to write");
  for (int i = 0; i < arguments->n; i++) {
    SMOE_CHECK(!is_directory(arguments->word[i]), SMOE_ERR_CONFIG,
               "'%s' is a directory: give one run directory, or checkpoints", arguments->word[i]);
    char path[4096];
    smoe_app_checkpoint_path(path, sizeof path, arguments->word[i]);
    add(in, n, path);
  }
  return read_metas(*in, *n);
}

/* ---- whether they belong together ---- */

/* The routing that stage 2 froze is one that no mean may change. */
static smoe_status check_stage(const input *in, size_t n) {
  const input *newest = &in[n - 1];
  size_t same = 0;
  while (same < n && in[n - 1 - same].meta.stage == newest->meta.stage) same++;
  SMOE_CHECK(
      same == n, SMOE_ERR_CONFIG,
      "'%s' is of stage %d, '%s' of stage %d, whose routing is frozen: only checkpoints of one stage can "
      "be averaged, here the newest %zu",
      in[n - 1 - same].path, in[n - 1 - same].meta.stage, newest->path, newest->meta.stage, same);
  return SMOE_OK;
}

static smoe_status check_run(const input *in, const input *newest) {
  const smoe_checkpoint_meta *a = &in->meta, *b = &newest->meta;
  SMOE_CHECK(a->n_averaged == 0, SMOE_ERR_CONFIG,
             "'%s' is a mean of %lld checkpoints itself; average those of a run", in->path,
             (long long)a->n_averaged);
  const char *differs = a->seed != b->seed                 ? "run.seed"
                        : a->fingerprint != b->fingerprint ? "corpus"
                        : a->tokenizer != b->tokenizer     ? "tokenizer"
                                                           : NULL;
  SMOE_CHECK(!differs, SMOE_ERR_CONFIG, "'%s' and '%s' are not of one run: %s differs", in->path,
             newest->path, differs);
  return SMOE_OK;
}

/* A resumed run may have changed a key; where it is one of the model the mean may be of no use. */
static void print_changes(const smoe_config *config, const input *in, const input *newest) {
  char *changes = NULL;
  if (smoe_config_changes(config, in->meta.configuration, in->path, &changes) != SMOE_OK) {
    smoe_warn("the configuration in '%s' is of another version: %s", in->path, smoe_last_error());
    return;
  }
  for (char *line = changes; line && *line;) {
    char *end = strchr(line, '\n');
    *end = '\0';
    if (strncmp(line, "model.", 6) == 0 || strncmp(line, "moe.", 4) == 0 ||
        strncmp(line, "router.method", 13) == 0)
      smoe_warn("'%s' differs from '%s': %s", newest->path, in->path, line);
    line = end + 1;
  }
  smoe_free(changes);
}

static smoe_status check_together(const input *in, size_t n) {
  SMOE_TRY(check_stage(in, n));
  for (size_t i = 0; i < n; i++) SMOE_TRY(check_run(&in[i], &in[n - 1]));
  for (size_t i = 0; i + 1 < n; i++)
    SMOE_CHECK(in[i].meta.update != in[i + 1].meta.update, SMOE_ERR_CONFIG,
               "'%s' and '%s' are of the same update, %lld", in[i].path, in[i + 1].path,
               (long long)in[i].meta.update);
  smoe_config *config = smoe_app_config();
  smoe_status status = smoe_config_parse(config, in[n - 1].meta.configuration, in[n - 1].path);
  if (status == SMOE_OK) status = smoe_config_resolve(config);
  for (size_t i = 0; i + 1 < n && status == SMOE_OK; i++) print_changes(config, &in[i], &in[n - 1]);
  smoe_config_destroy(config);
  return status;
}

static smoe_status average(const input *in, size_t n, const char *output) {
  const char **path = smoe_alloc(n * sizeof *path);
  for (size_t i = 0; i < n; i++) path[i] = in[i].path;
  const smoe_status status = smoe_checkpoint_average(path, n, output);
  if (status == SMOE_OK)
    smoe_note("'%s': the mean of %zu checkpoints, of updates %lld to %lld", output, n,
              (long long)in[0].meta.update, (long long)in[n - 1].meta.update);
  smoe_free(path);
  return status;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  (void)group;
  const options *o = values;
  input *in = NULL;
  size_t n = 0;
  smoe_status status = find_inputs(&in, &n, o, arguments);
  if (status == SMOE_OK) {
    qsort(in, n, sizeof *in, by_update);
    status = check_together(in, n);
  }
  char *output = o->output ? smoe_strdup(o->output) : smoe_sprintf("%s/average.h5", arguments->word[0]);
  if (status == SMOE_OK) status = average(in, n, output);
  smoe_free(output);
  drop(in, 0, &n);
  smoe_free(in);
  return status;
}

const smoe_command smoe_command_average = {
    .name = "average",
    .arguments = "RUN|CHECKPOINT...",
    .title = "the mean of a run's last checkpoints, as a checkpoint",
    .text = "Write a checkpoint whose parameters are the means of those of several checkpoints of one run: "
            "summed in "
            "double in the order of their updates, divided by their number, rounded once. It has no moments: "
            "evaluate, translate, generate, route and export read it, a resume does not. It mostly predicts "
            "a little better than the "
            "last checkpoint does.",
    .example = "stablemoe average runs/translation-stable -k 10",
    .serial = true,
    .usage = "one run directory, or checkpoints",
    .min_args = 1,
    .max_args = -1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .run = run,
};
