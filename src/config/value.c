#include "config_table.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "stablemoe/arena.h"

const char *smoe_config_kind_name(smoe_key_kind kind) {
  switch (kind) {
  case SMOE_KEY_INT:
    return "an integer";
  case SMOE_KEY_REAL:
    return "a number";
  case SMOE_KEY_BOOL:
    return "true or false";
  case SMOE_KEY_TEXT:
    return "a text";
  case SMOE_KEY_PATH:
    return "a path";
  case SMOE_KEY_CHOICE:
    return "a word";
  case SMOE_KEY_LIST:
    return "a list of texts";
  }
  return "a value";
}

bool smoe_config_is_text(const smoe_key *key) {
  return key->kind == SMOE_KEY_TEXT || key->kind == SMOE_KEY_PATH;
}

size_t smoe_config_value_bytes(smoe_key_kind kind) {
  switch (kind) {
  case SMOE_KEY_INT:
    return sizeof(int64_t);
  case SMOE_KEY_REAL:
    return sizeof(double);
  case SMOE_KEY_BOOL:
    return sizeof(bool);
  case SMOE_KEY_TEXT:
  case SMOE_KEY_PATH:
  case SMOE_KEY_LIST:
    return SMOE_TEXT_MAX;
  case SMOE_KEY_CHOICE:
    return sizeof(int);
  }
  return 0;
}

/* Digits with at most one point and an exponent: strtod alone would also take inf, nan and hexadecimal. */
static bool is_number(const char *s, bool *whole) {
  s += *s == '+' || *s == '-';
  const size_t before = strspn(s, "0123456789");
  s += before;
  *whole = *s == '\0';
  size_t after = 0;
  if (*s == '.') {
    after = strspn(++s, "0123456789");
    s += after;
  }
  if (before + after == 0) return false;
  if (*s == 'e' || *s == 'E') {
    s++;
    s += *s == '+' || *s == '-';
    const size_t exponent = strspn(s, "0123456789");
    if (exponent == 0) return false;
    s += exponent;
  }
  return *s == '\0';
}

/* A refusal that says what is allowed. */
static smoe_status fail_range(const smoe_key *key, const char *text, const char *where) {
  char range[256] = "";
  FILE *out = fmemopen(range, sizeof range, "w");
  if (out) {
    smoe_config_print_range(out, key);
    fclose(out);
  }
  const bool choice = key->kind == SMOE_KEY_CHOICE;
  /* The type is the limit where the key has none. */
  const char *limit = "";
  if (!choice && isinf(key->max))
    limit = key->kind == SMOE_KEY_INT ? "; the largest is 9223372036854775807" : "; at most 1.79e308";
  return SMOE_FAIL(SMOE_ERR_CONFIG, "%s: %s: '%.64s' is %s: %s%s", where, key->name, text,
                   choice ? "not a choice there is" : "out of range", range, limit);
}

static smoe_status set_int(const smoe_key *key, int64_t *value, const char *text, const char *where) {
  bool whole;
  SMOE_CHECK(is_number(text, &whole), SMOE_ERR_CONFIG, "%s: %s: '%.64s' is not an integer%s", where,
             key->name, text, strchr(text, '_') ? " (write 60000, not 60_000)" : "");
  int64_t v;
  if (whole) {
    errno = 0;
    v = strtoll(text, NULL, 10);
    if (errno == ERANGE) return fail_range(key, text, where);
  } else {
    const double real = strtod(text, NULL);
    SMOE_CHECK(real == floor(real), SMOE_ERR_CONFIG, "%s: %s: '%.64s' is not an integer", where, key->name,
               text);
    if (!(real >= key->min && real <= key->max)) return fail_range(key, text, where);
    /* Beyond 2^53 a double no longer tells neighbours apart. */
    SMOE_CHECK(fabs(real) <= 9007199254740992.0, SMOE_ERR_CONFIG,
               "%s: %s: '%.64s': write an integer of more than 9007199254740992 in digits", where, key->name,
               text);
    v = (int64_t)real;
  }
  if (!((double)v >= key->min && (double)v <= key->max)) return fail_range(key, text, where);
  *value = v;
  return SMOE_OK;
}

