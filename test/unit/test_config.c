#include "stablemoe/config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "stablemoe/arena.h"

/* A second key set, as a routing method brings one: three levels deep, one kind of everything. */
typedef struct fake_options {
  int64_t width;
  double weight;
  bool noisy;
  int shape;
  char note[SMOE_TEXT_MAX];
} fake_options;

static const char *const shapes[] = {"round", "square", NULL};

static const smoe_key fake_keys[] = {
    {"router.fake.width", SMOE_KEY_INT, offsetof(fake_options, width), "50", -5, 100, NULL, "pixels",
     "Width."},
    {"router.fake.weight", SMOE_KEY_REAL, offsetof(fake_options, weight), "0.3", -INFINITY, INFINITY, NULL,
     "", "Weight."},
    {"router.fake.deep.noisy", SMOE_KEY_BOOL, offsetof(fake_options, noisy), "false", 0, 0, NULL, "",
     "Noise."},
    {"router.fake.shape", SMOE_KEY_CHOICE, offsetof(fake_options, shape), "square", 0, 0, shapes, "",
     "Shape."},
    {"router.fake.note", SMOE_KEY_TEXT, offsetof(fake_options, note), "", 0, 0, NULL, "", "Note."},
};
static const smoe_keyset fake = {fake_keys, sizeof fake_keys / sizeof *fake_keys, sizeof(fake_options)};
static const smoe_keyset *const sets[] = {&smoe_settings_keys, &fake};

static smoe_config *create(void) {
  return smoe_config_create(sets, 2);
}

static const fake_options *options(const smoe_config *config) {
  return smoe_config_options(config, &fake);
}

/* YAML that must be refused with a report that has `part` in it. */
static void refuse(const char *yaml, const char *part) {
  smoe_config *config = create();
  const smoe_status status = smoe_config_parse(config, yaml, "a.yml");
  CHECK(status == SMOE_ERR_CONFIG, "status %d for:\n%s", status, yaml);
  CHECK(strstr(smoe_last_error(), part), "'%s' not in '%s'", part, smoe_last_error());
  smoe_config_destroy(config);
}

static void refuse_override(const char *assignment, const char *part) {
  smoe_config *config = create();
  const smoe_status status = smoe_config_override(config, assignment);
  CHECK(status == SMOE_ERR_CONFIG, "status %d for %s", status, assignment);
  CHECK(strstr(smoe_last_error(), part), "'%s' not in '%s'", part, smoe_last_error());
  smoe_config_destroy(config);
}

static void must_override(smoe_config *config, const char *assignment) {
  CHECK(smoe_config_override(config, assignment) == SMOE_OK, "%s: %s", assignment, smoe_last_error());
}

/* Overrides separated by spaces that smoe_config_resolve must refuse; part NULL: must accept. */
static void resolve(const char *assignments, const char *part) {
  smoe_config *config = create();
  char *copy = smoe_strdup(assignments);
  for (char *a = strtok(copy, " "); a; a = strtok(NULL, " ")) must_override(config, a);
  const smoe_status status = smoe_config_resolve(config);
  CHECK(status == (part ? SMOE_ERR_CONFIG : SMOE_OK), "status %d for %s: %s", status, assignments,
        smoe_last_error());
  if (part) CHECK(strstr(smoe_last_error(), part), "'%s' not in '%s'", part, smoe_last_error());
  smoe_free(copy);
  smoe_config_destroy(config);
}

