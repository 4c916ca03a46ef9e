/* Checkpoints: the same file from any number of ranks, and whatever is wrong with one is found. */
#include <signal.h>
#include <sys/resource.h>

#include "checkpoint_fixture.h"

/** Load on these ranks into an empty model, and compare with one that was filled. */
static void check_load(const smoe_group *group, const char *path, bool training) {
  model loaded, wanted;
  begin(&loaded, group, training, false);
  begin(&wanted, group, training, false);
  fill(&wanted);
  CHECK_OK(smoe_checkpoint_load(path, &loaded.params));
  check_equal(&loaded, &wanted);
  end(&loaded);
  end(&wanted);
}

/** All ranks and one rank write the same file, and read each other's. */
static void test_any_ranks(const char *together, const char *alone) {
  model m;
  const smoe_checkpoint_meta meta = meta_of(12);
  begin(&m, &world, true, false);
  fill(&m);
  CHECK_OK(smoe_checkpoint_save(together, &m.params, &meta));
  end(&m);
  if (world.rank == 0) {
    begin(&m, &self, true, false);
    fill(&m);
    CHECK_OK(smoe_checkpoint_save(alone, &m.params, &meta));
    end(&m);
  }
  smoe_group_barrier(&world);
  char *path = smoe_sprintf("%s/latest", together), *other = smoe_sprintf("%s/step-000000012.h5", alone);
  if (world.rank == 0) {
    const int n = test_same_files(path, other);
    /* Values, moments and their checksums; two parameters have values alone. */
    CHECK(n == 6 * 6 + 2 * 2 + 1, "%d datasets", n);
    CHECK_OK(smoe_checkpoint_print(path));
    CHECK_OK(smoe_checkpoint_verify(path));
  }
  check_load(&world, path, true);
  check_load(&world, other, true);
  check_load(&world, other, false);
  check_load(&self, path, true);
  smoe_free(path);
  smoe_free(other);
}

/** Experts that each layer has in other places, and replicas that share out moments: still the same file. */
static void test_placed(const char *path, const char *directory) {
  smoe_topology replicas;
  CHECK_OK(smoe_topology_create(&replicas, &world, EXPERTS_OF_1, world.n_ranks == 4 ? 2 : 0));
  topology = &replicas;
  const int n_ranks = replicas.experts.n_ranks;
  const smoe_checkpoint_meta meta = meta_of(12);
  char *other = smoe_sprintf("%s/step-000000012.h5", directory);
  model m;
  begin(&m, &world, true, false);
  fill(&m);
  /* In order within a rank, and another one in each layer where that makes a difference. */
  if (n_ranks == 2) {
    smoe_params_move_experts(&m.params, 0, (int32_t[]){1, 3, 0, 2});
    smoe_params_move_experts(&m.params, 1, (int32_t[]){2, 0, 1});
    const int n = smoe_params_experts(&m.params, 1)->n_local;
    CHECK(smoe_slab_expert_number(smoe_params_experts(&m.params, 1), n - 1) == (n == 1 ? 2 : 1));
  } else if (n_ranks == 3) {
    smoe_params_move_experts(&m.params, 0, (int32_t[]){2, 0, 1, 3});
    smoe_params_move_experts(&m.params, 1, (int32_t[]){1, 2, 0});
  }
  CHECK_OK(smoe_checkpoint_save(directory, &m.params, &meta));
  if (world.rank == 0) CHECK(test_same_files(path, other) == 6 * 6 + 2 * 2 + 1);
  smoe_group_barrier(&world);
  /* What is read goes to the places that experts have. */
  model placed;
  begin(&placed, &world, true, false);
  for (int layer = 0; layer < 2; layer++)
    smoe_params_move_experts(&placed.params, layer, smoe_params_experts(&m.params, layer)->expert_at);
  CHECK_OK(smoe_checkpoint_load(path, &placed.params));
  check_equal(&placed, &m);
  end(&placed);
  end(&m);
  check_load(&world, path, true);
  topology = NULL;
  smoe_topology_release(&replicas);
  smoe_free(other);
}

/** A file of an earlier program, which kept moments of what never learns. */
static void test_moments_of_frozen(const char *path, const char *directory) {
  const smoe_checkpoint_meta meta = meta_of(12);
  char *old = smoe_sprintf("%s/step-000000012.h5", directory);
  model m;
  frozen_late = true;
  begin(&m, &world, true, false);
  fill(&m);
  CHECK_OK(smoe_checkpoint_save(directory, &m.params, &meta));
  /* The other way round moments are missing. */
  CHECK_REFUSED(smoe_checkpoint_load(path, &m.params), SMOE_ERR_FORMAT, "lacks 'adam/m/moe1/router/table'");
  end(&m);
  frozen_late = false;
  check_load(&world, old, true);
  check_load(&world, old, false);
  smoe_free(old);
}

