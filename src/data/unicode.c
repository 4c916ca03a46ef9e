#include "unicode.h"

#include <locale.h>
#include <wctype.h>

#include "stablemoe/utf8.h"

enum {
  CAPITAL_SIGMA = 0x3a3,
  SMALL_SIGMA = 0x3c3,
  FINAL_SIGMA = 0x3c2,
  DOTTED_CAPITAL_I = 0x130,
  DOT_ABOVE = 0x307
};

/** Bytes of a character by its first one. */
static size_t width_of(unsigned char first) {
  return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

size_t smoe_unicode_decode(const char *text, size_t bytes, int32_t *point) {
  size_t n = 0;
  for (size_t at = 0; at < bytes;) {
    const size_t valid = smoe_utf8_prefix(text + at, bytes - at);
    for (size_t end = at + valid; at < end;) {
      const unsigned char *c = (const unsigned char *)text + at;
      const size_t width = width_of(*c);
      int32_t code = width == 1 ? *c : *c & (0xff >> (width + 1));
      for (size_t i = 1; i < width; i++) code = code << 6 | (c[i] & 0x3f);
      point[n++] = code;
      at += width;
    }
    if (at < bytes) {
      point[n++] = 0xfffd;
      at++;
    }
  }
  return n;
}

size_t smoe_unicode_encode(const int32_t *point, size_t n, char *text) {
  char *to = text;
  for (size_t i = 0; i < n; i++) {
    const uint32_t c = (uint32_t)point[i];
    if (c < 0x80) {
      *to++ = (char)c;
      continue;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    *to++ = (char)(0xff00u >> (more + 1) | c >> (6 * more));
    for (int b = more - 1; b >= 0; b--) *to++ = (char)(0x80 | (c >> (6 * b) & 0x3f));
  }
  return (size_t)(to - text);
}

bool smoe_unicode_is_blank(int32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

static locale_t utf8_locale(void) {
  static locale_t locale;
  static const char *const names[] = {"C.UTF-8", "C.utf8", "en_US.UTF-8"};
  for (size_t i = 0; i < sizeof names / sizeof *names && !locale; i++)
    locale = newlocale(LC_CTYPE_MASK, names[i], (locale_t)0);
  return locale;
}

smoe_status smoe_unicode_can_lower(void) {
  SMOE_CHECK(utf8_locale(), SMOE_ERR_CONFIG,
             "this machine has no UTF-8 locale (C.UTF-8), which lower case needs");
  return SMOE_OK;
}

/** Whether a character has case, and whether it does not count between letters that have. */
static bool is_cased(int32_t c, locale_t locale) {
  return iswupper_l((wint_t)c, locale) || iswlower_l((wint_t)c, locale);
}

static bool is_passed_over(int32_t c) {
  return c == '\'' || c == '.' || c == ':' || c == '^' || c == '`' || c == 0xa8 || c == 0xad || c == 0xaf ||
         c == 0xb4 || c == 0xb7 || c == 0xb8 || (c >= 0x2b0 && c <= 0x36f) || (c >= 0x200b && c <= 0x200f) ||
         c == 0x2018 || c == 0x2019 || c == 0x2024 || c == 0x2027;
}

/** Whether the sigma at i ends a word. */
static bool is_final(const int32_t *point, size_t n, size_t i, locale_t locale) {
  size_t before = i, after = i + 1;
  while (before > 0 && is_passed_over(point[before - 1])) before--;
  while (after < n && is_passed_over(point[after])) after++;
  return before > 0 && is_cased(point[before - 1], locale) && !(after < n && is_cased(point[after], locale));
}

size_t smoe_unicode_lower(const int32_t *point, size_t n, int32_t *lower) {
  const locale_t locale = utf8_locale();
  size_t m = 0;
  for (size_t i = 0; i < n; i++) {
    if (point[i] == CAPITAL_SIGMA) {
      lower[m++] = is_final(point, n, i, locale) ? FINAL_SIGMA : SMALL_SIGMA;
    } else if (point[i] == DOTTED_CAPITAL_I) {
      lower[m++] = 'i';
      lower[m++] = DOT_ABOVE;
    } else {
      lower[m++] = (int32_t)towlower_l((wint_t)point[i], locale);
    }
  }
  return m;
}
