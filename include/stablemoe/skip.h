/** Gates that let sequences or tokens skip a sublayer (MindSkip, Router-Tuning).
 *
 *      y = x + M F(x),   M = 1 where w . a >= 0, else 0,   R = sigmoid(w . a)
 *
 *  F is an attention sublayer, a feed-forward sublayer, or both of a block; a is norm(x) of the sublayer, of the token itself
 *  or its mean over the sequence: over the tokens so far (running), or over all of them (whole, as in the paper, which lets a
 *  position see later ones). M is hard in training, too; its gradient is passed straight through to R.
 *
 *  Source: Router-Tuning, He et al. 2025 (arXiv 2410.13184).
 */
#ifndef STABLEMOE_SKIP_H
#define STABLEMOE_SKIP_H

#include "stablemoe/layer.h"

typedef enum smoe_skip_unit { SMOE_SKIP_SEQUENCE, SMOE_SKIP_TOKEN } smoe_skip_unit;
typedef enum smoe_skip_mean { SMOE_SKIP_RUNNING, SMOE_SKIP_WHOLE } smoe_skip_mean;
/** Who gets the task's gradient: all units; those that ran; those that ran, unless all did. */
typedef enum smoe_skip_rule { SMOE_SKIP_FULL, SMOE_SKIP_ACTIVE, SMOE_SKIP_MASKED } smoe_skip_rule;
typedef enum smoe_skip_choice { SMOE_SKIP_BY_GATE, SMOE_SKIP_AT_RANDOM, SMOE_SKIP_ALWAYS } smoe_skip_choice;

typedef struct smoe_skip_options {
  int what; /**< smoe_skip_kind */
  int64_t layers;
  int unit, mean, gradient, choice;
  double target, weight, share;
} smoe_skip_options;

extern const smoe_keyset smoe_skip_keys;

/** An attention, feed-forward or block layer behind a gate; its state is internal. */
extern const smoe_layer_ops smoe_layer_skip;

/** What may be skipped in block b: model.skip.what for the deepest model.skip.layers blocks but the last. Local. */
smoe_skip_kind smoe_skip_of(const smoe_config *config, int b);

/** Put a layer behind a gate: attention or feed-forward layer, or, for SMOE_SKIP_BLOCK, the attention layer with the
 *  feed-forward layer's activation and inner width set. Local. */
void smoe_skip_wrap(smoe_layer_spec *spec, smoe_skip_kind kind, int b);

/** Check model.skip.* against the number of blocks. Local. Errors: SMOE_ERR_CONFIG. */
smoe_status smoe_skip_check(const smoe_config *config);

/** Rows of this rank since the sums were set to zero: [0] all, [1] those that ran. Local. */
const uint64_t *smoe_skip_seen(const smoe_layer *layer);

/** The capacity term of the update so far: weight times what the share of rows that ran has over the target. Local; the
 *  same on all ranks. */
double smoe_skip_loss(const smoe_layer *layer);

/** Set both to zero. Local. */
void smoe_skip_begin(smoe_layer *layer);

/** Whether each row [N] of this rank's last forward pass ran. Local. */
const int32_t *smoe_skip_ran(const smoe_layer *layer);

/** For tests of the gradient: R of each row [N] on the tape; and a forward pass of training in which M is M + R - base [N],
 *  whose ordinary derivative is what straight-through gradients are where R is base. base NULL: as ever. Local. */
const smoe_real *smoe_skip_r(const smoe_layer *layer);
void smoe_skip_straighten(smoe_layer *layer, const smoe_real *base);

#endif
