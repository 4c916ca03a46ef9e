#include "config_table.h"

#include <errno.h>
#include <string.h>
#include <yaml.h>

#include "stablemoe/arena.h"

/* libyaml knows the syntax, the table of keys the meaning. What YAML can say beyond sections, values and lists
 * of texts (anchors, tags, several documents) has no meaning here and is refused. */

enum { PATH_BYTES = 256, FILE_BYTES = 1 << 20 };

typedef struct seen_path {
  char *path;
  size_t line;
} seen_path;

typedef struct reader {
  yaml_parser_t parser;
  yaml_event_t event; /* the present one */
  smoe_config *config;
  const char *text;
  size_t bytes;
  const char *origin;
  char where[PATH_BYTES + 32]; /* "a.yml:3": begins reports on the present event */
  seen_path *seen;
  size_t n_seen;
} reader;

static void set_where(reader *in, size_t line) {
  snprintf(in->where, sizeof in->where, "%.*s:%zu", PATH_BYTES, in->origin, line);
}

/* Whether a line of the text begins with blanks among which is a tab. */
static bool is_indented_by_tab(const reader *in, size_t line) {
  size_t at = 0;
  for (size_t l = 0; l < line && at < in->bytes; at++) l += in->text[at] == '\n';
  while (at < in->bytes && in->text[at] == ' ') at++;
  return at < in->bytes && in->text[at] == '\t';
}

static smoe_status fail_syntax(reader *in) {
  const yaml_parser_t *parser = &in->parser;
  const char *problem = parser->problem ? parser->problem : "unknown problem";
  if (parser->error == YAML_MEMORY_ERROR)
    return SMOE_FAIL(SMOE_ERR_MEMORY, "%s: no memory to read it", in->origin);
  if (parser->error == YAML_READER_ERROR) {
    size_t line = 1;
    for (size_t i = 0; i < parser->problem_offset && i < in->bytes; i++) line += in->text[i] == '\n';
    return SMOE_FAIL(SMOE_ERR_CONFIG, "%.*s:%zu: not a text file in UTF-8: %s", PATH_BYTES, in->origin, line,
                     problem);
  }
  if (is_indented_by_tab(in, parser->problem_mark.line))
    return SMOE_FAIL(SMOE_ERR_CONFIG, "%.*s:%zu: the line is indented by a tab; YAML takes spaces only",
                     PATH_BYTES, in->origin, parser->problem_mark.line + 1);
  return SMOE_FAIL(SMOE_ERR_CONFIG, "%.*s:%zu: bad YAML in column %zu: %s%s%s", PATH_BYTES, in->origin,
                   parser->problem_mark.line + 1, parser->problem_mark.column + 1, problem,
                   parser->context ? " " : "", parser->context ? parser->context : "");
}

static smoe_status refuse_extras(const reader *in) {
  const yaml_event_t *event = &in->event;
  const yaml_char_t *anchor = NULL, *tag = NULL;
  if (event->type == YAML_SCALAR_EVENT) {
    anchor = event->data.scalar.anchor;
    tag = event->data.scalar.tag;
  } else if (event->type == YAML_MAPPING_START_EVENT) {
    anchor = event->data.mapping_start.anchor;
    tag = event->data.mapping_start.tag;
  } else if (event->type == YAML_SEQUENCE_START_EVENT) {
    anchor = event->data.sequence_start.anchor;
    tag = event->data.sequence_start.tag;
  } else if (event->type == YAML_ALIAS_EVENT) {
    return SMOE_FAIL(SMOE_ERR_CONFIG,
                     "%s: references (*%s) have no place in a configuration: write the value", in->where,
                     (const char *)event->data.alias.anchor);
  }
  SMOE_CHECK(!anchor, SMOE_ERR_CONFIG, "%s: anchors (&%s) have no place in a configuration", in->where,
             (const char *)anchor);
  SMOE_CHECK(!tag, SMOE_ERR_CONFIG, "%s: tags (%s) have no place in a configuration", in->where,
             (const char *)tag);
  return SMOE_OK;
}

