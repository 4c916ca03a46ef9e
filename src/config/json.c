#include "stablemoe/json.h"

#include "config_table.h"

static void write_list(smoe_json *json, const char *key, const char *list) {
  char text[SMOE_TEXT_MAX];
  smoe_json_array(json, key);
  for (const char *rest = list; *rest;) {
    rest = smoe_config_next(rest, text);
    smoe_json_text(json, NULL, text);
  }
  smoe_json_end(json);
}

static void write_value(smoe_json *json, const smoe_key *key, const void *value) {
  switch (key->kind) {
  case SMOE_KEY_INT:
    smoe_json_int(json, key->name, *(const int64_t *)value);
    break;
  case SMOE_KEY_REAL:
    smoe_json_real(json, key->name, *(const double *)value, 17);
    break;
  case SMOE_KEY_BOOL:
    smoe_json_bool(json, key->name, *(const bool *)value);
    break;
  case SMOE_KEY_TEXT:
  case SMOE_KEY_PATH:
    smoe_json_text(json, key->name, value);
    break;
  case SMOE_KEY_LIST:
    write_list(json, key->name, value);
    break;
  case SMOE_KEY_CHOICE:
    smoe_json_text(json, key->name, key->choices[*(const int *)value]);
    break;
  }
}

void smoe_config_json(const smoe_config *config, smoe_json *json, const char *key) {
  smoe_json_object(json, key);
  for (size_t i = 0; i < config->n_entries; i++)
    write_value(json, config->entries[i].key, config->entries[i].value);
  smoe_json_end(json);
}
