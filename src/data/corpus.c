#include "stablemoe/corpus.h"

#include <stdlib.h>
#include <string.h>

#include "corpus_file.h"
#include "stablemoe/arena.h"

static hid_t file_of(const smoe_corpus *corpus) {
  return *(const hid_t *)corpus->file;
}

/** A file of another kind fails here, with words for its user. */
static smoe_status check_format(hid_t file, const char *path) {
  char format[64];
  int64_t version = 0;
  const bool has_format = smoe_h5_get_text(file, "/", "format", format, sizeof format) == SMOE_OK;
  SMOE_CHECK(
      !has_format || strcmp(format, "stablemoe-pairs") != 0, SMOE_ERR_FORMAT,
      "'%s' is a corpus of sentence pairs, for translation; a language model needs one of text: make it "
      "with 'stablemoe prepare TEXT... -o CORPUS.h5'",
      path);
  SMOE_CHECK(
      !has_format || strcmp(format, "stablemoe-images") != 0, SMOE_ERR_FORMAT,
      "'%s' is a corpus of images, which model.family cnn and vision read; a language model needs one of "
      "text: make it with 'stablemoe prepare TEXT... -o CORPUS.h5'",
      path);
  SMOE_CHECK(has_format && strcmp(format, "stablemoe-corpus") == 0, SMOE_ERR_FORMAT,
             "'%s' is an HDF5 file but no corpus: make one with 'stablemoe prepare'", path);
  SMOE_TRY(smoe_h5_get_i64(file, "/", "format_version", &version));
  SMOE_CHECK(version == 1, SMOE_ERR_FORMAT,
             "the corpus '%s' has format version %lld, this program reads version 1: prepare it again", path,
             (long long)version);
  return SMOE_OK;
}

static smoe_status read_attributes(smoe_corpus *corpus, hid_t file) {
  int64_t vocabulary, end_id;
  SMOE_TRY(smoe_h5_get_i64(file, "/", "vocabulary", &vocabulary));
  SMOE_TRY(smoe_h5_get_i64(file, "/", "end_id", &end_id));
  SMOE_CHECK(vocabulary >= 1 && vocabulary <= INT32_MAX && end_id >= -1 && end_id < vocabulary,
             SMOE_ERR_FORMAT, "the corpus '%s' is damaged: vocabulary %lld, end token %lld", corpus->path,
             (long long)vocabulary, (long long)end_id);
  corpus->vocabulary = (int)vocabulary;
  corpus->end_id = (int32_t)end_id;
  SMOE_TRY(smoe_h5_get_u64(file, "/", "fingerprint", &corpus->fingerprint));
  SMOE_TRY(smoe_h5_get_f64(file, "/", "unigram_nats", &corpus->unigram));
  return smoe_h5_get_f64(file, "/", "bigram_nats", &corpus->bigram);
}

static smoe_status read_split(smoe_corpus *corpus, hid_t file, smoe_split split) {
  char group[32], name[64];
  snprintf(group, sizeof group, "/%s", smoe_split_name(split));
  snprintf(name, sizeof name, "%s/tokens", group);
  const hid_t type = smoe_corpus_token_type(corpus->vocabulary);
  SMOE_TRY(smoe_corpus_vector_size(file, name, type, 0, &corpus->n_tokens[split]));

  snprintf(name, sizeof name, "%s/document", group);
  int64_t n_offsets = 0, first, last;
  SMOE_TRY(smoe_corpus_vector_size(file, name, H5T_STD_I64LE, 1, &n_offsets));
  SMOE_TRY(smoe_h5_read(file, name, H5T_NATIVE_INT64, &first, 0, 1));
  SMOE_TRY(smoe_h5_read(file, name, H5T_NATIVE_INT64, &last, n_offsets - 1, 1));
  SMOE_CHECK(first == 0 && last == corpus->n_tokens[split], SMOE_ERR_FORMAT,
             "the corpus '%s' is damaged: the documents of %s run from %lld to %lld, its tokens from 0 to "
             "%lld",
             corpus->path, smoe_split_name(split), (long long)first, (long long)last,
             (long long)corpus->n_tokens[split]);
  corpus->n_documents[split] = n_offsets - 1;
  return smoe_h5_get_i64(file, group, "n_bytes", &corpus->n_bytes[split]);
}

static smoe_status read_model(smoe_corpus *corpus, hid_t file) {
  char kind[32] = "none"; /* other programs may leave it out */
  if (smoe_h5_has_attribute(file, "/", "tokenizer"))
    SMOE_TRY(smoe_h5_get_text(file, "/", "tokenizer", kind, sizeof kind));
  SMOE_TRY(smoe_corpus_get_model(file, &corpus->model, &corpus->model_bytes));
  corpus->tokenizer = smoe_tokenizer_hash(kind, corpus->model, corpus->model_bytes);
  return SMOE_OK;
}

static smoe_status read_about(smoe_corpus *corpus, hid_t file) {
  SMOE_TRY(check_format(file, corpus->path));
  SMOE_TRY(read_attributes(corpus, file));
  for (int s = 0; s < SMOE_SPLITS; s++) SMOE_TRY(read_split(corpus, file, s));
  return read_model(corpus, file);
}

static const smoe_corpus_words words = {"stablemoe prepare", " TEXT...", "corpus", "tokens"};

