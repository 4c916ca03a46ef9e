#include "stablemoe/utf8.h"

/** Bytes of the character at text, 0 where it is none (or NUL). */
static size_t character_bytes(const unsigned char *text, size_t bytes) {
  const unsigned char c = text[0];
  if (c < 0x80) return c ? 1 : 0;
  const size_t n = c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
  if (n == 0 || n > bytes) return 0;
  for (size_t i = 1; i < n; i++) {
    if ((text[i] & 0xC0) != 0x80) return 0;
  }
  if (c == 0xE0 && text[1] < 0xA0) return 0; /* longer than needed */
  if (c == 0xED && text[1] > 0x9F) return 0; /* a surrogate */
  if (c == 0xF0 && text[1] < 0x90) return 0; /* longer than needed */
  if (c == 0xF4 && text[1] > 0x8F) return 0; /* beyond U+10FFFF */
  return n;
}

size_t smoe_utf8_prefix(const char *text, size_t bytes) {
  const unsigned char *c = (const unsigned char *)text;
  size_t i = 0;
  while (i < bytes) {
    const size_t n = character_bytes(c + i, bytes - i);
    if (n == 0) break;
    i += n;
  }
  return i;
}

size_t smoe_utf8_cut(const char *text, size_t limit) {
  size_t cut = limit;
  while (cut > 0 && limit - cut < 3 && (text[cut] & 0xC0) == 0x80) cut--;
  return cut ? cut : limit;
}