static smoe_status advance(reader *in) {
  yaml_event_delete(&in->event);
  memset(&in->event, 0, sizeof in->event);
  if (!yaml_parser_parse(&in->parser, &in->event)) return fail_syntax(in);
  set_where(in, in->event.start_mark.line + 1);
  return refuse_extras(in);
}

/* Fails where a section of this file has the key already. */
static smoe_status see_once(reader *in, const char *path) {
  for (size_t i = 0; i < in->n_seen; i++)
    SMOE_CHECK(strcmp(in->seen[i].path, path) != 0, SMOE_ERR_CONFIG,
               "%s: %s is there twice; the first one is in line %zu", in->where, path, in->seen[i].line);
  in->seen = smoe_realloc(in->seen, (in->n_seen + 1) * sizeof *in->seen);
  in->seen[in->n_seen++] = (seen_path){smoe_strdup(path), in->event.start_mark.line + 1};
  return SMOE_OK;
}

/* The dotted name of the key that the present event is, below a section. */
static smoe_status join_path(const reader *in, char *path, const char *section) {
  SMOE_CHECK(in->event.type == YAML_SCALAR_EVENT, SMOE_ERR_CONFIG,
             "%s: the name of a key expected, as in 'seed: 1'", in->where);
  const char *name = (const char *)in->event.data.scalar.value;
  const size_t length = in->event.data.scalar.length;
  SMOE_CHECK(length > 0 && strlen(name) == length && strlen(section) + length + 1 < PATH_BYTES,
             SMOE_ERR_CONFIG, "%s: '%.64s' cannot be the name of a key", in->where, name);
  snprintf(path, PATH_BYTES, "%s%s%s", section, section[0] ? "." : "", name);
  return SMOE_OK;
}

static smoe_status parse_scalar(const reader *in, const char *path) {
  const smoe_config_entry *entry = smoe_config_find(in->config, path);
  const bool plain = in->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
  const smoe_config_scalar scalar = {(const char *)in->event.data.scalar.value, in->event.data.scalar.length,
                                     !plain};
  if (entry) return smoe_config_set(entry, &scalar, in->where);
  if (!smoe_config_is_section(in->config, path))
    return smoe_config_unknown(in->config, path, false, in->where);
  /* A section all of whose keys are commented out. */
  if (plain && scalar.bytes == 0) return SMOE_OK;
  return SMOE_FAIL(SMOE_ERR_CONFIG, "%s: %s is a section: its keys belong on lines of their own, indented",
                   in->where, path);
}

/* A list of texts becomes one text with commas, as the option -P writes it. */
static smoe_status parse_list(reader *in, const smoe_config_entry *entry) {
  char text[SMOE_TEXT_MAX] = "", where[sizeof in->where];
  const char *name = entry->key->name;
  size_t used = 0;
  snprintf(where, sizeof where, "%s", in->where);
  for (;;) {
    SMOE_TRY(advance(in));
    if (in->event.type == YAML_SEQUENCE_END_EVENT) break;
    SMOE_CHECK(in->event.type == YAML_SCALAR_EVENT, SMOE_ERR_CONFIG, "%s: %s takes %s", in->where, name,
               smoe_config_kind_name(SMOE_KEY_LIST));
    const char *item = (const char *)in->event.data.scalar.value;
    const size_t bytes = in->event.data.scalar.length;
    SMOE_CHECK(bytes > 0 && strlen(item) == bytes && item[0] != '[' && !strchr(item, ','), SMOE_ERR_CONFIG,
               "%s: %s: '%.64s' cannot be in the list: a text without commas, and no list", in->where, name,
               item);
    SMOE_CHECK(used + bytes + 2 < sizeof text, SMOE_ERR_CONFIG, "%s: %s: the list is longer than %d bytes",
               where, name, SMOE_TEXT_MAX - 1);
    used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", used ? "," : "", item);
  }
  return smoe_config_set(entry, &(smoe_config_scalar){text, used, true}, where);
}