static void test_defaults(void) {
  smoe_config *config = create();
  const smoe_settings *s = smoe_config_settings(config);
  CHECK(strcmp(s->run.directory, "runs/default") == 0 && s->run.seed == 1 && s->run.log_every == 10);
  CHECK(s->data.corpus[0] == '\0');
  CHECK(s->model.width == 256 && s->model.blocks == 6 && s->model.heads == 8 && s->model.context == 256);
  CHECK(s->model.scale_embedding && s->moe.identical_experts);
  CHECK(s->moe.layers == 1 && s->moe.position == SMOE_MIDDLE && s->moe.experts == 8 && s->moe.sublayers == 2);
  CHECK(s->moe.capacity_factor == 0 && strcmp(s->router.method, "stable") == 0);
  CHECK(s->train.updates == 1000 && s->train.batch_sequences == 32 && s->train.micro_batches == 1);
  CHECK(s->train.lanes == 8 && s->train.evaluate_every == 200 && s->train.checkpoint_every == 200);
  CHECK(s->train.evaluate_sequences == 0 && s->train.keep_last == 3 && s->train.keep_every == 0);
  CHECK(s->optimizer.lr == 6e-4 && s->optimizer.beta1 == 0.9 && s->optimizer.beta2 == 0.98);
  CHECK(s->optimizer.epsilon == 1e-8 && s->optimizer.decay == 0 && s->optimizer.clip == 0.1);
  CHECK(s->optimizer.expert_gradient_factor == 1);
  CHECK(s->schedule.kind == SMOE_LINEAR && s->schedule.warmup == 100);
  CHECK(s->log.load_every == 10 && s->log.probe_every == -1 && s->log.probe_sequences == 8);
  CHECK(s->log.tokens_every == 0);
  CHECK(options(config)->width == 50 && options(config)->weight == 0.3 && options(config)->shape == 1);
  CHECK(smoe_config_resolve(config) == SMOE_OK, "%s", smoe_last_error());
  CHECK(s->model.inner == 1024 && s->moe.inner == 1024, "inner is four times the width");
  CHECK(s->router.stage1_updates == 100 && s->log.probe_every == 8);
  smoe_config_destroy(config);
}

static void test_parse(void) {
  smoe_config *config = create();
  const char *yaml =
      "# a comment\n"
      "%s"
      "run: {seed: 12, directory: \"a b: #c\"}\n"
      "model:\n"
      "optimizer.lr: 1e-3   # dotted, in one line\n"
      "train:\n  updates: 1e6\n  lanes: +4\n"
      "moe:\n  position: scattered\n  identical_experts: false\n"
      "router:\n  fake:\n    width: -5\n    weight: -.5E+1\n    note: é ü\n    deep:\n      noisy: true\n";
  char text[1024];
  snprintf(text, sizeof text, yaml, "");
  CHECK(smoe_config_parse(config, text, "a.yml") == SMOE_OK, "%s", smoe_last_error());
  const smoe_settings *s = smoe_config_settings(config);
  CHECK(s->run.seed == 12 && strcmp(s->run.directory, "a b: #c") == 0);
  CHECK(s->optimizer.lr == 1e-3 && s->train.updates == 1000000 && s->train.lanes == 4);
  CHECK(s->moe.position == SMOE_SCATTERED && !s->moe.identical_experts);
  CHECK(options(config)->width == -5 && options(config)->weight == -5 && options(config)->noisy);
  CHECK(strcmp(options(config)->note, "é ü") == 0);
  CHECK(s->model.width == 256, "what a file does not name keeps its value");
  CHECK(smoe_config_parse(config, "", "empty") == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_config_parse(config, "# nothing\n", "empty") == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_config_parse(config, "---\n", "empty") == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_config_parse(config, "run: {seed: 13}", "again") == SMOE_OK, "%s", smoe_last_error());
  CHECK(s->run.seed == 13 && s->train.lanes == 4, "a second file is read over the first");
  smoe_config_destroy(config);
}

/* A list from a file, in one line, on the command line: all the same, and written so that it reads back. */
static void test_lists(void) {
  static const char *const same[] = {"train:\n  initial_ignore: [\"*/gate\", a b, 'c']\n",
                                     "train:\n  initial_ignore:\n  - \"*/gate\"\n  - a b\n  - c\n",
                                     "train.initial_ignore: \"*/gate ,a b,  c\"\n", NULL};
  static const char wanted[] = "*/gate,a b,c";
  smoe_config *config = create();
  const char *list = smoe_config_settings(config)->train.initial_ignore;
  for (size_t i = 0; same[i]; i++) {
    CHECK(smoe_config_parse(config, same[i], "a.yml") == SMOE_OK, "%s", smoe_last_error());
    CHECK(strcmp(list, wanted) == 0, "'%s'", list);
    must_override(config, "train.initial_ignore=");
    CHECK(list[0] == '\0', "'%s'", list);
  }
  must_override(config, "train.initial_ignore=[*/gate, a b, c]");
  CHECK(strcmp(list, wanted) == 0, "'%s'", list);
  char *text = smoe_config_text(config, false);
  CHECK(strstr(text, "initial_ignore: [\"*/gate\", \"a b\", c]\n"), "%s", text);
  must_override(config, "train.initial_ignore=[]");
  CHECK(list[0] == '\0', "'%s'", list);
  CHECK(smoe_config_parse(config, text, "text") == SMOE_OK, "%s", smoe_last_error());
  CHECK(strcmp(list, wanted) == 0, "'%s'", list);
  smoe_free(text);
  smoe_config_destroy(config);
  refuse("train:\n  initial_ignore: [a, [b]]\n", "takes a list of texts");
  refuse("train:\n  initial_ignore: [a, \"b,c\"]\n", "'b,c' cannot be in the list");
  refuse("train:\n  initial_ignore: \"a,\"\n", "ends with a comma");
}

