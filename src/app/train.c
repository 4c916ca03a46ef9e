#include "stablemoe/train.h"

#include <string.h>
#include <sys/stat.h>

#include "app.h"
#include "stablemoe/arena.h"
#include "stablemoe/bf16.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/family.h"
#include "stablemoe/log.h"
#include "stablemoe/products.h"
#include "stablemoe/rank_plan.h"
#include "stablemoe/router.h"

typedef struct options {
  smoe_train_options train;
  smoe_words set;
  int64_t ranks, per_node, node_gib, vocabulary; /* of a plan; 0: not given */
  bool json;
} options;

static const smoe_option OPTIONS[] = {
    {'P', "set", SMOE_OPTION_KEYS, offsetof(options, set), "KEY=VALUE",
     "set one configuration key, over its value in CONFIG; may be repeated"},
    {0, "resume", SMOE_OPTION_FLAG, offsetof(options, train.resume), NULL,
     "continue from the newest valid checkpoint of run.directory; it is an error if there is none"},
    {0, "start-or-resume", SMOE_OPTION_FLAG, offsetof(options, train.start), NULL,
     "resume, or start a new run if run.directory has no checkpoint: for batch jobs"},
    {0, "overwrite", SMOE_OPTION_FLAG, offsetof(options, train.overwrite), NULL,
     "replace an existing run in run.directory"},
    {0, "dry-run", SMOE_OPTION_FLAG, offsetof(options, train.dry_run), NULL,
     "check configuration, corpus and memory, print the plan, and stop"},
    {0, "ranks", SMOE_OPTION_INT, offsetof(options, ranks), "N",
     "with --dry-run, in one process: plan for N ranks that are not there, and print memory per rank and "
     "node, "
     "and what an update sends within and between nodes",
     1, 1 << 20},
    {0, "per-node", SMOE_OPTION_INT, offsetof(options, per_node), "N",
     "with --ranks: ranks on a node (default: all on one)", 1, 1 << 20},
    {0, "node-gib", SMOE_OPTION_INT, offsetof(options, node_gib), "N",
     "with --ranks: memory of a node in GiB; where the plan does not fit, name what would, and end with an "
     "error",
     1, 1 << 20},
    {'v', "vocab", SMOE_OPTION_INT, offsetof(options, vocabulary), "N",
     "with --ranks: vocabulary of a language model whose data.corpus is not there yet", 2, 1 << 24},
    {0, "json", SMOE_OPTION_FLAG, offsetof(options, json), NULL,
     "with --ranks: one JSON object instead of a table"},
    {0, "trace", SMOE_OPTION_OUTPUT, offsetof(options, train.trace), "FILE",
     "also write FILE.<rank>, for Perfetto or Chrome's trace viewer"},
};

static void more_help(FILE *out) {
  fputs("Routing methods (router.method):\n", out);
  for (size_t i = 0; smoe_router_methods[i]; i++)
    fprintf(out, "  %-13s %s\n", smoe_router_methods[i]->name, smoe_router_methods[i]->title);
  fputs("\nConfiguration keys, with their defaults:\n\n", out);
  smoe_config *config = smoe_app_config();
  smoe_config_help(config, out);
  smoe_config_destroy(config);
}

static smoe_status check(const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  SMOE_CHECK(!(o->train.resume || o->train.start) || !o->train.overwrite, SMOE_ERR_CONFIG,
             "train: --%s and --overwrite exclude each other", o->train.start ? "start-or-resume" : "resume");
  SMOE_CHECK(!o->ranks || o->train.dry_run, SMOE_ERR_CONFIG,
             "train: --ranks plans for ranks that are not there: give --dry-run with it (mpirun -n N starts "
             "N ranks)");
  SMOE_CHECK(
      o->ranks || !(o->per_node || o->node_gib || o->vocabulary || o->json), SMOE_ERR_CONFIG,
      "train: --per-node, --node-gib, --vocab and --json are for a plan: give --dry-run --ranks N with them");
  return SMOE_OK;
}

