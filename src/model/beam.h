/** Beam search over one sentence: which hypotheses go on. Knows tokens and log probabilities, and no model. */
#ifndef STABLEMOE_MODEL_BEAM_H
#define STABLEMOE_MODEL_BEAM_H

#include "stablemoe/translate.h"

typedef struct smoe_beam {
  size_t width, length_max;
  double penalty;
  int32_t end;
  size_t step;    /**< tokens of each live hypothesis */
  size_t n_live;  /**< 1 before the first step, then width */
  int32_t *token; /**< [width, length_max] of live ones */
  double *log_p;  /**< [width] */
  size_t n_done;
  int32_t *done_token; /**< [width, length_max] of finished ones, best first */
  smoe_hypothesis *done;
  int32_t *next; /**< [width, length_max] scratch */
  bool finished;
} smoe_beam;

/** Take memory for one sentence. Local. */
void smoe_beam_create(smoe_beam *beam, const smoe_translate_options *options, int32_t end);
void smoe_beam_destroy(smoe_beam *beam);

/** Begin a sentence. active: false for a place without one, which is finished at once. Local. */
void smoe_beam_begin(smoe_beam *beam, bool active);

/** Take a step: logits [width, V] of the live hypotheses (the first alone before the first step).
 *  from  out  [width] which hypothesis each new one continues. Local.
 */
void smoe_beam_step(smoe_beam *beam, const smoe_real *logits, size_t vocabulary, int32_t *from);

/** Last token of live hypothesis k; -1 where the sentence is finished. Local. */
int32_t smoe_beam_last(const smoe_beam *beam, size_t k);

#endif
