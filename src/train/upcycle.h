/** Experts from a dense model's feed-forward layers (moe.from: ffn).
 *
 *  Source: sparse upcycling, Komatsuzaki et al. 2023; slices and tied routers, He et al. 2024 ("Upcycling Large Language
 *  Models into Mixture of Experts"); redrawn units, Nakamura et al. 2025 ("Drop-Upcycling").
 */
#ifndef STABLEMOE_TRAIN_UPCYCLE_H
#define STABLEMOE_TRAIN_UPCYCLE_H

#include "stablemoe/checkpoint.h"
#include "stablemoe/model.h"

/** Name of the dense parameter that a parameter of an MoE layer is made from: "block3/ffn/w1" for "moe3/expert/ffn0/w1".
 *
 *  Local.
 *  name  out  of SMOE_NAME_MAX bytes
 *  Returns the MoE layer, or -1 where the rule does not cover the parameter (moe.from: none, a router's, ...).
 */
int smoe_upcycle_source(const smoe_model *model, int param, char *name);

/** Check that experts of an MoE layer can be made from a dense layer.
 *
 *  Local.
 *  dense    in   the layer of the other model
 *  w2       in   its parameter w2, [C, F]
 *  slices   out  F / moe.inner: 1 for whole copies
 *  Errors:  SMOE_ERR_CONFIG.
 */
smoe_status smoe_upcycle_check(const smoe_model *model, int m, const smoe_layer_spec *dense,
                               const smoe_checkpoint_content *w2, int64_t *slices);

/** Fill a parameter of an MoE layer: its norm as it is; of this rank's experts e the slice e modulo `slices` of the inner
 *  units, w2 times `slices`, with noise and redrawn units as configured.
 *
 *  Local. A function of (seed, expert, element), so the same on any number of ranks.
 *  source  in  the dense parameter
 */
void smoe_upcycle_fill(smoe_model *model, int param, const smoe_checkpoint_content *content,
                       const smoe_real *source, int64_t slices);

/** Give the experts that are slices of one copy the same rows in their router, so that they are chosen together. Local. */
void smoe_upcycle_tie(smoe_model *model, int m, int64_t slices);

#endif
