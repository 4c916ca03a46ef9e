#include "stablemoe/pairs.h"

#include <string.h>

#include "corpus_file.h"
#include "pairs_file.h"
#include "stablemoe/arena.h"

/* Offsets that are read at once. */
enum { OFFSETS = 1 << 16 };

static hid_t file_of(const smoe_pairs *pairs) {
  return *(const hid_t *)pairs->file;
}

static smoe_status check_format(hid_t file, const char *path) {
  char format[64];
  int64_t version = 0;
  const bool has_format = smoe_h5_get_text(file, "/", "format", format, sizeof format) == SMOE_OK;
  SMOE_CHECK(
      !has_format || strcmp(format, "stablemoe-corpus") != 0, SMOE_ERR_FORMAT,
      "'%s' is a corpus of text, for language models; translation needs one of sentence pairs: make it "
      "with 'stablemoe prepare --pair SRC-TGT SOURCE TARGET -o PAIRS.h5'",
      path);
  SMOE_CHECK(!has_format || strcmp(format, "stablemoe-images") != 0, SMOE_ERR_FORMAT,
             "'%s' is a corpus of images, which model.family cnn and vision read; translation needs one of "
             "sentence pairs",
             path);
  SMOE_CHECK(has_format && strcmp(format, "stablemoe-pairs") == 0, SMOE_ERR_FORMAT,
             "'%s' is an HDF5 file but not a corpus of pairs: make one with 'stablemoe prepare --pair'",
             path);
  SMOE_TRY(smoe_h5_get_i64(file, "/", "format_version", &version));
  SMOE_CHECK(version == 1, SMOE_ERR_FORMAT,
             "the corpus '%s' has format version %lld, this program reads version 1: prepare it again", path,
             (long long)version);
  return SMOE_OK;
}

/** Split "de en cs" into the codes. */
static smoe_status read_codes(smoe_pairs *pairs, const char *text) {
  const size_t length = strlen(text);
  for (size_t at = 0; at <= length;) {
    const size_t n = strcspn(text + at, " ");
    SMOE_CHECK(n > 0 && n < SMOE_LANGUAGE_BYTES && pairs->n_languages < SMOE_LANGUAGES_MAX, SMOE_ERR_FORMAT,
               "the corpus '%s' is damaged: its languages are '%s'", pairs->path, text);
    memcpy(pairs->language[pairs->n_languages++], text + at, n);
    at += n + 1;
  }
  return SMOE_OK;
}

static smoe_status read_languages(smoe_pairs *pairs, hid_t file) {
  char text[SMOE_LANGUAGES_MAX * SMOE_LANGUAGE_BYTES];
  SMOE_TRY(smoe_h5_get_text(file, "/", "languages", text, sizeof text));
  SMOE_TRY(read_codes(pairs, text));
  const int64_t n = pairs->n_languages;
  SMOE_TRY(smoe_h5_expect(file, "/tag", H5T_STD_I32LE, 1, &n));
  SMOE_TRY(smoe_h5_read(file, "/tag", H5T_NATIVE_INT32, pairs->tag, 0, n));
  for (int l = 0; l < pairs->n_languages; l++)
    SMOE_CHECK(pairs->tag[l] >= 0 && pairs->tag[l] < pairs->vocabulary, SMOE_ERR_FORMAT,
               "the corpus '%s' is damaged: the tag of %s is %d, the vocabulary %d", pairs->path,
               pairs->language[l], pairs->tag[l], pairs->vocabulary);
  return SMOE_OK;
}

static smoe_status read_directions(smoe_pairs *pairs, hid_t file) {
  int n_dims;
  int64_t shape[SMOE_H5_DIMS];
  SMOE_TRY(smoe_h5_shape(file, "/direction", &n_dims, shape));
  SMOE_CHECK(n_dims == 2 && shape[0] >= 1 && shape[0] <= SMOE_DIRECTIONS_MAX && shape[1] == SMOE_SIDES,
             SMOE_ERR_FORMAT, "the corpus '%s' is damaged: '/direction' has a wrong shape", pairs->path);
  SMOE_TRY(smoe_h5_expect(file, "/direction", H5T_STD_U8LE, 2, shape));
  pairs->n_directions = (int)shape[0];
  SMOE_TRY(smoe_h5_read(file, "/direction", H5T_NATIVE_UINT8, pairs->direction, 0, shape[0] * shape[1]));
  for (int d = 0; d < pairs->n_directions; d++)
    for (int side = 0; side < SMOE_SIDES; side++)
      SMOE_CHECK(pairs->direction[d][side] < pairs->n_languages, SMOE_ERR_FORMAT,
                 "the corpus '%s' is damaged: direction %d has language %d of %d", pairs->path, d,
                 pairs->direction[d][side], pairs->n_languages);
  return SMOE_OK;
}

