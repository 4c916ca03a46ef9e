/** Evaluation: perplexity over a split, and the routing probe. */
#ifndef STABLEMOE_EVALUATE_H
#define STABLEMOE_EVALUATE_H

#include "stablemoe/step.h"

typedef struct smoe_evaluation {
  double loss;       /**< task loss, nats per real target */
  double perplexity; /**< exp(loss) */
  double n_targets;
  double drop_rate; /**< rows beyond capacity, of all MoE layers */
} smoe_evaluation;

/** Evaluate a split; padding and the other loss terms do not count.
 *
 *  Collective. The same bits on any number of ranks.
 *
 *  sequences  in  at most so many sequences from the start of the split; 0: all of it
 *  stage      in  1 or 2, as the parameters are
 *
 *  Errors:  SMOE_ERR_CONFIG where the split has no target.
 */
smoe_status smoe_evaluate(smoe_model *model, const smoe_corpus *corpus, smoe_split split, int64_t sequences,
                          int64_t update, int stage, smoe_evaluation *result);

/** Tokens of the probe over all ranks: whole validation sequences, at most log.probe_sequences. Local. */
int64_t smoe_probe_tokens(const smoe_corpus *corpus, const smoe_settings *settings);

/** Route the probe tokens with the parameters as they are, and add the choices to the log.
 *
 *  Collective.
 *  step  in  updates done
 */
void smoe_probe(smoe_model *model, const smoe_corpus *corpus, const smoe_settings *settings,
                smoe_routing_log *log, int64_t step, int stage);

#endif
