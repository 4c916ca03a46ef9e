#include "checkpoint_entry.h"

#include <stdio.h>

smoe_status smoe_entry_describe(hid_t file, int set, const char *name, smoe_entry *e) {
  int n_sums;
  int64_t sums[SMOE_H5_DIMS];
  *e = (smoe_entry){.n_copies = 1, .count = 1};
  snprintf(e->short_name, sizeof e->short_name, "%s", name);
  snprintf(e->name, sizeof e->name, "%s/%s", smoe_set_folder[set], name);
  snprintf(e->checksum, sizeof e->checksum, "%s/%s", smoe_set_checksum[set], name);
  SMOE_TRY(smoe_h5_shape(file, e->checksum, &n_sums, sums));
  SMOE_TRY(smoe_h5_shape(file, e->name, &e->n_dims, e->shape));
  e->expert = n_sums == 1;
  if (e->expert) e->n_copies = sums[0];
  SMOE_CHECK(n_sums <= 1 && e->n_dims > n_sums && (!e->expert || e->shape[0] == sums[0]), SMOE_ERR_FORMAT,
             "'%s' and its checksum in '%s' have shapes that do not fit together", e->name,
             smoe_h5_path(file));
  SMOE_TRY(smoe_h5_expect(file, e->name, SMOE_H5_REAL_FILE, e->n_dims, e->shape));
  SMOE_TRY(smoe_h5_expect(file, e->checksum, H5T_STD_U64LE, n_sums, sums));
  for (int d = e->expert; d < e->n_dims; d++) e->count *= e->shape[d];
  return SMOE_OK;
}

smoe_status smoe_entry_read(hid_t file, const smoe_entry *e, int64_t copy, smoe_real *buffer, bool *good,
                            smoe_status (*take)(void *context, const smoe_real *values, size_t n),
                            void *context) {
  uint64_t sum = 0, stored;
  for (int64_t done = 0; done < e->count; done += SMOE_ENTRY_CHUNK) {
    const int64_t n = e->count - done < SMOE_ENTRY_CHUNK ? e->count - done : SMOE_ENTRY_CHUNK;
    SMOE_TRY(smoe_h5_read(file, e->name, SMOE_H5_REAL, buffer, copy * e->count + done, n));
    sum += smoe_checksum(buffer, (size_t)done, (size_t)n);
    if (take) SMOE_TRY(take(context, buffer, (size_t)n));
  }
  SMOE_TRY(smoe_h5_read(file, e->checksum, H5T_NATIVE_UINT64, &stored, copy, 1));
  *good = sum == stored;
  return SMOE_OK;
}
