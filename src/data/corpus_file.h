/** What corpora of text and of sentence pairs have in common in their files. */
#ifndef STABLEMOE_DATA_CORPUS_FILE_H
#define STABLEMOE_DATA_CORPUS_FILE_H

#include "spool.h"
#include "stablemoe/h5.h"

/** Tokens per transfer. */
enum { SMOE_CORPUS_BLOCK = 1 << 20 };

/** Words of reports on a kind of corpus. */
typedef struct smoe_corpus_words {
  const char *prepare; /**< how to make one: "stablemoe prepare --pair" */
  const char *inputs;  /**< and from what: " SRC-TGT SOURCE TARGET" */
  const char *corpus;  /**< "corpus of pairs" */
  const char *content; /**< "pairs" */
} smoe_corpus_words;

/** Open the file of a corpus, whose path is copied to kept [size]; *file in memory of smoe_alloc. Local.
 *
 *  Errors:  SMOE_ERR_CONFIG where no file is named, or its name is too long; SMOE_ERR_IO, SMOE_ERR_FORMAT.
 */
smoe_status smoe_corpus_open_file(void **file, char *kept, size_t size, const char *path,
                                  const smoe_corpus_words *words);

/** Check that all ranks see the same contents: nodes may have different files under one name.
 *
 *  Collective over group. Errors: agreed; SMOE_ERR_IO.
 */
smoe_status smoe_corpus_check_same(const smoe_group *group, uint64_t fingerprint, const char *path,
                                   const smoe_corpus_words *words);

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
