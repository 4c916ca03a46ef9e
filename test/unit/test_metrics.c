/* Balance figures, and metrics.csv: what stands in a line, and what a resumed run leaves of it. */
#include "stablemoe/metrics.h"
#include "stablemoe/phase.h"
#include "stablemoe/progress.h"

#include <sys/stat.h>

#include "harness.h"
#include "temporary.h"

enum { EXPERTS = 4, LAYERS = 2 };

/** As much of a model as the metrics look at. */
static smoe_model model = {.objective = &smoe_objective_cross_entropy,
                           .terms = {3, {"balance", "distill", "z_loss"}},
                           .n_moe = LAYERS,
                           .params = {.n_experts = EXPERTS, .group = {.n_ranks = 1}}};

static void test_balance(void) {
  const smoe_balance even = smoe_balance_of((int64_t[]){5, 5, 5, 5}, 4);
  CHECK(even.max_over_mean == 1 && even.cv == 0 && even.dead == 0);
  CHECK_NEAR(even.entropy, 1, 1e-15, 0);
  const smoe_balance one = smoe_balance_of((int64_t[]){0, 8, 0, 0}, 4);
  CHECK(one.max_over_mean == 4 && one.entropy == 0 && one.dead == 3);
  CHECK_NEAR(one.cv, sqrt(3), 1e-15, 0);
  const smoe_balance some = smoe_balance_of((int64_t[]){1, 3, 0, 4}, 4);
  CHECK(some.max_over_mean == 2 && some.dead == 1);
  CHECK_NEAR(some.cv, sqrt((1 + 1 + 4 + 4) / 4.0) / 2, 1e-15, 0);
  CHECK_NEAR(some.entropy, (log(8) / 8 + 3 * log(8 / 3.0) / 8 + log(2) / 2) / log(4), 1e-15, 0);
  const smoe_balance single = smoe_balance_of((int64_t[]){7}, 1);
  CHECK(single.max_over_mean == 1 && single.cv == 0 && single.entropy == 1 && single.dead == 0);
  const smoe_balance large = smoe_balance_of((int64_t[]){INT64_C(1) << 40, INT64_C(3) << 40}, 2);
  CHECK(large.max_over_mean == 1.5 && large.cv == 0.5);
  for (int n = 1; n <= 4; n += 3) {
    const smoe_balance none = smoe_balance_of((int64_t[]){0, 0, 0, 0}, n);
    CHECK(isnan(none.max_over_mean) && isnan(none.cv) && isnan(none.entropy), "%g %g %g", none.max_over_mean,
          none.cv, none.entropy);
  }
}

/** Figures that say which update they are of. */
static void write_update(smoe_metrics *metrics, int64_t update, const smoe_evaluation *valid) {
  const int64_t load[EXPERTS] = {1, 3, 0, 4};
  smoe_routing_load layer[LAYERS] = {
      {.load = load, .n_assigned = 8, .n_dropped = 2, .agreement = NAN, .gate_mean = 0.5},
      {.load = load, .n_assigned = 8, .agreement = 0.25, .gate_mean = 0.75}};
  const smoe_step_result result = {.stage = 1,
                                   .loss = (double)update + 1 / 3.0,
                                   .n_targets = 100,
                                   .term = {0.5, 0.25, 0.125},
                                   .lr = 1e-3,
                                   .norm = {5, 3, 4},
                                   .clip = 0.02,
                                   .layer = layer};
  const double phase[SMOE_PHASES] = {[SMOE_PHASE_ATTENTION] = 0.25};
  CHECK(smoe_metrics_write(metrics, update, update * 100, &result, valid, 0.5, phase) == SMOE_OK, "%s",
        smoe_last_error());
}

static char *read_all(const char *path) {
  FILE *file = fopen(path, "rb");
  char *text = smoe_alloc(65536);
  if (file) {
    text[fread(text, 1, 65535, file)] = '\0';
    fclose(file);
  }
  return text;
}