/** Read the offsets of one side in parts, and keep the lengths. buffer: [OFFSETS + 1] */
static smoe_status read_lengths(smoe_pairs *pairs, hid_t file, const char *name, smoe_pair_split *split,
                                smoe_side side, int64_t *buffer) {
  int64_t end = 0;
  const int64_t n_offsets = split->n_pairs + 1;
  SMOE_TRY(smoe_h5_expect(file, name, H5T_STD_I64LE, 1, &n_offsets));
  split->length[side] = smoe_alloc((size_t)split->n_pairs * sizeof *split->length[side]);
  for (int64_t first = 0; first < split->n_pairs; first += OFFSETS) {
    const int64_t n = split->n_pairs - first < OFFSETS ? split->n_pairs - first : OFFSETS;
    SMOE_TRY(smoe_h5_read(file, name, H5T_NATIVE_INT64, buffer, first, n + 1));
    for (int64_t i = 0; i < n; i++) {
      SMOE_CHECK(buffer[i] == end && buffer[i + 1] > buffer[i] &&
                     buffer[i + 1] - buffer[i] <= SMOE_PAIR_TOKENS_MAX,
                 SMOE_ERR_FORMAT, "the corpus '%s' is damaged: pair %lld of '%s' goes from %lld to %lld",
                 pairs->path, (long long)(first + i), name, (long long)buffer[i], (long long)buffer[i + 1]);
      split->length[side][first + i] = (uint16_t)(buffer[i + 1] - buffer[i]);
      end = buffer[i + 1];
    }
  }
  split->n_tokens[side] = end;
  return SMOE_OK;
}

static smoe_status check_ids(const smoe_pairs *pairs, const char *name, const int32_t *tokens, int64_t n,
                             int64_t first) {
  for (int64_t t = 0; t < n; t++)
    SMOE_CHECK(tokens[t] >= 0 && tokens[t] < pairs->vocabulary, SMOE_ERR_FORMAT,
               "the corpus '%s' is damaged: token %lld of '%s' is %d, the vocabulary %d", pairs->path,
               (long long)(first + t), name, tokens[t], pairs->vocabulary);
  return SMOE_OK;
}

static smoe_status read_side(smoe_pairs *pairs, hid_t file, smoe_split s, smoe_side side) {
  smoe_pair_split *split = &pairs->split[s];
  char name[64];
  snprintf(name, sizeof name, "/%s/%s/offset", smoe_split_name(s), smoe_side_name(side));
  int64_t *buffer = smoe_alloc((OFFSETS + 1) * sizeof *buffer);
  const smoe_status status = read_lengths(pairs, file, name, split, side, buffer);
  smoe_free(buffer);
  SMOE_TRY(status);
  snprintf(name, sizeof name, "/%s/%s/tokens", smoe_split_name(s), smoe_side_name(side));
  const int64_t n = split->n_tokens[side];
  SMOE_TRY(smoe_h5_expect(file, name, smoe_corpus_token_type(pairs->vocabulary), 1, &n));
  if (n > SMOE_PAIR_KEPT) return SMOE_OK;
  split->token[side] = smoe_alloc((size_t)n * sizeof *split->token[side]);
  SMOE_TRY(smoe_h5_read(file, name, H5T_NATIVE_INT32, split->token[side], 0, n));
  return check_ids(pairs, name, split->token[side], n, 0);
}

