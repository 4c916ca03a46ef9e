/* Which document goes to which split. */
#include <ctype.h>
#include <string.h>

#include "documents.h"
#include "hash_set.h"
#include "spool.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/random.h"

/* From so many files on, a file is not shared between splits. */
enum { FILES_ENOUGH = 50 };

/* A split may exceed its share by this much before a document is refused to it. */
static const double OVERSHOOT = 1.25;

/* ---- by names ---- */

bool smoe_split_of_name(const char *path, uint8_t *split) {
  static const struct {
    const char *word;
    smoe_split split;
  } words[] = {{"train", SMOE_TRAIN}, {"training", SMOE_TRAIN},   {"valid", SMOE_VALID}, {"val", SMOE_VALID},
               {"dev", SMOE_VALID},   {"validation", SMOE_VALID}, {"test", SMOE_TEST}};
  const char *slash = strrchr(path, '/');
  bool found = false;
  for (const char *at = slash ? slash + 1 : path; *at;) {
    size_t n = 0;
    while (isalpha((unsigned char)at[n])) n++;
    for (size_t w = 0; w < sizeof words / sizeof *words; w++)
      if (n == strlen(words[w].word) && strncasecmp(at, words[w].word, n) == 0) {
        *split = words[w].split;
        found = true;
      }
    at += n ? n : 1;
  }
  return found;
}

/** Where every file's name has a split's word, and both training and another split are there, names decide. */
static void split_by_names(smoe_documents *documents, const smoe_prepare_options *options) {
  const smoe_text_list *files = &documents->files;
  bool there[SMOE_SPLITS] = {false};
  for (int s = 0; s < SMOE_SPLITS; s++)
    if (options->own[s].n > 0) return;
  for (size_t f = 0; f < files->n_files; f++) {
    uint8_t split;
    if (files->file[f].skip) continue;
    if (!smoe_split_of_name(files->file[f].path, &split)) return;
    there[split] = true;
  }
  if (!there[SMOE_TRAIN] || !(there[SMOE_VALID] || there[SMOE_TEST])) return;
  smoe_note("the files' names say which split they are of");
  for (size_t f = 0; f < files->n_files; f++) {
    uint8_t split = SMOE_SPLIT_OPEN;
    smoe_split_of_name(files->file[f].path, &split);
    /* What has no file of its own is taken from the training files. */
    const bool whole = there[SMOE_VALID] && there[SMOE_TEST];
    files->file[f].split = split == SMOE_TRAIN && !whole ? SMOE_SPLIT_OPEN : split;
  }
  for (size_t d = 0; d < documents->n_documents; d++)
    documents->document[d].split = files->file[documents->document[d].file].split;
}

/* ---- equal documents ---- */

/** Keep the first of equal documents: of the test, then of validation, then of training, then of the rest. */
static void drop_repeats(smoe_documents *documents) {
  static const uint8_t order[] = {SMOE_TEST, SMOE_VALID, SMOE_TRAIN, SMOE_SPLIT_OPEN};
  smoe_hash_set seen = {0};
  size_t n = 0;
  int64_t bytes = 0;
  for (size_t o = 0; o < sizeof order; o++)
    for (size_t d = 0; d < documents->n_documents; d++) {
      smoe_document *document = &documents->document[d];
      if (document->split != order[o] || smoe_hash_set_add(&seen, document->hash)) continue;
      document->split = SMOE_SPLIT_DROPPED;
      n++;
      bytes += document->bytes;
    }
  smoe_note("dropped %zu document%s (%.1f MB) equal to others", n, n == 1 ? "" : "s", (double)bytes / 1e6);
  smoe_hash_set_free(&seen);
}

