/** The interface of a routing method: a table of functions, one file per method.
 *
 *  A router is Local: it sees no MPI. It works lane by lane, so that what it
 *  computes does not depend on the number of ranks. It chooses experts for the
 *  tokens of one lane (choose), then computes their gates (gate); later, when the
 *  loads of all ranks are known, it adds its loss terms (losses) and their
 *  gradients (backward).
 *
 *  Adding a method: write src/moe/router_<name>.c, add its table to the array in
 *  src/moe/router.c and the file to the build, and its keys appear in --help and
 *  configs/reference.yml. doc/adding-a-method.md walks through it.
 */
#ifndef STABLEMOE_ROUTER_H
#define STABLEMOE_ROUTER_H

#include "stablemoe/layer.h"
#include "stablemoe/slot.h"
#include "stablemoe/terms.h"

/** One lane's part of one MoE layer call. */
typedef struct smoe_route_call {
  const smoe_pass *context;
  int layer;           /**< MoE layer, 0-based */
  int lane;            /**< lane counted on this rank, for gradient slabs */
  int64_t global_lane; /**< the same, counted over all ranks */
  size_t n_tokens;     /**< N; n_sequences * n_context */
  size_t n_sequences;
  size_t n_context;     /**< T; token t of sequence s is row s * T + t */
  int copies;           /**< of each sequence, one after another: smoe_route_copy; 0 or 1: no more */
  int64_t before;       /**< tokens of the update's micro-batches before this one */
  int64_t first_token;  /**< global index of row 0 within the micro-batch */
  const int32_t *token; /**< [N] ids; -1: padding, routed nowhere */
  const smoe_real *x;   /**< [N, C] hidden states that enter the layer; NULL where choose comes before them */
  int32_t *expert;      /**< [N, K] out of choose; -1 unused. Later the exchange marks slots as dropped: read
                             them by smoe_slot_expert */
  smoe_real *gate;      /**< [N, K] out of gate; stays as it is until backward */
  smoe_real *tape;      /**< [tape_reals(N)] kept from choose to backward */
  int32_t *integers;    /**< [tape_ints(N)] likewise */
  smoe_real *scratch;   /**< [scratch_reals(N)] lives for one function */
  int32_t *learned; /**< [N] out of choose or gate: the learned choice where computed, else -1; may be NULL */
  int32_t *distilled; /**< [N] likewise: the distilled choice */

  /* What goes from MoE layer to MoE layer of a stream; only where the method has state_reals. */
  const smoe_real *state_in;   /**< [N, state_reals] of the MoE layer before; NULL: this is the first */
  smoe_real *state_out;        /**< [N, state_reals] out of choose or gate */
  const smoe_real *dstate_out; /**< backward: dL/dstate_out; NULL: no layer follows */
  smoe_real *dstate_in;        /**< out of backward: dL/dstate_in, written; NULL: this is the first */
} smoe_route_call;

/** Which copy of its sequence a row is of, from 0. */
static inline int smoe_route_copy(const smoe_route_call *call, size_t row) {
  return call->copies > 1 ? (int)(row / call->n_context % (size_t)call->copies) : 0;
}

/** Loads of one MoE layer over all ranks, for the losses. */
typedef struct smoe_route_loads {
  const int64_t *load; /**< [E] tokens that chose each expert, before dropping */
  int64_t n_assigned;  /**< their sum */
} smoe_route_loads;

/** Sums over a lane's tokens: figures, then loss terms, which are weighted but not yet divided by n_targets.
 *  All are doubles: smoe_lanes_sum adds them up as an array.
 */
typedef struct smoe_route_sums {
  double gate;       /**< sum of gates of used slots */
  double n_gates;    /**< used slots */
  double n_agree;    /**< tokens for which learned and distilled choice agree */
  double n_compared; /**< tokens for which both are known */
  double n_sent;     /**< slots that travel: used and not dropped */
  double n_local;    /**< of these to an expert of the lane's node (moe.nodes) */
  double own[2];     /**< figures of the method's own, sums over tokens: ops->report */
  double term[];     /**< [terms.n] in order of the router's names: smoe_route_term */
} smoe_route_sums;

/** Doubles of the sums of a layer with so many terms. */
static inline size_t smoe_route_sums_count(const smoe_terms *terms) {
  return sizeof(smoe_route_sums) / sizeof(double) + (size_t)terms->n;
}

/** What a method may make tables of before the first update; the same on all ranks. */
typedef struct smoe_route_facts {
  const int64_t *count;       /**< [V] how often each token stands in the training split */
  const smoe_real *embedding; /**< [V, embedding_width] of the model that embedding_of names; NULL: none */
  size_t embedding_width;
  const smoe_real *word,
      *centroid; /**< [V, distilled_width], [E, distilled_width] of the distilled router that
                                         distilled_of names, of this MoE layer; NULL: none */
  size_t distilled_width;
  const int32_t *recorded; /**< [M, V, K] experts that the log of log_of has most often for a token, -1: none;
                                NULL: there is no log */
} smoe_route_facts;

