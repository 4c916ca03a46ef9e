#include "config_table.h"

#include <string.h>

#include "stablemoe/arena.h"

size_t smoe_config_section_length(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot ? (size_t)(dot - name) : 0;
}

const smoe_config_entry *smoe_config_find(const smoe_config *config, const char *name) {
  for (size_t i = 0; i < config->n_entries; i++)
    if (strcmp(config->entries[i].key->name, name) == 0) return &config->entries[i];
  return NULL;
}

bool smoe_config_is_section(const smoe_config *config, const char *name) {
  const size_t length = strlen(name);
  for (size_t i = 0; i < config->n_entries; i++) {
    const char *key = config->entries[i].key->name;
    if (strncmp(key, name, length) == 0 && key[length] == '.') return true;
  }
  return false;
}

/* Append the keys below a section: its own first, then one subsection after the other. */
static size_t order_keys(smoe_config_entry *out, size_t n_out, const smoe_config_entry *all, size_t n_all,
                         const char *section, size_t length) {
  const size_t skip = length ? length + 1 : 0;
  for (int subsections = 0; subsections < 2; subsections++)
    for (size_t i = 0; i < n_all; i++) {
      const char *name = all[i].key->name;
      if (length && (strncmp(name, section, length) != 0 || name[length] != '.')) continue;
      const char *dot = strchr(name + skip, '.');
      if (!dot && !subsections) out[n_out++] = all[i];
      if (!dot || !subsections) continue;
      /* Keys of a subsection that came before have taken this one along. */
      const size_t sub = (size_t)(dot - name);
      bool seen = false;
      for (size_t j = 0; j < i && !seen; j++) seen = strncmp(all[j].key->name, name, sub + 1) == 0;
      if (!seen) n_out = order_keys(out, n_out, all, n_all, name, sub);
    }
  return n_out;
}

static void check_names(const smoe_config_entry *all, size_t n) {
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < n; j++) {
      const char *a = all[i].key->name, *b = all[j].key->name;
      const size_t length = strlen(a);
      if (i != j && strncmp(a, b, length) == 0 && (b[length] == '\0' || b[length] == '.'))
        SMOE_PANIC(SMOE_ERR_BUG, "the configuration has two keys '%s' and '%s'", a, b);
    }
}

static void set_default(const smoe_config_entry *entry) {
  const smoe_config_scalar def = {entry->key->def, strlen(entry->key->def), smoe_config_is_text(entry->key)};
  if (smoe_config_set(entry, &def, "default") != SMOE_OK) SMOE_PANIC(SMOE_ERR_BUG, "%s", smoe_last_error());
}

smoe_config *smoe_config_create(const smoe_keyset *const *sets, size_t n_sets) {
  if (n_sets == 0 || sets[0] != &smoe_settings_keys)
    SMOE_PANIC(SMOE_ERR_BUG, "the first key set of a configuration must be smoe_settings_keys");
  smoe_config *config = smoe_alloc(sizeof *config);
  config->n_sets = n_sets;
  config->sets = smoe_alloc(n_sets * sizeof *config->sets);
  config->values = smoe_alloc(n_sets * sizeof *config->values);
  config->standards = smoe_alloc(n_sets * sizeof *config->standards);
  for (size_t s = 0; s < n_sets; s++) config->n_entries += sets[s]->n_keys;

  smoe_config_entry *all = smoe_alloc(config->n_entries * sizeof *all);
  size_t n = 0;
  for (size_t s = 0; s < n_sets; s++) {
    config->sets[s] = sets[s];
    config->values[s] = smoe_alloc(sets[s]->struct_bytes);
    config->standards[s] = smoe_alloc(sets[s]->struct_bytes);
    for (size_t k = 0; k < sets[s]->n_keys; k++) {
      const smoe_key *key = &sets[s]->keys[k];
      if (key->offset + smoe_config_value_bytes(key->kind) > sets[s]->struct_bytes)
        SMOE_PANIC(SMOE_ERR_BUG, "key '%s' lies outside of its struct", key->name);
      all[n] = (smoe_config_entry){key, (char *)config->values[s] + key->offset,
                                   (char *)config->standards[s] + key->offset};
      set_default(&all[n++]);
    }
    memcpy(config->standards[s], config->values[s], sets[s]->struct_bytes);
  }
  check_names(all, n);
  config->entries = smoe_alloc(n * sizeof *config->entries);
  if (order_keys(config->entries, 0, all, n, "", 0) != n)
    SMOE_PANIC(SMOE_ERR_BUG, "a key of the configuration has no place");
  smoe_free(all);
  config->derived = smoe_alloc(n * sizeof *config->derived);
  return config;
}

