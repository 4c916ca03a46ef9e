#include "part_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/directory.h"

/* Bytes that a comparison holds at a time. */
enum { BUFFER_BYTES = 1 << 22 };

smoe_status smoe_part_fault(const smoe_part_file *part, const char *place) {
  char site[64];
  snprintf(site, sizeof site, "%s.%s", part->kind, place);
  SMOE_CHECK(!smoe_fault(site), SMOE_ERR_IO, "injected fault at %s", site);
  return SMOE_OK;
}

/** Fail where there plainly is no room: by the limit of this process, or on the file system. */
static smoe_status check_space(const char *directory, int64_t bytes) {
  struct rlimit limit;
  SMOE_CHECK(getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
                 limit.rlim_cur >= (rlim_t)bytes,
             SMOE_ERR_IO, "a file of %.1f MB in '%s' is larger than the limit on files allows (ulimit -f)",
             (double)bytes / 1e6, directory);
  const double room = smoe_directory_room(directory);
  SMOE_CHECK(room < 0 || room >= (double)bytes, SMOE_ERR_IO,
             "not enough space in '%s': the file takes %.1f MB and %.1f MB are free", directory,
             (double)bytes / 1e6, room / 1e6);
  return SMOE_OK;
}

/** Take disk space for a file of its present size, or of `bytes` where that is more: a full disk
 *  or quota shows here, where it can be reported, and not under the transfers. 0 where the file
 *  system cannot do it, or errno.
 */
static int reserve(const char *path, int64_t bytes) {
  struct stat size;
  const int descriptor = open(path, O_WRONLY | O_CREAT, 0666);
  if (descriptor < 0) return errno;
  int error = fstat(descriptor, &size) ? errno : 0;
  if (error == 0 && size.st_size > bytes) bytes = size.st_size;
  if (error == 0 && bytes > 0 && fallocate(descriptor, FALLOC_FL_KEEP_SIZE, 0, bytes) != 0) error = errno;
  close(descriptor);
  return error == ENOSPC || error == EDQUOT || error == EFBIG ? error : 0;
}

/** Take the space: before HDF5 begins, because it is bad at full disks; again when it has, because it
 *  begins by emptying the file; and of the size that the file came to have.
 */
static smoe_status take_space(const smoe_part_file *part, int64_t bytes) {
  const int error = reserve(part->part, bytes);
  SMOE_CHECK(error == 0, SMOE_ERR_IO, "cannot take %.1f MB of disk space for '%s': %s", (double)bytes / 1e6,
             part->part, strerror(error));
  return SMOE_OK;
}

/** What rank 0 does before the others come. */
static smoe_status make_alone(smoe_part_file *part, const char *directory, int64_t bytes,
                              smoe_status (*make)(const smoe_part_file *part, const void *context),
                              const void *context) {
  SMOE_TRY(smoe_directory_make(directory));
  smoe_part_sweep(directory);
  SMOE_TRY(check_space(directory, bytes));
  SMOE_TRY(take_space(part, bytes));
  SMOE_TRY(smoe_h5_create(&part->file, part->part, NULL));
  smoe_status made = take_space(part, bytes);
  if (made == SMOE_OK) made = make(part, context);
  made = smoe_h5_close_after(part->file, made);
  part->file = H5I_INVALID_HID;
  SMOE_TRY(made);
  return take_space(part, 0);
}

static smoe_status remove_part(const smoe_part_file *part, smoe_status status) {
  if (part->group->rank == 0) unlink(part->part);
  return status;
}

/** Open by all ranks. The open file ties the ranks together: where only some have it, the
 *  others cannot take part in closing it, and only the end of the run is left.
 */
static smoe_status open_together(smoe_part_file *part) {
  const smoe_status mine = smoe_h5_open_together(&part->file, part->part, part->group);
  int64_t open_ranks = part->file >= 0;
  smoe_group_sum_i64(part->group, &open_ranks, 1);
  if (open_ranks == part->group->n_ranks) return SMOE_OK;
  if (open_ranks == 0) return smoe_group_agree(part->group, mine);
  unlink(part->part);
  if (mine == SMOE_OK)
    SMOE_PANIC(SMOE_ERR_IO, "only %lld of %d ranks could open '%s'", (long long)open_ranks,
               part->group->n_ranks, part->part);
  SMOE_PANIC(mine, "%s", smoe_last_error());
}

smoe_status smoe_part_make(smoe_part_file *part, const smoe_group *group, const char *kind,
                           const char *directory, int64_t update, int64_t bytes,
                           smoe_status (*make)(const smoe_part_file *part, const void *context),
                           const void *context) {
  *part = (smoe_part_file){.group = group, .kind = kind, .file = H5I_INVALID_HID};
  part->path = smoe_step_path(directory, update);
  part->part = smoe_sprintf("%s.part", part->path);
  smoe_status mine = smoe_part_fault(part, "create");
  if (mine == SMOE_OK && group->rank == 0) mine = make_alone(part, directory, bytes, make, context);
  smoe_status status = smoe_group_agree(group, mine);
  if (status != SMOE_OK) return remove_part(part, status);

  if (access(part->part, W_OK) != 0)
    mine = SMOE_FAIL(SMOE_ERR_IO,
                     "cannot write '%s', which rank 0 has made: %s; is the directory on a file "
                     "system that all nodes share?",
                     part->part, strerror(errno));
  if (mine == SMOE_OK) mine = smoe_part_fault(part, "open");
  status = smoe_group_agree(group, mine);
  return status == SMOE_OK ? SMOE_OK : remove_part(part, status);
}

