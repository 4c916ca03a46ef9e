/* From files of sentence pairs to a corpus: every pair once, as a model reads it, and clear errors. */
#include "stablemoe/prepare_pairs.h"

#include <unistd.h>
#include <zlib.h>

#include "harness.h"
#include "stablemoe/log.h"
#include "stablemoe/pair_sampler.h"
#include "temporary.h"

enum { PAIRS = 600, LINE = 160, VOCABULARY = 400 };

/** Sentence i in language l: words that depend on both, so that no two are equal. */
static void sentence(char text[LINE], int l, int i) {
  static const char *const words[3][6] = {
      {"hund", "katze", "läuft", "schläft", "garten", "straße"},
      {"dog", "cat", "runs", "sleeps", "garden", "street"},
      {"pes", "kočka", "běží", "spí", "zahrada", "ulice"},
  };
  size_t used = 0;
  for (int w = 0; w < 4 + i % 5; w++) {
    const uint64_t bits = smoe_random_bits(9, SMOE_RANDOM_TEST, (uint32_t)i, (uint64_t)w);
    used += (size_t)snprintf(text + used, LINE - used, "%s ", words[l][bits % 6]);
  }
  snprintf(text + used, LINE - used, "%d.", i);
}

/** A file of sentences first .. first + n - 1 of a language, with this one between them if there is one. */
static const char *write_side(const char *name, int l, int first, int n, const char *also, bool packed) {
  char *all = smoe_alloc((size_t)(n + 4) * LINE);
  for (int i = 0; i < n; i++) {
    char line[LINE];
    sentence(line, l, first + i);
    strcat(strcat(all, line), i % 3 ? "\n" : " \r\n");
    if (also && i == n / 2) strcat(all, also);
  }
  const char *path = test_path(name);
  if (packed) {
    gzFile out = gzopen(path, "wb");
    gzwrite(out, all, (unsigned)strlen(all));
    gzclose(out);
  } else {
    test_file(name, all, strlen(all));
  }
  smoe_free(all);
  return path;
}

static smoe_prepare_pairs_options options_for(const char *output, const smoe_pair_input *input, size_t n) {
  smoe_prepare_pairs_options options = smoe_prepare_pairs_defaults();
  options.output = test_path(output);
  options.vocabulary = VOCABULARY;
  options.input[SMOE_TRAIN] = input;
  options.n_inputs[SMOE_TRAIN] = n;
  options.valid_share = options.test_share = 0.1;
  return options;
}

/** The text of one side of a pair, after its tag and end were checked; memory of smoe_alloc. */
static char *text_of(const smoe_pairs *pairs, const smoe_tokenizer *tokenizer, smoe_split split,
                     smoe_side side, int64_t i) {
  const int n = smoe_pairs_length(pairs, split, side, i);
  int32_t *tokens = smoe_alloc((size_t)n * sizeof *tokens);
  smoe_pairs_read(pairs, split, side, i, tokens);
  const int tagged = side == SMOE_SIDE_SOURCE;
  const int language = smoe_pairs_language(pairs, split, SMOE_SIDE_TARGET, i);
  CHECK(tokens[n - 1] == pairs->end_id, "pair %lld ends with %d", (long long)i, tokens[n - 1]);
  CHECK(!tagged || tokens[0] == pairs->tag[language], "pair %lld begins with %d", (long long)i, tokens[0]);
  for (int t = tagged; t < n - 1; t++)
    for (int l = 0; l < pairs->n_languages; l++)
      CHECK(tokens[t] != pairs->tag[l] && tokens[t] != pairs->end_id, "pair %lld: token %d is %d",
            (long long)i, t, tokens[t]);
  char *text = NULL;
  CHECK(smoe_tokenizer_decode(tokenizer, tokens + tagged, (size_t)(n - 1 - tagged), &text) == SMOE_OK, "%s",
        smoe_last_error());
  smoe_free(tokens);
  return text;
}

static int number_in(const char *text) {
  return atoi(text + strcspn(text, "0123456789"));
}

