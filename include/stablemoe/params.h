/** The parameter table: every parameter once, in one place.
 *
 *  Each layer declares its parameters: name (also the HDF5 path below /param),
 *  global shape, sharding, initial values, decay. Initialisation, reduction,
 *  norm, Adam, checkpoint, resume, summary, gradient tests and freezing all
 *  walk this table. A new parameter is one line and cannot be forgotten.
 *
 *  REPLICATED parameters stand one after another in one slab, each starting on
 *  a multiple of SMOE_UNIT; every rank has the whole slab, and owns a slice of
 *  it (lanes.h) for which it keeps the moments. EXPERT parameters of one
 *  expert, all MoE layers, stand in one expert slab; a rank has the slabs of
 *  its own experts. Where several replicas (topology.h) hold the same experts,
 *  each of these ranks owns a slice of the slabs, with the moments of that slice.
 */
#ifndef STABLEMOE_PARAMS_H
#define STABLEMOE_PARAMS_H

#include "stablemoe/arena.h"
#include "stablemoe/lanes.h"
#include "stablemoe/topology.h"

typedef enum smoe_sharding { SMOE_REPLICATED, SMOE_EXPERT } smoe_sharding;

typedef enum smoe_init_kind {
  SMOE_INIT_CONSTANT,  /**< value */
  SMOE_INIT_UNIFORM,   /**< U(-value, value) */
  SMOE_INIT_NORMAL,    /**< N(0, value^2) */
  SMOE_INIT_ORTHOGONAL /**< rows (or columns, where there are more rows) orthonormal, times value */
} smoe_init_kind;

typedef struct smoe_init {
  smoe_init_kind kind;
  double value;
  bool same_for_experts; /**< EXPERT: all experts start alike */
} smoe_init;

enum { SMOE_NAME_MAX = 96, SMOE_DIMS_MAX = 3 };

typedef struct smoe_param {
  char name[SMOE_NAME_MAX]; /**< "block0/attention/qkv/weight" */
  smoe_sharding sharding;
  int n_dims;                   /**< of one copy: an expert's, for EXPERT */
  int64_t shape[SMOE_DIMS_MAX]; /**< of one copy; the file's shape of EXPERT is [E, shape...] */
  smoe_init init;
  bool decay;    /**< weight decay applies */
  bool frozen;   /**< no gradient, no optimizer step, not in the norm */
  size_t count;  /**< elements of one copy */
  size_t offset; /**< in the replicated slab, or in an expert slab */
} smoe_param;

typedef struct smoe_params {
  smoe_group group; /**< all ranks */
  smoe_topology topology;
  smoe_lanes lanes;
  smoe_param *param; /**< [n_params] in order of declaration */
  int n_params;

  int n_experts;       /**< E over all ranks; 0 for a dense model */
  int place_first;     /**< first place of this rank (topology.h) */
  int n_local;         /**< experts of this rank: its places' */
  size_t shared_count; /**< elements of the replicated slab, a multiple of SMOE_UNIT */
  size_t expert_count; /**< elements of one expert slab, a multiple of SMOE_UNIT */
  size_t slice_first;  /**< first element of the slice this rank owns */
  size_t slice_count;
  size_t expert_slice_first; /**< first element of the slice of [n_local, expert_count] this rank owns */
  size_t expert_slice_count; /**< all of it where there is one replica */

  smoe_real *shared;      /**< [shared_count], the same on all ranks */
  smoe_real *shared_m;    /**< [slice_count] first moments of the own slice */
  smoe_real *shared_v;    /**< [slice_count] second moments */
  smoe_real *shared_grad; /**< [slice_count] gradient of the own slice after reduction */
  smoe_real *lane_grad;   /**< [lanes.count, shared_count] */
  smoe_real *expert;      /**< [n_local, expert_count] */
  smoe_real *expert_m;    /**< [expert_slice_count] */
  smoe_real *expert_v;    /**< [expert_slice_count] */
  smoe_real *expert_grad; /**< [n_local, expert_count] of this replica's tokens */
  smoe_real
      *expert_grad_own; /**< [expert_slice_count] over all replicas; in expert_grad where there is one */
} smoe_params;

/** Start an empty table for one replica of the ranks of group. Local. */
void smoe_params_begin(smoe_params *params, const smoe_group *group, const smoe_lanes *lanes, int n_experts);

