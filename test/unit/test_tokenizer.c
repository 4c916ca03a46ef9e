/* Whatever text goes in comes out again, byte for byte, and training repeats itself. */
#include "stablemoe/tokenizer.h"

#include "harness.h"
#include "temporary.h"

typedef struct lines {
  const char *rest;
} lines;

static bool next_line(void *context, const char **text, size_t *bytes) {
  lines *from = context;
  if (!*from->rest) return false;
  const char *newline = strchr(from->rest, '\n');
  *text = from->rest;
  *bytes = newline ? (size_t)(newline - from->rest) + 1 : strlen(from->rest);
  from->rest += *bytes;
  return true;
}

static smoe_status train(char **model, size_t *bytes, smoe_tokenizer_kind kind, int vocabulary,
                         const char *text) {
  lines from = {text};
  return smoe_tokenizer_train(model, bytes, kind, vocabulary, 0.9995, next_line, &from);
}

/** Encode, check the ids, decode, compare. Returns the number of tokens. */
static size_t check_round_trip(const smoe_tokenizer *tokenizer, const char *text, const char *what) {
  int32_t *ids;
  size_t n, n_bad = 0;
  char *back = NULL;
  CHECK(smoe_tokenizer_encode(tokenizer, text, strlen(text), &ids, &n) == SMOE_OK, "%s", smoe_last_error());
  for (size_t i = 0; i < n; i++) n_bad += ids[i] < 1 || ids[i] >= smoe_tokenizer_size(tokenizer);
  CHECK(n_bad == 0, "%s: %zu ids are unknown or outside", what, n_bad);
  CHECK(smoe_tokenizer_decode(tokenizer, ids, n, &back) == SMOE_OK, "%s", smoe_last_error());
  CHECK(back && strcmp(back, text) == 0, "%s: '%.60s' came back as '%.60s'", what, text, back ? back : "");
  smoe_free(ids);
  smoe_free(back);
  return n;
}

static size_t put_character(char *out, uint32_t c) {
  if (c < 0x80) return out[0] = (char)c, 1;
  const int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  static const int lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
  for (int i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
  out[0] = (char)(lead[n] | (int)c);
  return (size_t)n;
}

/** Random characters of all planes, with many of those that SentencePiece treats in a way of its own. */
static void check_random_text(const smoe_tokenizer *tokenizer) {
  static const uint32_t special[] = {' ',    ' ',    '\n',   '\t',   '\r',   0x2581, 0x2582, 0x2585,
                                     0xFFFD, 0xFEFF, 0x00A0, 0x3000, 0x200B, 1,      0x7F,   0x10FFFF};
  char text[4 * 64 + 1];
  for (uint32_t t = 0; t < 500; t++) {
    size_t used = 0;
    const int length = (int)(smoe_random_bits(5, SMOE_RANDOM_TEST, t, 999) % 64);
    for (int i = 0; i < length; i++) {
      const uint64_t r = smoe_random_bits(5, SMOE_RANDOM_TEST, t, (uint64_t)i);
      uint32_t c = (uint32_t)(r >> 8) % 0x10FFFF + 1;
      if ((r & 3) == 0) c = special[(r >> 2) & 15];
      if ((r & 3) == 1) c = 32 + (uint32_t)(r >> 8) % 95;
      if ((r & 3) == 2) c = 1 + (uint32_t)(r >> 8) % 0x3000;
      if (c >= 0xD800 && c < 0xE000) c = '?';
      used += put_character(text + used, c);
    }
    text[used] = '\0';
    check_round_trip(tokenizer, text, "random text");
  }
}

static void check_tokenizer(smoe_tokenizer_kind kind, const char *source) {
  char *model, *again;
  size_t bytes, again_bytes;
  smoe_tokenizer *tokenizer = NULL;
  const int V = 500;
  CHECK(train(&model, &bytes, kind, V, source) == SMOE_OK, "%s", smoe_last_error());
  CHECK(train(&again, &again_bytes, kind, V, source) == SMOE_OK, "%s", smoe_last_error());
  CHECK(bytes == again_bytes && memcmp(model, again, bytes) == 0, "two trainings differ");
  CHECK(smoe_tokenizer_open(&tokenizer, model, bytes) == SMOE_OK, "%s", smoe_last_error());
  if (!tokenizer) return;
  CHECK(smoe_tokenizer_size(tokenizer) == V, "%d pieces", smoe_tokenizer_size(tokenizer));
  const int32_t end = smoe_tokenizer_end(tokenizer);
  CHECK(end >= 0 && end < V && strcmp(smoe_tokenizer_piece(tokenizer, end), "</s>") == 0, "end is %d", end);

  const size_t n = check_round_trip(tokenizer, source, "source");
  CHECK(2 * n < strlen(source), "%zu tokens for %zu bytes are no compression", n, strlen(source));
  static const char *const texts[] = {"",
                                      " ",
                                      "\n",
                                      "\t\tif x:\n\t\t\treturn  \n\n\n",
                                      "   leading and trailing   ",
                                      "a\r\nb\r\n",
                                      "\xe2\x96\x81 is no blank, \xe2\x96\x81\xe2\x96\x81 neither",
                                      "</s><s><unk><pad><0x0A><0xE2>",
                                      "\xef\xbb\xbfmark",
                                      "\xf0\x9f\x98\x80\xe4\xb8\xad\xd0\xb6"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    check_round_trip(tokenizer, texts[i], "special text");
  check_random_text(tokenizer);

  char *text = NULL;
  const int32_t outside = V;
  CHECK(smoe_tokenizer_decode(tokenizer, &outside, 1, &text) == SMOE_ERR_FORMAT, "an id outside decoded");
  CHECK(smoe_tokenizer_decode(tokenizer, &end, 1, &text) == SMOE_OK && text[0] == '\0', "end is '%s'", text);
  smoe_free(text);
  smoe_tokenizer_close(tokenizer);
  smoe_free(model);
  smoe_free(again);
}

static void check_limits(const char *source) {
  char *model;
  size_t bytes;
  CHECK(train(&model, &bytes, SMOE_BPE, 100000, source) == SMOE_ERR_CONFIG, "100000 pieces were found");
  const char *largest = strstr(smoe_last_error(), "the largest it allows is ");
  const int allowed = largest ? atoi(largest + 25) : 0;
  CHECK(allowed > 300 && allowed < 100000, "%s", smoe_last_error());
  CHECK(train(&model, &bytes, SMOE_BPE, allowed, source) == SMOE_OK, "%s", smoe_last_error());
  smoe_free(model);
  CHECK(train(&model, &bytes, SMOE_BPE, allowed + 1, source) == SMOE_ERR_CONFIG, "one more is allowed");
  CHECK(train(&model, &bytes, SMOE_BPE, 261, source) == SMOE_ERR_CONFIG, "too few for the characters");
  CHECK(strstr(smoe_last_error(), "too small"), "%s", smoe_last_error());
  CHECK(train(&model, &bytes, SMOE_BPE, 500, "") == SMOE_ERR_FORMAT, "trained on nothing");
  smoe_tokenizer *tokenizer;
  CHECK(smoe_tokenizer_open(&tokenizer, "no model at all", 15) == SMOE_ERR_FORMAT, "opened garbage");
  CHECK(smoe_tokenizer_open(&tokenizer, "", 0) == SMOE_ERR_FORMAT, "opened nothing");
}

int main(void) {
  char *source = test_source(1, 200000);
  check_tokenizer(SMOE_BPE, source);
  check_tokenizer(SMOE_UNIGRAM, source);
  check_limits(source);
  smoe_free(source);
  return test_verdict("test_tokenizer");
}