/** Every pair of a corpus of languages 0 and 1 against what was written; found: which sentences there are. */
static void check_texts(const smoe_pairs *pairs, int *found) {
  smoe_tokenizer *tokenizer;
  CHECK(smoe_tokenizer_open(&tokenizer, pairs->model, pairs->model_bytes) == SMOE_OK, "%s",
        smoe_last_error());
  for (int s = 0; s < SMOE_SPLITS; s++) {
    int64_t sum = 0;
    for (int64_t i = 0; i < pairs->split[s].n_pairs; i++) {
      for (int side = 0; side < SMOE_SIDES; side++) {
        static const char *const codes[] = {"de", "en", "cs"};
        char *text = text_of(pairs, tokenizer, s, side, i), expected[LINE];
        const char *code = pairs->language[smoe_pairs_language(pairs, s, side, i)];
        int l = 0;
        while (l < 2 && strcmp(codes[l], code) != 0) l++;
        const int number = number_in(text);
        sentence(expected, l, number);
        CHECK(strcmp(text, expected) == 0, "pair %lld of split %d: '%s', expected '%s'", (long long)i, s,
              text, expected);
        if (side == SMOE_SIDE_SOURCE && number >= 0 && number < PAIRS) found[number] |= 1 << s;
        smoe_free(text);
      }
      sum += smoe_pairs_target_length(pairs, s, i);
    }
    CHECK(sum == pairs->split[s].n_tokens[SMOE_SIDE_TARGET], "%lld target tokens", (long long)sum);
  }
  smoe_tokenizer_close(tokenizer);
}

static void check_counts(const smoe_pairs *pairs) {
  for (int side = 0; side < SMOE_SIDES; side++) {
    int64_t *count = smoe_alloc((size_t)pairs->vocabulary * sizeof *count), sum = 0;
    CHECK(smoe_pairs_counts(pairs, side, count) == SMOE_OK, "%s", smoe_last_error());
    for (int v = 0; v < pairs->vocabulary; v++) sum += count[v];
    CHECK(sum == pairs->split[SMOE_TRAIN].n_tokens[side], "%lld tokens are counted", (long long)sum);
    CHECK(count[pairs->end_id] == pairs->split[SMOE_TRAIN].n_pairs, "%lld ends",
          (long long)count[pairs->end_id]);
    smoe_free(count);
  }
}

/** The lanes of some micro-batches: source, target and shifted input of each pair, and -1 beyond. */
static void check_batches(const smoe_pairs *pairs) {
  const smoe_pair_sampling options = {
      .lanes = 4, .micro_batches = 1, .tokens = 1200, .temperature = 1, .seed = 1, .direction = -1};
  smoe_pair_sampler sampler;
  CHECK(smoe_pair_sampler_open(&sampler, pairs, SMOE_TRAIN, &options) == SMOE_OK, "%s", smoe_last_error());
  static int32_t source[1200], input[1200], target[1200], tokens[512];
  for (int64_t u = 0; u < 20; u++) {
    const smoe_pair_batch b = smoe_pair_sampler_batch(&sampler, u, 0);
    int64_t n_targets = 0;
    int n_wrong = 0;
    for (int i = 0; i < b.lanes * b.sequences; i++) {
      const int j = i % b.sequences;
      if (j == 0) smoe_pair_batch_read(pairs, SMOE_TRAIN, &b, i / b.sequences, source, input, target);
      const int32_t *to = target + j * b.target_length, *in = input + j * b.target_length;
      int n = 0, m = 0;
      if (b.pair[i] >= 0) {
        m = smoe_pairs_length(pairs, SMOE_TRAIN, SMOE_SIDE_SOURCE, b.pair[i]);
        smoe_pairs_read(pairs, SMOE_TRAIN, SMOE_SIDE_SOURCE, b.pair[i], tokens);
        n_wrong += memcmp(source + j * b.source_length, tokens, (size_t)m * sizeof *tokens) != 0;
        n = smoe_pairs_target_length(pairs, SMOE_TRAIN, b.pair[i]);
        smoe_pairs_read(pairs, SMOE_TRAIN, SMOE_SIDE_TARGET, b.pair[i], tokens);
        n_wrong += memcmp(to, tokens, (size_t)n * sizeof *tokens) != 0;
        n_wrong += in[0] != pairs->end_id || memcmp(in + 1, to, (size_t)(n - 1) * sizeof *in) != 0;
      }
      n_targets += n;
      for (int t = n; t < b.target_length; t++) n_wrong += to[t] != -1 || in[t] != -1;
      for (int t = m; t < b.source_length; t++) n_wrong += source[j * b.source_length + t] != -1;
    }
    CHECK(n_wrong == 0 && n_targets == b.n_targets, "update %lld: %d differences, %lld targets", (long long)u,
          n_wrong, (long long)n_targets);
  }
  smoe_pair_sampler_close(&sampler);
}

