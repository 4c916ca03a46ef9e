#include <string.h>
#include <unistd.h>

#include "checkpoint_entry.h"
#include "part_file.h"

smoe_status smoe_checkpoint_read_meta(const char *path, const smoe_group *group, smoe_checkpoint_meta *meta) {
  hid_t file;
  smoe_status mine = SMOE_OK;
  *meta = (smoe_checkpoint_meta){0};
  if (group->rank == 0) {
    mine = smoe_h5_open(&file, path);
    if (mine == SMOE_OK) {
      mine = smoe_checkpoint_meta_of(file, meta);
      smoe_h5_close(file);
    }
  }
  SMOE_TRY_ALL(group, mine);
  char *configuration = meta->configuration;
  uint64_t bytes = group->rank == 0 ? strlen(configuration) + 1 : 0;
  smoe_group_broadcast(group, meta, sizeof *meta, 0);
  smoe_group_broadcast(group, &bytes, sizeof bytes, 0);
  meta->configuration = group->rank == 0 ? configuration : smoe_alloc(bytes);
  smoe_group_broadcast(group, meta->configuration, bytes, 0);
  return SMOE_OK;
}

/** Rank 0's part of it. */
static smoe_status find_best(const char *run, const smoe_best *best, char **path) {
  char *directory = smoe_sprintf("%s/checkpoints", run);
  *path = smoe_step_path(directory, best->update);
  smoe_free(directory);
  SMOE_CHECK(best->metric != SMOE_BEST_NONE, SMOE_ERR_CONFIG,
             "'%s' has no best checkpoint: it was trained without train.best and train.patience", run);
  SMOE_CHECK(best->update > 0, SMOE_ERR_CONFIG, "'%s' has no best checkpoint: no evaluation has counted yet",
             run);
  SMOE_CHECK(access(*path, F_OK) == 0, SMOE_ERR_CONFIG, "the best checkpoint of '%s' is gone: '%s'", run,
             *path);
  return SMOE_OK;
}

smoe_status smoe_checkpoint_find_best(const char *run, const smoe_group *group, char **path) {
  smoe_checkpoint_meta meta = {0};
  char *newest = smoe_checkpoint_resolve(run);
  *path = NULL;
  smoe_status status = smoe_checkpoint_read_meta(newest, group, &meta);
  if (status == SMOE_OK) status = smoe_group_agree(group, find_best(run, &meta.best, path));
  if (status != SMOE_OK) {
    smoe_free(*path);
    *path = NULL;
  }
  smoe_free(meta.configuration);
  smoe_free(newest);
  return status;
}

/** Check that the names of a set are those of the table, no more and no fewer. Moments of parameters that
 *  never learn may be there, as in files of earlier programs, and are passed over.
 */
static smoe_status check_names(hid_t file, const smoe_params *params, int set) {
  const char *folder = smoe_set_folder[set];
  char **names, path[SMOE_CHUNK_NAME];
  smoe_status status = smoe_h5_list(file, folder, &names);
  for (char **name = names; *name && status == SMOE_OK; name++)
    if (smoe_params_find(params, *name) < 0)
      status = SMOE_FAIL(SMOE_ERR_FORMAT,
                         "'%s' has '%s/%s', which this model does not have: it is of another configuration",
                         smoe_h5_path(file), folder, *name);
  smoe_h5_list_free(names);
  for (int p = 0; p < params->n_params && status == SMOE_OK; p++)
    if (smoe_chunk_in_set(params, set, p) &&
        !smoe_h5_exists(file, smoe_chunk_name(path, folder, &params->param[p])))
      status =
          set > 0 ? SMOE_FAIL(
                        SMOE_ERR_FORMAT,
                        "'%s' lacks '%s': the parameter was frozen there (train.frozen, train.only), or the "
                        "file is damaged. A resumed run freezes what the run did; train.initial begins a new "
                        "one from its parameters",
                        smoe_h5_path(file), path)
                  : SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' lacks '%s': it is damaged, or of another configuration",
                              smoe_h5_path(file), path);
  return status;
}

/** take: [n_params] which parameters are looked at; NULL: all. */
static bool is_taken(const smoe_params *params, const bool *take, int set, int p) {
  return smoe_chunk_in_set(params, set, p) && (!take || take[p]);
}

