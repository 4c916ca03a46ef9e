/* A damaged corpus of pairs is refused when it is opened, ends the run when it is read, or gives its tokens. */
#include <string.h>

#include "damage.h"
#include "harness.h"
#include "stablemoe/log.h"
#include "stablemoe/prepare_pairs.h"
#include "temporary.h"

enum { PAIRS = 900 };

static smoe_pairs sound;
static int32_t *tokens[SMOE_SPLITS][SMOE_SIDES];

static bool same_side(const smoe_pairs *pairs, smoe_split s, smoe_side side) {
  const smoe_pair_split *split = &pairs->split[s], *other = &sound.split[s];
  const size_t n = (size_t)other->n_pairs;
  bool same = split->n_tokens[side] == other->n_tokens[side] &&
              memcmp(split->length[side], other->length[side], n * sizeof *split->length[side]) == 0 &&
              memcmp(split->n_bytes[side], other->n_bytes[side], (size_t)sound.n_directions * 8) == 0;
  const int32_t *expected = tokens[s][side];
  for (int64_t i = 0; i < other->n_pairs && same; i++) {
    int32_t read[512];
    smoe_pairs_read(pairs, s, side, i, read);
    same = memcmp(read, expected, other->length[side][i] * sizeof *read) == 0;
    expected += other->length[side][i];
  }
  return same;
}

static bool same_as_sound(const smoe_pairs *pairs) {
  bool same =
      pairs->vocabulary == sound.vocabulary && pairs->end_id == sound.end_id &&
      pairs->fingerprint == sound.fingerprint && pairs->n_languages == sound.n_languages &&
      memcmp(pairs->language, sound.language, sizeof sound.language) == 0 &&
      memcmp(pairs->tag, sound.tag, sizeof sound.tag) == 0 && pairs->n_directions == sound.n_directions &&
      memcmp(pairs->direction, sound.direction, sizeof sound.direction) == 0 &&
      pairs->model_bytes == sound.model_bytes && memcmp(pairs->model, sound.model, sound.model_bytes) == 0;
  for (int s = 0; s < SMOE_SPLITS && same; s++) {
    const smoe_pair_split *split = &pairs->split[s], *other = &sound.split[s];
    same = split->n_pairs == other->n_pairs && split->n_repeated == other->n_repeated &&
           memcmp(split->left_out, other->left_out, sizeof split->left_out) == 0 &&
           memcmp(split->direction, other->direction, (size_t)split->n_pairs) == 0;
    for (int side = 0; side < SMOE_SIDES && same; side++) same = same_side(pairs, s, side);
  }
  for (int side = 0; side < SMOE_SIDES && same; side++) {
    int64_t *count = smoe_alloc((size_t)sound.vocabulary * sizeof *count);
    int64_t *expected = smoe_alloc((size_t)sound.vocabulary * sizeof *count);
    same = smoe_pairs_counts(pairs, side, count) == SMOE_OK &&
           smoe_pairs_counts(&sound, side, expected) == SMOE_OK &&
           memcmp(count, expected, (size_t)sound.vocabulary * sizeof *count) == 0;
    smoe_free(count);
    smoe_free(expected);
  }
  return same;
}

static damage_outcome read_pairs(const char *path) {
  smoe_pairs pairs;
  if (smoe_pairs_open_local(&pairs, path) != SMOE_OK) return DAMAGE_REFUSED;
  const bool same = same_as_sound(&pairs);
  smoe_pairs_close(&pairs);
  if (smoe_pairs_verify(path) != SMOE_OK) return DAMAGE_REFUSED;
  return same ? DAMAGE_SAME : DAMAGE_DIFFERENT;
}

static const damage_kind raw_kinds[] = {
    {"1 to 8 bytes", 36, .bytes = damage_flip},
    {"1 to 8 bytes at the front", 24, .bytes = damage_flip_head},
    {"cut off", 24, .bytes = damage_truncate},
    {"block of zeros", 18, .bytes = damage_zero_block},
    {"sector of noise", 18, .bytes = damage_noise_sector},
    {"blocks swapped", 18, .bytes = damage_swap_blocks},
    {"bytes appended", 10, .bytes = damage_append},
    {"attribute changed", 12, .structure = damage_attribute_value},
    {"dataset deleted", 10, .structure = damage_delete},
};

