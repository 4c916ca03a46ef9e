#include "stablemoe/bench.h"

#include <stdio.h>
#include <string.h>

#include "app.h"
#include "stablemoe/family.h"
#include "stablemoe/log.h"
#include "stablemoe/products.h"

typedef struct options {
  smoe_words set;
  int64_t updates, warmup, vocabulary;
  const char *trace, *save;
  bool json;
} options;

static const options DEFAULTS = {.updates = 10, .warmup = 2, .vocabulary = 8192};

static const smoe_option OPTIONS[] = {
    {'P', "set", SMOE_OPTION_KEYS, offsetof(options, set), "KEY=VALUE",
     "set one configuration key; may be repeated"},
    {'n', "updates", SMOE_OPTION_INT, offsetof(options, updates), "N", "timed updates per stage (default 10)",
     1, 100000},
    {'w', "warmup", SMOE_OPTION_INT, offsetof(options, warmup), "N", "updates before them (default 2)", 0,
     100000},
    {'v', "vocab", SMOE_OPTION_INT, offsetof(options, vocabulary), "N",
     "vocabulary of the random tokens (default 8192)", 2, 1 << 24},
    {0, "json", SMOE_OPTION_FLAG, offsetof(options, json), NULL, "one JSON object instead of a table"},
    {0, "trace", SMOE_OPTION_OUTPUT, offsetof(options, trace), "FILE",
     "also write FILE.<rank>, for Perfetto or Chrome's trace viewer"},
    {0, "save", SMOE_OPTION_FILE, offsetof(options, save), "DIRECTORY",
     "also measure what a checkpoint costs, by files there that are deleted again"},
};

static smoe_status configure(smoe_config *config, const char *path, const smoe_words *set) {
  SMOE_TRY(smoe_app_config_read(config, path, set));
  /* Far beyond the timed updates of stage 1: where the stages change is not what is measured. */
  SMOE_TRY(smoe_config_override(config, "router.stage1_updates=1000000"));
  return smoe_app_config_finish(config);
}

/* By a shape that suits the library: on the model's own ones GEMM may be slow because they are small. */
static void warn(void) {
  smoe_products_rate rate;
  smoe_products_measure(&rate);
  if (smoe_products_slow(&rate))
    smoe_warn("GEMM reaches %.2f of the core's peak: %s", rate.gemm / rate.peak, smoe_products_advice());
}

static smoe_status bench(const smoe_group *group, const options *o, const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const smoe_family *family = smoe_family_of(config);
  smoe_task task;
  SMOE_CHECK(settings->data.corpus[0] || strcmp(family->task, "language") == 0, SMOE_ERR_CONFIG,
             "bench: a model of model.family %s (task: %s) is measured on a corpus, made-up tokens are of "
             "language models alone: set data.corpus",
             family->name, family->task);
  if (settings->data.corpus[0])
    SMOE_TRY(smoe_task_open(&task, config, group, settings->data.corpus));
  else
    smoe_task_synthetic(&task, config, group, (int)o->vocabulary);
  smoe_bench result;
  const smoe_bench_options wanted = {
      .warmup = (int)o->warmup, .updates = (int)o->updates, .trace = o->trace, .save = o->save};
  const smoe_status status = smoe_bench_run(&result, config, group, &task, &wanted);
  if (status == SMOE_OK && group->rank == 0) {
    smoe_bench_print(&result, settings, group->n_ranks, o->json, stdout);
    warn();
  }
  smoe_bench_release(&result);
  smoe_task_close(&task);
  return status;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  smoe_config *config = smoe_app_config();
  smoe_status status = smoe_group_agree(group, configure(config, arguments->word[0], &o->set));
  if (status == SMOE_OK) status = smoe_app_config_compare(group, config);
  if (status == SMOE_OK) status = bench(group, o, config);
  smoe_config_destroy(config);
  return status;
}

const smoe_command smoe_command_bench = {
    .name = "bench",
    .arguments = "CONFIG",
    .title = "throughput, relative to the core's peak and the GEMM rate",
    .text = "Time updates of a configuration, in both stages where the routing method has two, and compare "
            "them with the machine's matrix product on the same shapes. Nothing is saved without --save. "
            "Where data.corpus "
            "is not set, tokens of language models are random with the frequencies of Zipf's law.",
    .example = "mpirun -n 2 stablemoe bench configs/stable.yml",
    .usage = "one CONFIG",
    .min_args = 1,
    .max_args = 1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .run = run,
};
