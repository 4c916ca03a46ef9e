/* The routing log: the same file from any number of ranks, whole or not at all. */
#include <hdf5_hl.h>

#include "files.h"
#include "stablemoe/routing_log.h"

enum { LAYERS = 2, GATES = 2, EXPERTS = 3, SLOTS = 2, PROBE = 11, TOKENS = 24, PIECE = 4 };

static smoe_group world;
static const smoe_group self = {MPI_COMM_SELF, 0, 1};

static int first_of(int n, int rank, int n_ranks) {
  return (int)((int64_t)n * rank / n_ranks);
}

static smoe_routing_log *create(const smoe_group *group) {
  const int first = first_of(PROBE, group->rank, group->n_ranks);
  const smoe_routing_shape shape = {.terms = {3, {"balance", "distill", "z_loss"}},
                                    .n_layers = LAYERS,
                                    .n_experts = EXPERTS,
                                    .n_slots = SLOTS,
                                    .n_probe = PROBE,
                                    .probe_first = first,
                                    .n_probe_local = first_of(PROBE, group->rank + 1, group->n_ranks) - first,
                                    .n_tokens = TOKENS,
                                    .method = "stable",
                                    .n_gates = GATES,
                                    .gates = "block0/attention block1"};
  smoe_routing_log *log = smoe_routing_log_create(group, &shape);
  int32_t token[PROBE];
  for (int i = 0; i < PROBE; i++) token[i] = 100 + i;
  smoe_routing_log_probe_tokens(log, token + first);
  return log;
}

/* Values as functions of global indices. */
static int64_t load_of(int64_t step, int m, int e) {
  return step * 100 + m * 10 + e;
}
static int32_t choice_of(int which, int64_t step, int m, int64_t token) {
  return (int32_t)((step * 7 + m * 3 + token + which) % EXPERTS);
}
static int32_t ran_of(int64_t step, int g, int64_t token) {
  return (int32_t)((step + 2 * g + token) % 5 < 3);
}
static smoe_real gate_of(int64_t step, int m, int64_t token, int k) {
  return (smoe_real)(step + m + (double)token / 64 + k);
}

static void add_load(smoe_routing_log *log, int64_t step) {
  int64_t load[LAYERS][EXPERTS];
  smoe_routing_load layer[LAYERS];
  for (int m = 0; m < LAYERS; m++) {
    for (int e = 0; e < EXPERTS; e++) load[m][e] = load_of(step, m, e);
    layer[m] = (smoe_routing_load){load[m],  10 * step + m,
                                   step + m, {0.5 * (double)step, 0.25 * m, (double)(step + 10 * m)},
                                   NAN,      0.125};
  }
  double ran[GATES];
  for (int g = 0; g < GATES; g++) ran[g] = (double)(step + 10 * g);
  smoe_routing_log_load(log, step, 1, layer, ran);
}

static void add_probe(smoe_routing_log *log, const smoe_group *group, int64_t step) {
  int32_t choice[3][LAYERS * PROBE], ran[GATES * PROBE];
  const int first = first_of(PROBE, group->rank, group->n_ranks);
  const int n = first_of(PROBE, group->rank + 1, group->n_ranks) - first;
  for (int which = 0; which < 3; which++)
    for (int m = 0; m < LAYERS; m++)
      for (int i = 0; i < n; i++) choice[which][m * n + i] = choice_of(which, step, m, first + i);
  smoe_routing_log_probe(log, step, 2, choice[0], choice[1], choice[2]);
  for (int g = 0; g < GATES; g++)
    for (int i = 0; i < n; i++) ran[g * n + i] = ran_of(step, g, first + i);
  smoe_routing_log_probe_ran(log, ran);
}

