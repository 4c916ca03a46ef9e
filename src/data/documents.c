#include "documents.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"

/* By default: pieces of this size, smaller where so few of them could not be divided among three splits. */
enum { DOCUMENT_BYTES = 1 << 14, DOCUMENT_BYTES_MIN = 1 << 8, DOCUMENTS_WANTED = 40 };

/** Files that were skipped: how many, and the first names. */
typedef struct skipped {
  size_t n;
  char names[1024];
} skipped;

static void skip(skipped *all, const char *path) {
  char head[1024];
  size_t got = 0, used = strlen(all->names);
  smoe_stream stream;
  if (smoe_stream_open(&stream, path) == SMOE_OK) (void)smoe_stream_read(&stream, head, sizeof head, &got);
  smoe_stream_close(&stream);
  const char *kind = smoe_stream_kind(head, got);
  if (all->n < 3)
    snprintf(all->names + used, sizeof all->names - used, "%s'%s'%s%s%s", all->n ? ", " : "", path,
             kind ? " (" : "", kind ? kind : "", kind ? ")" : "");
  all->n++;
}

static size_t default_bytes(const smoe_text_list *files) {
  int64_t pieces = 0, bytes = 0;
  for (size_t f = 0; f < files->n_files; f++) {
    bytes += files->file[f].bytes;
    pieces += (files->file[f].bytes + DOCUMENT_BYTES - 1) / DOCUMENT_BYTES;
  }
  if (pieces >= DOCUMENTS_WANTED) return DOCUMENT_BYTES;
  const int64_t size = bytes / DOCUMENTS_WANTED;
  return size > DOCUMENT_BYTES ? DOCUMENT_BYTES
                               : (size_t)(size > DOCUMENT_BYTES_MIN ? size : DOCUMENT_BYTES_MIN);
}

/** Count what is the mark between documents in many data sets. */
static void count_marks(smoe_documents *documents, const char *text, size_t bytes) {
  static const char *const marks[] = {"<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<|im_end|>",
                                      "</s>"};
  const char *end = text + bytes;
  for (const char *at = text; (at = memchr(at, '<', (size_t)(end - at))); at++)
    for (size_t m = 0; m < sizeof marks / sizeof *marks; m++) {
      const size_t n = strlen(marks[m]);
      if ((size_t)(end - at) < n || memcmp(at, marks[m], n) != 0) continue;
      if (!documents->mark) documents->mark = marks[m];
      documents->n_marks++;
    }
}

static void add_document(smoe_documents *documents, size_t file, const char *text, size_t bytes) {
  const size_t n = documents->n_documents;
  if ((n & (n - 1)) == 0)
    documents->document = smoe_realloc(documents->document, 2 * (n + 1) * sizeof *documents->document);
  documents->document[n] = (smoe_document){.hash = XXH3_64bits(text, bytes),
                                           .file = (uint32_t)file,
                                           .bytes = (uint32_t)bytes,
                                           .split = documents->files.file[file].split};
  documents->n_documents = n + 1;
  count_marks(documents, text, bytes);
}

static smoe_text_format format_of(const smoe_documents *documents, size_t file) {
  smoe_text_format format = documents->format;
  format.json = documents->files.file[file].json;
  return format;
}

/** Find the documents of one file. */
static smoe_status scan_file(smoe_documents *documents, size_t f, skipped *all) {
  smoe_text_file *file = &documents->files.file[f];
  const size_t before = documents->n_documents;
  const smoe_text_format format = format_of(documents, f);
  smoe_reader reader;
  const char *text;
  size_t bytes = 0;
  smoe_status status = smoe_reader_open(&reader, file->path, &format);
  do {
    if (status == SMOE_OK) status = smoe_reader_next(&reader, &text, &bytes);
    if (status == SMOE_OK && bytes > 0) add_document(documents, f, text, bytes);
  } while (status == SMOE_OK && bytes > 0);
  smoe_reader_close(&reader);
  if (status == SMOE_ERR_FORMAT && !file->named && !file->json) {
    documents->n_documents = before;
    file->skip = true;
    skip(all, file->path);
    return SMOE_OK;
  }
  return status;
}

