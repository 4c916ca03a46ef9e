/* What `stablemoe doctor` sees in the facts of all ranks. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"
#include "doctor.h"
#include "stablemoe/directory.h"
#include "stablemoe/kernel.h"
#include "stablemoe/mpi_facts.h"
#include "stablemoe/products.h"
#include "stablemoe/timer.h"

static const double MIB = 1 << 20, GIB = 1 << 30;

smoe_rank_facts smoe_doctor_facts(void) {
  smoe_rank_facts own = {.threads = smoe_app_threads(0), .memory = smoe_memory_free(), .pid = getpid()};
  own.free_shared = smoe_directory_room("/dev/shm");
  gethostname(own.host, sizeof own.host - 1);
  snprintf(own.core_type, sizeof own.core_type, "%s", smoe_blas_name());
  smoe_products_rate rate;
  smoe_products_measure(&rate);
  own.gemm = rate.gemm;
  own.peak = rate.peak;
  own.hidden = smoe_products_avx512_hidden();
  if (sched_getaffinity(0, sizeof own.cpus, &own.cpus) != 0) CPU_ZERO(&own.cpus);
  return own;
}

static bool same_host(const smoe_doctor *d, int a, int b) {
  return strcmp(d->rank[a].host, d->rank[b].host) == 0;
}

/* The first rank of each machine stands for it. */
static bool is_first(const smoe_doctor *d, int rank) {
  for (int r = 0; r < rank; r++)
    if (same_host(d, r, rank)) return false;
  return true;
}

static int ranks_beside(const smoe_doctor *d, int rank) {
  int n = 0;
  for (int r = 0; r < d->group->n_ranks; r++) n += same_host(d, r, rank);
  return n;
}

static void check_launch(smoe_doctor *d, long launched) {
  const int n = d->group->n_ranks;
  const char *text = getenv("SLURM_NTASKS");
  const long tasks = text ? strtol(text, NULL, 10) : 0;
  if (launched > 0 && launched != n)
    smoe_doctor_error(
        d, SMOE_ERR_MPI,
        "the launcher started %ld processes, but MPI sees %d rank%s: mpirun is of another MPI than the "
        "program (%s); "
        "use the mpirun that belongs to it",
        launched, n, n == 1 ? "" : "s", smoe_mpi_name());
  else if (launched == 0)
    smoe_doctor_ok(d, "1 rank, without a launcher; `mpirun -n RANKS stablemoe doctor` looks at several");
  else
    smoe_doctor_ok(d, "%d rank%s: MPI joins what the launcher started", n, n == 1 ? "" : "s");
  if (tasks > 0 && tasks != n)
    smoe_doctor_warning(
        d,
        "the Slurm job has %ld tasks, this run has %d: start it with `srun --mpi=pmix`, or mpirun without -n",
        tasks, n);
}

static void check_placement(smoe_doctor *d) {
  const int n = d->group->n_ranks;
  char text[512] = "";
  int machines = 0, least = n, most = 0;
  for (int r = 0; r < n; r++) {
    if (!is_first(d, r)) continue;
    const int here = ranks_beside(d, r);
    const size_t used = strlen(text);
    if (machines++ < 8)
      snprintf(text + used, sizeof text - used, "%s%d on %s", used ? ", " : "", here, d->rank[r].host);
    if (here < least) least = here;
    if (here > most) most = here;
  }
  smoe_doctor_ok(d, "placement: %s%s", text, machines > 8 ? ", ..." : "");
  if (least != most)
    smoe_doctor_warning(
        d,
        "%d to %d ranks per machine: all wait for the busiest; spread them evenly (mpirun --map-by "
        "ppr:%d:node, "
        "srun --ntasks-per-node)",
        least, most, (n + machines - 1) / machines);
}

