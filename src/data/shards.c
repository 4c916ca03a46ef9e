#include "shards.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "spool.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"

enum { HEADER = 256, BLOCK = 1 << 18 };

/** What the first two integers of a shard mean. */
typedef struct shard_kind {
  int32_t magic, version;
  int token_bytes;
  int vocabulary;
  int32_t end_id;
  const char *name;
  const char *key; /**< attribute `tokenizer` of the corpus */
} shard_kind;

static const shard_kind kinds[] = {
    {20240520, 1, 2, 50257, 50256, "GPT-2", "gpt2"},
    {20240801, 7, 4, 128256, 128001, "Llama 3", "llama3"},
};

typedef struct shard {
  const char *path;
  const shard_kind *kind;
  int64_t n_tokens;
  bool named; /**< for a split */
  smoe_split split;
} shard;

/** The whole import. */
typedef struct import {
  shard *shards;
  int n_shards;
  int vocabulary;
  int32_t end_id;
  int64_t border[SMOE_SPLITS]; /**< where a split of the unnamed shards ends, as position in all of them */
  smoe_spool spool;
} import;

bool smoe_is_shard(const char *path) {
  const size_t length = strlen(path);
  return length > 4 && strcmp(path + length - 4, ".bin") == 0;
}

/** The split a file name asks for. */
static bool named_split(const char *path, smoe_split *split) {
  const char *slash = strrchr(path, '/');
  const char *name = slash ? slash + 1 : path;
  *split = SMOE_TRAIN;
  if (strstr(name, "val")) *split = SMOE_VALID;
  if (strstr(name, "test")) *split = SMOE_TEST;
  return *split != SMOE_TRAIN;
}

static smoe_status check_header(shard *one, const int32_t *header, int64_t file_bytes) {
  for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    if (header[0] == kinds[k].magic) one->kind = &kinds[k];
  }
  SMOE_CHECK(one->kind, SMOE_ERR_FORMAT, "'%s' is no token shard of llm.c: it begins with %d, not %d or %d",
             one->path, header[0], kinds[0].magic, kinds[1].magic);
  SMOE_CHECK(header[1] == one->kind->version, SMOE_ERR_FORMAT,
             "the token shard '%s' has version %d, this program reads version %d", one->path, header[1],
             one->kind->version);
  const int64_t room = file_bytes - HEADER * (int64_t)sizeof *header;
  one->n_tokens = header[2];
  SMOE_CHECK(one->n_tokens >= 0 && one->n_tokens * one->kind->token_bytes == room, SMOE_ERR_FORMAT,
             "the token shard '%s' is damaged: its header promises %lld tokens, the file has %lld", one->path,
             (long long)one->n_tokens, (long long)(room / one->kind->token_bytes));
  return SMOE_OK;
}

static smoe_status read_header(shard *one) {
  FILE *stream = fopen(one->path, "rb");
  SMOE_CHECK(stream, SMOE_ERR_IO, "cannot open '%s': %s", one->path, strerror(errno));
  int32_t header[HEADER];
  struct stat about;
  const bool looked = fstat(fileno(stream), &about) == 0;
  const bool whole = fread(header, sizeof *header, HEADER, stream) == HEADER;
  fclose(stream);
  SMOE_CHECK(looked && whole, SMOE_ERR_FORMAT,
             "'%s' is no token shard of llm.c: it is shorter than a header of %zu bytes", one->path,
             sizeof header);
  one->named = named_split(one->path, &one->split);
  return check_header(one, header, about.st_size);
}

static smoe_status read_headers(import *in, const char *const *inputs, const smoe_prepare_options *options) {
  for (int i = 0; i < in->n_shards; i++) {
    in->shards[i].path = inputs[i];
    SMOE_TRY(read_header(&in->shards[i]));
    SMOE_CHECK(in->shards[i].kind == in->shards[0].kind, SMOE_ERR_CONFIG,
               "the token shards '%s' and '%s' are of two vocabularies (%s and %s)", inputs[0], inputs[i],
               in->shards[0].kind->name, in->shards[i].kind->name);
  }
  const shard_kind *kind = in->shards[0].kind;
  in->vocabulary = options->vocabulary > 0 ? options->vocabulary : kind->vocabulary;
  in->end_id = kind->end_id < in->vocabulary ? kind->end_id : -1;
  return SMOE_OK;
}

/** Cut what no shard is named for from the end of the others. */
static void place_borders(import *in, const smoe_prepare_options *options) {
  int64_t total = 0;
  bool named[SMOE_SPLITS] = {false};
  for (int i = 0; i < in->n_shards; i++) {
    named[in->shards[i].split] |= in->shards[i].named;
    if (!in->shards[i].named) total += in->shards[i].n_tokens;
  }
  const int64_t test = named[SMOE_TEST] ? 0 : (int64_t)(options->test_share * (double)total);
  const int64_t valid = named[SMOE_VALID] ? 0 : (int64_t)(options->valid_share * (double)total);
  in->border[SMOE_TEST] = total;
  in->border[SMOE_VALID] = total - test;
  in->border[SMOE_TRAIN] = total - test - valid;
}