/** A run that went up to `last`, beginning after `first`, into the directory of that name. */
static void write_run(const char *directory, int64_t first, int64_t last, int64_t every) {
  smoe_metrics metrics;
  CHECK(smoe_metrics_open(&metrics, directory, &model, first) == SMOE_OK, "%s", smoe_last_error());
  for (int64_t update = first + 1; update <= last; update++)
    if (update % every == 0) write_update(&metrics, update, NULL);
  smoe_metrics_close(&metrics);
  CHECK(metrics.file == NULL);
}

static const char *new_directory(const char *name) {
  const char *path = test_path(name);
  mkdir(path, 0777);
  return path;
}

static const char *csv_in(const char *directory) {
  return smoe_sprintf("%s/metrics.csv", directory);
}

/** The updates of a file's lines, as "1 2 3"; "?" where the header is not the first line, or a line is not whole. */
static const char *updates_in(const char *directory) {
  char *text = read_all(csv_in(directory)), *list = smoe_strdup("");
  int n_fields = 0;
  bool header = true;
  for (char *line = text; *line; header = false) {
    char *end = strchr(line, '\n');
    int commas = 0;
    for (const char *c = line; end && c < end; c++) commas += *c == ',';
    if (header) n_fields = commas;
    if (!end || commas != n_fields || (header && strncmp(line, "update,", 7) != 0)) return "?";
    if (!header) list = smoe_sprintf("%s%s%lld", list, *list ? " " : "", strtoll(line, NULL, 10));
    line = end + 1;
  }
  return header ? "no header" : list;
}

static void check_updates(const char *directory, const char *expected) {
  const char *updates = updates_in(directory);
  CHECK(strcmp(updates, expected) == 0, "%s: '%s', not '%s'", directory, updates, expected);
}

/** Value of a column in the line after the header; NULL: no such column. */
static const char *column(const char *directory, const char *name) {
  char *header = read_all(csv_in(directory)), *line = strchr(header, '\n');
  *line++ = '\0';
  *strchr(line, '\n') = '\0';
  for (char *h = header, *v = line; h && v;) {
    char *h_end = strchr(h, ','), *v_end = strchr(v, ',');
    if (h_end) *h_end = '\0';
    if (v_end) *v_end = '\0';
    if (strcmp(h, name) == 0) return v;
    h = h_end ? h_end + 1 : NULL;
    v = v_end ? v_end + 1 : NULL;
  }
  return NULL;
}

static void check_column(const char *directory, const char *name, const char *expected) {
  const char *value = column(directory, name);
  CHECK(value && strcmp(value, expected) == 0, "%s: '%s', not '%s'", name, value ? value : "no such column",
        expected);
}

static void test_line(void) {
  const char *directory = new_directory("line");
  smoe_metrics metrics;
  CHECK(smoe_metrics_open(&metrics, directory, &model, 0) == SMOE_OK, "%s", smoe_last_error());
  write_update(&metrics, 7, &(smoe_evaluation){.loss = 2, .perplexity = exp(2)});
  smoe_metrics_close(&metrics);
  static const char *const expected[][2] = {
      {"update", "7"},
      {"stage", "1"},
      {"tokens", "700"},
      {"balance", "0.5"},
      {"distill", "0.25"},
      {"lr", "0.001"},
      {"grad_norm", "5"},
      {"grad_norm_shared", "3"},
      {"grad_norm_expert", "4"},
      {"clip", "0.02"},
      {"valid_loss", "2"},
      {"valid_perplexity", "7.389056099"},
      {"moe0_dead", "1"},
      {"moe0_max_over_mean", "2"},
      {"moe0_drop_rate", "0.25"},
      {"moe1_drop_rate", "0"},
      {"moe0_agreement", ""},
      {"moe1_agreement", "0.25"},
      {"moe0_gate_mean", "0.5"},
      {"moe1_gate_mean", "0.75"},
      {"z_loss", "0.125"},
      {"seconds", "0.5000"},
      {"tokens_per_s", "200.0"},
      {"time_other", "0.000000"},
      {"time_attention", "0.250000"},
  };
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
    check_column(directory, expected[i][0], expected[i][1]);
  const char *loss = column(directory, "loss");
  CHECK(loss && strtod(loss, NULL) == 7 + 1 / 3.0, "the loss is not written to the last bit: %s",
        loss ? loss : "");
  CHECK(column(directory, "moe2_dead") == NULL);
}

