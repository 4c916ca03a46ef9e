/** Tasks: what a batch is, where it comes from, and what is learned of it.
 *
 *  A task owns the corpus. The trainer asks it for the largest shape, for each micro-batch of an update, and for
 *  those of a split to evaluate; all of them follow from configuration, seed and update, never from the number of
 *  ranks. The family of the model decides which task it has.
 *
 *  Adding a task: write src/task/<name>.c and add its table to the array in src/task/task.c.
 */
#ifndef STABLEMOE_TASK_H
#define STABLEMOE_TASK_H

#include "stablemoe/corpus.h"
#include "stablemoe/images.h"
#include "stablemoe/model.h"
#include "stablemoe/pair_sampler.h"

typedef struct smoe_task smoe_task;

/** A task. All functions are Local but open. */
typedef struct smoe_task_ops {
  const char *name; /**< as in smoe_family.task */

  /** Open the corpus. Collective over the group. */
  smoe_status (*open)(smoe_task *task, const char *path);
  void (*close)(smoe_task *task);

  /** Compare the corpus with its fingerprint. Collective. */
  smoe_status (*check)(const smoe_task *task);

  /** Set the largest shape of a micro-batch, vocabulary and objective. for_training: also check that there is
   *  enough data to train on. */
  smoe_status (*shape)(smoe_task *task, smoe_model_shape *shape, bool for_training);

  /** Targets of an update over all ranks; and rows of the main stream without padding. */
  int64_t (*n_targets)(smoe_task *task, int64_t update);

  /** Passes over the training split that so many updates mean. */
  double (*passes)(smoe_task *task, int64_t updates);

  /** Units of the data's order that an update reads: sequences or micro-batches. */
  int64_t (*n_units)(const smoe_task *task);

  /** Read one micro-batch of a zero-based update: shapes, tokens, lengths, targets. The arrays are the task's, and
   *  valid until the next call. */
  void (*read)(smoe_task *task, const smoe_model *model, int64_t update, int64_t micro_batch,
               smoe_batch *batch);

  /** Micro-batches of a split's first `limit` sequences (0: all); then micro-batch `number` of them. */
  smoe_status (*open_split)(smoe_task *task, const smoe_model *model, smoe_split split, int64_t limit,
                            int64_t *n);
  void (*read_split)(smoe_task *task, const smoe_model *model, int64_t number, smoe_batch *batch);

  /** How often each token occurs in the training split's rows of a stream: [V]. */
  smoe_status (*counts)(const smoe_task *task, int stream, int64_t *count);
} smoe_task_ops;

struct smoe_task {
  const smoe_task_ops *ops;
  const smoe_config *config;
  const smoe_settings *settings;
  const smoe_group *group;
  int vocabulary;
  uint64_t fingerprint, tokenizer; /**< of the corpus */
  char absolute[4096];             /**< its path */
  int64_t data_offset; /**< units read before update 0, where a run was resumed with other batches */

  smoe_corpus
      corpus; /**< language; of translation the vocabulary and the tokenizer alone, which are those of pairs */
  int64_t n_sequences; /**< of the training split */

  smoe_pairs pairs;               /**< translation */
  smoe_pair_sampler train, split; /**< batches of training, and of the split that is evaluated */
  int copies;                     /**< of each sequence in a training pass */
  smoe_objective each, objective; /**< of a copy; of both together */

  smoe_images images; /**< images */
  smoe_real *patch;   /**< [N, patch] of the batch */

  int64_t split_sequences; /**< of an evaluation */
  smoe_split split_kind;
  int32_t *token[SMOE_STREAMS], *target, *length[SMOE_STREAMS]; /**< of the batch */
};

/** Set up the task of a configuration, and open its corpus.
 *
 *  Collective over group. path: of the corpus.
 *  Errors:  agreed; SMOE_ERR_IO, SMOE_ERR_FORMAT, and SMOE_ERR_CONFIG where the corpus is another task's.
 */
smoe_status smoe_task_open(smoe_task *task, const smoe_config *config, const smoe_group *group,
                           const char *path);

/** A language-modelling task on a made-up corpus, for measurements. Local. */
void smoe_task_synthetic(smoe_task *task, const smoe_config *config, const smoe_group *group, int vocabulary);

/** Close it; accepts a zeroed one. Local. */
void smoe_task_close(smoe_task *task);

/** Whether sequences all have model.context tokens: what routing records of tokens and probes need. Local. */
bool smoe_task_is_language(const smoe_task *task);

/** Read a micro-batch of given pairs of a split: shapes, tokens, lengths, targets; translation. Local.
 *
 *  pairs  in  its rows fit into the largest shape of the model. The arrays are the task's (smoe_task_take), and valid
 *             until the next call
 */
void smoe_task_read_pairs(smoe_task *task, const smoe_model *model, smoe_split split,
                          const smoe_pair_batch *pairs, int copies, smoe_batch *batch);

/** Whether it is the classification of images. Local. */
bool smoe_task_is_images(const smoe_task *task);

/** Note the corpus's path, for reports and checkpoints. Local. */
void smoe_task_path(smoe_task *task, const char *path);

/** Whether a split has anything to predict. Local. */
bool smoe_task_has_split(const smoe_task *task, smoe_split split);

/** The corpus that holds the task's tokenizer. Local. */
const smoe_corpus *smoe_task_tokenizer(const smoe_task *task);

/** Keep what is learned: `each` of every copy of a sequence, and where there are two (smoe_family_copies) how far
 *  apart they are. Local.
 */
void smoe_task_objective(smoe_task *task, smoe_objective each);

/** The batch that has each sequence of rows `context` long copied in its place, from one that begins with the
 *  first of n sequences. Local.
 */
void smoe_task_copy(const smoe_task *task, int32_t *rows, size_t n, size_t context);

/** Take the arrays of the largest batch, once. Local. */
void smoe_task_take(smoe_task *task, const smoe_model *model);

#endif