/** Spread the experts as a topology says, before anything is declared. Local. */
void smoe_params_set_topology(smoe_params *params, const smoe_topology *topology);

/** Add one parameter; returns its index. Local; the same calls in the same order on all ranks.
 *
 *  A shape of fewer than SMOE_DIMS_MAX dimensions ends with 0. Two of one name are a bug.
 */
int smoe_params_declare(smoe_params *params, smoe_sharding sharding, const int64_t *shape, smoe_init init,
                        bool decay, const char *name_format, ...) __attribute__((format(printf, 6, 7)));

/** Lay the table out on an arena (which may be measuring). Local.
 *
 *  training: with gradients and moments; else values only.
 */
void smoe_params_layout(smoe_params *params, smoe_arena *arena, bool training);

/** Give the table back. Local. */
void smoe_params_end(smoe_params *params);

/** Move the experts of this replica, values and moments, to other places.
 *
 *  Collective over group; params must be laid out for training. Nothing that is computed from the
 *  parameters changes by it. Destroys expert_grad: comes between updates.
 *
 *  expert_at  in  [E] expert at each place, the same on all ranks; ascending within a rank
 *  Cost:      one message per expert that changes its rank, for values and each moment.
 */
void smoe_params_move_experts(smoe_params *params, const int32_t *expert_at);

/** Set every parameter to its initial values and the moments to zero.
 *
 *  Local. Values are functions of (seed, name, global index).
 */
void smoe_params_initialise(smoe_params *params, uint64_t seed);

/** Make all values whole on every rank from the slices that the ranks own. Collective over group. */
void smoe_params_allgather(smoe_params *params);

/** Add up the gradients of lanes and of replicas; each rank gets its own slices.
 *
 *  Collective over group.
 *  Writes:  shared_grad =, expert_grad_own =; lane_grad and expert_grad are destroyed
 *  scratch  smoe_params_reduce_scratch(params) reals
 */
void smoe_params_reduce(smoe_params *params, smoe_real *scratch);

/** Reals of scratch that smoe_params_reduce needs on this rank. Local. */
size_t smoe_params_reduce_scratch(const smoe_params *params);

/** Index of the parameter of that name, -1 where there is none. Local. */
int smoe_params_find(const smoe_params *params, const char *name);

/** Global number of local expert j. Local. */
int smoe_params_expert_number(const smoe_params *params, int j);

/** Values of a replicated parameter. Local. */
smoe_real *smoe_params_shared(const smoe_params *params, int index);

/** Gradient of a replicated parameter in the slab of the rank's lane-th lane. Local. */
smoe_real *smoe_params_lane_grad(const smoe_params *params, int index, int lane);

/** Values of a parameter of local expert j. Local. */
smoe_real *smoe_params_expert(const smoe_params *params, int index, int j);

/** Gradient of a parameter of local expert j. Local. */
smoe_real *smoe_params_expert_grad(const smoe_params *params, int index, int j);

/** Freeze or thaw every parameter whose name begins with prefix; returns how many. Local. */
int smoe_params_freeze(smoe_params *params, const char *prefix, bool frozen);

/** Part of a replicated parameter that lies in this rank's slice.
 *
 *  Local.
 *  first  out  first element, counted from the parameter's start
 *  Returns the number of elements, which may be 0.
 */
size_t smoe_params_in_slice(const smoe_params *params, int index, size_t *first);

/** Part of a parameter of local expert j that lies in this rank's expert slice; as smoe_params_in_slice. Local. */
size_t smoe_params_expert_in_slice(const smoe_params *params, int index, int j, size_t *first);

/** Number of parameters (elements) of the whole model, by sharding; experts counted E times. Local. */
int64_t smoe_params_total(const smoe_params *params, smoe_sharding sharding);

/** Checksum of n consecutive elements of a parameter.
 *
 *  Local. The sum (modulo 2^64) of XXH3 hashes of blocks of SMOE_UNIT elements,
 *  seeded by the block's number, so parts that end on block borders add up
 *  and ranks' parts give the same number however they are cut.
 *
 *  values  in  [n], element `first` of the parameter onwards; first a multiple of SMOE_UNIT
 */
uint64_t smoe_checksum(const smoe_real *values, size_t first, size_t n);

#endif