/** Documents in JSON by the names of files; other JSON, such as settings beside source code, is text. */
static bool is_json(const smoe_text_file *file, const smoe_prepare_options *options) {
  if (options->field && strcmp(options->field, "-") == 0) return false;
  if (smoe_stream_is_named(file->path, ".jsonl") || smoe_stream_is_named(file->path, ".ndjson")) return true;
  if (!smoe_stream_is_named(file->path, ".json")) return false;
  return options->field || file->named || smoe_text_has_field(file->path, "text");
}

smoe_status smoe_documents_open(smoe_documents *documents, const smoe_prepare_options *options,
                                smoe_text_list *files) {
  *documents = (smoe_documents){.files = *files,
                                .format = {.lines = options->lines,
                                           .separator = options->separator,
                                           .field = options->field ? options->field : "text"}};
  *files = (smoe_text_list){0};
  for (size_t f = 0; f < documents->files.n_files; f++)
    documents->files.file[f].json = is_json(&documents->files.file[f], options);
  documents->format.document_bytes =
      options->document_bytes > 0 ? (size_t)options->document_bytes : default_bytes(&documents->files);
  bool json = !options->field || strcmp(options->field, "-") == 0;
  for (size_t f = 0; f < documents->files.n_files; f++) json |= documents->files.file[f].json;
  if (!json) smoe_warn("no file is JSON (.jsonl, .json): --field does nothing");
  skipped all = {0};
  for (size_t f = 0; f < documents->files.n_files; f++) {
    smoe_live("reading text: file %zu of %zu", f + 1, documents->files.n_files);
    SMOE_TRY(scan_file(documents, f, &all));
  }
  if (all.n > 0)
    smoe_warn("skipped %zu file%s that %s not UTF-8 text: %s%s", all.n, all.n == 1 ? "" : "s",
              all.n == 1 ? "is" : "are", all.names, all.n > 3 ? ", ..." : "");
  const size_t n_files = documents->files.n_files;
  SMOE_CHECK(documents->n_documents > 0, SMOE_ERR_CONFIG, "there is no text in %s%s%s%s: %zu file%s, %s",
             n_files ? "'" : "what is named", n_files ? documents->files.file[0].path : "",
             n_files ? "'" : "", n_files > 1 ? " and the others" : "", n_files, n_files == 1 ? "" : "s",
             options->extensions ? "with the extensions asked for" : "all empty or not text");
  if (!options->separator && documents->n_marks >= 10)
    smoe_warn(
        "the text holds '%s' and the like %zu times: if they separate documents, give --separator '%s'; "
        "now they are text like any other",
        documents->mark, documents->n_marks, documents->mark);
  return SMOE_OK;
}

void smoe_documents_close(smoe_documents *documents) {
  smoe_text_list_free(&documents->files);
  smoe_free(documents->document);
  *documents = (smoe_documents){0};
}

void smoe_document_source_open(smoe_document_source *source, const smoe_documents *documents) {
  *source = (smoe_document_source){.documents = documents};
}

/** Read the next document of the files, dropped or not. */
static smoe_status read_document(smoe_document_source *source, const smoe_document *next, const char **text) {
  const smoe_documents *documents = source->documents;
  const char *path = documents->files.file[next->file].path;
  if (source->reader.path != path) {
    smoe_reader_close(&source->reader);
    const smoe_text_format format = format_of(documents, next->file);
    SMOE_TRY(smoe_reader_open(&source->reader, path, &format));
  }
  size_t bytes;
  SMOE_TRY(smoe_reader_next(&source->reader, text, &bytes));
  SMOE_CHECK(bytes == next->bytes && (bytes == 0 || XXH3_64bits(*text, bytes) == next->hash), SMOE_ERR_IO,
             "'%s' changed while it was read", path);
  return SMOE_OK;
}

smoe_status smoe_document_source_next(smoe_document_source *source, const smoe_document **document,
                                      const char **text) {
  const smoe_documents *documents = source->documents;
  for (*document = NULL; source->next < documents->n_documents && !*document;) {
    const smoe_document *next = &documents->document[source->next++];
    SMOE_TRY(read_document(source, next, text));
    if (next->split < SMOE_SPLITS) *document = next;
  }
  return SMOE_OK;
}

void smoe_document_source_close(smoe_document_source *source) {
  smoe_reader_close(&source->reader);
}
