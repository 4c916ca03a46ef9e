/* A corpus file gives back the tokens that went in, and what is none is refused. */
#include "stablemoe/corpus.h"

#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "stablemoe/h5.h"
#include "stablemoe/prepare.h"
#include "temporary.h"

enum { V = 1000, N_TRAIN = 3001, N_VALID = 257, N_TEST = 100, T = 64 };

static int32_t token(smoe_split split, int64_t i) {
  return (int32_t)(smoe_random_bits(3, SMOE_RANDOM_TEST, (uint32_t)split, (uint64_t)i) % V);
}

static const char *write_shard(const char *name, smoe_split split, int32_t n) {
  static struct {
    int32_t header[256];
    uint16_t token[N_TRAIN];
  } shard;
  shard.header[0] = 20240520;
  shard.header[1] = 1;
  shard.header[2] = n;
  for (int32_t i = 0; i < n; i++) shard.token[i] = (uint16_t)token(split, i);
  return test_file(name, &shard, sizeof shard.header + 2 * (size_t)n);
}

static const char *make_corpus(const char *name, int vocabulary) {
  const char *shards[] = {write_shard("part.bin", SMOE_TRAIN, N_TRAIN),
                          write_shard("part_val.bin", SMOE_VALID, N_VALID),
                          write_shard("part_test.bin", SMOE_TEST, N_TEST)};
  smoe_prepare_options options = smoe_prepare_defaults();
  options.output = test_path(name);
  options.vocabulary = vocabulary;
  CHECK(smoe_prepare(&options, shards, 3) == SMOE_OK, "%s", smoe_last_error());
  return options.output;
}

static void check_tokens(const smoe_corpus *corpus) {
  static const int64_t sizes[] = {N_TRAIN, N_VALID, N_TEST};
  int32_t tokens[N_TRAIN];
  for (int s = 0; s < SMOE_SPLITS; s++) {
    CHECK(corpus->n_tokens[s] == sizes[s], "split %d: %lld tokens", s, (long long)corpus->n_tokens[s]);
    CHECK(corpus->n_documents[s] == 1, "split %d: %lld documents", s, (long long)corpus->n_documents[s]);
    smoe_corpus_read(corpus, s, 0, (size_t)sizes[s], tokens);
    int n_wrong = 0;
    for (int64_t i = 0; i < sizes[s]; i++) n_wrong += tokens[i] != token(s, i);
    CHECK(n_wrong == 0, "split %d: %d tokens differ", s, n_wrong);
    smoe_corpus_read(corpus, s, 50, 3, tokens);
    for (int i = 0; i < 3; i++) CHECK(tokens[i] == token(s, 50 + i), "split %d: token %d", s, 50 + i);
    smoe_corpus_read(corpus, s, sizes[s], 0, NULL);
  }
}

/** Sequences s = 0 .. 2 of the test split of 100 tokens: whole, cut at its end, and beyond it. */
static void check_sequences(const smoe_corpus *corpus) {
  int32_t input[T], target[T];
  for (int64_t s = 0; s < 3; s++) {
    smoe_corpus_sequence(corpus, SMOE_TEST, s, T, input, target);
    int n_wrong = 0;
    for (int64_t i = 0; i < T; i++) {
      const int64_t at = s * T + i;
      n_wrong += input[i] != (at < N_TEST ? token(SMOE_TEST, at) : -1);
      n_wrong += target[i] != (at + 1 < N_TEST ? token(SMOE_TEST, at + 1) : -1);
    }
    CHECK(n_wrong == 0, "sequence %lld: %d values differ", (long long)s, n_wrong);
  }
}

static void check_fingerprint(const smoe_group *group, const smoe_corpus *corpus) {
  smoe_corpus other;
  CHECK(smoe_corpus_open(&other, group, make_corpus("same.h5", 70000)) == SMOE_OK, "%s", smoe_last_error());
  CHECK(other.fingerprint == corpus->fingerprint, "the width of the file's integers is in the fingerprint");
  CHECK(other.vocabulary == 70000, "vocabulary %d", other.vocabulary);
  check_tokens(&other);
  smoe_corpus_close(&other);
  smoe_corpus_close(&other);
}

static void expect_refusal(const smoe_group *group, const char *path, smoe_status want, const char *words) {
  smoe_corpus corpus;
  const smoe_status status = smoe_corpus_open(&corpus, group, path);
  CHECK(status == want && strstr(smoe_last_error(), words), "'%s': status %d, report '%s'", path, status,
        status ? smoe_last_error() : "");
  if (status == SMOE_OK) smoe_corpus_close(&corpus);
}

