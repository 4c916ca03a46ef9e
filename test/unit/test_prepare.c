/* From text to a corpus: nothing lost, nothing twice, the same again, and clear errors. */
#include "stablemoe/prepare.h"

#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"
#include "stablemoe/corpus.h"
#include "stablemoe/log.h"
#include "temporary.h"

enum { FILES = 60, VOCABULARY = 400 };

static char *sources[FILES];

static void make_directory(void) {
  mkdir(test_path("text"), 0700);
  mkdir(test_path("text/b"), 0700);
  mkdir(test_path("text/.hidden"), 0700);
  for (int i = 0; i < FILES; i++) {
    char name[64];
    snprintf(name, sizeof name, "text/%sf%02d.py", i < 30 ? "" : "b/", i);
    sources[i] = test_source((uint64_t)i + 1, 1500);
    test_file(name, sources[i], strlen(sources[i]));
  }
  test_file("text/.hidden/x.py", "hidden directory", 16);
  test_file("text/.x.py", "hidden file", 11);
  test_file("text/b/other.md", "other extension", 15);
  test_file("text/b/zero.py", "a\0b", 3);
  test_file("text/b/latin.py", "caf\xe9\n", 5);
  test_file("text/b/empty.py", "", 0);
  char *late = test_source(100, 50000);
  strcat(late, "\xff\n");
  test_file("text/b/late.py", late, strlen(late));
  smoe_free(late);
  if (symlink("..", test_path("text/b/loop")) || symlink("nowhere", test_path("text/b/gone.py")))
    perror("symlink");
}

static smoe_prepare_options options_for(const char *output) {
  smoe_prepare_options options = smoe_prepare_defaults();
  options.output = test_path(output);
  options.vocabulary = VOCABULARY;
  options.valid_share = options.test_share = 0.1;
  return options;
}

/** Read a whole split; memory of smoe_alloc. */
static int32_t *read_split(const smoe_corpus *corpus, smoe_split split) {
  int32_t *tokens = smoe_alloc((size_t)corpus->n_tokens[split] * sizeof *tokens);
  smoe_corpus_read(corpus, split, 0, (size_t)corpus->n_tokens[split], tokens);
  return tokens;
}

/** Find every document of a split among the files; returns how many there were. */
static int find_documents(const smoe_corpus *corpus, const smoe_tokenizer *tokenizer, smoe_split split,
                          int *found) {
  int32_t *tokens = read_split(corpus, split);
  int n = 0, n_unknown = 0;
  int64_t begin = 0;
  for (int64_t i = 0; i < corpus->n_tokens[split]; i++) {
    if (tokens[i] != corpus->end_id) continue;
    char *text;
    CHECK(smoe_tokenizer_decode(tokenizer, tokens + begin, (size_t)(i - begin), &text) == SMOE_OK, "decode");
    int f = 0;
    while (f < FILES && strcmp(text, sources[f]) != 0) f++;
    if (f < FILES)
      found[f]++;
    else
      n_unknown++;
    smoe_free(text);
    begin = i + 1;
    n++;
  }
  CHECK(begin == corpus->n_tokens[split], "split %d does not end with a document", split);
  CHECK(n_unknown == 0, "split %d: %d documents are none of the files", split, n_unknown);
  CHECK(n == corpus->n_documents[split], "split %d: %d documents, not %lld", split, n,
        (long long)corpus->n_documents[split]);
  smoe_free(tokens);
  return n;
}

