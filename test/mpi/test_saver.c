/* Checkpoints that are written while the parameters change already: the file of a save that is waited for, byte for
 * byte, or none, and what a failure leaves. */
#include <signal.h>
#include <sys/resource.h>

#include "checkpoint_fixture.h"
#include "stablemoe/saver.h"

static const smoe_saver_after KEEP_ALL = {0};

static char *read_file(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  CHECK(file, "no file '%s'", path);
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  char *data = smoe_alloc(*bytes);
  CHECK(fread(data, 1, *bytes, file) == *bytes);
  fclose(file);
  return data;
}

static void check_same_bytes(const char *path_a, const char *path_b) {
  size_t n_a = 0, n_b = 0, differ = 0;
  char *a = read_file(path_a, &n_a), *b = read_file(path_b, &n_b);
  for (size_t i = 0; a && b && i < n_a && i < n_b; i++) differ += a[i] != b[i];
  CHECK(a && b && n_a == n_b && differ == 0, "'%s' has %zu bytes, '%s' %zu; %zu are others", path_a, n_a,
        path_b, n_b, differ);
  smoe_free(a);
  smoe_free(b);
}

/** What the next updates do. */
static void spoil(model *m) {
  for (int s = 0; s < m->params.n_slabs; s++) {
    smoe_slab *slab = &m->params.slab[s];
    memset(slab->value, 0x5a, (size_t)slab->n_local * slab->count * sizeof *slab->value);
    if (!slab->m) continue;
    memset(slab->m, 0x5b, slab->slice_count * sizeof *slab->m);
    memset(slab->v, 0x5c, slab->slice_count * sizeof *slab->v);
  }
}

/** Save what fill makes; poll: until this rank has nothing left to do, the ranks not in step. */
static smoe_status save(smoe_saver *saver, model *m, const char *directory, int64_t number,
                        const smoe_saver_after *after, bool poll) {
  const smoe_checkpoint_meta meta = meta_of(number);
  int64_t update = 0;
  fill(m);
  const smoe_status begun = smoe_saver_begin(saver, directory, &m->params, &meta, after);
  spoil(m);
  if (begun != SMOE_OK) {
    CHECK(!smoe_saver_busy(saver));
    return begun;
  }
  for (int i = 0; poll && smoe_saver_busy(saver); i++) {
    usleep((useconds_t)(100 * ((world.rank + i) % 3)));
    smoe_saver_poll(saver);
  }
  const smoe_status status = smoe_saver_finish(saver, &update);
  CHECK(update == number, "update %lld", (long long)update);
  CHECK(smoe_saver_finish(saver, &update) == SMOE_OK && update == 0);
  return status;
}

/** A file of each kind of save, of the same parameters. */
static void compare(model *m, const char *name) {
  char *waited = test_path("waited"), *beside = smoe_sprintf("%s/%s", test_directory, name);
  char *path = smoe_sprintf("%s/step-000000012.h5", waited),
       *other = smoe_sprintf("%s/step-000000012.h5", beside);
  const smoe_checkpoint_meta meta = meta_of(12);
  smoe_saver *saver;
  fill(m);
  CHECK_OK(smoe_checkpoint_save(waited, &m->params, &meta));
  smoe_saver_create(&saver, &m->params, NULL, NULL);
  CHECK(saver, "no saver");
  for (int poll = 0; poll < 2 && saver; poll++) {
    CHECK_OK(save(saver, m, beside, 12, &KEEP_ALL, poll));
    smoe_group_barrier(&world);
    if (world.rank == 0) {
      check_same_bytes(path, other);
      CHECK_OK(smoe_checkpoint_verify(other));
      CHECK(test_count_files(beside, ".part") == 0);
      CHECK(unlink(other) == 0);
    }
    smoe_group_barrier(&world);
  }
  smoe_saver_destroy(saver);
  smoe_free(waited);
  smoe_free(beside);
  smoe_free(path);
  smoe_free(other);
}