static const damage_kind sealed_kinds[] = {
    {"dataset deleted", 18, .structure = damage_delete, .sealed = true, .may_differ = true},
    {"dataset of another shape", 36, .structure = damage_reshape, .sealed = true, .may_differ = true},
    {"dataset of another type", 36, .structure = damage_retype, .sealed = true, .may_differ = true},
    {"dataset of wild size", 36, .structure = damage_huge, .sealed = true, .may_differ = true},
    {"dataset made something else", 24, .structure = damage_replace, .sealed = true, .may_differ = true},
    {"dataset linked to another", 24, .structure = damage_relink, .sealed = true, .may_differ = true},
    {"attribute deleted", 24, .structure = damage_attribute_delete, .sealed = true, .may_differ = true,
     .any_words = true},
    {"attribute of another type", 24, .structure = damage_attribute_type, .sealed = true, .may_differ = true,
     .any_words = true},
    {"attribute changed", 24, .structure = damage_attribute_value, .sealed = true, .may_differ = true,
     .any_words = true},
};

static char *table_of(uint64_t number, int n) {
  char *text = test_source(number, (size_t)n * 90), *table = smoe_alloc((size_t)n * 400);
  int used = 0;
  for (char *line = strtok(text, "\n"), *next; line && used < n; used++) {
    for (char *c = line; *c; c++)
      if (*c == '\t') *c = ' ';
    next = strtok(NULL, "\n");
    sprintf(table + strlen(table), "%s\t%.60s %d\n", line, line, used);
    line = next;
  }
  smoe_free(text);
  return table;
}

int main(int argc, char **argv) {
  smoe_log_setup(1, true);
  test_directory_make();
  char *table[] = {table_of(1, PAIRS), table_of(2, PAIRS)};
  const smoe_pair_input input[] = {{"de-en", test_file("a.tsv", table[0], strlen(table[0])), NULL},
                                   {"fr-en", test_file("b.tsv", table[1], strlen(table[1])), NULL}};
  smoe_prepare_pairs_options options = smoe_prepare_pairs_defaults();
  options.output = test_path("pairs.h5");
  options.vocabulary = 420;
  options.input[SMOE_TRAIN] = input;
  options.n_inputs[SMOE_TRAIN] = 2;
  CHECK(smoe_prepare_pairs(&options) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_pairs_open_local(&sound, options.output) == SMOE_OK, "%s", smoe_last_error());
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int side = 0; side < SMOE_SIDES; side++) {
      int32_t *to = tokens[s][side] = smoe_alloc((size_t)sound.split[s].n_tokens[side] * sizeof *to);
      for (int64_t i = 0; i < sound.split[s].n_pairs; i++) {
        smoe_pairs_read(&sound, s, side, i, to);
        to += smoe_pairs_length(&sound, s, side, i);
      }
    }
  damage_test test = {"pairs",    options.output,
                      raw_kinds,  sizeof raw_kinds / sizeof *raw_kinds,
                      read_pairs, .panic_code = SMOE_ERR_FORMAT};
  CHECK(read_pairs(test.path) == DAMAGE_SAME, "%s", smoe_last_error());
  int n_wrong = damage_run(&test, argc, argv);
  test.name = "pairs, sealed again";
  test.kinds = sealed_kinds;
  test.n_kinds = sizeof sealed_kinds / sizeof *sealed_kinds;
  n_wrong += damage_run(&test, argc, argv);
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int side = 0; side < SMOE_SIDES; side++) smoe_free(tokens[s][side]);
  for (int i = 0; i < 2; i++) smoe_free(table[i]);
  smoe_pairs_close(&sound);
  CHECK(n_wrong == 0, "%d damages went wrong", n_wrong);
  return test_verdict("damage of corpora of pairs");
}
