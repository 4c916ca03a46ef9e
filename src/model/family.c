#include "stablemoe/family.h"

#include <string.h>

#include "stablemoe/router.h"
#include "stablemoe/skip.h"

extern const smoe_family smoe_family_stablemoe;
extern const smoe_family smoe_family_decoder;
extern const smoe_family smoe_family_translation;
extern const smoe_family smoe_family_cnn;
extern const smoe_family smoe_family_vision;

const smoe_family *const smoe_families[] = {
    &smoe_family_stablemoe, &smoe_family_decoder, &smoe_family_translation,
    &smoe_family_cnn,       &smoe_family_vision,  NULL,
};

const smoe_family *smoe_family_of(const smoe_config *config) {
  const char *name = smoe_config_settings(config)->model.family;
  for (size_t i = 0; smoe_families[i]; i++)
    if (strcmp(smoe_families[i]->name, name) == 0) return smoe_families[i];
  return NULL;
}

int smoe_family_n_moe(const smoe_config *config) {
  const smoe_family *family = smoe_family_of(config);
  return family ? family->n_moe(config) : 0;
}

int smoe_family_copies(const smoe_config *config, double *consistency) {
  const smoe_router_ops *ops = smoe_router_find(smoe_config_settings(config)->router.method);
  *consistency = 0;
  return ops && ops->copies && smoe_family_n_moe(config) > 0 ? ops->copies(config, consistency) : 1;
}

int64_t smoe_family_batch_tokens(const smoe_config *config) {
  const smoe_settings *settings = smoe_config_settings(config);
  const bool translation = strcmp(smoe_family_of(config)->task, "translation") == 0;
  double consistency;
  return smoe_family_copies(config, &consistency) *
         (translation ? settings->train.batch_tokens
                      : settings->train.batch_sequences * settings->model.context);
}

size_t smoe_model_keysets(const smoe_keyset **sets) {
  size_t n = smoe_router_keysets(sets);
  if (sets) sets[n] = &smoe_skip_keys;
  n++;
  for (size_t i = 0; smoe_families[i]; i++) {
    if (!smoe_families[i]->keyset) continue;
    if (sets) sets[n] = smoe_families[i]->keyset;
    n++;
  }
  return n;
}

smoe_status smoe_model_check(const smoe_config *config) {
  const smoe_family *family = smoe_family_of(config);
  if (!family) {
    char names[512] = "";
    for (size_t i = 0; smoe_families[i]; i++) {
      if (i) strncat(names, ", ", sizeof names - strlen(names) - 1);
      strncat(names, smoe_families[i]->name, sizeof names - strlen(names) - 1);
    }
    return SMOE_FAIL(SMOE_ERR_CONFIG, "model.family is '%s'; the families are: %s",
                     smoe_config_settings(config)->model.family, names);
  }
  if (family->check) SMOE_TRY(family->check(config));
  SMOE_TRY(smoe_skip_check(config));
  return smoe_router_check(config);
}

smoe_layer_spec *smoe_layer_list_add(smoe_layer_list *list, const smoe_layer_spec *spec) {
  list->spec = smoe_realloc(list->spec, (size_t)(list->n + 1) * sizeof *list->spec);
  list->spec[list->n] = *spec;
  return &list->spec[list->n++];
}