/** A run that goes on writes what an unbroken one writes. */
static void test_resume(void) {
  const char *directory = new_directory("resume"), *whole = new_directory("whole");
  write_run(whole, 0, 12, 1);
  write_run(directory, 0, 8, 1);
  check_updates(directory, "1 2 3 4 5 6 7 8");
  write_run(directory, 5, 12, 1); /* 6, 7, 8 came after the checkpoint */
  check_updates(directory, "1 2 3 4 5 6 7 8 9 10 11 12");
  CHECK(strcmp(read_all(csv_in(directory)), read_all(csv_in(whole))) == 0, "not as an unbroken run's file");
  write_run(directory, 12, 12, 1);
  check_updates(directory, "1 2 3 4 5 6 7 8 9 10 11 12");
  write_run(directory, 20, 21, 1);
  check_updates(directory, "1 2 3 4 5 6 7 8 9 10 11 12 21");
  write_run(directory, 0, 2, 1); /* a new run begins a new file */
  check_updates(directory, "1 2");

  directory = new_directory("sparse");
  write_run(directory, 0, 100, 9);
  write_run(directory, 50, 100, 10);
  check_updates(directory, "9 18 27 36 45 60 70 80 90 100");
  write_run(directory, 5, 10, 10); /* no line is left but the header */
  check_updates(directory, "10");
}

/** What a killed run leaves: a line, or the header, without its end. */
static void test_torn(void) {
  const char *directory = new_directory("torn"), *path = csv_in(directory);
  write_run(directory, 0, 3, 1);
  const long bytes = (long)strlen(read_all(path));
  for (long cut = 1; cut <= 40; cut += 13) {
    write_run(directory, 0, 3, 1);
    CHECK(truncate(path, bytes - cut) == 0);
    write_run(directory, 3, 4, 1);
    check_updates(directory, "1 2 4");
  }
  CHECK(truncate(path, 20) == 0);
  write_run(directory, 3, 4, 1);
  check_updates(directory, "4");
  CHECK(truncate(path, 0) == 0);
  write_run(directory, 3, 4, 1);
  check_updates(directory, "4");
  CHECK(remove(path) == 0);
  write_run(directory, 3, 4, 1);
  check_updates(directory, "4");
}

/** Make of the file in a directory one as another version would have left it: without the columns of one name or
 *  prefix, or with one more. `below`: only so many lines are changed, the header among them; -1: all.
 */
static void write_columns(const char *directory, const char *without, const char *more, int below) {
  const char *path = csv_in(directory);
  char *text = read_all(path), *header = smoe_strdup(text);
  header[strcspn(header, "\n")] = '\0';
  FILE *out = fopen(path, "w");
  for (char *line = text; *line && out; below--) {
    char *end = strchr(line, '\n'), *names = header;
    *end = '\0';
    if (below == 0) without = more = NULL;
    for (char *value = line, *comma = line; comma; value = comma + 1) {
      comma = strchr(value, ',');
      if (comma) *comma = '\0';
      if (!without || strncmp(names, without, strlen(without)) != 0)
        fprintf(out, "%s%s", value == line ? "" : ",", value);
      names += strcspn(names, ",") + 1;
    }
    fprintf(out, "%s%s\n", more ? "," : "", more ? line == text ? more : "lost" : "");
    line = end + 1;
  }
  if (out) fclose(out);
}

