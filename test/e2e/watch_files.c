/* A library to preload: it notes what a process does to files, and can spoil one byte of what it writes.
 *
 *   WATCH_LOG=FILE    append a line for each call: "write PATH", "fsync PATH", "rename FROM TO"
 *   WATCH_SPOIL=NAME@OFFSET   after a write that covers this byte of a file whose name ends in NAME, invert it
 *
 * Lines of several processes stand in the order of the calls: each is one write to a file opened for appending,
 * made after the call for "write" and before it for the others.
 */
#undef _FILE_OFFSET_BITS /* both names of a call are wanted, not one in the place of the other */
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);

static void *next(const char *name) {
  return dlsym(RTLD_NEXT, name);
}

static void path_of(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t n = readlink(link, path, PATH_MAX - 1);
  path[n > 0 ? n : 0] = '\0';
}

static void note(const char *what, const char *path, const char *other) {
  static int (*real_open)(const char *, int, ...);
  static ssize_t (*real_write)(int, const void *, size_t);
  char line[2 * PATH_MAX + 32];
  const char *log = getenv("WATCH_LOG");
  if (!log || !path[0]) return;
  if (!real_open) real_open = next("open");
  if (!real_write) real_write = next("write");
  const int n = snprintf(line, sizeof line, "%s %s%s%s\n", what, path, other ? " " : "", other ? other : "");
  const int descriptor = real_open(log, O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (descriptor < 0 || real_write(descriptor, line, (size_t)n) != n) abort();
  close(descriptor);
}

/* Bytes [first, first + n) of a file were written. */
static void written(int descriptor, off_t first, ssize_t n) {
  char path[PATH_MAX], byte;
  const char *spoil = getenv("WATCH_SPOIL");
  path_of(descriptor, path);
  note("write", path, NULL);
  const char *at = spoil ? strrchr(spoil, '@') : NULL;
  if (!at || n <= 0) return;
  const size_t length = (size_t)(at - spoil), whole = strlen(path);
  const off_t offset = (off_t)strtoll(at + 1, NULL, 10);
  if (whole < length || strncmp(path + whole - length, spoil, length) != 0) return;
  if (offset < first || offset >= first + n) return;
  /* The file may be open for writing alone. */
  const int other = open(path, O_RDWR);
  if (!real_pwrite) real_pwrite = next("pwrite");
  if (other < 0 || pread(other, &byte, 1, offset) != 1) abort();
  byte = (char)~byte;
  if (real_pwrite(other, &byte, 1, offset) != 1) abort();
  close(other);
  note("spoil", path, NULL);
}

ssize_t pwrite(int descriptor, const void *data, size_t n, off_t offset) {
  if (!real_pwrite) real_pwrite = next("pwrite");
  const ssize_t done = real_pwrite(descriptor, data, n, offset);
  written(descriptor, offset, done);
  return done;
}

ssize_t pwrite64(int descriptor, const void *data, size_t n, off64_t offset) {
  return pwrite(descriptor, data, n, offset);
}

ssize_t write(int descriptor, const void *data, size_t n) {
  static ssize_t (*real)(int, const void *, size_t);
  if (!real) real = next("write");
  const off_t first = lseek(descriptor, 0, SEEK_CUR);
  const ssize_t done = real(descriptor, data, n);
  if (first >= 0) written(descriptor, first, done);
  return done;
}

ssize_t writev(int descriptor, const struct iovec *part, int count) {
  static ssize_t (*real)(int, const struct iovec *, int);
  if (!real) real = next("writev");
  const off_t first = lseek(descriptor, 0, SEEK_CUR);
  const ssize_t done = real(descriptor, part, count);
  if (first >= 0) written(descriptor, first, done);
  return done;
}

ssize_t pwritev(int descriptor, const struct iovec *part, int count, off_t offset) {
  static ssize_t (*real)(int, const struct iovec *, int, off_t);
  if (!real) real = next("pwritev");
  const ssize_t done = real(descriptor, part, count, offset);
  written(descriptor, offset, done);
  return done;
}

ssize_t pwritev64(int descriptor, const struct iovec *part, int count, off64_t offset) {
  return pwritev(descriptor, part, count, offset);
}

int fsync(int descriptor) {
  static int (*real)(int);
  char path[PATH_MAX];
  if (!real) real = next("fsync");
  path_of(descriptor, path);
  note("fsync", path, NULL);
  return real(descriptor);
}

int rename(const char *from, const char *to) {
  static int (*real)(const char *, const char *);
  if (!real) real = next("rename");
  note("rename", from, to);
  return real(from, to);
}