static void test_same_bytes(void) {
  model m;
  begin(&m, &world, true, false);
  compare(&m, "plain");
  end(&m);
  begin(&m, &world, false, false); /* without moments */
  compare(&m, "values");
  end(&m);
  /* Replicas that share out moments, and experts in other places. */
  smoe_topology replicas;
  CHECK_OK(smoe_topology_create(&replicas, &world, EXPERTS_OF_1, world.n_ranks == 4 ? 2 : 0));
  topology = &replicas;
  begin(&m, &world, true, false);
  if (replicas.experts.n_ranks == 2) smoe_params_move_experts(&m.params, 0, (int32_t[]){1, 3, 0, 2});
  if (replicas.experts.n_ranks == 3) smoe_params_move_experts(&m.params, 0, (int32_t[]){2, 0, 1, 3});
  compare(&m, "replicas");
  end(&m);
  topology = NULL;
  smoe_topology_release(&replicas);
}

static void check_target(const char *directory, const char *link, const char *wanted) {
  char target[64] = "", *path = smoe_sprintf("%s/%s", directory, link);
  if (readlink(path, target, sizeof target - 1) < 0) target[0] = '\0';
  CHECK(strcmp(target, wanted) == 0, "'%s' points to '%s', not '%s'", path, target, wanted);
  smoe_free(path);
}

/** One save after the other: links and old files are as if each had been waited for. */
static void test_afterwards(void) {
  char *directory = test_path("afterwards");
  smoe_saver *saver;
  model m;
  begin(&m, &world, true, false);
  smoe_saver_create(&saver, &m.params, NULL, NULL);
  for (int64_t update = 10; update <= 50; update += 10) {
    const smoe_saver_after after = {.keep_last = 2, .keep_every = 20, .best = update < 30 ? 10 : 30};
    CHECK_OK(save(saver, &m, directory, update, &after, update % 20 == 0));
    smoe_group_barrier(&world);
    char *name = smoe_sprintf("step-%09lld.h5", (long long)update);
    check_target(directory, "latest", name);
    check_target(directory, "best", update < 30 ? "step-000000010.h5" : "step-000000030.h5");
    smoe_free(name);
    smoe_group_barrier(&world);
  }
  /* 50 and 40 are the last, 20 a multiple, 30 the best. */
  CHECK(test_count_files(directory, ".h5") == 4);
  char *gone = smoe_sprintf("%s/step-000000010.h5", directory);
  CHECK(access(gone, F_OK) != 0);
  smoe_free(gone);
  smoe_saver_destroy(saver);
  end(&m);
  smoe_free(directory);
}

/** Make a site fail at its next pass on a rank, whose passes are counted together. */
static void ask_fault(const char *site, int rank) {
  static int passes[2];
  char text[96];
  snprintf(text, sizeof text, "%s@%d#%d", site, rank, ++passes[rank > 0]);
  setenv("STABLEMOE_FAULT", text, 1);
}

/** A save that fails anywhere is reported on all ranks, and the next one works. */
static void test_failed_saves(void) {
  const char *const sites[] = {"checkpoint.create", "checkpoint.open",   "checkpoint.write",
                               "checkpoint.close",  "checkpoint.verify", "checkpoint.rename",
                               "checkpoint.latest"};
  char *directory = test_path("failures"), *path = test_path("failures/step-000000020.h5");
  smoe_saver *saver;
  model m;
  begin(&m, &world, true, false);
  smoe_saver_create(&saver, &m.params, NULL, NULL);
  CHECK_OK(save(saver, &m, directory, 10, &KEEP_ALL, true));
  for (size_t s = 0; s < sizeof sites / sizeof *sites; s++)
    for (int rank = 0; rank<world.n_ranks; rank += world.n_ranks> 1 ? world.n_ranks - 1 : 1) {
      const bool latest = s == 6;
      ask_fault(sites[s], rank);
      CHECK_REFUSED(save(saver, &m, directory, 20, &KEEP_ALL, s % 2), SMOE_ERR_IO, sites[s]);
      unsetenv("STABLEMOE_FAULT");
      smoe_group_barrier(&world);
      CHECK(test_count_files(directory, ".part") == 0 && (access(path, F_OK) == 0) == latest, "after %s",
            sites[s]);
      smoe_group_barrier(&world);
      if (world.rank == 0) unlink(path);
    }
  CHECK_OK(save(saver, &m, directory, 20, &KEEP_ALL, true));
  if (world.rank == 0) CHECK_OK(smoe_checkpoint_verify(path));
  smoe_saver_destroy(saver);
  end(&m);
  smoe_free(directory);
  smoe_free(path);
}

