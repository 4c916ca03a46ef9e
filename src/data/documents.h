/** The documents of a list of text files, and which split each goes to. */
#ifndef STABLEMOE_DATA_DOCUMENTS_H
#define STABLEMOE_DATA_DOCUMENTS_H

#include "stablemoe/corpus.h"
#include "stablemoe/prepare.h"
#include "text.h"

/** What stands for a split in a document: of none yet, and left out as a repeat of another. */
enum { SMOE_SPLIT_OPEN = SMOE_SPLITS, SMOE_SPLIT_DROPPED };

typedef struct smoe_document {
  uint64_t hash; /**< of the text */
  uint32_t file; /**< index into the list */
  uint32_t bytes;
  uint8_t split; /**< smoe_split, or as above */
} smoe_document;

typedef struct smoe_documents {
  smoe_text_list files;
  smoe_text_format format;
  smoe_document *document;
  size_t n_documents; /**< dropped ones too */
  size_t n_marks;     /**< that commonly separate documents, found in the text ("<|endoftext|>") */
  const char *mark;   /**< the first of them */
  int64_t n_bytes[SMOE_SPLITS];
} smoe_documents;

/** Read files once, and find their documents.
 *
 *  Local. files becomes part of documents, and is empty then. Files found in directories that are not text are skipped with one warning.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT (a file that was named is not text), SMOE_ERR_CONFIG (no text at all).
 */
smoe_status smoe_documents_open(smoe_documents *documents, const smoe_prepare_options *options,
                                smoe_text_list *files);

/** Free it. Local. */
void smoe_documents_close(smoe_documents *documents);

/** Choose a split for each document that has none, by shares of their bytes.
 *
 *  Local. A pure function of the documents' sizes and contents and of the options. A split that was given text
 *  of its own gets no share. From 50 files on, all documents of a file go to one split. With options->dedup one
 *  of equal documents is kept; without it, those that are in training and in another split are reported.
 *  Errors:  SMOE_ERR_CONFIG where a split with a share would be empty.
 */
smoe_status smoe_documents_split(smoe_documents *documents, const smoe_prepare_options *options);

/** Report documents that are in training and in another split, and others that are equal. Local. */
void smoe_documents_report_repeats(const smoe_document *document, size_t n);

/** Print which files went to which split. Local. */
void smoe_documents_print_splits(const smoe_documents *documents);

/** Reads all documents that are not dropped again, in order. */
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

/** Close it. Local. */
void smoe_document_source_close(smoe_document_source *source);

/** Find the split that a file's name asks for by one of its words (train, valid, val, test, ...): the last.
 *
 *  Local. Words are runs of letters, in any case: "retrieval" is not "val".
 *  Returns false where there is none.
 */
bool smoe_split_of_name(const char *path, uint8_t *split);

#endif