/** Add this rank's tokens in small pieces, as micro-batches bring them; leave out the last `missing`. */
static void add_tokens(smoe_routing_log *log, const smoe_group *group, int64_t step, int missing) {
  const int n_pieces = TOKENS / PIECE;
  smoe_routing_log_tokens(log, step);
  for (int p = first_of(n_pieces, group->rank, group->n_ranks);
       p < first_of(n_pieces, group->rank + 1, group->n_ranks); p++)
    for (int m = 0; m < LAYERS; m++) {
      int32_t id[PIECE], expert[PIECE * SLOTS];
      smoe_real gate[PIECE * SLOTS];
      for (int i = 0; i < PIECE; i++) {
        const int64_t token = p * PIECE + i;
        id[i] = (int32_t)(token + 1000 * step);
        for (int k = 0; k < SLOTS; k++) {
          expert[i * SLOTS + k] = choice_of(k, step, m, token);
          gate[i * SLOTS + k] = gate_of(step, m, token, k);
        }
      }
      const size_t n = p == n_pieces - 1 ? (size_t)(PIECE - missing) : PIECE;
      smoe_routing_log_tokens_add(log, m, p * PIECE, n, id, expert, gate);
      for (int i = 0; i < PIECE; i++) expert[i] = ran_of(step, m, p * PIECE + i);
      smoe_routing_log_tokens_ran(log, m, p * PIECE, n, id, expert); /* as many gates as layers */
    }
}

static void add_all(smoe_routing_log *log, const smoe_group *group, int64_t first_step) {
  for (int64_t step = first_step; step < first_step + 5; step++) add_load(log, step);
  add_probe(log, group, first_step + 1);
  add_probe(log, group, first_step + 3);
  add_tokens(log, group, first_step + 4, 0);
}

static void check_ints(hid_t file, const char *name, int n_dims, const int64_t *shape,
                       int64_t (*wanted)(const int64_t *index)) {
  int64_t n = 1;
  for (int d = 0; d < n_dims; d++) n *= shape[d];
  int n_found;
  int64_t found[SMOE_H5_DIMS], *value = smoe_alloc((size_t)n * sizeof *value), n_bad = 0;
  CHECK_OK(smoe_h5_shape(file, name, &n_found, found));
  CHECK(n_found == n_dims && memcmp(found, shape, (size_t)n_dims * sizeof *shape) == 0, "shape of %s", name);
  CHECK_OK(smoe_h5_read(file, name, H5T_NATIVE_INT64, value, 0, n));
  for (int64_t i = 0; i < n; i++) {
    int64_t index[SMOE_H5_DIMS] = {0}, rest = i;
    for (int d = n_dims - 1; d >= 0; d--) {
      index[d] = rest % shape[d];
      rest /= shape[d];
    }
    n_bad += value[i] != wanted(index);
  }
  CHECK(n_bad == 0, "%s: %lld of %lld wrong", name, (long long)n_bad, (long long)n);
  smoe_free(value);
}

static int64_t want_step(const int64_t *i) {
  return 6 + i[0];
}
static int64_t want_load(const int64_t *i) {
  return load_of(6 + i[0], (int)i[1], (int)i[2]);
}
static int64_t want_dropped(const int64_t *i) {
  return 6 + i[0] + i[1];
}
static int64_t want_distill(const int64_t *i) { /* 0.25 m, as an integer */
  return 0;
}
static int64_t want_z_loss(const int64_t *i) {
  return 6 + i[0] + 10 * i[1];
}
static int64_t want_probe_step(const int64_t *i) {
  return 7 + 2 * i[0];
}
static int64_t want_probe_token(const int64_t *i) {
  return 100 + i[0];
}
static int64_t want_expert(const int64_t *i) {
  return choice_of(0, 7 + 2 * i[0], (int)i[1], i[2]);
}
static int64_t want_distilled(const int64_t *i) {
  return choice_of(2, 7 + 2 * i[0], (int)i[1], i[2]);
}
static int64_t want_id(const int64_t *i) {
  return i[1] + 10000;
}
static int64_t want_token_expert(const int64_t *i) {
  return choice_of((int)i[3], 10, (int)i[1], i[2]);
}