static smoe_status read_split_attributes(smoe_pairs *pairs, hid_t file, smoe_split s) {
  smoe_pair_split *split = &pairs->split[s];
  char group[32], name[64];
  snprintf(group, sizeof group, "/%s", smoe_split_name(s));
  SMOE_TRY(smoe_h5_get_i64(file, group, "n_pairs", &split->n_pairs));
  SMOE_TRY(smoe_h5_get_i64(file, group, "repeated", &split->n_repeated));
  for (int r = 0; r < SMOE_LEFT_OUT_REASONS; r++) {
    snprintf(name, sizeof name, "left_out_%s", smoe_left_out_name(r));
    SMOE_TRY(smoe_h5_get_i64(file, group, name, &split->left_out[r]));
  }
  SMOE_CHECK(split->n_pairs >= 1, SMOE_ERR_FORMAT, "the corpus '%s' is damaged: %s has %lld pairs",
             pairs->path, smoe_split_name(s), (long long)split->n_pairs);
  const int64_t shape[2] = {SMOE_SIDES, pairs->n_directions};
  snprintf(name, sizeof name, "%s/bytes", group);
  SMOE_TRY(smoe_h5_expect(file, name, H5T_STD_I64LE, 2, shape));
  for (int side = 0; side < SMOE_SIDES; side++) {
    split->n_bytes[side] = smoe_alloc((size_t)pairs->n_directions * sizeof(int64_t));
    SMOE_TRY(smoe_h5_read(file, name, H5T_NATIVE_INT64, split->n_bytes[side], side * shape[1], shape[1]));
  }
  return SMOE_OK;
}

static smoe_status read_split(smoe_pairs *pairs, hid_t file, smoe_split s) {
  smoe_pair_split *split = &pairs->split[s];
  char name[64];
  SMOE_TRY(read_split_attributes(pairs, file, s));
  snprintf(name, sizeof name, "/%s/direction", smoe_split_name(s));
  /* Before memory is taken: a damaged number of pairs has no such dataset. */
  SMOE_TRY(smoe_h5_expect(file, name, H5T_STD_U8LE, 1, &split->n_pairs));
  split->direction = smoe_alloc((size_t)split->n_pairs);
  SMOE_TRY(smoe_h5_read(file, name, H5T_NATIVE_UINT8, split->direction, 0, split->n_pairs));
  for (int64_t i = 0; i < split->n_pairs; i++)
    SMOE_CHECK(split->direction[i] < pairs->n_directions, SMOE_ERR_FORMAT,
               "the corpus '%s' is damaged: pair %lld of %s has direction %d of %d", pairs->path,
               (long long)i, smoe_split_name(s), split->direction[i], pairs->n_directions);
  for (int side = 0; side < SMOE_SIDES; side++) SMOE_TRY(read_side(pairs, file, s, side));
  smoe_pairs_index(split);
  return SMOE_OK;
}

static smoe_status read_about(smoe_pairs *pairs, hid_t file) {
  int64_t vocabulary, end_id;
  SMOE_TRY(check_format(file, pairs->path));
  SMOE_TRY(smoe_h5_get_i64(file, "/", "vocabulary", &vocabulary));
  SMOE_TRY(smoe_h5_get_i64(file, "/", "end_id", &end_id));
  SMOE_TRY(smoe_h5_get_u64(file, "/", "fingerprint", &pairs->fingerprint));
  SMOE_CHECK(vocabulary >= 1 && vocabulary <= INT32_MAX && end_id >= 0 && end_id < vocabulary,
             SMOE_ERR_FORMAT, "the corpus '%s' is damaged: vocabulary %lld, end token %lld", pairs->path,
             (long long)vocabulary, (long long)end_id);
  pairs->vocabulary = (int)vocabulary;
  pairs->end_id = (int32_t)end_id;
  SMOE_TRY(read_languages(pairs, file));
  SMOE_TRY(read_directions(pairs, file));
  for (int s = 0; s < SMOE_SPLITS; s++) SMOE_TRY(read_split(pairs, file, s));
  SMOE_TRY(smoe_corpus_get_model(file, &pairs->model, &pairs->model_bytes));
  SMOE_CHECK(pairs->model, SMOE_ERR_FORMAT, "the corpus '%s' is damaged: it has no '/tokenizer/model'",
             pairs->path);
  pairs->tokenizer = smoe_tokenizer_hash("", pairs->model, pairs->model_bytes);
  return SMOE_OK;
}

static const smoe_corpus_words words = {"stablemoe prepare --pair", " SRC-TGT SOURCE TARGET",
                                        "corpus of pairs", "pairs"};

smoe_status smoe_pairs_open_local(smoe_pairs *pairs, const char *path) {
  *pairs = (smoe_pairs){0};
  SMOE_TRY(smoe_corpus_open_file(&pairs->file, pairs->path, sizeof pairs->path, path, &words));
  const smoe_status status = read_about(pairs, file_of(pairs));
  if (status != SMOE_OK) {
    /* Closing may fail again, and the first report says more. */
    char *report = smoe_strdup(smoe_last_error());
    smoe_pairs_close(pairs);
    smoe_report_set(report);
    smoe_free(report);
  }
  return status;
}