static void test_meta(const char *path) {
  smoe_checkpoint_meta read, meta = meta_of(12);
  CHECK_OK(smoe_checkpoint_read_meta(path, &world, &read));
  CHECK(read.update == meta.update && read.stage == meta.stage && read.seed == meta.seed);
  CHECK(read.n_tokens_seen == meta.n_tokens_seen && read.fingerprint == meta.fingerprint);
  CHECK(read.tokenizer == meta.tokenizer && strcmp(read.absolute, meta.absolute) == 0);
  CHECK(strcmp(read.corpus, meta.corpus) == 0 && strcmp(read.configuration, meta.configuration) == 0);
  CHECK(read.best.metric == meta.best.metric && read.best.update == meta.best.update);
  CHECK(read.best.n_since == meta.best.n_since && read.best.value == meta.best.value);
  smoe_free(read.configuration);
  CHECK_REFUSED(smoe_checkpoint_read_meta("/none/such.h5", &world, &read), SMOE_ERR_IO, "/none/such.h5");
}

/** A model that is not the file's: one parameter more, and without moments on either side. */
static void test_other_models(const char *path, const char *directory) {
  model m;
  begin(&m, &world, true, true);
  CHECK_REFUSED(smoe_checkpoint_load(path, &m.params), SMOE_ERR_FORMAT, "lacks 'param/norm/extra'");
  const smoe_checkpoint_meta meta = meta_of(13);
  fill(&m);
  CHECK_OK(smoe_checkpoint_save(directory, &m.params, &meta));
  end(&m);
  char *larger = smoe_sprintf("%s/step-000000013.h5", directory);
  begin(&m, &world, true, false);
  CHECK_REFUSED(smoe_checkpoint_load(larger, &m.params), SMOE_ERR_FORMAT, "param/norm/extra");
  end(&m);

  begin(&m, &world, false, false);
  fill(&m);
  CHECK_OK(smoe_checkpoint_save(directory, &m.params, &meta));
  end(&m);
  check_load(&world, larger, false);
  begin(&m, &world, true, false);
  CHECK_REFUSED(smoe_checkpoint_load(larger, &m.params), SMOE_ERR_FORMAT, "adam/m/");
  end(&m);
  smoe_free(larger);
}

/* Damages of an open file, by rank 0. */

static void flip_first_bit(hid_t file, const char *name, int64_t element) {
  smoe_real value;
  smoe_h5_read(file, name, SMOE_H5_REAL, &value, element, 1);
  *(unsigned char *)&value ^= 1;
  smoe_h5_write(file, name, SMOE_H5_REAL, &value, element, 1);
}

static void swap_experts(hid_t file) {
  enum { N = 33 * 66 };
  static smoe_real a[N], b[N];
  smoe_h5_read(file, "param/moe0/expert/w1", SMOE_H5_REAL, a, 1 * N, N);
  smoe_h5_read(file, "param/moe0/expert/w1", SMOE_H5_REAL, b, 3 * N, N);
  smoe_h5_write(file, "param/moe0/expert/w1", SMOE_H5_REAL, b, 1 * N, N);
  smoe_h5_write(file, "param/moe0/expert/w1", SMOE_H5_REAL, a, 3 * N, N);
}

static void replace(hid_t file, const char *name, hid_t type, int n_dims, const int64_t *shape) {
  H5Ldelete(file, name, H5P_DEFAULT);
  smoe_h5_dataset(file, name, type, n_dims, shape);
}

static void damage(hid_t file, int kind) {
  switch (kind) {
  case 0:
    flip_first_bit(file, "param/embedding/token", 97 * 33 - 1);
    break;
  case 1:
    flip_first_bit(file, "adam/v/norm/gain", 0);
    break;
  case 2:
    flip_first_bit(file, "adam/m/moe0/expert/b1", 2 * 5 + 4);
    break;
  case 3:
    swap_experts(file);
    break;
  case 4:
    H5Ldelete(file, "adam/m/block0/cube", H5P_DEFAULT);
    break;
  case 5:
    replace(file, "param/block0/cube", SMOE_H5_REAL_FILE, 3, (int64_t[]){3, 5, 8});
    break;
  case 6:
    replace(file, "param/norm/gain", H5T_STD_I32LE, 1, (int64_t[]){33});
    break;
  case 7:
    H5Ldelete(file, "checksum/param/norm/gain", H5P_DEFAULT);
    break;
  case 8:
    smoe_h5_set_i64(file, "/", "version", 99);
    break;
  case 9:
    smoe_h5_set_text(file, "/", "format", "stablemoe-corpus");
    break;
  default:
    smoe_h5_set_text(file, "/meta", "real", "half");
  }
}