/** Give tokens to a split, and end a document after each end token. */
static smoe_status add_tokens(import *in, smoe_split split, const int32_t *tokens, size_t n) {
  size_t begin = 0;
  for (size_t i = 0; i < n; i++) {
    if (tokens[i] != in->end_id) continue;
    SMOE_TRY(smoe_spool_add(&in->spool, split, tokens + begin, i + 1 - begin));
    smoe_spool_end(&in->spool, split, 0);
    begin = i + 1;
  }
  return smoe_spool_add(&in->spool, split, tokens + begin, n - begin);
}

/** Give a block that begins at `position` of the unnamed shards to the splits it touches. */
static smoe_status share_out(import *in, const int32_t *tokens, size_t n, int64_t position) {
  for (int s = 0; s < SMOE_SPLITS && n > 0; s++) {
    const int64_t room = in->border[s] - position;
    if (room <= 0) continue;
    const size_t part = (int64_t)n < room ? n : (size_t)room;
    SMOE_TRY(add_tokens(in, s, tokens, part));
    tokens += part;
    position += (int64_t)part;
    n -= part;
  }
  return SMOE_OK;
}

static smoe_status copy_stream(import *in, const shard *one, FILE *stream, int64_t *position) {
  static uint32_t raw[BLOCK];
  static int32_t tokens[BLOCK];
  const bool small = one->kind->token_bytes == 2;
  SMOE_CHECK(fseek(stream, HEADER * (long)sizeof(int32_t), SEEK_SET) == 0, SMOE_ERR_IO,
             "cannot read '%s': %s", one->path, strerror(errno));
  for (int64_t first = 0; first < one->n_tokens; first += BLOCK) {
    const size_t n = one->n_tokens - first < BLOCK ? (size_t)(one->n_tokens - first) : BLOCK;
    SMOE_CHECK(fread(raw, (size_t)one->kind->token_bytes, n, stream) == n, SMOE_ERR_IO,
               "cannot read '%s' to its end", one->path);
    for (size_t i = 0; i < n; i++) {
      const uint32_t id = small ? ((const uint16_t *)(const void *)raw)[i] : raw[i];
      SMOE_CHECK(id < (uint32_t)in->vocabulary, SMOE_ERR_FORMAT,
                 "token %lld of '%s' is %u, outside the vocabulary of %d", (long long)first + (long long)i,
                 one->path, id, in->vocabulary);
      tokens[i] = (int32_t)id;
    }
    if (one->named) {
      SMOE_TRY(add_tokens(in, one->split, tokens, n));
    } else {
      SMOE_TRY(share_out(in, tokens, n, *position));
      *position += (int64_t)n;
    }
  }
  return SMOE_OK;
}

static smoe_status copy_shards(import *in) {
  int64_t position = 0;
  for (int i = 0; i < in->n_shards; i++) {
    const shard *one = &in->shards[i];
    smoe_note("reading %s: %lld tokens", one->path, (long long)one->n_tokens);
    FILE *stream = fopen(one->path, "rb");
    SMOE_CHECK(stream, SMOE_ERR_IO, "cannot open '%s': %s", one->path, strerror(errno));
    const smoe_status status = copy_stream(in, one, stream, &position);
    fclose(stream);
    SMOE_TRY(status);
    /* A shard's last document ends with the shard. */
    for (int s = 0; s < SMOE_SPLITS; s++) smoe_spool_end(&in->spool, s, 0);
  }
  return SMOE_OK;
}

char *smoe_sources_text(const char *const *inputs, int n_inputs) {
  enum { ROOM = 16384 }; /* an attribute of HDF5 ends at 64 KiB */
  char *text = smoe_alloc(ROOM);
  size_t used = 0;
  for (int i = 0; i < n_inputs; i++) {
    const size_t length = strlen(inputs[i]);
    if (used + length + 8 > ROOM) {
      memcpy(text + used, "...\n", 5);
      break;
    }
    used += (size_t)snprintf(text + used, ROOM - used, "%s\n", inputs[i]);
  }
  return text;
}

static smoe_status run(import *in, const smoe_prepare_options *options, const char *const *inputs) {
  SMOE_TRY(read_headers(in, inputs, options));
  place_borders(in, options);
  SMOE_TRY(smoe_spool_open(&in->spool, options->output, in->vocabulary));
  SMOE_TRY(copy_shards(in));
  char *sources = smoe_sources_text(inputs, in->n_shards);
  const smoe_corpus_about about = {.kind = in->shards[0].kind->key, .sources = sources, .end_id = in->end_id};
  const smoe_status status = smoe_corpus_write(&in->spool, &about);
  smoe_free(sources);
  return status;
}

smoe_status smoe_prepare_shards(const smoe_prepare_options *options, const char *const *inputs,
                                int n_inputs) {
  for (int i = 0; i < n_inputs; i++) {
    SMOE_CHECK(smoe_is_shard(inputs[i]), SMOE_ERR_CONFIG,
               "token shards (.bin) and text do not go into one corpus: '%s' is no shard", inputs[i]);
  }
  SMOE_CHECK(!options->model_path, SMOE_ERR_CONFIG, "token shards are encoded already: they take no --model");
import in = {.shards = smoe_alloc((size_t) n_inputs * sizeof(shard)), .n_shards = n_inputs };
  const smoe_status status = run(&in, options, inputs);
  smoe_spool_close(&in.spool);
  smoe_free(in.shards);
  return status;
}
