/* One damage after another, each read in a child of its own. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "damage.h"
#include "harness.h"
#include "stablemoe/arena.h"

/* A reader that takes longer hangs; one that takes more memory believes a damaged size. */
enum { TIME_LIMIT = 30 };
static const rlim_t MEMORY_LIMIT = (rlim_t)4 << 30;

/* The address sanitizer reserves terabytes of addresses: there ASAN_OPTIONS limits what one call may take. */
#ifdef __SANITIZE_ADDRESS__
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

enum { SAME, REFUSED, ENDED, DIFFERENT, UNNAMED, CRASHED, HUNG, RESULTS };
static const char *const result_names[RESULTS] = {"same",    "refused", "ended", "different",
                                                  "unnamed", "crashed", "hung"};

/** What parent and child share. */
static char *report;

static damage_bytes read_file(const char *path) {
  damage_bytes file = {0};
  FILE *stream = fopen(path, "rb");
  if (!stream || fseek(stream, 0, SEEK_END)) exit(99);
  file.n = ftell(stream);
  rewind(stream);
  file.byte = smoe_alloc((size_t)file.n);
  if (fread(file.byte, 1, (size_t)file.n, stream) != (size_t)file.n) exit(99);
  fclose(stream);
  return file;
}

static void write_file(const char *path, const damage_bytes *file) {
  FILE *stream = fopen(path, "wb");
  if (!stream || fwrite(file->byte, 1, (size_t)file->n, stream) != (size_t)file->n || fclose(stream))
    exit(99);
}

/** Damage a copy of the sound file; target: what has to be named, "" where anything does. */
static void damage(const damage_test *test, const damage_kind *kind, damage_dice *dice,
                   const damage_bytes *sound, const char *path, char target[512]) {
  damage_bytes copy = {smoe_alloc((size_t)sound->n), sound->n};
  memcpy(copy.byte, sound->byte, (size_t)sound->n);
  target[0] = '\0';
  if (kind->bytes) kind->bytes(dice, &copy);
  write_file(path, &copy);
  smoe_free(copy.byte);
  if (!kind->structure) return;
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  const hid_t file = H5Fopen(path, H5F_ACC_RDWR, access);
  H5Pclose(access);
  if (file < 0) exit(99);
  kind->structure(dice, file, target);
  H5Fclose(file);
  if (kind->sealed) CHECK(smoe_h5_seal(path) == SMOE_OK, "%s", smoe_last_error());
}

/** Read the file and end with the outcome. aloud: what a sanitizer has to say is to be seen. */
static void child(const damage_test *test, const char *path, bool aloud) {
  const struct rlimit memory = {MEMORY_LIMIT, MEMORY_LIMIT};
  if (!sanitized) setrlimit(RLIMIT_AS, &memory);
  alarm(TIME_LIMIT);
  if (!aloud && (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))) _exit(99);
  const damage_outcome outcome = test->read(path);
  snprintf(report, SMOE_REPORT_MAX, "%s", smoe_last_error());
  _exit((int)outcome);
}

/** Whether a refusal says of which file and, where our own checks found it, which object. */
static bool is_named(const damage_kind *kind, const char *path, const char *target) {
  const char *slash = strrchr(target, '/');
  const bool needs_target = kind->sealed && !kind->any_words;
  return strstr(report, path) && (!needs_target || strstr(report, slash ? slash + 1 : target));
}

static int judge(const damage_test *test, const damage_kind *kind, int state, const char *path,
                 const char *target) {
  if (WIFSIGNALED(state)) return WTERMSIG(state) == SIGALRM ? HUNG : CRASHED;
  const int code = WEXITSTATUS(state);
  if (code == DAMAGE_SAME) return SAME;
  if (code == DAMAGE_DIFFERENT) return DIFFERENT;
  if (code == DAMAGE_REFUSED) return is_named(kind, path, target) ? REFUSED : UNNAMED;
  return test->panic_code && code == test->panic_code ? ENDED : CRASHED;
}

static int run_case(const damage_test *test, const damage_kind *kind, damage_dice *dice,
                    const damage_bytes *sound, const char *path, char target[512], bool aloud) {
  damage(test, kind, dice, sound, path, target);
  fflush(NULL);
  report[0] = '\0';
  const pid_t pid = fork();
  if (pid < 0) exit(99);
  if (pid == 0) child(test, path, aloud);
  int state = 0;
  while (waitpid(pid, &state, 0) < 0 && errno == EINTR) continue;
  return judge(test, kind, state, path, target);
}

int damage_run(const damage_test *test, int argc, char **argv) {
  const bool share = argc > 2 && strcmp(argv[1], "--every") == 0;
  const int every = share && atoi(argv[2]) > 0 ? atoi(argv[2]) : 1;
  const char *only = argc > 2 && !share ? argv[1] : NULL;
  char *path = smoe_sprintf("%s.damaged", test->path);
  report = mmap(NULL, SMOE_REPORT_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  const damage_bytes sound = read_file(test->path);
  printf("%s: %lld bytes\n%-28s", test->name, (long long)sound.n, "damage");
  for (int r = 0; r < RESULTS; r++) printf(" %9s", result_names[r]);
  int all = 0;
  for (int k = 0; k < test->n_kinds; k++) {
    const damage_kind *kind = &test->kinds[k];
    int count[RESULTS] = {0};
    if (only && strcmp(only, kind->name) != 0) continue;
    const int first = only ? atoi(argv[2]) : 0, beyond = only ? first + 1 : kind->n_cases;
    for (int i = first; i < beyond; i += every) {
      damage_dice dice = {(uint32_t)k, (uint64_t)i, 0};
      char target[512];
      const int result = run_case(test, kind, &dice, &sound, path, target, only);
      count[result]++;
      all++;
      const bool fine =
          result <= REFUSED || (result == ENDED && test->panic_code) ||
          (result == DIFFERENT && kind->may_differ) ||
          (result == DIFFERENT && kind->sealed && test->unsummed && strcmp(target, test->unsummed) == 0);
      CHECK(fine, "'%s' %d ('%s'): %s: %s", kind->name, i, target, result_names[result], report);
      if (only) printf("\n%s ('%s'): %s: %s", path, target, result_names[result], report);
    }
    printf("\n%-28s", kind->name);
    for (int r = 0; r < RESULTS; r++) printf(" %9d", count[r]);
  }
  printf("\n%s: %d damages\n", test->name, all);
  fflush(stdout);
  if (!only) unlink(path);
  smoe_free(path);
  smoe_free(sound.byte);
  return test_failures; /* of this file: the harness counts in each of its own */
}
