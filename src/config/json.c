#include "stablemoe/json.h"

#include <string.h>

#include "config_table.h"

static void print_list(FILE *out, const char *list) {
  fputc('[', out);
  char text[SMOE_TEXT_MAX];
  for (const char *rest = list; *rest;) {
    if (rest > list) fputs(", ", out);
    rest = smoe_config_next(rest, text);
    smoe_json_text(out, text);
  }
  fputc(']', out);
}

static void print_value(FILE *out, const smoe_key *key, const void *value) {
  switch (key->kind) {
  case SMOE_KEY_INT:
    fprintf(out, "%lld", (long long)*(const int64_t *)value);
    break;
  case SMOE_KEY_REAL:
    smoe_json_real(out, *(const double *)value, 17);
    break;
  case SMOE_KEY_BOOL:
    fputs(*(const bool *)value ? "true" : "false", out);
    break;
  case SMOE_KEY_TEXT:
  case SMOE_KEY_PATH:
    smoe_json_text(out, value);
    break;
  case SMOE_KEY_LIST:
    print_list(out, value);
    break;
  case SMOE_KEY_CHOICE:
    smoe_json_text(out, key->choices[*(const int *)value]);
    break;
  }
}

void smoe_config_json(const smoe_config *config, FILE *out) {
  fputc('{', out);
  for (size_t i = 0; i < config->n_entries; i++) {
    fputs(i ? ",\n  " : "\n  ", out);
    smoe_json_text(out, config->entries[i].key->name);
    fputs(": ", out);
    print_value(out, config->entries[i].key, config->entries[i].value);
  }
  fputs("}", out);
}
