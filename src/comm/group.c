#include "stablemoe/group.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/mpi_facts.h"

void smoe_mpi_check_at(const char *file, int line, int result, const char *call) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length;
  MPI_Error_string(result, text, &length);
  /* The name of the function says enough; its arguments would fill the line. */
  smoe_panic_at(file, line, SMOE_ERR_MPI, "%.*s failed: %s", (int)strcspn(call, "("), call, text);
}

/* The one way to end a run that also ends ranks that wait in a collective or hold a parallel file open. */
static void end_run(int code) {
  enum { TURNS = 8, TURN_NS = 50000000 };
  int started = 0, ended = 0, rank = 0;
  fflush(NULL);
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  if (!started || ended) return;
  /* Ranks often fail together, and the launcher of Open MPI 4.1.4 may crash where several abort in one moment, with
   * its own exit status in place of theirs: one after the other, then, and the first ends the rest. */
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  nanosleep(&(struct timespec){.tv_nsec = rank % TURNS * (long)TURN_NS}, NULL);
  MPI_Abort(MPI_COMM_WORLD, code);
}

static long environment_number(const char *name) {
  const char *text = getenv(name);
  return text ? strtol(text, NULL, 10) : 0;
}

/* An srun without the right PMI plugin starts N runs of one rank, and says nothing.
 * Under mpirun the step counts daemons, so its size means nothing there.
 */
static void check_launch(int n_ranks, bool by_mpirun) {
  const long n_tasks = environment_number("SLURM_STEP_NUM_TASKS");
  if (by_mpirun || n_tasks <= 0 || n_tasks == n_ranks) return;
  SMOE_PANIC(SMOE_ERR_MPI,
             "this Slurm step has %ld tasks, but MPI sees %d rank%s: the tasks do not find each other; "
             "start them with `srun --mpi=pmix` (`srun --mpi=list` shows what there is) or with mpirun",
             n_tasks, n_ranks, n_ranks == 1 ? "" : "s");
}

void smoe_group_start(smoe_group *group, int *argc, char ***argv) {
  /* Asked before MPI_Init, which may set the variable itself. */
  const bool by_mpirun = environment_number("OMPI_COMM_WORLD_SIZE") > 0;
  int level = MPI_THREAD_SINGLE;
  *group = (smoe_group){0};
  smoe_panic_setup(end_run, 0, 1);
  smoe_mpi_prepare_environment();
  SMOE_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level));
  SMOE_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  SMOE_MPI(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN));
  SMOE_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &group->rank));
  SMOE_MPI(MPI_Comm_size(MPI_COMM_WORLD, &group->n_ranks));
  smoe_panic_setup(end_run, group->rank, group->n_ranks);
  smoe_log_setup(group->rank, false);
  check_launch(group->n_ranks, by_mpirun);
  if (level < MPI_THREAD_FUNNELED)
    SMOE_PANIC(SMOE_ERR_MPI,
               "this MPI has no threads (MPI_THREAD_FUNNELED): use one that was built with them");
  SMOE_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &group->comm));
  SMOE_MPI(MPI_Comm_set_errhandler(group->comm, MPI_ERRORS_RETURN));
}

void smoe_group_end(smoe_group *group) {
  SMOE_MPI(MPI_Comm_free(&group->comm));
  SMOE_MPI(MPI_Finalize());
}

/* A stop on request is no error: any error outranks it, though its exit code is larger. */
static int severity(smoe_status status) {
  if (status == SMOE_STOPPED) return 1;
  if (status == SMOE_STOPPED_BY_HAND) return 2;
  return 2 * (int)status;
}

static smoe_status of_severity(int severity) {
  if (severity == 1) return SMOE_STOPPED;
  if (severity == 2) return SMOE_STOPPED_BY_HAND;
  return (smoe_status)(severity / 2);
}

