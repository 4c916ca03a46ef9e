/** The ranks of a run, and agreement between them. */
#ifndef STABLEMOE_GROUP_H
#define STABLEMOE_GROUP_H

#include <mpi.h>

#include "stablemoe/real.h"
#include "stablemoe/status.h"

typedef struct smoe_group {
  MPI_Comm comm;
  int rank;
  int n_ranks;
  int planned_per_node; /**< > 0: these ranks are not there, so many of them to a node; one process plans for them
                             (rank_plan.h), and comm is its own. 0: they are */
} smoe_group;

/** Start MPI (once per process), take all its ranks, set up panic and log.
 *
 *  Collective over all ranks of the job.
 *
 *  Errors:  none returned. Where the tasks of a Slurm step do not find each other
 *           (srun without PMIx starts N runs of one rank) the run ends with
 *           SMOE_ERR_MPI. MPI errors are reported by SMOE_MPI, which ends the run.
 */
void smoe_group_start(smoe_group *group, int *argc, char ***argv);

/** End MPI. Collective. Call it only where no rank has a failed transfer behind it. */
void smoe_group_end(smoe_group *group);

/** Agree on the worst status of all ranks.
 *
 *  Collective. Returns the same code on all ranks: the largest one, but any
 *  error before SMOE_STOPPED and SMOE_STOPPED_BY_HAND. On return every rank's report is that of the
 *  lowest rank with that code, prefixed "on rank r of R: " where R > 1 and it
 *  does not have such a prefix already. One Allreduce when all is well.
 */
smoe_status smoe_group_agree(const smoe_group *group, smoe_status mine);

/** Fail with SMOE_ERR_BUG where value is not the same on all ranks. Collective.
 *  what names the value in the report.
 */
smoe_status smoe_group_same(const smoe_group *group, int64_t value, const char *what);

/** Copy bytes from rank root to all. Collective. */
void smoe_group_broadcast(const smoe_group *group, void *data, size_t bytes, int root);

/** Element-wise global sum of integers: exact, so the same on any number of ranks. Collective. */
void smoe_group_sum_i64(const smoe_group *group, int64_t *values, int n);

/** Element-wise global sum of 64-bit words, modulo 2^64 (checksums). Collective. */
void smoe_group_sum_u64(const smoe_group *group, uint64_t *values, int n);

/** Element-wise global maximum. Collective. */
void smoe_group_max_f64(const smoe_group *group, double *values, int n);

/** Gather count[r] doubles of each rank into all, in rank order.
 *
 *  Collective.
 *
 *  all    out  [sum of count]
 *  mine   in   [count[rank]]
 *  count  in   [n_ranks], the same on all ranks
 */
void smoe_group_gather_f64(const smoe_group *group, double *all, const double *mine, const int *count);

/** As smoe_group_gather_f64, for 32-bit integers. Collective. */
void smoe_group_gather_i32(const smoe_group *group, int32_t *all, const int32_t *mine, const int *count);

/** Ranks on this machine (sharing memory), this one included. Collective. */
int smoe_group_ranks_here(const smoe_group *group);

/** Wait for all ranks. Collective. */
void smoe_group_barrier(const smoe_group *group);

/** End the run unless an MPI call returned MPI_SUCCESS. Local. */
void smoe_mpi_check_at(const char *file, int line, int result, const char *call);

/** Tell the watchdog that this rank enters and leaves an MPI call. Local; for SMOE_MPI alone. */
void smoe_watch_enter(const char *call);
void smoe_watch_leave(void);

/** Make an MPI call: watched while it waits, and the end of the run where it fails. */
#define SMOE_MPI(call)                                                                                       \
  (smoe_watch_enter(#call), smoe_mpi_check_at(__FILE__, __LINE__, (call), #call), smoe_watch_leave())

/** Agree on the status of an expression, and return it where it is not OK. Collective. */
#define SMOE_TRY_ALL(group, expression)                                                                      \
  do {                                                                                                       \
    const smoe_status smoe_try_ = smoe_group_agree((group), (expression));                                   \
    if (smoe_try_ != SMOE_OK) return smoe_try_;                                                              \
  } while (0)

#endif
