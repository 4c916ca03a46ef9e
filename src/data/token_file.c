#include "token_file.h"

#include <stdio.h>
#include <string.h>

#include "stablemoe/arena.h"

enum { HEADER = 256, BLOCK = 1 << 18 };

/** What the first two integers of a shard of llm.c mean. */
static const struct {
  int32_t magic, version;
  int token_bytes, vocabulary;
  int32_t separator; /**< before each document */
  const char *kind, *name;
} kinds[] = {
    {20240520, 1, 2, 50257, 50256, "gpt2", "shard of llm.c (GPT-2)"},
    {20240801, 7, 4, 128256, 128000, "llama3", "shard of llm.c (Llama 3)"},
};

static smoe_status read_head(const char *path, void *data, size_t bytes, size_t *got) {
  smoe_stream stream;
  smoe_status status = smoe_stream_open(&stream, path);
  if (status == SMOE_OK) status = smoe_stream_read(&stream, data, bytes, got);
  smoe_stream_close(&stream);
  return status;
}

/* ---- llm.c ---- */

static smoe_status open_shard(smoe_token_file *file, const int32_t *header, size_t got) {
  const char *path = file->path;
  SMOE_CHECK(
      got == HEADER * sizeof *header, SMOE_ERR_FORMAT,
      "'%s' is not a token shard of llm.c: it is shorter than a header of %zu bytes; for token ids without a "
      "header, as nanoGPT writes them, give --raw uint16",
      path, HEADER * sizeof *header);
  for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    if (header[0] != kinds[k].magic) continue;
    SMOE_CHECK(header[1] == kinds[k].version, SMOE_ERR_FORMAT,
               "the token shard '%s' has version %d, this program reads version %d", path, header[1],
               kinds[k].version);
    SMOE_CHECK(header[2] >= 0, SMOE_ERR_FORMAT,
               "the token shard '%s' is damaged: its header promises %d tokens", path, header[2]);
    *file = (smoe_token_file){.path = path,
                              .kind = kinds[k].kind,
                              .name = kinds[k].name,
                              .token_bytes = kinds[k].token_bytes,
                              .header_bytes = HEADER * sizeof *header,
                              .promised = header[2],
                              .separator = kinds[k].separator,
                              .vocabulary = kinds[k].vocabulary};
    return SMOE_OK;
  }
  return SMOE_FAIL(
      SMOE_ERR_FORMAT,
      "'%s' is not a token shard of llm.c: it begins with %d, not %d or %d; for token ids without a "
      "header, as nanoGPT writes them, give --raw uint16; Megatron's have an index file (.idx)",
      path, header[0], kinds[0].magic, kinds[1].magic);
}

/* ---- Megatron ---- */

/** Bytes of an element by the code of its type; 0: not an integer that holds ids. */
static int megatron_bytes(uint8_t code) {
  return code == 1 ? 1 : code == 3 || code == 8 ? 2 : code == 4 ? 4 : code == 5 ? 8 : 0;
}

typedef struct index_head {
  uint64_t version;
  uint8_t code;
  uint64_t n_sequences, n_documents;
} index_head;

static bool get(smoe_stream *stream, void *data, size_t bytes) {
  size_t got;
  return smoe_stream_read(stream, data, bytes, &got) == SMOE_OK && got == bytes;
}

