#include "stablemoe/watchdog.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/timer.h"

/* Written by the rank's own thread, read by its watchdog. */
static struct {
  _Atomic(const char *) call; /* NULL: not in a collective */
  _Atomic double since;
  atomic_llong update;
  long long calls; /* collectives entered so far */
} now;

/* What the ranks of a machine see of each other. */
typedef struct sign_of_life {
  atomic_llong calls;  /* collectives entered so far */
  _Atomic double beat; /* when its watchdog last ran: a stopped process falls behind */
} sign_of_life;

static struct {
  bool running;
  double seconds;
  bool end;
  int rank, n_ranks;
  int n_here;          /* ranks on this machine */
  int *rank_here;      /* [n_here] their ranks in the run */
  sign_of_life **here; /* [n_here] in shared memory */
  sign_of_life *mine;
  MPI_Win window;
  pthread_t thread;
  atomic_bool stop;
} dog;

void smoe_watch_enter(const char *call) {
  now.calls++;
  if (dog.running) atomic_store_explicit(&dog.mine->calls, now.calls, memory_order_relaxed);
  atomic_store_explicit(&now.since, smoe_seconds(), memory_order_relaxed);
  atomic_store_explicit(&now.call, call, memory_order_release);
}

void smoe_watch_leave(void) {
  atomic_store_explicit(&now.call, NULL, memory_order_release);
}

void smoe_watchdog_update(int64_t update) {
  atomic_store(&now.update, update);
}

static double step_seconds(void) {
  return dog.seconds < 4 ? dog.seconds / 4 : 1;
}

/* Whom this rank waits for, as far as this machine's memory tells. */
static void name_the_late(char *out, size_t bytes) {
  const long long mine = atomic_load(&dog.mine->calls);
  const double now_s = smoe_seconds();
  size_t at = 0;
  int late = 0;
  out[0] = '\0';
  for (int i = 0; i < dog.n_here && at < bytes; i++) {
    /* A rank that stopped within the collective has arrived, and yet is what all wait for. */
    const bool stopped = now_s - atomic_load(&dog.here[i]->beat) > 3 * step_seconds();
    if (!stopped && atomic_load(&dog.here[i]->calls) >= mine) continue;
    at += (size_t)snprintf(out + at, bytes - at, "%s%d%s", late++ ? ", " : "; it waits for rank ",
                           dog.rank_here[i], stopped ? " (not running)" : "");
  }
  if (late == 0)
    snprintf(out, bytes, "%s",
             dog.n_here < dog.n_ranks
                 ? "; all ranks of this machine have arrived, so it waits for another machine"
                 : "; all ranks have arrived, so the network or MPI itself is slow");
}

static void report(const char *call, double waited) {
  char late[512];
  name_the_late(late, sizeof late);
  smoe_log_error("watchdog on rank %d of %d: %.0f s in %.*s at update %lld%s", dog.rank, dog.n_ranks, waited,
                 (int)strcspn(call, "("), call, (long long)atomic_load(&now.update), late);
  if (!dog.end) return;
  smoe_log_error("error (mpi) on rank %d of %d: ended by the watchdog (comm.watchdog_end)", dog.rank,
                 dog.n_ranks);
  /* The main thread sits in MPI, so no MPI call may be made here; leaving without
   * MPI_Finalize makes the launcher end the other ranks. */
  _exit(SMOE_ERR_MPI);
}

static void *watch(void *unused) {
  double reported = -1; /* beginning of the wait that was reported last */
  double awake = smoe_seconds();
  while (!atomic_load(&dog.stop)) {
    const double beat = smoe_seconds();
    atomic_store(&dog.mine->beat, beat);
    usleep((useconds_t)(1e6 * step_seconds()));
    /* If this process was stopped, the others waited for it, not it for them: its wait begins when it continues. */
    if (smoe_seconds() - beat > 3 * step_seconds()) awake = smoe_seconds();
    const char *call = atomic_load_explicit(&now.call, memory_order_acquire);
    const double since = atomic_load(&now.since), waited = smoe_seconds() - since;
    if (!call || waited < dog.seconds || smoe_seconds() - awake < dog.seconds || since == reported) continue;
    reported = since;
    report(call, waited);
  }
  return unused;
}

static void share_progress(const smoe_group *group) {
  MPI_Comm here;
  int rank_here;
  SMOE_MPI(MPI_Comm_split_type(group->comm, MPI_COMM_TYPE_SHARED, group->rank, MPI_INFO_NULL, &here));
  SMOE_MPI(MPI_Comm_size(here, &dog.n_here));
  SMOE_MPI(MPI_Comm_rank(here, &rank_here));
  dog.rank_here = smoe_alloc((size_t)dog.n_here * sizeof *dog.rank_here);
  dog.here = smoe_alloc((size_t)dog.n_here * sizeof *dog.here);
  SMOE_MPI(MPI_Allgather(&group->rank, 1, MPI_INT, dog.rank_here, 1, MPI_INT, here));
  SMOE_MPI(MPI_Win_allocate_shared(sizeof *dog.mine, sizeof *dog.mine, MPI_INFO_NULL, here, &dog.mine,
                                   &dog.window));
  for (int i = 0; i < dog.n_here; i++) {
    MPI_Aint bytes;
    int unit;
    SMOE_MPI(MPI_Win_shared_query(dog.window, i, &bytes, &unit, &dog.here[i]));
  }
  SMOE_MPI(MPI_Comm_free(&here));
}

void smoe_watchdog_start(const smoe_group *group, double seconds, bool end) {
  if (seconds <= 0 || group->n_ranks == 1 || dog.running) return;
  dog.seconds = seconds;
  dog.end = end;
  dog.rank = group->rank;
  dog.n_ranks = group->n_ranks;
  share_progress(group);
  now.calls = 0;
  atomic_store(&dog.mine->calls, 0);
  atomic_store(&dog.mine->beat, smoe_seconds());
  atomic_store(&dog.stop, false);
  SMOE_MPI(MPI_Barrier(group->comm));
  dog.running = true;
  if (pthread_create(&dog.thread, NULL, watch, NULL) != 0)
    SMOE_PANIC(SMOE_ERR_MEMORY, "cannot start the watchdog's thread");
}

void smoe_watchdog_stop(void) {
  if (!dog.running) return;
  atomic_store(&dog.stop, true);
  pthread_join(dog.thread, NULL);
  dog.running = false;
  SMOE_MPI(MPI_Win_free(&dog.window));
  smoe_free(dog.rank_here);
  smoe_free(dog.here);
}