static void test_refusals(void) {
  /* Keys. */
  refuse("model:\n  widht: 4\n", "a.yml:2: unknown key 'model.widht', did you mean 'model.width'");
  refuse("train:\n  lr: 1\n", "did you mean 'optimizer.lr'");
  refuse("optimiser:\n  lr: 1\n", "unknown section 'optimiser', did you mean 'optimizer'");
  refuse("router:\n  fake:\n    dep: {noisy: true}\n", "a.yml:3: unknown section 'router.fake.dep'");
  refuse("run:\n  seed: 1\n  seed: 2\n", "a.yml:3: run.seed is there twice; the first one is in line 2");
  refuse("run:\n  seed: 1\nmodel:\nrun:\n", "a.yml:4: run is there twice; the first one is in line 1");
  refuse("run.seed: 1\nrun:\n  seed: 2\n", "a.yml:3: run.seed is there twice");
  refuse("run:\n  [a]: 1\n", "a.yml:2: the name of a key expected");
  refuse("run:\n  \"\": 1\n", "cannot be the name of a key");
  refuse("run:\n  \"seed\\0x\": 1\n", "cannot be the name of a key");
  /* Syntax, and YAML that has no meaning here. */
  refuse("run:\n  seed: 1\n bad: 2\n", "a.yml:3: bad YAML");
  refuse("run:\n\tseed: 1\n", "a.yml:2: the line is indented by a tab; YAML takes spaces only");
  refuse("run:\n  seed: 1\n  \tlog_every: 2\n", "a.yml:3: the line is indented by a tab");
  refuse("run:\n  seed: 1\n\nmodel:\n \t blocks: 2\n", "a.yml:5: the line is indented by a tab");
  refuse("run:\n  seed: \"1\n", "bad YAML");
  refuse("run:\n  seed: 1\n  directory: \xff\n", "a.yml:3: not a text file");
  refuse("model:\n  width: [1, 2]\n", "a.yml:2: model.width takes one value (an integer), not a list");
  refuse("model:\n  width: {a: 2}\n", "model.width takes one value (an integer), not a section");
  refuse("model:\n- width\n", "a.yml:2: model is a section of keys, not a list");
  refuse("model: 5\n", "a.yml:1: model is a section");
  refuse("- a\n", "a.yml:1: sections with keys expected");
  refuse("seed\n", "a.yml:1: sections with keys expected");
  refuse("run:\n  seed: &x 1\n", "a.yml:2: anchors (&x)");
  refuse("run: &r\n  seed: 1\n", "a.yml:1: anchors (&r)");
  refuse("run:\n  seed: *x\n", "a.yml:2: ");
  refuse("run:\n  seed: !!int 1\n", "a.yml:2: tags");
  refuse("run:\n  seed: 1\n---\nrun:\n  seed: 2\n", "a.yml:3: a second document");
  /* Values. */
  refuse("model:\n  width: 0\n", "a.yml:2: model.width: '0' is out of range: 1 to 65536");
  refuse("train:\n  updates: 2000000000\n", "'2000000000' is out of range: 1 to 1000000000 updates");
  refuse("train:\n  updates: 99999999999999999999\n", "out of range: 1 to 1000000000 updates");
  refuse("run:\n  seed: 1e17\n", "write an integer of more than 9007199254740992 in digits");
  refuse("run:\n  seed: -1\n", "out of range: 0 or more");
  refuse("run:\n  seed: 9223372036854775808\n",
         "out of range: 0 or more; the largest is 9223372036854775807");
  refuse("run:\n  seed: 60_000\n", "'60_000' is not an integer (write 60000, not 60_000)");
  refuse("run:\n  seed: 1.5\n", "'1.5' is not an integer");
  refuse("run:\n  seed: 0x10\n", "'0x10' is not an integer");
  refuse("run:\n  seed: \"1\"\n", "write an integer without quotes");
  refuse("run:\n  seed:\n  log_every: 1\n", "a.yml:2: run.seed: no value; an integer expected");
  refuse("run:\n  seed: \"\"\n", "no value");
  refuse("optimizer:\n  lr: nan\n", "'nan' is not a number");
  refuse("optimizer:\n  lr: .inf\n", "'.inf' is not a number");
  refuse("optimizer:\n  lr: inf\n", "'inf' is not a number");
  refuse("optimizer:\n  lr: 1e\n", "'1e' is not a number");
  refuse("optimizer:\n  lr: .\n", "'.' is not a number");
  refuse("optimizer:\n  clip: 1e999\n", "out of range: 0 or more; at most 1.79e308");
  refuse("optimizer:\n  clip: 1e-999\n",
         "too small for a number of 64 bits; the smallest above 0 is 2.3e-308");
  refuse("optimizer:\n  beta1: 1\n", "out of range: 0 to 0.9999999");
  refuse("optimizer:\n  epsilon: 0\n", "out of range: 1e-30 to 1");
  refuse("moe:\n  identical_experts: yes\n", "'yes' is neither true nor false");
  refuse("moe:\n  identical_experts: tRUE\n", "'tRUE' is neither true nor false");
  refuse("moe:\n  identical_experts: \"True\"\n", "write true or false without quotes");
  refuse("moe:\n  position: left\n", "'left' is not a choice there is: middle, top, bottom or scattered");
  refuse("router:\n  fake:\n    width: 101\n", "out of range: -5 to 100 pixels");
  refuse("run:\n  directory:\n", "no value; write \"\" for an empty text");
  refuse("run:\n  directory: null\n", "no value");
  refuse("run:\n  directory: \"a\\tb\"\n", "without control characters");
  refuse("run:\n  directory: \"a\\0b\"\n", "without control characters");
  refuse("run:\n  directory: \"a\\u2028b\"\n", "without control characters");
}

