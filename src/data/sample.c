#include "sample.h"

#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"

/* SentencePiece gets blocks of at most BLOCK_BYTES. Merges hardly change beyond SAMPLE_BYTES in all for a small
 * corpus, and the time to find them grows with it; of a large one it is a sixteenth, within bounds. */
enum { BLOCK_BYTES = 4096, SAMPLE_BYTES = 4 << 20, SAMPLE_SHARE = 16, SAMPLE_BYTES_MAX = 64 << 20 };

/* SentencePiece's mark for an unknown character: its trainer skips every sentence that holds it. */
enum { RESERVED = 0x2585, CHARACTERS = 0x110000 };

/* Pieces that are not characters of the text or merges of them: unknown, end, 256 bytes, and one to spare. */
enum { FIXED_PIECES = 259 };

/* SentencePiece's own default. */
static const double COVERAGE = 0.9995;

int64_t smoe_sample_bytes(const smoe_prepare_options *options, int64_t train_bytes) {
  int64_t bytes = options->sample_bytes;
  if (bytes == 0) bytes = train_bytes / SAMPLE_SHARE;
  if (options->sample_bytes == 0 && bytes < SAMPLE_BYTES) bytes = SAMPLE_BYTES;
  if (options->sample_bytes == 0 && bytes > SAMPLE_BYTES_MAX) bytes = SAMPLE_BYTES_MAX;
  return bytes < train_bytes ? bytes : train_bytes;
}

/** Length of the block at the beginning: whole lines where they are not too long. */
static size_t block_bytes(const char *text, size_t bytes) {
  if (bytes <= BLOCK_BYTES) return bytes;
  const char *newline = memrchr(text, '\n', BLOCK_BYTES);
  return newline ? (size_t)(newline - text) + 1 : smoe_utf8_cut(text, BLOCK_BYTES);
}

static void add_block(smoe_sample *s, const char *text, size_t bytes) {
  const size_t n = s->n_blocks, room = 1 << 16;
  if ((n & (n - 1)) == 0) s->block = smoe_realloc(s->block, 2 * (n + 1) * sizeof *s->block);
  while (s->bytes + bytes > s->room) {
    s->room = s->room ? 2 * s->room : room;
    s->text = smoe_realloc(s->text, s->room);
  }
  memcpy(s->text + s->bytes, text, bytes);
  s->block[n] = (uint32_t)bytes;
  s->n_blocks = n + 1;
  s->bytes += bytes;
}

static smoe_status read_blocks(smoe_sample *s, smoe_document_source *source, int64_t total, int64_t limit) {
  int64_t seen = 0, taken = 0;
  for (;;) {
    const smoe_document *document;
    const char *text;
    SMOE_TRY(smoe_document_source_next(source, &document, &text));
    if (!document) return SMOE_OK;
    if (document->split != SMOE_TRAIN) continue;
    for (size_t at = 0; at < document->bytes;) {
      const size_t bytes = block_bytes(text + at, document->bytes - at);
      seen += (int64_t)bytes;
      if (total <= limit || (double)taken <= (double)seen * (double)limit / (double)total) {
        add_block(s, text + at, bytes);
        taken += (int64_t)bytes;
      }
      at += bytes;
    }
  }
}

/** The character at valid UTF-8 text; *bytes: its length. */
static uint32_t character(const char *text, size_t *bytes) {
  const unsigned char *c = (const unsigned char *)text;
  *bytes = c[0] < 0x80 ? 1 : c[0] < 0xE0 ? 2 : c[0] < 0xF0 ? 3 : 4;
  uint32_t code = *bytes == 1 ? c[0] : c[0] & (0x7Fu >> *bytes);
  for (size_t k = 1; k < *bytes; k++) code = code << 6 | (c[k] & 0x3F);
  return code;
}

typedef struct frequency {
  int64_t n;
  uint32_t code;
} frequency;

static int most_first(const void *a, const void *b) {
  const frequency *x = a, *y = b;
  if (x->n != y->n) return x->n > y->n ? -1 : 1;
  return x->code < y->code ? -1 : x->code > y->code;
}

