/** A trained model, opened from its checkpoint for evaluation or generation. */
#ifndef STABLEMOE_OPEN_MODEL_H
#define STABLEMOE_OPEN_MODEL_H

#include "app.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/model.h"
#include "stablemoe/task.h"

/** How to open a model; all zero: as it was trained. */
typedef struct smoe_app_opening {
  const char *corpus; /**< corpus to use instead of the one it was trained on; NULL: that one */
  bool single;        /**< one sequence at a time (generation), and no capacity; else the training's batch */
  int precision;      /**< index into smoe_app_precisions */
  const smoe_words *set; /**< KEY=VALUE over what it was trained with (smoe_config_adjust); NULL: none */
} smoe_app_opening;

/** The option -P of a subcommand whose struct has smoe_words `set`. */
#define SMOE_APP_SET_OPTION(type)                                                                            \
  {                                                                                                          \
    'P', "set", SMOE_OPTION_KEYS, offsetof(type, set), "KEY=VALUE",                                          \
        "set one configuration key over its value in training, of those that change no parameter, such as "  \
        "router.thor.evaluation; may be repeated"                                                            \
  }

/** Values of the option --precision: "trained" (that of the training), "fp32", "bf16"; NULL-terminated. */
extern const char *const smoe_app_precisions[];

/** What help says of it. */
#define SMOE_APP_PRECISION_HELP                                                                              \
  "precision of what matrix products read (default trained: as train.precision was in training)"

typedef struct smoe_app_model {
  const smoe_group *group;
  char file[4096]; /**< the checkpoint */
  smoe_config *config;
  smoe_checkpoint_meta meta;
  smoe_task task;
  smoe_model *model;
} smoe_app_model;

/** The checkpoint that a path means: itself, or a run directory's latest one. Local. */
void smoe_app_checkpoint_path(char *out, size_t bytes, const char *path);

/** The option --best of a subcommand whose struct has a bool `best`. */
#define SMOE_BEST_OPTION(type)                                                                               \
  {                                                                                                          \
    0, "best", SMOE_OPTION_FLAG, offsetof(type, best), NULL,                                                 \
        "of a run directory: its best checkpoint instead of the latest (train.best, train.patience)"         \
  }

/** The checkpoint that a path means; with `best` it has to be a run directory, and the run's best one is meant.
 *
 *  Collective over group.
 *  Errors:  agreed; SMOE_ERR_CONFIG where there is no best one.
 */
smoe_status smoe_app_checkpoint_choose(char *out, size_t bytes, const smoe_group *group, const char *path,
                                       bool best);

/** Open a checkpoint of a language model with its configuration and corpus.
 *
 *  Collective over group.
 *
 *  path       in  a checkpoint, or a run directory: its latest one
 *  Errors:    agreed on all ranks.
 */
smoe_status smoe_app_model_open(smoe_app_model *out, const smoe_group *group, const char *path,
                                const smoe_app_opening *opening);

/** The first part of it, for any task: checkpoint, configuration and corpus. Collective. Errors: agreed. */
smoe_status smoe_app_task_open(smoe_app_model *out, const smoe_group *group, const char *path,
                               const smoe_app_opening *opening);

/** Refuse a model of images, for commands that read or write text. Local. Errors: SMOE_ERR_CONFIG. */
smoe_status smoe_app_refuse_images(const smoe_app_model *model);

/** The second: the model in a shape, in place of one that is there. Collective. Errors: agreed. */
smoe_status smoe_app_model_build(smoe_app_model *model, const smoe_model_shape *shape);

/** Path of the corpus that a checkpoint was trained on: absolute where that is there, else as it was given. Local. */
const char *smoe_app_corpus_path(const smoe_checkpoint_meta *meta);

/** Free what smoe_app_model_open took, also after it failed. Local. */
void smoe_app_model_close(smoe_app_model *model);

#endif