static smoe_status set_real(const smoe_key *key, double *value, const char *text, const char *where) {
  bool whole;
  SMOE_CHECK(is_number(text, &whole), SMOE_ERR_CONFIG,
             "%s: %s: '%.64s' is not a number, as 0.001 or 1e-3 are", where, key->name, text);
  errno = 0;
  const double v = strtod(text, NULL);
  /* An underflow would quietly be 0, which often means "off". */
  SMOE_CHECK(errno != ERANGE || fabs(v) > 1, SMOE_ERR_CONFIG,
             "%s: %s: '%.64s' is too small for a number of 64 bits; the smallest above 0 is 2.3e-308", where,
             key->name, text);
  if (!(isfinite(v) && v >= key->min && v <= key->max)) return fail_range(key, text, where);
  *value = v;
  return SMOE_OK;
}

static smoe_status set_choice(const smoe_key *key, int *value, const char *text, const char *where) {
  for (int i = 0; key->choices[i]; i++)
    if (strcmp(key->choices[i], text) == 0) {
      *value = i;
      return SMOE_OK;
    }
  return fail_range(key, text, where);
}

/* Decode one UTF-8 character; its length, or 0 where the bytes are none. */
static size_t utf8_char(const unsigned char *s, size_t bytes, uint32_t *code) {
  static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  const size_t n = s[0] < 0x80   ? 1
                   : s[0] < 0xc0 ? 0
                   : s[0] < 0xe0 ? 2
                   : s[0] < 0xf0 ? 3
                   : s[0] < 0xf8 ? 4
                                 : 0;
  if (n == 0 || n > bytes) return 0;
  *code = n == 1 ? s[0] : s[0] & (0x7fu >> n);
  for (size_t i = 1; i < n; i++) {
    if ((s[i] & 0xc0) != 0x80) return 0;
    *code = *code << 6 | (s[i] & 0x3f);
  }
  return *code < least[n] || *code > 0x10ffff ? 0 : n;
}

/* What YAML cannot hold in one quoted line without escapes is refused, so that used.yml repeats every text. */
static bool is_plain_line(const char *text, size_t bytes) {
  const unsigned char *s = (const unsigned char *)text;
  for (size_t i = 0; i < bytes;) {
    uint32_t code;
    const size_t n = utf8_char(s + i, bytes - i, &code);
    if (n == 0 || code < 0x20 || (code >= 0x7f && code < 0xa0)) return false;
    if (code == 0x2028 || code == 0x2029 || code == 0xfeff || code == 0xfffe || code == 0xffff) return false;
    if (code >= 0xd800 && code < 0xe000) return false;
    i += n;
  }
  return true;
}

static smoe_status check_text(const smoe_key *key, const smoe_config_scalar *scalar, const char *where) {
  SMOE_CHECK(is_plain_line(scalar->text, scalar->bytes), SMOE_ERR_CONFIG,
             "%s: %s: the text must be one line of UTF-8 without control characters", where, key->name);
  const bool empty =
      scalar->bytes == 0 || strcmp(scalar->text, "~") == 0 || strcasecmp(scalar->text, "null") == 0;
  SMOE_CHECK(scalar->quoted || !empty, SMOE_ERR_CONFIG, "%s: %s: no value; write \"\" for an empty text",
             where, key->name);
  return SMOE_OK;
}

static smoe_status set_text(const smoe_key *key, char *value, const smoe_config_scalar *scalar,
                            const char *where) {
  SMOE_CHECK(scalar->bytes < SMOE_TEXT_MAX, SMOE_ERR_CONFIG, "%s: %s: the text has %zu bytes; at most %d fit",
             where, key->name, scalar->bytes, SMOE_TEXT_MAX - 1);
  SMOE_TRY(check_text(key, scalar, where));
  memset(value, 0, SMOE_TEXT_MAX);
  memcpy(value, scalar->text, scalar->bytes);
  return SMOE_OK;
}

