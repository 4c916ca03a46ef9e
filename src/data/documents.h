/** The documents of a list of text files, and which split each goes to. */
#ifndef STABLEMOE_DATA_DOCUMENTS_H
#define STABLEMOE_DATA_DOCUMENTS_H

#include "stablemoe/corpus.h"
#include "stablemoe/prepare.h"
#include "text.h"

typedef struct smoe_document {
  uint32_t file; /**< index into the list */
  uint32_t bytes;
  uint8_t split; /**< smoe_split */
} smoe_document;

typedef struct smoe_documents {
  smoe_text_list files;
  bool lines;
  size_t document_bytes;
  smoe_document *document;
  size_t n_documents;
  int64_t n_bytes[SMOE_SPLITS];
} smoe_documents;

/** List the files, read them once, and find their documents.
 *
 *  Local. Files found in directories that are no text are passed over with one warning.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT (a file that was named is no text), SMOE_ERR_CONFIG (no text at all).
 */
smoe_status smoe_documents_open(smoe_documents *documents, const smoe_prepare_options *options,
                                const char *const *inputs, int n_inputs);

/** Give it back. Local. */
void smoe_documents_close(smoe_documents *documents);

/** Choose a split for each document, by shares of the bytes.
 *
 *  Local. A pure function of the documents' sizes and the seed. Where there are files enough,
 *  all documents of a file go to one split, so that no file is in training and validation both.
 *  Errors:  SMOE_ERR_CONFIG where there are fewer than three documents.
 */
smoe_status smoe_documents_split(smoe_documents *documents, double valid_share, double test_share,
                                 uint64_t seed);

/** Reads all documents again, in order. */
typedef struct smoe_document_source {
  const smoe_documents *documents;
  smoe_reader reader;
  size_t next; /**< document */
} smoe_document_source;

/** Begin with the first document. Local. */
void smoe_document_source_open(smoe_document_source *source, const smoe_documents *documents);

/** The next document and its text; *document = NULL at the end. Local.
 *
 *  Errors:  SMOE_ERR_IO, also where a file is not what it was the first time.
 */
smoe_status smoe_document_source_next(smoe_document_source *source, const smoe_document **document,
                                      const char **text);

/** Give it back. Local. */
void smoe_document_source_close(smoe_document_source *source);

#endif