static void test_override(void) {
  smoe_config *config = create();
  must_override(config, "run.seed=7");
  must_override(config, "run.seed=8");
  must_override(config, "run.directory=a=b c#");
  must_override(config, "data.corpus=");
  must_override(config, "router.fake.deep.noisy=true");
  must_override(config, "schedule.kind=inverse_sqrt");
  const smoe_settings *s = smoe_config_settings(config);
  CHECK(s->run.seed == 8 && strcmp(s->run.directory, "a=b c#") == 0);
  CHECK(options(config)->noisy && s->schedule.kind == SMOE_INVERSE_SQRT);
  char longest[SMOE_TEXT_MAX + 32];
  memset(longest, 'x', sizeof longest);
  memcpy(longest, "run.directory=", 14);
  longest[14 + SMOE_TEXT_MAX - 1] = '\0';
  must_override(config, longest);
  CHECK(strlen(s->run.directory) == SMOE_TEXT_MAX - 1);
  must_override(config, "run.directory=short");
  CHECK(s->run.directory[SMOE_TEXT_MAX - 2] == '\0', "no rest of the longer text stays");
  smoe_config_destroy(config);

  longest[14 + SMOE_TEXT_MAX - 1] = 'x';
  longest[14 + SMOE_TEXT_MAX] = '\0';
  refuse_override(longest, "1024 bytes; at most 1023 fit");
  refuse_override("run.seed", "section.key=value expected");
  refuse_override("=1", "section.key=value expected");
  refuse_override("run=1", "run is a section");
  refuse_override("run.sed=1", "did you mean 'run.seed'");
  refuse_override("foo=1", "unknown key 'foo'; `stablemoe train --help` lists all");
  refuse_override("run.seed=", "option -P: run.seed: no value");
  refuse_override("run.seed=a", "option -P: run.seed: 'a' is not an integer");
  refuse_override("run.directory=\xc3(", "UTF-8");
  refuse_override("run.directory=\xed\xa0\x80", "UTF-8");
  refuse_override("run.directory=\xc0\xaf", "UTF-8");
  refuse_override("optimizer.lr= 1", "' 1' is not a number");
}

