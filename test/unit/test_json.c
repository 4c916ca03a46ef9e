/** The JSON writer: texts, numbers, nesting, and misuse, which ends the program. Jansson reads what it writes. */
#include "stablemoe/json.h"

#include <jansson.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/status.h"

/* The document's text without the newline behind it, which has to be there. */
static void check_document(smoe_json *json, const char *want) {
  size_t bytes = 0;
  char *got = smoe_json_take(json, &bytes);
  CHECK(bytes == strlen(want) + 1 && got[bytes - 1] == '\n' && memcmp(got, want, bytes - 1) == 0,
        "%s, not %s", got, want);
  smoe_free(got);
}

static void check_text(const char *text, size_t bytes, const char *want) {
  smoe_json json;
  smoe_json_begin_text(&json, 0);
  smoe_json_bytes(&json, NULL, text, bytes);
  check_document(&json, want);
}

static void check_real(double value, int digits, const char *want) {
  smoe_json json;
  smoe_json_begin_text(&json, 0);
  smoe_json_real(&json, NULL, value, digits);
  check_document(&json, want);
}

static void check_fixed(double value, int decimals, const char *want) {
  smoe_json json;
  smoe_json_begin_text(&json, 0);
  smoe_json_fixed(&json, NULL, value, decimals);
  check_document(&json, want);
}

#define TEXT(text, want) check_text(text, sizeof(text) - 1, want)

static void check_texts(void) {
  TEXT("", "\"\"");
  TEXT("plain \xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80", "\"plain \xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80\"");
  TEXT("a\"b\\c\nd\te\rf\x01\x7f", "\"a\\\"b\\\\c\\nd\\te\\u000df\\u0001\\u007f\"");
  TEXT("\xff", "\"\\ufffd\"");
  TEXT("a\xc3z\xe6\x97", "\"a\\ufffdz\\ufffd\\ufffd\""); /* characters that lack their end */
  TEXT("\xed\xa0\x80!", "\"\\ufffd\\ufffd\\ufffd!\"");   /* a surrogate */
  TEXT("a\0b", "\"a\\u0000b\"");
}

static void check_numbers(void) {
  check_real(0.1, 17, "0.10000000000000001");
  check_real(-2.5e300, 9, "-2.5e+300");
  check_real(NAN, 9, "null");
  check_real(-INFINITY, 9, "null");
  check_fixed(1234567890123.25, 1, "1234567890123.2");
  check_fixed(3, 0, "3");
  check_fixed(INFINITY, 0, "null");
}

/* Every kind of value, as a member and as an element. */
static void write_all(smoe_json *json) {
  smoe_json_object(json, NULL);
  smoe_json_text(json, "a\"\xff", "x");
  smoe_json_text(json, "none", NULL);
  smoe_json_int(json, "least", INT64_MIN);
  smoe_json_bool(json, "yes", true);
  smoe_json_bool(json, "no", false);
  smoe_json_null(json, "null");
  smoe_json_array(json, "list");
  smoe_json_object(json, NULL);
  smoe_json_end(json);
  smoe_json_array(json, NULL);
  smoe_json_end(json);
  smoe_json_real(json, NULL, NAN, 9);
  smoe_json_end(json);
  smoe_json_reals(json, "reals", (const double[]){0.5, INFINITY}, 2, 9);
  smoe_json_ints(json, "ints", (const int64_t[]){1, 2}, 2);
  smoe_json_ints(json, "nothing", NULL, 0);
  smoe_json_end(json);
}

static void check_nesting(void) {
  smoe_json json;
  smoe_json_begin_text(&json, 0);
  write_all(&json);
  check_document(&json, "{\"a\\\"\\ufffd\": \"x\", \"none\": null, \"least\": -9223372036854775808, "
                        "\"yes\": true, \"no\": false, \"null\": null, \"list\": [{}, [], null], "
                        "\"reals\": [0.5, null], \"ints\": [1, 2], \"nothing\": []}");
  smoe_json_begin_text(&json, 1);
  smoe_json_array(&json, NULL);
  smoe_json_ints(&json, NULL, (const int64_t[]){1, 2}, 2);
  smoe_json_int(&json, NULL, 3);
  smoe_json_end(&json);
  check_document(&json, "[\n  [1, 2],\n  3\n]");
}

