/** JSON texts and numbers. */
#include "stablemoe/json.h"

#include <stdlib.h>
#include <string.h>

#include "harness.h"

static void check_text(const char *text, size_t bytes, const char *want) {
  char *got = NULL;
  size_t n = 0;
  FILE *out = open_memstream(&got, &n);
  smoe_json_bytes(out, text, bytes);
  fclose(out);
  CHECK(strcmp(got, want) == 0, "%s, not %s", got, want);
  free(got);
}

static void check_real(double value, int digits, const char *want) {
  char *got = NULL;
  size_t n = 0;
  FILE *out = open_memstream(&got, &n);
  smoe_json_real(out, value, digits);
  fclose(out);
  CHECK(strcmp(got, want) == 0, "%s, not %s", got, want);
  free(got);
}

#define TEXT(text, want) check_text(text, sizeof(text) - 1, want)

int main(void) {
  TEXT("", "\"\"");
  TEXT("plain \xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80", "\"plain \xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80\"");
  TEXT("a\"b\\c\nd\te\rf\x01\x7f", "\"a\\\"b\\\\c\\nd\\te\\u000df\\u0001\\u007f\"");
  TEXT("\xff", "\"\\ufffd\"");
  TEXT("a\xc3z\xe6\x97", "\"a\\ufffdz\\ufffd\\ufffd\""); /* characters that lack their end */
  TEXT("\xed\xa0\x80!", "\"\\ufffd\\ufffd\\ufffd!\"");   /* a surrogate */
  TEXT("a\0b", "\"a\\u0000b\"");
  check_real(0.1, 17, "0.10000000000000001");
  check_real(-2.5e300, 9, "-2.5e+300");
  check_real(NAN, 9, "null");
  check_real(-INFINITY, 9, "null");
  return test_verdict("json");
}