/* Ranks of one machine that may run on some of the same cores, but not on all of the same. */
static bool overlap(const smoe_doctor *d, int a, int b) {
  cpu_set_t both;
  CPU_AND(&both, &d->rank[a].cpus, &d->rank[b].cpus);
  return same_host(d, a, b) && CPU_COUNT(&both) > 0 &&
         CPU_COUNT(&d->rank[a].cpus) < (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static void check_binding(smoe_doctor *d) {
  for (int r = 0; r < d->group->n_ranks; r++) {
    const int cpus = CPU_COUNT(&d->rank[r].cpus), threads = d->rank[r].threads;
    if (cpus > 0 && threads > cpus) {
      smoe_doctor_warning(
          d,
          "rank %d has %d threads and may use %d core%s: mpirun --map-by slot:PE=%d or --bind-to none, srun "
          "--cpus-per-task=%d, or a smaller OMP_NUM_THREADS",
          r, threads, cpus, cpus == 1 ? "" : "s", threads, threads);
      return;
    }
  }
  for (int a = 0; a < d->group->n_ranks; a++)
    for (int b = a + 1; b < d->group->n_ranks; b++)
      if (overlap(d, a, b)) {
        smoe_doctor_warning(
            d,
            "ranks %d and %d are bound to the same cores of %s, which slows both: mpirun --bind-to core, or "
            "--bind-to none where several launchers share a machine",
            a, b, d->rank[a].host);
        return;
      }
  smoe_doctor_ok(d, "binding: no rank has more threads than cores, or is tied to another one's");
}

/* Name of a process; "" where it has ended. */
static void name_of(pid_t pid, char name[64]) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
  name[0] = '\0';
  FILE *file = fopen(path, "r");
  if (!file) return;
  if (!fgets(name, 64, file)) name[0] = '\0';
  fclose(file);
}

static bool is_own(const smoe_doctor *d, pid_t pid) {
  for (int r = 0; r < d->group->n_ranks; r++)
    if (same_host(d, r, 0) && d->rank[r].pid == pid) return true;
  return false;
}

/* Another stablemoe of this machine that may run on no more than these cores; 0: there is none. */
static pid_t other_on(const smoe_doctor *d, const cpu_set_t *cpus) {
  char own[64], name[64];
  name_of(getpid(), own);
  pid_t found = 0;
  DIR *directory = opendir("/proc");
  if (!directory) return 0;
  for (const struct dirent *entry; !found && (entry = readdir(directory));) {
    const pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
    if (pid <= 0 || is_own(d, pid)) continue;
    name_of(pid, name);
    cpu_set_t its, both;
    if (strcmp(name, own) != 0 || sched_getaffinity(pid, sizeof its, &its) != 0) continue;
    CPU_AND(&both, &its, cpus);
    if (CPU_EQUAL(&both, &its)) found = pid;
  }
  closedir(directory);
  return found;
}

/* Two mpirun on one machine bind their ranks to the same first cores. Of the machine of rank 0 only. */
static void check_others(smoe_doctor *d) {
  for (int r = 0; r < d->group->n_ranks; r++) {
    const cpu_set_t *cpus = &d->rank[r].cpus;
    if (!same_host(d, r, 0) || CPU_COUNT(cpus) >= (int)sysconf(_SC_NPROCESSORS_ONLN)) continue;
    const pid_t other = other_on(d, cpus);
    if (other == 0) continue;
    smoe_doctor_warning(
        d,
        "rank %d is bound to the same cores as another stablemoe (process %d), which slows both: "
        "mpirun --bind-to none, or source jobs/environment.sh before either",
        r, (int)other);
    return;
  }
}

/* Slurm's own fence lost one launch in five over four nodes (jobs/environment.sh). */
static void check_fence(smoe_doctor *d) {
  const char *fence = getenv("SLURM_PMIX_FENCE");
  int machines = 0;
  for (int r = 0; r < d->group->n_ranks; r++) machines += is_first(d, r);
  if (machines > 1 && getenv("SLURM_STEP_ID") && getenv("PMIX_RANK") && !getenv("OMPI_COMMAND") &&
      !(fence && strcmp(fence, "ring") == 0))
    smoe_doctor_warning(d,
                        "srun starts ranks on %d nodes with Slurm's default PMIx fence, with which launches "
                        "were seen to crash or "
                        "hang: export SLURM_PMIX_FENCE=ring (jobs/environment.sh does)",
                        machines);
}

static void check_cores(smoe_doctor *d) {
  const char *yields = getenv("OMPI_MCA_mpi_yield_when_idle");
  for (int r = 0; r < d->group->n_ranks; r++) {
    if (!is_first(d, r)) continue;
    cpu_set_t all = d->rank[r].cpus;
    int threads = 0;
    for (int other = r; other < d->group->n_ranks; other++) {
      if (!same_host(d, r, other)) continue;
      CPU_OR(&all, &all, &d->rank[other].cpus);
      threads += d->rank[other].threads;
    }
    const int cores = CPU_COUNT(&all);
    if (cores == 0 || threads <= cores)
      smoe_doctor_ok(d, "cores: %d thread%s of all ranks on %d core%s of %s", threads,
                     threads == 1 ? "" : "s", cores, cores == 1 ? "" : "s", d->rank[r].host);
    else if (yields && strcmp(yields, "1") == 0)
      smoe_doctor_ok(
          d, "cores: %d threads on %d of %s; waiting ranks give way, so this works, at less than full speed",
          threads, cores, d->rank[r].host);
    else
      smoe_doctor_warning(
          d,
          "%d threads on %d core%s of %s: waiting ranks take time from working ones; start fewer ranks or "
          "threads, or export OMPI_MCA_mpi_yield_when_idle=1",
          threads, cores, cores == 1 ? "" : "s", d->rank[r].host);
  }
}

static void check_memory(smoe_doctor *d) {
  for (int r = 0; r < d->group->n_ranks; r++) {
    if (!is_first(d, r)) continue;
    const smoe_rank_facts *own = &d->rank[r];
    const double bytes = own->memory.bytes, each = bytes / ranks_beside(d, r);
    if (bytes > 0 && each < 0.5 * GIB)
      smoe_doctor_warning(d,
                          "memory: %.2f GiB for each rank of %s, as %s allows: check the plan with "
                          "`stablemoe train --dry-run`",
                          each / GIB, own->host, own->memory.limit);
    else if (bytes > 0)
      smoe_doctor_ok(d, "memory: %.1f GiB on %s, %.1f for each rank, as %s allows", bytes / GIB, own->host,
                     each / GIB, own->memory.limit);
    if (ranks_beside(d, r) > 1 && own->free_shared >= 0 && own->free_shared < 64 * MIB)
      smoe_doctor_warning(
          d,
          "/dev/shm of %s has %.0f MiB free, and ranks of one machine exchange through it: enlarge it "
          "(docker run "
          "--shm-size=1g)",
          own->host, own->free_shared / MIB);
  }
}

static void check_blas(smoe_doctor *d) {
  int threads = 1;
  for (int r = 0; r < d->group->n_ranks; r++) {
    if (d->rank[r].threads > threads) threads = d->rank[r].threads;
    if (strcmp(d->rank[r].core_type, d->rank[0].core_type) == 0) continue;
    smoe_doctor_warning(
        d,
        "BLAS uses core type %s on %s and %s on %s: the same bits are promised on one type only; export "
        "%s everywhere",
        d->rank[0].core_type, d->rank[0].host, d->rank[r].core_type, d->rank[r].host, smoe_blas_pin());
    return;
  }
  const smoe_blas_pool pool = smoe_blas_threading();
  if (pool == SMOE_BLAS_PTHREADS && threads > 1)
    smoe_doctor_warning(
        d, "this OpenBLAS has threads of its own, which fight with those of OpenMP: use the OpenMP build "
           "(libopenblas-openmp-dev), or OMP_NUM_THREADS=1 and more ranks");
  else if (pool == SMOE_BLAS_SEQUENTIAL && threads > 1)
    smoe_doctor_warning(d, "this OpenBLAS has no threads: use more ranks with OMP_NUM_THREADS=1");
  else
    smoe_doctor_ok(d, "BLAS: core type %s on all ranks, %d thread%s", d->rank[0].core_type, threads,
                   threads == 1 ? "" : "s");
}

static void check_speed(smoe_doctor *d) {
  int least = 0;
  for (int r = 1; r < d->group->n_ranks; r++)
    if (d->rank[r].gemm / d->rank[r].peak < d->rank[least].gemm / d->rank[least].peak) least = r;
  const smoe_rank_facts *own = &d->rank[least];
  const smoe_products_rate rate = {.gemm = own->gemm, .peak = own->peak};
  if (smoe_products_slow(&rate))
    smoe_doctor_warning(
        d, "GEMM makes %.1f GFLOP/s on a core of %s, %.2f of the peak of %.1f measured there: %s",
        1e-9 * own->gemm, own->host, own->gemm / own->peak, 1e-9 * own->peak, smoe_products_advice());
  else
    smoe_doctor_ok(d, "GEMM: %.1f GFLOP/s on a core, %.2f of its peak of %.1f", 1e-9 * own->gemm,
                   own->gemm / own->peak, 1e-9 * own->peak);
  for (int r = 0; r < d->group->n_ranks; r++)
    if (d->rank[r].hidden) {
      smoe_doctor_warning(
          d,
          "the CPU of %s is of a type that has AVX-512, and does not show it: a hypervisor or the "
          "firmware hides it, which halves the speed; ask for a machine type or CPU mode that passes "
          "it on (host-passthrough)",
          d->rank[r].host);
      return;
    }
}

void smoe_doctor_ranks(smoe_doctor *d, long launched) {
  check_launch(d, launched);
  check_placement(d);
  check_binding(d);
  check_others(d);
  check_fence(d);
  check_cores(d);
  check_memory(d);
  check_blas(d);
  check_speed(d);
}
