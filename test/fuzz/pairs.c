/* Sentence pairs: two files line by line, or one of two columns. The first byte says which, and where the second file
 * begins.
 */
#include "data/pair_files.h"

#include <zlib.h>

#include "fuzz.h"
#include "stablemoe/log.h"

static char *path[SMOE_SIDES];

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  smoe_log_setup(1, true);
  path[0] = fuzz_path("pairs.xx");
  path[1] = fuzz_path("pairs.yy");
}

void fuzz_seeds(void) {
  FUZZ_SEED("two", "\101one\r\n two \none more\nuno\ndos\t\nuno mas");
  FUZZ_SEED("columns", "\0a\tb\n\nc d \t e\n");
  FUZZ_SEED("wrong", "\0a\tb\tc\n\xff");
  uint8_t packed[128] = {0};
  z_stream z = {0};
  static uint8_t text[] = "one\tuno\ntwo\tdos\n";
  FUZZ_CHECK(deflateInit2(&z, 9, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  z.next_in = text;
  z.avail_in = sizeof text - 1;
  z.next_out = packed + 1;
  z.avail_out = sizeof packed - 1;
  FUZZ_CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
  fuzz_seed("packed", packed, 1 + (size_t)z.total_out);
  deflateEnd(&z);
}

/* Read all pairs; returns how many there were, -1 where they were refused. */
static int64_t read_all(const smoe_pair_file *file) {
  smoe_pair_reader reader;
  smoe_pair_text pair;
  int64_t n = 0;
  FUZZ_CHECK(smoe_pair_reader_open(&reader, file) == SMOE_OK);
  smoe_status status = smoe_pair_reader_next(&reader, &pair);
  for (; status == SMOE_OK && pair.text[0]; n++) {
    for (int side = 0; side < SMOE_SIDES; side++) {
      const char *text = pair.text[side];
      const size_t bytes = pair.bytes[side];
      FUZZ_CHECK(text && !memchr(text, '\n', bytes));
      FUZZ_CHECK(bytes == 0 || (!strchr(" \t\r", text[0]) && !strchr(" \t\r", text[bytes - 1])) ||
                 text[0] == '\0' || text[bytes - 1] == '\0');
    }
    FUZZ_CHECK(smoe_pair_is_complete(&pair) == (pair.bytes[0] > 0 && pair.bytes[1] > 0));
    status = smoe_pair_reader_next(&reader, &pair);
  }
  FUZZ_CHECK(status == SMOE_OK || (smoe_last_error()[0] && strstr(smoe_last_error(), "pairs.")));
  smoe_pair_reader_close(&reader);
  return status == SMOE_OK ? n : -1;
}

void fuzz_one(const uint8_t *data, size_t size) {
  if (size < 2) return;
  const bool two = data[0] & 1;
  const size_t first = two ? (size - 1) * (data[0] >> 1) / 127 : size - 1;
  fuzz_write(path[0], data + 1, first);
  fuzz_write(path[1], data + 1 + first, size - 1 - first);
  const smoe_pair_file file = {.path = {path[0], two ? path[1] : NULL}};
  const int64_t n = read_all(&file);
  FUZZ_CHECK(read_all(&file) == n);
}
