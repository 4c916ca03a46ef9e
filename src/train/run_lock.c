#include "stablemoe/run_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"

/* Seconds between two renewals; without one for so long the holder has ended; between two looks at its file. */
enum { RENEW_S = 20, STALE_S = 120, LOOK_S = 2 };

enum { TEXT_BYTES = 4096, FIELD_BYTES = 256, PATH_BYTES = 1024 };

/* What the file says of a holder. */
typedef struct holder {
  char token[FIELD_BYTES]; /* random: no two runs have the same */
  char host[FIELD_BYTES];
  char boot[FIELD_BYTES];  /* the running kernel: names a machine better than its host name does */
  char space[FIELD_BYTES]; /* in which process numbers count */
  long process;
  char started[FIELD_BYTES]; /* of the process, since a number may be used again */
  char job[FIELD_BYTES];     /* "slurm 4711"; "" outside of batch systems */
  long attempt;              /* of that job */
  char since[FIELD_BYTES];
  char directory[PATH_BYTES];
  unsigned long long inode; /* of the file itself: a copy has another one */
} holder;

struct smoe_run_lock {
  char *directory, *path;
  holder mine;
  pthread_t thread;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  bool stop; /* guarded by mutex */
  atomic_bool lost;
};

/* ---- this process ---- */

/* The first line of a file; "" where it cannot be read. */
static void read_line(char *out, size_t bytes, const char *path) {
  FILE *file = fopen(path, "r");
  out[0] = '\0';
  if (file && !fgets(out, (int)bytes, file)) out[0] = '\0';
  if (file) fclose(file);
  out[strcspn(out, "\n")] = '\0';
}

/* When a process started, in ticks since the machine did; "" where there is no such process, or only its remains. */
static void process_start(char *out, size_t bytes, long process) {
  char path[64], line[1024];
  snprintf(path, sizeof path, "/proc/%ld/stat", process);
  read_line(line, sizeof line, path);
  out[0] = '\0';
  char *rest = strrchr(line, ')'); /* the name before may hold anything */
  if (!rest || strlen(rest) < 3 || rest[2] == 'Z' || rest[2] == 'X') return;
  char *state = NULL;
  char *field = strtok_r(rest + 2, " ", &state);
  for (int i = 3; field && i < 22; i++) field = strtok_r(NULL, " ", &state);
  if (field) snprintf(out, bytes, "%s", field);
}

static void describe_job(holder *h) {
  static const char *const jobs[][2] = {
      {"SLURM_JOB_ID", "slurm"}, {"PBS_JOBID", "pbs"}, {"LSB_JOBID", "lsf"}, {"FLUX_JOB_ID", "flux"}};
  for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
    const char *id = getenv(jobs[i][0]);
    if (!id || !id[0]) continue;
    snprintf(h->job, sizeof h->job, "%s %.200s", jobs[i][1], id);
    break;
  }
  const char *attempt = getenv("SLURM_RESTART_COUNT");
  if (attempt && strncmp(h->job, "slurm", 5) == 0) h->attempt = strtol(attempt, NULL, 10);
}

static void describe_me(holder *h, const char *directory) {
  uint64_t random[2] = {0, 0};
  *h = (holder){.process = (long)getpid()};
  if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) random[0] = (uint64_t)time(NULL);
  snprintf(h->token, sizeof h->token, "%016llx%016llx", (unsigned long long)random[0],
           (unsigned long long)random[1]);
  if (gethostname(h->host, sizeof h->host - 1) != 0) snprintf(h->host, sizeof h->host, "unknown");
  read_line(h->boot, sizeof h->boot, "/proc/sys/kernel/random/boot_id");
  if (readlink("/proc/self/ns/pid", h->space, sizeof h->space - 1) < 0) h->space[0] = '\0';
  process_start(h->started, sizeof h->started, h->process);
  describe_job(h);
  const time_t now = time(NULL);
  struct tm parts;
  if (localtime_r(&now, &parts)) strftime(h->since, sizeof h->since, "%F %T %z", &parts);
  char absolute[PATH_MAX];
  snprintf(h->directory, sizeof h->directory, "%.1000s",
           realpath(directory, absolute) ? absolute : directory);
}