/** Lengths of sequences and the first sequence of each document, in the order of the file. */
static bool read_index(smoe_stream *stream, smoe_token_file *file, index_head *head) {
  char magic[9];
  if (!get(stream, magic, sizeof magic) || memcmp(magic, "MMIDIDX\0\0", sizeof magic) != 0) return false;
  if (!get(stream, &head->version, 8) || head->version != 1 || !get(stream, &head->code, 1)) return false;
  if (!get(stream, &head->n_sequences, 8) || !get(stream, &head->n_documents, 8)) return false;
  file->token_bytes = megatron_bytes(head->code);
  /* Every sequence has 12 bytes here; a damaged number does not take memory before they are there. */
  int64_t total = 0, pointer;
  size_t room = 0;
  int64_t *end = NULL;
  bool good = file->token_bytes > 0;
  for (uint64_t i = 0; i < head->n_sequences && good; i++) {
    int32_t length;
    good = get(stream, &length, 4) && length >= 0;
    total += length;
    if (i >= room) end = smoe_realloc(end, (room = room ? 2 * room : 1024) * sizeof *end);
    if (good) end[i] = total;
  }
  for (uint64_t i = 0; i < head->n_sequences && good; i++)
    good = get(stream, &pointer, 8) && pointer == (i ? end[i - 1] : 0) * file->token_bytes;
  /* Documents are runs of sequences: keep the ends of the last of each. */
  int64_t n = 0;
  uint64_t before = 0;
  for (uint64_t d = 0; d < head->n_documents && good; d++) {
    uint64_t first;
    good = get(stream, &first, 8) && first >= before && first <= head->n_sequences;
    if (good && first > before) end[n++] = end[first - 1];
    before = first;
  }
  file->end = end;
  file->n_ends = n;
  file->promised = total;
  return good && before == head->n_sequences;
}

static smoe_status open_megatron(smoe_token_file *file, const char *index) {
  smoe_stream stream;
  index_head head;
  file->name = "token file of Megatron";
  file->separator = -1;
  SMOE_TRY(smoe_stream_open(&stream, index));
  const bool good = read_index(&stream, file, &head);
  smoe_stream_close(&stream);
  SMOE_CHECK(
      good, SMOE_ERR_FORMAT,
      "'%s' is not an index of Megatron (version 1, of integers), or is damaged, or its sequences are not "
      "one after the other: make it again with Megatron's preprocess_data.py",
      index);
  return SMOE_OK;
}

/** Path of the index beside a .bin, in memory of smoe_alloc; NULL where there is none. */
static char *index_of(const char *path) {
  if (!smoe_stream_is_named(path, ".bin")) return NULL;
  char *index = smoe_sprintf("%.*s.idx", (int)smoe_stream_stem(path) - 4, path);
  char magic[9];
  size_t got = 0;
  FILE *there = fopen(index, "rb");
  if (there) {
    got = fread(magic, 1, sizeof magic, there);
    fclose(there);
  }
  if (got == sizeof magic && memcmp(magic, "MMIDIDX", 7) == 0) return index;
  smoe_free(index);
  return NULL;
}

/* ---- all ---- */

smoe_status smoe_token_file_open(smoe_token_file *file, const char *path,
                                 const smoe_prepare_options *options) {
  *file = (smoe_token_file){.path = path, .kind = "none", .promised = -1, .separator = -1};
  int32_t header[HEADER];
  size_t got = 0;
  if (options->raw_bytes) {
    file->name = "raw token ids";
    file->token_bytes = options->raw_bytes;
    SMOE_TRY(read_head(path, header, sizeof header, &got));
    bool shard = false;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
      shard |= got == sizeof header && header[0] == kinds[k].magic;
    SMOE_CHECK(!shard, SMOE_ERR_CONFIG, "'%s' is a token shard of llm.c, with a header: leave --raw out",
               path);
    return SMOE_OK;
  }
  char *index = index_of(path);
  if (index) {
    const smoe_status status = open_megatron(file, index);
    smoe_free(index);
    return status;
  }
  SMOE_TRY(read_head(path, header, sizeof header, &got));
  return open_shard(file, header, got);
}

void smoe_token_file_close(smoe_token_file *file) {
  smoe_free(file->end);
  file->end = NULL;
}

