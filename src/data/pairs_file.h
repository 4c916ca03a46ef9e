/** Writing a corpus of sentence pairs. */
#ifndef STABLEMOE_DATA_PAIRS_FILE_H
#define STABLEMOE_DATA_PAIRS_FILE_H

#include <xxhash.h>

#include "spool.h"
#include "stablemoe/pairs.h"

/** Name of a side in a file: "source", "target". Local. */
const char *smoe_side_name(smoe_side side);

/** Attribute names of the reasons, without their prefix: "empty", "long", "unequal". Local. */
const char *smoe_left_out_name(smoe_left_out reason);

/** Pairs on their way into a file. */
typedef struct smoe_pair_writer {
  smoe_pairs *pairs;            /**< languages, directions, vocabulary and counts; borrowed */
  smoe_spool spool[SMOE_SIDES]; /**< a document is one side of a pair */
} smoe_pair_writer;

/** Open the temporary files next to the output. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_pair_writer_open(smoe_pair_writer *writer, smoe_pairs *pairs, const char *output);

/** Add a pair: the tokens of both sides, tag and end included, and the bytes of both texts.
 *
 *  Local. Errors: SMOE_ERR_IO, SMOE_ERR_FORMAT if an id is outside the vocabulary.
 */
smoe_status smoe_pair_writer_add(smoe_pair_writer *writer, smoe_split split, int direction,
                                 const int32_t *const tokens[SMOE_SIDES], const size_t n[SMOE_SIDES],
                                 const int64_t n_bytes[SMOE_SIDES]);

/** Write the file: under `output`.part, closed, read again and compared, then renamed.
 *
 *  Local.
 *  Errors:  SMOE_ERR_CONFIG if a split has no pair, SMOE_ERR_IO. Nothing is left behind then.
 */
smoe_status smoe_pair_writer_finish(smoe_pair_writer *writer, const smoe_corpus_about *about);

/** Free it; accepts a zero-initialised one. Local. */
void smoe_pair_writer_close(smoe_pair_writer *writer);

/** Add the part of a split that is in memory to the fingerprint; its source and target tokens follow. Local. */
void smoe_pairs_hash_split(const smoe_pair_split *split, XXH64_state_t *hash);

/** Set block[] from length[]. Local. */
void smoe_pairs_index(smoe_pair_split *split);

/** Free the arrays of all splits. Local. */
void smoe_pairs_release(smoe_pairs *pairs);

/** Compare an open file with its fingerprint. Local. Errors: SMOE_ERR_FORMAT, SMOE_ERR_IO. */
smoe_status smoe_pairs_verify_open(const smoe_pairs *pairs);

#endif
