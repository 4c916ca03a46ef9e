#include "stablemoe/plain_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stablemoe/arena.h"

/* A write beyond the limit on files would kill the process; a full disk is better seen before. */
static smoe_status take_room(smoe_plain_file *file, int64_t bytes) {
  struct rlimit limit;
  SMOE_CHECK(getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
                 limit.rlim_cur >= (rlim_t)bytes,
             SMOE_ERR_IO, "'%s' takes %.1f MB, more than the limit on files allows (ulimit -f)", file->path,
             (double)bytes / 1e6);
  const int failed = bytes > 0 ? fallocate(fileno(file->stream), FALLOC_FL_KEEP_SIZE, 0, bytes) : 0;
  SMOE_CHECK(!failed || (errno != ENOSPC && errno != EDQUOT && errno != EFBIG), SMOE_ERR_IO,
             "cannot take %.1f MB of disk space for '%s': %s", (double)bytes / 1e6, file->path,
             strerror(errno));
  return SMOE_OK;
}

smoe_status smoe_plain_create(smoe_plain_file *file, const char *path, int64_t bytes) {
  struct stat there;
  const bool exists = stat(path, &there) == 0;
  *file = (smoe_plain_file){.path = smoe_strdup(path)};
  SMOE_CHECK(!exists || !S_ISDIR(there.st_mode), SMOE_ERR_IO, "cannot write '%s': it is a directory", path);
  /* A device or a pipe is written to, never replaced by a file. */
  if (!exists || S_ISREG(there.st_mode)) file->part = smoe_sprintf("%s.part", path);
  file->stream = fopen(file->part ? file->part : path, "wb");
  if (!file->stream) {
    const int error = errno;
    smoe_free(file->part); /* not ours to remove */
    file->part = NULL;
    return SMOE_FAIL(SMOE_ERR_IO, "cannot write '%s': %s", path, strerror(error));
  }
  return file->part ? take_room(file, bytes) : SMOE_OK;
}

smoe_status smoe_plain_write(smoe_plain_file *file, const void *data, size_t bytes) {
  SMOE_CHECK(fwrite(data, 1, bytes, file->stream) == bytes, SMOE_ERR_IO, "cannot write '%s': %s", file->path,
             strerror(errno));
  return SMOE_OK;
}

smoe_status smoe_plain_finish(smoe_plain_file *file) {
  errno = 0;
  bool good = fflush(file->stream) == 0 && !ferror(file->stream);
  if (good && file->part) good = fsync(fileno(file->stream)) == 0;
  int error = errno;
  const bool closed = fclose(file->stream) == 0;
  if (good) error = errno;
  file->stream = NULL;
  SMOE_CHECK(good && closed, SMOE_ERR_IO, "cannot write '%s': %s", file->path,
             error ? strerror(error) : "an earlier write failed");
  return SMOE_OK;
}

smoe_status smoe_plain_publish(smoe_plain_file *file) {
  if (!file->part) return SMOE_OK;
  SMOE_CHECK(rename(file->part, file->path) == 0, SMOE_ERR_IO, "cannot rename '%s' to '%s': %s", file->part,
             file->path, strerror(errno));
  smoe_free(file->part);
  file->part = NULL;
  return SMOE_OK;
}

void smoe_plain_release(smoe_plain_file *file) {
  if (file->stream) fclose(file->stream);
  if (file->part) unlink(file->part);
  smoe_free(file->part);
  smoe_free(file->path);
  *file = (smoe_plain_file){0};
}