void smoe_config_destroy(smoe_config *config) {
  if (!config) return;
  for (size_t s = 0; s < config->n_sets; s++) {
    smoe_free(config->values[s]);
    smoe_free(config->standards[s]);
  }
  smoe_free(config->sets);
  smoe_free(config->values);
  smoe_free(config->standards);
  smoe_free(config->entries);
  smoe_free(config->derived);
  smoe_free(config);
}

smoe_status smoe_config_override(smoe_config *config, const char *assignment) {
  const char *equals = strchr(assignment, '=');
  SMOE_CHECK(equals && equals > assignment, SMOE_ERR_CONFIG,
             "option -P: section.key=value expected, not '%s'", assignment);
  char *name = smoe_sprintf("%.*s", (int)(equals - assignment), assignment);
  const smoe_config_entry *entry = smoe_config_find(config, name);
  const smoe_config_scalar value = {equals + 1, strlen(equals + 1), false};
  smoe_status status;
  if (entry && smoe_config_is_text(entry->key)) {
    /* The shell took the quotes away: an empty or odd text is meant as it stands. */
    const smoe_config_scalar text = {value.text, value.bytes, true};
    status = smoe_config_set(entry, &text, "option -P");
  } else if (entry) {
    status = smoe_config_set(entry, &value, "option -P");
  } else if (smoe_config_is_section(config, name)) {
    status = SMOE_FAIL(SMOE_ERR_CONFIG,
                       "option -P: %s is a section: name one of its keys, as in %s.key=value", name, name);
  } else {
    status = smoe_config_unknown(config, name, false, "option -P");
  }
  smoe_free(name);
  return status;
}

/* A refusal that names the keys that can be set. */
static smoe_status refuse_adjustment(const smoe_config *config, const char *name) {
  char *names = smoe_strdup("");
  for (size_t i = 0; i < config->n_entries; i++) {
    const smoe_key *key = config->entries[i].key;
    if (!key->adjustable) continue;
    char *longer = smoe_sprintf("%s%s%s", names, names[0] ? ", " : "", key->name);
    smoe_free(names);
    names = longer;
  }
  const smoe_status status =
      SMOE_FAIL(SMOE_ERR_CONFIG,
                "option -P: %s is what the model was trained with; of a trained model these can be set: %s",
                name, names);
  smoe_free(names);
  return status;
}

smoe_status smoe_config_adjust(smoe_config *config, const char *assignment) {
  const char *equals = strchr(assignment, '=');
  char *name = equals ? smoe_sprintf("%.*s", (int)(equals - assignment), assignment) : smoe_strdup("");
  const smoe_config_entry *entry = smoe_config_find(config, name);
  const smoe_status status = entry && !entry->key->adjustable ? refuse_adjustment(config, name)
                                                              : smoe_config_override(config, assignment);
  smoe_free(name);
  return status;
}

const smoe_settings *smoe_config_settings(const smoe_config *config) {
  return config->values[0];
}

const void *smoe_config_options(const smoe_config *config, const smoe_keyset *set) {
  for (size_t s = 0; s < config->n_sets; s++)
    if (config->sets[s] == set) return config->values[s];
  SMOE_PANIC(SMOE_ERR_BUG, "the configuration was made without a key set that is asked for");
}
