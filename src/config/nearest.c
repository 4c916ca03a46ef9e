#include "config_table.h"

#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_ = 128 };

static size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

/* Levenshtein distance: letters to add, drop or replace. Names are cut at NAME_MAX_ letters. */
static size_t distance(const char *a, size_t n_a, const char *b, size_t n_b) {
  size_t row[NAME_MAX_ + 1];
  n_a = smaller(n_a, NAME_MAX_);
  n_b = smaller(n_b, NAME_MAX_);
  for (size_t j = 0; j <= n_b; j++) row[j] = j;
  for (size_t i = 1; i <= n_a; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= n_b; j++) {
      const size_t replace = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = smaller(replace, 1 + smaller(row[j], row[j - 1]));
    }
  }
  return row[n_b];
}

static const char *last_part(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot ? dot + 1 : name;
}

smoe_status smoe_config_unknown(const smoe_config *config, const char *name, bool section,
                                const char *where) {
  const char *best = NULL;
  size_t best_length = 0, best_distance = SIZE_MAX;
  bool best_same = false;
  for (size_t i = 0; i < config->n_entries; i++) {
    const char *key = config->entries[i].key->name;
    const size_t length = section ? smoe_config_section_length(key) : strlen(key);
    /* "train.lr" is rather a key in the wrong section than a wrong key in the right one. */
    const bool same = !section && strcmp(last_part(key), last_part(name)) == 0;
    const size_t d = distance(name, strlen(name), key, length);
    if (same < best_same || (same == best_same && d >= best_distance)) continue;
    best = key;
    best_length = length;
    best_distance = d;
    best_same = same;
  }
  const char *what = section ? "section" : "key";
  /* What shares less than half of its letters is no slip of the fingers, and a guess would mislead. */
  if (!best_same && 2 * best_distance > strlen(name))
    return SMOE_FAIL(SMOE_ERR_CONFIG, "%s: unknown %s '%.128s'; `stablemoe train --help` lists all", where,
                     what, name);
  return SMOE_FAIL(SMOE_ERR_CONFIG,
                   "%s: unknown %s '%.128s', did you mean '%.*s'? (`stablemoe train --help` lists all)",
                   where, what, name, (int)best_length, best);
}
