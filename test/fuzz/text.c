/* Text files: what is UTF-8, and where documents are cut. */
#include "data/text.h"

#include "fuzz.h"

static char *path;

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  path = fuzz_path("text");
}

void fuzz_seeds(void) {
  static const char *const texts[] = {"def f(x):\n    return x\n\n\ndef g(y):\r\n    pass\r\n\r\nend",
                                      "\xc3\xa9t\xc3\xa9 \xe2\x96\x81\xf0\x9f\x98\x80\n\xed\x9f\xbf\n",
                                      "\n\n\r\n\n",
                                      "a\xed\xa0\x80z",
                                      "one<|>\ntwo<|>",
                                      "{\"text\": \"a\\u00e9\", \"n\": [1, {}]}\n[{\"text\": null}]",
                                      "\xef\xbb\xbfmark",
                                      "\xf4\x8f\xbf\xbf\xf4\x90\x80\x80"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    char name[16], seed[128];
    snprintf(name, sizeof name, "text%zu", i);
    snprintf(seed, sizeof seed, "%c%s", (int)(9 * i + 2), texts[i]);
    fuzz_seed(name, seed, strlen(seed));
  }
}

/** By the definition of RFC 3629, character by character, another way than the program's. */
static bool is_utf8(const uint8_t *c, size_t n) {
  for (size_t i = 0; i < n;) {
    static const uint32_t least[] = {0, 1, 0x80, 0x800, 0x10000};
    const size_t bytes = c[i] < 0x80             ? 1
                         : (c[i] & 0xE0) == 0xC0 ? 2
                         : (c[i] & 0xF0) == 0xE0 ? 3
                         : (c[i] & 0xF8) == 0xF0 ? 4
                                                 : 0;
    if (bytes == 0 || bytes > n - i) return false;
    uint32_t code = bytes == 1 ? c[i] : c[i] & (0x7Fu >> bytes);
    for (size_t k = 1; k < bytes; k++) {
      if ((c[i + k] & 0xC0) != 0x80) return false;
      code = code << 6 | (c[i + k] & 0x3F);
    }
    if (code < least[bytes] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
    i += bytes;
  }
  return true;
}

/** Read all documents; without lines they are the text, one after the other. */
static void read_documents(const uint8_t *data, size_t size, bool lines, size_t document_bytes) {
  const smoe_text_format format = {.lines = lines, .document_bytes = document_bytes};
  smoe_reader reader;
  size_t at = size >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0 ? 3 : 0, bytes = 1;
  smoe_status status = smoe_reader_open(&reader, path, &format);
  while (status == SMOE_OK && bytes > 0) {
    const char *text = NULL;
    status = smoe_reader_next(&reader, &text, &bytes);
    if (status != SMOE_OK || bytes == 0) break;
    FUZZ_CHECK(is_utf8((const uint8_t *)text, bytes));
    if (lines) {
      FUZZ_CHECK(!memchr(text, '\n', bytes));
      const uint8_t *found = memmem(data + at, size - at, text, bytes);
      FUZZ_CHECK(found);
      at = (size_t)(found - data) + bytes;
    } else {
      FUZZ_CHECK(bytes <= 4 * document_bytes && at + bytes <= size && memcmp(data + at, text, bytes) == 0);
      at += bytes;
    }
  }
  smoe_reader_close(&reader);
  /* What begins like bzip2 is read as such, and the others' beginnings are not UTF-8. */
  if (status == SMOE_ERR_IO && (!is_utf8(data, size) || memcmp(data, "BZh", 3) == 0)) return;
  FUZZ_CHECK(status == SMOE_OK || (status == SMOE_ERR_FORMAT && !is_utf8(data, size)));
  FUZZ_CHECK(status != SMOE_OK || is_utf8(data, size));
  FUZZ_CHECK(status != SMOE_OK || lines || at == size);
}

/** Documents between marks, and in JSON: read to the end or refused. */
static void read_others(void) {
  static const smoe_text_format formats[] = {{.separator = "<|>"}, {.json = true, .field = "text"}};
  for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
    smoe_reader reader;
    const char *text = NULL;
    size_t bytes = 1;
    smoe_status status = smoe_reader_open(&reader, path, &formats[f]);
    while (status == SMOE_OK && bytes > 0) {
      status = smoe_reader_next(&reader, &text, &bytes);
      if (status == SMOE_OK && bytes > 0) {
        FUZZ_CHECK(is_utf8((const uint8_t *)text, bytes));
        FUZZ_CHECK(f > 0 || !memmem(text, bytes, "<|>", 3));
      }
    }
    smoe_reader_close(&reader);
    FUZZ_CHECK(status == SMOE_OK || smoe_last_error()[0]);
  }
}

void fuzz_one(const uint8_t *data, size_t size) {
  if (size == 0) return;
  const size_t document_bytes = 1 + (data[0] & 63);
  data++, size--;
  const size_t prefix = smoe_utf8_prefix((const char *)data, size);
  FUZZ_CHECK(prefix <= size && is_utf8(data, prefix));
  FUZZ_CHECK((prefix == size) == is_utf8(data, size));
  fuzz_write(path, data, size);
  read_documents(data, size, false, document_bytes);
  read_documents(data, size, true, document_bytes);
  read_others();
}
