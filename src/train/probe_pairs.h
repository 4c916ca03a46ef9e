/** The probe of a translation model: some pairs of the validation split, through both MoE layers. */
#ifndef STABLEMOE_TRAIN_PROBE_PAIRS_H
#define STABLEMOE_TRAIN_PROBE_PAIRS_H

#include "stablemoe/step.h"

/** Kinds of choices in a probe: [SMOE_PROBE_KINDS, M, P]. */
enum { SMOE_PROBE_EXPERT, SMOE_PROBE_LEARNED, SMOE_PROBE_DISTILLED, SMOE_PROBE_KINDS };

/** Number of probe tokens: source and target of log.probe_sequences pairs, spread evenly over the validation split;
 *  pairs that do not fit into a lane are left out. Local.
 */
int64_t smoe_probe_pairs_tokens(const smoe_task *task);

/** Describe the probe's tokens: pair after pair, its source and then its target as the decoder reads it.
 *
 *  Local.
 *  token     out  [P] ids
 *  side      out  [P] smoe_side
 *  language  out  [P] index into task->pairs.language
 */
void smoe_probe_pairs_describe(const smoe_task *task, int32_t *token, int32_t *side, int32_t *language);

/** Route the probe with the parameters as they are.
 *
 *  Collective.
 *  choice  out  [SMOE_PROBE_KINDS, M, P] on every rank; -1 where a method has no such choice, and for tokens that
 *               the layer does not see: those of the other side
 */
void smoe_probe_pairs_route(smoe_model *model, smoe_task *task, const smoe_pass *pass, int32_t *choice);

#endif
