/** Checkpoints: one HDF5 file of global shapes, with no rank count in it.
 *
 *  Layout (doc/file-formats.md):
 *    /param/<name>            values; EXPERT parameters are [E, shape...] by global expert number
 *    /adam/m/<name>, /adam/v/<name>
 *    /checksum/<param|adam_m|adam_v>/<name>   uint64: one number, or one per expert
 *    /meta                    attributes, and the dataset `configuration` (YAML text)
 *
 *  Saving: every rank writes its own parts by independent transfers into
 *  <name>.part; all agree; the file is closed, opened with the serial driver
 *  and every rank compares what it wrote; only then rank 0 seals it, flushes it to disk,
 *  renames it, and replaces `latest`.
 */
#ifndef STABLEMOE_CHECKPOINT_H
#define STABLEMOE_CHECKPOINT_H

#include "stablemoe/params.h"

enum { SMOE_CHECKPOINT_FORMAT = 1 };

/** What the best evaluation of a run is judged by. */
typedef enum smoe_best_metric { SMOE_BEST_NONE, SMOE_BEST_LOSS, SMOE_BEST_BLEU } smoe_best_metric;

/** The best evaluation of a run so far. */
typedef struct smoe_best {
  int metric;      /**< smoe_best_metric; SMOE_BEST_NONE: the run does not look for it */
  int64_t update;  /**< of the best evaluation; 0: none has counted yet */
  int64_t n_since; /**< evaluations after it */
  double value;
} smoe_best;

/** What a checkpoint says beside the parameters. */
typedef struct smoe_checkpoint_meta {
  int64_t update; /**< updates done */
  int stage;      /**< 1 or 2 */
  uint64_t seed;
  int64_t n_tokens_seen;    /**< training tokens so far */
  int64_t n_sequences_seen; /**< position in the order of the data; -1 in files that do not store it */
  uint64_t fingerprint;     /**< of the corpus */
  uint64_t tokenizer;       /**< hash of the corpus's tokenizer; 0 where unknown */
  int64_t n_averaged;       /**< checkpoints that this one is the mean of; 0: it is of one update */
  smoe_best best;           /**< metric SMOE_BEST_NONE where the run does not look for it */
  char corpus[1024];        /**< path of the corpus, as given */
  char absolute[4096];      /**< the same from the root; "" where unknown */
  char *configuration;      /**< YAML text, in memory of smoe_alloc */
} smoe_checkpoint_meta;

/** Set the text about libraries and caches that checkpoints of this process carry (smoe_products_facts): what bits
 *  depend on beside the configuration.  Collective: rank 0's text counts, and must be shorter than 256 bytes.
 */
void smoe_checkpoint_set_products(const smoe_group *group, const char *text);

/** Save a checkpoint as <directory>/step-<update, 9 digits>.h5 and point <directory>/latest to it, where
 *  the file system has symbolic links.
 *
 *  Collective over params->group.
 *  Errors:  agreed on all ranks; SMOE_ERR_IO (disk full, ...) leaves earlier
 *           checkpoints and `latest` as they were, and removes the part file.
 */
smoe_status smoe_checkpoint_save(const char *directory, const smoe_params *params,
                                 const smoe_checkpoint_meta *meta);

/** Delete all but the newest keep_last checkpoints, those whose update is a multiple of
 *  keep_every (0: none for good; keep_last 0: keep all), and that of update `best` (0: none). Collective; rank 0
 *  deletes.
 */
smoe_status smoe_checkpoint_prune(const char *directory, const smoe_group *group, int64_t keep_last,
                                  int64_t keep_every, int64_t best);

/** Point <directory>/best to the checkpoint of an update, where the file system has symbolic links; remove it where
 *  there is no such checkpoint. Local (rank 0).
 */
void smoe_checkpoint_point_best(const char *directory, int64_t update);

/** Find the best checkpoint of a run: that which its newest one names.
 *
 *  Collective over group: rank 0 reads.
 *  run    in   run directory
 *  path   out  in memory of smoe_alloc, on every rank; NULL on error
 *  Errors:  agreed; SMOE_ERR_CONFIG where the run did not look for it, or its file is gone.
 */
smoe_status smoe_checkpoint_find_best(const char *run, const smoe_group *group, char **path);

