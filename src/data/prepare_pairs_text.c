#include "prepare_pairs_text.h"

#include <string.h>
#include <xxhash.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"

/** Return the index of a language, a new one if it is not there. */
static smoe_status add_language(smoe_pairs *pairs, const char *code, int *index) {
  *index = smoe_pairs_find_language(pairs, code);
  if (*index >= 0) return SMOE_OK;
  SMOE_CHECK(pairs->n_languages < SMOE_LANGUAGES_MAX, SMOE_ERR_CONFIG, "more than %d languages",
             SMOE_LANGUAGES_MAX);
  *index = pairs->n_languages++;
  memcpy(pairs->language[*index], code, SMOE_LANGUAGE_BYTES);
  return SMOE_OK;
}

static smoe_status add_direction(smoe_pairs *pairs, const char *languages, int *index) {
  char code[SMOE_SIDES][SMOE_LANGUAGE_BYTES];
  int language[SMOE_SIDES];
  SMOE_TRY(smoe_pair_languages(languages, code));
  for (int side = 0; side < SMOE_SIDES; side++) SMOE_TRY(add_language(pairs, code[side], &language[side]));
  for (*index = 0; *index < pairs->n_directions; (*index)++)
    if (pairs->direction[*index][0] == language[0] && pairs->direction[*index][1] == language[1])
      return SMOE_OK;
  SMOE_CHECK(pairs->n_directions < SMOE_DIRECTIONS_MAX, SMOE_ERR_CONFIG, "more than %d pairs of languages",
             SMOE_DIRECTIONS_MAX);
  pairs->n_directions++;
  for (int side = 0; side < SMOE_SIDES; side++) pairs->direction[*index][side] = (uint8_t)language[side];
  return SMOE_OK;
}

/** The language that most directions have; of several the one that is a target first. */
static int find_pivot(const smoe_pairs *pairs) {
  int pivot = pairs->direction[0][SMOE_SIDE_TARGET], most = 0;
  for (int l = 0; l < pairs->n_languages; l++) {
    int n = 0;
    for (int d = 0; d < pairs->n_directions; d++)
      n += pairs->direction[d][SMOE_SIDE_SOURCE] == l || pairs->direction[d][SMOE_SIDE_TARGET] == l;
    const bool is_first_target = l == pairs->direction[0][SMOE_SIDE_TARGET];
    if (n > most || (n == most && is_first_target)) pivot = l, most = n;
  }
  return pivot;
}

static smoe_status add_files(smoe_pairs_text *text, smoe_pairs *pairs,
                             const smoe_prepare_pairs_options *options) {
  size_t n = 0;
  for (int s = 0; s < SMOE_SPLITS; s++) n += options->n_inputs[s];
  text->file = smoe_alloc(n * sizeof *text->file);
  for (int s = 0; s < SMOE_SPLITS; s++) {
    for (size_t i = 0; i < options->n_inputs[s]; i++) {
      const smoe_pair_input *input = &options->input[s][i];
      smoe_pair_file *file = &text->file[text->n_files++];
      *file = (smoe_pair_file){.path = {input->source, input->target}, .split = s};
      const int known = pairs->n_directions;
      SMOE_TRY(add_direction(pairs, input->languages, &file->direction));
      SMOE_CHECK(s == SMOE_TRAIN || pairs->n_directions == known, SMOE_ERR_CONFIG,
                 "there are no training pairs of %s, which '%s' is for", input->languages, input->source);
    }
  }
  return SMOE_OK;
}

/** The split of a pair that is shared out: by the text that its translations have in common. */
static smoe_split choose_split(const smoe_pairs_text *text, const smoe_pairs *pairs, int direction,
                               const smoe_pair_text *pair) {
  const int side =
      pairs->direction[direction][SMOE_SIDE_SOURCE] == text->pivot ? SMOE_SIDE_SOURCE : SMOE_SIDE_TARGET;
  const uint64_t hash = XXH3_64bits_withSeed(pair->text[side], pair->bytes[side], text->seed);
  const double place = (double)(hash >> 11) * 0x1p-53;
  if (place < text->share[SMOE_TEST]) return SMOE_TEST;
  return place < text->share[SMOE_TEST] + text->share[SMOE_VALID] ? SMOE_VALID : SMOE_TRAIN;
}

static smoe_status next_file(smoe_pairs_source *source) {
  smoe_pair_reader_close(&source->reader);
  source->is_open = source->file < source->text->n_files;
  if (!source->is_open) return SMOE_OK;
  return smoe_pair_reader_open(&source->reader, &source->text->file[source->file]);
}

smoe_status smoe_pairs_source_next(smoe_pairs_source *source) {
  smoe_pairs_text *text = source->text;
  if (!source->is_open) SMOE_TRY(next_file(source));
  while (source->is_open) {
    SMOE_TRY(smoe_pair_reader_next(&source->reader, &source->pair));
    if (!source->pair.text[0]) {
      source->file++;
      SMOE_TRY(next_file(source));
      continue;
    }
    const smoe_pair_file *file = &text->file[source->file];
    source->direction = file->direction;
    source->split = file->split == SMOE_TRAIN
                        ? choose_split(text, source->pairs, file->direction, &source->pair)
                        : file->split;
    if (smoe_pair_is_complete(&source->pair)) return SMOE_OK;
    text->n_empty[source->split]++;
  }
  source->pair = (smoe_pair_text){0};
  return SMOE_OK;
}

void smoe_pairs_source_close(smoe_pairs_source *source) {
  smoe_pair_reader_close(&source->reader);
}

static smoe_status scan(smoe_pairs_text *text, smoe_pairs_source *source) {
  int64_t n = 0;
  for (;;) {
    SMOE_TRY(smoe_pairs_source_next(source));
    if (!source->pair.text[0]) return SMOE_OK;
    const smoe_split s = source->split;
    text->n_pairs[s]++;
    text->n_bytes[s] += (int64_t)(source->pair.bytes[0] + source->pair.bytes[1]);
    if (s != SMOE_TRAIN) smoe_pair_set_add(&text->set[s], source->direction, &source->pair);
    if (++n % 65536 == 0) smoe_live("reading pairs: %lld", (long long)n);
  }
}

smoe_status smoe_pairs_text_open(smoe_pairs_text *text, smoe_pairs *pairs,
                                 const smoe_prepare_pairs_options *options) {
  *text = (smoe_pairs_text){.seed = options->seed};
  if (options->n_inputs[SMOE_VALID] == 0) text->share[SMOE_VALID] = options->valid_share;
  if (options->n_inputs[SMOE_TEST] == 0) text->share[SMOE_TEST] = options->test_share;
  SMOE_TRY(add_files(text, pairs, options));
  text->pivot = find_pivot(pairs);
  smoe_pairs_source source = {.text = text, .pairs = pairs};
  const smoe_status status = scan(text, &source);
  smoe_pairs_source_close(&source);
  for (int s = 0; s < SMOE_SPLITS; s++) {
    smoe_pair_set_sort(&text->set[s]);
    pairs->split[s].left_out[SMOE_LEFT_OUT_EMPTY] = text->n_empty[s];
  }
  return status;
}

void smoe_pairs_text_close(smoe_pairs_text *text) {
  for (int s = 0; s < SMOE_SPLITS; s++) smoe_pair_set_free(&text->set[s]);
  smoe_free(text->file);
  *text = (smoe_pairs_text){0};
}
