/** chrF2 of translations, with the numbers of sacreBLEU: F-score of character n-grams up to 6, without blanks,
 *  recall counted twice as much as precision.
 *
 *  Counts are whole numbers and add up as those of BLEU do.
 *
 *  Source: Popovic 2015, 2016.
 */
#ifndef STABLEMOE_CHRF_H
#define STABLEMOE_CHRF_H

#include "stablemoe/bleu.h"

enum { SMOE_CHRF_ORDERS = 6 };

typedef struct smoe_chrf {
  int64_t n_segments;
  int64_t hypothesis[SMOE_CHRF_ORDERS], reference[SMOE_CHRF_ORDERS], match[SMOE_CHRF_ORDERS];
} smoe_chrf;

/** Count one segment: a translation and its reference, UTF-8. A zero-initialised struct begins. Local. */
void smoe_chrf_add(smoe_chrf *chrf, const char *reference, size_t reference_bytes, const char *hypothesis,
                   size_t hypothesis_bytes);

/** Add the counts of another part of the set. Local. */
void smoe_chrf_merge(smoe_chrf *chrf, const smoe_chrf *other);

/** Return the score, 0 to 100. Local. */
double smoe_chrf_score(const smoe_chrf *chrf);

/** Write what identifies the score: "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no". Local. */
void smoe_chrf_signature(char text[SMOE_SIGNATURE_BYTES]);

#endif
