#include "stablemoe/window.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/directory.h"
#include "stablemoe/mpi_facts.h"

enum { ALIGNMENT = 64 };

static const double MIB = 1 << 20;

/* MPI wants some room beside what is asked for: Open MPI a twentieth. */
static const double MARGIN = 1.1;

static smoe_status check_room(const smoe_group *here, size_t bytes) {
  const char *directory = smoe_mpi_memory_directory();
  const double room = here->rank == 0 ? smoe_directory_room(directory) : -1;
  SMOE_CHECK(!smoe_fault("window.create"), SMOE_ERR_MEMORY, "injected fault at window.create");
  SMOE_CHECK(room < 0 || MARGIN * (double)bytes <= room, SMOE_ERR_MEMORY,
             "the ranks of a node would share %.1f MiB, and '%s' has room for %.1f: enlarge it (mount -o "
             "remount,size=..., docker run --shm-size=...)",
             (double)bytes / MIB, directory, room / MIB);
  return SMOE_OK;
}

smoe_status smoe_window_check_room(const smoe_group *world, const smoe_group *here, size_t bytes) {
  return smoe_group_agree(world, check_room(here, bytes));
}

/* Let the kernel give the pages from first to end. Where the file system turns out to be full, a write would end in
 * SIGBUS; madvise returns instead. Kernels before 5.14 do not know this advice. */
static smoe_status touch(char *first, char *end) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  char *from = first - (uintptr_t)first % page;
  SMOE_CHECK(!smoe_fault("window.touch"), SMOE_ERR_MEMORY, "injected fault at window.touch");
  if (first == end) return SMOE_OK;
#ifdef MADV_POPULATE_WRITE
  SMOE_CHECK(madvise(from, (size_t)(end - from), MADV_POPULATE_WRITE) == 0 || errno == EINVAL,
             SMOE_ERR_MEMORY, "memory for the ranks of a node to share cannot be had in '%s': %s",
             smoe_mpi_memory_directory(), strerror(errno == EFAULT ? ENOSPC : errno));
#endif
  memset(first, 0, (size_t)(end - first));
  return SMOE_OK;
}

/* This rank's share of every part. */
static smoe_status touch_parts(const smoe_window *window, const smoe_window_part *part, int n_parts) {
  const size_t rank = (size_t)window->here.rank, n = (size_t)window->here.n_ranks;
  char *at = window->base;
  for (int i = 0; i < n_parts; i++) {
    char *end = at + part[i].bytes;
    const size_t share = part[i].bytes / n;
    if (part[i].rank == window->here.rank)
      SMOE_TRY(touch(at, end));
    else if (part[i].rank < 0)
      SMOE_TRY(touch(at + share * rank, rank + 1 < n ? at + share * (rank + 1) : end));
    at = end;
  }
  return SMOE_OK;
}

static void allocate(smoe_window *window) {
  const smoe_group *here = &window->here;
  MPI_Aint size = here->rank == 0 ? (MPI_Aint)(window->bytes + ALIGNMENT) : 0;
  int unit;
  char *base;
  /* One piece, of the first rank: parts of several need not be next to each other. */
  SMOE_MPI(MPI_Win_allocate_shared(size, 1, MPI_INFO_NULL, here->comm, &base, &window->win));
  SMOE_MPI(MPI_Win_shared_query(window->win, 0, &size, &unit, &base));
  SMOE_MPI(MPI_Win_lock_all(MPI_MODE_NOCHECK, window->win));
  /* Pages may be mapped at other addresses, but no part of a page is. */
  window->base = base + (ALIGNMENT - (uintptr_t)base % ALIGNMENT) % ALIGNMENT;
}

smoe_status smoe_window_create(smoe_window *window, const smoe_group *world, const smoe_group *here,
                               const smoe_window_part *part, int n_parts) {
  *window = (smoe_window){.here = *here};
  for (int i = 0; i < n_parts; i++) window->bytes += part[i].bytes;
  SMOE_TRY(smoe_window_check_room(world, here, window->bytes));
  allocate(window);
  const smoe_status status = smoe_group_agree(world, touch_parts(window, part, n_parts));
  if (status == SMOE_OK)
    smoe_window_fence(window);
  else
    smoe_window_release(window);
  return status;
}

void smoe_window_fence(const smoe_window *window) {
  SMOE_MPI(MPI_Win_sync(window->win));
  SMOE_MPI(MPI_Barrier(window->here.comm));
  SMOE_MPI(MPI_Win_sync(window->win));
}

void smoe_window_release(smoe_window *window) {
  if (!window->base) return;
  SMOE_MPI(MPI_Win_unlock_all(window->win));
  SMOE_MPI(MPI_Win_free(&window->win));
  *window = (smoe_window){0};
}

static unsigned char byte_of(int rank, size_t i) {
  return (unsigned char)(rank * 31 + (int)(i * 7 % 251) + 1);
}

static smoe_status check(const smoe_window *window, size_t part) {
  for (int r = 0; r < window->here.n_ranks; r++)
    for (size_t i = 0; i < part; i++)
      SMOE_CHECK(
          (unsigned char)window->base[(size_t)r * part + i] == byte_of(r, i), SMOE_ERR_MPI,
          "in memory that the ranks of a node share a rank does not see what another one wrote: MPI is at "
          "fault; comm.share: rank does without");
  return SMOE_OK;
}

smoe_status smoe_window_try(const smoe_group *world, const smoe_group *here, size_t bytes) {
  smoe_window window;
  const size_t part = bytes / (size_t)here->n_ranks;
  const smoe_window_part all = {bytes, -1};
  SMOE_TRY(smoe_window_create(&window, world, here, &all, 1));
  for (size_t i = 0; i < part; i++) window.base[(size_t)here->rank * part + i] = (char)byte_of(here->rank, i);
  smoe_window_fence(&window);
  const smoe_status status = smoe_group_agree(world, check(&window, part));
  smoe_window_release(&window);
  return status;
}
