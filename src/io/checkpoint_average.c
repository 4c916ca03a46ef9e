#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint_entry.h"

typedef struct averaging {
  const char *const *path; /* [n] */
  hid_t *file;             /* [n], open or H5I_INVALID_HID */
  size_t n;
  hid_t output;
  smoe_real *values; /* [SMOE_ENTRY_CHUNK] */
  double *sum;       /* [SMOE_ENTRY_CHUNK] */
  uint64_t *hash;    /* [n + 1] checksums of one copy in each file, and of the mean */
} averaging;

/* ---- the model of the last file is that of all ---- */

static smoe_status check_same_shape(hid_t file, const smoe_entry *e) {
  const int64_t copies[1] = {e->n_copies};
  SMOE_TRY(smoe_h5_expect(file, e->name, SMOE_H5_REAL_FILE, e->n_dims, e->shape));
  return smoe_h5_expect(file, e->checksum, H5T_STD_U64LE, e->expert ? 1 : 0, copies);
}

static smoe_status check_same_names(const averaging *a, size_t i, char *const *names, char *const *found) {
  const char *here = a->path[i], *there = a->path[a->n - 1];
  for (; *names && *found; names++, found++) {
    const int order = strcmp(*names, *found);
    SMOE_CHECK(order == 0, SMOE_ERR_CONFIG, "'%s' is of another model than '%s': '%s' is in the %s alone",
               here, there, order < 0 ? *names : *found, order < 0 ? "latter" : "former");
  }
  SMOE_CHECK(!*names && !*found, SMOE_ERR_CONFIG,
             "'%s' is of another model than '%s': '%s' is in the %s alone", here, there,
             *names ? *names : *found, *names ? "latter" : "former");
  return SMOE_OK;
}

static smoe_status check_same_model(const averaging *a, size_t i, char *const *names) {
  char **found;
  SMOE_TRY(smoe_checkpoint_check(a->file[i]));
  smoe_status status = smoe_h5_list(a->file[i], smoe_set_folder[0], &found);
  if (status == SMOE_OK) status = check_same_names(a, i, names, found);
  smoe_h5_list_free(found);
  for (; *names && status == SMOE_OK; names++) {
    smoe_entry e;
    status = smoe_entry_describe(a->file[a->n - 1], 0, *names, &e);
    if (status == SMOE_OK) status = check_same_shape(a->file[i], &e);
  }
  return status;
}

/* ---- values ---- */

static smoe_status average_chunk(averaging *a, const smoe_entry *e, int64_t copy, int64_t done, int64_t n) {
  memset(a->sum, 0, (size_t)n * sizeof *a->sum);
  for (size_t i = 0; i < a->n; i++) {
    SMOE_TRY(smoe_h5_read(a->file[i], e->name, SMOE_H5_REAL, a->values, copy * e->count + done, n));
    a->hash[i] += smoe_checksum(a->values, (size_t)done, (size_t)n);
    for (int64_t j = 0; j < n; j++) a->sum[j] += a->values[j];
  }
  for (int64_t j = 0; j < n; j++) a->values[j] = (smoe_real)(a->sum[j] / (double)a->n);
  a->hash[a->n] += smoe_checksum(a->values, (size_t)done, (size_t)n);
  return smoe_h5_write(a->output, e->name, SMOE_H5_REAL, a->values, copy * e->count + done, n);
}

static smoe_status average_copy(averaging *a, const smoe_entry *e, int64_t copy) {
  memset(a->hash, 0, (a->n + 1) * sizeof *a->hash);
  for (int64_t done = 0; done < e->count; done += SMOE_ENTRY_CHUNK) {
    const int64_t left = e->count - done;
    SMOE_TRY(average_chunk(a, e, copy, done, left < SMOE_ENTRY_CHUNK ? left : SMOE_ENTRY_CHUNK));
  }
  for (size_t i = 0; i < a->n; i++) {
    uint64_t stored;
    SMOE_TRY(smoe_h5_read(a->file[i], e->checksum, H5T_NATIVE_UINT64, &stored, copy, 1));
    SMOE_CHECK(stored == a->hash[i], SMOE_ERR_FORMAT, "'%s' is damaged: the checksum of '%s' is wrong",
               a->path[i], e->name);
  }
  return smoe_h5_write(a->output, e->checksum, H5T_NATIVE_UINT64, &a->hash[a->n], copy, 1);
}

