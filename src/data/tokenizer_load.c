#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "stablemoe/arena.h"
#include "stablemoe/tokenizer.h"

enum { MODEL_BYTES_MAX = 1 << 28 };

smoe_status smoe_tokenizer_load(char **model, size_t *bytes, const char *path) {
  FILE *stream = fopen(path, "rb");
  SMOE_CHECK(stream, SMOE_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  struct stat about;
  const bool fine = fstat(fileno(stream), &about) == 0 && about.st_size <= MODEL_BYTES_MAX;
  *bytes = fine ? (size_t)about.st_size : 0;
  *model = smoe_alloc(*bytes + 1);
  const bool whole = fread(*model, 1, *bytes, stream) == *bytes;
  fclose(stream);
  SMOE_CHECK(fine && whole && *bytes > 0, SMOE_ERR_FORMAT, "'%s' is no SentencePiece model", path);
  return SMOE_OK;
}
