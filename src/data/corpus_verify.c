#include <stdio.h>
#include <xxhash.h>

#include "corpus_file.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"

enum { BLOCK = SMOE_CORPUS_BLOCK };

/** Hash a split as smoe_corpus_write does. */
static smoe_status hash_split(const smoe_corpus *corpus, smoe_split split, XXH64_state_t *hash,
                              int32_t *block) {
  char name[64];
  snprintf(name, sizeof name, "/%s/tokens", smoe_split_name(split));
  const int64_t n = corpus->n_tokens[split];
  XXH64_update(hash, &n, sizeof n);
  for (int64_t first = 0; first < n; first += BLOCK) {
    const int64_t count = n - first < BLOCK ? n - first : BLOCK;
    SMOE_TRY(smoe_h5_read(*(const hid_t *)corpus->file, name, H5T_NATIVE_INT32, block, first, count));
    XXH64_update(hash, block, (size_t)count * sizeof *block);
    for (int64_t i = 0; i < count; i++)
      SMOE_CHECK(block[i] >= 0 && block[i] < corpus->vocabulary, SMOE_ERR_FORMAT,
                 "the corpus '%s' is damaged: token %lld of %s is %d, the vocabulary %d", corpus->path,
                 (long long)(first + i), smoe_split_name(split), block[i], corpus->vocabulary);
  }
  return SMOE_OK;
}

static smoe_status verify(const smoe_corpus *corpus, XXH64_state_t *hash, int32_t *block) {
  XXH64_reset(hash, 0);
  for (int s = 0; s < SMOE_SPLITS; s++) SMOE_TRY(hash_split(corpus, s, hash, block));
  SMOE_CHECK(XXH64_digest(hash) == corpus->fingerprint, SMOE_ERR_FORMAT,
             "the corpus '%s' is damaged: its tokens are not those of its fingerprint; take a valid copy, or "
             "prepare it again",
             corpus->path);
  return SMOE_OK;
}

static smoe_status verify_open(const smoe_corpus *corpus) {
  if (!corpus->file) return SMOE_OK; /* made up while it is read: there is no file to be damaged */
  int32_t *block = smoe_alloc(BLOCK * sizeof *block);
  XXH64_state_t *hash = XXH64_createState();
  const smoe_status status = verify(corpus, hash, block);
  XXH64_freeState(hash);
  smoe_free(block);
  return status;
}

smoe_status smoe_corpus_verify(const char *path) {
  smoe_corpus corpus;
  SMOE_TRY(smoe_corpus_open_local(&corpus, path));
  const smoe_status status = verify_open(&corpus);
  smoe_corpus_close(&corpus);
  return status;
}

smoe_status smoe_corpus_check(const smoe_corpus *corpus, const smoe_group *group) {
  int64_t n = 0;
  for (int s = 0; s < SMOE_SPLITS; s++) n += corpus->n_tokens[s];
  if (n > SMOE_CORPUS_CHECKED) {
    smoe_note(
        "'%s' is large: its tokens are not compared with their fingerprint; `stablemoe info --verify` does",
        corpus->path);
    return SMOE_OK;
  }
  const bool mine = smoe_corpus_first_of_node(group) && smoe_h5_is_sealed(corpus->path);
  return smoe_group_agree(group, mine ? verify_open(corpus) : SMOE_OK);
}