/** Two directions into one language, one of them compressed, split by share. */
static void check_shares(void) {
  const smoe_pair_input input[] = {
      {"de-en", write_side("a.de", 0, 0, PAIRS, NULL, false), write_side("a.en", 1, 0, PAIRS, NULL, false)},
      {"cs-en", write_side("b.cs.gz", 2, 0, PAIRS, NULL, true),
       write_side("b.en.gz", 1, 0, PAIRS, NULL, true)},
  };
  const smoe_prepare_pairs_options options = options_for("shares.h5", input, 2);
  CHECK(smoe_prepare_pairs(&options) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_pairs_verify(options.output) == SMOE_OK, "%s", smoe_last_error());
  smoe_pairs pairs;
  CHECK(smoe_pairs_open_local(&pairs, options.output) == SMOE_OK, "%s", smoe_last_error());
  CHECK(pairs.n_languages == 3 && pairs.n_directions == 2 && pairs.vocabulary == VOCABULARY, "%d languages",
        pairs.n_languages);
  int64_t total = 0;
  for (int s = 0; s < SMOE_SPLITS; s++) {
    total += pairs.split[s].n_pairs;
    const double share = (double)pairs.split[s].n_pairs / (2 * PAIRS);
    CHECK(s == SMOE_TRAIN || fabs(share - 0.1) <= 0.04, "split %d has %.3f of the pairs", s, share);
  }
  CHECK(total == 2 * PAIRS, "%lld pairs", (long long)total);
  int found[PAIRS] = {0};
  check_texts(&pairs, found);
  for (int i = 0; i < PAIRS; i++)
    CHECK(found[i] == 1 || found[i] == 2 || found[i] == 4, "sentence %d is in splits %d", i, found[i]);
  check_counts(&pairs);
  check_batches(&pairs);
  /* As of a corpus that is too large to be kept in memory. */
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int side = 0; side < SMOE_SIDES; side++) {
      smoe_free(pairs.split[s].token[side]);
      pairs.split[s].token[side] = NULL;
    }
  check_texts(&pairs, found);
  const uint64_t fingerprint = pairs.fingerprint;
  smoe_pairs_close(&pairs);
  CHECK(smoe_prepare_pairs(&options) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_pairs_open_local(&pairs, options.output) == SMOE_OK, "%s", smoe_last_error());
  CHECK(pairs.fingerprint == fingerprint, "the same files give another corpus");
  smoe_pairs_close(&pairs);
}

