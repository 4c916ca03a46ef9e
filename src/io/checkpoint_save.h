/** The parts of a save that those which wait for it and those in the background have in common. */
#ifndef STABLEMOE_IO_CHECKPOINT_SAVE_H
#define STABLEMOE_IO_CHECKPOINT_SAVE_H

#include "checkpoint_chunk.h"
#include "part_file.h"

/** What the chunks of a save have in common. */
typedef struct smoe_save_plan {
  const smoe_params *params;
  smoe_chunk *chunk; /**< [n_chunks] of this rank */
  size_t n_chunks;
  int n_sets;
  uint64_t *sums; /**< [n_sums] of the whole parameters, once they are summed over the ranks; 0 before */
  size_t n_sums;
  const smoe_checkpoint_meta *meta;
} smoe_save_plan;

/** List the chunks of this rank, with sums of 0. Local; smoe_save_plan_end gives it back. */
void smoe_save_plan_begin(smoe_save_plan *plan, const smoe_params *params, const smoe_checkpoint_meta *meta);
void smoe_save_plan_end(smoe_save_plan *plan);

/** Bytes of the file, about. Local. */
int64_t smoe_save_bytes(const smoe_save_plan *plan);

/** Make everything of a file but the values: smoe_part_create calls it on rank 0. plan: a smoe_save_plan. Local. */
smoe_status smoe_save_make(const smoe_part_file *part, const void *plan);

/** Read update and configuration of a file that is open back. Local. Errors: SMOE_ERR_IO where they are others. */
smoe_status smoe_save_compare_meta(const smoe_part_file *part, const smoe_save_plan *plan);

/** SMOE_ERR_IO where the fault site checkpoint.latest is to fail now on this rank. Local. */
smoe_status smoe_save_latest_fault(const smoe_part_file *part);

/** Point <directory>/latest to a file that has its name. Local (rank 0). */
void smoe_save_point_latest(const smoe_part_file *part, const char *directory);

/** smoe_checkpoint_prune, for one rank. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_save_prune(const char *directory, int64_t keep_last, int64_t keep_every, int64_t best);

#endif