/** Whether two files have the same line of this number. */
static bool same_line(const char *directory, const char *other, int number) {
  const char *a = read_all(csv_in(directory)), *b = read_all(csv_in(other));
  for (; number > 0 && a && b; number--) {
    a = strchr(a, '\n');
    b = strchr(b, '\n');
    a = a ? a + 1 : NULL;
    b = b ? b + 1 : NULL;
  }
  return a && b && strcspn(a, "\n") == strcspn(b, "\n") && strncmp(a, b, strcspn(a, "\n")) == 0;
}

/** Whether the file that a resume at update 3 and a fourth one leave is that of an unbroken run but for columns. */
static void check_adopted(const char *directory, const char *whole, const char *column_name, bool beside) {
  const char *path = csv_in(directory), *copy = smoe_sprintf("%s/metrics-1.csv", directory);
  char *old = read_all(path);
  write_run(directory, 3, 4, 1);
  check_updates(directory, "1 2 3 4");
  CHECK((access(copy, F_OK) == 0) == beside, "%s: the old file is %skept", directory, beside ? "not " : "");
  if (beside) CHECK(strcmp(read_all(copy), old) == 0, "the copy is not what the file was");
  if (column_name) check_column(directory, column_name, "");
  check_column(directory, "tokens_per_s", "200.0");
  check_column(directory, "moe1_gate_mean", "0.75");
  const char *loss = column(directory, "loss");
  CHECK(loss && strtod(loss, NULL) == 1 + 1 / 3.0, "%s: the loss has other bits", directory);
  CHECK(same_line(directory, whole, 0) && same_line(directory, whole, 4),
        "%s: not the header, or not the last line, of this version", directory);
  const char *first = read_all(path);
  write_run(directory, 4, 4, 1); /* and from here on it is left alone */
  CHECK(strcmp(read_all(path), first) == 0, "written anew twice");
}

/** A file that another version of the program began. */
static void test_other_columns(void) {
  const char *whole = new_directory("columns");
  write_run(whole, 0, 4, 1);
  const char *added = new_directory("columns-added"), *removed = new_directory("columns-removed");
  const char *both = new_directory("columns-both"), *mixed = new_directory("columns-mixed");
  const char *torn = new_directory("columns-torn"), *headless = new_directory("columns-headless");
  const char *const all[] = {added, removed, both, mixed, torn, headless};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) write_run(all[i], 0, 3, 1);
  write_columns(added, "time_", NULL, -1);
  check_adopted(added, whole, "time_attention", false);
  write_columns(removed, NULL, "moe0_gone", -1);
  check_adopted(removed, whole, NULL, true);
  write_columns(both, "clip", "seconds_gone", -1);
  check_adopted(both, whole, "clip", true);
  write_columns(mixed, "time_", NULL, 3); /* line 4, of update 3, is as a newer version went on */
  check_adopted(mixed, whole, "time_attention", false);
  CHECK(same_line(mixed, whole, 3), "the line of the newer version is not as it was");

  write_columns(torn, "time_", NULL, -1); /* a line that fits no header is left out, and kept beside */
  FILE *file = fopen(csv_in(torn), "a");
  if (file) {
    fputs("4,1,2\n", file);
    fclose(file);
  }
  write_run(torn, 4, 5, 1);
  check_updates(torn, "1 2 3 5");
  CHECK(access(smoe_sprintf("%s/metrics-1.csv", torn), F_OK) == 0, "the line is lost");

  /* Without names nobody knows what its numbers are. */
  file = fopen(csv_in(headless), "r+");
  if (file) {
    fputc('\0', file);
    fclose(file);
  }
  write_run(headless, 3, 4, 1);
  check_updates(headless, "4");
  CHECK(access(smoe_sprintf("%s/metrics-1.csv", headless), F_OK) == 0, "what a damaged file held is lost");
  write_columns(headless, NULL, "gone", -1); /* the first free name */
  write_run(headless, 4, 5, 1);
  CHECK(access(smoe_sprintf("%s/metrics-2.csv", headless), F_OK) == 0, "an older copy was in the way");
}

