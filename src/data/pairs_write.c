#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "corpus_file.h"
#include "pairs_file.h"
#include "stablemoe/arena.h"

enum { BLOCK = SMOE_CORPUS_BLOCK };

typedef struct writing {
  smoe_pair_writer *writer;
  const smoe_corpus_about *about;
  hid_t file;
  int32_t *block;
  int64_t *count[SMOE_SIDES]; /* [V] of the training split */
  XXH64_state_t *hash;
  uint64_t fingerprint;
} writing;

smoe_status smoe_pair_writer_open(smoe_pair_writer *writer, smoe_pairs *pairs, const char *output) {
  *writer = (smoe_pair_writer){.pairs = pairs};
  for (int side = 0; side < SMOE_SIDES; side++)
    SMOE_TRY(smoe_spool_open(&writer->spool[side], output, pairs->vocabulary));
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int side = 0; side < SMOE_SIDES; side++)
      pairs->split[s].n_bytes[side] = smoe_alloc((size_t)pairs->n_directions * sizeof(int64_t));
  return SMOE_OK;
}

void smoe_pair_writer_close(smoe_pair_writer *writer) {
  for (int side = 0; side < SMOE_SIDES; side++) smoe_spool_close(&writer->spool[side]);
  if (writer->pairs) smoe_pairs_release(writer->pairs);
}

smoe_status smoe_pair_writer_add(smoe_pair_writer *writer, smoe_split split, int direction,
                                 const int32_t *const tokens[SMOE_SIDES], const size_t n[SMOE_SIDES],
                                 const int64_t n_bytes[SMOE_SIDES]) {
  smoe_pair_split *to = &writer->pairs->split[split];
  for (int side = 0; side < SMOE_SIDES; side++) {
    SMOE_TRY(smoe_spool_add(&writer->spool[side], split, tokens[side], n[side]));
    smoe_spool_end(&writer->spool[side], split, n_bytes[side]);
    to->n_bytes[side][direction] += n_bytes[side];
    to->n_tokens[side] += (int64_t)n[side];
  }
  const int64_t i = to->n_pairs++;
  if ((i & (i + 1)) == 0) to->direction = smoe_realloc(to->direction, 2 * (size_t)i + 2);
  to->direction[i] = (uint8_t)direction;
  return SMOE_OK;
}

/** Set the lengths from the offsets, and check that there is something in each split. */
static smoe_status count_lengths(smoe_pair_writer *writer) {
  for (int s = 0; s < SMOE_SPLITS; s++) {
    smoe_pair_split *split = &writer->pairs->split[s];
    SMOE_CHECK(split->n_pairs > 0, SMOE_ERR_CONFIG,
               "the %s split has no pair: give more pairs, %s, or allow longer ones (--max-tokens)",
               smoe_split_name(s), s == SMOE_TRAIN ? "smaller shares" : "a larger share or files of its own");
    for (int side = 0; side < SMOE_SIDES; side++) {
      smoe_spool *spool = &writer->spool[side];
      SMOE_CHECK(fflush(spool->stream[s]) == 0, SMOE_ERR_IO, "cannot write tokens next to '%s': %s",
                 spool->output, strerror(errno));
      split->length[side] = smoe_alloc((size_t)split->n_pairs * sizeof *split->length[side]);
      for (int64_t i = 0; i < split->n_pairs; i++)
        split->length[side][i] = (uint16_t)(spool->document[s][i + 1] - spool->document[s][i]);
    }
  }
  return SMOE_OK;
}

static smoe_status write_tokens(writing *w, smoe_split split, smoe_side side, const char *name) {
  smoe_spool *spool = &w->writer->spool[side];
  const int64_t n = spool->n_tokens[split];
  SMOE_TRY(smoe_h5_dataset(w->file, name, smoe_corpus_token_type(spool->vocabulary), 1, &n));
  for (int64_t first = 0; first < n; first += BLOCK) {
    const size_t count = n - first < BLOCK ? (size_t)(n - first) : BLOCK;
    SMOE_TRY(smoe_spool_read(spool, split, first, count, w->block));
    SMOE_TRY(smoe_h5_write(w->file, name, H5T_NATIVE_INT32, w->block, first, (int64_t)count));
    XXH64_update(w->hash, w->block, count * sizeof *w->block);
    for (size_t i = 0; i < count && split == SMOE_TRAIN; i++) w->count[side][w->block[i]]++;
  }
  return SMOE_OK;
}

static smoe_status write_sides(writing *w, smoe_split s, const char *group) {
  char name[64];
  smoe_pairs_hash_split(&w->writer->pairs->split[s], w->hash);
  for (int side = 0; side < SMOE_SIDES; side++) {
    const smoe_spool *spool = &w->writer->spool[side];
    snprintf(name, sizeof name, "%s/%s/tokens", group, smoe_side_name(side));
    SMOE_TRY(write_tokens(w, s, side, name));
    snprintf(name, sizeof name, "%s/%s/offset", group, smoe_side_name(side));
    SMOE_TRY(smoe_corpus_put(w->file, name, H5T_STD_I64LE, H5T_NATIVE_INT64, spool->document[s],
                             spool->n_documents[s] + 1));
  }
  return SMOE_OK;
}

