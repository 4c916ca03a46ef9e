/** The parameter table: every parameter once, in one place.
 *
 *  Each layer declares its parameters: name (also the HDF5 path below /param),
 *  global shape, sharding, initial values, decay. Initialisation, reduction,
 *  norm, Adam, checkpoint, resume, summary, gradient tests and freezing all
 *  walk this table. A new parameter is one line and cannot be forgotten.
 *
 *  Parameters stand one after another in slabs, each starting on a multiple of
 *  SMOE_UNIT. REPLICATED ones stand in one slab, which every rank has whole; the
 *  experts of each MoE layer have a slab of their own, of which a rank has the copies
 *  of its own experts. MoE layers may differ in their number of experts and in which
 *  rank has which expert. The ranks that have the same copies (all ranks; for experts
 *  one rank per replica, topology.h) share out a slab's slices (lanes.h), with the
 *  moments of each.
 *
 *  Where several ranks run on a node, they have one copy of the values of replicated parameters together
 *  (smoe_params_share). Each rank still owns its slice and writes no other; fences part writing from reading. Elsewhere
 *  every rank has a copy of its own, and fences cost nothing.
 *
 *  A parameter that is frozen before the table is laid out never learns: it stands
 *  in a slab beside, which has values only, no gradient and no moments. One that is
 *  frozen later keeps its place.
 */
#ifndef STABLEMOE_PARAMS_H
#define STABLEMOE_PARAMS_H

#include "stablemoe/arena.h"
#include "stablemoe/lanes.h"
#include "stablemoe/operand.h"
#include "stablemoe/topology.h"
#include "stablemoe/window.h"

typedef enum smoe_sharding { SMOE_REPLICATED, SMOE_EXPERT } smoe_sharding;

typedef enum smoe_init_kind {
  SMOE_INIT_CONSTANT,   /**< value */
  SMOE_INIT_UNIFORM,    /**< U(-value, value) */
  SMOE_INIT_NORMAL,     /**< N(0, value^2) */
  SMOE_INIT_ORTHOGONAL, /**< rows (or columns, where there are more rows) orthonormal, times value */
  SMOE_INIT_CLASS /**< of copy e: value in row e modulo the rows, else 0; of one row: value for odd e, else -value */
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
  bool decay;         /**< weight decay applies */
  bool frozen;        /**< no gradient, no optimizer step, not in the norm */
  bool held;          /**< frozen, because train.frozen or train.only of the configuration say so */
  size_t count;       /**< elements of one copy */
  int slab;           /**< that it stands in; final once the table is laid out */
  size_t offset;      /**< in a copy of the slab; there once the table is laid out */
  bool rounded;       /**< has a bf16 copy, which products read */
  size_t half_offset; /**< of that, in slab->half; there once the table is laid out */
} smoe_param;

/** A stretch of parameters that are kept, reduced, stepped and moved in one way. */
typedef struct smoe_slab {
  bool learns; /**< has gradients and moments, in training; else values only */

  int n_experts;      /**< E of the MoE layer; 0 for replicated parameters */
  int place_first;    /**< first place of this rank (topology.h) */
  int n_local;        /**< copies on this rank: experts of its places; 1 for replicated parameters */
  int32_t *expert_at; /**< [E] expert at each place, the same on all ranks, ascending within a rank;
                           a slab that learns and the one beside it share it. NULL for replicated ones */

  smoe_group holders; /**< ranks that have the same copies, of which each owns a slice */
  smoe_lanes lanes;   /**< whose gradients are added: those of the batch; for experts one per replica */

  size_t count;       /**< elements of one copy, a multiple of SMOE_UNIT */
  size_t slice_first; /**< first element of the slice of [n_local, count] that this rank owns */
  size_t slice_count; /**< all of it where there is one holder */

  smoe_real *value;    /**< [n_local, count]; who writes values calls smoe_params_round */
  size_t half_count;   /**< elements of one copy that have a bf16 copy, with padding */
  smoe_bf16 *half;     /**< [n_local, half_count] those */
  smoe_real *m;        /**< [slice_count] first moments of the own slice; NULL where nothing is learned */
  smoe_real *v;        /**< [slice_count] second moments */
  smoe_real *grad;     /**< [lanes.count, n_local, count] of each lane, or of this replica's tokens */
  smoe_real *grad_own; /**< [slice_count] the own slice of their sum; grad where there is one lane */
} smoe_slab;

/** Slabs of the replicated parameters; those of MoE layer m's experts are 2 m + 2 and, frozen, 2 m + 3. */
enum { SMOE_SLAB_REPLICATED, SMOE_SLAB_REPLICATED_FROZEN, SMOE_SLAB_EXPERTS };

