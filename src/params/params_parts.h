/* Between the files of the parameter table. */
#ifndef STABLEMOE_PARAMS_PARTS_H
#define STABLEMOE_PARAMS_PARTS_H

#include "stablemoe/params.h"

/* Elements first .. end - 1. */
typedef struct smoe_range {
  size_t first, end;
} smoe_range;

/* Elements of this rank's copies of a slab. Local. */
static inline size_t smoe_slab_size(const smoe_slab *slab) {
  return (size_t)slab->n_local * slab->count;
}

/* Whether the ranks of a node have its values together. Local. */
static inline bool smoe_slab_shared(const smoe_params *params, const smoe_slab *slab) {
  return params->shared && slab->n_experts == 0;
}

/* Whether the ranks of a node see each other's gradients of it. Local. */
static inline bool smoe_slab_summed(const smoe_params *params, const smoe_slab *slab) {
  return params->summed && params->training && slab == &params->slab[SMOE_SLAB_REPLICATED];
}

/* Where the rank's own gradients of such a slab are in the window; NULL while there is none. Local. */
smoe_real *smoe_params_lay_out_summed(smoe_params *params, const smoe_slab *slab);

/* Add up the gradients of such a slab. Collective over the group. */
void smoe_params_reduce_summed(const smoe_params *params, const smoe_slab *slab, smoe_real *scratch);

/* Elements of a slab that this rank works on where all are worked on: all, or its part of what is shared. Local. */
smoe_range smoe_slab_part(const smoe_params *params, const smoe_slab *slab);

/* What a range has of count elements from begin on, counted from there; empty ranges may begin anywhere. Local. */
smoe_range smoe_range_within(smoe_range range, size_t begin, size_t count);

#endif
