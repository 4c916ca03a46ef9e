#include "print_pairs.h"

#include <stdio.h>

#include "stablemoe/pairs.h"

/** Pairs and tokens of one direction of a split. */
typedef struct direction_sum {
  int64_t n_pairs, n_tokens[SMOE_SIDES];
  int longest[SMOE_SIDES];
} direction_sum;

static direction_sum sum_direction(const smoe_pair_split *split, int direction) {
  direction_sum sum = {0};
  for (int64_t i = 0; i < split->n_pairs; i++) {
    if (split->direction[i] != direction) continue;
    sum.n_pairs++;
    for (int side = 0; side < SMOE_SIDES; side++) {
      const int n = split->length[side][i];
      sum.n_tokens[side] += n;
      if (n > sum.longest[side]) sum.longest[side] = n;
    }
  }
  return sum;
}

static void print_split(const smoe_pairs *pairs, smoe_split s, const char *name) {
  const smoe_pair_split *split = &pairs->split[s];
  for (int d = 0; d < pairs->n_directions; d++) {
    char direction[2 * SMOE_LANGUAGE_BYTES];
    const direction_sum sum = sum_direction(split, d);
    smoe_pairs_direction_name(pairs, d, direction);
    printf("  %-6s %-9s %10lld", name, direction, (long long)sum.n_pairs);
    for (int side = 0; side < SMOE_SIDES; side++)
      printf(" %12lld %7d %12lld", (long long)sum.n_tokens[side], sum.longest[side],
             (long long)split->n_bytes[side][d]);
    printf("\n");
  }
}

static void print_left_out(const smoe_pair_split *split, const char *name) {
  const int64_t *out = split->left_out;
  if (out[0] + out[1] + out[2] > 0)
    printf("  left out of %s: %lld empty, %lld too long, %lld too unequal in length\n", name,
           (long long)out[SMOE_LEFT_OUT_EMPTY], (long long)out[SMOE_LEFT_OUT_LONG],
           (long long)out[SMOE_LEFT_OUT_UNEQUAL]);
  if (split->n_repeated > 0)
    printf("  %lld pairs of %s are training pairs, too, word for word\n", (long long)split->n_repeated, name);
}

smoe_status smoe_app_print_pairs(const char *path) {
  static const char *const NAMES[] = {"train", "valid", "test"};
  smoe_pairs pairs;
  SMOE_TRY(smoe_pairs_open_local(&pairs, path));
  printf("%s: corpus of sentence pairs, vocabulary %d, tokenizer inside, languages", path, pairs.vocabulary);
  for (int l = 0; l < pairs.n_languages; l++) printf(" %s", pairs.language[l]);
  printf("\n  %-6s %-9s %10s %12s %7s %12s %12s %7s %12s\n", "split", "direction", "pairs", "src tokens",
         "longest", "src bytes", "tgt tokens", "longest", "tgt bytes");
  for (int s = 0; s < SMOE_SPLITS; s++) print_split(&pairs, s, NAMES[s]);
  for (int s = 0; s < SMOE_SPLITS; s++) print_left_out(&pairs.split[s], NAMES[s]);
  printf("  fingerprint %016llx\n", (unsigned long long)pairs.fingerprint);
  smoe_pairs_close(&pairs);
  return SMOE_OK;
}
