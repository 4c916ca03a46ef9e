/* Any text comes back from a sound tokenizer as it was; any ids are decoded or refused. */
#include "data/text.h"
#include "fuzz.h"
#include "stablemoe/tokenizer.h"

enum { V = 290 };

static smoe_tokenizer *tokenizer;

static bool next_line(void *context, const char **text, size_t *bytes) {
  static char line[128];
  int *i = context;
  if (*i == 400) return false;
  *bytes =
      (size_t)snprintf(line, sizeof line, "value_%d = expert[%d] + \xc3\xa9t\xc3\xa9\n", *i % 37, *i % 11);
  *text = line;
  ++*i;
  return true;
}

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  char *model;
  size_t bytes;
  int line = 0;
  FUZZ_CHECK(smoe_tokenizer_train(&model, &bytes, SMOE_BPE, V, 0.9995, next_line, &line) == SMOE_OK);
  FUZZ_CHECK(smoe_tokenizer_open(&tokenizer, model, bytes) == SMOE_OK);
  smoe_free(model);
}

void fuzz_seeds(void) {
  static const char *const texts[] = {"value_3 = expert[1]\n", "  \xe2\x96\x81 \xe2\x96\x81",
                                      "</s><unk><0x0A>", "\xf0\x9f\x98\x80\xef\xbb\xbf\xef\xbf\xbd\t\r\n"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    char name[16];
    snprintf(name, sizeof name, "text%zu", i);
    fuzz_seed(name, texts[i], strlen(texts[i]));
  }
}

static void decode_any(const uint8_t *data, size_t size) {
  int32_t ids[64];
  const size_t n = size / sizeof *ids < 64 ? size / sizeof *ids : 64;
  char *text = NULL;
  if (n) memcpy(ids, data, n * sizeof *ids);
  bool inside = true;
  for (size_t i = 0; i < n; i++) {
    if (i % 2) ids[i] = (int32_t)((uint32_t)ids[i] % V);
    inside = inside && ids[i] >= 0 && ids[i] < V;
  }
  FUZZ_CHECK((smoe_tokenizer_decode(tokenizer, ids, n, &text) == SMOE_OK) == inside);
  smoe_free(text);
}

void fuzz_one(const uint8_t *data, size_t size) {
  int32_t *ids = NULL;
  size_t n;
  char *back = NULL;
  decode_any(data, size);
  const smoe_status status = smoe_tokenizer_encode(tokenizer, (const char *)data, size, &ids, &n);
  if (smoe_utf8_prefix((const char *)data, size) == size) {
    FUZZ_CHECK(status == SMOE_OK);
    FUZZ_CHECK(smoe_tokenizer_decode(tokenizer, ids, n, &back) == SMOE_OK);
    FUZZ_CHECK(strlen(back) == size && memcmp(back, data, size) == 0);
  }
  smoe_free(ids);
  smoe_free(back);
}