static int64_t want_ran(const int64_t *i) {
  return 6 + i[0] + 10 * i[1];
}
static int64_t want_probe_ran(const int64_t *i) {
  return ran_of(7 + 2 * i[0], (int)i[1], i[2]);
}
static int64_t want_token_ran(const int64_t *i) {
  return ran_of(10, (int)i[1], i[2]);
}

static void check_file(const char *path) {
  hid_t file;
  int64_t value;
  char text[64];
  CHECK_OK(smoe_h5_open(&file, path));
  CHECK_OK(smoe_h5_get_text(file, "/", "format", text, sizeof text));
  CHECK(strcmp(text, "stablemoe-routing") == 0, "%s", text);
  CHECK_OK(smoe_h5_get_i64(file, "/", "first_update", &value));
  CHECK(value == 6, "first update %lld", (long long)value);
  CHECK_OK(smoe_h5_get_i64(file, "/", "complete", &value));
  CHECK_OK(smoe_h5_get_text(file, "load", "units", text, sizeof text));
  CHECK(strcmp(text, "tokens") == 0, "%s", text);
  check_ints(file, "step", 1, (int64_t[]){5}, want_step);
  check_ints(file, "load", 3, (int64_t[]){5, LAYERS, EXPERTS}, want_load);
  check_ints(file, "dropped", 2, (int64_t[]){5, LAYERS}, want_dropped);
  check_ints(file, "distill", 2, (int64_t[]){5, LAYERS}, want_distill);
  check_ints(file, "z_loss", 2, (int64_t[]){5, LAYERS}, want_z_loss);
  CHECK_OK(smoe_h5_get_text(file, "z_loss", "units", text, sizeof text));
  CHECK(strcmp(text, "loss per token") == 0, "%s", text);
  check_ints(file, "probe/step", 1, (int64_t[]){2}, want_probe_step);
  check_ints(file, "probe/token", 1, (int64_t[]){PROBE}, want_probe_token);
  check_ints(file, "probe/expert", 3, (int64_t[]){2, LAYERS, PROBE}, want_expert);
  check_ints(file, "probe/distilled", 3, (int64_t[]){2, LAYERS, PROBE}, want_distilled);
  check_ints(file, "tokens/id", 2, (int64_t[]){1, TOKENS}, want_id);
  check_ints(file, "tokens/expert", 4, (int64_t[]){1, LAYERS, TOKENS, SLOTS}, want_token_expert);
  CHECK_OK(smoe_h5_get_text(file, "/", "gates", text, sizeof text));
  CHECK(strcmp(text, "block0/attention block1") == 0, "%s", text);
  check_ints(file, "ran", 2, (int64_t[]){5, GATES}, want_ran);
  check_ints(file, "probe/ran", 3, (int64_t[]){2, GATES, PROBE}, want_probe_ran);
  check_ints(file, "tokens/ran", 3, (int64_t[]){1, GATES, TOKENS}, want_token_ran);
  smoe_real gate[LAYERS * TOKENS * SLOTS];
  CHECK_OK(smoe_h5_read(file, "tokens/gate", SMOE_H5_REAL, gate, 0, LAYERS * TOKENS * SLOTS));
  for (int i = 0; i < LAYERS * TOKENS * SLOTS; i++)
    CHECK(gate[i] == gate_of(10, i / (TOKENS * SLOTS), i / SLOTS % TOKENS, i % SLOTS), "gate %d", i);
  const hid_t load = H5Dopen2(file, "load", H5P_DEFAULT), step = H5Dopen2(file, "step", H5P_DEFAULT);
  CHECK(H5DSis_scale(step) > 0 && H5DSget_num_scales(load, 2) == 1 && H5DSis_attached(load, step, 0) > 0);
  H5Dclose(load);
  H5Dclose(step);
  CHECK_OK(smoe_h5_close(file));
}

