/* What MPI and HDF5 read from the environment when they start. What is set already stays as it is. */
#include <stdlib.h>
#include <unistd.h>

#include "stablemoe/mpi_facts.h"

static void set_default(const char *name, const char *value) {
  setenv(name, value, 0);
}

static bool is_set(const char *name) {
  const char *value = getenv(name);
  return value && value[0];
}

/* More ranks than cores have to give way to each other while they wait. mpirun sees to it, other launchers do not.
 * Slurm says "4(x2),3": where nodes differ, the first one's number stands for all. */
static void let_ranks_yield(void) {
  const char *ranks = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  if (!ranks) ranks = getenv("SLURM_STEP_TASKS_PER_NODE");
  const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  if (ranks && cores > 0 && strtol(ranks, NULL, 10) > cores) set_default("OMPI_MCA_mpi_yield_when_idle", "1");
}

void smoe_mpi_prepare_environment(void) {
  /* Files are written once, under names of their own, and many shared file systems have no locks. HDF5 before
   * 1.10.7 can be told by the environment alone. */
  set_default("HDF5_USE_FILE_LOCKING", "FALSE");
  const int version = smoe_mpi_open_mpi();
  if (version == 0) return;
  /* It has 256 bytes for the name of a file: longer ones end in "buffer overflow detected" (open-mpi/ompi issue
   * 13565). Shared file pointers are not used. */
  set_default("OMPI_MCA_sharedfp", "^lockedfile");
  /* Small collective writes of several ranks can come out wrong (open-mpi/ompi issue 12718). Without data sieving they
   * do not; fs_ufs_lock_algorithm=3 is as good, but needs locks. */
  if ((version < 40107 || (version >= 50000 && version < 50006)) &&
      !is_set("OMPI_MCA_fs_ufs_lock_algorithm") && !is_set("OMPI_MCA_io"))
    set_default("OMPI_MCA_fbtl_posix_write_datasieving", "0");
  let_ranks_yield();
}