/** Cross entropies by the book, with a table of all pairs. */
static void check_statistics(const smoe_corpus *corpus) {
  static double pair[VOCABULARY][VOCABULARY], count[VOCABULARY], after[VOCABULARY];
  memset(pair, 0, sizeof pair);
  memset(count, 0, sizeof count);
  memset(after, 0, sizeof after);
  int32_t *train = read_split(corpus, SMOE_TRAIN), *valid = read_split(corpus, SMOE_VALID);
  const int64_t n = corpus->n_tokens[SMOE_TRAIN], n_valid = corpus->n_tokens[SMOE_VALID];
  for (int64_t i = 0; i < n; i++) {
    count[train[i]]++;
    if (i + 1 < n) pair[train[i]][train[i + 1]]++, after[train[i]]++;
  }
  double unigram = 0.0, bigram = 0.0;
  for (int64_t i = 1; i < n_valid; i++) {
    const int32_t a = valid[i - 1], b = valid[i];
    unigram -= log((count[b] + 1.0) / ((double)n + VOCABULARY));
    bigram -= log((pair[a][b] + 1.0) / (after[a] + VOCABULARY));
  }
  CHECK_NEAR(corpus->unigram, unigram / (double)(n_valid - 1), 1e-12, 1e-12);
  CHECK_NEAR(corpus->bigram, bigram / (double)(n_valid - 1), 1e-12, 1e-12);
  CHECK(corpus->bigram < corpus->unigram, "pairs of this text say something");
  smoe_free(train);
  smoe_free(valid);
}

static void check_directory(void) {
  const char *input = test_path("text");
  smoe_prepare_options options = options_for("corpus.h5");
  options.extensions = ".txt,.py";
  CHECK(smoe_prepare(&options, &input, 1) == SMOE_OK, "%s", smoe_last_error());
  smoe_corpus corpus, again;
  smoe_tokenizer *tokenizer = NULL;
  CHECK(smoe_corpus_open_local(&corpus, options.output) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_tokenizer_open(&tokenizer, corpus.model, corpus.model_bytes) == SMOE_OK, "%s",
        smoe_last_error());
  if (!tokenizer) return;
  CHECK(corpus.vocabulary == VOCABULARY, "V %d", corpus.vocabulary);
  int found[FILES] = {0}, n_wrong = 0;
  int64_t n_bytes = 0, n_expected = 0;
  for (int s = 0; s < SMOE_SPLITS; s++) {
    const int n = find_documents(&corpus, tokenizer, s, found);
    CHECK(n >= (s == SMOE_TRAIN ? 40 : 4), "split %d has %d documents", s, n);
    n_bytes += corpus.n_bytes[s];
  }
  for (int f = 0; f < FILES; f++) {
    n_wrong += found[f] != 1;
    n_expected += (int64_t)strlen(sources[f]);
  }
  CHECK(n_wrong == 0, "%d files are not in exactly one split", n_wrong);
  CHECK(n_bytes == n_expected, "%lld bytes, not %lld", (long long)n_bytes, (long long)n_expected);
  check_statistics(&corpus);

  options.output = test_path("again.h5");
  CHECK(smoe_prepare(&options, &input, 1) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_corpus_open_local(&again, options.output) == SMOE_OK, "%s", smoe_last_error());
  CHECK(again.fingerprint == corpus.fingerprint, "the same text made other tokens");
  smoe_corpus_close(&again);
  options.seed = 2;
  CHECK(smoe_prepare(&options, &input, 1) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_corpus_open_local(&again, options.output) == SMOE_OK, "%s", smoe_last_error());
  CHECK(again.fingerprint != corpus.fingerprint, "another seed made the same splits");
  smoe_corpus_close(&again);

  /* The model alone, on other text. */
  const char *model = test_file("some.model", corpus.model, corpus.model_bytes);
  options = options_for("given.h5");
  options.model_path = model;
  options.vocabulary = 0;
  CHECK(smoe_prepare(&options, &input, 1) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_corpus_open_local(&again, options.output) == SMOE_OK, "%s", smoe_last_error());
  CHECK(again.vocabulary == VOCABULARY, "V %d", again.vocabulary);
  smoe_corpus_close(&again);
  smoe_tokenizer_close(tokenizer);
  smoe_corpus_close(&corpus);
}

