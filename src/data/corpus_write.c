#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "corpus_file.h"
#include "stablemoe/arena.h"
#include "statistics.h"

enum { BLOCK = SMOE_CORPUS_BLOCK };

typedef struct writing {
  smoe_spool *spool;
  const smoe_corpus_about *about;
  hid_t file;
  int32_t *block;
  smoe_statistics statistics;
  XXH64_state_t *hash;
} writing;

static size_t block_tokens(int64_t rest) {
  return rest < BLOCK ? (size_t)rest : BLOCK;
}

/** The fingerprint is of the number of tokens of each split, and the tokens as 32-bit integers. */
static void hash_tokens(XXH64_state_t *hash, const int32_t *tokens, size_t n) {
  XXH64_update(hash, tokens, n * sizeof *tokens);
}

static smoe_status write_tokens(writing *w, smoe_split split, const char *name) {
  const int64_t n = w->spool->n_tokens[split];
  const hid_t type = smoe_corpus_token_type(w->spool->vocabulary);
  SMOE_TRY(smoe_h5_dataset(w->file, name, type, 1, &n));
  XXH64_update(w->hash, &n, sizeof n);
  for (int64_t first = 0; first < n; first += BLOCK) {
    const size_t count = block_tokens(n - first);
    SMOE_TRY(smoe_spool_read(w->spool, split, first, count, w->block));
    SMOE_TRY(smoe_h5_write(w->file, name, H5T_NATIVE_INT32, w->block, first, (int64_t)count));
    hash_tokens(w->hash, w->block, count);
    if (split == SMOE_TRAIN) smoe_statistics_train(&w->statistics, w->block, count);
    if (split == SMOE_VALID) smoe_statistics_valid(&w->statistics, w->block, count);
  }
  return SMOE_OK;
}

static smoe_status write_split(writing *w, smoe_split split) {
  const smoe_spool *spool = w->spool;
  char name[64], group[32];
  snprintf(group, sizeof group, "/%s", smoe_split_name(split));
  snprintf(name, sizeof name, "%s/tokens", group);
  SMOE_TRY(write_tokens(w, split, name));
  snprintf(name, sizeof name, "%s/document", group);
  SMOE_TRY(smoe_corpus_put(w->file, name, H5T_STD_I64LE, H5T_NATIVE_INT64, spool->document[split],
                           spool->n_documents[split] + 1));
  return smoe_h5_set_i64(w->file, group, "n_bytes", spool->n_bytes[split]);
}

static smoe_status write_attributes(writing *w) {
  const hid_t file = w->file;
  SMOE_TRY(smoe_h5_set_text(file, "/", "format", "stablemoe-corpus"));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "format_version", 1));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "vocabulary", w->spool->vocabulary));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "end_id", w->about->end_id));
  SMOE_TRY(smoe_h5_set_u64(file, "/", "fingerprint", XXH64_digest(w->hash)));
  SMOE_TRY(smoe_h5_set_f64(file, "/", "unigram_nats", smoe_statistics_unigram(&w->statistics)));
  SMOE_TRY(smoe_h5_set_f64(file, "/", "bigram_nats", smoe_statistics_bigram(&w->statistics)));
  SMOE_TRY(smoe_h5_set_text(file, "/", "tokenizer", w->about->kind));
  return smoe_h5_set_text(file, "/", "sources", w->about->sources);
}

static smoe_status write_all(writing *w) {
  for (int s = 0; s < SMOE_SPLITS; s++) SMOE_TRY(write_split(w, s));
  SMOE_TRY(smoe_corpus_put(w->file, "/count", H5T_STD_I64LE, H5T_NATIVE_INT64, w->statistics.count,
                           w->spool->vocabulary));
  SMOE_TRY(smoe_corpus_put_tokenizer(w->file, w->about));
  SMOE_CHECK(!smoe_fault("corpus.write"), SMOE_ERR_IO, "cannot write '%s': injected fault", w->spool->output);
  return write_attributes(w);
}

/** Compare what an opened file holds with the spool and the fingerprint. */
static smoe_status compare(writing *w, const smoe_corpus *corpus) {
  XXH64_reset(w->hash, 0);
  for (int s = 0; s < SMOE_SPLITS; s++) {
    const int64_t n = corpus->n_tokens[s];
    XXH64_update(w->hash, &n, sizeof n);
    for (int64_t first = 0; first < n; first += BLOCK) {
      const size_t count = block_tokens(n - first);
      smoe_corpus_read(corpus, s, first, count, w->block);
      hash_tokens(w->hash, w->block, count);
    }
  }
  const smoe_corpus_about *about = w->about;
  const bool same = XXH64_digest(w->hash) == corpus->fingerprint &&
                    corpus->model_bytes == about->model_bytes &&
                    (!about->model || memcmp(corpus->model, about->model, about->model_bytes) == 0);
  SMOE_CHECK(same, SMOE_ERR_IO, "what was written to '%s' is not what is read back from it: a bad disk?",
             corpus->path);
  return SMOE_OK;
}

static smoe_status verify(writing *w, const char *path) {
  smoe_corpus corpus;
  SMOE_TRY(smoe_corpus_open_local(&corpus, path));
  const smoe_status status = compare(w, &corpus);
  smoe_corpus_close(&corpus);
  return status;
}

static smoe_status write_part(writing *w, const char *path) {
  SMOE_TRY(smoe_h5_create(&w->file, path, NULL));
  return smoe_h5_close_after(w->file, write_all(w));
}

/** A sequence takes one token and the one after it; a split may also be empty. */
static smoe_status check_spool(const smoe_spool *spool) {
  for (int s = 0; s < SMOE_SPLITS; s++) {
    SMOE_CHECK(fflush(spool->stream[s]) == 0, SMOE_ERR_IO, "cannot write tokens next to '%s': %s",
               spool->output, strerror(errno));
    SMOE_CHECK(
        spool->n_tokens[s] != 1, SMOE_ERR_CONFIG,
        "too little text: %s would have one token alone; give more text, larger shares, or a share of 0",
        smoe_split_name(s));
  }
  return SMOE_OK;
}

smoe_status smoe_corpus_write(smoe_spool *spool, const smoe_corpus_about *about) {
  SMOE_TRY(check_spool(spool));
  char *part = smoe_sprintf("%s.part", spool->output);
  writing w = {.spool = spool, .about = about, .hash = XXH64_createState()};
  w.block = smoe_alloc(BLOCK * sizeof *w.block);
  smoe_statistics_open(&w.statistics, spool->vocabulary);
  XXH64_reset(w.hash, 0);

  smoe_status status = write_part(&w, part);
  if (status == SMOE_OK) status = verify(&w, part);
  if (status == SMOE_OK) status = smoe_h5_publish(part, spool->output);
  if (status != SMOE_OK) unlink(part);

  smoe_statistics_close(&w.statistics);
  XXH64_freeState(w.hash);
  smoe_free(w.block);
  smoe_free(part);
  return status;
}