/* Datasets of the values, or of the checksums. Values are stored together, for the seal. */
static smoe_status make_datasets(const averaging *a, char *const *names, bool checksums) {
  for (; *names; names++) {
    smoe_entry e;
    SMOE_TRY(smoe_entry_describe(a->file[a->n - 1], 0, *names, &e));
    const int64_t copies[1] = {e.n_copies};
    if (checksums)
      SMOE_TRY(smoe_h5_dataset(a->output, e.checksum, H5T_STD_U64LE, e.expert ? 1 : 0, copies));
    else
      SMOE_TRY(smoe_h5_dataset(a->output, e.name, SMOE_H5_REAL_FILE, e.n_dims, e.shape));
  }
  return SMOE_OK;
}

static smoe_status write_values(averaging *a, char *const *names) {
  SMOE_TRY(make_datasets(a, names, false));
  SMOE_TRY(make_datasets(a, names, true));
  for (; *names; names++) {
    smoe_entry e;
    SMOE_TRY(smoe_entry_describe(a->file[a->n - 1], 0, *names, &e));
    for (int64_t copy = 0; copy < e.n_copies; copy++) SMOE_TRY(average_copy(a, &e, copy));
  }
  return SMOE_OK;
}

static smoe_status write_meta(const averaging *a) {
  smoe_checkpoint_meta meta;
  SMOE_TRY(smoe_checkpoint_meta_of(a->file[a->n - 1], &meta));
  meta.n_averaged = (int64_t)a->n;
  meta.best = (smoe_best){0};
  const smoe_status status = smoe_checkpoint_write_meta(a->output, &meta);
  smoe_free(meta.configuration);
  return status;
}

/* ---- the file ---- */

static smoe_status open_inputs(averaging *a) {
  for (size_t i = 0; i < a->n; i++) a->file[i] = H5I_INVALID_HID;
  for (size_t i = 0; i < a->n; i++) SMOE_TRY(smoe_h5_open(&a->file[i], a->path[i]));
  return SMOE_OK;
}

static smoe_status write_part(averaging *a, const char *part) {
  char **names;
  smoe_status status = smoe_h5_list(a->file[a->n - 1], smoe_set_folder[0], &names);
  for (size_t i = 0; i < a->n && status == SMOE_OK; i++) status = check_same_model(a, i, names);
  if (status == SMOE_OK) status = smoe_h5_create(&a->output, part, NULL);
  if (status != SMOE_OK) {
    smoe_h5_list_free(names);
    return status;
  }
  status = write_meta(a);
  if (status == SMOE_OK) status = write_values(a, names);
  smoe_h5_list_free(names);
  return smoe_h5_close_after(a->output, status);
}

static smoe_status compare_sums(hid_t file, char *const *names, smoe_real *values) {
  for (; *names; names++) {
    smoe_entry e;
    SMOE_TRY(smoe_entry_describe(file, 0, *names, &e));
    for (int64_t copy = 0; copy < e.n_copies; copy++) {
      bool good = false;
      SMOE_TRY(smoe_entry_read(file, &e, copy, values, &good, NULL, NULL));
      SMOE_CHECK(good, SMOE_ERR_IO,
                 "'%s' of '%s' does not read back as it was written; the disk or its file system is at fault",
                 e.name, smoe_h5_path(file));
    }
  }
  return SMOE_OK;
}

static smoe_status read_back(const averaging *a, const char *part) {
  hid_t file;
  char **names;
  SMOE_TRY(smoe_h5_open(&file, part));
  smoe_status status = smoe_h5_list(file, smoe_set_folder[0], &names);
  if (status == SMOE_OK) status = compare_sums(file, names, a->values);
  smoe_h5_list_free(names);
  smoe_h5_close(file);
  return status;
}

smoe_status smoe_checkpoint_average(const char *const *paths, size_t n, const char *output) {
  averaging a = {.path = paths, .n = n, .output = H5I_INVALID_HID};
  a.file = smoe_alloc(n * sizeof *a.file);
  a.hash = smoe_alloc((n + 1) * sizeof *a.hash);
  a.values = smoe_alloc(SMOE_ENTRY_CHUNK * sizeof *a.values);
  a.sum = smoe_alloc(SMOE_ENTRY_CHUNK * sizeof *a.sum);
  char *part = smoe_sprintf("%s.part", output);

  smoe_status status = open_inputs(&a);
  if (status == SMOE_OK) {
    status = write_part(&a, part);
    if (status == SMOE_OK) status = read_back(&a, part);
    if (status == SMOE_OK) status = smoe_h5_publish(part, output);
    if (status != SMOE_OK) unlink(part);
  }
  for (size_t i = 0; i < n; i++)
    if (a.file[i] >= 0) smoe_h5_close(a.file[i]);
  smoe_free(a.file);
  smoe_free(a.hash);
  smoe_free(a.values);
  smoe_free(a.sum);
  smoe_free(part);
  return status;
}
