/* Whether this machine, this launch and this directory are fit for a run: one line per finding. */
#include "doctor.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "app.h"
#include "stablemoe/arena.h"
#include "stablemoe/directory.h"
#include "stablemoe/io_probe.h"
#include "stablemoe/mpi_facts.h"
#include "stablemoe/topology.h"
#include "stablemoe/window.h"

/* Bytes per rank, or pair of ranks, of the attempts: enough to be no header, too little to wait for. */
enum { TRY_BYTES = 1 << 16 };

static const double MIB = 1 << 20, GIB = 1 << 30;

/* ---- findings; rank 0 alone prints and counts ---- */

static void finding(smoe_doctor *d, const char *level, const char *format, va_list args) {
  if (!d->rank) return;
  printf("%-9s", level);
  vprintf(format, args);
  putchar('\n');
}

void smoe_doctor_ok(smoe_doctor *d, const char *format, ...) {
  va_list args;
  va_start(args, format);
  finding(d, "ok", format, args);
  va_end(args);
}

void smoe_doctor_warning(smoe_doctor *d, const char *format, ...) {
  va_list args;
  va_start(args, format);
  finding(d, "warning", format, args);
  va_end(args);
  d->n_warnings++;
}

void smoe_doctor_error(smoe_doctor *d, smoe_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  finding(d, "wrong", format, args);
  va_end(args);
  d->n_wrong++;
  if (d->worst == SMOE_OK) d->worst = status;
}

/* A report without the place in the source that ends it. */
static const char *report_text(void) {
  static char text[SMOE_REPORT_MAX];
  snprintf(text, sizeof text, "%s", smoe_last_error());
  char *where = strrchr(text, '[');
  if (where && where > text) where[-1] = '\0';
  return text;
}

/* Known faults of what opens files; the program writes around them (src/io/part_file.h). */
static void check_layer(smoe_doctor *d, smoe_io_layer layer) {
  static const char *const NAMES[] = {"the MPI-IO", "OMPIO", "ROMIO"};
  const int version = smoe_mpi_open_mpi();
  const bool races = version > 0 && (version < 40107 || (version >= 50000 && version < 50006));
  const char *lock = getenv("OMPI_MCA_fs_ufs_lock_algorithm"),
             *sieve = getenv("OMPI_MCA_fbtl_posix_write_datasieving");
  const bool cured = (lock && strcmp(lock, "3") == 0) || (sieve && strcmp(sieve, "0") == 0);
  if (layer == SMOE_LAYER_OMPIO && races && !cured)
    smoe_doctor_warning(
        d,
        "files are opened by OMPIO of %s, where small collective writes can be corrupted (mended in 4.1.7 "
        "and "
        "5.0.6). stablemoe does not use them and reads back what it writes; for other programs, and to be "
        "sure, export OMPI_MCA_fbtl_posix_write_datasieving=0 or OMPI_MCA_io=romio321",
        smoe_mpi_name());
  else
    smoe_doctor_ok(d, "files are opened by %s of %s", NAMES[layer], smoe_mpi_name());
}

/* ---- what is tried ---- */

static void check_exchange(smoe_doctor *d) {
  double seconds;
  const smoe_status status = smoe_group_try_exchange(d->group, TRY_BYTES, &seconds);
  const double bytes = (double)TRY_BYTES * d->group->n_ranks;
  if (status != SMOE_OK)
    smoe_doctor_error(d, status, "exchange: %s", report_text());
  else
    smoe_doctor_ok(d, "exchange: %d KiB between every two ranks arrived, %.1f MB/s from each rank",
                   TRY_BYTES / 1024, bytes / 1e6 / seconds);
}

/* A warning at most: without shared memory every rank has its own copy of the parameters. */
static void check_shared(smoe_doctor *d) {
  const char *directory = smoe_mpi_memory_directory();
  smoe_topology topology = smoe_topology_whole(d->group);
  smoe_topology_find_machines(&topology, 0);
  const int n_nodes = topology.machines.n_nodes;
  if (n_nodes < d->group->n_ranks) {
    const smoe_status status =
        smoe_window_try(d->group, &topology.here, (size_t)TRY_BYTES * (size_t)topology.here.n_ranks);
    if (status != SMOE_OK)
      smoe_doctor_warning(d, "shared memory: %s; every rank will have a copy of the shared parameters",
                          report_text());
    else
      smoe_doctor_ok(d,
                     "shared memory: ranks of a machine see what the others write, and have the shared "
                     "parameters once; '%s' has room for %.0f MiB here",
                     directory, smoe_directory_room(directory) / MIB);
  }
  smoe_topology_release(&topology);
}

