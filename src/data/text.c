#include "text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"

enum { READ_BYTES = 1 << 20, LONGEST_LINE = 1 << 18 };

smoe_status smoe_reader_open(smoe_reader *reader, const char *path, bool lines, size_t document_bytes) {
  *reader = (smoe_reader){.path = path, .lines = lines, .document_bytes = document_bytes};
  reader->longest = lines ? LONGEST_LINE : 4 * document_bytes;
  reader->room = reader->longest + READ_BYTES;
  reader->stream = fopen(path, "rb");
  SMOE_CHECK(reader->stream, SMOE_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  reader->buffer = smoe_alloc(reader->room);
  return SMOE_OK;
}

void smoe_reader_close(smoe_reader *reader) {
  if (reader->stream) fclose(reader->stream);
  smoe_free(reader->buffer);
  *reader = (smoe_reader){0};
}

/** Have one more byte than the longest document, or all there is. */
static smoe_status fill(smoe_reader *reader) {
  if (reader->at_end || reader->end - reader->begin > reader->longest) return SMOE_OK;
  memmove(reader->buffer, reader->buffer + reader->begin, reader->end - reader->begin);
  reader->end -= reader->begin;
  reader->begin = 0;
  errno = 0;
  const size_t asked = reader->room - reader->end;
  const size_t got = fread(reader->buffer + reader->end, 1, asked, reader->stream);
  SMOE_CHECK(!ferror(reader->stream), SMOE_ERR_IO, "cannot read '%s': %s", reader->path, strerror(errno));
  reader->end += got;
  reader->at_end = got < asked;
  return SMOE_OK;
}

/** Where the line at text ends: after its newline, at limit where there is none. */
static size_t line_end(const char *text, size_t from, size_t limit) {
  const char *newline = memchr(text + from, '\n', limit - from);
  return newline ? (size_t)(newline - text) + 1 : limit;
}

/** Length of the document at text, of which n > 0 bytes are there. */
static size_t document_end(const smoe_reader *reader, const char *text, size_t n) {
  if (n <= reader->document_bytes) return n;
  const size_t limit = n < reader->longest ? n : reader->longest;
  size_t last_line = 0;
  for (size_t at = line_end(text, reader->document_bytes, limit); at < limit;) {
    last_line = at;
    const bool blank = text[at] == '\n' || (text[at] == '\r' && at + 1 < limit && text[at + 1] == '\n');
    at = line_end(text, at, limit);
    if (blank) return at;
  }
  if (limit == n) return n;
  return last_line ? last_line : smoe_utf8_cut(text, limit);
}

/** Length of the line at text without its end; *used with it. */
static size_t line_length(const smoe_reader *reader, const char *text, size_t n, size_t *used) {
  const size_t limit = n < reader->longest ? n : reader->longest;
  size_t length = line_end(text, 0, limit);
  *used = length;
  if (text[length - 1] == '\n') {
    length--;
    if (length > 0 && text[length - 1] == '\r') length--;
  } else if (limit < n) {
    *used = length = smoe_utf8_cut(text, limit);
  }
  return length;
}

smoe_status smoe_reader_next(smoe_reader *reader, const char **text, size_t *bytes) {
  *bytes = 0;
  while (*bytes == 0) {
    SMOE_TRY(fill(reader));
    const size_t n = reader->end - reader->begin;
    if (n == 0) return SMOE_OK;
    *text = reader->buffer + reader->begin;
    size_t used = 0;
    if (reader->lines)
      *bytes = line_length(reader, *text, n, &used);
    else
      *bytes = used = document_end(reader, *text, n);
    const size_t valid = smoe_utf8_prefix(*text, *bytes);
    SMOE_CHECK(valid == *bytes, SMOE_ERR_FORMAT,
               "'%s' is not UTF-8 text: byte %lld (counted from 0) is 0x%02X", reader->path,
               (long long)reader->position + (long long)valid, (unsigned char)(*text)[valid]);
    reader->begin += used;
    reader->position += (int64_t)used;
  }
  return SMOE_OK;
}
