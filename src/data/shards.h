/** Corpora of files of token ids (token_file.h). */
#ifndef STABLEMOE_DATA_SHARDS_H
#define STABLEMOE_DATA_SHARDS_H

#include "stablemoe/prepare.h"
#include "text.h"

/** Return true if a list is of token files: of .bin files (and their .idx) alone, or one was named. Local. */
bool smoe_are_shards(const smoe_text_list *files, const smoe_prepare_options *options);

/** Make a corpus of token files, without a tokenizer.
 *
 *  Local. Files that are given to a split, or whose name has the word val or test, are of that split; a split
 *  without any is taken from the end of the others, by whole documents where their ends are known.
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT for a file that is not whole; SMOE_ERR_CONFIG.
 */
smoe_status smoe_prepare_shards(const smoe_prepare_options *options, const smoe_text_list *files,
                                const char *sources);

/** The list of inputs as text, a line each, cut where it is very long; in memory of smoe_alloc. Local. */
char *smoe_sources_text(const char *const *inputs, int n_inputs);

#endif