/* Lines or none, it is the same value; and another reader agrees. */
static void check_read(void) {
  json_t *first = NULL;
  for (int lines = 0; lines < 4; lines++) {
    smoe_json json;
    size_t bytes;
    smoe_json_begin_text(&json, lines);
    write_all(&json);
    char *text = smoe_json_take(&json, &bytes);
    json_t *read = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    CHECK(json_object_size(read) == 10, "%s", text);
    if (!first) first = json_incref(read);
    CHECK(json_equal(first, read), "%s", text);
    json_decref(read);
    smoe_free(text);
  }
  json_decref(first);
}

static void check_depth(void) {
  smoe_json json;
  smoe_json_begin_text(&json, SMOE_JSON_DEPTH);
  for (int i = 0; i < SMOE_JSON_DEPTH; i++) smoe_json_array(&json, NULL);
  smoe_json_int(&json, NULL, 1);
  for (int i = 0; i < SMOE_JSON_DEPTH; i++) smoe_json_end(&json);
  size_t bytes;
  char *text = smoe_json_take(&json, &bytes);
  json_t *read = json_loadb(text, bytes, 0, NULL);
  const json_t *at = read;
  for (int i = 0; i < SMOE_JSON_DEPTH; i++) at = json_array_get(at, 0);
  CHECK(json_integer_value(at) == 1, "%s", text);
  json_decref(read);
  smoe_free(text);
}

/* ---- misuse ---- */

static void key_in_array(smoe_json *json) {
  smoe_json_array(json, NULL);
  smoe_json_int(json, "key", 1);
}

static void no_key(smoe_json *json) {
  smoe_json_object(json, NULL);
  smoe_json_int(json, NULL, 1);
}

static void key_outside(smoe_json *json) {
  smoe_json_object(json, "key");
}

static void second_value(smoe_json *json) {
  smoe_json_int(json, NULL, 1);
  smoe_json_int(json, NULL, 2);
}

static void second_end(smoe_json *json) {
  smoe_json_array(json, NULL);
  smoe_json_end(json);
  smoe_json_end(json);
}

static void no_end(smoe_json *json) {
  smoe_json_array(json, NULL);
  smoe_json_finish(json);
}

static void nothing(smoe_json *json) {
  smoe_json_finish(json);
}

static void too_deep(smoe_json *json) {
  for (int i = 0; i <= SMOE_JSON_DEPTH; i++) smoe_json_array(json, NULL);
}

static void check_misuse(void) {
  void (*const misuses[])(smoe_json *) = {key_in_array, no_key, key_outside, second_value,
                                          second_end,   no_end, nothing,     too_deep};
  for (size_t i = 0; i < sizeof misuses / sizeof *misuses; i++) {
    int status = 0;
    const pid_t child = fork();
    if (child == 0) {
      smoe_json json;
      smoe_json_begin(&json, fopen("/dev/null", "w"), 0);
      fclose(stderr);
      misuses[i](&json);
      _exit(0);
    }
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == SMOE_ERR_BUG, "misuse %zu: status %d", i, status);
  }
}

/* A full disk stays in the stream for who flushes it. */
static void check_full(void) {
  FILE *full = fopen("/dev/full", "w");
  if (!full) return;
  smoe_json json;
  smoe_json_begin(&json, full, 0);
  smoe_json_array(&json, NULL);
  for (int i = 0; i < 10000; i++) smoe_json_int(&json, NULL, i);
  smoe_json_end(&json);
  smoe_json_finish(&json);
  CHECK(ferror(full));
  fclose(full);
}

int main(void) {
  check_texts();
  check_numbers();
  check_nesting();
  check_read();
  check_depth();
  check_misuse();
  check_full();
  return test_verdict("json");
}
