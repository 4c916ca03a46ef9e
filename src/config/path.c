#include "config_table.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* The bytes of a path as they are put together; too many are counted, and not kept. */
typedef struct builder {
  char *text; /**< [SMOE_TEXT_MAX] */
  size_t bytes;
} builder;

static void append(builder *out, const char *text, size_t bytes) {
  if (out->bytes + bytes < SMOE_TEXT_MAX) memcpy(out->text + out->bytes, text, bytes);
  out->bytes += bytes;
}

static bool is_name(char c, bool first) {
  return c == '_' || isalpha((unsigned char)c) || (!first && isdigit((unsigned char)c));
}

/* The variable that begins at a dollar sign; *end: behind it. */
static smoe_status append_variable(builder *out, const char *dollar, const char **end, const char *where) {
  const bool braces = dollar[1] == '{';
  const char *name = dollar + 1 + braces;
  size_t length = 0;
  while (is_name(name[length], length == 0)) length++;
  SMOE_CHECK(length > 0 && (!braces || name[length] == '}'), SMOE_ERR_CONFIG,
             "%s: '%.64s': no name of an environment variable after $; write $$ for a dollar sign", where,
             dollar);
  char variable[SMOE_TEXT_MAX];
  snprintf(variable, sizeof variable, "%.*s", (int)length, name);
  const char *value = getenv(variable);
  SMOE_CHECK(
      value && value[0], SMOE_ERR_CONFIG,
      "%s: the environment variable $%s is %s: set it, or write the path itself ($$ for a dollar sign)",
      where, variable, value ? "empty" : "not set");
  append(out, value, strlen(value));
  *end = name + length + braces;
  return SMOE_OK;
}

/* ~ is looked for after the variables, so that no directory of that name is made in either way. */
static smoe_status expand_home(builder *path, const char *where) {
  if (path->text[0] != '~') return SMOE_OK;
  SMOE_CHECK(
      path->bytes == 1 || path->text[1] == '/', SMOE_ERR_CONFIG,
      "%s: '%.64s': the home of another user is not looked up: write its full path, or ./~ for a file of "
      "that name",
      where, path->text);
  const char *home = getenv("HOME");
  SMOE_CHECK(home && home[0] == '/', SMOE_ERR_CONFIG,
             "%s: '%.64s': the environment variable $HOME is not an absolute path: write the full path",
             where, path->text);
  char rest[SMOE_TEXT_MAX];
  memcpy(rest, path->text + 1, path->bytes);
  const size_t bytes = path->bytes - 1;
  path->bytes = 0;
  append(path, home, strlen(home));
  append(path, rest, bytes);
  return SMOE_OK;
}

smoe_status smoe_config_expand(char *path, size_t *bytes, const char *text, const char *where) {
  builder out = {.text = path};
  while (*text) {
    const size_t plain = strcspn(text, "$");
    append(&out, text, plain);
    text += plain;
    if (text[0] == '$' && text[1] == '$') {
      append(&out, "$", 1);
      text += 2;
    } else if (text[0] == '$') {
      SMOE_TRY(append_variable(&out, text, &text, where));
    }
  }
  if (out.bytes < SMOE_TEXT_MAX) {
    path[out.bytes] = '\0';
    SMOE_TRY(expand_home(&out, where));
  }
  *bytes = out.bytes;
  if (out.bytes < SMOE_TEXT_MAX) path[out.bytes] = '\0';
  return SMOE_OK;
}
