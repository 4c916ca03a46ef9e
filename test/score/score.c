/* Scores of two files, with all digits: score REFERENCE HYPOTHESIS. For test_score.py. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/chrf.h"

enum { MEASURES = 4 };

/** The next line without its end; NULL at the end of the file. */
static char *next_line(FILE *stream, size_t *bytes) {
  static char *line[2];
  static size_t room[2];
  static int turn;
  turn = !turn;
  const ssize_t n = getline(&line[turn], &room[turn], stream);
  if (n < 0) return NULL;
  *bytes = (size_t)n - (line[turn][n - 1] == '\n');
  return line[turn];
}

static void print_bleu(const smoe_bleu *bleu) {
  double precision[SMOE_BLEU_ORDERS], brevity;
  char signature[SMOE_SIGNATURE_BYTES];
  smoe_bleu_signature(bleu, signature);
  printf("%s\t%.17g", signature, smoe_bleu_score(bleu, precision, &brevity));
  for (int i = 0; i < SMOE_BLEU_ORDERS; i++) printf("\t%.17g", precision[i]);
  printf("\t%.17g\t%lld\t%lld\n", brevity, (long long)bleu->hypothesis_words,
         (long long)bleu->reference_words);
}

int main(int argc, char **argv) {
  FILE *reference = argc == 3 ? fopen(argv[1], "rb") : NULL,
       *hypothesis = argc == 3 ? fopen(argv[2], "rb") : NULL;
  if (!reference || !hypothesis) return 99;
  smoe_bleu bleu[MEASURES], sum[MEASURES];
  smoe_chrf chrf = {0};
  for (int i = 0; i < MEASURES; i++) {
    const smoe_bleu_tokenizer tokenizer = i & 1 ? SMOE_BLEU_NONE : SMOE_BLEU_13A;
    CHECK(smoe_bleu_open(&bleu[i], tokenizer, i & 2) == SMOE_OK, "%s", smoe_last_error());
    sum[i] = bleu[i];
  }
  char *r, *h;
  size_t n, m;
  for (int line = 0; (r = next_line(reference, &n)) && (h = next_line(hypothesis, &m)); line++) {
    smoe_chrf one = {0};
    smoe_chrf_add(&one, r, n, h, m);
    smoe_chrf_merge(&chrf, &one);
    /* Every third line goes to the sum by itself, the others by way of the first count. */
    for (int i = 0; i < MEASURES; i++) smoe_bleu_add(line % 3 ? &bleu[i] : &sum[i], r, n, h, m);
  }
  for (int i = 0; i < MEASURES; i++) {
    smoe_bleu_merge(&sum[i], &bleu[i]);
    print_bleu(&sum[i]);
  }
  char signature[SMOE_SIGNATURE_BYTES];
  smoe_chrf_signature(signature);
  printf("%s\t%.17g\n", signature, smoe_chrf_score(&chrf));
  fclose(reference);
  fclose(hypothesis);
  return test_verdict("score");
}