static smoe_status write_split(writing *w, smoe_split s) {
  const smoe_pairs *pairs = w->writer->pairs;
  const smoe_pair_split *split = &pairs->split[s];
  char group[32], name[64];
  snprintf(group, sizeof group, "/%s", smoe_split_name(s));
  SMOE_TRY(write_sides(w, s, group));
  snprintf(name, sizeof name, "%s/direction", group);
  SMOE_TRY(smoe_corpus_put(w->file, name, H5T_STD_U8LE, H5T_NATIVE_UINT8, split->direction, split->n_pairs));
  snprintf(name, sizeof name, "%s/bytes", group);
  const int64_t shape[2] = {SMOE_SIDES, pairs->n_directions};
  SMOE_TRY(smoe_h5_dataset(w->file, name, H5T_STD_I64LE, 2, shape));
  for (int side = 0; side < SMOE_SIDES; side++)
    SMOE_TRY(smoe_h5_write(w->file, name, H5T_NATIVE_INT64, split->n_bytes[side], side * shape[1], shape[1]));
  SMOE_TRY(smoe_h5_set_i64(w->file, group, "n_pairs", split->n_pairs));
  SMOE_TRY(smoe_h5_set_i64(w->file, group, "repeated", split->n_repeated));
  for (int r = 0; r < SMOE_LEFT_OUT_REASONS; r++) {
    snprintf(name, sizeof name, "left_out_%s", smoe_left_out_name(r));
    SMOE_TRY(smoe_h5_set_i64(w->file, group, name, split->left_out[r]));
  }
  return SMOE_OK;
}

static smoe_status write_languages(writing *w) {
  const smoe_pairs *pairs = w->writer->pairs;
  char text[SMOE_LANGUAGES_MAX * SMOE_LANGUAGE_BYTES] = "";
  for (int l = 0; l < pairs->n_languages; l++) {
    if (l > 0) strcat(text, " ");
    strcat(text, pairs->language[l]);
  }
  SMOE_TRY(smoe_h5_set_text(w->file, "/", "languages", text));
  SMOE_TRY(smoe_corpus_put(w->file, "/tag", H5T_STD_I32LE, H5T_NATIVE_INT32, pairs->tag, pairs->n_languages));
  const int64_t shape[2] = {pairs->n_directions, SMOE_SIDES};
  SMOE_TRY(smoe_h5_dataset(w->file, "/direction", H5T_STD_U8LE, 2, shape));
  return smoe_h5_write(w->file, "/direction", H5T_NATIVE_UINT8, pairs->direction, 0, shape[0] * shape[1]);
}

static smoe_status write_all(writing *w) {
  const smoe_pairs *pairs = w->writer->pairs;
  for (int s = 0; s < SMOE_SPLITS; s++) SMOE_TRY(write_split(w, s));
  SMOE_TRY(write_languages(w));
  for (int side = 0; side < SMOE_SIDES; side++) {
    char name[64];
    snprintf(name, sizeof name, "/count/%s", smoe_side_name(side));
    SMOE_TRY(
        smoe_corpus_put(w->file, name, H5T_STD_I64LE, H5T_NATIVE_INT64, w->count[side], pairs->vocabulary));
  }
  SMOE_TRY(smoe_corpus_put_tokenizer(w->file, w->about));
  SMOE_CHECK(!smoe_fault("corpus.write"), SMOE_ERR_IO, "cannot write '%s': injected fault",
             smoe_h5_path(w->file));
  w->fingerprint = XXH64_digest(w->hash);
  SMOE_TRY(smoe_h5_set_text(w->file, "/", "format", "stablemoe-pairs"));
  SMOE_TRY(smoe_h5_set_i64(w->file, "/", "format_version", 1));
  SMOE_TRY(smoe_h5_set_i64(w->file, "/", "vocabulary", pairs->vocabulary));
  SMOE_TRY(smoe_h5_set_i64(w->file, "/", "end_id", pairs->end_id));
  SMOE_TRY(smoe_h5_set_u64(w->file, "/", "fingerprint", w->fingerprint));
  SMOE_TRY(smoe_h5_set_text(w->file, "/", "tokenizer", w->about->kind));
  return smoe_h5_set_text(w->file, "/", "sources", w->about->sources);
}

static smoe_status write_part(writing *w, const char *path) {
  SMOE_TRY(smoe_h5_create(&w->file, path, NULL));
  return smoe_h5_close_after(w->file, write_all(w));
}

/** Read the file again and compare it with what was hashed while it was written. */
static smoe_status verify(const writing *w, const char *path) {
  smoe_pairs pairs;
  SMOE_TRY(smoe_pairs_open_local(&pairs, path));
  const bool same = pairs.fingerprint == w->fingerprint && pairs.model_bytes == w->about->model_bytes &&
                    memcmp(pairs.model, w->about->model, pairs.model_bytes) == 0;
  const smoe_status status = same ? smoe_pairs_verify_open(&pairs) : SMOE_ERR_IO;
  smoe_pairs_close(&pairs);
  SMOE_CHECK(status == SMOE_OK, SMOE_ERR_IO,
             "what was written to '%s' is not what is read back from it: a bad disk?", path);
  return SMOE_OK;
}

smoe_status smoe_pair_writer_finish(smoe_pair_writer *writer, const smoe_corpus_about *about) {
  SMOE_TRY(count_lengths(writer));
  const char *output = writer->spool[0].output;
  char *part = smoe_sprintf("%s.part", output);
  writing w = {.writer = writer, .about = about, .hash = XXH64_createState()};
  w.block = smoe_alloc(BLOCK * sizeof *w.block);
  for (int side = 0; side < SMOE_SIDES; side++)
    w.count[side] = smoe_alloc((size_t)writer->pairs->vocabulary * sizeof(int64_t));
  XXH64_reset(w.hash, 0);

  smoe_status status = write_part(&w, part);
  if (status == SMOE_OK) status = verify(&w, part);
  if (status == SMOE_OK) status = smoe_h5_publish(part, output);
  if (status != SMOE_OK) unlink(part);

  XXH64_freeState(w.hash);
  for (int side = 0; side < SMOE_SIDES; side++) smoe_free(w.count[side]);
  smoe_free(w.block);
  smoe_free(part);
  return status;
}