/** A corpus file in which one thing is wrong. */
static const char *broken(int what) {
  const char *path = test_path("broken.h5");
  const int64_t n = 4, offsets = 2, document[2] = {0, what == 2 ? 3 : 4};
  hid_t file;
  CHECK(smoe_h5_create(&file, path, NULL) == SMOE_OK, "%s", smoe_last_error());
  static const char *const groups[] = {"/train", "/valid", "/test"};
  for (int s = 0; s < SMOE_SPLITS; s++) {
    char name[64];
    snprintf(name, sizeof name, "%s/tokens", groups[s]);
    smoe_h5_dataset(file, name, what == 3 ? H5T_IEEE_F32LE : H5T_STD_U16LE, 1, &n);
    const int32_t tokens[4] = {1, 2, 7, 4};
    smoe_h5_write(file, name, H5T_NATIVE_INT32, tokens, 0, n);
    snprintf(name, sizeof name, "%s/document", groups[s]);
    smoe_h5_dataset(file, name, H5T_STD_I64LE, 1, &offsets);
    smoe_h5_write(file, name, H5T_NATIVE_INT64, document, 0, offsets);
    smoe_h5_set_i64(file, groups[s], "n_bytes", 0);
  }
  smoe_h5_set_text(file, "/", "format", what == 0 ? "something else" : "stablemoe-corpus");
  smoe_h5_set_i64(file, "/", "format_version", what == 1 ? 2 : 1);
  smoe_h5_set_i64(file, "/", "vocabulary", what == 5 ? 7 : 8);
  smoe_h5_set_i64(file, "/", "end_id", what == 4 ? 8 : 0);
  smoe_h5_set_u64(file, "/", "fingerprint", 1);
  smoe_h5_set_f64(file, "/", "unigram_nats", 1.0);
  smoe_h5_set_f64(file, "/", "bigram_nats", 1.0);
  CHECK(smoe_h5_close(file) == SMOE_OK, "%s", smoe_last_error());
  return path;
}

static void check_refusals(const smoe_group *group, const char *path) {
  expect_refusal(group, test_path("missing.h5"), SMOE_ERR_IO, "missing.h5");
  expect_refusal(group, "", SMOE_ERR_CONFIG, "data.corpus");
  expect_refusal(group, test_file("text.h5", "no HDF5", 7), SMOE_ERR_FORMAT, "not an HDF5 file");
  expect_refusal(group, broken(0), SMOE_ERR_FORMAT, "no corpus");
  expect_refusal(group, broken(1), SMOE_ERR_FORMAT, "version 2");
  expect_refusal(group, broken(2), SMOE_ERR_FORMAT, "documents of train");
  expect_refusal(group, broken(3), SMOE_ERR_FORMAT, "/train/tokens");
  expect_refusal(group, broken(4), SMOE_ERR_FORMAT, "damaged");
  static char bytes[1 << 16];
  FILE *stream = fopen(path, "rb");
  const size_t n = stream ? fread(bytes, 1, sizeof bytes, stream) : 0;
  if (stream) fclose(stream);
  CHECK(n > 4096 && n < sizeof bytes, "the corpus has %zu bytes", n);
  expect_refusal(group, test_file("short.h5", bytes, n / 2), SMOE_ERR_FORMAT, "short.h5");
  expect_refusal(group, test_file("head.h5", bytes, 100), SMOE_ERR_FORMAT, "head.h5");
}

/** What ends the run has to be seen from outside, and before MPI is there. */
static void check_panic(const char *path, int64_t first, size_t n, const char *what) {
  fflush(NULL);
  const pid_t child = fork();
  if (child == 0) {
    smoe_corpus corpus;
    int32_t tokens[16];
    if (!freopen("/dev/null", "w", stderr) || smoe_corpus_open_local(&corpus, path) != SMOE_OK) _exit(0);
    smoe_corpus_read(&corpus, SMOE_TRAIN, first, n, tokens);
    _exit(0);
  }
  int state = 0;
  waitpid(child, &state, 0);
  CHECK(!(WIFEXITED(state) && WEXITSTATUS(state) == 0), "%s did not end the run", what);
}

int main(int argc, char **argv) {
  test_directory_make();
  const char *path = make_corpus("corpus.h5", V);
  check_panic(path, N_TRAIN - 1, 2, "a range beyond the end");
  check_panic(path, -1, 2, "a range before the beginning");
  check_panic(broken(5), 0, 4, "a token outside the vocabulary");

  smoe_group group;
  smoe_group_start(&group, &argc, &argv);
  smoe_corpus corpus;
  CHECK(smoe_corpus_open(&corpus, &group, path) == SMOE_OK, "%s", smoe_last_error());
  CHECK(corpus.vocabulary == V && corpus.end_id == -1 && !corpus.model, "V %d, end %d", corpus.vocabulary,
        corpus.end_id);
  check_tokens(&corpus);
  check_sequences(&corpus);
  check_fingerprint(&group, &corpus);
  smoe_corpus_close(&corpus);
  check_refusals(&group, path);
  smoe_group_end(&group);
  return test_verdict("test_corpus");
}
