/** What corpora of text and of sentence pairs have in common in their files. */
#ifndef STABLEMOE_DATA_CORPUS_FILE_H
#define STABLEMOE_DATA_CORPUS_FILE_H

#include "spool.h"
#include "stablemoe/h5.h"

/** Tokens per transfer. */
enum { SMOE_CORPUS_BLOCK = 1 << 20 };

/** Type of token ids in a file: 16 bits if they hold all ids of the vocabulary, else 32. Local. */
hid_t smoe_corpus_token_type(int vocabulary);

/** Make a dataset of one dimension with its values. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_corpus_put(hid_t file, const char *name, hid_t file_type, hid_t memory_type,
                            const void *data, int64_t n);

/** Write the tokenizer: its model, and its pieces one after the other with the place where each begins, which
 *  can be read without SentencePiece.
 *
 *  Local. Errors: SMOE_ERR_IO.
 */
smoe_status smoe_corpus_put_tokenizer(hid_t file, const smoe_corpus_about *about);

/** Return the number of elements of a dataset of one dimension with at least n_min elements of this type.
 *
 *  Local. Errors: SMOE_ERR_FORMAT.
 */
smoe_status smoe_corpus_vector_size(hid_t file, const char *name, hid_t type, int64_t n_min, int64_t *n);

/** Read the serialised tokenizer; *model in memory of smoe_alloc, NULL if the file has none. Local. */
smoe_status smoe_corpus_get_model(hid_t file, char **model, size_t *bytes);

/** Whether this rank is the first one of its node. Collective over group. */
bool smoe_corpus_first_of_node(const smoe_group *group);

#endif