/** The ids of n elements; false where one is beyond what an id can be. */
static bool convert(const void *raw, int bytes, size_t n, int32_t *tokens, size_t *bad) {
  for (size_t i = 0; i < n; i++) {
    const uint64_t id = bytes == 1   ? ((const uint8_t *)raw)[i]
                        : bytes == 2 ? ((const uint16_t *)raw)[i]
                        : bytes == 4 ? ((const uint32_t *)raw)[i]
                                     : ((const uint64_t *)raw)[i];
    *bad = i;
    if (id > INT32_MAX - 1) return false;
    tokens[i] = (int32_t)id;
  }
  return true;
}

static smoe_status read_stream(const smoe_token_file *file, smoe_stream *stream, uint64_t *raw,
                               int32_t *tokens, smoe_token_sink sink, void *context) {
  const size_t width = (size_t)file->token_bytes;
  size_t got, bad = 0;
  SMOE_TRY(smoe_stream_read(stream, raw, file->header_bytes, &got));
  int64_t first = 0;
  do {
    SMOE_TRY(smoe_stream_read(stream, raw, BLOCK * width, &got));
    const size_t n = got / width;
    SMOE_CHECK(got % width == 0 || file->promised >= 0, SMOE_ERR_FORMAT,
               "'%s' does not hold whole ids of %zu bytes: its size is not a multiple of that", file->path,
               width);
    SMOE_CHECK(convert(raw, file->token_bytes, n, tokens, &bad), SMOE_ERR_FORMAT,
               "token %lld of '%s' is not a token id: it is negative or beyond 2^31",
               (long long)(first + (int64_t)bad), file->path);
    if (n > 0) SMOE_TRY(sink(context, file, tokens, n, first));
    first += (int64_t)n;
  } while (got == BLOCK * width);
  SMOE_CHECK(file->promised < 0 || (first == file->promised && got % width == 0), SMOE_ERR_FORMAT,
             "'%s' is damaged: its %s promises %lld tokens, the file has %lld", file->path,
             file->header_bytes ? "header" : "index", (long long)file->promised, (long long)first);
  return SMOE_OK;
}

smoe_status smoe_token_file_read(const smoe_token_file *file, smoe_token_sink sink, void *context) {
  smoe_stream stream;
  uint64_t *raw = smoe_alloc(BLOCK * sizeof *raw);
  int32_t *tokens = smoe_alloc(BLOCK * sizeof *tokens);
  smoe_status status = smoe_stream_open(&stream, file->path);
  if (status == SMOE_OK) status = read_stream(file, &stream, raw, tokens, sink, context);
  smoe_stream_close(&stream);
  smoe_free(tokens);
  smoe_free(raw);
  return status;
}

/** What a scan has in hand beside the file. */
typedef struct scanning {
  smoe_token_file *file;
  int64_t next_end; /**< index into file->end */
} scanning;

static smoe_status count(void *context, const smoe_token_file *unused, const int32_t *tokens, size_t n,
                         int64_t first) {
  scanning *s = context;
  smoe_token_file *file = s->file;
  if (file->n_tokens == 0) file->first = tokens[0];
  for (size_t i = 0; i < n; i++) {
    if (tokens[i] > file->max) file->max = tokens[i];
    file->n_separators += tokens[i] == file->separator;
    /* A document may be empty. */
    while (s->next_end < file->n_ends && file->end[s->next_end] <= first + (int64_t)i) s->next_end++;
    if (s->next_end < file->n_ends && file->end[s->next_end] == first + (int64_t)i + 1)
      file->last = file->last == -2 || file->last == tokens[i] ? tokens[i] : -1;
  }
  file->n_tokens += (int64_t)n;
  return SMOE_OK;
}

smoe_status smoe_token_file_scan(smoe_token_file *file) {
  file->n_tokens = file->n_separators = 0;
  file->max = file->first = -1;
  file->last = -2;
  scanning s = {.file = file};
  SMOE_TRY(smoe_token_file_read(file, count, &s));
  if (file->last == -2) file->last = -1;
  return SMOE_OK;
}
