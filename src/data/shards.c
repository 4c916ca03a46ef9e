#include "shards.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "hash_set.h"
#include "spool.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "token_file.h"

/** The whole import. */
typedef struct import {
  const smoe_prepare_options *options;
  smoe_token_file *file;
  size_t n_files;
  int vocabulary;
  int32_t separator;           /**< -1: none */
  bool before;                 /**< documents begin with it; else they end with it */
  bool whole;                  /**< documents of the open files are not cut */
  int64_t border[SMOE_SPLITS]; /**< where a split of the open files ends, as position in all of them */
  int64_t position;            /**< in the open files */
  smoe_spool spool;

  /* The document in hand. */
  bool begun;
  smoe_split split;
  XXH3_state_t *hash;
  int64_t n_tokens, next_end; /**< so far; index into the ends of its file */

  smoe_document *document; /**< [n_documents] of all splits, for equal ones */
  size_t n_documents;
  smoe_hash_set seen;
  size_t n_dropped;
} import;

bool smoe_are_shards(const smoe_text_list *files, const smoe_prepare_options *options) {
  size_t n = 0;
  if (options->raw_bytes) return true;
  for (size_t f = 0; f < files->n_files; f++) {
    const bool bin = smoe_stream_is_named(files->file[f].path, ".bin");
    if (bin && files->file[f].named) return true;
    n += bin || smoe_stream_is_named(files->file[f].path, ".idx");
  }
  return n > 0 && n == files->n_files;
}

/* ---- what the files are ---- */

static smoe_status open_files(import *in, const smoe_text_list *files) {
  for (size_t f = 0; f < files->n_files; f++) {
    const char *path = files->file[f].path;
    if (smoe_stream_is_named(path, ".idx")) continue;
    SMOE_CHECK(in->options->raw_bytes || smoe_stream_is_named(path, ".bin"), SMOE_ERR_CONFIG,
               "token files (.bin) and text do not go into one corpus: '%s' is not one", path);
    smoe_token_file *one = &in->file[in->n_files++];
    SMOE_TRY(smoe_token_file_open(one, path, in->options));
    one->split = files->file[f].split;
    uint8_t named;
    if (one->split == SMOE_SPLIT_OPEN && smoe_split_of_name(path, &named) && named != SMOE_TRAIN)
      one->split = named;
    SMOE_CHECK(strcmp(one->kind, in->file[0].kind) == 0, SMOE_ERR_CONFIG,
               "the token files '%s' (%s) and '%s' (%s) are of two vocabularies", in->file[0].path,
               in->file[0].name, path, one->name);
  }
  SMOE_CHECK(in->n_files > 0, SMOE_ERR_CONFIG, "no token file is named: an index (.idx) alone has no tokens");
  return SMOE_OK;
}

/** The separator that is asked for, or that the format has; for raw ids that of GPT-2, if they look like its. */
static smoe_status choose_separator(import *in, int32_t max) {
  const char *asked = in->options->separator;
  if (asked) {
    char *end;
    const long id = strtol(asked, &end, 10);
    SMOE_CHECK(end != asked && !*end && id >= 0 && id < INT32_MAX, SMOE_ERR_CONFIG,
               "--separator '%s': for token files it is a token id, such as 50256", asked);
    in->separator = (int32_t)id;
  } else {
    in->separator = in->file[0].separator;
    if (in->options->raw_bytes && max == 50256) in->separator = 50256;
  }
  for (size_t f = 0; f < in->n_files; f++) in->file[f].separator = in->separator;
  return SMOE_OK;
}

static int32_t largest(const import *in) {
  int32_t max = 0;
  for (size_t f = 0; f < in->n_files; f++)
    if (in->file[f].max > max) max = in->file[f].max;
  return max;
}

static smoe_status scan_files(import *in) {
  for (size_t f = 0; f < in->n_files; f++) {
    smoe_live("looking at token files: %zu of %zu", f + 1, in->n_files);
    SMOE_TRY(smoe_token_file_scan(&in->file[f]));
  }
  return SMOE_OK;
}

