#include "resume.h"

#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"

/* Routing that stage 2 froze stays frozen: the checkpoint holds what stage 1 learned, and the optimizer has passed
 * it over since. */
static void keep_stage2(smoe_config *config, const smoe_config *stored, const char *path,
                        const smoe_checkpoint_meta *meta) {
  const int64_t now = smoe_config_settings(config)->router.stage1_updates;
  const int64_t began = stored ? smoe_config_settings(stored)->router.stage1_updates : meta->update;
  if (meta->stage != 2 || now <= meta->update || began > meta->update) return;
  /* A run that ended with stage 1 has frozen nothing yet. */
  if (stored && began == meta->update) return;
  smoe_warn(
      "router.stage1_updates = %lld is not taken: stage 2 of '%s' began at update %lld, and what it froze "
      "stays frozen",
      (long long)now, path, (long long)began);
  char *assignment = smoe_sprintf("router.stage1_updates=%lld", (long long)began);
  if (smoe_config_override(config, assignment) != SMOE_OK) SMOE_PANIC(SMOE_ERR_BUG, "%s", smoe_last_error());
  smoe_free(assignment);
}

/* A resumed run may be configured otherwise; what follows from that should not come as a surprise. */
static void print_changes(const smoe_config *config, const char *path, const smoe_checkpoint_meta *meta) {
  char *changes = NULL;
  if (smoe_config_changes(config, meta->configuration, path, &changes) != SMOE_OK)
    smoe_warn("the configuration in '%s' is of another version: %s", path, smoe_last_error());
  for (char *line = changes; line && *line;) {
    char *end = strchr(line, '\n');
    *end = '\0';
    /* Where the files are does not change what is computed. */
    if (strncmp(line, "run.directory:", 14) != 0) smoe_warn("other than in '%s': %s", path, line);
    line = end + 1;
  }
  smoe_free(changes);
}

void smoe_resume_settle(smoe_config *config, const char *path, smoe_checkpoint_meta *meta) {
  smoe_config *stored = NULL;
  if (smoe_config_stored(config, meta->configuration, path, &stored) == SMOE_OK)
    smoe_config_keep_derived(config, stored);
  keep_stage2(config, stored, path, meta);
  /* Files of earlier versions have tokens only; the context is that of the position table, and stays. */
  if (meta->n_sequences_seen < 0)
    meta->n_sequences_seen = meta->n_tokens_seen / smoe_config_settings(config)->model.context;
  smoe_config_destroy(stored);
  print_changes(config, path, meta);
}
