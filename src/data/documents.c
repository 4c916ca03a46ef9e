#include "documents.h"

#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/random.h"

/* Without a wish: pieces of this size, smaller where so few of them could not be shared out. */
enum { DOCUMENT_BYTES = 1 << 14, DOCUMENT_BYTES_MIN = 1 << 8, DOCUMENTS_WANTED = 40 };

/* From so many files on, a file is not shared between splits. */
enum { FILES_ENOUGH = 50 };

/* A split may exceed its share by this much before a document is refused to it. */
static const double OVERSHOOT = 1.25;

/** Files that were passed over: how many, and the first names. */
typedef struct passed_over {
  size_t n;
  char names[512];
} passed_over;

static void pass_over(passed_over *passed, const char *path) {
  const size_t used = strlen(passed->names);
  if (passed->n < 3)
    snprintf(passed->names + used, sizeof passed->names - used, "%s'%s'", passed->n ? ", " : "", path);
  passed->n++;
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

static void add_document(smoe_documents *documents, size_t file, size_t bytes) {
  const size_t n = documents->n_documents;
  if ((n & (n - 1)) == 0)
    documents->document = smoe_realloc(documents->document, 2 * (n + 1) * sizeof *documents->document);
  documents->document[n] = (smoe_document){.file = (uint32_t)file, .bytes = (uint32_t)bytes};
  documents->n_documents = n + 1;
}

/** Find the documents of one file. */
static smoe_status scan_file(smoe_documents *documents, size_t f, passed_over *passed) {
  smoe_text_file *file = &documents->files.file[f];
  const size_t before = documents->n_documents;
  smoe_reader reader;
  const char *text;
  size_t bytes = 0;
  smoe_status status = smoe_reader_open(&reader, file->path, documents->lines, documents->document_bytes);
  do {
    if (status == SMOE_OK) status = smoe_reader_next(&reader, &text, &bytes);
    if (status == SMOE_OK && bytes > 0) add_document(documents, f, bytes);
  } while (status == SMOE_OK && bytes > 0);
  smoe_reader_close(&reader);
  if (status == SMOE_ERR_FORMAT && !file->named) {
    documents->n_documents = before;
    file->skip = true;
    pass_over(passed, file->path);
    return SMOE_OK;
  }
  return status;
}

smoe_status smoe_documents_open(smoe_documents *documents, const smoe_prepare_options *options,
                                const char *const *inputs, int n_inputs) {
  *documents = (smoe_documents){.lines = options->lines};
  for (int i = 0; i < n_inputs; i++)
    SMOE_TRY(smoe_text_list_add(&documents->files, inputs[i], options->extensions));
  documents->document_bytes =
      options->document_bytes > 0 ? (size_t)options->document_bytes : default_bytes(&documents->files);
  passed_over passed = {0};
  for (size_t f = 0; f < documents->files.n_files; f++) {
    smoe_live("reading text: file %zu of %zu", f + 1, documents->files.n_files);
    SMOE_TRY(scan_file(documents, f, &passed));
  }
  if (passed.n > 0)
    smoe_warn("passed over %zu file%s that %s no UTF-8 text: %s%s", passed.n, passed.n == 1 ? "" : "s",
              passed.n == 1 ? "is" : "are", passed.names, passed.n > 3 ? ", ..." : "");
  SMOE_CHECK(documents->n_documents > 0, SMOE_ERR_CONFIG, "there is no text in '%s'%s: %zu file%s, %s",
             inputs[0], n_inputs > 1 ? " and the others" : "", documents->files.n_files,
             documents->files.n_files == 1 ? "" : "s",
             options->extensions ? "with the extensions asked for" : "all empty or no text");
  return SMOE_OK;
}

void smoe_documents_close(smoe_documents *documents) {
  smoe_text_list_free(&documents->files);
  smoe_free(documents->document);
  *documents = (smoe_documents){0};
}

/** What goes to a split as a whole: one document, or the documents of one file. */
typedef struct unit {
  size_t first, n;
  int64_t bytes;
  smoe_split split;
} unit;

static size_t find_units(const smoe_documents *documents, bool by_file, unit *units) {
  size_t n = 0;
  for (size_t d = 0; d < documents->n_documents; d++) {
    const smoe_document *document = &documents->document[d];
    if (d == 0 || !by_file || document->file != document[-1].file) units[n++] = (unit){.first = d};
    units[n - 1].n++;
    units[n - 1].bytes += document->bytes;
  }
  return n;
}

/** Give units to a split in the order of a random permutation, until it has its share.
 *  Returns how many bytes it got.
 */
static int64_t fill_split(unit *units, size_t n, smoe_split split, double share_bytes, bool force,
                          uint64_t seed) {
  int64_t got = 0;
  for (size_t i = 0; i < n && (double)got < share_bytes; i++) {
    unit *one = &units[smoe_random_permute(seed, SMOE_RANDOM_SPLIT, 0, n, i)];
    const bool fits = (double)(got + one->bytes) <= OVERSHOOT * share_bytes;
    if (one->split != SMOE_TRAIN || !(fits || (force && got == 0))) continue;
    one->split = split;
    got += one->bytes;
  }
  return got;
}

/** Whether every split got something. */
static bool try_split(smoe_documents *documents, double valid_share, double test_share, bool by_file,
                      uint64_t seed) {
  unit *units = smoe_alloc(documents->n_documents * sizeof *units);
  const size_t n = find_units(documents, by_file, units);
  int64_t total = 0;
  for (size_t u = 0; u < n; u++) total += units[u].bytes;
  const int64_t valid = fill_split(units, n, SMOE_VALID, valid_share * (double)total, !by_file, seed);
  const int64_t test = fill_split(units, n, SMOE_TEST, test_share * (double)total, !by_file, seed);
  const bool full = valid > 0 && test > 0 && valid + test < total;
  for (size_t u = 0; u < n; u++) {
    for (size_t d = 0; d < units[u].n; d++)
      documents->document[units[u].first + d].split = (uint8_t)units[u].split;
  }
  documents->n_bytes[SMOE_TRAIN] = total - valid - test;
  documents->n_bytes[SMOE_VALID] = valid;
  documents->n_bytes[SMOE_TEST] = test;
  smoe_free(units);
  return full;
}

smoe_status smoe_documents_split(smoe_documents *documents, double valid_share, double test_share,
                                 uint64_t seed) {
  SMOE_CHECK(
      documents->n_documents >= SMOE_SPLITS, SMOE_ERR_CONFIG,
      "too little text for three splits that are not empty: it makes %zu document%s of up to %zu bytes; "
      "give more text, or use smaller documents (--document-bytes, --lines)",
      documents->n_documents, documents->n_documents == 1 ? "" : "s", documents->document_bytes);
  const bool files_enough = documents->files.n_files >= FILES_ENOUGH;
  if (files_enough && try_split(documents, valid_share, test_share, true, seed)) return SMOE_OK;
  SMOE_CHECK(try_split(documents, valid_share, test_share, false, seed), SMOE_ERR_CONFIG,
             "%zu documents cannot be shared out as asked: change the shares or use smaller documents",
             documents->n_documents);
  return SMOE_OK;
}

void smoe_document_source_open(smoe_document_source *source, const smoe_documents *documents) {
  *source = (smoe_document_source){.documents = documents};
}

smoe_status smoe_document_source_next(smoe_document_source *source, const smoe_document **document,
                                      const char **text) {
  const smoe_documents *documents = source->documents;
  *document = NULL;
  if (source->next == documents->n_documents) return SMOE_OK;
  const smoe_document *next = &documents->document[source->next];
  const char *path = documents->files.file[next->file].path;
  if (source->reader.path != path) {
    smoe_reader_close(&source->reader);
    SMOE_TRY(smoe_reader_open(&source->reader, path, documents->lines, documents->document_bytes));
  }
  size_t bytes;
  SMOE_TRY(smoe_reader_next(&source->reader, text, &bytes));
  SMOE_CHECK(bytes == next->bytes, SMOE_ERR_IO, "'%s' changed while it was read", path);
  source->next++;
  *document = next;
  return SMOE_OK;
}

void smoe_document_source_close(smoe_document_source *source) {
  smoe_reader_close(&source->reader);
}