/* ---- the file ---- */

static void print_holder(const holder *h, char *text, size_t bytes) {
  snprintf(text, bytes,
           "host: %s\nprocess: %ld\nstarted: %s\nboot: %s\nspace: %s\njob: %s\nattempt: %ld\nsince: %s\n"
           "directory: %s\ninode: %llu\ntoken: %s\n",
           h->host, h->process, h->started, h->boot, h->space, h->job, h->attempt, h->since, h->directory,
           h->inode, h->token);
}

/* The value of "<name>: value" in a text of such lines; "" where it is missing. */
static void take_field(char *out, size_t bytes, const char *text, const char *name) {
  const size_t length = strlen(name);
  out[0] = '\0';
  for (const char *line = text; *line;) {
    const size_t n = strcspn(line, "\n");
    if (n >= length + 2 && strncmp(line, name, length) == 0 && line[length] == ':') {
      snprintf(out, bytes, "%.*s", (int)(n - length - 2), line + length + 2);
      return;
    }
    line += n + (line[n] != '\0');
  }
}

static long take_number(const char *text, const char *name) {
  char number[32];
  take_field(number, sizeof number, text, name);
  return strtol(number, NULL, 10);
}

/* Read who holds the lock: false where there is none. A file that is not complete has no token. Opening it anew
 * makes a network file system ask its server. */
static bool read_holder(const char *path, holder *h, struct stat *info) {
  char text[TEXT_BYTES], inode[32];
  *h = (holder){.token = ""};
  const int descriptor = open(path, O_RDONLY);
  if (descriptor < 0) return false;
  const ssize_t n = read(descriptor, text, sizeof text - 1);
  const bool there = fstat(descriptor, info) == 0;
  close(descriptor);
  text[n > 0 ? n : 0] = '\0';
  take_field(h->host, sizeof h->host, text, "host");
  take_field(h->boot, sizeof h->boot, text, "boot");
  take_field(h->space, sizeof h->space, text, "space");
  take_field(h->started, sizeof h->started, text, "started");
  take_field(h->job, sizeof h->job, text, "job");
  take_field(h->since, sizeof h->since, text, "since");
  take_field(h->directory, sizeof h->directory, text, "directory");
  take_field(inode, sizeof inode, text, "inode");
  take_field(h->token, sizeof h->token, text, "token");
  h->process = take_number(text, "process");
  h->attempt = take_number(text, "attempt");
  h->inode = strtoull(inode, NULL, 10);
  return there;
}

/* Write the holder into a new file. 0, or errno: EEXIST where there is one already. */
static int create_file(const char *path, holder *mine) {
  char text[TEXT_BYTES];
  struct stat info;
  const int descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL, 0666);
  if (descriptor < 0) return errno;
  mine->inode = fstat(descriptor, &info) == 0 ? (unsigned long long)info.st_ino : 0;
  print_holder(mine, text, sizeof text);
  const size_t bytes = strlen(text);
  int error = write(descriptor, text, bytes) == (ssize_t)bytes ? 0 : errno ? errno : EIO;
  if (close(descriptor) != 0 && error == 0) error = errno;
  if (error) unlink(path);
  return error;
}

/* ---- whether the holder has ended ---- */

typedef enum verdict { ENDED, RUNS, UNKNOWN } verdict;

static verdict judge(const holder *h, const holder *mine, const struct stat *info) {
  if (!h->token[0]) return UNKNOWN; /* it is just being written, or its writer was killed at that */
  /* The directory was copied together with its lock. */
  if (h->inode != (unsigned long long)info->st_ino && strcmp(h->directory, mine->directory) != 0)
    return ENDED;
  if (h->job[0] && strcmp(h->job, mine->job) == 0 && h->attempt < mine->attempt) return ENDED;
  if (!h->boot[0] || strcmp(h->boot, mine->boot) != 0 || strcmp(h->space, mine->space) != 0) return UNKNOWN;
  char started[FIELD_BYTES];
  process_start(started, sizeof started, h->process);
  return started[0] && strcmp(started, h->started) == 0 ? RUNS : ENDED;
}

