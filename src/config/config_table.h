/** Inside of the configuration: what its source files share. */
#ifndef STABLEMOE_CONFIG_TABLE_H
#define STABLEMOE_CONFIG_TABLE_H

#include "stablemoe/config.h"

/** A key and where its value is. */
typedef struct smoe_config_entry {
  const smoe_key *key;
  void *value;          /**< in the struct of its key set */
  const void *standard; /**< the default, in the same form */
} smoe_config_entry;

struct smoe_config {
  const smoe_keyset **sets; /**< [n_sets] */
  void **values;            /**< [n_sets] the structs */
  void **standards;         /**< [n_sets] the structs of defaults, never changed */
  size_t n_sets;
  /** Every key in the order of writing: sections together, in each the keys before the subsections. */
  smoe_config_entry *entries;
  size_t n_entries;
  bool *derived; /**< [n_entries] nobody set it: smoe_config_resolve computed it from other keys */
};

/** A value as somebody wrote it. */
typedef struct smoe_config_scalar {
  const char *text; /**< NUL-terminated at text[bytes] */
  size_t bytes;     /**< may be more than strlen(text): YAML can write a NUL */
  bool quoted;
} smoe_config_scalar;

/** Set a value from its text. Local.
 *
 *  where  in  begins the report: "a.yml:3"
 *  Errors:    SMOE_ERR_CONFIG for a wrong type, a value out of range, a text that cannot be kept.
 */
smoe_status smoe_config_set(const smoe_config_entry *entry, const smoe_config_scalar *scalar,
                            const char *where);

/** Expand what a shell would in a path: $NAME and ${NAME}, then a leading ~; $$ is a dollar sign. Local.
 *
 *  path   out  [SMOE_TEXT_MAX] NUL-terminated; without meaning where *bytes is too large
 *  bytes  out  length of the path, SMOE_TEXT_MAX or more where it does not fit
 *  Errors:     SMOE_ERR_CONFIG for a variable that is not set or empty, and the home of another user.
 */
smoe_status smoe_config_expand(char *path, size_t *bytes, const char *text, const char *where);

/** Whether values are text: SMOE_KEY_TEXT or SMOE_KEY_PATH. Local. */
bool smoe_config_is_text(const smoe_key *key);

/** Write a value as YAML, so that reading gives the same bits. Local. */
void smoe_config_print_value(FILE *out, const smoe_key *key, const void *value);

/** Write what a key allows, with its unit: "1 to 100 updates", "true or false". Local.
 *  Writes nothing for a text.
 */
void smoe_config_print_range(FILE *out, const smoe_key *key);

/** "an integer", "a number", ... Local. */
const char *smoe_config_kind_name(smoe_key_kind kind);

/** Bytes of a value. Local. */
size_t smoe_config_value_bytes(smoe_key_kind kind);

/** The entry of that dotted name; NULL where there is none. Local. */
const smoe_config_entry *smoe_config_find(const smoe_config *config, const char *name);

/** Whether keys begin with "<name>.". Local. */
bool smoe_config_is_section(const smoe_config *config, const char *name);

/** Length of the section's name in a key's name: 6 for "router.method". Local. */
size_t smoe_config_section_length(const char *name);

/** Report an unknown key, or section, with the nearest there is. Local. */
smoe_status smoe_config_unknown(const smoe_config *config, const char *name, bool section, const char *where);

/** One sentence on a section, in memory of smoe_alloc. Local. */
char *smoe_config_section_title(const char *section, size_t length);

#endif
