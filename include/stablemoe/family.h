/** Families of models: each is a function that appends layers to a list.
 *
 *  Adding a family: write src/model/family_<name>.c and add its table to the array in src/model/family.c.
 */
#ifndef STABLEMOE_FAMILY_H
#define STABLEMOE_FAMILY_H

#include "stablemoe/layer.h"

/** Layers in order of the pass. */
typedef struct smoe_layer_list {
  smoe_layer_spec *spec; /**< [n] in memory of smoe_alloc */
  int n;
  size_t patch; /**< images: numbers of a patch */
} smoe_layer_list;

/** A family. All functions are Local. */
typedef struct smoe_family {
  const char *name;          /**< as in model.family */
  const char *title;         /**< one line for --help */
  const char *task;          /**< what it learns (task.h) */
  const smoe_keyset *keyset; /**< its own keys; NULL: none */

  /** Check the family's keys against the others; NULL: nothing to check. */
  smoe_status (*check)(const smoe_config *config);

  /** MoE layers of such a model. */
  int (*n_moe)(const smoe_config *config);

  /** Append the layers. */
  void (*describe)(const smoe_config *config, int vocabulary, smoe_layer_list *list);
} smoe_family;

/** All families, NULL-terminated. */
extern const smoe_family *const smoe_families[];

/** The family of a configuration; NULL: model.family names none. Local. */
const smoe_family *smoe_family_of(const smoe_config *config);

/** MoE layers of a configured model; 0: dense. Local. */
int smoe_family_n_moe(const smoe_config *config);

/** Copies of each sequence in a training pass, 1 or 2, and the weight of the divergence between both: as the routing
 *  method has them (router.h). Local.
 */
int smoe_family_copies(const smoe_config *config, double *consistency);

/** Rows of the main stream in an update over all ranks, at most; copies count. Local. */
int64_t smoe_family_batch_tokens(const smoe_config *config);

/** Key sets of the trainer, of all routing methods and of all families, for smoe_config_create. Local.
 *  Returns their number; sets may be NULL to only count.
 */
size_t smoe_model_keysets(const smoe_keyset **sets);

/** Check model.family, router.method and their own keys. Local. Errors: SMOE_ERR_CONFIG. */
smoe_status smoe_model_check(const smoe_config *config);

/** Values of the keys model.translation.*. */
typedef struct smoe_translation_options {
  double dropout, label_smoothing, temperature;
} smoe_translation_options;

/** Those of a configuration. Local. */
const smoe_translation_options *smoe_translation_settings(const smoe_config *config);

/** Append a layer; returns its spec, to be changed before the next call. Local. */
smoe_layer_spec *smoe_layer_list_add(smoe_layer_list *list, const smoe_layer_spec *spec);

#endif