smoe_status smoe_group_agree(const smoe_group *group, smoe_status mine) {
  static const char mark[] = "on rank ";
  struct {
    int code, rank;
  } own = {severity(mine), group->rank}, worst;
  /* Of equal codes MAXLOC takes the lowest rank. */
  SMOE_MPI(MPI_Allreduce(&own, &worst, 1, MPI_2INT, MPI_MAXLOC, group->comm));
  if (worst.code == SMOE_OK) return SMOE_OK;

  char text[SMOE_REPORT_MAX] = "";
  if (group->rank == worst.rank) {
    const char *report = smoe_last_error();
    /* Phases nest: a report that was agreed on before names its rank already. */
    if (group->n_ranks > 1 && report[0] && strncmp(report, mark, sizeof mark - 1) != 0)
      snprintf(text, sizeof text, "%s%d of %d: %.*s", mark, worst.rank, group->n_ranks, SMOE_REPORT_MAX - 64,
               report);
    else
      snprintf(text, sizeof text, "%s", report);
  }
  SMOE_MPI(MPI_Bcast(text, SMOE_REPORT_MAX, MPI_CHAR, worst.rank, group->comm));
  smoe_report_set(text);
  return of_severity(worst.code);
}

smoe_status smoe_group_same(const smoe_group *group, int64_t value, const char *what) {
  /* ~v turns the order round without overflow, so one maximum finds both ends. */
  int64_t ends[2] = {value, ~value};
  SMOE_MPI(MPI_Allreduce(MPI_IN_PLACE, ends, 2, MPI_INT64_T, MPI_MAX, group->comm));
  const int64_t largest = ends[0], smallest = ~ends[1];
  SMOE_CHECK(smallest == largest, SMOE_ERR_BUG, "%s is not the same on all ranks: %lld to %lld", what,
             (long long)smallest, (long long)largest);
  return SMOE_OK;
}

void smoe_group_broadcast(const smoe_group *group, void *data, size_t bytes, int root) {
  const size_t piece = (size_t)1 << 30; /* counts are int */
  if (group->n_ranks == 1) return;
  for (size_t at = 0; at < bytes; at += piece) {
    const size_t n = bytes - at < piece ? bytes - at : piece;
    SMOE_MPI(MPI_Bcast((char *)data + at, (int)n, MPI_BYTE, root, group->comm));
  }
}

void smoe_group_sum_i64(const smoe_group *group, int64_t *values, int n) {
  SMOE_MPI(MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_INT64_T, MPI_SUM, group->comm));
}

void smoe_group_sum_u64(const smoe_group *group, uint64_t *values, int n) {
  SMOE_MPI(MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_UINT64_T, MPI_SUM, group->comm));
}

void smoe_group_max_f64(const smoe_group *group, double *values, int n) {
  SMOE_MPI(MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_DOUBLE, MPI_MAX, group->comm));
}

static void gather(const smoe_group *group, void *all, const void *mine, const int *count, MPI_Datatype type,
                   size_t type_bytes) {
  if (group->n_ranks == 1) {
    if (count[0]) memcpy(all, mine, (size_t)count[0] * type_bytes);
    return;
  }
  int *offset = smoe_alloc((size_t)group->n_ranks * sizeof *offset);
  int64_t total = 0;
  for (int r = 0; r < group->n_ranks; r++) {
    if (total > INT_MAX) SMOE_PANIC(SMOE_ERR_MPI, "a gather of more than %d values in one call", INT_MAX);
    offset[r] = (int)total;
    total += count[r];
  }
  SMOE_MPI(MPI_Allgatherv(mine, count[group->rank], type, all, count, offset, type, group->comm));
  smoe_free(offset);
}

void smoe_group_gather_f64(const smoe_group *group, double *all, const double *mine, const int *count) {
  gather(group, all, mine, count, MPI_DOUBLE, sizeof(double));
}

void smoe_group_gather_i32(const smoe_group *group, int32_t *all, const int32_t *mine, const int *count) {
  gather(group, all, mine, count, MPI_INT32_T, sizeof(int32_t));
}

void smoe_group_barrier(const smoe_group *group) {
  SMOE_MPI(MPI_Barrier(group->comm));
}

int smoe_group_ranks_here(const smoe_group *group) {
  MPI_Comm here;
  int n;
  SMOE_MPI(MPI_Comm_split_type(group->comm, MPI_COMM_TYPE_SHARED, group->rank, MPI_INFO_NULL, &here));
  SMOE_MPI(MPI_Comm_size(here, &n));
  SMOE_MPI(MPI_Comm_free(&here));
  return n;
}
