#include "stablemoe/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/utf8.h"

/* ---- texts ---- */

/* A run of valid UTF-8 without NUL. */
static void print_valid(FILE *out, const char *text, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    const unsigned char c = (unsigned char)text[i];
    if (c == '"' || c == '\\')
      fprintf(out, "\\%c", c);
    else if (c == '\n')
      fputs("\\n", out);
    else if (c == '\t')
      fputs("\\t", out);
    else if (c < 0x20 || c == 0x7f)
      fprintf(out, "\\u%04x", c);
    else
      fputc(c, out);
  }
}

static void print_text(FILE *out, const char *text, size_t bytes) {
  fputc('"', out);
  for (size_t at = 0; at < bytes;) {
    const size_t valid = smoe_utf8_prefix(text + at, bytes - at);
    print_valid(out, text + at, valid);
    at += valid;
    if (at == bytes) break;
    fputs(text[at] ? "\\ufffd" : "\\u0000", out);
    at++;
  }
  fputc('"', out);
}

/* ---- where the writer stands ---- */

static void check(bool good, const char *what) {
  if (!good) SMOE_PANIC(SMOE_ERR_BUG, "JSON writer: %s", what);
}

static void new_line(const smoe_json *json) {
  fprintf(json->out, "\n%*s", 2 * json->depth, "");
}

/* What stands before a value: comma, line, key. */
static void lead(smoe_json *json, const char *key) {
  if (json->depth == 0) {
    check(!json->whole, "a second value in one document");
    check(!key, "a key without an object");
    json->whole = true;
    return;
  }
  const int at = json->depth - 1;
  check(json->object[at] == (key != NULL), key ? "a key in an array" : "a value without a key in an object");
  const bool lined = json->depth <= json->lines;
  if (json->begun[at]) fputs(lined ? "," : ", ", json->out);
  if (lined) new_line(json);
  json->begun[at] = true;
  if (!key) return;
  print_text(json->out, key, strlen(key));
  fputs(": ", json->out);
}

static void open_level(smoe_json *json, const char *key, bool object) {
  lead(json, key);
  check(json->depth < SMOE_JSON_DEPTH, "too many levels");
  json->object[json->depth] = object;
  json->begun[json->depth] = false;
  json->depth++;
  fputc(object ? '{' : '[', json->out);
}

/* ---- documents ---- */

void smoe_json_begin(smoe_json *json, FILE *out, int lines) {
  *json = (smoe_json){.out = out, .lines = lines};
}

void smoe_json_begin_text(smoe_json *json, int lines) {
  *json = (smoe_json){.lines = lines};
  json->out = open_memstream(&json->text, &json->bytes);
  if (!json->out) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a JSON text");
}

void smoe_json_finish(smoe_json *json) {
  check(json->depth == 0, "the document ends inside an object or array");
  check(json->whole, "an empty document");
  fputc('\n', json->out);
}

char *smoe_json_take(smoe_json *json, size_t *bytes) {
  smoe_json_finish(json);
  if (fclose(json->out) != 0) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a JSON text");
  char *text = smoe_alloc(json->bytes + 1);
  memcpy(text, json->text, json->bytes);
  free(json->text); /* memory of the C library */
  if (bytes) *bytes = json->bytes;
  *json = (smoe_json){0};
  return text;
}

void smoe_json_object(smoe_json *json, const char *key) {
  open_level(json, key, true);
}

void smoe_json_array(smoe_json *json, const char *key) {
  open_level(json, key, false);
}

void smoe_json_end(smoe_json *json) {
  check(json->depth > 0, "an end without a beginning");
  const int at = --json->depth;
  if (json->begun[at] && at < json->lines) new_line(json);
  fputc(json->object[at] ? '}' : ']', json->out);
}

/* ---- values ---- */

void smoe_json_bytes(smoe_json *json, const char *key, const char *text, size_t bytes) {
  lead(json, key);
  print_text(json->out, text, bytes);
}

void smoe_json_text(smoe_json *json, const char *key, const char *text) {
  if (text)
    smoe_json_bytes(json, key, text, strlen(text));
  else
    smoe_json_null(json, key);
}

void smoe_json_real(smoe_json *json, const char *key, double value, int digits) {
  if (!isfinite(value)) {
    smoe_json_null(json, key);
    return;
  }
  lead(json, key);
  fprintf(json->out, "%.*g", digits, value);
}

void smoe_json_fixed(smoe_json *json, const char *key, double value, int decimals) {
  if (!isfinite(value)) {
    smoe_json_null(json, key);
    return;
  }
  lead(json, key);
  fprintf(json->out, "%.*f", decimals, value);
}

void smoe_json_int(smoe_json *json, const char *key, int64_t value) {
  lead(json, key);
  fprintf(json->out, "%" PRId64, value);
}

void smoe_json_bool(smoe_json *json, const char *key, bool value) {
  lead(json, key);
  fputs(value ? "true" : "false", json->out);
}

void smoe_json_null(smoe_json *json, const char *key) {
  lead(json, key);
  fputs("null", json->out);
}

void smoe_json_reals(smoe_json *json, const char *key, const double *values, size_t n, int digits) {
  smoe_json_array(json, key);
  for (size_t i = 0; i < n; i++) smoe_json_real(json, NULL, values[i], digits);
  smoe_json_end(json);
}

void smoe_json_ints(smoe_json *json, const char *key, const int64_t *values, size_t n) {
  smoe_json_array(json, key);
  for (size_t i = 0; i < n; i++) smoe_json_int(json, NULL, values[i]);
  smoe_json_end(json);
}