/** One file makes three splits, whose documents in the order of the file are the file. */
static void check_single_file(bool lines) {
  char *text = test_source(99, 60000);
  const char *input = test_file("single.txt", text, strlen(text));
  smoe_prepare_options options = options_for("single.h5");
  options.lines = lines;
  CHECK(smoe_prepare(&options, &input, 1) == SMOE_OK, "%s", smoe_last_error());
  smoe_corpus corpus;
  CHECK(smoe_corpus_open_local(&corpus, options.output) == SMOE_OK, "%s", smoe_last_error());
  int64_t bytes = 0, documents = 0, wanted = 0, n_lines = 0;
  for (size_t i = 0; text[i]; i++) {
    wanted += !lines || text[i] != '\n';
    n_lines += i > 0 && text[i] == '\n' && text[i - 1] != '\n';
  }
  for (int s = 0; s < SMOE_SPLITS; s++) {
    bytes += corpus.n_bytes[s];
    documents += corpus.n_documents[s];
  }
  CHECK(bytes == wanted, "%lld bytes, not %lld", (long long)bytes, (long long)wanted);
  if (lines) CHECK(documents == n_lines, "%lld lines, not %lld", (long long)documents, (long long)n_lines);
  if (!lines) CHECK(documents > 20 && documents < 80, "%lld documents", (long long)documents);
  const double share = (double)corpus.n_bytes[SMOE_VALID] / (double)bytes;
  CHECK(share >= 0.1 && share <= 0.1 * 1.26, "the validation split has a share of %.3f", share);
  smoe_corpus_close(&corpus);
  smoe_free(text);
}

static bool exists(const char *path) {
  return access(path, F_OK) == 0;
}

static void expect(smoe_prepare_options options, const char *input, smoe_status want, const char *words) {
  const smoe_status status = smoe_prepare(&options, &input, 1);
  CHECK(status == want && strstr(smoe_last_error(), words), "'%s': status %d, report '%s'", input, status,
        status ? smoe_last_error() : "");
  CHECK(!exists(options.output) || want == SMOE_OK, "'%s' was left behind", options.output);
  char *part = smoe_sprintf("%s.part", options.output);
  CHECK(!exists(part), "'%s' was left behind", part);
  smoe_free(part);
}

/** Every kind of byte sequence that is no UTF-8, after four good characters. */
static void check_utf8(void) {
  static const char *const bad[] = {"\x80",
                                    "\xc0\xaf",
                                    "\xc1\xbf",
                                    "\xc3",
                                    "\xc3\x28",
                                    "\xe0\x9f\xbf",
                                    "\xed\xa0\x80",
                                    "\xe2\x82\x28",
                                    "\xf0\x8f\xbf\xbf",
                                    "\xf4\x90\x80\x80",
                                    "\xf5\x80\x80\x80",
                                    "\xf0\x9f\x98"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    char text[32];
    const int n = snprintf(text, sizeof text, "abc\n%s", bad[i]);
    expect(options_for("error.h5"), test_file("bad.txt", text, (size_t)n), SMOE_ERR_FORMAT, "byte 4 ");
  }
}

