#include "spool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/arena.h"

const char *smoe_split_name(smoe_split split) {
  static const char *const names[SMOE_SPLITS] = {"train", "valid", "test"};
  return names[split];
}

/** A file that has no name any more. */
static FILE *open_unnamed(const char *output) {
  char *path = smoe_sprintf("%s.XXXXXX", output);
  FILE *stream = NULL;
  const int descriptor = mkstemp(path);
  if (descriptor >= 0) {
    unlink(path);
    stream = fdopen(descriptor, "w+b");
    if (!stream) close(descriptor);
  }
  smoe_free(path);
  return stream;
}

smoe_status smoe_spool_open(smoe_spool *spool, const char *output, int vocabulary) {
  *spool = (smoe_spool){.output = output, .vocabulary = vocabulary};
  for (int s = 0; s < SMOE_SPLITS; s++) {
    spool->document[s] = smoe_alloc(2 * sizeof(int64_t));
    spool->stream[s] = open_unnamed(output);
    SMOE_CHECK(spool->stream[s], SMOE_ERR_IO, "cannot write next to '%s': %s", output, strerror(errno));
  }
  return SMOE_OK;
}

void smoe_spool_close(smoe_spool *spool) {
  for (int s = 0; s < SMOE_SPLITS; s++) {
    if (spool->stream[s]) fclose(spool->stream[s]);
    smoe_free(spool->document[s]);
  }
  *spool = (smoe_spool){0};
}

smoe_status smoe_spool_add(smoe_spool *spool, smoe_split split, const int32_t *tokens, size_t n) {
  for (size_t i = 0; i < n; i++) {
    SMOE_CHECK(tokens[i] >= 0 && tokens[i] < spool->vocabulary, SMOE_ERR_FORMAT,
               "token %d is outside the vocabulary of %d", tokens[i], spool->vocabulary);
  }
  SMOE_CHECK(fwrite(tokens, sizeof *tokens, n, spool->stream[split]) == n, SMOE_ERR_IO,
             "cannot write tokens next to '%s': %s", spool->output, strerror(errno));
  spool->n_tokens[split] += (int64_t)n;
  return SMOE_OK;
}

void smoe_spool_end(smoe_spool *spool, smoe_split split, int64_t bytes) {
  const int64_t n = spool->n_documents[split];
  if (spool->document[split][n] == spool->n_tokens[split]) return;
  if (n > 0 && (n & (n - 1)) == 0) {
    spool->document[split] =
        smoe_realloc(spool->document[split], (2 * (size_t)n + 1) * sizeof *spool->document[split]);
  }
  spool->document[split][n + 1] = spool->n_tokens[split];
  spool->n_documents[split] = n + 1;
  spool->n_bytes[split] += bytes;
}

smoe_status smoe_spool_drop(smoe_spool *spool, smoe_split split) {
  const int64_t n = spool->document[split][spool->n_documents[split]];
  spool->n_tokens[split] = n;
  const bool done = fseeko(spool->stream[split], (off_t)n * (off_t)sizeof(int32_t), SEEK_SET) == 0;
  SMOE_CHECK(done, SMOE_ERR_IO, "cannot write tokens next to '%s': %s", spool->output, strerror(errno));
  return SMOE_OK;
}

smoe_status smoe_spool_read(smoe_spool *spool, smoe_split split, int64_t first, size_t n, int32_t *tokens) {
  FILE *stream = spool->stream[split];
  errno = 0;
  const bool done = fseeko(stream, (off_t)first * (off_t)sizeof *tokens, SEEK_SET) == 0 &&
                    fread(tokens, sizeof *tokens, n, stream) == n;
  SMOE_CHECK(done, SMOE_ERR_IO, "cannot read tokens back from next to '%s': %s", spool->output,
             errno ? strerror(errno) : "they are not there");
  return SMOE_OK;
}