typedef struct smoe_router smoe_router;

/** What decides a token's experts and gates in evaluation. */
typedef enum smoe_router_scope {
  SMOE_SCOPE_ALL,    /**< all of its sequence, or other sequences too */
  SMOE_SCOPE_PREFIX, /**< it, its place, and the tokens before it in its sequence */
  SMOE_SCOPE_TOKEN   /**< its id and its hidden state alone */
} smoe_router_scope;

/** A routing method. All functions are Local. */
typedef struct smoe_router_ops {
  const char *name;          /**< as in router.method */
  const char *title;         /**< one line for --help */
  const smoe_keyset *keyset; /**< its keys, "router.<name>.*"; NULL where it has none */
  const char *family;        /**< the only family of models that it is for; NULL: any */
  bool two_stages;           /**< has a stage 2 that starts at router.stage1_updates */

  /** Check the method's own keys against the others; NULL: nothing to check. */
  smoe_status (*check)(const smoe_config *config);

  /** What decides in evaluation; decoding (decode.h) keeps more, the less that is. NULL: SMOE_SCOPE_ALL. */
  smoe_router_scope (*scope)(const smoe_router *router);

  /** Copies of each sequence that a training pass has, 1 or 2; with 2 the divergence between what both predict
   *  is learned with that weight (smoe_objective_consistent). NULL: 1.
   */
  int (*copies)(const smoe_config *config, double *consistency);

  /** Experts per token at most (K). */
  int (*slots)(const smoe_config *config);

  /** Rows of an expert as a share of all tokens, where loads are even; NULL: K / E. For counts of FLOP. */
  double (*load_share)(const smoe_router *router);

  /** Declare the parameters of one MoE layer's router and remember their indices in router; add the names of
   *  loss terms other than "balance" and "distill" to router->terms.
   */
  void (*declare)(smoe_router *router, smoe_params *params);

  /** Path of the checkpoint whose token embeddings prepare wants; NULL, as function or result: none. */
  const char *(*embedding_of)(const smoe_router *router);

  /** Path of the run or checkpoint whose distilled router, of words, prepare wants; NULL, as function or result:
   *  none. */
  const char *(*distilled_of)(const smoe_router *router);

  /** Path of the run or routing log whose assignments the method wants; NULL, as function or result: none. */
  const char *(*log_of)(const smoe_router *router);

  /** Fill what is fixed before training (tables, frozen from the start). Once in a run, after the
   *  parameters have their initial values: later they come from the checkpoint. NULL: nothing to fill.
   */
  void (*prepare)(smoe_router *router, smoe_params *params, const smoe_route_facts *facts);

  /** Integers of memory that live as long as the model, at router->table; NULL: none. */
  size_t (*table_ints)(const smoe_router *router);

  /** Whether choose needs no hidden states in such a pass: the choice follows from token ids and their places
   *  alone, and does not change with the parameters any more. It is called before any layer has run then, and
   *  x and the state are not there. NULL: never.
   */
  bool (*from_ids)(const smoe_router *router, const smoe_pass *pass);

  /** Reals and integers of tape, and reals of scratch, for a call of n tokens. tape_ints NULL: none. */
  size_t (*tape_reals)(const smoe_router *router, size_t n);
  size_t (*tape_ints)(const smoe_router *router, size_t n);
  size_t (*scratch_reals)(const smoe_router *router, size_t n);

  /** Reals per token that a router hands on to that of the next MoE layer of its stream. NULL: none. */
  size_t (*state_reals)(const smoe_router *router);

  /** Choose: fill expert (and learned, distilled, where they follow from it). Ties go to the lower expert; N
   *  may be 0; a score that is not finite counts as minus infinity.
   */
  void (*choose)(const smoe_router *router, const smoe_route_call *call);

  /** Fill gate for every slot that choose has filled, 0 for the others (and learned, where it needs hidden
   *  states that choose did not have). Comes after choose, always; the exchange may have marked dropped slots
   *  in between. Leaves expert alone.
   */
  void (*gate)(const smoe_router *router, const smoe_route_call *call);

  /** Add the lane's weighted loss terms, each to smoe_route_term. Called after the loads are known; NULL: none. */
  void (*losses)(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                 smoe_route_sums *sums);

  /** Print what the first update of a run shows. own: means over the n tokens of the update of the figures that
   *  losses added to sums->own. The same on all ranks, of which the first prints. NULL: nothing.
   */
  void (*report)(const smoe_router *router, const double *own, int64_t n);

  /** Add gradients of gates and losses: to dx [N, C] (NULL: the rows are data, of family cnn) and to the lane's gradient slab.
   *  dgate [N, K] is dL/dgate (0 for unused and dropped slots), with everything divided by n_targets; NULL where
   *  gates_learn says that there is none.
   */
  void (*backward)(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                   smoe_real *dx, const smoe_real *dgate);

  /** Whether gates have a gradient at all. False: backward gets dgate NULL, and the experts' results are not kept for
   *  it. NULL: they have.
   */
  bool (*gates_learn)(const smoe_router *router);

  /** Methods whose backward estimates the gradient of a sampled choice: what it multiplies the true gradient of
   *  each slot's gate by, factor [N, K]. NULL: 1, the gradient is exact.
   */
  void (*estimate)(const smoe_router *router, const smoe_route_call *call, smoe_real *factor);

  /** Whether experts get the gradient times that factor, too. NULL: no. */
  bool (*estimates_experts)(const smoe_router *router);

  /** Change parameters that are frozen from the start, from the loads of a whole update over all ranks and its
   *  stage: called after the optimizer's step, with the same bits on all ranks. NULL: nothing to change.
   */
  void (*after_update)(smoe_router *router, smoe_params *params, const smoe_route_loads *loads, int stage);

  /** Enter stage 2: freeze what no longer learns, and compile what is frozen. Called before every update
   *  of stage 2. NULL where two_stages is false.
   */
  void (*freeze)(smoe_router *router, smoe_params *params);
} smoe_router_ops;

