/** Choosing the next token of a text from a model's logits. */
#ifndef STABLEMOE_APP_SAMPLE_H
#define STABLEMOE_APP_SAMPLE_H

#include "stablemoe/real.h"

typedef struct smoe_sampling {
  double temperature; /**< 0: the likeliest token always */
  int64_t top_k;      /**< choose among so many of the likeliest tokens; 0: all */
  double top_p; /**< choose among the fewest likeliest tokens that have this probability together; 1: all */
  int64_t seed;
} smoe_sampling;

/** A token drawn from softmax(logits / temperature), among those that top_k and top_p leave.
 *
 *  Local. A function of the arguments alone.
 *
 *  logits    in  [n]
 *  number    in  sample; each has random numbers of its own
 *  position  in  of the token in the text
 *
 *  Returns the token's id; the lower one of two equally likely where temperature is 0; tokens as likely as
 *  the last one that top_k or top_p leaves stay too. -1 where no logit is a number, or one is NaN.
 */
int32_t smoe_sample(const smoe_real *logits, int n, const smoe_sampling *sampling, int64_t number,
                    int64_t position);

#endif
