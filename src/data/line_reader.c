#include "line_reader.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>

#include "stablemoe/arena.h"
#include "stablemoe/utf8.h"

enum { LONGEST_LINE = 1 << 20, READ_BYTES = 1 << 20 };

smoe_status smoe_line_reader_open(smoe_line_reader *reader, const char *path) {
  *reader = (smoe_line_reader){.path = path, .room = LONGEST_LINE + READ_BYTES};
  errno = 0;
  reader->stream = gzopen(path, "rb");
  SMOE_CHECK(reader->stream, SMOE_ERR_IO, "cannot open '%s': %s", path,
             errno ? strerror(errno) : "no memory");
  reader->buffer = smoe_alloc(reader->room);
  return SMOE_OK;
}

void smoe_line_reader_close(smoe_line_reader *reader) {
  if (reader->stream) gzclose(reader->stream);
  smoe_free(reader->buffer);
  *reader = (smoe_line_reader){0};
}

/** Have a whole line, or all there is. */
static smoe_status fill(smoe_line_reader *reader) {
  memmove(reader->buffer, reader->buffer + reader->begin, reader->end - reader->begin);
  reader->end -= reader->begin;
  reader->begin = 0;
  errno = 0;
  const int got =
      gzread(reader->stream, reader->buffer + reader->end, (unsigned)(reader->room - reader->end));
  int code = Z_OK;
  const char *text = gzerror(reader->stream, &code);
  SMOE_CHECK(got >= 0 || code != Z_ERRNO, SMOE_ERR_IO, "cannot read '%s': %s", reader->path, strerror(errno));
  SMOE_CHECK(code != Z_BUF_ERROR, SMOE_ERR_FORMAT, "the compressed file '%s' is truncated", reader->path);
  SMOE_CHECK(got >= 0 && (code == Z_OK || code == Z_STREAM_END), SMOE_ERR_FORMAT,
             "the compressed file '%s' is damaged: %s", reader->path, text);
  reader->end += (size_t)got;
  reader->at_end = got == 0;
  return SMOE_OK;
}

static smoe_status check_line(const smoe_line_reader *reader, const char *text, size_t bytes) {
  const size_t valid = smoe_utf8_prefix(text, bytes);
  SMOE_CHECK(valid == bytes, SMOE_ERR_FORMAT, "'%s' is not UTF-8 text: line %lld, byte %zu is 0x%02X",
             reader->path, (long long)reader->n_lines + 1, valid + 1, (unsigned char)text[valid]);
  return SMOE_OK;
}

smoe_status smoe_line_reader_next(smoe_line_reader *reader, const char **text, size_t *bytes) {
  const char *newline;
  *text = NULL;
  *bytes = 0;
  for (;;) {
    const size_t n = reader->end - reader->begin;
    newline = memchr(reader->buffer + reader->begin, '\n', n);
    if (newline || reader->at_end) break;
    SMOE_CHECK(n <= LONGEST_LINE, SMOE_ERR_FORMAT,
               "line %lld of '%s' is longer than %d bytes: is it text with one sentence per line?",
               (long long)reader->n_lines + 1, reader->path, LONGEST_LINE);
    SMOE_TRY(fill(reader));
  }
  if (!newline && reader->begin == reader->end) return SMOE_OK;
  const char *line = reader->buffer + reader->begin;
  size_t length = newline ? (size_t)(newline - line) : reader->end - reader->begin;
  reader->begin += length + (newline != NULL);
  if (length > 0 && line[length - 1] == '\r') length--;
  SMOE_TRY(check_line(reader, line, length));
  reader->n_lines++;
  *text = line;
  *bytes = length;
  return SMOE_OK;
}
