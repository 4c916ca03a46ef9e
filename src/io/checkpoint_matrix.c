#include <stdio.h>

#include "checkpoint_chunk.h"

/** Read and check it on this rank; *values is NULL on error. Local. */
static smoe_status read_matrix(hid_t file, const char *name, int64_t *shape, smoe_real **values) {
  char path[SMOE_CHUNK_NAME], sum[SMOE_CHUNK_NAME];
  int64_t dims[SMOE_H5_DIMS];
  int n_dims = 0;
  uint64_t stored = 0;
  SMOE_TRY(smoe_checkpoint_check(file));
  snprintf(path, sizeof path, "%s/%s", smoe_set_folder[0], name);
  snprintf(sum, sizeof sum, "%s/%s", smoe_set_checksum[0], name);
  SMOE_CHECK(smoe_h5_exists(file, path) && smoe_h5_exists(file, sum), SMOE_ERR_FORMAT, "'%s' lacks '%s'",
             smoe_h5_path(file), path);
  SMOE_TRY(smoe_h5_shape(file, path, &n_dims, dims));
  SMOE_CHECK(n_dims == 2, SMOE_ERR_FORMAT, "'%s' of '%s' is not a matrix: it has %d dimensions", path,
             smoe_h5_path(file), n_dims);
  SMOE_TRY(smoe_h5_expect(file, path, SMOE_H5_REAL_FILE, 2, dims));
  SMOE_TRY(smoe_h5_expect(file, sum, H5T_STD_U64LE, 0, dims));
  shape[0] = dims[0];
  shape[1] = dims[1];
  const int64_t n = dims[0] * dims[1];
  *values = smoe_alloc((size_t)n * sizeof **values);
  SMOE_TRY(smoe_h5_read(file, path, SMOE_H5_REAL, *values, 0, n));
  SMOE_TRY(smoe_h5_read(file, sum, H5T_NATIVE_UINT64, &stored, 0, 1));
  SMOE_CHECK(stored == smoe_checksum(*values, 0, (size_t)n), SMOE_ERR_FORMAT,
             "'%s' is damaged: the checksum of '%s' is wrong", smoe_h5_path(file), path);
  return SMOE_OK;
}

smoe_status smoe_checkpoint_read_matrix(const char *path, const smoe_group *group, const char *name,
                                        int64_t *rows, int64_t *columns, smoe_real **values) {
  int64_t shape[2] = {0, 0};
  smoe_status mine = SMOE_OK;
  *values = NULL;
  if (group->rank == 0) {
    hid_t file;
    char *found = smoe_checkpoint_resolve(path);
    mine = smoe_h5_open(&file, found);
    smoe_free(found);
    if (mine == SMOE_OK) {
      mine = read_matrix(file, name, shape, values);
      smoe_h5_close(file);
    }
  }
  mine = smoe_group_agree(group, mine);
  if (mine != SMOE_OK) {
    smoe_free(*values);
    *values = NULL;
    return mine;
  }
  smoe_group_broadcast(group, shape, sizeof shape, 0);
  *rows = shape[0];
  *columns = shape[1];
  const size_t bytes = (size_t)shape[0] * (size_t)shape[1] * sizeof **values;
  if (group->rank != 0) *values = smoe_alloc(bytes);
  smoe_group_broadcast(group, *values, bytes, 0);
  return SMOE_OK;
}
