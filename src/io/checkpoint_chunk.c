#include "checkpoint_chunk.h"

#include <stdio.h>
#include <string.h>

const char *const smoe_set_folder[SMOE_SETS] = {"param", "adam/m", "adam/v"};
const char *const smoe_set_checksum[SMOE_SETS] = {"checksum/param", "checksum/adam_m", "checksum/adam_v"};

size_t smoe_chunk_slots(const smoe_params *params, int param) {
  return params->param[param].sharding == SMOE_EXPERT ? (size_t)smoe_params_slab(params, param)->n_experts
                                                      : 1;
}

size_t smoe_chunk_slot(const smoe_params *params, int set, int param) {
  size_t before = 0, all = 0;
  for (int p = 0; p < params->n_params; p++) {
    if (p == param) before = all;
    all += smoe_chunk_slots(params, p);
  }
  return (size_t)set * all + before;
}

bool smoe_chunk_in_set(const smoe_params *params, int set, int param) {
  return set == 0 || smoe_params_slab(params, param)->learns;
}

static smoe_chunk *add_chunks(smoe_chunk *chunk, const smoe_params *params, int set, int p, size_t slot) {
  const smoe_slab *slab = smoe_params_slab(params, p);
  smoe_real *slice = set == 0 ? slab->value + slab->slice_first : set == 1 ? slab->m : slab->v;
  for (int j = 0; j < slab->n_local; j++) {
    const size_t copy = (size_t)smoe_slab_expert_number(slab, j);
    size_t begin, own;
    const size_t n = smoe_params_in_slice(params, p, j, &begin, &own);
    *chunk++ = (smoe_chunk){.set = set,
                            .param = p,
                            .slot = slot + copy,
                            .first = (int64_t)(copy * params->param[p].count + begin),
                            .begin = begin,
                            .n = n,
                            .values = slice + own};
  }
  return chunk;
}

smoe_chunk *smoe_chunks(const smoe_params *params, size_t *n, int *n_sets) {
  size_t most = 0;
  *n_sets = params->training ? SMOE_SETS : 1;
  for (int p = 0; p < params->n_params; p++)
    most += (size_t)*n_sets * (size_t)smoe_params_slab(params, p)->n_local;
  smoe_chunk *chunks = smoe_alloc(most * sizeof *chunks), *end = chunks;
  for (int set = 0; set < *n_sets; set++)
    for (int p = 0; p < params->n_params; p++)
      if (smoe_chunk_in_set(params, set, p))
        end = add_chunks(end, params, set, p, smoe_chunk_slot(params, set, p));
  *n = (size_t)(end - chunks);
  return chunks;
}

void smoe_chunk_checksums(uint64_t *sums, const smoe_chunk *chunk, size_t n) {
  for (size_t i = 0; i < n; i++)
    sums[chunk[i].slot] += smoe_checksum(chunk[i].values, chunk[i].begin, chunk[i].n);
}

const char *smoe_chunk_name(char *text, const char *folder, const smoe_param *param) {
  snprintf(text, SMOE_CHUNK_NAME, "%s/%s", folder, param->name);
  return text;
}

int smoe_chunk_shape(const smoe_params *params, int p, int64_t shape[SMOE_H5_DIMS]) {
  const smoe_param *param = &params->param[p];
  int n = 0;
  if (param->sharding == SMOE_EXPERT) shape[n++] = smoe_params_slab(params, p)->n_experts;
  for (int d = 0; d < param->n_dims; d++) shape[n++] = param->shape[d];
  return n;
}

smoe_status smoe_checkpoint_check(hid_t file) {
  char format[64], real[16];
  int64_t version;
  if (smoe_h5_get_text(file, "/", "format", format, sizeof format) != SMOE_OK ||
      strcmp(format, SMOE_CHECKPOINT_KIND) != 0)
    return SMOE_FAIL(SMOE_ERR_FORMAT,
                     "'%s' is not a StableMoE checkpoint: its attribute 'format' does not say so",
                     smoe_h5_path(file));
  SMOE_TRY(smoe_h5_get_i64(file, "/", "version", &version));
  SMOE_CHECK(version == SMOE_CHECKPOINT_FORMAT, SMOE_ERR_FORMAT,
             "'%s' has format version %lld, this program reads version %d", smoe_h5_path(file),
             (long long)version, SMOE_CHECKPOINT_FORMAT);
  SMOE_TRY(smoe_h5_get_text(file, "/meta", "real", real, sizeof real));
  SMOE_CHECK(strcmp(real, SMOE_REAL_NAME) == 0, SMOE_ERR_FORMAT,
             "'%s' holds real numbers of type %s, this build of the program reads %s", smoe_h5_path(file),
             real, SMOE_REAL_NAME);
  return SMOE_OK;
}

static smoe_status read_best(hid_t file, smoe_best *best) {
  int64_t metric;
  if (!smoe_h5_has_attribute(file, "/meta", "best_metric")) return SMOE_OK;
  SMOE_TRY(smoe_h5_get_i64(file, "/meta", "best_metric", &metric));
  SMOE_TRY(smoe_h5_get_i64(file, "/meta", "best_update", &best->update));
  SMOE_TRY(smoe_h5_get_i64(file, "/meta", "best_since", &best->n_since));
  SMOE_TRY(smoe_h5_get_f64(file, "/meta", "best_value", &best->value));
  SMOE_CHECK(metric == SMOE_BEST_LOSS || metric == SMOE_BEST_BLEU, SMOE_ERR_FORMAT,
             "'%s' names its best evaluation by a metric that this program does not know",
             smoe_h5_path(file));
  best->metric = (int)metric;
  return SMOE_OK;
}

smoe_status smoe_checkpoint_meta_of(hid_t file, smoe_checkpoint_meta *meta) {
  int64_t stage;
  *meta = (smoe_checkpoint_meta){0};
  SMOE_TRY(smoe_checkpoint_check(file));
  SMOE_TRY(smoe_h5_get_i64(file, "/meta", "update", &meta->update));
  SMOE_TRY(smoe_h5_get_i64(file, "/meta", "stage", &stage));
  meta->stage = (int)stage;
  SMOE_TRY(smoe_h5_get_u64(file, "/meta", "seed", &meta->seed));
  SMOE_TRY(smoe_h5_get_i64(file, "/meta", "tokens", &meta->n_tokens_seen));
  /* Files of earlier versions lack it. */
  if (smoe_h5_get_i64(file, "/meta", "sequences", &meta->n_sequences_seen) != SMOE_OK)
    meta->n_sequences_seen = -1;
  SMOE_TRY(smoe_h5_get_u64(file, "/meta", "fingerprint", &meta->fingerprint));
  SMOE_TRY(smoe_h5_get_text(file, "/meta", "corpus", meta->corpus, sizeof meta->corpus));
  /* Checkpoints of earlier versions have neither. */
  if (smoe_h5_has_attribute(file, "/meta", "tokenizer"))
    SMOE_TRY(smoe_h5_get_u64(file, "/meta", "tokenizer", &meta->tokenizer));
  if (smoe_h5_has_attribute(file, "/meta", "corpus_absolute"))
    SMOE_TRY(smoe_h5_get_text(file, "/meta", "corpus_absolute", meta->absolute, sizeof meta->absolute));
  SMOE_TRY(read_best(file, &meta->best));
  if (smoe_h5_has_attribute(file, "/meta", "averaged"))
    SMOE_TRY(smoe_h5_get_i64(file, "/meta", "averaged", &meta->n_averaged));
  return smoe_h5_read_document(file, "/meta/configuration", &meta->configuration);
}