static double seconds_of(const struct stat *info) {
  return (double)info->st_mtim.tv_sec + 1e-9 * (double)info->st_mtim.tv_nsec;
}

/* Seconds since the lock was renewed. The clock is the file server's, by a file that is written now; clocks of
 * machines may differ. */
static double age_of(const char *path, const holder *mine, const struct stat *info) {
  char *probe = smoe_sprintf("%s.%s", path, mine->token);
  struct stat now;
  double age = 0;
  const int descriptor = open(probe, O_WRONLY | O_CREAT | O_EXCL, 0666);
  if (descriptor >= 0) {
    if (write(descriptor, "\n", 1) == 1 && fsync(descriptor) == 0 && fstat(descriptor, &now) == 0)
      age = seconds_of(&now) - seconds_of(info);
    close(descriptor);
    unlink(probe);
  }
  smoe_free(probe);
  return age;
}

static smoe_status refuse(const smoe_run_lock *lock, const holder *h) {
  char job[FIELD_BYTES + 16] = "";
  if (h->job[0]) snprintf(job, sizeof job, "job %s, ", h->job);
  return SMOE_FAIL(
      SMOE_ERR_CONFIG,
      "run.directory '%s' is in use by another run: process %ld on host '%s' (%ssince %s). Wait for "
      "it, stop it by a file 'stop' in that directory, or choose another one with -P "
      "run.directory=...; if you are sure that it has ended, delete '%s'",
      lock->directory, h->process, h->host, job, h->since, lock->path);
}

/* Wait for a sign of life of a holder that this machine cannot look up. */
static smoe_status watch(const smoe_run_lock *lock, const holder *h, const struct stat *info, bool *ended) {
  holder now;
  struct stat seen;
  double waited = 0, age = age_of(lock->path, &lock->mine, info);
  *ended = age > STALE_S;
  if (*ended) return SMOE_OK;
  smoe_note(
      "run.directory is locked by process %ld on host '%s': waiting up to %d s for a sign of life of it",
      h->process, h->host, STALE_S);
  while (!*ended) {
    sleep(LOOK_S);
    waited += LOOK_S;
    if (!read_holder(lock->path, &now, &seen)) break; /* released */
    if (strcmp(now.token, h->token) != 0 || seconds_of(&seen) != seconds_of(info)) return refuse(lock, &now);
    /* Both: a time stamp in the future must not keep the lock for ever, nor one in the past open it. */
    *ended = waited > STALE_S || (waited >= 2 * LOOK_S && age + waited > STALE_S);
  }
  return SMOE_OK;
}

/* Replace the lock of a holder that has ended. Several runs may try: the last one to rename has it, and each looks
 * again after a while. *done stays false where another run was faster. */
static smoe_status replace(smoe_run_lock *lock, const holder *dead, bool *done) {
  holder now;
  struct stat info;
  char *own = smoe_sprintf("%s.%s", lock->path, lock->mine.token);
  const int error = create_file(own, &lock->mine);
  smoe_status status = SMOE_OK;
  if (error)
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot write '%s': %s", own, strerror(error));
  else if (read_holder(lock->path, &now, &info) && strcmp(now.token, dead->token) != 0)
    unlink(own);
  else if (rename(own, lock->path) != 0) {
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot rename '%s' to '%s': %s", own, lock->path, strerror(errno));
    unlink(own);
  } else {
    usleep(500000);
    *done = read_holder(lock->path, &now, &info) && strcmp(now.token, lock->mine.token) == 0;
  }
  if (*done && dead->token[0])
    smoe_note("took over the lock of process %ld on host '%s', which has ended without releasing it",
              dead->process, dead->host);
  smoe_free(own);
  return status;
}