void smoe_documents_report_repeats(const smoe_document *documents, size_t n_documents) {
  smoe_hash_set train = {0}, all = {0};
  size_t n[SMOE_SPLITS] = {0}, repeated[SMOE_SPLITS] = {0}, equal = 0;
  for (size_t d = 0; d < n_documents; d++) {
    const smoe_document *document = &documents[d];
    if (document->split == SMOE_TRAIN) smoe_hash_set_add(&train, document->hash);
    equal += !smoe_hash_set_add(&all, document->hash);
  }
  for (size_t d = 0; d < n_documents; d++) {
    const smoe_document *document = &documents[d];
    if (document->split >= SMOE_SPLITS) continue;
    n[document->split]++;
    repeated[document->split] += document->split != SMOE_TRAIN && smoe_hash_set_has(&train, document->hash);
  }
  smoe_hash_set_free(&train);
  smoe_hash_set_free(&all);
  if (repeated[SMOE_VALID] + repeated[SMOE_TEST] > 0)
    smoe_warn(
        "%zu of %zu documents of validation and %zu of %zu of the test are in training too: their losses "
        "say nothing about new text; --dedup drops repeated documents",
        repeated[SMOE_VALID], n[SMOE_VALID], repeated[SMOE_TEST], n[SMOE_TEST]);
  else if (equal > 0)
    smoe_note("%zu document%s equal to others, none of them in two splits; --dedup drops them", equal,
              equal == 1 ? " is" : "s are");
}

/* ---- by shares ---- */

/** What goes to a split as a whole: one document, or the documents of one file. */
typedef struct unit {
  size_t first, end;
  int64_t weight; /**< bytes, or 1 */
  uint8_t split;
} unit;

/** What a share is of, and what stays together. */
typedef enum division { BY_FILE, BY_BYTES, BY_NUMBER } division;

static size_t find_units(const smoe_documents *documents, division by, unit *units) {
  size_t n = 0;
  for (size_t d = 0; d < documents->n_documents; d++) {
    const smoe_document *document = &documents->document[d];
    if (document->split != SMOE_SPLIT_OPEN) continue;
    const bool joins =
        n > 0 && by == BY_FILE && documents->document[units[n - 1].first].file == document->file;
    if (!joins) units[n++] = (unit){.first = d, .split = SMOE_TRAIN};
    units[n - 1].end = d + 1;
    units[n - 1].weight += by == BY_NUMBER ? 1 : document->bytes;
  }
  return n;
}

/** Give units to a split in the order of a random permutation, until it has its share of their weights.
 *  Returns the weight that it got.
 */
static int64_t fill_split(unit *units, size_t n, smoe_split split, double share, bool force, uint64_t seed) {
  int64_t got = 0;
  for (size_t i = 0; i < n && (double)got < share; i++) {
    unit *one = &units[smoe_random_permute(seed, SMOE_RANDOM_SPLIT, 0, n, i)];
    const bool fits = (double)(got + one->weight) <= OVERSHOOT * share;
    if (one->split != SMOE_TRAIN || !(fits || (force && got == 0))) continue;
    one->split = (uint8_t)split;
    got += one->weight;
  }
  return got;
}

/** Divide the open documents; returns whether every split with a share got something. */
static bool try_split(smoe_documents *documents, const double *share, division by, uint64_t seed) {
  unit *units = smoe_alloc((documents->n_documents + 1) * sizeof *units);
  const size_t n = find_units(documents, by, units);
  int64_t total = 0, got[SMOE_SPLITS] = {0};
  for (size_t u = 0; u < n; u++) total += units[u].weight;
  for (int s = SMOE_VALID; s <= SMOE_TEST; s++)
    got[s] = fill_split(units, n, s, share[s] * (double)total, by != BY_FILE, seed);
  got[SMOE_TRAIN] = total - got[SMOE_VALID] - got[SMOE_TEST];
  bool full = true;
  for (int s = 0; s < SMOE_SPLITS; s++) full &= got[s] > 0 || share[s] < 1e-9;
  for (size_t u = 0; u < n && full; u++)
    for (size_t d = units[u].first; d < units[u].end; d++)
      if (documents->document[d].split == SMOE_SPLIT_OPEN) documents->document[d].split = units[u].split;
  smoe_free(units);
  return full || n == 0;
}

