#include "stream.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 1 << 18 };

static smoe_status failed(const smoe_stream *stream) {
  SMOE_CHECK(access(stream->path, R_OK) == 0, SMOE_ERR_IO, "cannot open '%s': %s", stream->path,
             strerror(errno));
  const char *why = stream->archive ? archive_error_string(stream->archive) : "out of memory";
  return SMOE_FAIL(SMOE_ERR_IO, "cannot read '%s': %s", stream->path, why ? why : "unknown error");
}

smoe_status smoe_stream_open(smoe_stream *stream, const char *path) {
  *stream = (smoe_stream){.path = path, .archive = archive_read_new()};
  struct archive *a = stream->archive;
  if (!a) return failed(stream);
  archive_read_support_filter_gzip(a);
  archive_read_support_filter_bzip2(a);
  archive_read_support_filter_xz(a);
  archive_read_support_filter_zstd(a);
  archive_read_support_format_raw(a);
  archive_read_support_format_empty(a);
  if (archive_read_open_filename(a, path, BLOCK) != ARCHIVE_OK) return failed(stream);
  struct archive_entry *entry;
  const int got = archive_read_next_header(a, &entry);
  stream->at_end = got == ARCHIVE_EOF;
  return got == ARCHIVE_OK || got == ARCHIVE_EOF ? SMOE_OK : failed(stream);
}

smoe_status smoe_stream_read(smoe_stream *stream, void *data, size_t bytes, size_t *got) {
  *got = 0;
  while (*got < bytes && !stream->at_end) {
    const la_ssize_t n = archive_read_data(stream->archive, (char *)data + *got, bytes - *got);
    if (n < 0) return failed(stream);
    stream->at_end = n == 0;
    *got += (size_t)n;
  }
  return SMOE_OK;
}

void smoe_stream_close(smoe_stream *stream) {
  if (stream->archive) archive_read_free(stream->archive);
  *stream = (smoe_stream){0};
}

static bool ends(const char *name, size_t length, const char *ending) {
  const size_t n = strlen(ending);
  return length > n && memcmp(name + length - n, ending, n) == 0;
}

size_t smoe_stream_stem(const char *path) {
  static const char *const endings[] = {".gz", ".zst", ".xz", ".bz2"};
  const size_t length = strlen(path);
  for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
    if (ends(path, length, endings[i])) return length - strlen(endings[i]);
  return length;
}

bool smoe_stream_is_named(const char *path, const char *ending) {
  return ends(path, smoe_stream_stem(path), ending);
}

/** Text in UTF-16 without a mark: every other byte of its beginning is NUL, mostly. */
static bool is_utf16(const unsigned char *data, size_t bytes) {
  size_t zeros[2] = {0, 0};
  if (bytes > 256) bytes = 256;
  for (size_t i = 0; i < bytes; i++) zeros[i % 2] += data[i] == 0;
  const size_t more = zeros[0] > zeros[1] ? zeros[0] : zeros[1], less = zeros[0] + zeros[1] - more;
  return bytes >= 4 && 8 * more >= 3 * bytes && less * 8 <= bytes && less < more;
}

const char *smoe_stream_kind(const void *data, size_t bytes) {
  static const struct {
    size_t at, bytes;
    const char *magic, *kind;
  } kinds[] = {
      {0, 4, "PAR1", "a Parquet file: write its text column as JSON lines (.jsonl) first"},
      {0, 6, "ARROW1", "an Arrow file: write its text column as JSON lines (.jsonl) first"},
      {0, 4, "PK\3\4", "a zip archive: unpack it"},
      {257, 5, "ustar", "a tar archive: unpack it, and name the directory"},
      {0, 8, "\x89HDF\r\n\x1a\n", "an HDF5 file: a corpus is given to train, not to prepare"},
      {0, 4, "%PDF", "a PDF file: extract its text first"},
      {0, 2, "\xff\xfe", "UTF-16 text: convert it with 'iconv -f UTF-16 -t UTF-8'"},
      {0, 2, "\xfe\xff", "UTF-16 text: convert it with 'iconv -f UTF-16 -t UTF-8'"},
      {0, 2, "\x1f\x8b", "gzip inside another compression: decompress it once"},
      {0, 4, "\x28\xb5\x2f\xfd", "zstd inside another compression: decompress it once"},
      {0, 8, "MMIDIDX\0", "the index of a token file of Megatron: name its .bin file"},
  };
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    const size_t end = kinds[i].at + kinds[i].bytes;
    if (bytes >= end && memcmp((const char *)data + kinds[i].at, kinds[i].magic, kinds[i].bytes) == 0)
      return kinds[i].kind;
  }
  return is_utf16(data, bytes) ? "UTF-16 text: convert it with 'iconv -f UTF-16LE -t UTF-8'" : NULL;
}
