#include "config_table.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static int64_t at_least(int64_t least, int64_t value) {
  return value > least ? value : least;
}

/* Idempotent: what used.yml repeats is resolved already. */
static void resolve_keys(smoe_settings *s) {
  if (s->model.inner == 0) s->model.inner = 4 * s->model.width;
  if (s->moe.inner == 0) s->moe.inner = 4 * s->model.width;
  if (s->router.stage1_updates < 0)
    s->router.stage1_updates = at_least(s->train.updates > 1 ? 1 : 0, s->train.updates / 10);
  if (s->log.probe_every < 0) s->log.probe_every = at_least(1, s->train.updates / 120);
}

static void resolve_defaults(smoe_config *config) {
  smoe_settings *now = config->values[0];
  const smoe_settings before = *now;
  resolve_keys(now);
  for (size_t i = 0; i < config->n_entries; i++) {
    const smoe_config_entry *entry = &config->entries[i];
    if (entry->value != (char *)now + entry->key->offset) continue; /* of another key set */
    if (memcmp((const char *)&before + entry->key->offset, entry->value,
               smoe_config_value_bytes(entry->key->kind)) != 0)
      config->derived[i] = true;
  }
}

smoe_status smoe_config_stored(const smoe_config *like, const char *text, const char *origin,
                               smoe_config **stored) {
  *stored = smoe_config_create(like->sets, like->n_sets);
  const smoe_status status = smoe_config_parse(*stored, text, origin);
  if (status == SMOE_OK) {
    resolve_defaults(*stored);
    return SMOE_OK;
  }
  smoe_config_destroy(*stored);
  *stored = NULL;
  return status;
}

void smoe_config_keep_derived(smoe_config *config, const smoe_config *stored) {
  for (size_t i = 0; i < config->n_entries; i++)
    if (config->derived[i])
      memcpy(config->entries[i].value, stored->entries[i].value,
             smoe_config_value_bytes(config->entries[i].key->kind));
}

static smoe_status check_batch(const smoe_settings *s) {
  const int64_t batch = s->train.batch_sequences, parts = s->train.lanes * s->train.micro_batches;
  const int64_t nearest = at_least(1, (batch + parts / 2) / parts) * parts;
  SMOE_CHECK(batch % parts == 0, SMOE_ERR_CONFIG,
             "train.batch_sequences %" PRId64 " cannot be cut into train.lanes %" PRId64
             " times train.micro_batches %" PRId64 " equal parts; the nearest that can is %" PRId64,
             batch, s->train.lanes, s->train.micro_batches, nearest);
  return SMOE_OK;
}

/* Scattered layer i stands after block ((i + 1) L) / (M + 1): these differ for all M <= L, since M < L
 * makes the steps 1 or more before rounding, and M = L gives 0, 1, ..., L - 1. */
static smoe_status check_places(const smoe_settings *s) {
  const int64_t layers = s->moe.layers;
  SMOE_CHECK(s->moe.position == SMOE_SCATTERED || layers <= 1, SMOE_ERR_CONFIG,
             "moe.layers is %" PRId64 ", but only moe.position scattered takes more than one", layers);
  SMOE_CHECK(layers <= s->model.blocks || layers <= 1, SMOE_ERR_CONFIG,
             "moe.layers %" PRId64 " do not fit between model.blocks %" PRId64
             ": at most as many MoE layers as "
             "blocks",
             layers, s->model.blocks);
  return SMOE_OK;
}

smoe_status smoe_config_resolve(smoe_config *config) {
  smoe_settings *s = config->values[0];
  resolve_defaults(config);
  SMOE_CHECK(s->model.width % s->model.heads == 0, SMOE_ERR_CONFIG,
             "model.heads %" PRId64 " does not divide model.width %" PRId64, s->model.heads, s->model.width);
  SMOE_TRY(check_batch(s));
  SMOE_CHECK(s->train.evaluate_every > 0 || (s->train.patience == 0 && !s->train.best), SMOE_ERR_CONFIG,
             "train.%s needs evaluations during the training: set train.evaluate_every",
             s->train.patience > 0 ? "patience" : "best");
  SMOE_CHECK(
      s->train.patience_metric != SMOE_PATIENCE_BLEU || strcmp(s->model.family, "translation") == 0,
      SMOE_ERR_CONFIG,
      "train.patience_metric bleu needs translations, and model.family is '%s': leave it at loss, or set "
      "model.family to translation",
      s->model.family);
  SMOE_TRY(check_places(s));
  SMOE_CHECK(s->train.lanes % s->moe.nodes == 0, SMOE_ERR_CONFIG,
             "moe.nodes %" PRId64 " does not divide train.lanes %" PRId64
             ": every node needs the same number of lanes",
             s->moe.nodes, s->train.lanes);
  SMOE_CHECK(s->schedule.warmup <= s->train.updates, SMOE_ERR_CONFIG,
             "schedule.warmup %" PRId64 " is longer than train.updates %" PRId64
             ": lower the one or raise the other",
             s->schedule.warmup, s->train.updates);
  return SMOE_OK;
}