static smoe_status set_path(const smoe_key *key, char *value, const smoe_config_scalar *scalar,
                            const char *where) {
  char path[SMOE_TEXT_MAX], context[512];
  SMOE_TRY(check_text(key, scalar, where)); /* of what is written, then of what it stands for */
  snprintf(context, sizeof context, "%s: %s", where, key->name);
  size_t bytes;
  SMOE_TRY(smoe_config_expand(path, &bytes, scalar->text, context));
  const smoe_config_scalar expanded = {path, bytes, true};
  return set_text(key, value, &expanded, where);
}

static smoe_status set_bool(const smoe_key *key, bool *value, const char *text, const char *where) {
  /* The spellings of YAML 1.2; yes, no, on and off are words there. */
  static const char *const words[2][3] = {{"false", "False", "FALSE"}, {"true", "True", "TRUE"}};
  for (int yes = 0; yes < 2; yes++)
    for (int i = 0; i < 3; i++)
      if (strcmp(text, words[yes][i]) == 0) {
        *value = yes;
        return SMOE_OK;
      }
  return SMOE_FAIL(SMOE_ERR_CONFIG, "%s: %s: '%.64s' is neither true nor false", where, key->name, text);
}

/* "a, b" or "[a, b]", without the blanks around the texts. */
static smoe_status set_list(const smoe_key *key, char *value, const smoe_config_scalar *scalar,
                            const char *where) {
  const smoe_config_scalar text = {scalar->text, scalar->bytes, true};
  char whole[SMOE_TEXT_MAX];
  SMOE_TRY(set_text(key, whole, &text, where));
  const size_t bytes = strlen(whole);
  const bool brackets = bytes >= 2 && whole[0] == '[' && whole[bytes - 1] == ']';
  if (brackets) whole[bytes - 1] = '\0';
  memset(value, 0, SMOE_TEXT_MAX);
  const char *item = whole + brackets;
  item += strspn(item, " ");
  for (char *out = value; *item;) {
    const size_t length = strcspn(item, ",");
    size_t used = length;
    while (used > 0 && item[used - 1] == ' ') used--;
    SMOE_CHECK(used > 0, SMOE_ERR_CONFIG, "%s: %s: the list '%.64s' has an empty text", where, key->name,
               scalar->text);
    if (out > value) *out++ = ',';
    memcpy(out, item, used);
    out += used;
    SMOE_CHECK(item[length] != ',' || item[length + 1 + strspn(item + length + 1, " ")], SMOE_ERR_CONFIG,
               "%s: %s: the list '%.64s' ends with a comma", where, key->name, scalar->text);
    item += length + (item[length] == ',');
    item += strspn(item, " ");
  }
  return SMOE_OK;
}

smoe_status smoe_config_set(const smoe_config_entry *entry, const smoe_config_scalar *scalar,
                            const char *where) {
  const smoe_key *key = entry->key;
  const char *text = scalar->text;
  if (key->kind == SMOE_KEY_TEXT) return set_text(key, entry->value, scalar, where);
  if (key->kind == SMOE_KEY_PATH) return set_path(key, entry->value, scalar, where);
  if (key->kind == SMOE_KEY_LIST) return set_list(key, entry->value, scalar, where);
  SMOE_CHECK(scalar->bytes > 0, SMOE_ERR_CONFIG, "%s: %s: no value; %s expected", where, key->name,
             smoe_config_kind_name(key->kind));
  SMOE_CHECK(strlen(text) == scalar->bytes, SMOE_ERR_CONFIG,
             "%s: %s: '%.64s' continues after a NUL character", where, key->name, text);
  if (key->kind == SMOE_KEY_CHOICE) return set_choice(key, entry->value, text, where);
  SMOE_CHECK(!scalar->quoted, SMOE_ERR_CONFIG, "%s: %s: \"%.64s\" is a text; write %s without quotes", where,
             key->name, text, smoe_config_kind_name(key->kind));
  if (key->kind == SMOE_KEY_INT) return set_int(key, entry->value, text, where);
  if (key->kind == SMOE_KEY_REAL) return set_real(key, entry->value, text, where);
  return set_bool(key, entry->value, text, where);
}