/** All ranks and one rank write the same file; what was written is forgotten. */
static void test_any_ranks(const char *together, const char *alone) {
  smoe_routing_log *log = create(&world);
  add_all(log, &world, 1);
  CHECK_OK(smoe_routing_log_write(log, together, 5));
  add_all(log, &world, 6);
  CHECK_OK(smoe_routing_log_write(log, together, 10));
  CHECK_OK(smoe_routing_log_write(log, together, 15));
  add_load(log, 16);
  CHECK_OK(smoe_routing_log_write(log, together, 20));
  smoe_routing_log_destroy(log);
  if (world.rank != 0) return;
  CHECK(test_count_files(together, ".h5") == 3 && test_count_files(together, ".part") == 0);

  log = create(&self);
  add_all(log, &self, 6);
  CHECK_OK(smoe_routing_log_write(log, alone, 10));
  smoe_routing_log_destroy(log);
  char *path = smoe_sprintf("%s/step-000000010.h5", together),
       *other = smoe_sprintf("%s/step-000000010.h5", alone);
  const int n = test_same_files(path, other);
  CHECK(n == 28, "%d datasets", n);
  check_file(path);
  smoe_free(path);
  path = smoe_sprintf("%s/step-000000020.h5", together);
  hid_t file;
  CHECK_OK(smoe_h5_open(&file, path));
  CHECK(smoe_h5_exists(file, "load") && !smoe_h5_exists(file, "probe") && !smoe_h5_exists(file, "tokens"));
  CHECK_OK(smoe_h5_close(file));
  smoe_free(path);
  smoe_free(other);
}

/** A failure anywhere leaves no file, and the rows are still there for the next try. */
static void test_failed_writes(const char *directory) {
  const char *const sites[] = {"routing.create", "routing.open",   "routing.write",
                               "routing.close",  "routing.verify", "routing.rename"};
  char *path = smoe_sprintf("%s/step-000000010.h5", directory);
  smoe_routing_log *log = create(&world);
  add_all(log, &world, 6);
  for (size_t s = 0; s < sizeof sites / sizeof *sites; s++) {
    test_fault(sites[s], world.n_ranks - 1);
    CHECK_REFUSED(smoe_routing_log_write(log, directory, 10), SMOE_ERR_IO, sites[s]);
    smoe_group_barrier(&world);
    CHECK(test_count_files(directory, "") <= 2, "a file is left after %s", sites[s]);
    smoe_group_barrier(&world);
  }
  unsetenv("STABLEMOE_FAULT");
  CHECK_OK(smoe_routing_log_write(log, directory, 10));
  if (world.rank == 0) check_file(path);
  add_tokens(log, &world, 12, 1);
  CHECK_REFUSED(smoe_routing_log_write(log, directory, 12), SMOE_ERR_BUG, "token records");
  smoe_routing_log_destroy(log);
  smoe_free(path);
}

static void test_rewind(const char *directory) {
  CHECK_OK(smoe_routing_log_rewind(&world, directory, 10));
  CHECK(test_count_files(directory, ".h5") == 2);
  smoe_group_barrier(&world);
  CHECK_OK(smoe_routing_log_rewind(&world, directory, 0));
  CHECK(test_count_files(directory, ".h5") == 0);
  CHECK_OK(smoe_routing_log_rewind(&world, "/none/such", 0));
}

int main(int argc, char **argv) {
  smoe_group_start(&world, &argc, &argv);
  test_directory_make(&world);
  char *together = test_path("together"), *alone = test_path("alone"), *failed = test_path("failed");
  test_any_ranks(together, alone);
  test_failed_writes(failed);
  smoe_group_barrier(&world);
  test_rewind(together);
  test_directory_delete(&world, test_directory);
  smoe_free(together);
  smoe_free(alone);
  smoe_free(failed);
  smoe_group_end(&world);
  return test_verdict("routing_log");
}