typedef struct smoe_params {
  smoe_group group; /**< all ranks */
  smoe_topology topology;
  smoe_lanes lanes;
  smoe_param *param; /**< [n_params] in order of declaration */
  int n_params;
  smoe_slab *slab; /**< [n_slabs]; moves in memory while parameters are declared */
  int n_slabs;
  int n_moe;     /**< MoE layers with experts so far; 0 for a dense model */
  int n_experts; /**< most experts of a MoE layer; 0 for a dense model */
  bool
      summed; /**< the ranks of a node see each other's gradients of replicated parameters, and add them up */
  bool shared;         /**< the ranks of a node have one copy of the replicated slabs' values */
  size_t shared_bytes; /**< of that copy; there once the table is laid out. 0 where nothing is shared */
  size_t summed_bytes; /**< of those gradients of all ranks of the node; 0 where they are not in the window */
  smoe_window window;  /**< which holds it; zero until smoe_params_take_window */
  bool laid_out;       /**< slabs and offsets of parameters are final */
  bool training;       /**< laid out with gradients and moments */
} smoe_params;

/** Start an empty table for one replica of the ranks of group. Local. */
void smoe_params_begin(smoe_params *params, const smoe_group *group, const smoe_lanes *lanes);

/** Spread the experts as a topology says, before anything is declared. Local. */
void smoe_params_set_topology(smoe_params *params, const smoe_topology *topology);

/** Begin the experts of the next MoE layer: EXPERT parameters that are declared from here on are theirs.
 *
 *  Local; expert e stands at place e. Returns the number of the layer, from 0.
 */
int smoe_params_begin_experts(smoe_params *params, int n_experts);

/** Add one parameter; returns its index. Local; the same calls in the same order on all ranks.
 *
 *  A shape of fewer than SMOE_DIMS_MAX dimensions ends with 0. Two of one name are a bug.
 */
int smoe_params_declare(smoe_params *params, smoe_sharding sharding, const int64_t *shape, smoe_init init,
                        bool decay, const char *name_format, ...) __attribute__((format(printf, 6, 7)));

/** Keep a bf16 copy of a parameter, for the products that read it (smoe_params_operand). Local; before the table is
 *  laid out. Twice is once.
 */
void smoe_params_keep_rounded(smoe_params *params, int index);

/** Round values to their bf16 copies. Collective over the ranks that share values, each of which rounds a part; after every
 *  change of values. smoe_params_initialise, smoe_params_allgather and smoe_params_move_experts end with it. Begins and
 *  ends with a fence.
 */
void smoe_params_round(smoe_params *params);

/** Lay the table out on an arena (which may be measuring). Local.
 *
 *  training: with gradients and moments; else values only. The first call fixes which parameters
 *  never learn: those that are frozen then. Values that are shared are laid out in the window, where there is one.
 */
void smoe_params_layout(smoe_params *params, smoe_arena *arena, bool training);

/** Keep memory of replicated parameters together for the ranks of each of topology->machines, if any has several. Local;
 *  before the table is laid out.
 *
 *  values  in  the values once; gradients: where each sees those of the others (if each node has consecutive ranks)
 */
void smoe_params_share(smoe_params *params, bool values, bool gradients);

/** Take the memory for that, where the table is laid out and shares values.
 *
 *  Collective over group.
 *  only_check  in  see whether there is room, and take none
 *  Errors:  SMOE_ERR_MEMORY, agreed: a node cannot give it.
 */
smoe_status smoe_params_take_window(smoe_params *params, bool only_check);

/** Give up the gradients of others, or, if there are none, the common copy of values; the table is to be laid out again.
 *  Local. Returns what is done instead, for a message.
 */
const char *smoe_params_share_less(smoe_params *params);

/** This rank's part of the window: an equal one of the values, and its own gradients. Local. */
double smoe_params_shared_part(const smoe_params *params);

/** Bytes of the window beyond that part which this rank touches, too. Local. */
double smoe_params_shared_others(const smoe_params *params);

/** Wait for the ranks that share values: what was written before is seen behind it, and what was read before may be
 *  written. Collective over these ranks; nothing where values are not shared.
 */
void smoe_params_fence(const smoe_params *params);

/** Whether this rank writes replicated parameters that are written as a whole: it, and no other that shares them. Local;
 *  to be used between two fences.
 */
bool smoe_params_writes(const smoe_params *params);

/** Give the table back. Collective over the ranks that share values. */
void smoe_params_end(smoe_params *params);

