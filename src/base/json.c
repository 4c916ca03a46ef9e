#include "stablemoe/json.h"

#include <math.h>
#include <string.h>

#include "stablemoe/utf8.h"

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

void smoe_json_bytes(FILE *out, const char *text, size_t bytes) {
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

void smoe_json_text(FILE *out, const char *text) {
  if (text)
    smoe_json_bytes(out, text, strlen(text));
  else
    fputs("null", out);
}

void smoe_json_real(FILE *out, double value, int digits) {
  if (isfinite(value))
    fprintf(out, "%.*g", digits, value);
  else
    fputs("null", out);
}