/* Reading the text of a configuration must give the same bits. */
static void round_trip(const smoe_config *config) {
  for (int commented = 0; commented < 2; commented++) {
    char *text = smoe_config_text(config, commented);
    smoe_config *copy = create();
    CHECK(smoe_config_parse(copy, text, "text") == SMOE_OK, "%s in\n%s", smoe_last_error(), text);
    CHECK(memcmp(smoe_config_settings(copy), smoe_config_settings(config), sizeof(smoe_settings)) == 0);
    CHECK(memcmp(options(copy), options(config), sizeof(fake_options)) == 0, "in\n%s", text);
    char *again = smoe_config_text(copy, commented);
    CHECK(strcmp(text, again) == 0);
    smoe_free(again);
    smoe_free(text);
    smoe_config_destroy(copy);
  }
}

static void test_bools(void) {
  static const char *const words[] = {"false", "true", "False", "True", "FALSE", "TRUE"};
  smoe_config *config = create();
  for (int i = 0; i < 6; i++) {
    char *yaml = smoe_sprintf("train: {recompute: %s}", words[i]);
    CHECK(smoe_config_parse(config, yaml, "a.yml") == SMOE_OK, "%s", smoe_last_error());
    CHECK(smoe_config_settings(config)->train.recompute == i % 2, "%s", yaml);
    smoe_free(yaml);
  }
  must_override(config, "train.recompute=False");
  CHECK(!smoe_config_settings(config)->train.recompute);
  smoe_config_destroy(config);
}

/* Paths are what a shell would make of them. */
static void test_paths(void) {
  static const struct {
    const char *written, *path;
  } cases[] = {{"~/runs/a", "/home/me/runs/a"},
               {"~", "/home/me"},
               {"$SMOE_A/b", "/scratch/x/b"},
               {"a/${SMOE_A}c", "a//scratch/xc"},
               {"$SMOE_HOME/b", "/home/me/t/b"},
               {"$$SMOE_A/$$", "$SMOE_A/$"},
               {"a/~/b~", "a/~/b~"},
               {"./~", "./~"},
               {"$SMOE_ODD", "/a$b"},
               {"", ""}};
  setenv("HOME", "/home/me", 1);
  setenv("SMOE_A", "/scratch/x", 1);
  setenv("SMOE_HOME", "~/t", 1);
  setenv("SMOE_ODD", "/a$b", 1);
  setenv("SMOE_EMPTY", "", 1);
  setenv("SMOE_BAD", "a\nb", 1);
  unsetenv("SMOE_NONE");
  smoe_config *config = create();
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char *yaml = smoe_sprintf("run: {directory: \"%s\"}", cases[i].written);
    CHECK(smoe_config_parse(config, yaml, "a.yml") == SMOE_OK, "%s", smoe_last_error());
    CHECK(strcmp(smoe_config_settings(config)->run.directory, cases[i].path) == 0, "%s: %s", cases[i].written,
          smoe_config_settings(config)->run.directory);
    char *assignment = smoe_sprintf("data.corpus=%s", cases[i].written);
    must_override(config, assignment);
    CHECK(strcmp(smoe_config_settings(config)->data.corpus, cases[i].path) == 0, "%s", assignment);
    round_trip(config);
    smoe_free(assignment);
    smoe_free(yaml);
  }
  must_override(config, "router.fake.note=~/$SMOE_A");
  CHECK(strcmp(options(config)->note, "~/$SMOE_A") == 0, "a text is no path");
  smoe_config_destroy(config);
  refuse("run:\n  directory: $SMOE_NONE/a\n",
         "a.yml:2: run.directory: the environment variable $SMOE_NONE is not set");
  refuse("run:\n  directory: ${SMOE_EMPTY}/a\n", "the environment variable $SMOE_EMPTY is empty");
  refuse("run:\n  directory: ~\n", "no value");
  refuse("run:\n  directory: $SMOE_BAD\n", "without control characters");
  refuse_override("run.directory=a$", "'$': no name of an environment variable after $; write $$");
  refuse_override("run.directory=a${SMOE_A", "no name of an environment variable");
  refuse_override("run.directory=$1", "no name of an environment variable");
  refuse_override("data.corpus=~you/a", "'~you/a': the home of another user is not looked up");
  char longest[SMOE_TEXT_MAX];
  memset(longest, 'x', sizeof longest);
  longest[SMOE_TEXT_MAX - 1] = '\0';
  setenv("SMOE_LONG", longest, 1);
  refuse_override("run.directory=$SMOE_LONG/$SMOE_LONG", "the text has 2047 bytes; at most 1023 fit");
  setenv("HOME", longest, 1);
  refuse_override("run.directory=~/a", "the environment variable $HOME is not an absolute path");
  longest[0] = '/';
  setenv("HOME", longest, 1);
  refuse_override("run.directory=~/a", "the text has 1025 bytes; at most 1023 fit");
}

