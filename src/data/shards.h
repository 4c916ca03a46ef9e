/** Token shards as llm.c writes them: a header of 256 integers, then token ids. */
#ifndef STABLEMOE_DATA_SHARDS_H
#define STABLEMOE_DATA_SHARDS_H

#include "stablemoe/prepare.h"

/** Whether a path is named like a shard (.bin). Local. */
bool smoe_is_shard(const char *path);

/** Make a corpus of token shards, without a tokenizer.
 *
 *  Local. Shards whose name contains "val" or "test" are those splits; what is not there
 *  is cut from the end of the others.
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT for a shard that is not whole; SMOE_ERR_CONFIG.
 */
smoe_status smoe_prepare_shards(const smoe_prepare_options *options, const char *const *inputs, int n_inputs);

/** The list of inputs as text, a line each, cut where it is very long; in memory of smoe_alloc. Local. */
char *smoe_sources_text(const char *const *inputs, int n_inputs);

#endif
