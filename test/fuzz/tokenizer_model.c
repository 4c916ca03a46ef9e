/* SentencePiece models as they come from a disk. */
#include "fuzz.h"
#include "stablemoe/tokenizer.h"

static const char sample[] =
    "def f(self):\n    return value[3]  # \xc3\xa9t\xc3\xa9 \xe2\x96\x81\t\xf0\x9f\x98\x80\n";

typedef struct source {
  int line;
} source;

static bool next_line(void *context, const char **text, size_t *bytes) {
  source *from = context;
  static char line[128];
  if (from->line == 400) return false;
  static const char *const words[] = {"value", "return", "expert", "token", "self", "index"};
  const int i = from->line++;
  *bytes = (size_t)snprintf(line, sizeof line, "%s_%d = %s[%d] + %s\n", words[i % 6], i % 37,
                            words[i / 6 % 6], i % 11, words[i / 36 % 6]);
  *text = line;
  return true;
}

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
}

void fuzz_seeds(void) {
  for (int kind = 0; kind < 2; kind++) {
    char *model;
    size_t bytes;
    source from = {0};
    FUZZ_CHECK(smoe_tokenizer_train(&model, &bytes, (smoe_tokenizer_kind)kind, 300, 0.9995, next_line,
                                    &from) == SMOE_OK);
    fuzz_seed(kind ? "unigram" : "bpe", model, bytes);
    smoe_free(model);
  }
}

void fuzz_one(const uint8_t *data, size_t size) {
  smoe_tokenizer *tokenizer;
  if (smoe_tokenizer_open(&tokenizer, (const char *)data, size) != SMOE_OK) return;
  const int V = smoe_tokenizer_size(tokenizer);
  FUZZ_CHECK(V > 0 && smoe_tokenizer_end(tokenizer) < V);
  for (int id = 0; id < V; id++) FUZZ_CHECK(smoe_tokenizer_piece(tokenizer, id));
  int32_t *ids = NULL;
  size_t n = 0;
  char *text = NULL;
  if (smoe_tokenizer_encode(tokenizer, sample, sizeof sample - 1, &ids, &n) == SMOE_OK)
    (void)!smoe_tokenizer_decode(tokenizer, ids, n, &text);
  smoe_free(ids);
  smoe_free(text);
  smoe_tokenizer_close(tokenizer);
}