/** Check the seal of a checkpoint and read what it says of itself. Collective: rank 0 reads. Errors: agreed. */
smoe_status smoe_checkpoint_read_meta(const char *path, const smoe_group *group, smoe_checkpoint_meta *meta);

/** Load parameters (and moments, where params was laid out for training).
 *
 *  Collective over params->group; any number of ranks. Comes after smoe_checkpoint_read_meta, which
 *  checks the seal of the file: this one looks at names, shapes, types and values alone.
 *  Errors:  agreed; SMOE_ERR_FORMAT names the first missing or extra name, wrong
 *           shape or type, or failed checksum ("moe0/expert/ffn0/w1 of expert 3").
 */
smoe_status smoe_checkpoint_load(const char *path, smoe_params *params);

/** A parameter of a checkpoint file. */
typedef struct smoe_checkpoint_content {
  char name[SMOE_NAME_MAX];
  bool expert; /**< shape[0] is E */
  int n_dims;
  int64_t shape[SMOE_DIMS_MAX + 1];
} smoe_checkpoint_content;

/** List the parameters of a checkpoint, whatever model it is of.
 *
 *  Collective: rank 0 reads.
 *  content  out  [n] in memory of smoe_alloc, on every rank
 *  Errors:  agreed; SMOE_ERR_IO, SMOE_ERR_FORMAT.
 */
smoe_status smoe_checkpoint_describe(const char *path, const smoe_group *group,
                                     smoe_checkpoint_content **content, int64_t *n);

/** Load the values of some parameters by name; the others and all moments stay as they are.
 *
 *  Collective over params->group; any number of ranks. Comes after smoe_checkpoint_read_meta, as
 *  smoe_checkpoint_load does.
 *  take  in  [n_params] which; the same on all ranks
 *  Errors:  agreed; SMOE_ERR_FORMAT where one is missing, of another shape, or damaged.
 */
smoe_status smoe_checkpoint_load_some(const char *path, smoe_params *params, const bool *take);

/** Read all values of one parameter, experts one after another, and compare them with their checksums.
 *
 *  Local.
 *  values  out  as many as smoe_checkpoint_describe says
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT.
 */
smoe_status smoe_checkpoint_read_values(const char *path, const char *name, smoe_real *values);

/** Read the values of one replicated matrix of a checkpoint, whatever model it is of.
 *
 *  Collective over group: rank 0 reads.
 *  name    in   as in the parameter table: "embedding/table"
 *  rows, columns  out  its shape
 *  values  out  [rows, columns] in memory of smoe_alloc, on every rank
 *
 *  Errors:  agreed; SMOE_ERR_FORMAT where there is no such matrix, or its checksum is wrong.
 */
smoe_status smoe_checkpoint_read_matrix(const char *path, const smoe_group *group, const char *name,
                                        int64_t *rows, int64_t *columns, smoe_real **values);

/** Write the mean of the parameters of several checkpoints of one model as a checkpoint without moments.
 *
 *  Local (serial).
 *  paths   in  [n] in order of their updates; the last one's meta data and configuration are taken
 *  output  in  the file to write; one that is there is replaced when the new one is complete
 *
 *  Order:   each value is the sum over the files in the order of paths, in double, divided by n and rounded once;
 *           values that are the same in all files stay as they are.
 *  Errors:  SMOE_ERR_CONFIG where the files differ in names of parameters; SMOE_ERR_FORMAT where they differ in
 *           shapes, or a checksum is wrong; SMOE_ERR_IO. No file is left then.
 */
smoe_status smoe_checkpoint_average(const char *const *paths, size_t n, const char *output);

/** The checkpoint that a path means, in memory of smoe_alloc: itself; of a run directory the one that `latest` points
 *  to; the newest one where a link `latest` is missing or points nowhere. Local.
 */
char *smoe_checkpoint_resolve(const char *path);

/** Paths of the checkpoints of a directory, newest first; NULL-terminated, in memory of smoe_alloc
 *  (the list and each path). Local. An empty list where there is none.
 */
char **smoe_checkpoint_list(const char *directory);

/** Print a checkpoint's meta data, parameters and sizes. Local (serial). */
smoe_status smoe_checkpoint_print(const char *path);

/** Check every dataset of a file against its checksum, and print what is damaged. Local (serial).
 *  Errors:  SMOE_ERR_FORMAT where anything is.
 */
smoe_status smoe_checkpoint_verify(const char *path);

#endif
