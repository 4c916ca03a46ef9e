#include "stablemoe/io_probe.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "part_file.h"
#include "stablemoe/arena.h"
#include "stablemoe/mpi_facts.h"
#include "stablemoe/timer.h"

static const char DATASET[] = "probe";

const char *smoe_hdf5_name(void) {
  static char name[64];
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
#ifdef H5_HAVE_PARALLEL
  snprintf(name, sizeof name, "%u.%u.%u, parallel", major, minor, release);
#else
  snprintf(name, sizeof name, "%u.%u.%u, not parallel", major, minor, release);
#endif
  return name;
}

static smoe_status make(const smoe_part_file *part, const void *context) {
  const int64_t shape[1] = {*(const int64_t *)context * part->group->n_ranks};
  return smoe_h5_dataset(part->file, DATASET, H5T_STD_U64LE, 1, shape);
}

static smoe_status write_and_compare(smoe_part_file *part, const uint64_t *word, int64_t n) {
  const int64_t first = n * part->group->rank;
  SMOE_TRY(smoe_part_close(part, smoe_part_put_range(part, DATASET, H5T_NATIVE_UINT64, word, first, n)));
  return smoe_part_publish(part, smoe_part_put_range(part, DATASET, H5T_NATIVE_UINT64, word, first, n));
}

smoe_status smoe_io_probe(const smoe_group *group, const char *directory, size_t bytes, double *seconds) {
  SMOE_TRY_ALL(group, smoe_mpi_check_path(directory));
  const double begin = smoe_seconds();
  const int64_t n = (int64_t)(bytes / sizeof(uint64_t));
  uint64_t *word = smoe_alloc((size_t)n * sizeof *word);
  for (int64_t i = 0; i < n; i++) word[i] = (uint64_t)(n * group->rank + i) * UINT64_C(0x9e3779b97f4a7c15);
  /* A directory of its own: making a file sweeps what killed runs left beside it. */
  char *own = smoe_sprintf("%s/stablemoe-probe", directory);
  smoe_part_file part;
  smoe_status status =
      smoe_part_create(&part, group, "probe", own, 0, (int64_t)bytes * group->n_ranks + 4096, make, &n);
  if (status == SMOE_OK) status = write_and_compare(&part, word, n);
  smoe_group_barrier(group);
  if (group->rank == 0) {
    unlink(part.path);
    rmdir(own);
  }
  *seconds = smoe_seconds() - begin;
  smoe_group_max_f64(group, seconds, 1);
  smoe_part_end(&part);
  smoe_free(own);
  smoe_free(word);
  return status;
}