smoe_status smoe_pairs_open(smoe_pairs *pairs, const smoe_group *group, const char *path) {
  smoe_status status = smoe_group_agree(group, smoe_pairs_open_local(pairs, path));
  if (status == SMOE_OK) status = smoe_corpus_check_same(group, pairs->fingerprint, path, &words);
  if (status != SMOE_OK) smoe_pairs_close(pairs);
  return status;
}

void smoe_pairs_close(smoe_pairs *pairs) {
  if (pairs->file) smoe_h5_close(file_of(pairs));
  smoe_free(pairs->file);
  smoe_free(pairs->model);
  pairs->file = NULL;
  pairs->model = NULL;
  pairs->model_bytes = 0;
  smoe_pairs_release(pairs);
}

static void check_pair(const smoe_pairs *pairs, smoe_split split, int64_t i) {
  if (i < 0 || i >= pairs->split[split].n_pairs)
    SMOE_PANIC(SMOE_ERR_BUG, "pair %lld is outside the split %s of '%s', which has %lld", (long long)i,
               smoe_split_name(split), pairs->path, (long long)pairs->split[split].n_pairs);
}

int smoe_pairs_length(const smoe_pairs *pairs, smoe_split split, smoe_side side, int64_t i) {
  check_pair(pairs, split, i);
  return pairs->split[split].length[side][i];
}

int smoe_pairs_target_length(const smoe_pairs *pairs, smoe_split split, int64_t i) {
  return smoe_pairs_length(pairs, split, SMOE_SIDE_TARGET, i);
}

int smoe_pairs_language(const smoe_pairs *pairs, smoe_split split, smoe_side side, int64_t i) {
  check_pair(pairs, split, i);
  return pairs->direction[pairs->split[split].direction[i]][side];
}

int smoe_pairs_find_language(const smoe_pairs *pairs, const char *code) {
  for (int l = 0; l < pairs->n_languages; l++)
    if (strcmp(pairs->language[l], code) == 0) return l;
  return -1;
}

void smoe_pairs_read(const smoe_pairs *pairs, smoe_split split, smoe_side side, int64_t i, int32_t *tokens) {
  check_pair(pairs, split, i);
  const smoe_pair_split *from = &pairs->split[split];
  int64_t first = from->block[side][i / SMOE_PAIR_BLOCK];
  for (int64_t j = i - i % SMOE_PAIR_BLOCK; j < i; j++) first += from->length[side][j];
  char name[64];
  snprintf(name, sizeof name, "/%s/%s/tokens", smoe_split_name(split), smoe_side_name(side));
  if (smoe_fault("corpus.read"))
    SMOE_PANIC(SMOE_ERR_IO, "cannot read '%s' of '%s': injected fault", name, pairs->path);
  const int n = from->length[side][i];
  if (from->token[side]) {
    memcpy(tokens, from->token[side] + first, (size_t)n * sizeof *tokens);
    return;
  }
  smoe_status status = smoe_h5_read(file_of(pairs), name, H5T_NATIVE_INT32, tokens, first, n);
  if (status == SMOE_OK) status = check_ids(pairs, name, tokens, n, first);
  if (status != SMOE_OK) SMOE_PANIC(status, "%s", smoe_last_error());
}

smoe_status smoe_pairs_counts(const smoe_pairs *pairs, smoe_side side, int64_t *count) {
  const int64_t v = pairs->vocabulary;
  char name[64];
  snprintf(name, sizeof name, "/count/%s", smoe_side_name(side));
  SMOE_TRY(smoe_h5_expect(file_of(pairs), name, H5T_STD_I64LE, 1, &v));
  SMOE_TRY(smoe_h5_read(file_of(pairs), name, H5T_NATIVE_INT64, count, 0, v));
  for (int64_t i = 0; i < v; i++)
    SMOE_CHECK(count[i] >= 0, SMOE_ERR_FORMAT, "the corpus '%s' is damaged: it counts %lld of token %lld",
               pairs->path, (long long)count[i], (long long)i);
  return SMOE_OK;
}

void smoe_pairs_direction_name(const smoe_pairs *pairs, int direction, char text[2 * SMOE_LANGUAGE_BYTES]) {
  snprintf(text, 2 * SMOE_LANGUAGE_BYTES, "%s-%s",
           pairs->language[pairs->direction[direction][SMOE_SIDE_SOURCE]],
           pairs->language[pairs->direction[direction][SMOE_SIDE_TARGET]]);
}
