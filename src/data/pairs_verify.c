#include <stdio.h>

#include "corpus_file.h"
#include "pairs_file.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"

enum { BLOCK = SMOE_CORPUS_BLOCK };

const char *smoe_side_name(smoe_side side) {
  static const char *const names[SMOE_SIDES] = {"source", "target"};
  return names[side];
}

const char *smoe_left_out_name(smoe_left_out reason) {
  static const char *const names[SMOE_LEFT_OUT_REASONS] = {"empty", "long", "unequal"};
  return names[reason];
}

void smoe_pairs_index(smoe_pair_split *split) {
  const size_t n_blocks = (size_t)(split->n_pairs / SMOE_PAIR_BLOCK + 1);
  for (int side = 0; side < SMOE_SIDES; side++) {
    split->block[side] = smoe_alloc(n_blocks * sizeof(int64_t));
    int64_t first = 0;
    for (int64_t i = 0; i < split->n_pairs; i++) {
      if (i % SMOE_PAIR_BLOCK == 0) split->block[side][i / SMOE_PAIR_BLOCK] = first;
      first += split->length[side][i];
    }
  }
}

void smoe_pairs_release(smoe_pairs *pairs) {
  for (int s = 0; s < SMOE_SPLITS; s++) {
    smoe_pair_split *split = &pairs->split[s];
    smoe_free(split->direction);
    for (int side = 0; side < SMOE_SIDES; side++) {
      smoe_free(split->length[side]);
      smoe_free(split->token[side]);
      smoe_free(split->block[side]);
      smoe_free(split->n_bytes[side]);
    }
    *split = (smoe_pair_split){0};
  }
}

void smoe_pairs_hash_split(const smoe_pair_split *split, XXH64_state_t *hash) {
  const size_t n = (size_t)split->n_pairs;
  XXH64_update(hash, &split->n_pairs, sizeof split->n_pairs);
  XXH64_update(hash, split->direction, n);
  for (int side = 0; side < SMOE_SIDES; side++)
    XXH64_update(hash, split->length[side], n * sizeof *split->length[side]);
}

static smoe_status hash_side(const smoe_pairs *pairs, smoe_split split, smoe_side side, XXH64_state_t *hash,
                             int32_t *block) {
  char name[64];
  snprintf(name, sizeof name, "/%s/%s/tokens", smoe_split_name(split), smoe_side_name(side));
  const int64_t n = pairs->split[split].n_tokens[side];
  for (int64_t first = 0; first < n; first += BLOCK) {
    const int64_t count = n - first < BLOCK ? n - first : BLOCK;
    SMOE_TRY(smoe_h5_read(*(const hid_t *)pairs->file, name, H5T_NATIVE_INT32, block, first, count));
    XXH64_update(hash, block, (size_t)count * sizeof *block);
  }
  return SMOE_OK;
}

static smoe_status verify(const smoe_pairs *pairs, XXH64_state_t *hash, int32_t *block) {
  XXH64_reset(hash, 0);
  for (int s = 0; s < SMOE_SPLITS; s++) {
    smoe_pairs_hash_split(&pairs->split[s], hash);
    for (int side = 0; side < SMOE_SIDES; side++) SMOE_TRY(hash_side(pairs, s, side, hash, block));
  }
  SMOE_CHECK(XXH64_digest(hash) == pairs->fingerprint, SMOE_ERR_FORMAT,
             "the corpus '%s' is damaged: its tokens are not those of its fingerprint; take a valid copy, or "
             "prepare it again",
             pairs->path);
  return SMOE_OK;
}

smoe_status smoe_pairs_verify_open(const smoe_pairs *pairs) {
  int32_t *block = smoe_alloc(BLOCK * sizeof *block);
  XXH64_state_t *hash = XXH64_createState();
  const smoe_status status = verify(pairs, hash, block);
  XXH64_freeState(hash);
  smoe_free(block);
  return status;
}

smoe_status smoe_pairs_verify(const char *path) {
  smoe_pairs pairs;
  SMOE_TRY(smoe_pairs_open_local(&pairs, path));
  const smoe_status status = smoe_pairs_verify_open(&pairs);
  smoe_pairs_close(&pairs);
  return status;
}

smoe_status smoe_pairs_check(const smoe_pairs *pairs, const smoe_group *group) {
  int64_t n = 0;
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int side = 0; side < SMOE_SIDES; side++) n += pairs->split[s].n_tokens[side];
  if (n > SMOE_CORPUS_CHECKED) {
    smoe_note(
        "'%s' is large: its tokens are not compared with their fingerprint; `stablemoe info --verify` does",
        pairs->path);
    return SMOE_OK;
  }
  const bool mine = smoe_corpus_first_of_node(group) && smoe_h5_is_sealed(pairs->path);
  return smoe_group_agree(group, mine ? smoe_pairs_verify_open(pairs) : SMOE_OK);
}
