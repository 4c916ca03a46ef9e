/** What a training would take on ranks that are not there: memory, and what travels in an update.
 *
 *  One process lays out the model of every rank as that rank would, without taking memory, and counts the messages
 *  that these ranks would send to each other. Ranks stand on nodes in blocks: rank r on node r / per_node.
 */
#ifndef STABLEMOE_RANK_PLAN_H
#define STABLEMOE_RANK_PLAN_H

#include <stdio.h>

#include "stablemoe/task.h"

/** Parts of an update in which ranks wait for messages. */
typedef enum smoe_plan_phase {
  SMOE_PLAN_COUNTS,    /**< Allgather of the rows that each rank sends to each expert */
  SMOE_PLAN_EXCHANGE,  /**< rows to the experts and back, forward and backward */
  SMOE_PLAN_REDUCTION, /**< gradients, lane by lane in the fixed tree, and experts' over replicas */
  SMOE_PLAN_NORMS,     /**< Allgather of partial norms */
  SMOE_PLAN_SHARING,   /**< new parameters to all ranks that hold them */
  SMOE_PLAN_PHASES
} smoe_plan_phase;

/** Kinds of work that have rates of their own. */
typedef enum smoe_plan_work {
  SMOE_PLAN_LINEAR, /**< FLOP: products of the blocks and of what is around them */
  SMOE_PLAN_ATTENTION,
  SMOE_PLAN_HEAD,
  SMOE_PLAN_EXPERTS, /**< of MoE layers, their routers included */
  SMOE_PLAN_PASSES,  /**< rows times width of the passes over memory, one for each block and each MoE layer */
  SMOE_PLAN_WORKS
} smoe_plan_work;

/** Of all ranks in one update; within: to ranks of the same node, between: to those of other nodes. */
typedef struct smoe_plan_traffic {
  double messages_within, bytes_within;
  double messages_between, bytes_between;
  double node_bytes; /**< that leave the node which sends most */
} smoe_plan_traffic;

typedef struct smoe_plan {
  int n_ranks, per_node, n_nodes;
  int expert_ranks;                /**< G; 0 for a dense model */
  int lanes_least, lanes_most;     /**< of a rank */
  int experts_least, experts_most; /**< of a rank, of the first MoE layer */
  int64_t shared, in_experts;      /**< parameters */
  int64_t tokens;                  /**< of an update */
  double flops;                    /**< of an update, all ranks together */
  double work[SMOE_PLAN_WORKS];    /**< the same by kind, and the passes */
  double
      reduction_bytes; /**< that zeroing and adding up gradients moves in the memory of the rank with most */
  double adam_parameters;   /**< that the optimizer of the rank with most steps */
  int lanes, micro_batches; /**< of the configuration */
  int n_experts;            /**< E; 0 for a dense model */
  smoe_precision precision;
  double model, tape, scratch; /**< bytes of the rank that takes most */
  double copy;                 /**< its copy of a checkpoint that is written in the background; 0: none */
  double rank_expected,
      rank_most; /**< its bytes with balanced routing; if all tokens went to one rank's experts */
  double node_expected, node_most; /**< the same of the node that takes most */
  double
      shared_memory; /**< bytes that the ranks of a node have once together, in the figures of ranks and nodes; 0: none */
  double libraries; /**< bytes of MPI, HDF5 and BLAS in each rank, as in this process; in rank_ and node_ */
  smoe_plan_traffic phase[SMOE_PLAN_PHASES];
} smoe_plan;

/** "counts", "exchange", ... Local. */
const char *smoe_plan_phase_name(smoe_plan_phase phase);

/** "linear", "attention", ... Local. */
const char *smoe_plan_work_name(smoe_plan_work work);

/** Plan an update with balanced routing.
 *
 *  Local to the process that calls it; takes no memory but for tables.
 *
 *  config    in  resolved
 *  task      in  open, with the vocabulary; its group is not used
 *  n_ranks   in  of the planned run; per_node: so many on each node, fewer on the last one
 *
 *  Messages: rows and gradients as this program sends them. Allgathers are MPI's own choice; counted are Bruck's
 *  algorithm for small ones (counts, norms) and a ring for the parameters of which every rank has a copy.
 *  Errors:  SMOE_ERR_CONFIG as a run on these ranks would end with.
 */
smoe_status smoe_plan_make(smoe_plan *plan, const smoe_config *config, smoe_task *task, int n_ranks,
                           int per_node);

/** Settings, one each, with which such a plan fits into node_bytes; each is KEY=VALUE. Local.
 *
 *  Returns a text in memory of smoe_alloc, "" where none of those that were tried helps.
 *  Tried: train.save=wait, train.micro_batches, train.recompute, train.precision=bf16, comm.share=node, fewer ranks
 *  per node.
 */
char *smoe_plan_advice(const smoe_config *config, smoe_task *task, const smoe_plan *plan, double node_bytes);

/** Print a plan as a table, or as one JSON object. Local. */
void smoe_plan_print(const smoe_plan *plan, double node_bytes, bool json, FILE *out);

#endif