static void test_resolve(void) {
  resolve("model.heads=3", "model.heads 3 does not divide model.width 256");
  resolve("train.batch_sequences=30", "the nearest that can is 32");
  resolve("train.batch_sequences=1", "the nearest that can is 8");
  resolve("train.batch_sequences=100 train.micro_batches=4", "the nearest that can is 96");
  resolve("train.batch_sequences=16777216 train.lanes=65536 train.micro_batches=1048576", "cannot be cut");
  resolve("train.batch_sequences=96 train.micro_batches=4 train.lanes=3", NULL);
  resolve("moe.layers=2", "only moe.position scattered");
  resolve("moe.layers=0 moe.position=top", NULL);
  resolve("moe.layers=7 moe.position=scattered", "at most as many MoE layers as blocks");
  resolve("moe.layers=6 moe.position=scattered", NULL);
  resolve("moe.layers=1 model.blocks=1", NULL);
  resolve("train.updates=50", "schedule.warmup 100 is longer than train.updates 50");
  resolve("train.updates=50 schedule.warmup=50", NULL);

  smoe_config *config = create();
  const smoe_settings *s = smoe_config_settings(config);
  must_override(config, "train.updates=5");
  must_override(config, "schedule.warmup=0");
  must_override(config, "model.inner=7");
  CHECK(smoe_config_resolve(config) == SMOE_OK, "%s", smoe_last_error());
  CHECK(s->router.stage1_updates == 1 && s->log.probe_every == 1 && s->model.inner == 7);
  CHECK(s->moe.inner == 1024, "the experts' inner width does not follow that of the blocks");
  must_override(config, "train.updates=5000");
  CHECK(smoe_config_resolve(config) == SMOE_OK && s->router.stage1_updates == 1, "resolved stays resolved");
  smoe_config_destroy(config);

  config = create();
  must_override(config, "train.updates=1");
  must_override(config, "schedule.warmup=0");
  must_override(config, "log.probe_every=0");
  CHECK(smoe_config_resolve(config) == SMOE_OK, "%s", smoe_last_error());
  s = smoe_config_settings(config);
  CHECK(s->router.stage1_updates == 0 && s->log.probe_every == 0);
  smoe_config_destroy(config);
}

static void test_round_trip(void) {
  static const char *const notes[] = {
      "",    "null",  "~",    "Yes",   "1e3",    "a: b",     "# no",
      "- x", "\"q\"", "a\\n", " lead", "trail ", "{a: [1]}", "é\xf0\x9f\x8c\x8d",
      "'",   "*a",    "&a",   "!t",    "%d",     "a/b.h5",   "../x-y",
      "@`",  "x,y"};
  static const char *const reals[] = {
      "0.1",    "1e-8",    "6.02214076e23",          "-0",     "123456",
      "1e15",   "1e22",    "0.30000000000000004",    "1e-300", "2.5",
      "100000", "-3.5e-7", "1.7976931348623157e308", "0.0001", "4503599627370497.5"};
  smoe_config *config = create();
  round_trip(config);
  for (size_t i = 0; i < sizeof notes / sizeof *notes; i++) {
    char *assignment = smoe_sprintf("router.fake.note=%s", notes[i]);
    must_override(config, assignment);
    round_trip(config);
    smoe_free(assignment);
  }
  for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
    char *assignment = smoe_sprintf("router.fake.weight=%s", reals[i]);
    must_override(config, assignment);
    CHECK(options(config)->weight == strtod(reals[i], NULL));
    round_trip(config);
    smoe_free(assignment);
  }
  must_override(config, "run.seed=9223372036854775807");
  must_override(config, "router.fake.shape=round");
  must_override(config, "router.fake.deep.noisy=true");
  CHECK(smoe_config_resolve(config) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_config_settings(config)->run.seed == INT64_MAX);
  round_trip(config);
  smoe_config_destroy(config);
}

