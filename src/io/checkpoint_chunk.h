/** What a rank has of a checkpoint, chunk by chunk: saving, comparing, checksums and loading all
 *  walk the same list, so what one of them covers the others cover too.
 */
#ifndef STABLEMOE_IO_CHECKPOINT_CHUNK_H
#define STABLEMOE_IO_CHECKPOINT_CHUNK_H

#include "stablemoe/checkpoint.h"
#include "stablemoe/h5.h"

#define SMOE_CHECKPOINT_KIND "stablemoe-checkpoint"

/** Parameters and the two moments of each. */
enum { SMOE_SETS = 3 };

/** Where values and checksums of a set stand: "adam/m", "checksum/adam_m". */
extern const char *const smoe_set_folder[SMOE_SETS];
extern const char *const smoe_set_checksum[SMOE_SETS];

typedef struct smoe_chunk {
  int set;
  int param;     /**< index in the table */
  size_t slot;   /**< of its checksum, see smoe_chunk_slot */
  int64_t first; /**< first element in the file's dataset */
  size_t begin;  /**< first element in the copy of the parameter; a multiple of SMOE_UNIT */
  size_t n;      /**< may be 0 */
  smoe_real *values;
} smoe_chunk;

/** The chunks of this rank, in memory of smoe_alloc. Local.
 *  n_sets: 3, or 1 where params has no moments.
 */
smoe_chunk *smoe_chunks(const smoe_params *params, size_t *n, int *n_sets);

/** Whether a set has a dataset of a parameter: those that never learn have no moments. Local. */
bool smoe_chunk_in_set(const smoe_params *params, int set, int param);

/** Checksums of a parameter: 1, or E of them. Local. */
size_t smoe_chunk_slots(const smoe_params *params, int param);

/** Place of a parameter's first checksum among those of all sets, where each parameter has its own in
 *  every set, used or not; (n_sets, 0): their number. Local.
 */
size_t smoe_chunk_slot(const smoe_params *params, int set, int param);

/** Add each chunk's checksum to its slot of sums. Local. */
void smoe_chunk_checksums(uint64_t *sums, const smoe_chunk *chunk, size_t n);

/** Name of the dataset of a parameter: "<folder>/<name>". Local. text: of SMOE_CHUNK_NAME bytes. */
enum { SMOE_CHUNK_NAME = SMOE_NAME_MAX + 32 };
const char *smoe_chunk_name(char *text, const char *folder, const smoe_param *param);

/** Shape of a parameter in the file; returns the number of dimensions. Local. */
int smoe_chunk_shape(const smoe_params *params, int param, int64_t shape[SMOE_H5_DIMS]);

/** Check that a file is a checkpoint that this build reads. Local. */
smoe_status smoe_checkpoint_check(hid_t file);

/** Write format, version, /meta and the configuration into a new file. Collective over those who have it open. */
smoe_status smoe_checkpoint_write_meta(hid_t file, const smoe_checkpoint_meta *meta);

/** What an open file says of itself. Local. */
smoe_status smoe_checkpoint_meta_of(hid_t file, smoe_checkpoint_meta *meta);

#endif