smoe_status smoe_part_create(smoe_part_file *part, const smoe_group *group, const char *kind,
                             const char *directory, int64_t update, int64_t bytes,
                             smoe_status (*make)(const smoe_part_file *part, const void *context),
                             const void *context) {
  SMOE_TRY(smoe_part_make(part, group, kind, directory, update, bytes, make, context));
  const smoe_status status = open_together(part);
  return status == SMOE_OK ? SMOE_OK : remove_part(part, status);
}

static smoe_status compare(const smoe_part_file *part, const char *name, size_t bytes, const void *read,
                           const void *data) {
  SMOE_CHECK(memcmp(read, data, bytes) == 0, SMOE_ERR_IO,
             "'%s' of '%s' does not read back as it was written; the disk or its file system is at fault",
             name, part->part);
  return SMOE_OK;
}

smoe_status smoe_part_put(const smoe_part_file *part, const char *name, hid_t memory_type, const void *data,
                          int n_dims, const int64_t *first, const int64_t *count) {
  if (!part->comparing) return smoe_h5_write_part(part->file, name, memory_type, data, n_dims, first, count);
  size_t bytes = H5Tget_size(memory_type);
  for (int d = 0; d < n_dims; d++) bytes *= (size_t)count[d];
  void *read = smoe_alloc(bytes);
  smoe_status status = smoe_h5_read_part(part->file, name, memory_type, read, n_dims, first, count);
  if (status == SMOE_OK) status = compare(part, name, bytes, read, data);
  smoe_free(read);
  return status;
}

smoe_status smoe_part_put_range(const smoe_part_file *part, const char *name, hid_t memory_type,
                                const void *data, int64_t first, int64_t n) {
  if (n == 0) return SMOE_OK;
  if (!part->comparing) return smoe_h5_write(part->file, name, memory_type, data, first, n);
  const size_t size = H5Tget_size(memory_type);
  const int64_t most = (int64_t)(BUFFER_BYTES / size);
  const char *from = data;
  void *read = smoe_alloc((size_t)(n < most ? n : most) * size);
  smoe_status status = SMOE_OK;
  for (int64_t done = 0; done < n && status == SMOE_OK; done += most) {
    const int64_t now = n - done < most ? n - done : most;
    status = smoe_h5_read(part->file, name, memory_type, read, first + done, now);
    if (status == SMOE_OK) status = compare(part, name, (size_t)now * size, read, from + (size_t)done * size);
  }
  smoe_free(read);
  return status;
}

smoe_status smoe_part_close(smoe_part_file *part, smoe_status mine) {
  const smoe_status written = smoe_group_agree(part->group, mine);
  char *report = smoe_strdup(written == SMOE_OK ? "" : smoe_last_error());
  /* All ranks close, whatever happened: the file is theirs together. */
  mine = smoe_h5_close(part->file);
  part->file = H5I_INVALID_HID;
  if (mine == SMOE_OK) mine = smoe_part_fault(part, "close");
  smoe_status status = smoe_group_agree(part->group, mine);
  if (written != SMOE_OK) {
    smoe_report_set(report);
    status = written;
  }
  smoe_free(report);
  if (status != SMOE_OK) return remove_part(part, status);

  part->comparing = true;
  mine = smoe_h5_open_unsealed(&part->file, part->part);
  if (mine == SMOE_OK) mine = smoe_part_fault(part, "verify");
  status = smoe_group_agree(part->group, mine);
  if (status == SMOE_OK) return SMOE_OK;
  if (part->file >= 0) smoe_h5_close(part->file);
  return remove_part(part, status);
}

smoe_status smoe_part_publish(smoe_part_file *part, smoe_status mine) {
  const smoe_status closed = smoe_h5_close(part->file);
  part->file = H5I_INVALID_HID;
  if (mine == SMOE_OK) mine = closed;
  if (mine == SMOE_OK) mine = smoe_part_fault(part, "rename");
  smoe_status status = smoe_group_agree(part->group, mine);
  if (status != SMOE_OK) return remove_part(part, status);
  mine = part->group->rank == 0 ? smoe_h5_publish(part->part, part->path) : SMOE_OK;
  status = smoe_group_agree(part->group, mine);
  return status == SMOE_OK ? SMOE_OK : remove_part(part, status);
}

void smoe_part_end(smoe_part_file *part) {
  smoe_free(part->path);
  smoe_free(part->part);
  part->path = part->part = NULL;
}