smoe_status smoe_corpus_open_local(smoe_corpus *corpus, const char *path) {
  *corpus = (smoe_corpus){0};
  SMOE_TRY(smoe_corpus_open_file(&corpus->file, corpus->path, sizeof corpus->path, path, &words));
  if (!realpath(path, corpus->absolute)) corpus->absolute[0] = '\0';
  const smoe_status status = read_about(corpus, file_of(corpus));
  if (status != SMOE_OK) {
    /* Closing may fail again, and the first report says more. */
    char *report = smoe_strdup(smoe_last_error());
    smoe_corpus_close(corpus);
    smoe_report_set(report);
    smoe_free(report);
  }
  return status;
}

smoe_status smoe_corpus_open(smoe_corpus *corpus, const smoe_group *group, const char *path) {
  smoe_status status = smoe_group_agree(group, smoe_corpus_open_local(corpus, path));
  if (status == SMOE_OK) status = smoe_corpus_check_same(group, corpus->fingerprint, path, &words);
  if (status != SMOE_OK) smoe_corpus_close(corpus);
  return status;
}

void smoe_corpus_close(smoe_corpus *corpus) {
  if (corpus->file) smoe_h5_close(file_of(corpus));
  smoe_free(corpus->file);
  smoe_free(corpus->model);
  corpus->file = NULL;
  corpus->model = NULL;
  corpus->model_bytes = 0;
}

void smoe_corpus_read(const smoe_corpus *corpus, smoe_split split, int64_t first, size_t n, int32_t *tokens) {
  const int64_t size = corpus->n_tokens[split];
  if (first < 0 || first > size || (int64_t)n > size - first)
    SMOE_PANIC(SMOE_ERR_BUG, "%zu tokens from %lld on leave the split %s of '%s', which has %lld", n,
               (long long)first, smoe_split_name(split), corpus->path, (long long)size);
  if (n == 0) return;
  if (!corpus->file) {
    smoe_corpus_synthetic_read(corpus, first, n, tokens);
    return;
  }
  char name[64];
  snprintf(name, sizeof name, "/%s/tokens", smoe_split_name(split));
  if (smoe_fault("corpus.read"))
    SMOE_PANIC(SMOE_ERR_IO, "cannot read '%s' of '%s': injected fault", name, corpus->path);
  const smoe_status status = smoe_h5_read(file_of(corpus), name, H5T_NATIVE_INT32, tokens, first, (int64_t)n);
  if (status != SMOE_OK) SMOE_PANIC(status, "%s", smoe_last_error());
  for (size_t i = 0; i < n; i++) {
    if (tokens[i] < 0 || tokens[i] >= corpus->vocabulary)
      SMOE_PANIC(SMOE_ERR_FORMAT, "the corpus '%s' is damaged: token %lld of %s is %d, the vocabulary %d",
                 corpus->path, (long long)(first + (int64_t)i), smoe_split_name(split), tokens[i],
                 corpus->vocabulary);
  }
}

static void count_synthetic(const smoe_corpus *corpus, int64_t *count) {
  enum { MILLION = 1 << 20 };
  const int64_t size = corpus->n_tokens[SMOE_TRAIN];
  const size_t n = size < MILLION ? (size_t)size : MILLION;
  int32_t *tokens = smoe_alloc(n * sizeof *tokens);
  smoe_corpus_read(corpus, SMOE_TRAIN, 0, n, tokens);
  memset(count, 0, (size_t)corpus->vocabulary * sizeof *count);
  for (size_t i = 0; i < n; i++) count[tokens[i]]++;
  smoe_free(tokens);
}

smoe_status smoe_corpus_counts(const smoe_corpus *corpus, int64_t *count) {
  const int64_t v = corpus->vocabulary;
  if (!corpus->file) {
    count_synthetic(corpus, count);
    return SMOE_OK;
  }
  SMOE_TRY(smoe_h5_expect(file_of(corpus), "/count", H5T_STD_I64LE, 1, &v));
  SMOE_TRY(smoe_h5_read(file_of(corpus), "/count", H5T_NATIVE_INT64, count, 0, v));
  for (int64_t i = 0; i < v; i++)
    SMOE_CHECK(count[i] >= 0, SMOE_ERR_FORMAT, "the corpus '%s' is damaged: it counts %lld of token %lld",
               corpus->path, (long long)count[i], (long long)i);
  return SMOE_OK;
}

smoe_status smoe_corpus_document_ends(const smoe_corpus *corpus, smoe_split split, int64_t first, size_t n,
                                      int64_t *end) {
  char name[64];
  snprintf(name, sizeof name, "/%s/document", smoe_split_name(split));
  SMOE_TRY(smoe_h5_read(file_of(corpus), name, H5T_NATIVE_INT64, end, first + 1, (int64_t)n));
  for (size_t i = 0; i < n; i++)
    SMOE_CHECK(end[i] >= (i ? end[i - 1] : 0) && end[i] <= corpus->n_tokens[split], SMOE_ERR_FORMAT,
               "the corpus '%s' is damaged: document %lld of %s ends at token %lld", corpus->path,
               (long long)(first + (int64_t)i), smoe_split_name(split), (long long)end[i]);
  return SMOE_OK;
}