static void test_errors(void) {
  smoe_metrics metrics;
  const char *nowhere = test_path("nowhere");
  CHECK(smoe_metrics_open(&metrics, nowhere, &model, 0) == SMOE_ERR_IO && strstr(smoe_last_error(), nowhere),
        "%s", smoe_last_error());
  CHECK(smoe_metrics_open(&metrics, nowhere, &model, 5) == SMOE_ERR_IO && metrics.file == NULL);
  smoe_metrics_close(&metrics);

  /* Other ranks neither write nor need the directory. */
  smoe_model other = model;
  other.params.group.rank = 1;
  CHECK(smoe_metrics_open(&metrics, nowhere, &other, 0) == SMOE_OK && metrics.file == NULL);
  write_update(&metrics, 1, NULL);
  smoe_metrics_close(&metrics);

  if (access("/dev/full", W_OK) != 0) return;
  const char *directory = new_directory("full");
  CHECK(symlink("/dev/full", csv_in(directory)) == 0);
  CHECK(smoe_metrics_open(&metrics, directory, &model, 0) == SMOE_OK, "%s", smoe_last_error());
  const smoe_step_result result = {
      .n_targets = 1,
      .layer = (smoe_routing_load[LAYERS]){{.load = (int64_t[EXPERTS]){1}}, {.load = (int64_t[EXPERTS]){1}}}};
  CHECK(smoe_metrics_write(&metrics, 1, 1, &result, NULL, 1, NULL) == SMOE_ERR_IO,
        "a full disk is not noticed");
  smoe_metrics_close(&metrics);
}

/** What is worth a warning, and what is not. */
static void test_collapse(void) {
  int64_t one[] = {2, 97, 1, 0, 0, 0, 0, 0}, few[] = {40, 30, 30, 0, 0, 0, 0, 0},
          one_left[] = {100, 0, 0, 0, 0, 0, 0, 0};
  int64_t fair[] = {13, 12, 12, 12, 13, 12, 13, 13};
  const smoe_routing_load good = {.load = fair, .n_assigned = 100, .n_dropped = 50, .gate_mean = 0.5};
  for (int kind = 0; kind < SMOE_COLLAPSES; kind++) CHECK(!smoe_collapsed((smoe_collapse)kind, &good, 8));
  smoe_routing_load bad = good;
  bad.load = one;
  CHECK(smoe_collapsed(SMOE_COLLAPSE_LOAD, &bad, 8), "97 of 100 tokens in one expert");
  bad.load = one_left;
  CHECK(smoe_collapsed(SMOE_COLLAPSE_LOAD, &bad, 8));
  CHECK(!smoe_collapsed(SMOE_COLLAPSE_LOAD, &bad, 1), "a single expert has all tokens by nature");
  bad.load = few;
  CHECK(!smoe_collapsed(SMOE_COLLAPSE_LOAD, &bad, 8), "three of eight experts are bad, but no collapse");
  bad.gate_mean = 0.019;
  CHECK(smoe_collapsed(SMOE_COLLAPSE_GATE, &bad, 8));
  bad.gate_mean = NAN;
  CHECK(!smoe_collapsed(SMOE_COLLAPSE_GATE, &bad, 8), "a dense or hashed layer has no gate");
  bad.n_dropped = 51;
  CHECK(smoe_collapsed(SMOE_COLLAPSE_DROP, &bad, 8));
}

int main(void) {
  test_directory_make();
  test_collapse();
  test_balance();
  test_line();
  test_resume();
  test_torn();
  test_other_columns();
  test_errors();
  return test_verdict("metrics");
}