static smoe_status inspect(import *in, const smoe_text_list *files) {
  SMOE_TRY(open_files(in, files));
  if (!in->options->raw_bytes) SMOE_TRY(choose_separator(in, 0));
  SMOE_TRY(scan_files(in));
  if (in->options->raw_bytes) {
    SMOE_TRY(choose_separator(in, largest(in)));
    SMOE_TRY(scan_files(in)); /* now with the separator */
  }
  const int32_t max = largest(in);
  const int asked = in->options->vocabulary, known = in->file[0].vocabulary;
  in->vocabulary = asked > 0 ? asked : known > 0 ? known : max + 1;
  if (in->separator >= in->vocabulary) in->separator = -1;
  in->before = in->separator >= 0 && in->file[0].first == in->separator;
  in->whole = true;
  for (size_t f = 0; f < in->n_files; f++)
    if (in->file[f].split == SMOE_SPLIT_OPEN) in->whole &= in->file[f].n_separators > 0 || in->file[f].end;
  return SMOE_OK;
}

/** Cut what has no file of its own from the end of the open files. */
static void place_borders(import *in) {
  int64_t total = 0;
  bool own[SMOE_SPLITS] = {false};
  for (size_t f = 0; f < in->n_files; f++) {
    if (in->file[f].split < SMOE_SPLITS)
      own[in->file[f].split] = true;
    else
      total += in->file[f].n_tokens;
  }
  const int64_t test = own[SMOE_TEST] ? 0 : (int64_t)(in->options->test_share * (double)total);
  const int64_t valid = own[SMOE_VALID] ? 0 : (int64_t)(in->options->valid_share * (double)total);
  in->border[SMOE_TEST] = total;
  in->border[SMOE_VALID] = total - test;
  in->border[SMOE_TRAIN] = total - test - valid;
}

/* ---- documents ---- */

static void begin_document(import *in, const smoe_token_file *file) {
  int s = file->split;
  if (s == SMOE_SPLIT_OPEN)
    for (s = SMOE_TRAIN; s < SMOE_TEST && in->position >= in->border[s]; s++) continue;
  in->split = (smoe_split)s;
  in->begun = true;
  in->n_tokens = 0;
  XXH3_64bits_reset(in->hash);
}

static smoe_status end_document(import *in) {
  if (!in->begun) return SMOE_OK;
  in->begun = false;
  const uint64_t hash = XXH3_64bits_digest(in->hash);
  if (in->options->dedup && !smoe_hash_set_add(&in->seen, hash)) {
    in->n_dropped++;
    return smoe_spool_drop(&in->spool, in->split);
  }
  const size_t n = in->n_documents;
  if ((n & (n - 1)) == 0) in->document = smoe_realloc(in->document, 2 * (n + 1) * sizeof *in->document);
  in->document[in->n_documents++] = (smoe_document){.hash = hash, .split = (uint8_t)in->split};
  smoe_spool_end(&in->spool, in->split, 0);
  return SMOE_OK;
}

static smoe_status add_tokens(import *in, const int32_t *tokens, size_t n) {
  if (n == 0) return SMOE_OK;
  /* The separator stands on one side of a document or the other, and is not what makes it another one. */
  const size_t skip = in->n_tokens == 0 && tokens[0] == in->separator;
  const size_t cut = n > skip && tokens[n - 1] == in->separator;
  XXH3_64bits_update(in->hash, tokens + skip, (n - skip - cut) * sizeof *tokens);
  in->n_tokens += (int64_t)n;
  return smoe_spool_add(&in->spool, in->split, tokens, n);
}

/** Return true if a document begins at a token of the file. */
static bool begins(import *in, const smoe_token_file *file, int32_t token, int64_t place) {
  if (file->end) {
    bool border = false;
    while (in->next_end < file->n_ends && file->end[in->next_end] <= place) {
      border = true;
      in->next_end++;
    }
    return border;
  }
  if (in->before && token == in->separator) return true;
  return !in->whole && file->split == SMOE_SPLIT_OPEN && in->position == in->border[in->split];
}