static void test_damage(const char *path) {
  const char *const says[] = {"'param/embedding/token'",
                              "'adam/v/norm/gain'",
                              "'adam/m/moe0/expert/b1' of expert 2",
                              "'param/moe0/expert/w1' of expert 1",
                              "lacks 'adam/m/block0/cube'",
                              "[3, 5, 8]",
                              "'param/norm/gain'",
                              "'checksum/param/norm/gain'",
                              "version 99",
                              "not a StableMoE checkpoint",
                              "type half"};
  char *damaged = test_path("damaged.h5");
  for (int kind = 0; kind < 11; kind++) {
    if (world.rank == 0) {
      test_copy_file(path, damaged);
      const hid_t file = H5Fopen(damaged, H5F_ACC_RDWR, H5P_DEFAULT);
      damage(file, kind);
      H5Fclose(file);
      CHECK(smoe_checkpoint_verify(damaged) == SMOE_ERR_FORMAT, "damage %d is not seen by verify", kind);
    }
    smoe_group_barrier(&world);
    model m;
    begin(&m, &world, true, false);
    CHECK_REFUSED(smoe_checkpoint_load(damaged, &m.params), SMOE_ERR_FORMAT, says[kind]);
    end(&m);
  }
  smoe_free(damaged);
}

/** Files cut off at many places are refused, and nothing worse. */
static void test_truncated(const char *path) {
  char *damaged = test_path("damaged.h5");
  model m;
  begin(&m, &world, true, false);
  for (int cut = 0; cut < 8; cut++) {
    if (world.rank == 0) {
      test_copy_file(path, damaged);
      FILE *file = fopen(damaged, "rb");
      fseek(file, 0, SEEK_END);
      const long size = ftell(file);
      fclose(file);
      CHECK(truncate(damaged, cut == 7 ? size - 1 : size * cut / 8) == 0);
      CHECK(smoe_checkpoint_verify(damaged) == SMOE_ERR_FORMAT, "cut %d", cut);
    }
    smoe_group_barrier(&world);
    CHECK_REFUSED(smoe_checkpoint_load(damaged, &m.params), SMOE_ERR_FORMAT, "damaged.h5");
  }
  end(&m);
  smoe_free(damaged);
}

/** A save that fails anywhere leaves the directory as it was. */
static void test_failed_saves(const char *directory) {
  const char *const sites[] = {"checkpoint.create", "checkpoint.open",   "checkpoint.write",
                               "checkpoint.close",  "checkpoint.verify", "checkpoint.rename"};
  const int rank = world.n_ranks - 1;
  const smoe_checkpoint_meta meta = meta_of(20);
  char *latest = smoe_sprintf("%s/latest", directory),
       *path = smoe_sprintf("%s/step-000000020.h5", directory);
  model m;
  begin(&m, &world, true, false);
  fill(&m);
  for (size_t s = 0; s < sizeof sites / sizeof *sites; s++) {
    test_fault(sites[s], rank);
    CHECK_REFUSED(smoe_checkpoint_save(directory, &m.params, &meta), SMOE_ERR_IO, sites[s]);
    smoe_group_barrier(&world);
    CHECK(test_count_files(directory, ".part") == 0 && access(path, F_OK) != 0, "after %s", sites[s]);
    check_load(&world, latest, true);
  }
  test_fault("checkpoint.latest", rank);
  CHECK_REFUSED(smoe_checkpoint_save(directory, &m.params, &meta), SMOE_ERR_IO, "checkpoint.latest");
  check_load(&world, path, true);
  test_fault("checkpoint.load", rank);
  CHECK_REFUSED(smoe_checkpoint_load(path, &m.params), SMOE_ERR_IO, "checkpoint.load");
  test_fault("checkpoint.read", rank);
  CHECK_REFUSED(smoe_checkpoint_load(path, &m.params), SMOE_ERR_IO, "checkpoint.read");
  unsetenv("STABLEMOE_FAULT");
  char *file_as_directory = smoe_sprintf("%s/sub", path);
  CHECK_REFUSED(smoe_checkpoint_save(file_as_directory, &m.params, &meta), SMOE_ERR_IO, "cannot make");
  smoe_free(file_as_directory);
  end(&m);
  smoe_free(latest);
  smoe_free(path);
}

