/** BLEU of translations, with the numbers of sacreBLEU.
 *
 *  Counts are whole numbers: those of parts of a set, on whatever ranks, are added, and the score is made of
 *  the sums.
 *
 *  Source: Papineni et al. 2002; Post 2018 (tokenizer 13a, exponential smoothing, no effective order).
 */
#ifndef STABLEMOE_BLEU_H
#define STABLEMOE_BLEU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stablemoe/status.h"

enum { SMOE_BLEU_ORDERS = 4, SMOE_SIGNATURE_BYTES = 96 };

typedef enum smoe_bleu_tokenizer {
  SMOE_BLEU_13A, /**< that of mteval-v13a */
  SMOE_BLEU_NONE /**< words are what stands between blanks: for text that is tokenized already */
} smoe_bleu_tokenizer;

typedef struct smoe_bleu {
  smoe_bleu_tokenizer tokenizer;
  bool lowercase;
  int64_t n_segments;
  int64_t hypothesis_words, reference_words;
  int64_t correct[SMOE_BLEU_ORDERS], total[SMOE_BLEU_ORDERS]; /**< n-grams of hypotheses */
} smoe_bleu;

/** Begin counting. Local. Errors: SMOE_ERR_CONFIG if lower case is asked for and there is no UTF-8 locale. */
smoe_status smoe_bleu_open(smoe_bleu *bleu, smoe_bleu_tokenizer tokenizer, bool lowercase);

/** Count one segment: a translation and its reference, UTF-8. Local. */
void smoe_bleu_add(smoe_bleu *bleu, const char *reference, size_t reference_bytes, const char *hypothesis,
                   size_t hypothesis_bytes);

/** Add the counts of another part of the set. Local. */
void smoe_bleu_merge(smoe_bleu *bleu, const smoe_bleu *other);

/** Return the score, 0 to 100. Local. precision  out  [4] smoothed, in percent; brevity  out; NULL: not asked */
double smoe_bleu_score(const smoe_bleu *bleu, double precision[SMOE_BLEU_ORDERS], double *brevity);

/** Write what identifies the score: "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp". Local. */
void smoe_bleu_signature(const smoe_bleu *bleu, char text[SMOE_SIGNATURE_BYTES]);

/** Split text into words as the tokenizer 13a does, with one blank between them.
 *
 *  Local. The text in memory of smoe_alloc, NUL-terminated.
 */
char *smoe_bleu_tokenize(const smoe_bleu *bleu, const char *text, size_t bytes);

#endif
