#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint_save.h"
#include "stablemoe/log.h"

/** Set by smoe_checkpoint_set_products; the same on all ranks, since writing attributes is collective. */
static char products[256];

void smoe_checkpoint_set_products(const smoe_group *group, const char *text) {
  snprintf(products, sizeof products, "%s", text);
  smoe_group_broadcast(group, products, sizeof products, 0);
}

/** Texts that say what wrote the file. */
static smoe_status write_versions(hid_t file) {
  char mpi[MPI_MAX_LIBRARY_VERSION_STRING], hdf5[32];
  unsigned major, minor, release;
  int length;
  SMOE_MPI(MPI_Get_library_version(mpi, &length));
  char *end = strchr(mpi, ',');
  if (end) *end = '\0';
  H5get_libversion(&major, &minor, &release);
  snprintf(hdf5, sizeof hdf5, "%u.%u.%u", major, minor, release);
  SMOE_TRY(smoe_h5_set_text(file, "/meta", "program", "stablemoe " SMOE_VERSION));
  SMOE_TRY(smoe_h5_set_text(file, "/meta", "hdf5", hdf5));
  if (products[0]) SMOE_TRY(smoe_h5_set_text(file, "/meta", "products", products));
  return smoe_h5_set_text(file, "/meta", "mpi", mpi);
}

static smoe_status write_best(hid_t file, const smoe_best *best) {
  if (best->metric == SMOE_BEST_NONE) return SMOE_OK;
  SMOE_TRY(smoe_h5_set_i64(file, "/meta", "best_metric", best->metric));
  SMOE_TRY(smoe_h5_set_i64(file, "/meta", "best_update", best->update));
  SMOE_TRY(smoe_h5_set_i64(file, "/meta", "best_since", best->n_since));
  return smoe_h5_set_f64(file, "/meta", "best_value", best->value);
}

smoe_status smoe_checkpoint_write_meta(hid_t file, const smoe_checkpoint_meta *meta) {
  SMOE_TRY(smoe_h5_document(file, "/meta/configuration", strlen(meta->configuration) + 1));
  SMOE_TRY(smoe_h5_write_document(file, "/meta/configuration", meta->configuration));
  SMOE_TRY(smoe_h5_set_text(file, "/", "format", SMOE_CHECKPOINT_KIND));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "version", SMOE_CHECKPOINT_FORMAT));
  SMOE_TRY(smoe_h5_set_text(file, "/meta", "real", SMOE_REAL_NAME));
  SMOE_TRY(smoe_h5_set_i64(file, "/meta", "update", meta->update));
  SMOE_TRY(smoe_h5_set_i64(file, "/meta", "stage", meta->stage));
  SMOE_TRY(smoe_h5_set_u64(file, "/meta", "seed", meta->seed));
  SMOE_TRY(smoe_h5_set_i64(file, "/meta", "tokens", meta->n_tokens_seen));
  SMOE_TRY(smoe_h5_set_i64(file, "/meta", "sequences", meta->n_sequences_seen));
  SMOE_TRY(smoe_h5_set_u64(file, "/meta", "fingerprint", meta->fingerprint));
  SMOE_TRY(smoe_h5_set_u64(file, "/meta", "tokenizer", meta->tokenizer));
  SMOE_TRY(smoe_h5_set_text(file, "/meta", "corpus", meta->corpus));
  SMOE_TRY(smoe_h5_set_text(file, "/meta", "corpus_absolute", meta->absolute));
  SMOE_TRY(write_best(file, &meta->best));
  if (meta->n_averaged > 0) SMOE_TRY(smoe_h5_set_i64(file, "/meta", "averaged", meta->n_averaged));
  return write_versions(file);
}

/** Make one kind of dataset: of the values, or of the checksums. */
static smoe_status make_kind(hid_t file, const smoe_save_plan *plan, bool checksums) {
  char name[SMOE_CHUNK_NAME];
  for (int set = 0; set < plan->n_sets; set++)
    for (int p = 0; p < plan->params->n_params; p++) {
      const smoe_param *param = &plan->params->param[p];
      int64_t shape[SMOE_H5_DIMS];
      if (!smoe_chunk_in_set(plan->params, set, p)) continue;
      const int n_dims = smoe_chunk_shape(plan->params, p, shape);
      smoe_chunk_name(name, (checksums ? smoe_set_checksum : smoe_set_folder)[set], param);
      if (checksums)
        SMOE_TRY(smoe_h5_dataset(file, name, H5T_STD_U64LE, param->sharding == SMOE_EXPERT ? 1 : 0, shape));
      else
        SMOE_TRY(smoe_h5_dataset(file, name, SMOE_H5_REAL_FILE, n_dims, shape));
    }
  return SMOE_OK;
}