/* The fewest digits that read back as the same number. With a point always, since YAML 1.1 readers take
 * 6e-4 for a text. */
static void print_real(FILE *out, double v) {
  if (v == floor(v) && fabs(v) < 1e6) { /* 300.0 is as exact as 3.0e+2, and what people write */
    fprintf(out, "%.1f", v);
    return;
  }
  char s[40];
  for (int digits = 1; digits <= 17; digits++) {
    snprintf(s, sizeof s, "%.*g", digits, v);
    if (strtod(s, NULL) == v) break;
  }
  const size_t mantissa = strcspn(s, "e");
  fprintf(out, "%.*s%s", (int)mantissa, s, memchr(s, '.', mantissa) ? "" : ".0");
  if (s[mantissa] == '\0') return;
  const char *exponent = s + mantissa + 2; /* "e-08": at least two digits */
  while (exponent[0] == '0' && exponent[1]) exponent++;
  fprintf(out, "e%c%s", s[mantissa + 1], exponent);
}

/* Bare where no reader of YAML can take it for anything but a text. */
static void print_text(FILE *out, const smoe_key *key, const char *text) {
  static const char *const taken[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", NULL};
  static const char *const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-";
  bool bare = (isalpha((unsigned char)text[0]) || text[0] == '/' || strncmp(text, "./", 2) == 0 ||
               strncmp(text, "../", 3) == 0) &&
              text[strspn(text, safe)] == '\0';
  for (size_t i = 0; taken[i]; i++) bare = bare && strcasecmp(text, taken[i]) != 0;
  if (bare) {
    fputs(text, out);
    return;
  }
  fputc('"', out);
  for (const char *s = text; *s; s++) {
    if (*s == '"' || *s == '\\') fputc('\\', out);
    if (*s == '$' && key->kind == SMOE_KEY_PATH) fputc('$', out);
    fputc(*s, out);
  }
  fputc('"', out);
}

const char *smoe_config_next(const char *list, char item[SMOE_TEXT_MAX]) {
  const size_t length = strcspn(list, ",");
  snprintf(item, SMOE_TEXT_MAX, "%.*s", (int)length, list);
  return list + length + (list[length] == ',');
}

static void print_list(FILE *out, const smoe_key *key, const char *list) {
  fputc('[', out);
  char text[SMOE_TEXT_MAX];
  for (const char *rest = list; *rest;) {
    if (rest > list) fputs(", ", out);
    rest = smoe_config_next(rest, text);
    print_text(out, key, text);
  }
  fputc(']', out);
}

void smoe_config_print_value(FILE *out, const smoe_key *key, const void *value) {
  switch (key->kind) {
  case SMOE_KEY_INT:
    fprintf(out, "%lld", (long long)*(const int64_t *)value);
    break;
  case SMOE_KEY_REAL:
    print_real(out, *(const double *)value);
    break;
  case SMOE_KEY_BOOL:
    fputs(*(const bool *)value ? "true" : "false", out);
    break;
  case SMOE_KEY_TEXT:
  case SMOE_KEY_PATH:
    print_text(out, key, value);
    break;
  case SMOE_KEY_LIST:
    print_list(out, key, value);
    break;
  case SMOE_KEY_CHOICE:
    fputs(key->choices[*(const int *)value], out);
    break;
  }
}

void smoe_config_print_range(FILE *out, const smoe_key *key) {
  if (key->kind == SMOE_KEY_BOOL) {
    fputs("true or false", out);
  } else if (key->kind == SMOE_KEY_CHOICE) {
    for (size_t i = 0; key->choices[i]; i++)
      fprintf(out, "%s%s", i == 0 ? "" : key->choices[i + 1] ? ", " : " or ", key->choices[i]);
  } else if (!smoe_config_is_text(key) && key->kind != SMOE_KEY_LIST) {
    fprintf(out, "%.15g", key->min);
    if (isinf(key->max))
      fputs(" or more", out);
    else
      fprintf(out, " to %.15g", key->max);
    if (key->unit && key->unit[0]) fprintf(out, " %s", key->unit);
  }
}