static smoe_status take(smoe_run_lock *lock) {
  for (bool done = false; !done;) {
    holder h;
    struct stat info;
    const int error = create_file(lock->path, &lock->mine);
    if (error == 0) return SMOE_OK;
    SMOE_CHECK(error == EEXIST, SMOE_ERR_IO, "cannot write '%s': %s", lock->path, strerror(error));
    if (!read_holder(lock->path, &h, &info)) continue; /* released in between */
    const verdict found = judge(&h, &lock->mine, &info);
    if (found == RUNS) return refuse(lock, &h);
    bool ended = found == ENDED;
    if (!ended) SMOE_TRY(watch(lock, &h, &info, &ended));
    if (ended) SMOE_TRY(replace(lock, &h, &done));
  }
  return SMOE_OK;
}

/* ---- while the run goes on ---- */

/* Whether the lock is this run's; one that somebody deleted is made again. */
static bool is_mine(smoe_run_lock *lock, holder *other) {
  struct stat info;
  if (!read_holder(lock->path, other, &info)) {
    holder again = lock->mine;
    return create_file(lock->path, &again) != EEXIST || !read_holder(lock->path, other, &info) ||
           strcmp(other->token, lock->mine.token) == 0;
  }
  return strcmp(other->token, lock->mine.token) == 0;
}

static void *renew(void *context) {
  smoe_run_lock *lock = context;
  pthread_mutex_lock(&lock->mutex);
  while (!lock->stop) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += RENEW_S;
    pthread_cond_timedwait(&lock->wake, &lock->mutex, &until);
    if (lock->stop) break;
    holder other;
    if (!is_mine(lock, &other))
      atomic_store(&lock->lost, true);
    else
      utimensat(AT_FDCWD, lock->path, NULL, 0); /* now, by the server's clock */
  }
  pthread_mutex_unlock(&lock->mutex);
  return NULL;
}

/* Signals are for the thread that trains. */
static smoe_status start_thread(smoe_run_lock *lock) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_mutex_init(&lock->mutex, NULL);
  pthread_cond_init(&lock->wake, NULL);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&lock->thread, NULL, renew, lock);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  SMOE_CHECK(error == 0, SMOE_ERR_MEMORY, "cannot start a thread: %s", strerror(error));
  return SMOE_OK;
}

static void free_lock(smoe_run_lock *lock) {
  smoe_free(lock->directory);
  smoe_free(lock->path);
  smoe_free(lock);
}

smoe_status smoe_run_lock_take(smoe_run_lock **out, const char *directory) {
  smoe_run_lock *lock = smoe_alloc(sizeof *lock);
  *out = NULL;
  lock->directory = smoe_strdup(directory);
  lock->path = smoe_sprintf("%s/lock", directory);
  describe_me(&lock->mine, directory);
  smoe_status status = take(lock);
  if (status == SMOE_OK) {
    status = start_thread(lock);
    if (status != SMOE_OK) unlink(lock->path);
  }
  if (status != SMOE_OK) {
    free_lock(lock);
    return status;
  }
  *out = lock;
  return SMOE_OK;
}

smoe_status smoe_run_lock_check(smoe_run_lock *lock, bool read) {
  if (!lock) return SMOE_OK;
  holder other = {.token = ""};
  if (read && !is_mine(lock, &other)) atomic_store(&lock->lost, true);
  SMOE_CHECK(
      !atomic_load(&lock->lost), SMOE_ERR_CONFIG,
      "another run took over '%s' while this one gave no sign of life (suspended?): this one ends without "
      "saving; '%s' names the other",
      lock->directory, lock->path);
  return SMOE_OK;
}

void smoe_run_lock_release(smoe_run_lock *lock) {
  if (!lock) return;
  pthread_mutex_lock(&lock->mutex);
  lock->stop = true;
  pthread_cond_signal(&lock->wake);
  pthread_mutex_unlock(&lock->mutex);
  pthread_join(lock->thread, NULL);
  pthread_cond_destroy(&lock->wake);
  pthread_mutex_destroy(&lock->mutex);
  holder now;
  struct stat info;
  if (read_holder(lock->path, &now, &info) && strcmp(now.token, lock->mine.token) == 0) unlink(lock->path);
  free_lock(lock);
}
