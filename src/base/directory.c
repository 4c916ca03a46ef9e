#include "stablemoe/directory.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "stablemoe/arena.h"

smoe_status smoe_directory_make(const char *path) {
  if (!*path) return SMOE_OK;
  char *above = smoe_strdup(path);
  for (char *slash = strchr(above + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    mkdir(above, 0777); /* what matters is whether the last one is there */
    *slash = '/';
  }
  smoe_free(above);
  if (mkdir(path, 0777) == 0) return SMOE_OK;
  const int error = errno;
  struct stat there;
  SMOE_CHECK(error == EEXIST && stat(path, &there) == 0 && S_ISDIR(there.st_mode), SMOE_ERR_IO,
             "cannot make the directory '%s': %s", path, strerror(error == EEXIST ? ENOTDIR : error));
  return SMOE_OK;
}

smoe_status smoe_directory_make_for(const char *file) {
  const char *slash = strrchr(file, '/');
  /* What is there may be a device or a pipe, in a directory where nobody may make anything. */
  if (access(file, F_OK) == 0) return SMOE_OK;
  char *directory =
      slash ? smoe_sprintf("%.*s", slash > file ? (int)(slash - file) : 1, file) : smoe_strdup(".");
  struct stat there;
  smoe_status status = stat(directory, &there) == 0 ? SMOE_OK : smoe_directory_make(directory);
  errno = ENOTDIR;
  if (status == SMOE_OK &&
      (stat(directory, &there) != 0 || !S_ISDIR(there.st_mode) || access(directory, W_OK | X_OK) != 0))
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot write '%s': %s", file, strerror(errno));
  smoe_free(directory);
  return status;
}

double smoe_directory_room(const char *path) {
  struct statvfs disk;
  if (statvfs(path, &disk) != 0 || disk.f_blocks == 0) return -1;
  return (double)disk.f_bavail * (double)disk.f_frsize;
}
