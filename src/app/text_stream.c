#include "text_stream.h"

#include <errno.h>
#include <string.h>

#include "stablemoe/arena.h"

/* The byte that a piece of byte fallback ("<0xE2>") stands for; -1 for any other piece. */
static int byte_of(const smoe_tokenizer *tokenizer, int32_t id) {
  unsigned value;
  const char *piece = smoe_tokenizer_piece(tokenizer, id);
  return strlen(piece) == 6 && sscanf(piece, "<0x%2X>", &value) == 1 ? (int)value : -1;
}

/* Tokens at the end of ids that begin a character and lack its rest: at most three bytes. */
static size_t unfinished(const smoe_tokenizer *tokenizer, const int32_t *ids, size_t n) {
  for (size_t k = 1; k <= 3 && k <= n; k++) {
    const int byte = byte_of(tokenizer, ids[n - k]);
    if (byte < 0x80) return 0;
    if (byte < 0xC0) continue; /* not the first of its character */
    const size_t length = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
    return length > k ? k : 0;
  }
  return 0;
}

smoe_status smoe_output_flush(FILE *out) {
  errno = 0;
  const bool good = fflush(out) == 0 && !ferror(out);
  SMOE_CHECK(good, SMOE_ERR_IO, "cannot write the output: %s", errno ? strerror(errno) : "a write failed");
  return SMOE_OK;
}

void smoe_text_stream_begin(smoe_text_stream *stream, const smoe_tokenizer *tokenizer, FILE *out, size_t n) {
  *stream = (smoe_text_stream){.tokenizer = tokenizer, .out = out, .before = n ? n - 1 : 0, .done = n};
}

/* Text of ids[begin .. end); a NUL is no text, and would end it before what follows. */
static smoe_status decode(const smoe_tokenizer *tokenizer, const int32_t *ids, size_t begin, size_t end,
                          char **text) {
  int32_t *shown = smoe_alloc((end - begin + 1) * sizeof *shown);
  size_t n = 0;
  for (size_t i = begin; i < end; i++)
    if (byte_of(tokenizer, ids[i]) != 0) shown[n++] = ids[i];
  const smoe_status status = smoe_tokenizer_decode(tokenizer, shown, n, text);
  smoe_free(shown);
  return status;
}

smoe_status smoe_text_stream_write(smoe_text_stream *stream, const int32_t *ids, size_t n, bool last) {
  const size_t end = last ? n : n - unfinished(stream->tokenizer, ids + stream->done, n - stream->done);
  if (end == stream->done) return SMOE_OK;
  char *all = NULL, *old = NULL;
  smoe_status status = decode(stream->tokenizer, ids, stream->before, end, &all);
  if (status == SMOE_OK) status = decode(stream->tokenizer, ids, stream->before, stream->done, &old);
  if (status == SMOE_OK) {
    const size_t skip = strlen(old);
    if (strlen(all) > skip) fputs(all + skip, stream->out);
    status = smoe_output_flush(stream->out);
  }
  smoe_free(all);
  smoe_free(old);
  stream->before = stream->done;
  stream->done = end;
  return status;
}