static smoe_status parse_section(reader *in, const char *section) {
  char path[PATH_BYTES];
  for (;;) {
    SMOE_TRY(advance(in));
    if (in->event.type == YAML_MAPPING_END_EVENT) return SMOE_OK;
    SMOE_TRY(join_path(in, path, section));
    SMOE_TRY(see_once(in, path));
    SMOE_TRY(advance(in));
    if (in->event.type == YAML_SCALAR_EVENT) {
      SMOE_TRY(parse_scalar(in, path));
      continue;
    }
    /* As deep as known sections go, so the recursion ends. */
    if (in->event.type == YAML_MAPPING_START_EVENT && smoe_config_is_section(in->config, path)) {
      SMOE_TRY(parse_section(in, path));
      continue;
    }
    const smoe_config_entry *entry = smoe_config_find(in->config, path);
    if (entry && entry->key->kind == SMOE_KEY_LIST && in->event.type == YAML_SEQUENCE_START_EVENT) {
      SMOE_TRY(parse_list(in, entry));
      continue;
    }
    SMOE_CHECK(!entry, SMOE_ERR_CONFIG, "%s: %s takes one value (%s), not a %s", in->where, path,
               smoe_config_kind_name(entry->key->kind),
               in->event.type == YAML_MAPPING_START_EVENT ? "section" : "list");
    SMOE_CHECK(!smoe_config_is_section(in->config, path), SMOE_ERR_CONFIG,
               "%s: %s is a section of keys, not a list", in->where, path);
    return smoe_config_unknown(in->config, path, in->event.type == YAML_MAPPING_START_EVENT, in->where);
  }
}

static smoe_status parse_stream(reader *in) {
  SMOE_TRY(advance(in)); /* stream start */
  SMOE_TRY(advance(in));
  if (in->event.type == YAML_STREAM_END_EVENT) return SMOE_OK;
  SMOE_TRY(advance(in)); /* into the document */
  if (in->event.type == YAML_MAPPING_START_EVENT) {
    SMOE_TRY(parse_section(in, ""));
  } else {
    SMOE_CHECK(in->event.type == YAML_SCALAR_EVENT && in->event.data.scalar.length == 0, SMOE_ERR_CONFIG,
               "%s: sections with keys expected, as in 'run:' and, indented below it, 'seed: 1'", in->where);
  }
  SMOE_TRY(advance(in)); /* document end */
  SMOE_TRY(advance(in));
  SMOE_CHECK(in->event.type == YAML_STREAM_END_EVENT, SMOE_ERR_CONFIG,
             "%s: a second document begins; a configuration is one", in->where);
  return SMOE_OK;
}

static smoe_status parse_bytes(smoe_config *config, const char *text, size_t bytes, const char *origin) {
  reader in = {.config = config, .text = text, .bytes = bytes, .origin = origin};
  SMOE_CHECK(yaml_parser_initialize(&in.parser), SMOE_ERR_MEMORY, "%s: no memory to read it", origin);
  yaml_parser_set_input_string(&in.parser, (const unsigned char *)text, bytes);
  const smoe_status status = parse_stream(&in);
  yaml_event_delete(&in.event);
  yaml_parser_delete(&in.parser);
  for (size_t i = 0; i < in.n_seen; i++) smoe_free(in.seen[i].path);
  smoe_free(in.seen);
  return status;
}

smoe_status smoe_config_parse(smoe_config *config, const char *text, const char *origin) {
  return parse_bytes(config, text, strlen(text), origin);
}

smoe_status smoe_config_load(smoe_config *config, const char *path) {
  FILE *file = fopen(path, "rb");
  SMOE_CHECK(file, SMOE_ERR_IO, "cannot open the configuration '%s': %s", path, strerror(errno));
  char *text = smoe_alloc(FILE_BYTES + 1);
  const size_t bytes = fread(text, 1, FILE_BYTES + 1, file);
  const int error = ferror(file) ? errno : 0;
  fclose(file);
  smoe_status status;
  if (error)
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot read the configuration '%s': %s", path, strerror(error));
  else if (bytes > FILE_BYTES)
    status = SMOE_FAIL(SMOE_ERR_CONFIG, "%s: larger than 1 MiB, so it is not a configuration", path);
  else
    status = parse_bytes(config, text, bytes, path);
  smoe_free(text);
  return status;
}
