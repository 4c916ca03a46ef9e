#include "stablemoe/mpi_facts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "stablemoe/arena.h"
#include "stablemoe/timer.h"

const char *smoe_mpi_name(void) {
  static char name[MPI_MAX_LIBRARY_VERSION_STRING];
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "an unknown MPI";
  int length;
  MPI_Get_library_version(text, &length);
  /* Who built it and when fills lines; blanks come in rows. */
  text[strcspn(text, ",\n")] = '\0';
  size_t n = 0;
  for (const char *s = text; *s; s++) {
    const char c = *s == '\t' ? ' ' : *s;
    if (c != ' ' || (n && name[n - 1] != ' ')) name[n++] = c;
  }
  name[n] = '\0';
  return name;
}

int smoe_mpi_open_mpi(void) {
  int major = 0, minor = 0, release = 0;
  if (sscanf(smoe_mpi_name(), "Open MPI v%d.%d.%d", &major, &minor, &release) < 2) return 0;
  return major * 10000 + minor * 100 + release;
}

/* The value of a setting of Open MPI, whether it came from environment, file or launcher; "" where it has none. */
static void setting(const char *name, char *value, size_t n) {
  int level, index, count = 0;
  MPI_T_cvar_handle handle;
  value[0] = '\0';
  if (MPI_T_init_thread(MPI_THREAD_SINGLE, &level) != MPI_SUCCESS) return;
  if (MPI_T_cvar_get_index(name, &index) == MPI_SUCCESS &&
      MPI_T_cvar_handle_alloc(index, NULL, &handle, &count) == MPI_SUCCESS) {
    if (count < (int)n) MPI_T_cvar_read(handle, value);
    MPI_T_cvar_handle_free(&handle);
  }
  MPI_T_finalize();
}

/* Open MPI leaves Lustre to ROMIO, and all else to OMPIO. */
static bool is_lustre(const char *directory) {
  struct statfs system;
  return statfs(directory, &system) == 0 && system.f_type == 0x0BD00BD3;
}

smoe_io_layer smoe_mpi_io_layer(const char *directory) {
  char requested[4096];
  if (!smoe_mpi_open_mpi()) return SMOE_LAYER_UNKNOWN;
  setting("io", requested, sizeof requested);
  if (strncmp(requested, "romio", 5) == 0 || strcmp(requested, "^ompio") == 0) return SMOE_LAYER_ROMIO;
  if (strcmp(requested, "ompio") == 0) return SMOE_LAYER_OMPIO;
  return is_lustre(directory) ? SMOE_LAYER_ROMIO : SMOE_LAYER_OMPIO;
}

const char *smoe_mpi_memory_directory(void) {
  /* setting() would know of a file of parameters, too, but takes a tenth of a second. */
  const char *directory = getenv("OMPI_MCA_osc_sm_backing_directory");
  return directory && smoe_mpi_open_mpi() ? directory : "/dev/shm";
}

smoe_status smoe_mpi_check_path(const char *directory) {
  enum { LONGEST = 160 }; /* of 212 that were seen to work: names of files come behind it */
  char wanted[4096], *path = realpath(directory, NULL);
  const size_t length = strlen(path ? path : directory);
  free(path); /* memory of the C library */
  if (length <= LONGEST || smoe_mpi_io_layer(directory) != SMOE_LAYER_OMPIO) return SMOE_OK;
  setting("sharedfp", wanted, sizeof wanted);
  const bool named = strstr(wanted, "lockedfile") != NULL, without = wanted[0] == '^';
  SMOE_CHECK(
      wanted[0] && named == without, SMOE_ERR_MPI,
      "'%s': the path is too long for Open MPI's component sharedfp/lockedfile, which is selected (sharedfp "
      "is '%s'): export OMPI_MCA_sharedfp=^lockedfile, or choose a path of at most %d bytes",
      directory, wanted, LONGEST);
  return SMOE_OK;
}

void smoe_group_collect(const smoe_group *group, void *all, const void *mine, size_t bytes) {
  SMOE_MPI(MPI_Gather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, 0, group->comm));
}

/* What goes from one rank to another. */
static uint64_t word_of(int from, int to, size_t i) {
  return ((uint64_t)from << 40 | (uint64_t)to << 16) + i * UINT64_C(0x9e3779b97f4a7c15);
}

static smoe_status check(const uint64_t *in, const smoe_group *group, size_t n) {
  for (int r = 0; r < group->n_ranks; r++)
    for (size_t i = 0; i < n; i++)
      SMOE_CHECK(
          in[(size_t)r * n + i] == word_of(r, group->rank, i), SMOE_ERR_MPI,
          "an exchange of %zu bytes per pair of ranks brought rank %d something else than rank %d sent; "
          "MPI or the network is at fault: try another transport (OMPI_MCA_btl, OMPI_MCA_pml)",
          n * sizeof *in, group->rank, r);
  return SMOE_OK;
}

smoe_status smoe_group_try_exchange(const smoe_group *group, size_t bytes, double *seconds) {
  const size_t n = bytes / sizeof(uint64_t), ranks = (size_t)group->n_ranks;
  uint64_t *out = smoe_alloc(ranks * n * sizeof *out), *in = smoe_alloc(ranks * n * sizeof *in);
  int *count = smoe_alloc(ranks * sizeof *count), *offset = smoe_alloc(ranks * sizeof *offset);
  for (int r = 0; r < group->n_ranks; r++) {
    count[r] = (int)n;
    offset[r] = r * (int)n;
    for (size_t i = 0; i < n; i++) out[(size_t)r * n + i] = word_of(group->rank, r, i);
  }
  /* The first one sets connections up. */
  for (int i = 0; i < 2; i++) {
    const double begin = smoe_seconds();
    SMOE_MPI(MPI_Alltoallv(out, count, offset, MPI_UINT64_T, in, count, offset, MPI_UINT64_T, group->comm));
    *seconds = smoe_seconds() - begin;
  }
  smoe_group_max_f64(group, seconds, 1);
  const smoe_status status = smoe_group_agree(group, check(in, group, n));
  smoe_free(out);
  smoe_free(in);
  smoe_free(count);
  smoe_free(offset);
  return status;
}