/** The last rank can write no further than a part of the file, as if the disk were full. */
static void test_full_disk(void) {
  char *directory = test_path("full");
  smoe_saver *saver;
  struct rlimit limit;
  model m;
  begin(&m, &world, true, false);
  smoe_saver_create(&saver, &m.params, NULL, NULL);
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlim_t before = limit.rlim_cur;
  for (rlim_t bytes = 4096; bytes < 200000; bytes *= 6) {
    limit.rlim_cur = world.rank == world.n_ranks - 1 ? bytes : before;
    setrlimit(RLIMIT_FSIZE, &limit);
    const smoe_status status = save(saver, &m, directory, 30, &KEEP_ALL, true);
    limit.rlim_cur = before;
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK(status == SMOE_ERR_IO && strstr(smoe_last_error(), directory), "status %d: %s", (int)status,
          smoe_last_error());
    smoe_group_barrier(&world);
    CHECK(test_count_files(directory, "") <= 2, "a file is left"); /* . and .. */
    smoe_group_barrier(&world);
  }
  CHECK_OK(save(saver, &m, directory, 30, &KEEP_ALL, false));
  smoe_saver_destroy(saver);
  end(&m);
  smoe_free(directory);
}

/** Without memory for the copy on one rank there is no saver on any. */
static void test_no_memory(void) {
  smoe_saver *saver;
  int64_t update = 1;
  model m;
  begin(&m, &world, true, false);
  ask_fault("arena.reserve", world.n_ranks - 1);
  smoe_saver_create(&saver, &m.params, NULL, NULL);
  unsetenv("STABLEMOE_FAULT");
  CHECK(!saver);
  smoe_saver_poll(saver);
  CHECK(!smoe_saver_busy(saver) && smoe_saver_finish(saver, &update) == SMOE_OK && update == 0);
  smoe_saver_destroy(saver);
  CHECK(smoe_params_state_bytes(&m.params) > 0);
  end(&m);
}

static smoe_status refuse(void *context) {
  ++*(int *)context;
  return SMOE_FAIL(SMOE_ERR_CONFIG, "another run has the directory");
}

/** Who may no longer write in the directory gives no file its name, and removes none either. */
static void test_not_permitted(void) {
  char *directory = test_path("lost");
  int asked = 0;
  smoe_saver *saver;
  model m;
  begin(&m, &world, true, false);
  smoe_saver_create(&saver, &m.params, refuse, &asked);
  CHECK_REFUSED(save(saver, &m, directory, 40, &KEEP_ALL, true), SMOE_ERR_CONFIG, "another run");
  CHECK(asked == (world.rank == 0), "asked %d times", asked);
  smoe_group_barrier(&world);
  CHECK(test_count_files(directory, ".h5") == 0 && test_count_files(directory, ".part") == 1);
  CHECK(test_count_files(directory, "latest") == 0);
  smoe_saver_destroy(saver);
  end(&m);
  smoe_free(directory);
}

int main(int argc, char **argv) {
  smoe_group_start(&world, &argc, &argv);
  test_directory_make(&world);
  test_same_bytes();
  test_afterwards();
  test_failed_saves();
  test_full_disk();
  test_no_memory();
  test_not_permitted();
  test_directory_delete(&world, test_directory);
  smoe_group_end(&world);
  return test_verdict("saver");
}