/** Leave out the rarest characters: those beyond a coverage, or beyond a number. */
static void leave_out_rare(smoe_sample *s, frequency *f, size_t n, double coverage, size_t most) {
  int64_t total = 0, covered = 0;
  for (size_t i = 0; i < n; i++) total += f[i].n;
  size_t kept = 0;
  while (kept < n && kept < most && (coverage >= 1 || (double)covered < coverage * (double)total))
    covered += f[kept++].n;
  for (size_t i = kept; i < n; i++) s->left_out[f[i].code] = true;
  s->n_rare = total - covered;
  s->n_rare_kinds = (int)(n - kept);
}

/** Characters that 99.95 % of the text consists of: those that SentencePiece makes pieces of by default. */
static size_t required(const frequency *f, size_t n) {
  int64_t total = 0, covered = 0;
  size_t k = 0;
  for (size_t i = 0; i < n; i++) total += f[i].n;
  while (k < n && (double)covered < COVERAGE * (double)total) covered += f[k++].n;
  return k;
}

static void choose_characters(smoe_sample *s, double coverage, int vocabulary) {
  int64_t *count = smoe_alloc(CHARACTERS * sizeof *count);
  for (size_t at = 0, bytes; at < s->bytes; at += bytes) count[character(s->text + at, &bytes)]++;
  s->left_out = smoe_alloc(CHARACTERS * sizeof *s->left_out);
  s->left_out[RESERVED] = true;
  s->n_reserved = count[RESERVED];
  count[RESERVED] = 0;
  frequency *f = smoe_alloc(CHARACTERS * sizeof *f);
  size_t n = 0;
  for (uint32_t code = 0; code < CHARACTERS; code++)
    if (count[code]) f[n++] = (frequency){count[code], code};
  qsort(f, n, sizeof *f, most_first);
  const int room = (vocabulary - FIXED_PIECES) * 3 / 4;
  const size_t most = room > 1 ? (size_t)room : 1;
  s->coverage = COVERAGE;
  if (coverage > 0)
    leave_out_rare(s, f, n, coverage, n);
  else if (required(f, n) > most)
    leave_out_rare(s, f, n, 1, most);
  if (coverage > 0 || s->n_rare > 0) s->coverage = 1;
  smoe_free(f);
  smoe_free(count);
}

smoe_status smoe_sample_read(smoe_sample *sample, const smoe_documents *documents,
                             const smoe_prepare_options *options, int vocabulary) {
  *sample = (smoe_sample){0};
  smoe_document_source source;
  const int64_t total = documents->n_bytes[SMOE_TRAIN];
  smoe_document_source_open(&source, documents);
  const smoe_status status = read_blocks(sample, &source, total, smoe_sample_bytes(options, total));
  smoe_document_source_close(&source);
  SMOE_TRY(status);
  choose_characters(sample, options->coverage, vocabulary);
  return SMOE_OK;
}

bool smoe_sample_next(void *context, const char **text, size_t *bytes) {
  smoe_sample *s = context;
  while (s->next_block < s->n_blocks) {
    const char *block = s->text + s->at;
    const size_t end = s->block[s->next_block];
    size_t at = s->in_block, length;
    while (at < end && s->left_out[character(block + at, &length)]) at += length;
    const size_t begin = at;
    while (at < end && !s->left_out[character(block + at, &length)]) at += length;
    s->in_block = at;
    if (at == end) {
      s->at += end;
      s->in_block = 0;
      s->next_block++;
    }
    if (at == begin) continue;
    *text = block + begin;
    *bytes = at - begin;
    return true;
  }
  return false;
}

void smoe_sample_report(const smoe_sample *s) {
  if (s->n_reserved > 0)
    smoe_note(
        "%lld times U+2585, which SentencePiece reserves, was kept out of the tokenizer's training; the "
        "text around it was not",
        (long long)s->n_reserved);
  if (s->n_rare > 0)
    smoe_note(
        "the %d rarest characters (%lld times in the sample) get no pieces of their own, they are spelled "
        "in bytes; --coverage or a larger --vocab changes that",
        s->n_rare_kinds, (long long)s->n_rare);
}

void smoe_sample_free(smoe_sample *s) {
  smoe_free(s->text);
  smoe_free(s->block);
  smoe_free(s->left_out);
  *s = (smoe_sample){0};
}