/** Files for each split, and pairs that are left out of them; tab-separated pairs for the test. */
static void check_left_out(void) {
  char lengthy[2 * LINE] = "", table[4 * LINE] = "";
  for (int i = 0; i < 60; i++) strcat(lengthy, "ab ");
  for (int i = 0; i < 3; i++) {
    char source[LINE], target[LINE];
    sentence(source, 0, i);
    sentence(target, 1, i + (i == 2));
    sprintf(table + strlen(table), "%s\t%s\n", source, target);
  }
  char also_de[3 * LINE], also_en[3 * LINE];
  sprintf(also_de, "\n \nein hund läuft in den garten und schläft dort\n%s\n", lengthy);
  sprintf(also_en, "a dog\n\na\n%s\n", lengthy);
  const smoe_pair_input train = {"de-en", write_side("t.de", 0, 0, 300, also_de, false),
                                 write_side("t.en", 1, 0, 300, also_en, false)};
  const smoe_pair_input valid = {"de-en", write_side("v.de", 0, 400, 50, also_de, false),
                                 write_side("v.en", 1, 400, 50, also_en, false)};
  const smoe_pair_input test = {"de-en", test_file("test.tsv", table, strlen(table)), NULL};
  smoe_prepare_pairs_options options = options_for("left.h5", &train, 1);
  options.input[SMOE_VALID] = &valid;
  options.input[SMOE_TEST] = &test;
  options.n_inputs[SMOE_VALID] = options.n_inputs[SMOE_TEST] = 1;
  options.max_tokens = 60;
  CHECK(smoe_prepare_pairs(&options) == SMOE_OK, "%s", smoe_last_error());
  smoe_pairs pairs;
  CHECK(smoe_pairs_open_local(&pairs, options.output) == SMOE_OK, "%s", smoe_last_error());
  const smoe_pair_split *split = pairs.split;
  CHECK(split[SMOE_TRAIN].n_pairs == 300 && split[SMOE_VALID].n_pairs == 51 && split[SMOE_TEST].n_pairs == 3,
        "%lld, %lld, %lld pairs", (long long)split[0].n_pairs, (long long)split[1].n_pairs,
        (long long)split[2].n_pairs);
  static const int64_t expected[2][SMOE_LEFT_OUT_REASONS] = {{2, 1, 1}, {2, 1, 0}};
  for (int s = 0; s < 2; s++)
    for (int r = 0; r < SMOE_LEFT_OUT_REASONS; r++)
      CHECK(split[s].left_out[r] == expected[s][r], "split %d, reason %d: %lld are left out", s, r,
            (long long)split[s].left_out[r]);
  CHECK(split[SMOE_TEST].n_repeated == 2, "%lld test pairs are found in training",
        (long long)split[SMOE_TEST].n_repeated);
  /* "ein hund ..." | "a" and the lengthy pair are training pairs, too, though they are left out of them. */
  CHECK(split[SMOE_VALID].n_repeated == 2, "%lld", (long long)split[SMOE_VALID].n_repeated);
  CHECK(split[SMOE_TRAIN].n_bytes[SMOE_SIDE_SOURCE][0] > 300 * 10, "bytes are not counted");
  smoe_pairs_close(&pairs);
}

static void expect(smoe_prepare_pairs_options options, smoe_status code, const char *words) {
  const smoe_status status = smoe_prepare_pairs(&options);
  CHECK(status == code && strstr(smoe_last_error(), words), "status %d, expected %d and '%s': %s", status,
        code, words, smoe_last_error());
  CHECK(access(test_path("error.h5"), F_OK) != 0, "a corpus was made all the same");
}

static void expect_input(smoe_pair_input input, smoe_status code, const char *words) {
  expect(options_for("error.h5", &input, 1), code, words);
}

