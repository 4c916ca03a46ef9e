#include "config_table.h"

#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"

enum { COLUMNS = 100 };

/* A FILE that writes into memory, and the text when all is written. */
typedef struct memory_text {
  FILE *out;
  char *text;
  size_t bytes;
} memory_text;

static void text_open(memory_text *memory) {
  memory->out = open_memstream(&memory->text, &memory->bytes);
  if (!memory->out) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory to write the configuration");
}

/* In memory of smoe_alloc. */
static char *text_close(memory_text *memory) {
  if (fclose(memory->out) != 0) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory to write the configuration");
  char *text = smoe_strdup(memory->text);
  free(memory->text);
  return text;
}

/* Write words from the present column on; further lines begin with the mark, indented.
 * A range in brackets, which ends a text, stays on one line where it fits on one. */
static void wrap(FILE *out, const char *words, int indent, const char *mark) {
  const size_t left = (size_t)indent + strlen(mark);
  size_t column = left;
  for (const char *word = words; *word;) {
    const size_t rest = strlen(word);
    const size_t length = word[0] == '[' && left + rest <= COLUMNS ? rest : strcspn(word, " ");
    if (column > left && column + 1 + length > COLUMNS) {
      fprintf(out, "\n%*s%s", indent, "", mark);
      column = left;
    }
    fprintf(out, "%s%.*s", column > left ? " " : "", (int)length, word);
    column += length + (column > left);
    word += length;
    word += strspn(word, " ");
  }
  fputc('\n', out);
}

/* Help and range of a key; its default too where the value is another. In memory of smoe_alloc. */
static char *describe(const smoe_key *key, const void *value, const void *standard) {
  memory_text memory;
  text_open(&memory);
  FILE *out = memory.out;
  const bool range = !smoe_config_is_text(key) && key->kind != SMOE_KEY_LIST;
  const bool changed = memcmp(value, standard, smoe_config_value_bytes(key->kind)) != 0;
  fprintf(out, "%s%s", key->help, range || changed ? " [" : "");
  smoe_config_print_range(out, key);
  if (changed) {
    fputs(range ? "; default " : "default ", out);
    smoe_config_print_value(out, key, standard);
  }
  if (range || changed) fputc(']', out);
  return text_close(&memory);
}

/* Headings of the sections that begin at this key: "router:", below it "stable:". Returns the depth. */
static int print_headings(FILE *out, const char *name, const char *before, bool commented) {
  int depth = 0;
  for (const char *dot = strchr(name, '.'); dot; dot = strchr(dot + 1, '.'), depth++) {
    const size_t length = (size_t)(dot - name);
    if (before && strncmp(before, name, length + 1) == 0) continue;
    if (commented) {
      char *title = smoe_config_section_title(name, length);
      fputc('\n', out);
      if (title[0]) {
        fprintf(out, "%*s# ", 2 * depth, "");
        wrap(out, title, 2 * depth, "# ");
      }
      smoe_free(title);
    }
    const char *start = dot;
    while (start > name && start[-1] != '.') start--;
    fprintf(out, "%*s%.*s:\n", 2 * depth, "", (int)(dot - start), start);
  }
  return depth;
}

char *smoe_config_text(const smoe_config *config, bool commented) {
  memory_text memory;
  text_open(&memory);
  FILE *out = memory.out;
  if (commented)
    fputs("# Configuration of StableMoE: every key. A file needs only what differs from the defaults;\n"
          "# -P section.key=value on the command line overrides a file. In paths, ~ and $VARIABLE are "
          "expanded;\n"
          "# $$ is a dollar sign.\n",
          out);
  const char *before = NULL;
  for (size_t i = 0; i < config->n_entries; i++) {
    const smoe_config_entry *entry = &config->entries[i];
    const char *name = entry->key->name;
    const size_t section = smoe_config_section_length(name);
    const int indent = 2 * print_headings(out, name, before, commented);
    if (commented) {
      char *description = describe(entry->key, entry->value, entry->standard);
      fprintf(out, "%*s# ", indent, "");
      wrap(out, description, indent, "# ");
      smoe_free(description);
    }
    fprintf(out, "%*s%s: ", indent, "", name + section + (section > 0));
    smoe_config_print_value(out, entry->key, entry->value);
    fputc('\n', out);
    before = name;
  }
  return text_close(&memory);
}

smoe_status smoe_config_changes(const smoe_config *config, const char *text, const char *origin,
                                char **changes) {
  smoe_config *before = smoe_config_create(config->sets, config->n_sets);
  const smoe_status status = smoe_config_parse(before, text, origin);
  memory_text memory;
  text_open(&memory);
  for (size_t i = 0; i < config->n_entries && status == SMOE_OK; i++) {
    const smoe_config_entry *now = &config->entries[i], *then = &before->entries[i];
    if (memcmp(now->value, then->value, smoe_config_value_bytes(now->key->kind)) == 0) continue;
    fprintf(memory.out, "%s: ", now->key->name);
    smoe_config_print_value(memory.out, now->key, then->value);
    fputs(" -> ", memory.out);
    smoe_config_print_value(memory.out, now->key, now->value);
    fputc('\n', memory.out);
  }
  *changes = text_close(&memory);
  smoe_config_destroy(before);
  return status;
}

static int larger(int a, size_t b) {
  return a > (int)b ? a : (int)b;
}

static const char *shown_default(const smoe_key *key) {
  return key->kind == SMOE_KEY_LIST && !key->def[0] ? "[]" : key->def[0] ? key->def : "\"\"";
}

void smoe_config_help(const smoe_config *config, FILE *out) {
  int name_columns = 0, default_columns = 0;
  for (size_t i = 0; i < config->n_entries; i++) {
    const smoe_key *key = config->entries[i].key;
    const size_t section = smoe_config_section_length(key->name);
    name_columns = larger(name_columns, strlen(key->name + section + (section > 0)));
    default_columns = larger(default_columns, strlen(shown_default(key)));
  }
  const char *before = "";
  size_t before_length = 0;
  for (size_t i = 0; i < config->n_entries; i++) {
    const smoe_key *key = config->entries[i].key;
    const size_t section = smoe_config_section_length(key->name);
    if (i == 0 || section != before_length || strncmp(before, key->name, section) != 0) {
      char *title = smoe_config_section_title(key->name, section);
      fprintf(out, "%s%.*s%s%s\n", i ? "\n" : "", (int)section, key->name, title[0] ? ": " : "", title);
      smoe_free(title);
    }
    before = key->name;
    before_length = section;
    fprintf(out, "  %-*s  %-*s  ", name_columns, key->name + section + (section > 0), default_columns,
            shown_default(key));
    const void *standard = config->entries[i].standard;
    char *description = describe(key, standard, standard);
    wrap(out, description, 2 + name_columns + 2 + default_columns + 2, "");
    smoe_free(description);
  }
}