/** Values stand together, so that the seal can leave them out in few ranges. */
static smoe_status make_datasets(hid_t file, const smoe_save_plan *plan) {
  SMOE_TRY(make_kind(file, plan, false));
  return make_kind(file, plan, true);
}

/** Write, or compare, the checksums. */
static smoe_status put_sums(const smoe_part_file *part, const smoe_save_plan *plan) {
  char name[SMOE_CHUNK_NAME];
  const uint64_t *sum = plan->sums;
  for (int set = 0; set < plan->n_sets; set++)
    for (int p = 0; p < plan->params->n_params; p++) {
      const size_t n = smoe_chunk_slots(plan->params, p);
      smoe_chunk_name(name, smoe_set_checksum[set], &plan->params->param[p]);
      if (smoe_chunk_in_set(plan->params, set, p))
        SMOE_TRY(smoe_part_put_range(part, name, H5T_NATIVE_UINT64, sum, 0, (int64_t)n));
      sum += n;
    }
  return SMOE_OK;
}

smoe_status smoe_save_make(const smoe_part_file *part, const void *context) {
  const smoe_save_plan *plan = context;
  SMOE_TRY(smoe_checkpoint_write_meta(part->file, plan->meta));
  SMOE_TRY(make_datasets(part->file, plan));
  return put_sums(part, plan);
}

/** Write, or compare, the values that this rank has. Local. */
static smoe_status put_values(const smoe_part_file *part, const smoe_save_plan *plan) {
  char name[SMOE_CHUNK_NAME];
  for (size_t i = 0; i < plan->n_chunks; i++) {
    const smoe_chunk *chunk = &plan->chunk[i];
    smoe_chunk_name(name, smoe_set_folder[chunk->set], &plan->params->param[chunk->param]);
    SMOE_TRY(smoe_part_put_range(part, name, SMOE_H5_REAL, chunk->values, chunk->first, (int64_t)chunk->n));
  }
  return SMOE_OK;
}

smoe_status smoe_save_compare_meta(const smoe_part_file *part, const smoe_save_plan *plan) {
  smoe_checkpoint_meta read;
  SMOE_TRY(smoe_checkpoint_meta_of(part->file, &read));
  const bool same =
      read.update == plan->meta->update && strcmp(read.configuration, plan->meta->configuration) == 0;
  smoe_free(read.configuration);
  SMOE_CHECK(same, SMOE_ERR_IO, "the meta data of '%s' do not read back as they were written", part->part);
  return SMOE_OK;
}

/** Read what rank 0 made alone back. */
static smoe_status compare_rest(const smoe_part_file *part, const smoe_save_plan *plan) {
  SMOE_TRY(put_sums(part, plan));
  return smoe_save_compare_meta(part, plan);
}

int64_t smoe_save_bytes(const smoe_save_plan *plan) {
  const smoe_params *params = plan->params;
  const int64_t n = smoe_params_total(params, SMOE_REPLICATED) + smoe_params_total(params, SMOE_EXPERT);
  return n * plan->n_sets * (int64_t)sizeof(smoe_real) + 4096 * (int64_t)params->n_params * plan->n_sets;
}

/** Point <directory>/<name> to a checkpoint. A rename, so that it is never missing. It is a convenience: a file
 *  system without symbolic links has none, and readers take the newest checkpoint, or the one that it names.
 */
static void point(const char *directory, const char *name, const char *path) {
  char *link = smoe_sprintf("%s/%s", directory, name), *temporary = smoe_sprintf("%s.part", link);
  unlink(temporary);
  const bool done = symlink(strrchr(path, '/') + 1, temporary) == 0 && rename(temporary, link) == 0;
  static bool warned;
  if (!done && !warned)
    smoe_warn(
        "'%s' cannot be made: %s; '%s' is left out, and a run directory stands for its newest checkpoint",
        link, strerror(errno), name);
  warned |= !done;
  if (!done) {
    unlink(temporary);
    unlink(link); /* what is there, a copy of a link, is old now */
  }
  smoe_free(link);
  smoe_free(temporary);
}

smoe_status smoe_save_latest_fault(const smoe_part_file *part) {
  return smoe_part_fault(part, "latest");
}

void smoe_save_point_latest(const smoe_part_file *part, const char *directory) {
  point(directory, "latest", part->path);
}

void smoe_checkpoint_point_best(const char *directory, int64_t update) {
  char *path = smoe_step_path(directory, update), *link = smoe_sprintf("%s/best", directory);
  if (update > 0 && access(path, F_OK) == 0)
    point(directory, "best", path);
  else
    unlink(link);
  smoe_free(path);
  smoe_free(link);
}

