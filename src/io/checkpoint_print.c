#include <stdio.h>
#include <string.h>

#include "checkpoint_entry.h"

static void print_entry(const smoe_entry *e) {
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
    smoe_entry e;
    status = smoe_entry_describe(file, 0, *name, &e);
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
  const char *const names[] = {"program", "hdf5", "mpi", "products", "real"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char text[512];
    /* Earlier versions did not write it. */
    if (strcmp(names[i], "products") == 0 && H5Aexists_by_name(file, "/meta", "products", H5P_DEFAULT) <= 0)
      continue;
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
  if (meta.n_averaged > 0) printf("  %-12s %lld checkpoints\n", "mean of", (long long)meta.n_averaged);
  if (meta.best.update > 0)
    printf("  %-12s update %lld, validation loss %.4f, %lld evaluations ago\n", "best",
           (long long)meta.best.update, meta.best.value, (long long)meta.best.n_since);
  printf("  %-12s %llu\n", "seed", (unsigned long long)meta.seed);
  printf("  %-12s %lld\n", "tokens seen", (long long)meta.n_tokens_seen);
  if (meta.n_sequences_seen >= 0) printf("  %-12s %lld\n", "sequences", (long long)meta.n_sequences_seen);
  printf("  %-12s %s\n", "corpus", meta.corpus);
  printf("  %-12s %016llx\n", "fingerprint", (unsigned long long)meta.fingerprint);
  printf("  %-12s %016llx\n", "tokenizer", (unsigned long long)meta.tokenizer);
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

/** Check a dataset copy by copy; prints what is wrong, and returns the number of damaged copies. */
static int64_t verify_entry(hid_t file, int set, const char *name, smoe_real *buffer) {
  smoe_entry e;
  if (smoe_entry_describe(file, set, name, &e) != SMOE_OK) {
    printf("  damaged: %s/%s: %s\n", smoe_set_folder[set], name, smoe_last_error());
    return 1;
  }
  int64_t n_bad = 0;
  for (int64_t copy = 0; copy < e.n_copies; copy++) {
    bool good = false;
    const smoe_status status = smoe_entry_read(file, &e, copy, buffer, &good, NULL, NULL);
    if (status == SMOE_OK && good) continue;
    n_bad++;
    printf("  damaged: %s", e.name);
    if (e.expert) printf(" of expert %lld", (long long)copy);
    printf(": %s\n", status == SMOE_OK ? "the checksum is wrong" : smoe_last_error());
  }
  return n_bad;
}

static smoe_status verify_file(hid_t file, const char *path) {
  smoe_checkpoint_meta meta;
  SMOE_TRY(smoe_checkpoint_meta_of(file, &meta));
  smoe_free(meta.configuration);
  smoe_real *buffer = smoe_alloc(SMOE_ENTRY_CHUNK * sizeof *buffer);
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
  printf("%s: %lld of %lld datasets are valid\n", path, (long long)(n_datasets - n_damaged),
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
