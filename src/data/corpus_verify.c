#include <stdio.h>
#include <xxhash.h>

#include "spool.h"
#include "stablemoe/arena.h"
#include "stablemoe/corpus.h"
#include "stablemoe/h5.h"

/* Tokens per transfer. */
enum { BLOCK = 1 << 20 };

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
             "the corpus '%s' is damaged: its tokens are not those of its fingerprint", corpus->path);
  return SMOE_OK;
}

smoe_status smoe_corpus_verify(const char *path) {
  smoe_corpus corpus;
  SMOE_TRY(smoe_corpus_open_local(&corpus, path));
  if (!corpus.file) return SMOE_OK; /* made up while it is read: there is no file to be damaged */
  int32_t *block = smoe_alloc(BLOCK * sizeof *block);
  XXH64_state_t *hash = XXH64_createState();
  const smoe_status status = verify(&corpus, hash, block);
  XXH64_freeState(hash);
  smoe_free(block);
  smoe_corpus_close(&corpus);
  return status;
}