static void check_errors(void) {
  const char *text = test_path("text");
  smoe_prepare_options options = options_for("error.h5");
  expect(options, test_path("missing.txt"), SMOE_ERR_IO, "missing.txt");
  expect(options, test_file("latin.txt", "1234567\xe9\n", 9), SMOE_ERR_FORMAT, "byte 7 ");
  expect(options, test_file("zero.txt", "12345\0", 6), SMOE_ERR_FORMAT, "byte 5 ");
  expect(options, test_file("cut.txt", "1234\xe2\x82", 6), SMOE_ERR_FORMAT, "byte 4 ");
  expect(options, test_file("empty.txt", "", 0), SMOE_ERR_CONFIG, "no text");
  expect(options, test_file("short.txt", "one line\n", 9), SMOE_ERR_CONFIG, "too little text");
  options.extensions = ".c";
  expect(options, text, SMOE_ERR_CONFIG, "no text");
  options = options_for("error.h5");
  options.vocabulary = 50000;
  expect(options, text, SMOE_ERR_CONFIG, "the largest it allows is");
  options.vocabulary = 10;
  expect(options, text, SMOE_ERR_CONFIG, "not between");
  options = options_for("error.h5");
  options.valid_share = 0.95;
  expect(options, text, SMOE_ERR_CONFIG, "shares");
  options = options_for("error.h5");
  options.model_path = test_path("latin.txt");
  expect(options, text, SMOE_ERR_FORMAT, "SentencePiece model");
  expect(options_for("nowhere/error.h5"), text, SMOE_ERR_IO, "nowhere/error.h5");
  setenv("STABLEMOE_FAULT", "corpus.write@0", 1);
  expect(options_for("error.h5"), text, SMOE_ERR_IO, "injected fault");
  unsetenv("STABLEMOE_FAULT");
  options = options_for("text");
  const char *named = test_path("text/f01.py");
  CHECK(smoe_prepare(&options, &named, 1) == SMOE_ERR_CONFIG, "wrote over a directory");
  options.output = named;
  CHECK(smoe_prepare(&options, &named, 1) == SMOE_ERR_CONFIG && exists(named), "wrote over the text");
}

static const char *shard(const char *name, int32_t magic, int32_t version, int32_t promised, size_t n) {
  static struct {
    int32_t header[256];
    uint16_t token[1000];
  } data;
  data.header[0] = magic;
  data.header[1] = version;
  data.header[2] = promised;
  for (size_t i = 0; i < n; i++) data.token[i] = i % 100 == 99 ? 50256 : (uint16_t)(i % 7);
  return test_file(name, &data, sizeof data.header + 2 * n);
}

static void check_shards(void) {
  smoe_prepare_options options = options_for("shards.h5");
  options.vocabulary = 0;
  const char *inputs[] = {shard("a_1.bin", 20240520, 1, 1000, 1000),
                          shard("a_2.bin", 20240520, 1, 1000, 1000)};
  CHECK(smoe_prepare(&options, inputs, 2) == SMOE_OK, "%s", smoe_last_error());
  smoe_corpus corpus;
  CHECK(smoe_corpus_open_local(&corpus, options.output) == SMOE_OK, "%s", smoe_last_error());
  static const int64_t n_tokens[] = {1600, 200, 200}, n_documents[] = {16, 2, 2};
  for (int s = 0; s < SMOE_SPLITS; s++)
    CHECK(corpus.n_tokens[s] == n_tokens[s] && corpus.n_documents[s] == n_documents[s],
          "split %d: %lld tokens, %lld documents", s, (long long)corpus.n_tokens[s],
          (long long)corpus.n_documents[s]);
  CHECK(corpus.vocabulary == 50257 && corpus.end_id == 50256, "V %d, end %d", corpus.vocabulary,
        corpus.end_id);
  smoe_corpus_close(&corpus);

  options.output = test_path("bad.h5");
  expect(options, shard("magic.bin", 1, 1, 10, 10), SMOE_ERR_FORMAT, "not a token shard");
  expect(options, shard("version.bin", 20240520, 2, 10, 10), SMOE_ERR_FORMAT, "version 2");
  expect(options, shard("count.bin", 20240520, 1, 11, 10), SMOE_ERR_FORMAT, "promises 11 tokens");
  expect(options, test_file("short.bin", "short", 5), SMOE_ERR_FORMAT, "shorter than a header");
  options.vocabulary = 300;
  expect(options, inputs[0], SMOE_ERR_FORMAT, "token 99 ");
  const char *mixed[] = {inputs[0], test_path("single.txt")};
  CHECK(smoe_prepare(&options, mixed, 2) == SMOE_ERR_CONFIG, "shards and text in one corpus");
}

int main(void) {
  smoe_log_setup(0, true);
  test_directory_make();
  make_directory();
  check_directory();
  check_single_file(false);
  check_single_file(true);
  check_utf8();
  check_errors();
  check_shards();
  return test_verdict("test_prepare");
}