static bool check_directory(smoe_doctor *d, const char *directory) {
  struct stat there;
  smoe_status mine = SMOE_OK;
  if (stat(directory, &there) != 0)
    mine =
        SMOE_FAIL(SMOE_ERR_IO, "'%s' cannot be reached: %s; make it, on a file system that all nodes share",
                  directory, strerror(errno));
  else if (!S_ISDIR(there.st_mode))
    mine = SMOE_FAIL(SMOE_ERR_IO, "'%s' is not a directory: give the one that is to hold runs", directory);
  const smoe_status status = smoe_group_agree(d->group, mine);
  if (status != SMOE_OK) smoe_doctor_error(d, status, "directory: %s", report_text());
  return status == SMOE_OK;
}

static void check_files(smoe_doctor *d, const char *directory) {
  if (!check_directory(d, directory)) return;
  const double room = smoe_directory_room(directory);
  if (room >= 0 && room < GIB)
    smoe_doctor_warning(
        d, "disk: %.0f MiB free in '%s': checkpoints take three times the parameters each (train.keep_last)",
        room / MIB, directory);
  else if (room >= GIB)
    smoe_doctor_ok(d, "disk: %.1f GiB free in '%s'", room / GIB, directory);
  double seconds;
  const smoe_status status = smoe_io_probe(d->group, directory, TRY_BYTES, &seconds);
  if (status != SMOE_OK) {
    smoe_doctor_error(d, status, "writing: %s", report_text());
    return;
  }
  smoe_doctor_ok(d, "HDF5 %s", smoe_hdf5_name());
  smoe_doctor_ok(d, "writing: all ranks wrote a file in '%s' together and read the same back, in %.2f s",
                 directory, seconds);
  check_layer(d, smoe_mpi_io_layer(directory));
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const char *directory = arguments->n ? arguments->word[0] : ".";
  const smoe_rank_facts own = smoe_doctor_facts();
  const bool first = group->rank == 0;
  smoe_doctor d = {.group = group, .rank = first ? smoe_alloc((size_t)group->n_ranks * sizeof own) : NULL};
  smoe_group_collect(group, d.rank, &own, sizeof own);
  if (first) {
    smoe_app_version(stdout);
    putchar('\n');
    smoe_doctor_ranks(&d, smoe_app_launched());
  }
  check_exchange(&d);
  check_shared(&d);
  check_files(&d, directory);
  if (first) printf("\n%d warning%s, %d wrong\n", d.n_warnings, d.n_warnings == 1 ? "" : "s", d.n_wrong);
  fflush(stdout);
  smoe_free(d.rank);
  smoe_status mine = SMOE_OK;
  if (d.n_wrong)
    mine = SMOE_FAIL(d.worst, "%d thing%s wrong here: see the lines that begin with `wrong`", d.n_wrong,
                     d.n_wrong == 1 ? " is" : "s are");
  return smoe_group_agree(group, mine);
}

const smoe_command smoe_command_doctor = {
    .name = "doctor",
    .arguments = "[DIRECTORY]",
    .title = "whether machine, launch and directory are fit for a run",
    .text =
        "Look at the versions, the launch, the placement of ranks and threads, memory, disk and BLAS, and "
        "try "
        "an exchange between all ranks and a file that all ranks write in DIRECTORY (default: the present "
        "one). Each finding is a line that begins with ok, warning or wrong, and says what to do. Nothing "
        "is left behind. Start it as the run is to be started: alone, under mpirun, or under srun.",
    .after = "The exit code is 0 where nothing is wrong, also with warnings.",
    .example = "srun --mpi=pmix stablemoe doctor /scratch/me",
    .usage = "at most one DIRECTORY",
    .min_args = 0,
    .max_args = 1,
    .argument = SMOE_ARGUMENT_DIRECTORY,
    .run = run,
};