static smoe_status check_shapes(hid_t file, const smoe_params *params, const bool *take, int set) {
  char name[SMOE_CHUNK_NAME];
  for (int p = 0; p < params->n_params; p++) {
    int64_t shape[SMOE_H5_DIMS];
    const smoe_param *param = &params->param[p];
    const int n_dims = smoe_chunk_shape(params, p, shape);
    if (!is_taken(params, take, set, p)) continue;
    smoe_chunk_name(name, smoe_set_folder[set], param);
    SMOE_TRY(smoe_h5_expect(file, name, SMOE_H5_REAL_FILE, n_dims, shape));
    smoe_chunk_name(name, smoe_set_checksum[set], param);
    SMOE_TRY(smoe_h5_expect(file, name, H5T_STD_U64LE, param->sharding == SMOE_EXPERT ? 1 : 0, shape));
  }
  return SMOE_OK;
}

/** Check a file against the table and read this rank's chunks. Local. */
static smoe_status read_chunks(hid_t file, const smoe_params *params, const bool *take,
                               const smoe_chunk *chunk, size_t n, int n_sets) {
  char name[SMOE_CHUNK_NAME];
  SMOE_TRY(smoe_checkpoint_check(file));
  for (int set = 0; set < n_sets; set++) {
    if (!take) SMOE_TRY(check_names(file, params, set));
    SMOE_TRY(check_shapes(file, params, take, set));
  }
  SMOE_CHECK(!smoe_fault("checkpoint.read"), SMOE_ERR_IO, "injected fault at checkpoint.read");
  for (size_t i = 0; i < n; i++) {
    smoe_chunk_name(name, smoe_set_folder[chunk[i].set], &params->param[chunk[i].param]);
    SMOE_TRY(smoe_h5_read(file, name, SMOE_H5_REAL, chunk[i].values, chunk[i].first, (int64_t)chunk[i].n));
  }
  return SMOE_OK;
}

/** Compare the checksums of what all ranks read with those in the file. Local. */
static smoe_status check_sums(hid_t file, const smoe_params *params, const bool *take, int n_sets,
                              const uint64_t *sum) {
  char name[SMOE_CHUNK_NAME];
  uint64_t *stored = smoe_alloc((size_t)(params->n_experts + 1) * sizeof *stored);
  smoe_status status = SMOE_OK;
  for (int set = 0; set < n_sets && status == SMOE_OK; set++)
    for (int p = 0; p < params->n_params && status == SMOE_OK; p++) {
      const smoe_param *param = &params->param[p];
      const size_t n = smoe_chunk_slots(params, p);
      if (!is_taken(params, take, set, p)) {
        sum += n;
        continue;
      }
      smoe_chunk_name(name, smoe_set_checksum[set], param);
      status = smoe_h5_read(file, name, H5T_NATIVE_UINT64, stored, 0, (int64_t)n);
      size_t e = 0;
      while (e < n && stored[e] == sum[e]) e++;
      smoe_chunk_name(name, smoe_set_folder[set], param);
      if (status == SMOE_OK && e < n && param->sharding == SMOE_EXPERT)
        status = SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' is damaged: the checksum of '%s' of expert %zu is wrong",
                           smoe_h5_path(file), name, e);
      else if (status == SMOE_OK && e < n)
        status = SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' is damaged: the checksum of '%s' is wrong",
                           smoe_h5_path(file), name);
      sum += n;
    }
  smoe_free(stored);
  return status;
}

/** The chunks of values of the parameters that are taken. */
static void keep_taken(smoe_chunk *chunk, size_t *n, const bool *take) {
  size_t kept = 0;
  for (size_t i = 0; i < *n; i++)
    if (chunk[i].set == 0 && take[chunk[i].param]) chunk[kept++] = chunk[i];
  *n = kept;
}

/** take NULL: everything, and names that are too many or missing are errors. */
static smoe_status load(const char *path, smoe_params *params, const bool *take) {
  const smoe_group *group = &params->group;
  size_t n;
  int n_sets;
  hid_t file = H5I_INVALID_HID;
  smoe_chunk *chunk = smoe_chunks(params, &n, &n_sets);
  smoe_params_fence(params);
  if (take) {
    keep_taken(chunk, &n, take);
    n_sets = 1;
  }
  const size_t n_sums = smoe_chunk_slot(params, n_sets, 0);
  uint64_t *sums = smoe_alloc(n_sums * sizeof *sums);

  smoe_status mine = smoe_h5_open_unsealed(&file, path);
  if (mine == SMOE_OK && smoe_fault("checkpoint.load"))
    mine = SMOE_FAIL(SMOE_ERR_IO, "injected fault at checkpoint.load");
  if (mine == SMOE_OK) mine = read_chunks(file, params, take, chunk, n, n_sets);
  smoe_status status = smoe_group_agree(group, mine);
  if (status == SMOE_OK) {
    smoe_chunk_checksums(sums, chunk, n);
    smoe_group_sum_u64(group, sums, (int)n_sums);
    /* All ranks have the same sums, and one reader is enough for the few stored ones. */
    status =
        smoe_group_agree(group, group->rank == 0 ? check_sums(file, params, take, n_sets, sums) : SMOE_OK);
  }
  if (file >= 0) smoe_h5_close(file);
  if (status == SMOE_OK) smoe_params_allgather(params, true);
  smoe_free(chunk);
  smoe_free(sums);
  return status;
}

