#include <stdio.h>
#include <string.h>

#include "checkpoint_piece.h"

/* Elements that a checksum run holds at a time: whole units, so blocks stay the same. */
enum { CHUNK = 1024 * SMOE_UNIT };

/** What a dataset of the file is, as far as the file alone tells. */
typedef struct entry {
  char name[512];     /**< "param/<name>" */
  char checksum[512]; /**< "checksum/param/<name>" */
  char short_name[512];
  int n_dims;
  int64_t shape[SMOE_H5_DIMS];
  int64_t n_copies; /**< experts; 1 where it is no expert's */
  int64_t count;    /**< elements of one copy */
  bool expert;
} entry;

/** Describe a dataset; the checksum's shape says whether it has one copy or one per expert. */
static smoe_status describe(hid_t file, int set, const char *name, entry *e) {
  int n_sums;
  int64_t sums[SMOE_H5_DIMS];
  *e = (entry){.n_copies = 1, .count = 1};
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

static void print_entry(const entry *e) {
  char shape[96] = "";
  size_t used = 0;
  for (int d = 0; d < e->n_dims && used < sizeof shape; d++)
    used +=
        (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", d ? " x " : "", (long long)e->shape[d]);
  printf("  %-48s %-10s %-24s %14lld\n", e->short_name, e->expert ? "expert" : "shared", shape,
         (long long)(e->n_copies * e->count));
}

static smoe_status print_entries(hid_t file) {
  char **names;
  int64_t total[2] = {0, 0};
  smoe_status status = smoe_h5_list(file, smoe_set_folder[0], &names);
  if (status == SMOE_OK)
    printf("\n  %-48s %-10s %-24s %14s\n", "parameter", "placement", "shape", "elements");
  for (char **name = names; *name && status == SMOE_OK; name++) {
    entry e;
    status = describe(file, 0, *name, &e);
    if (status != SMOE_OK) break;
    print_entry(&e);
    total[e.expert] += e.n_copies * e.count;
  }
  smoe_h5_list_free(names);
  if (status == SMOE_OK)
    printf("\n  %lld parameters: %lld shared, %lld in experts\n", (long long)(total[0] + total[1]),
           (long long)total[0], (long long)total[1]);
  return status;
}

static smoe_status print_texts(hid_t file) {
  const char *const names[] = {"program", "hdf5", "mpi", "real"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char text[512];
    SMOE_TRY(smoe_h5_get_text(file, "/meta", names[i], text, sizeof text));
    printf("  %-12s %s\n", names[i], text);
  }
  return SMOE_OK;
}

static smoe_status print_file(hid_t file, const char *path) {
  smoe_checkpoint_meta meta;
  SMOE_TRY(smoe_checkpoint_meta_of(file, &meta));
  smoe_free(meta.configuration);
  printf("checkpoint %s\n", path);
  printf("  %-12s %lld\n", "update", (long long)meta.update);
  printf("  %-12s %d\n", "stage", meta.stage);
  printf("  %-12s %llu\n", "seed", (unsigned long long)meta.seed);
  printf("  %-12s %lld\n", "tokens seen", (long long)meta.n_tokens_seen);
  printf("  %-12s %s\n", "corpus", meta.corpus);
  printf("  %-12s %016llx\n", "fingerprint", (unsigned long long)meta.fingerprint);
  printf("  %-12s %s\n", "moments", smoe_h5_exists(file, smoe_set_folder[1]) ? "yes" : "no");
  SMOE_TRY(print_texts(file));
  return print_entries(file);
}

smoe_status smoe_checkpoint_print(const char *path) {
  hid_t file;
  SMOE_TRY(smoe_h5_open(&file, path));
  const smoe_status status = print_file(file, path);
  smoe_h5_close(file);
  return status;
}

/** Checksum of one copy of a dataset. */
static smoe_status copy_checksum(hid_t file, const entry *e, int64_t copy, smoe_real *buffer, uint64_t *sum) {
  *sum = 0;
  for (int64_t done = 0; done < e->count; done += CHUNK) {
    const int64_t n = e->count - done < CHUNK ? e->count - done : CHUNK;
    SMOE_TRY(smoe_h5_read(file, e->name, SMOE_H5_REAL, buffer, copy * e->count + done, n));
    *sum += smoe_checksum(buffer, (size_t)done, (size_t)n);
  }
  return SMOE_OK;
}

/** Check a dataset copy by copy; prints what is wrong, and returns the number of damaged copies. */
static int64_t verify_entry(hid_t file, int set, const char *name, smoe_real *buffer) {
  entry e;
  if (describe(file, set, name, &e) != SMOE_OK) {
    printf("  damaged: %s/%s: %s\n", smoe_set_folder[set], name, smoe_report());
    return 1;
  }
  int64_t n_bad = 0;
  for (int64_t copy = 0; copy < e.n_copies; copy++) {
    uint64_t sum, stored;
    smoe_status status = copy_checksum(file, &e, copy, buffer, &sum);
    if (status == SMOE_OK) status = smoe_h5_read(file, e.checksum, H5T_NATIVE_UINT64, &stored, copy, 1);
    if (status == SMOE_OK && sum == stored) continue;
    n_bad++;
    printf("  damaged: %s", e.name);
    if (e.expert) printf(" of expert %lld", (long long)copy);
    printf(": %s\n", status == SMOE_OK ? "the checksum is wrong" : smoe_report());
  }
  return n_bad;
}

static smoe_status verify_file(hid_t file, const char *path) {
  smoe_checkpoint_meta meta;
  SMOE_TRY(smoe_checkpoint_meta_of(file, &meta));
  smoe_free(meta.configuration);
  smoe_real *buffer = smoe_alloc(CHUNK * sizeof *buffer);
  int64_t n_datasets = 0, n_damaged = 0;
  smoe_status status = SMOE_OK;
  for (int set = 0; set < SMOE_SETS && status == SMOE_OK; set++) {
    char **names, **sums;
    status = smoe_h5_list(file, smoe_set_folder[set], &names);
    for (char **name = names; *name && status == SMOE_OK; name++, n_datasets++)
      n_damaged += verify_entry(file, set, *name, buffer) > 0;
    smoe_h5_list_free(names);
    if (status != SMOE_OK) break;
    /* A checksum without its values: the values are gone. */
    status = smoe_h5_list(file, smoe_set_checksum[set], &sums);
    for (char **name = sums; *name && status == SMOE_OK; name++) {
      char values[512];
      snprintf(values, sizeof values, "%s/%s", smoe_set_folder[set], *name);
      if (smoe_h5_exists(file, values)) continue;
      printf("  damaged: %s is missing\n", values);
      n_datasets++;
      n_damaged++;
    }
    smoe_h5_list_free(sums);
  }
  smoe_free(buffer);
  SMOE_TRY(status);
  printf("%s: %lld of %lld datasets are sound\n", path, (long long)(n_datasets - n_damaged),
         (long long)n_datasets);
  SMOE_CHECK(n_damaged == 0 && n_datasets > 0, SMOE_ERR_FORMAT, "'%s' is damaged: %lld of %lld datasets",
             path, (long long)n_damaged, (long long)n_datasets);
  return SMOE_OK;
}

smoe_status smoe_checkpoint_verify(const char *path) {
  hid_t file;
  SMOE_TRY(smoe_h5_open(&file, path));
  const smoe_status status = verify_file(file, path);
  smoe_h5_close(file);
  return status;
}
