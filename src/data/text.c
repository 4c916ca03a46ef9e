#include "text.h"

#include <stdlib.h>
#include <string.h>

#include "json_text.h"
#include "stablemoe/arena.h"

enum { READ_BYTES = 1 << 20 };

smoe_status smoe_reader_fill(smoe_reader *reader, size_t bytes) {
  if (reader->at_end || reader->end - reader->begin >= bytes) return SMOE_OK;
  /* Before the first read there is no buffer. */
  if (reader->begin < reader->end)
    memmove(reader->buffer, reader->buffer + reader->begin, reader->end - reader->begin);
  reader->end -= reader->begin;
  reader->begin = 0;
  if (reader->room < bytes + READ_BYTES) {
    while (reader->room < bytes + READ_BYTES) reader->room = reader->room ? 2 * reader->room : READ_BYTES;
    reader->buffer = smoe_realloc(reader->buffer, reader->room);
  }
  size_t got;
  const size_t asked = reader->room - reader->end;
  SMOE_TRY(smoe_stream_read(&reader->stream, reader->buffer + reader->end, asked, &got));
  reader->end += got;
  reader->at_end = got < asked;
  return SMOE_OK;
}

static void advance(smoe_reader *reader, size_t bytes) {
  reader->begin += bytes;
  reader->position += (int64_t)bytes;
}

smoe_status smoe_reader_open(smoe_reader *reader, const char *path, const smoe_text_format *format) {
  *reader = (smoe_reader){.path = path, .format = *format, .line = 1};
  SMOE_TRY(smoe_stream_open(&reader->stream, path));
  SMOE_TRY(smoe_reader_fill(reader, 1024));
  const bool binary = smoe_utf8_prefix(reader->buffer, reader->end) + 3 < reader->end;
  const char *kind = binary ? smoe_stream_kind(reader->buffer, reader->end) : NULL;
  SMOE_CHECK(!kind, SMOE_ERR_FORMAT, "'%s' is not UTF-8 text but %s", path, kind);
  if (reader->end >= 3 && memcmp(reader->buffer, "\xef\xbb\xbf", 3) == 0) advance(reader, 3);
  return SMOE_OK;
}

void smoe_reader_close(smoe_reader *reader) {
  smoe_stream_close(&reader->stream);
  smoe_json_text_release(reader);
  smoe_free(reader->buffer);
  *reader = (smoe_reader){0};
}

/** Where the line at text ends: after its newline, at limit where there is none. */
static size_t line_end(const char *text, size_t from, size_t limit) {
  const char *newline = memchr(text + from, '\n', limit - from);
  return newline ? (size_t)(newline - text) + 1 : limit;
}

/** Bytes of the line end at text, of which n are there: 0, 1 or 2. */
static size_t line_break(const char *text, size_t n) {
  if (n > 0 && text[0] == '\n') return 1;
  return n > 1 && text[0] == '\r' && text[1] == '\n' ? 2 : 0;
}

/** A file that is cut: length of its next document, at most 4 document_bytes. */
static smoe_status next_cut(smoe_reader *reader, size_t *bytes, size_t *used) {
  const size_t longest = 4 * reader->format.document_bytes;
  SMOE_TRY(smoe_reader_fill(reader, longest + 1));
  const char *text = reader->buffer + reader->begin;
  const size_t n = reader->end - reader->begin, limit = n < longest ? n : longest;
  *bytes = n;
  if (n > reader->format.document_bytes) {
    size_t last_line = 0, found = 0;
    for (size_t at = line_end(text, reader->format.document_bytes, limit); at < limit && !found;) {
      last_line = at;
      const bool blank = line_break(text + at, limit - at) > 0;
      at = line_end(text, at, limit);
      if (blank) found = at;
    }
    if (found)
      *bytes = found;
    else if (limit < n)
      *bytes = last_line ? last_line : smoe_utf8_cut(text, limit);
  }
  *used = *bytes;
  return SMOE_OK;
}

/** Where the next `mark` of the file is, relative to begin; its end where there is none. */
static smoe_status find(smoe_reader *reader, const char *mark, size_t *at, bool *found) {
  const size_t length = strlen(mark);
  size_t searched = 0;
  for (;;) {
    const size_t n = reader->end - reader->begin;
    const char *text = reader->buffer + reader->begin;
    const char *where = n > searched ? memmem(text + searched, n - searched, mark, length) : NULL;
    *found = where != NULL;
    *at = where ? (size_t)(where - text) : n;
    if (where || reader->at_end) return SMOE_OK;
    SMOE_CHECK(n < (size_t)SMOE_DOCUMENT_BYTES_MAX, SMOE_ERR_FORMAT,
               "'%s' has a document of more than %lld bytes at byte %lld: cut it into smaller ones",
               reader->path, (long long)SMOE_DOCUMENT_BYTES_MAX, (long long)reader->position);
    searched = n >= length ? n - length + 1 : 0;
    SMOE_TRY(smoe_reader_fill(reader, n + 1));
  }
}

static smoe_status next_line(smoe_reader *reader, size_t *bytes, size_t *used) {
  bool found;
  SMOE_TRY(find(reader, "\n", bytes, &found));
  *used = *bytes + found;
  if (found && *bytes > 0 && reader->buffer[reader->begin + *bytes - 1] == '\r') (*bytes)--;
  return SMOE_OK;
}

static bool is_blank(const char *text, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!strchr(" \t\r\n", text[i]) || !text[i]) return false;
  return true;
}

/** The text up to the next mark. The line end after a mark belongs to it. */
static smoe_status next_marked(smoe_reader *reader, size_t *bytes, size_t *used) {
  bool found;
  SMOE_TRY(find(reader, reader->format.separator, bytes, &found));
  *used = *bytes;
  if (found) {
    *used += strlen(reader->format.separator);
    SMOE_TRY(smoe_reader_fill(reader, *used + 2));
    *used += line_break(reader->buffer + reader->begin + *used, reader->end - reader->begin - *used);
  }
  if (is_blank(reader->buffer + reader->begin, *bytes)) *bytes = 0;
  return SMOE_OK;
}

smoe_status smoe_reader_next(smoe_reader *reader, const char **text, size_t *bytes) {
  if (reader->format.json) return smoe_reader_next_json(reader, text, bytes);
  for (*bytes = 0; *bytes == 0;) {
    size_t used = 0;
    SMOE_TRY(smoe_reader_fill(reader, 1));
    if (reader->end == reader->begin) return SMOE_OK;
    if (reader->format.separator)
      SMOE_TRY(next_marked(reader, bytes, &used));
    else if (reader->format.lines)
      SMOE_TRY(next_line(reader, bytes, &used));
    else
      SMOE_TRY(next_cut(reader, bytes, &used));
    *text = reader->buffer + reader->begin;
    const size_t valid = smoe_utf8_prefix(*text, *bytes);
    SMOE_CHECK(valid == *bytes, SMOE_ERR_FORMAT,
               "'%s' is not UTF-8 text: byte %lld (counted from 0) is 0x%02X", reader->path,
               (long long)reader->position + (long long)valid, (unsigned char)(*text)[valid]);
    advance(reader, used);
  }
  return SMOE_OK;
}