/* A batch system may ask for the end while ranks still look for each other. What only looks ends as usual. */
static void hold_signals(int argc, char **argv) {
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "--dry-run") == 0 || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
      return;
  smoe_train_hold_signals();
}

static bool is_same_file(const char *a, const char *b) {
  struct stat one, other;
  return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev &&
         one.st_ino == other.st_ino;
}

/* used.yml belongs to the directory it is in: that of a copied or moved run still names the original. */
static smoe_status keep_directory(smoe_config *config, const char *path, const smoe_words *set) {
  const char *slash = strrchr(path, '/'), *stored = smoe_config_settings(config)->run.directory;
  if (strcmp(slash ? slash + 1 : path, "used.yml") != 0) return SMOE_OK;
  for (size_t i = 0; i < set->n; i++)
    if (strncmp(set->word[i], "run.directory=", 14) == 0) return SMOE_OK;
  char *own = slash ? smoe_sprintf("%.*s", slash == path ? 1 : (int)(slash - path), path) : smoe_strdup(".");
  smoe_status status = SMOE_OK;
  if (!is_same_file(own, stored)) {
    smoe_note("run.directory is '%s', where this used.yml is (it names '%s')", own, stored);
    char *assignment = smoe_sprintf("run.directory=%s", own);
    status = smoe_config_override(config, assignment);
    smoe_free(assignment);
  }
  smoe_free(own);
  return status;
}

static smoe_status configure(smoe_config *config, const char *path, const options *o) {
  const smoe_words *set = &o->set;
  SMOE_TRY(smoe_config_load(config, path));
  SMOE_TRY(keep_directory(config, path, set));
  SMOE_TRY(smoe_app_config_override(config, set));
  SMOE_CHECK(o->vocabulary || smoe_config_settings(config)->data.corpus[0], SMOE_ERR_CONFIG,
             "data.corpus is not set: make one with `stablemoe prepare TEXT... -o corpus.h5`, and give it by "
             "-P data.corpus=corpus.h5 or in '%s'",
             path);
  return smoe_app_config_finish(config);
}

/* Of the rank whose core is used least: nobody should train at half speed without being told. */
static void compare_with_core(const smoe_group *group) {
  smoe_products_rate own;
  smoe_products_measure(&own);
  double *gemm = smoe_alloc((size_t)group->n_ranks * 2 * sizeof *gemm), *peak = gemm + group->n_ranks;
  int *one = smoe_alloc((size_t)group->n_ranks * sizeof *one), least = 0;
  for (int r = 0; r < group->n_ranks; r++) one[r] = 1;
  smoe_group_gather_f64(group, gemm, &own.gemm, one);
  smoe_group_gather_f64(group, peak, &own.peak, one);
  for (int r = 0; r < group->n_ranks; r++)
    if (gemm[r] / peak[r] < gemm[least] / peak[least]) least = r;
  const smoe_products_rate worst = {.gemm = gemm[least], .peak = peak[least]};
  if (smoe_products_slow(&worst))
    smoe_warn("GEMM makes %.1f GFLOP/s on the core of rank %d, %.2f of the peak of %.1f measured there: %s",
              1e-9 * worst.gemm, least, worst.gemm / worst.peak, 1e-9 * worst.peak, smoe_products_advice());
  else
    smoe_note("GEMM makes %.1f GFLOP/s on a core, %.2f of its peak of %.1f (%s)", 1e-9 * worst.gemm,
              worst.gemm / worst.peak, 1e-9 * worst.peak, own.isa);
  smoe_free(one);
  smoe_free(gemm);
}