smoe_status smoe_checkpoint_load(const char *path, smoe_params *params) {
  return load(path, params, NULL);
}

smoe_status smoe_checkpoint_load_some(const char *path, smoe_params *params, const bool *take) {
  return load(path, params, take);
}

/** Describe the values of a file, in memory of smoe_alloc; the caller frees *content on errors, too. Local. */
static smoe_status list_content(const char *path, smoe_checkpoint_content **content, int64_t *n) {
  hid_t file;
  char **names;
  SMOE_TRY(smoe_h5_open(&file, path));
  smoe_status status = smoe_checkpoint_check(file);
  if (status == SMOE_OK) status = smoe_h5_list(file, smoe_set_folder[0], &names);
  if (status != SMOE_OK) {
    smoe_h5_close(file);
    return status;
  }
  while (names[*n]) ++*n;
  *content = smoe_alloc((size_t)*n * sizeof **content);
  for (int64_t i = 0; i < *n && status == SMOE_OK; i++) {
    smoe_entry entry;
    smoe_checkpoint_content *c = &(*content)[i];
    if (strlen(names[i]) >= sizeof c->name)
      status =
          SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' has a parameter with a name of %zu bytes", path, strlen(names[i]));
    else
      status = smoe_entry_describe(file, 0, names[i], &entry);
    if (status != SMOE_OK) break;
    strcpy(c->name, names[i]);
    c->expert = entry.expert;
    c->n_dims = entry.n_dims;
    for (int d = 0; d < entry.n_dims; d++) c->shape[d] = entry.shape[d];
  }
  smoe_h5_list_free(names);
  smoe_h5_close(file);
  return status;
}

smoe_status smoe_checkpoint_describe(const char *path, const smoe_group *group,
                                     smoe_checkpoint_content **content, int64_t *n) {
  *content = NULL;
  *n = 0;
  smoe_status status = smoe_group_agree(group, group->rank == 0 ? list_content(path, content, n) : SMOE_OK);
  if (status != SMOE_OK) {
    smoe_free(*content);
    *content = NULL;
    return status;
  }
  smoe_group_broadcast(group, n, sizeof *n, 0);
  if (group->rank != 0) *content = smoe_alloc((size_t)*n * sizeof **content);
  smoe_group_broadcast(group, *content, (size_t)*n * sizeof **content, 0);
  return SMOE_OK;
}

typedef struct value_sink {
  smoe_real *values;
} value_sink;

static smoe_status take_values(void *context, const smoe_real *values, size_t n) {
  value_sink *sink = context;
  memcpy(sink->values, values, n * sizeof *values);
  sink->values += n;
  return SMOE_OK;
}

static smoe_status read_values(hid_t file, const char *name, smoe_real *values) {
  smoe_entry entry;
  SMOE_TRY(smoe_checkpoint_check(file));
  SMOE_TRY(smoe_entry_describe(file, 0, name, &entry));
  smoe_real *buffer = smoe_alloc(SMOE_ENTRY_CHUNK * sizeof *buffer);
  value_sink sink = {values};
  smoe_status status = SMOE_OK;
  for (int64_t copy = 0; copy < entry.n_copies && status == SMOE_OK; copy++) {
    bool good = true;
    status = smoe_entry_read(file, &entry, copy, buffer, &good, take_values, &sink);
    if (status == SMOE_OK && !good)
      status = SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' is damaged: the checksum of '%s' is wrong",
                         smoe_h5_path(file), entry.name);
  }
  smoe_free(buffer);
  return status;
}

smoe_status smoe_checkpoint_read_values(const char *path, const char *name, smoe_real *values) {
  hid_t file;
  SMOE_TRY(smoe_h5_open_unsealed(&file, path));
  const smoe_status status = read_values(file, name, values);
  smoe_h5_close(file);
  return status;
}
