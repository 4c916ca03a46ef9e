#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "stablemoe/arena.h"
#include "stablemoe/tokenizer.h"
#include "stream.h"

enum { MODEL_BYTES_MAX = 1 << 28 };

/** Name what is often given in place of a SentencePiece model. */
static smoe_status check_kind(const char *path, const char *data, size_t bytes) {
  const size_t head = bytes < 4096 ? bytes : 4096;
  const bool json = data[strspn(data, " \t\r\n")] == '{';
  SMOE_CHECK(
      !json, SMOE_ERR_FORMAT,
      "'%s' is JSON%s, not a SentencePiece model: encode the text with its own library, and give the token "
      "ids to prepare (--raw, or shards of llm.c)",
      path, memmem(data, bytes, "\"model\"", 7) ? ", perhaps a tokenizer.json of Hugging Face" : "");
  const char *kind = smoe_stream_kind(data, head);
  SMOE_CHECK(!kind, SMOE_ERR_FORMAT, "'%s' is not a SentencePiece model but %s", path, kind);
  return SMOE_OK;
}

smoe_status smoe_tokenizer_load(char **model, size_t *bytes, const char *path) {
  FILE *stream = fopen(path, "rb");
  SMOE_CHECK(stream, SMOE_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  struct stat about;
  const bool fine = fstat(fileno(stream), &about) == 0 && about.st_size <= MODEL_BYTES_MAX;
  *bytes = fine ? (size_t)about.st_size : 0;
  *model = smoe_alloc(*bytes + 1);
  const bool whole = fread(*model, 1, *bytes, stream) == *bytes;
  fclose(stream);
  SMOE_CHECK(fine && whole && *bytes > 0, SMOE_ERR_FORMAT, "'%s' is not a SentencePiece model", path);
  return check_kind(path, *model, *bytes);
}
