#include "json_text.h"

#include <jansson.h>
#include <string.h>

#include "stablemoe/arena.h"

void smoe_json_text_release(smoe_reader *reader) {
  json_decref(reader->json);
  reader->json = NULL;
}

/** One byte for the parser, which so never reads beyond the value. */
static size_t give_byte(void *buffer, size_t room, void *context) {
  smoe_reader *reader = context;
  if (reader->object >= SMOE_DOCUMENT_BYTES_MAX) return (size_t)-1;
  if (reader->end == reader->begin) {
    reader->failed = smoe_reader_fill(reader, 1);
    if (reader->failed != SMOE_OK) return (size_t)-1;
    if (reader->end == reader->begin) return 0;
  }
  const char byte = reader->buffer[reader->begin++];
  *(char *)buffer = byte;
  reader->position++;
  reader->object++;
  reader->line += byte == '\n';
  return 1;
}

/** Skip blanks and what separates objects; *more: there is another value. */
static smoe_status skip_to_value(smoe_reader *reader, bool *more) {
  for (*more = false;;) {
    SMOE_TRY(smoe_reader_fill(reader, 1));
    if (reader->end == reader->begin) return SMOE_OK;
    const char next = reader->buffer[reader->begin];
    const bool opens = next == '[' && !reader->in_array, closes = next == ']' && reader->in_array;
    if (!opens && !closes && !(next == ',' && reader->in_array) && !(next && strchr(" \t\r\n", next))) break;
    if (opens || closes) reader->in_array = opens;
    reader->line += next == '\n';
    reader->begin++;
    reader->position++;
  }
  *more = true;
  return SMOE_OK;
}

/** The names of an object's texts, for a report: "'content', 'title'". */
static const char *texts_of(const json_t *object, char *names, size_t room) {
  const char *key;
  json_t *value;
  size_t used = 0;
  names[0] = '\0';
  json_object_foreach((json_t *)object, key, value) {
    if (!json_is_string(value) || used + strlen(key) + 8 > room) continue;
    used += (size_t)snprintf(names + used, room - used, "%s'%s'", used ? ", " : "", key);
  }
  return used ? names : "none";
}

static smoe_status parse(smoe_reader *reader) {
  json_error_t error;
  const int64_t line = reader->line;
  reader->object = 0;
  reader->failed = SMOE_OK;
  reader->json = json_load_callback(
      give_byte, reader, JSON_DISABLE_EOF_CHECK | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, &error);
  SMOE_TRY(reader->failed);
  SMOE_CHECK(reader->json || reader->object < SMOE_DOCUMENT_BYTES_MAX, SMOE_ERR_FORMAT,
             "line %lld of '%s': a JSON value of more than %lld bytes", (long long)line, reader->path,
             (long long)SMOE_DOCUMENT_BYTES_MAX);
  SMOE_CHECK(reader->json, SMOE_ERR_FORMAT, "line %lld of '%s' is not JSON: %s", (long long)reader->line,
             reader->path, error.text);
  return SMOE_OK;
}

static smoe_status next_text(smoe_reader *reader, const char **text, size_t *bytes, bool *more) {
  char names[256];
  smoe_json_text_release(reader);
  SMOE_TRY(skip_to_value(reader, more));
  if (!*more) return SMOE_OK;
  const int64_t line = reader->line;
  SMOE_TRY(parse(reader));
  SMOE_CHECK(json_is_object(reader->json), SMOE_ERR_FORMAT,
             "line %lld of '%s' is not a JSON object with a text field '%s'", (long long)line, reader->path,
             reader->format.field);
  const json_t *value = json_object_get(reader->json, reader->format.field);
  if (value && json_is_null(value)) return SMOE_OK;
  SMOE_CHECK(value && json_is_string(value), SMOE_ERR_FORMAT,
             "line %lld of '%s' has no text field '%s' (its texts: %s): name the field with --field, or take "
             "the file as plain text with --field -",
             (long long)line, reader->path, reader->format.field,
             texts_of(reader->json, names, sizeof names));
  *text = json_string_value(value);
  *bytes = json_string_length(value);
  return SMOE_OK;
}

smoe_status smoe_reader_next_json(smoe_reader *reader, const char **text, size_t *bytes) {
  bool more = true;
  for (*bytes = 0; *bytes == 0 && more;) SMOE_TRY(next_text(reader, text, bytes, &more));
  return SMOE_OK;
}

bool smoe_text_has_field(const char *path, const char *field) {
  const smoe_text_format format = {.json = true, .field = field};
  smoe_reader reader;
  const char *text;
  size_t bytes;
  bool more;
  const bool has = smoe_reader_open(&reader, path, &format) == SMOE_OK &&
                   next_text(&reader, &text, &bytes, &more) == SMOE_OK && more;
  smoe_reader_close(&reader);
  return has;
}