char *smoe_checkpoint_resolve(const char *path) {
  struct stat info;
  const char *slash = strrchr(path, '/');
  const bool latest = strcmp(slash ? slash + 1 : path, "latest") == 0;
  if (stat(path, &info) == 0 ? !S_ISDIR(info.st_mode) : !latest) return smoe_strdup(path);
  char *directory = latest && slash ? smoe_sprintf("%.*s", (int)(slash - path), path)
                    : latest        ? smoe_strdup(".")
                                    : smoe_sprintf("%s/checkpoints", path);
  char *link = smoe_sprintf("%s/latest", directory);
  char **list = stat(link, &info) == 0 ? NULL : smoe_checkpoint_list(directory);
  char *found = smoe_strdup(list && list[0] ? list[0] : link);
  for (size_t i = 0; list && list[i]; i++) smoe_free(list[i]);
  smoe_free(list);
  smoe_free(directory);
  smoe_free(link);
  return found;
}

static smoe_status save(smoe_part_file *part, const char *directory, const smoe_save_plan *plan) {
  const smoe_group *group = &plan->params->group;
  SMOE_TRY(smoe_part_create(part, group, "checkpoint", directory, plan->meta->update, smoe_save_bytes(plan),
                            smoe_save_make, plan));
  smoe_status mine = put_values(part, plan);
  if (mine == SMOE_OK) mine = smoe_part_fault(part, "write");
  SMOE_TRY(smoe_part_close(part, mine));

  mine = put_values(part, plan);
  if (mine == SMOE_OK && group->rank == 0) mine = compare_rest(part, plan);
  SMOE_TRY(smoe_part_publish(part, mine));

  SMOE_TRY_ALL(group, smoe_save_latest_fault(part));
  if (group->rank == 0) smoe_save_point_latest(part, directory);
  return SMOE_OK;
}

void smoe_save_plan_begin(smoe_save_plan *plan, const smoe_params *params, const smoe_checkpoint_meta *meta) {
  *plan = (smoe_save_plan){.params = params, .meta = meta};
  plan->chunk = smoe_chunks(params, &plan->n_chunks, &plan->n_sets);
  plan->n_sums = smoe_chunk_slot(params, plan->n_sets, 0);
  plan->sums = smoe_alloc(plan->n_sums * sizeof *plan->sums);
}

void smoe_save_plan_end(smoe_save_plan *plan) {
  smoe_free(plan->chunk);
  smoe_free(plan->sums);
  *plan = (smoe_save_plan){0};
}

smoe_status smoe_checkpoint_save(const char *directory, const smoe_params *params,
                                 const smoe_checkpoint_meta *meta) {
  smoe_save_plan plan;
  smoe_save_plan_begin(&plan, params, meta);
  smoe_chunk_checksums(plan.sums, plan.chunk, plan.n_chunks);
  smoe_group_sum_u64(&params->group, plan.sums, (int)plan.n_sums);

  smoe_part_file part = {.group = &params->group};
  const smoe_status status = save(&part, directory, &plan);
  smoe_part_end(&part);
  smoe_save_plan_end(&plan);
  return status;
}

char **smoe_checkpoint_list(const char *directory) {
  size_t n;
  int64_t *update = smoe_step_list(directory, &n);
  char **path = smoe_alloc((n + 1) * sizeof *path);
  for (size_t i = 0; i < n; i++) path[i] = smoe_step_path(directory, update[i]);
  smoe_free(update);
  return path;
}

/** Whether `latest` points to the checkpoint of this update. */
static bool is_latest(const char *directory, int64_t update) {
  char target[64], *link = smoe_sprintf("%s/latest", directory);
  const ssize_t length = readlink(link, target, sizeof target - 1);
  smoe_free(link);
  if (length < 0) return false;
  target[length] = '\0';
  return smoe_step_of_name(target) == update;
}

smoe_status smoe_save_prune(const char *directory, int64_t keep_last, int64_t keep_every, int64_t best) {
  if (keep_last <= 0) return SMOE_OK;
  size_t n;
  int64_t *update = smoe_step_list(directory, &n);
  smoe_status status = SMOE_OK;
  for (size_t i = (size_t)keep_last; i < n; i++) {
    if ((keep_every > 0 && update[i] % keep_every == 0) || update[i] == best ||
        is_latest(directory, update[i]))
      continue;
    char *path = smoe_step_path(directory, update[i]);
    if (unlink(path) != 0 && errno != ENOENT)
      status = SMOE_FAIL(SMOE_ERR_IO, "cannot delete the old checkpoint '%s': %s", path, strerror(errno));
    smoe_free(path);
  }
  smoe_free(update);
  return status;
}

smoe_status smoe_checkpoint_prune(const char *directory, const smoe_group *group, int64_t keep_last,
                                  int64_t keep_every, int64_t best) {
  return smoe_group_agree(group, group->rank == 0 ? smoe_save_prune(directory, keep_last, keep_every, best)
                                                  : SMOE_OK);
}
