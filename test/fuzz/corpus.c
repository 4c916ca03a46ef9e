/* Corpora: opened, verified, and read to the end, where only a token that is none ends the run. */
#include "stablemoe/corpus.h"

#include "files.h"
#include "stablemoe/log.h"
#include "stablemoe/prepare.h"

static smoe_corpus corpus;

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  smoe_log_setup(1, true);
  char *text = smoe_alloc(1 << 16), *output = fuzz_path("corpus.h5");
  const char *input = fuzz_path("text.py");
  size_t used = 0;
  for (int i = 0; i < 900; i++)
    used +=
        (size_t)sprintf(text + used, "value_%d = expert[%d] + self\n%s", i % 37, i % 11, i % 5 ? "" : "\n");
  fuzz_write(input, text, used);
  smoe_prepare_options options = smoe_prepare_defaults();
  options.output = output;
  options.vocabulary = 290;
  FUZZ_CHECK(smoe_prepare(&options, &input, 1) == SMOE_OK);
  files_take(output);
  smoe_free(text);
  smoe_free(output);
}

void fuzz_seeds(void) {
  files_seeds();
}

static void read_all(void) {
  enum { T = 50 };
  int32_t input[T], target[T];
  fuzz_panic_code = SMOE_ERR_FORMAT;
  if (setjmp(fuzz_panicked)) return;
  for (int s = 0; s < SMOE_SPLITS; s++) {
    const int64_t n = smoe_corpus_sequences(&corpus, s, T);
    for (int64_t i = 0; i <= n; i++) smoe_corpus_sequence(&corpus, s, i, T, input, target);
  }
}

void fuzz_one(const uint8_t *data, size_t size) {
  const char *path = files_damage(data, size);
  const smoe_status verified = smoe_corpus_verify(path);
  FUZZ_CHECK(verified == SMOE_OK || strstr(smoe_last_error(), path));
  if (smoe_corpus_open_local(&corpus, path) != SMOE_OK) return;
  read_all();
  fuzz_panic_code = 0;
  smoe_corpus_close(&corpus);
}