static smoe_status take(void *context, const smoe_token_file *file, const int32_t *tokens, size_t n,
                        int64_t first) {
  import *in = context;
  size_t from = 0;
  for (size_t i = 0; i < n; i++) {
    SMOE_CHECK(tokens[i] < in->vocabulary, SMOE_ERR_FORMAT,
               "token %lld of '%s' is %d, outside the vocabulary of %d", (long long)(first + (int64_t)i),
               file->path, tokens[i], in->vocabulary);
    if (begins(in, file, tokens[i], first + (int64_t)i) && in->begun) {
      SMOE_TRY(add_tokens(in, tokens + from, i - from));
      SMOE_TRY(end_document(in));
      from = i;
    }
    if (!in->begun) begin_document(in, file);
    in->position += file->split == SMOE_SPLIT_OPEN;
    if (in->before || file->end || tokens[i] != in->separator) continue;
    SMOE_TRY(add_tokens(in, tokens + from, i + 1 - from));
    SMOE_TRY(end_document(in));
    from = i + 1;
  }
  return in->begun ? add_tokens(in, tokens + from, n - from) : SMOE_OK;
}

static smoe_status copy_file(import *in, const smoe_token_file *file) {
  smoe_note("%s: %s, %lld tokens, %s", file->path, file->name, (long long)file->n_tokens,
            file->split < SMOE_SPLITS ? smoe_split_name(file->split)
                                      : "train, and by shares what has no file of its own");
  if (!file->end && file->n_separators == 0)
    smoe_note("%s: no document ends in it (token %d): it is one document", file->path, in->separator);
  in->next_end = 0;
  SMOE_TRY(smoe_token_file_read(file, take, in));
  /* A file's last document ends with the file. */
  return end_document(in);
}

/** Test and validation first: of equal documents it is training that loses one. */
static smoe_status copy_files(import *in) {
  static const uint8_t order[] = {SMOE_TEST, SMOE_VALID, SMOE_TRAIN, SMOE_SPLIT_OPEN};
  for (size_t o = 0; o < sizeof order; o++)
    for (size_t f = 0; f < in->n_files; f++)
      if (in->file[f].split == order[o]) SMOE_TRY(copy_file(in, &in->file[f]));
  if (in->options->dedup)
    smoe_note("dropped %zu documents equal to others", in->n_dropped);
  else
    smoe_documents_report_repeats(in->document, in->n_documents);
  for (int s = SMOE_VALID; s < SMOE_SPLITS; s++)
    SMOE_CHECK(
        in->border[s] == in->border[s - 1] || in->spool.n_tokens[s] > 0, SMOE_ERR_CONFIG,
        "too little text for splits that are not empty: %s would be, since documents are not cut; give a "
        "larger share, a share of 0, or a file of its own",
        smoe_split_name(s));
  return SMOE_OK;
}

static smoe_status run(import *in, const smoe_text_list *files, const char *sources) {
  SMOE_TRY(inspect(in, files));
  place_borders(in);
  SMOE_TRY(smoe_spool_open(&in->spool, in->options->output, in->vocabulary));
  SMOE_TRY(copy_files(in));
  const int32_t last = in->file[0].end ? in->file[0].last : in->separator;
  const smoe_corpus_about about = {.kind = in->file[0].kind, .sources = sources, .end_id = last};
  return smoe_corpus_write(&in->spool, &about);
}

smoe_status smoe_prepare_shards(const smoe_prepare_options *options, const smoe_text_list *files,
                                const char *sources) {
  SMOE_CHECK(!options->model_path, SMOE_ERR_CONFIG, "token files are encoded already: they take no --model");
import in = {.options = options, .file = smoe_alloc(files->n_files * sizeof(smoe_token_file)), .hash = XXH3_createState() };
  const smoe_status status = run(&in, files, sources);
  smoe_spool_close(&in.spool);
  XXH3_freeState(in.hash);
  for (size_t f = 0; f < in.n_files; f++) smoe_token_file_close(&in.file[f]);
  smoe_hash_set_free(&in.seen);
  smoe_free(in.document);
  smoe_free(in.file);
  return status;
}