/** Move the experts of a MoE layer, values and moments, to other places of this replica.
 *
 *  Collective over group; params must be laid out for training. Nothing that is computed from the
 *  parameters changes by it. Destroys the layer's gradients: comes between updates.
 *
 *  layer      in  number of the MoE layer, from smoe_params_begin_experts
 *  expert_at  in  [E] expert at each place, the same on all ranks; ascending within a rank
 *  Cost:      one message per expert that changes its rank, for values and each moment.
 */
void smoe_params_move_experts(smoe_params *params, int layer, const int32_t *expert_at);

/** Take the values and places of experts of another table of the same model over the same ranks, whether or not either
 *  is laid out for training. Collective over the ranks that share values.
 */
void smoe_params_copy(smoe_params *params, const smoe_params *from);

/** Set every parameter to its initial values and the moments to zero.
 *
 *  Collective over the ranks that share values. Values are functions of (seed, name, global index).
 */
void smoe_params_initialise(smoe_params *params, uint64_t seed);

/** Make values whole on every rank from the slices that the ranks own. Collective over group.
 *
 *  Begins without a fence: the own slices were written behind one. Ends with one.
 *
 *  all: also of parameters that never learn, which differ from slice to slice only while a file is read.
 */
void smoe_params_allgather(smoe_params *params, bool all);

/** Set all gradients to zero: an update begins. Local. */
void smoe_params_clear_gradients(smoe_params *params);

/** Multiply the own slices of the experts' gradients, between smoe_params_reduce and the step. Local. */
void smoe_params_scale_experts(smoe_params *params, smoe_real factor);

/** Add up the gradients of lanes and of replicas; each rank gets its own slices.
 *
 *  Collective over group.
 *  Writes:  grad_own = of every slab; grad is destroyed
 *  scratch  smoe_params_reduce_scratch(params) reals
 */
void smoe_params_reduce(smoe_params *params, smoe_real *scratch);

/** Reals of scratch that smoe_params_reduce needs on this rank. Local. */
size_t smoe_params_reduce_scratch(const smoe_params *params);

/** Index of the parameter of that name, -1 where there is none. Local. */
int smoe_params_find(const smoe_params *params, const char *name);

/** The slab of the experts of a MoE layer that learn. Local. */
smoe_slab *smoe_params_experts(const smoe_params *params, int layer);

/** The slab that a parameter stands in. Local. */
smoe_slab *smoe_params_slab(const smoe_params *params, int index);

/** Number of the slab's local expert j among all experts of its MoE layer; 0 for replicated ones. Local. */
int smoe_slab_expert_number(const smoe_slab *slab, int j);

/** Values of a replicated parameter. Local; who writes them asks smoe_params_writes. */
smoe_real *smoe_params_shared(const smoe_params *params, int index);

/** Gradient of a replicated parameter in the slab of the rank's lane-th lane; NULL where it never learns. Local. */
smoe_real *smoe_params_lane_grad(const smoe_params *params, int index, int lane);

/** Values of a parameter of local expert j of its MoE layer. Local. */
smoe_real *smoe_params_expert(const smoe_params *params, int index, int j);

/** What products read of a parameter: its bf16 copy if there is one, else its values. j: local expert of its MoE layer; 0
 *  for a replicated one. Local.
 */
smoe_operand smoe_params_operand(const smoe_params *params, int index, int j);

/** Gradient of a parameter of local expert j of its MoE layer; NULL where it never learns. Local. */
smoe_real *smoe_params_expert_grad(const smoe_params *params, int index, int j);

/** Freeze or thaw every parameter whose name begins with prefix; returns how many.
 *
 *  Local. Frozen before smoe_params_layout a parameter never learns and costs its values alone; it
 *  cannot be thawed afterwards.
 */
int smoe_params_freeze(smoe_params *params, const char *prefix, bool frozen);

/** Part of a parameter that lies in this rank's slice of its slab.
 *
 *  Local.
 *  j      in   local expert; 0 for a replicated parameter
 *  first  out  first element, counted from the start of that copy of the parameter
 *  own    out  the same element's place in the slice: in m, v and grad_own
 *  Returns the number of elements, which may be 0.
 */
size_t smoe_params_in_slice(const smoe_params *params, int index, int j, size_t *first, size_t *own);

/** Number of parameters (elements) of the whole model, by sharding; experts counted E times. Local. */
int64_t smoe_params_total(const smoe_params *params, smoe_sharding sharding);

/** Of all those the number that never learn, and have no gradients and moments. Local. */
int64_t smoe_params_total_frozen(const smoe_params *params);

/** Bytes that gradients and moments of those would take on this rank. Local. */
double smoe_params_spared(const smoe_params *params);

/** Bytes of the values and moments that this rank owns, its part of a checkpoint; there once the table is laid out.
 *  Local.
 */
size_t smoe_params_state_bytes(const smoe_params *params);

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