static void test_text(void) {
  smoe_config *config = create();
  must_override(config, "router.fake.width=7");
  char *text = smoe_config_text(config, false);
  CHECK(strstr(text, "\noptimizer:\n  method: adam\n  lr: 0.0006\n"), "%s", text);
  CHECK(strstr(text, "\n  epsilon: 1.0e-8\n  decay: 0.0\n"), "%s", text);
  CHECK(strstr(text, "  stage1_updates: -1\n  fake:\n    width: 7\n    weight: 0.3\n    shape: square\n"
                     "    note: \"\"\n    deep:\n      noisy: false\ntrain:\n"),
        "%s", text);
  smoe_free(text);
  text = smoe_config_text(config, true);
  CHECK(strstr(text, "    # Width. [-5 to 100 pixels; default 50]\n    width: 7\n"), "%s", text);
  smoe_free(text);

  /* Every key is in the help, with its default, and no line is wider than a terminal. */
  char *help = NULL;
  size_t bytes = 0;
  FILE *out = open_memstream(&help, &bytes);
  smoe_config_help(config, out);
  fclose(out);
  size_t n_lines = 0;
  for (const char *line = help; *line; line += strcspn(line, "\n") + 1, n_lines++)
    CHECK(strcspn(line, "\n") <= 100, "%.*s", (int)strcspn(line, "\n"), line);
  CHECK(n_lines > smoe_settings_keys.n_keys);
  for (size_t i = 0; i < smoe_settings_keys.n_keys; i++) {
    const char *name = strrchr(smoe_settings_keys.keys[i].name, '.') + 1;
    char *start = smoe_sprintf("\n  %s ", name);
    CHECK(strstr(help, start), "%s", name);
    smoe_free(start);
  }
  CHECK(strstr(help, "\nrouter.fake: Used where router.method is fake.\n  width "), "%s", help);
  free(help);
  smoe_config_destroy(config);
}

static void test_files(void) {
  smoe_config *config = create();
  CHECK(smoe_config_load(config, "/nonexistent/a.yml") == SMOE_ERR_IO);
  CHECK(strstr(smoe_last_error(), "/nonexistent/a.yml") && strstr(smoe_last_error(), "No such file"), "%s",
        smoe_last_error());
  CHECK(smoe_config_load(config, "/") == SMOE_ERR_IO, "a directory");
  char path[] = "/tmp/test_config_XXXXXX";
  const int fd = mkstemp(path);
  CHECK(fd >= 0);
  FILE *file = fdopen(fd, "w");
  fputs("run:\n  seed: 5\n  sed: 6\n", file);
  fclose(file);
  CHECK(smoe_config_load(config, path) == SMOE_ERR_CONFIG);
  char *start = smoe_sprintf("%s:3: unknown key", path);
  CHECK(strncmp(smoe_last_error(), start, strlen(start)) == 0, "%s", smoe_last_error());
  smoe_free(start);
  file = fopen(path, "w");
  fwrite("run:\n  seed: 6\n\0\n", 1, 17, file);
  fclose(file);
  CHECK(smoe_config_load(config, path) == SMOE_ERR_CONFIG && strstr(smoe_last_error(), ":3: not a text file"),
        "%s", smoe_last_error());
  file = fopen(path, "w");
  for (int i = 0; i < 100000; i++) fputs("# a comment\n", file);
  fclose(file);
  CHECK(smoe_config_load(config, path) == SMOE_ERR_CONFIG && strstr(smoe_last_error(), "1 MiB"), "%s",
        smoe_last_error());
  unlink(path);
  smoe_config_destroy(config);
}

int main(void) {
  test_defaults();
  test_parse();
  test_lists();
  test_refusals();
  test_override();
  test_bools();
  test_paths();
  test_resolve();
  test_round_trip();
  test_text();
  test_files();
  return test_verdict("test_config");
}
