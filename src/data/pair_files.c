#include "pair_files.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "stablemoe/arena.h"

static bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\r';
}

/** Take blanks off both ends. */
static void trim(const char **text, size_t *bytes) {
  while (*bytes > 0 && is_blank(**text)) (*text)++, (*bytes)--;
  while (*bytes > 0 && is_blank((*text)[*bytes - 1])) (*bytes)--;
}

bool smoe_pair_is_complete(const smoe_pair_text *pair) {
  return pair->bytes[SMOE_SIDE_SOURCE] > 0 && pair->bytes[SMOE_SIDE_TARGET] > 0;
}

smoe_status smoe_pair_reader_open(smoe_pair_reader *reader, const smoe_pair_file *file) {
  *reader = (smoe_pair_reader){.file = file};
  for (int side = 0; side < SMOE_SIDES && file->path[side]; side++)
    SMOE_TRY(smoe_line_reader_open(&reader->side[side], file->path[side]));
  return SMOE_OK;
}

void smoe_pair_reader_close(smoe_pair_reader *reader) {
  for (int side = 0; side < SMOE_SIDES; side++) smoe_line_reader_close(&reader->side[side]);
}

/** Split a line at its only tab. */
static smoe_status split_columns(const smoe_line_reader *from, smoe_pair_text *pair) {
  const char *line = pair->text[0];
  const size_t bytes = pair->bytes[0];
  const char *tab = memchr(line, '\t', bytes);
  size_t n_columns = 1;
  for (size_t i = 0; i < bytes; i++) n_columns += line[i] == '\t';
  SMOE_CHECK(
      n_columns == 2 || bytes == 0, SMOE_ERR_FORMAT,
      "line %lld of '%s' has %zu column%s, expected two: source, a tab, target; or name two files: --pair "
      "SRC-TGT SOURCE TARGET",
      (long long)from->n_lines, from->path, n_columns, n_columns == 1 ? "" : "s");
  pair->text[1] = tab ? tab + 1 : line;
  pair->bytes[1] = tab ? bytes - (size_t)(tab + 1 - line) : 0;
  pair->bytes[0] -= pair->bytes[1] + (tab != NULL);
  return SMOE_OK;
}

/** One of the files has ended, the other has not: count its lines for the report. */
static smoe_status unequal(smoe_pair_reader *reader) {
  for (int side = 0; side < SMOE_SIDES; side++) {
    const char *text = "";
    size_t bytes;
    while (text) SMOE_TRY(smoe_line_reader_next(&reader->side[side], &text, &bytes));
  }
  return SMOE_FAIL(
      SMOE_ERR_CONFIG,
      "'%s' has %lld lines and '%s' %lld: line n of one must be the translation of line n of the "
      "other",
      reader->side[0].path, (long long)reader->side[0].n_lines, reader->side[1].path,
      (long long)reader->side[1].n_lines);
}

smoe_status smoe_pair_reader_next(smoe_pair_reader *reader, smoe_pair_text *pair) {
  *pair = (smoe_pair_text){0};
  const bool two = reader->file->path[1];
  SMOE_TRY(smoe_line_reader_next(&reader->side[0], &pair->text[0], &pair->bytes[0]));
  if (two) {
    SMOE_TRY(smoe_line_reader_next(&reader->side[1], &pair->text[1], &pair->bytes[1]));
    if (!pair->text[0] != !pair->text[1]) return unequal(reader);
  }
  if (!pair->text[0]) return SMOE_OK;
  if (!two) SMOE_TRY(split_columns(&reader->side[0], pair));
  for (int side = 0; side < SMOE_SIDES; side++) trim(&pair->text[side], &pair->bytes[side]);
  return SMOE_OK;
}

smoe_status smoe_pair_languages(const char *text, char code[SMOE_SIDES][SMOE_LANGUAGE_BYTES]) {
  const char *dash = strchr(text, '-');
  const char *part[SMOE_SIDES] = {text, dash ? dash + 1 : text};
  const size_t n[SMOE_SIDES] = {dash ? (size_t)(dash - text) : 0, dash ? strlen(dash + 1) : 0};
  bool valid = dash;
  for (int side = 0; side < SMOE_SIDES && valid; side++) {
    valid = n[side] > 0 && n[side] < SMOE_LANGUAGE_BYTES;
    for (size_t i = 0; i < n[side] && valid; i++)
      valid = isalnum((unsigned char)part[side][i]) || part[side][i] == '_';
    if (!valid) break;
    memset(code[side], 0, SMOE_LANGUAGE_BYTES);
    memcpy(code[side], part[side], n[side]);
  }
  SMOE_CHECK(
      valid && strcmp(code[0], code[1]) != 0, SMOE_ERR_CONFIG,
      "'%s' is not the languages of a pair: expected two codes of up to %d letters, digits or _, such as "
      "de-en",
      text, SMOE_LANGUAGE_BYTES - 1);
  return SMOE_OK;
}

static uint64_t hash_of(int direction, const smoe_pair_text *pair) {
  const uint64_t source = XXH3_64bits_withSeed(pair->text[0], pair->bytes[0], (XXH64_hash_t)direction);
  return XXH3_64bits_withSeed(pair->text[1], pair->bytes[1], source);
}

void smoe_pair_set_add(smoe_pair_set *set, int direction, const smoe_pair_text *pair) {
  if ((set->n & (set->n + 1)) == 0) set->hash = smoe_realloc(set->hash, (2 * set->n + 2) * sizeof *set->hash);
  set->hash[set->n++] = hash_of(direction, pair);
}

static int by_hash(const void *a, const void *b) {
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

void smoe_pair_set_sort(smoe_pair_set *set) {
  if (set->n > 0) qsort(set->hash, set->n, sizeof *set->hash, by_hash);
  set->found = smoe_alloc(set->n);
}

void smoe_pair_set_find(smoe_pair_set *set, int direction, const smoe_pair_text *pair) {
  const uint64_t hash = hash_of(direction, pair);
  size_t low = 0, high = set->n;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (set->hash[middle] < hash)
      low = middle + 1;
    else
      high = middle;
  }
  for (; low < set->n && set->hash[low] == hash; low++) set->found[low] = 1;
}

int64_t smoe_pair_set_found(const smoe_pair_set *set) {
  int64_t n = 0;
  for (size_t i = 0; i < set->n; i++) n += set->found[i];
  return n;
}

void smoe_pair_set_free(smoe_pair_set *set) {
  smoe_free(set->hash);
  smoe_free(set->found);
  *set = (smoe_pair_set){0};
}
