/* The keys of gates that skip sublayers, and where such gates are. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/skip.h"

#define KEY(member) offsetof(smoe_skip_options, member)

static const char *const whats[] = {"none", "attention", "ffn", "block", NULL};
static const char *const units[] = {"sequence", "token", NULL};
static const char *const means[] = {"running", "whole", NULL};
static const char *const rules[] = {"full", "active", "masked", NULL};
static const char *const choices[] = {"gate", "random", "always", NULL};

static const smoe_key keys[] = {
    {"model.skip.what", SMOE_KEY_CHOICE, KEY(what), "none", 0, 0, whats, "",
     "Sublayers that a gate may skip: attention, feed-forward, or both of a block at once."},
    {"model.skip.layers", SMOE_KEY_INT, KEY(layers), "0", 0, 1000, NULL, "blocks",
     "Blocks with such a gate: the deepest ones but the last; 0: half of model.blocks."},
    {"model.skip.unit", SMOE_KEY_CHOICE, KEY(unit), "sequence", 0, 0, units, "",
     "What the gate looks at: the mean over the sequence, or each token alone."},
    {"model.skip.mean", SMOE_KEY_CHOICE, KEY(mean), "running", 0, 0, means, "",
     "That mean: over the tokens so far, so that every token has its own decision; or over the whole "
     "sequence, one decision that looks at later tokens (in generation: over the prompt)."},
    {"model.skip.gradient", SMOE_KEY_CHOICE, KEY(gradient), "full", 0, 0, rules, "",
     "Who gives the gate the task's gradient: all; those that ran (active); those that ran, and nobody where "
     "all of the batch did (masked)."},
    {"model.skip.target", SMOE_KEY_REAL, KEY(target), "0.5", 0, 1, NULL, "",
     "Share of a gated sublayer's decisions up to which running costs nothing."},
    {"model.skip.weight", SMOE_KEY_REAL, KEY(weight), "0.01", 0, INFINITY, NULL, "",
     "Weight of the loss on the share above the target."},
    {"model.skip.choice", SMOE_KEY_CHOICE, KEY(choice), "gate", 0, 0, choices, "",
     "Who decides: the gate; chance, skipping model.skip.share; or all skip (always). The last two are for "
     "comparison."},
    {"model.skip.share", SMOE_KEY_REAL, KEY(share), "0.5", 0, 1, NULL, "",
     "Share that skips at random, with model.skip.choice: random."},
};

const smoe_keyset smoe_skip_keys = {keys, sizeof keys / sizeof *keys, sizeof(smoe_skip_options)};

static int64_t n_gated(const smoe_config *config) {
  const smoe_skip_options *options = smoe_config_options(config, &smoe_skip_keys);
  return options->layers ? options->layers : smoe_config_settings(config)->model.blocks / 2;
}

smoe_skip_kind smoe_skip_of(const smoe_config *config, int b) {
  const smoe_skip_options *options = smoe_config_options(config, &smoe_skip_keys);
  const int64_t last = smoe_config_settings(config)->model.blocks - 1;
  return b >= last - n_gated(config) && b < last ? (smoe_skip_kind)options->what : SMOE_SKIP_NOTHING;
}

smoe_status smoe_skip_check(const smoe_config *config) {
  const smoe_skip_options *options = smoe_config_options(config, &smoe_skip_keys);
  const int64_t blocks = smoe_config_settings(config)->model.blocks;
  if (options->what == SMOE_SKIP_NOTHING) return SMOE_OK;
  const char *family = smoe_config_settings(config)->model.family;
  SMOE_CHECK(strcmp(family, "stablemoe") == 0 || strcmp(family, "decoder") == 0, SMOE_ERR_CONFIG,
             "model.skip.what: family '%s' has no gates; stablemoe and decoder have", family);
  SMOE_CHECK(n_gated(config) >= 1 && n_gated(config) < blocks, SMOE_ERR_CONFIG,
             "model.skip.layers %lld: gates are on the deepest blocks but the last, of which model.blocks "
             "%lld leaves %lld",
             (long long)options->layers, (long long)blocks, (long long)blocks - 1);
  return SMOE_OK;
}

void smoe_skip_wrap(smoe_layer_spec *spec, smoe_skip_kind kind, int b) {
  spec->ops = &smoe_layer_skip;
  spec->skip = kind;
  if (kind == SMOE_SKIP_BLOCK) snprintf(spec->name, sizeof spec->name, "block%d", b);
}
