/* A damaged corpus is refused when it is opened, ends the run when it is read, or gives its tokens. */
#include "stablemoe/corpus.h"

#include <string.h>

#include "damage.h"
#include "harness.h"
#include "stablemoe/prepare.h"
#include "temporary.h"

enum { READ = 777 };

static smoe_corpus sound;
static int32_t *tokens[SMOE_SPLITS];

/** The sizes, the tokenizer and all tokens, read in pieces. */
static bool same_as_sound(const smoe_corpus *corpus) {
  bool same = corpus->vocabulary == sound.vocabulary && corpus->end_id == sound.end_id &&
              corpus->fingerprint == sound.fingerprint && corpus->unigram == sound.unigram &&
              corpus->bigram == sound.bigram && corpus->model_bytes == sound.model_bytes &&
              memcmp(corpus->model, sound.model, sound.model_bytes) == 0;
  for (int s = 0; s < SMOE_SPLITS && same; s++) {
    same = corpus->n_tokens[s] == sound.n_tokens[s] && corpus->n_documents[s] == sound.n_documents[s] &&
           corpus->n_bytes[s] == sound.n_bytes[s];
    for (int64_t first = 0; first < sound.n_tokens[s] && same; first += READ) {
      int32_t read[READ];
      const int64_t left = sound.n_tokens[s] - first;
      const size_t n = left < READ ? (size_t)left : READ;
      smoe_corpus_read(corpus, s, first, n, read);
      same = memcmp(read, tokens[s] + first, n * sizeof *read) == 0;
    }
  }
  return same;
}

/** As a run opens it, which checks all but the tokens, and as `stablemoe info --verify` looks at them. */
static damage_outcome read_corpus(const char *path) {
  smoe_corpus corpus;
  if (smoe_corpus_open_local(&corpus, path) != SMOE_OK) return DAMAGE_REFUSED;
  const bool same = same_as_sound(&corpus);
  smoe_corpus_close(&corpus);
  if (smoe_corpus_verify(path) != SMOE_OK) return DAMAGE_REFUSED;
  return same ? DAMAGE_SAME : DAMAGE_DIFFERENT;
}

static const damage_kind raw_kinds[] = {
    {"1 to 8 bytes", 60, .bytes = damage_flip},
    {"1 to 8 bytes at the front", 40, .bytes = damage_flip_head},
    {"cut off", 40, .bytes = damage_truncate},
    {"block of zeros", 30, .bytes = damage_zero_block},
    {"sector of noise", 30, .bytes = damage_noise_sector},
    {"bytes appended", 10, .bytes = damage_append},
    {"attribute changed", 20, .structure = damage_attribute_value},
    {"dataset deleted", 10, .structure = damage_delete},
};

static const damage_kind sealed_kinds[] = {
    {"dataset deleted", 20, .structure = damage_delete, .sealed = true, .may_differ = true},
    {"dataset of another shape", 40, .structure = damage_reshape, .sealed = true, .may_differ = true},
    {"dataset of another type", 40, .structure = damage_retype, .sealed = true, .may_differ = true},
    {"dataset of wild size", 40, .structure = damage_huge, .sealed = true, .may_differ = true},
    {"dataset made something else", 30, .structure = damage_replace, .sealed = true, .may_differ = true},
    {"dataset linked to another", 30, .structure = damage_relink, .sealed = true, .may_differ = true},
    {"attribute of another type", 40, .structure = damage_attribute_type, .sealed = true, .may_differ = true,
     .any_words = true},
    {"attribute changed", 20, .structure = damage_attribute_value, .sealed = true, .may_differ = true,
     .any_words = true},
};

int main(int argc, char **argv) {
  test_directory_make();
  smoe_prepare_options options = smoe_prepare_defaults();
  options.output = test_path("corpus.h5");
  options.vocabulary = 400;
  char *text = test_source(1, 60000);
  const char *input = test_file("text.py", text, strlen(text));
  CHECK(smoe_prepare(&options, &input, 1) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_corpus_open_local(&sound, options.output) == SMOE_OK, "%s", smoe_last_error());
  for (int s = 0; s < SMOE_SPLITS; s++) {
    tokens[s] = smoe_alloc((size_t)sound.n_tokens[s] * sizeof *tokens[s]);
    smoe_corpus_read(&sound, s, 0, (size_t)sound.n_tokens[s], tokens[s]);
  }
  damage_test test = {"corpus",    options.output,
                      raw_kinds,   sizeof raw_kinds / sizeof *raw_kinds,
                      read_corpus, .panic_code = SMOE_ERR_FORMAT};
  CHECK(read_corpus(test.path) == DAMAGE_SAME, "%s", smoe_last_error());
  int n_wrong = damage_run(&test, argc, argv);
  test.name = "corpus, sealed again";
  test.kinds = sealed_kinds;
  test.n_kinds = sizeof sealed_kinds / sizeof *sealed_kinds;
  n_wrong = damage_run(&test, argc, argv);
  smoe_corpus_close(&sound);
  for (int s = 0; s < SMOE_SPLITS; s++) smoe_free(tokens[s]);
  smoe_free(text);
  CHECK(n_wrong == 0, "%d damages went wrong", n_wrong);
  return test_verdict("damage of corpora");
}
