/** Tokens as text while they come, in whole characters. */
#ifndef STABLEMOE_APP_TEXT_STREAM_H
#define STABLEMOE_APP_TEXT_STREAM_H

#include <stdio.h>

#include "stablemoe/tokenizer.h"

typedef struct smoe_text_stream {
  const smoe_tokenizer *tokenizer;
  FILE *out;
  size_t before; /**< decoding begins here, so that a piece is seen beside the one before it */
  size_t done;   /**< tokens whose text is written */
} smoe_text_stream;

/** Begin behind n tokens whose text stands already. Local. */
void smoe_text_stream_begin(smoe_text_stream *stream, const smoe_tokenizer *tokenizer, FILE *out, size_t n);

/** Write the text of ids[done .. n) and flush it. Local.
 *
 *  ids   in  all tokens from the first on
 *  last  in  whether no token follows; else byte pieces that are no whole character yet wait for the rest
 *
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT for a token beyond the vocabulary.
 */
smoe_status smoe_text_stream_write(smoe_text_stream *stream, const int32_t *ids, size_t n, bool last);

/** Flush standard output, and say where it could not take all that was printed. Local.
 *  Errors:  SMOE_ERR_IO (disk full, ...).
 */
smoe_status smoe_output_flush(FILE *out);

#endif