/** The last rank can write no further than a part of the file, as if the disk were full: alone it
 *  cannot take the space, with others its transfers fail. Both must unwind, and the next save work.
 */
static void test_full_disk(const char *directory) {
  const smoe_checkpoint_meta meta = meta_of(30);
  char *latest = smoe_sprintf("%s/latest", directory),
       *path = smoe_sprintf("%s/step-000000030.h5", directory);
  struct rlimit limit;
  model m;
  begin(&m, &world, true, false);
  fill(&m);
  signal(SIGXFSZ, SIG_IGN);
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlim_t before = limit.rlim_cur;
  for (rlim_t bytes = 4096; bytes < 200000; bytes *= 6) {
    limit.rlim_cur = world.rank == world.n_ranks - 1 ? bytes : before;
    setrlimit(RLIMIT_FSIZE, &limit);
    const smoe_status status = smoe_checkpoint_save(directory, &m.params, &meta);
    limit.rlim_cur = before;
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK(status == SMOE_ERR_IO && strstr(smoe_last_error(), directory), "status %d: %s", (int)status,
          smoe_last_error());
    smoe_group_barrier(&world);
    CHECK(test_count_files(directory, ".part") == 0 && access(path, F_OK) != 0, "a file is left");
    check_load(&world, latest, true);
    smoe_group_barrier(&world);
  }
  CHECK_OK(smoe_checkpoint_save(directory, &m.params, &meta));
  check_load(&world, path, true);
  end(&m);
  smoe_free(latest);
  smoe_free(path);
}

static void check_updates(const char *directory, const int64_t *updates, int n) {
  char **paths = smoe_checkpoint_list(directory);
  int i = 0;
  for (; paths[i] && i < n; i++) {
    char *wanted = smoe_sprintf("%s/step-%09lld.h5", directory, (long long)updates[i]);
    CHECK(strcmp(paths[i], wanted) == 0, "'%s', not '%s'", paths[i], wanted);
    smoe_free(wanted);
  }
  CHECK(i == n && !paths[i], "%d checkpoints, not %d", i, n);
  smoe_h5_list_free(paths);
}

static void test_list_and_prune(void) {
  char *directory = test_path("many"), *rest = test_path("many/step-000000007.h5.part");
  model m;
  check_updates(directory, NULL, 0);
  begin(&m, &world, false, false);
  fill(&m);
  for (int64_t update = 10; update <= 60; update += 10) {
    const smoe_checkpoint_meta meta = meta_of(update);
    CHECK_OK(smoe_checkpoint_save(directory, &m.params, &meta));
    if (world.rank == 0 && update == 50) test_copy_file("/dev/null", rest);
    smoe_group_barrier(&world);
  }
  CHECK(access(rest, F_OK) != 0, "a leftover is still there");
  CHECK_OK(smoe_checkpoint_prune(directory, &world, 0, 0, 0));
  check_updates(directory, (int64_t[]){60, 50, 40, 30, 20, 10}, 6);
  smoe_group_barrier(&world);
  CHECK_OK(smoe_checkpoint_prune(directory, &world, 2, 30, 20));
  check_updates(directory, (int64_t[]){60, 50, 30, 20}, 4);
  smoe_group_barrier(&world);
  /* A run that went back to an older checkpoint keeps what it has just saved. */
  const smoe_checkpoint_meta meta = meta_of(35);
  CHECK_OK(smoe_checkpoint_save(directory, &m.params, &meta));
  CHECK_OK(smoe_checkpoint_prune(directory, &world, 1, 0, 0));
  check_updates(directory, (int64_t[]){60, 35}, 2);
  end(&m);
  smoe_free(directory);
  smoe_free(rest);
}

int main(int argc, char **argv) {
  smoe_group_start(&world, &argc, &argv);
  test_directory_make(&world);
  char *together = test_path("together"), *alone = test_path("alone"), *others = test_path("others");
  char *path = smoe_sprintf("%s/step-000000012.h5", together);
  char *placed = test_path("placed"), *earlier = test_path("earlier");
  test_any_ranks(together, alone);
  test_placed(path, placed);
  test_moments_of_frozen(path, earlier);
  test_meta(path);
  test_other_models(path, others);
  test_damage(path);
  test_truncated(path);
  test_failed_saves(together);
  test_full_disk(together);
  test_list_and_prune();
  test_directory_delete(&world, test_directory);
  smoe_free(together);
  smoe_free(alone);
  smoe_free(others);
  smoe_free(placed);
  smoe_free(earlier);
  smoe_free(path);
  smoe_group_end(&world);
  return test_verdict("checkpoint");
}