/* What makes the products, and what the bits depend on, in memory of smoe_alloc. */
static char *products_of(const smoe_config *config) {
  if (smoe_config_settings(config)->train.precision != SMOE_BF16) return smoe_strdup(smoe_products_facts());
  if (!smoe_bf16_pays())
    smoe_warn("train.precision=bf16 is not faster than fp32 here: its products are made by %s",
              smoe_bf16_name());
  return smoe_sprintf("%s; products of bf16 by %s", smoe_products_facts(), smoe_bf16_name());
}

/* What a run on ranks that are not there would take. */
static smoe_status plan(const smoe_group *group, const smoe_config *config, const options *o) {
  const int n_ranks = (int)o->ranks,
            per_node = o->per_node && o->per_node < o->ranks ? (int)o->per_node : n_ranks;
  const double node_bytes = (double)o->node_gib * (1 << 30);
  smoe_task task;
  smoe_plan made;
  SMOE_CHECK(group->n_ranks == 1, SMOE_ERR_CONFIG,
             "train: --ranks plans in one process: start it without mpirun");
  SMOE_CHECK(!o->vocabulary || strcmp(smoe_family_of(config)->task, "language") == 0, SMOE_ERR_CONFIG,
             "train: --vocab is for language models; model.family %s needs its corpus for a plan",
             smoe_config_settings(config)->model.family);
  if (o->vocabulary)
    smoe_task_synthetic(&task, config, group, (int)o->vocabulary);
  else
    SMOE_TRY(smoe_task_open(&task, config, group, smoe_config_settings(config)->data.corpus));
  smoe_status status = smoe_plan_make(&made, config, &task, n_ranks, per_node);
  if (status == SMOE_OK) smoe_plan_print(&made, node_bytes, o->json, stdout);
  if (status == SMOE_OK && node_bytes > 0 && made.node_expected > node_bytes) {
    char *advice = smoe_plan_advice(config, &task, &made, node_bytes);
    status = SMOE_FAIL(SMOE_ERR_MEMORY, "a node needs %.2f GiB and has %.2f: %s%s",
                       made.node_expected / (1 << 30), node_bytes / (1 << 30),
                       advice[0] ? "it would fit with "
                                 : "no one key helps: take a smaller "
                                   "train.batch_sequences, fewer lanes or a smaller model",
                       advice);
    smoe_free(advice);
  }
  smoe_task_close(&task);
  return status;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  smoe_config *config = smoe_app_config();
  smoe_status status = smoe_group_agree(group, configure(config, arguments->word[0], o));
  if (status == SMOE_OK) status = smoe_app_config_compare(group, config);
  if (status == SMOE_OK && o->ranks) status = plan(group, config, o);
  if (status == SMOE_OK && !o->ranks) {
    char *facts = products_of(config);
    smoe_note("%d rank%s, " SMOE_REAL_NAME ", GEMM by %s", group->n_ranks, group->n_ranks == 1 ? "" : "s",
              facts);
    smoe_checkpoint_set_products(group, facts);
    smoe_free(facts);
    compare_with_core(group);
    smoe_train_options train = o->train;
    train.resume |= train.start;
    status = smoe_train(config, group, &train);
  }
  smoe_config_destroy(config);
  return status;
}

const smoe_command smoe_command_train = {
    .name = "train",
    .arguments = "CONFIG",
    .title = "train a model",
    .text = "Train a model as CONFIG (YAML) says, on any number of ranks up to train.lanes.",
    .after =
        "SIGTERM, SIGUSR1 and run.max_minutes end the run after the update in progress, with a checkpoint "
        "and exit code 75: continue with --resume. So do Ctrl-C and a file named `stop` in "
        "run.directory, with exit code 76; batch scripts do not requeue.",
    .example = "mpirun -n 4 stablemoe train configs/stable.yml -P data.corpus=corpus.h5 -P "
               "run.directory=runs/stable",
    .usage = "one CONFIG",
    .missing = "CONFIG is missing",
    .min_args = 1,
    .max_args = 1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .more_help = more_help,
    .check = check,
    .early = hold_signals,
    .run = run,
};