/** The router of one MoE layer. */
struct smoe_router {
  const smoe_router_ops *ops;
  const smoe_config *config;
  const smoe_params *params;
  const void *options;  /**< the method's own values: the struct of ops->keyset */
  int layer;            /**< number among the MoE layers */
  int n_layers;         /**< MoE layers of the model */
  int n_experts;        /**< E */
  int n_lanes, n_nodes; /**< of a training batch over all ranks; moe.nodes */
  int n_slots;          /**< K */
  size_t width;         /**< C */
  size_t context;       /**< T of the longest sequence */
  int vocabulary;       /**< V */
  int index[8];         /**< parameters of the method, by its own numbering */
  int omega;            /**< parameter [C]: factor on what experts add, dimension by dimension; -1: none */
  smoe_terms terms;     /**< loss terms; the same in all MoE layers */
  int32_t *table;       /**< [table_ints] of the method; NULL where no layer holds the router */
  bool compiled;        /**< the table is filled, and stays as it is */
  double
      typical_slots; /**< slots that a token has in training, where that is not K: for plans of memory and FLOP */
  bool draws_alike;    /**< whole updates go to few experts by design, which is no collapse */
  bool shut_in_stage1; /**< gates are 0 in stage 1 by design: the router learns alone */
};

/** All methods, NULL-terminated. */
extern const smoe_router_ops *const smoe_router_methods[];

/** The method of that name; NULL where there is none. Local. */
const smoe_router_ops *smoe_router_find(const char *name);

/** Key sets of the trainer and of all methods, for smoe_config_create. Local.
 *  Returns their number; sets may be NULL to only count.
 */
size_t smoe_router_keysets(const smoe_keyset **sets);

/** Check router.method and the method's keys. Local. Errors: SMOE_ERR_CONFIG naming the methods there are. */
smoe_status smoe_router_check(const smoe_config *config);

/** Set up the router of an MoE layer and declare its parameters. Local. */
void smoe_router_declare(smoe_router *router, const smoe_layer *layer);

/** Node of an expert, and of a lane counted over all ranks: equal parts of their order. Local. */
static inline int smoe_router_expert_node(const smoe_router *router, int32_t expert) {
  return (int)((int64_t)expert * router->n_nodes / router->n_experts);
}
static inline int smoe_router_lane_node(const smoe_router *router, int64_t lane) {
  return (int)(lane * router->n_nodes / router->n_lanes);
}

/** choose and gate, one after the other. Local. */
void smoe_router_route(const smoe_router *router, const smoe_route_call *call);

/** The sum of a loss term among a lane's sums. Local. */
double *smoe_route_term(const smoe_router *router, smoe_route_sums *sums, const char *name);

/** Add a lane's figures, then its loss terms (ops->losses). Local. */
void smoe_router_losses(const smoe_router *router, const smoe_route_call *call, const smoe_route_loads *loads,
                        smoe_route_sums *sums);

/** A number that no other token of the update has in any MoE layer, the same on any number of ranks:
 *  the index of a random number for one row of a training call. Local.
 */
uint64_t smoe_route_index(const smoe_router *router, const smoe_route_call *call, size_t row);

/** Balancing by bias, after an update: bias_e += rate sign(mean load - load of e). Local; the same on all ranks.
 *  bias  in/out  [E], which counts for the choice of experts alone
 */
void smoe_route_balance_bias(smoe_real *bias, double rate, const smoe_route_loads *loads, int n_experts);

/** The greedy choice that most methods share: expert of the largest finite score, the lower one on ties.
 *
 *  Local.
 *  expert  out  [N]
 *  score   in   [N, E]
 *  token   in   [N]; -1: expert -1. May be NULL: no padding.
 */
void smoe_route_argmax(int32_t *expert, const smoe_real *score, const int32_t *token, size_t n,
                       int n_experts);

#endif
