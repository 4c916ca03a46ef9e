/* A file system that cannot do everything, for LD_PRELOAD: no locks (POOR_FILES_LOCKS: the errno), no symbolic links, no
 * flushing of directories (POOR_FILES_LINKS: the errno of both).
 */
#undef _FILE_OFFSET_BITS /* it makes another name of fcntl */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int refusal(const char *name) {
  const char *text = getenv(name);
  return text ? (int)strtol(text, NULL, 10) : 0;
}

int flock(int descriptor, int operation) {
  static int (*real)(int, int);
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "flock");
  const int error = refusal("POOR_FILES_LOCKS");
  if (error == 0) return real(descriptor, operation);
  errno = error;
  return -1;
}

static int control(const char *name, int descriptor, int command, void *argument) {
  int (*real)(int, int, ...);
  *(void **)&real = dlsym(RTLD_NEXT, name);
  const int error = refusal("POOR_FILES_LOCKS");
  struct stat info;
  const int locks =
      command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
  if (error && locks && fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode)) {
    errno = error;
    return -1;
  }
  return real(descriptor, command, argument);
}

int fcntl(int descriptor, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void *argument = va_arg(arguments, void *);
  va_end(arguments);
  return control("fcntl", descriptor, command, argument);
}

int fcntl64(int descriptor, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void *argument = va_arg(arguments, void *);
  va_end(arguments);
  return control("fcntl64", descriptor, command, argument);
}

int symlink(const char *target, const char *path) {
  int (*real)(const char *, const char *);
  *(void **)&real = dlsym(RTLD_NEXT, "symlink");
  const int error = refusal("POOR_FILES_LINKS");
  if (error == 0) return real(target, path);
  errno = error;
  return -1;
}

int fsync(int descriptor) {
  int (*real)(int);
  *(void **)&real = dlsym(RTLD_NEXT, "fsync");
  struct stat info;
  if (refusal("POOR_FILES_LINKS") == 0 || fstat(descriptor, &info) != 0 || !S_ISDIR(info.st_mode))
    return real(descriptor);
  errno = EINVAL;
  return -1;
}