/** Shares of the open documents: none for a split that has documents already. */
static void find_shares(const smoe_documents *documents, const smoe_prepare_options *options, double *share) {
  bool own[SMOE_SPLITS] = {false};
  for (size_t d = 0; d < documents->n_documents; d++)
    if (documents->document[d].split < SMOE_SPLITS) own[documents->document[d].split] = true;
  share[SMOE_VALID] = own[SMOE_VALID] ? 0 : options->valid_share;
  share[SMOE_TEST] = own[SMOE_TEST] ? 0 : options->test_share;
  share[SMOE_TRAIN] = own[SMOE_TRAIN] ? 0 : 1 - share[SMOE_VALID] - share[SMOE_TEST];
}

static smoe_status split_open(smoe_documents *documents, const smoe_prepare_options *options) {
  double share[SMOE_SPLITS];
  find_shares(documents, options, share);
  const bool files_enough = documents->files.n_files >= FILES_ENOUGH;
  if (files_enough && try_split(documents, share, BY_FILE, options->seed)) return SMOE_OK;
  if (try_split(documents, share, BY_BYTES, options->seed)) return SMOE_OK;
  /* One document may be most of the text. */
  SMOE_CHECK(
      try_split(documents, share, BY_NUMBER, options->seed), SMOE_ERR_CONFIG,
      "too little text for splits that are not empty: it makes %zu document%s of up to %zu bytes; "
      "give more text, use smaller documents (--document-bytes, --lines), or a share of 0 (--valid, --test)",
      documents->n_documents, documents->n_documents == 1 ? "" : "s", documents->format.document_bytes);
  return SMOE_OK;
}

smoe_status smoe_documents_split(smoe_documents *documents, const smoe_prepare_options *options) {
  split_by_names(documents, options);
  if (options->dedup) drop_repeats(documents);
  SMOE_TRY(split_open(documents, options));
  for (size_t d = 0; d < documents->n_documents; d++) {
    const smoe_document *document = &documents->document[d];
    if (document->split < SMOE_SPLITS) documents->n_bytes[document->split] += document->bytes;
  }
  if (!options->dedup) smoe_documents_report_repeats(documents->document, documents->n_documents);
  return SMOE_OK;
}

/* ---- which file went where ---- */

/** A line with the first names of files whose documents are in this one split, or (SMOE_SPLITS) in several. */
static void print_files(const smoe_documents *documents, const uint8_t *splits, int which) {
  char names[512] = "";
  size_t n = 0, used = 0;
  for (size_t f = 0; f < documents->files.n_files; f++) {
    const bool several = splits[f] & (splits[f] - 1);
    if (which < SMOE_SPLITS ? splits[f] != 1 << which : !several) continue;
    if (n++ < 4 && used < sizeof names)
      used += (size_t)snprintf(names + used, sizeof names - used, "%s'%s'", n > 1 ? ", " : "",
                               documents->files.file[f].path);
  }
  if (n == 0) return;
  smoe_note("%s: %zu file%s, %s%s", which < SMOE_SPLITS ? smoe_split_name(which) : "divided among the splits",
            n, n == 1 ? "" : "s", names, n > 4 ? ", ..." : "");
}

void smoe_documents_print_splits(const smoe_documents *documents) {
  uint8_t *splits = smoe_alloc(documents->files.n_files + 1); /* of each file: bits of its splits */
  for (size_t d = 0; d < documents->n_documents; d++) {
    const smoe_document *document = &documents->document[d];
    if (document->split < SMOE_SPLITS) splits[document->file] |= (uint8_t)(1 << document->split);
  }
  for (int s = 0; s <= SMOE_SPLITS; s++) print_files(documents, splits, s);
  smoe_free(splits);
}