static void check_errors(void) {
  const char *de = test_path("a.de"), *en = test_path("a.en");
  const char *cut = write_side("cut.en", 1, 0, PAIRS - 7, NULL, false);
  expect_input((smoe_pair_input){"de-en", de, cut}, SMOE_ERR_CONFIG, "cut.en' 593:");
  expect_input((smoe_pair_input){"de-en", de, cut}, SMOE_ERR_CONFIG, "a.de' has 600 lines");
  expect_input((smoe_pair_input){"en-de", cut, de}, SMOE_ERR_CONFIG, "a.de' 600:");
  expect_input((smoe_pair_input){"de-en", de, test_path("none.en")}, SMOE_ERR_IO, "none.en': No such file");
  expect_input((smoe_pair_input){"de", de, en}, SMOE_ERR_CONFIG, "'de' is not the languages of a pair");
  expect_input((smoe_pair_input){"de-de", de, en}, SMOE_ERR_CONFIG, "'de-de' is not the languages");
  expect_input((smoe_pair_input){"de-e n", de, en}, SMOE_ERR_CONFIG, "'de-e n' is not the languages");
  expect_input((smoe_pair_input){"de-en", de, NULL}, SMOE_ERR_FORMAT, "line 1 of '");
  expect_input((smoe_pair_input){"de-en", test_file("three.tsv", "a\tb\nc\td\te\n", 10), NULL},
               SMOE_ERR_FORMAT, "line 2 of '");
  expect_input(
      (smoe_pair_input){"de-en", test_file("bad.de", "a\nb\xe9\n", 5), test_file("bad.en", "a\nb\n", 4)},
      SMOE_ERR_FORMAT, "bad.de' is not UTF-8 text: line 2, byte 2 is 0xE9");
  expect_input((smoe_pair_input){"de-en", test_file("no.de", "\n\n", 2), test_file("no.en", "\n\n", 2)},
               SMOE_ERR_CONFIG, "there are no training pairs");
  /* A compressed file without its end. */
  FILE *stream = fopen(test_path("b.en.gz"), "rb");
  char packed[2000];
  const size_t n = fread(packed, 1, sizeof packed, stream);
  fclose(stream);
  const char *half = test_file("half.gz", packed, n - 100);
  expect_input((smoe_pair_input){"cs-en", half, half}, SMOE_ERR_FORMAT, "half.gz' is truncated");
  memset(packed + 300, 0x55, 40);
  const char *noise = test_file("noise.gz", packed, n);
  expect_input((smoe_pair_input){"cs-en", noise, noise}, SMOE_ERR_FORMAT, "noise.gz' is damaged");

  const smoe_pair_input good = {"de-en", de, en}, other = {"fr-en", de, en};
  smoe_prepare_pairs_options options = options_for("error.h5", &good, 1);
  options.input[SMOE_TEST] = &other;
  options.n_inputs[SMOE_TEST] = 1;
  expect(options, SMOE_ERR_CONFIG, "no training pairs of fr-en");
  options = options_for("error.h5", &good, 1);
  options.max_tokens = 7;
  expect(options, SMOE_ERR_CONFIG, "a limit of 7 tokens");
  options = options_for("error.h5", &good, 1);
  options.valid_share = 0.5;
  expect(options, SMOE_ERR_CONFIG, "shares");
  options = options_for("error.h5", &good, 1);
  setenv("STABLEMOE_FAULT", "corpus.write@0", 1);
  expect(options, SMOE_ERR_IO, "injected fault");
  unsetenv("STABLEMOE_FAULT");
  options = options_for("a.de", &good, 1);
  CHECK(smoe_prepare_pairs(&options) == SMOE_ERR_CONFIG, "wrote over the text");
}

/** Each kind of corpus is refused where the other one is needed. */
static void check_kinds(void) {
  smoe_corpus corpus;
  const char *path = test_path("shares.h5");
  CHECK(smoe_corpus_open_local(&corpus, path) == SMOE_ERR_FORMAT &&
            strstr(smoe_last_error(), "corpus of sentence pairs, for translation"),
        "%s", smoe_last_error());
  smoe_corpus_close(&corpus);
}

/** The model of one corpus serves another, if it has the languages. */
static void check_model(void) {
  smoe_pairs pairs;
  CHECK(smoe_pairs_open_local(&pairs, test_path("shares.h5")) == SMOE_OK, "%s", smoe_last_error());
  const char *model = test_file("tags.model", pairs.model, pairs.model_bytes);
  smoe_pairs_close(&pairs);
  const smoe_pair_input good = {"en-cs", test_path("b.en.gz"), test_path("b.cs.gz")};
  smoe_prepare_pairs_options options = options_for("given.h5", &good, 1);
  options.vocabulary = 0;
  options.model_path = model;
  CHECK(smoe_prepare_pairs(&options) == SMOE_OK, "%s", smoe_last_error());
  const smoe_pair_input other = {"en-fr", test_path("b.en.gz"), test_path("b.cs.gz")};
  options = options_for("error.h5", &other, 1);
  options.vocabulary = 0;
  options.model_path = model;
  expect(options, SMOE_ERR_CONFIG, "has no piece '<2fr>'");
  char lengthy[40 * LINE] = "";
  for (int i = 0; i < 20; i++)
    sprintf(lengthy + strlen(lengthy), "dog cat dog cat dog cat dog cat %d\tpes pes pes pes pes pes %d\n", i,
            i);
  const smoe_pair_input table = {"en-cs", test_file("long.tsv", lengthy, strlen(lengthy)), NULL};
  options = options_for("error.h5", &table, 1);
  options.vocabulary = 0;
  options.model_path = model;
  options.max_tokens = 8;
  expect(options, SMOE_ERR_CONFIG, "the train split has no pair");
}

int main(void) {
  smoe_log_setup(1, true);
  test_directory_make();
  check_shares();
  check_left_out();
  check_errors();
  check_kinds();
  check_model();
  return test_verdict("prepare_pairs");
}
