#include "stablemoe/h5.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stablemoe/arena.h"

/* Largest number of elements of one transfer: MPI counts are int. */
enum { TRANSFER_MAX = 1 << 26 };

/* Object headers are given space in blocks of this size. */
enum { META_BLOCK_BYTES = 1 << 14 };

/* Longest name of a file that the system takes, and more. */
enum { SMOE_H5_PATH_BYTES = 4352 };

/** Two messages of an error stack: what was asked for, and what went wrong deep inside. */
typedef struct reasons {
  char outer[128], inner[192];
} reasons;

static herr_t take_reason(unsigned n, const H5E_error2_t *error, void *context) {
  static const char mark[] = "error message = '";
  reasons *r = context;
  const char *text = error->desc ? error->desc : "";
  if (n == 0) {
    /* Where the system said no, its words are enough. */
    const char *system = strstr(text, mark);
    if (system) system += sizeof mark - 1;
    snprintf(r->inner, sizeof r->inner, "%.*s", system ? (int)strcspn(system, "'") : 160,
             system ? system : text);
  }
  snprintf(r->outer, sizeof r->outer, "%s", text);
  return 0;
}

const char *smoe_h5_error(void) {
  static char text[384];
  reasons r = {"", ""};
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_reason, &r);
  if (strcmp(r.outer, r.inner) == 0) r.outer[0] = '\0';
  snprintf(text, sizeof text, "%s%s%s", r.outer, r.outer[0] ? ": " : "", r.inner);
  for (char *c = text; *c; c++)
    if (*c == '\n') *c = ' ';
  return text[0] ? text : "HDF5 gives no reason";
}

/** Close an object after a call that may have failed: any call of HDF5 forgets the errors of the
 *  one before, and they are still to be reported.
 */
static herr_t close_after(herr_t bad, herr_t (*close_object)(hid_t), hid_t object) {
  const hid_t errors = H5Eget_current_stack();
  close_object(object);
  H5Eset_current_stack(errors);
  return bad;
}

const char *smoe_h5_path(hid_t file) {
  static char path[SMOE_H5_PATH_BYTES];
  const hid_t errors = H5Eget_current_stack();
  if (H5Fget_name(file, path, sizeof path) < 0) snprintf(path, sizeof path, "an HDF5 file");
  H5Eset_current_stack(errors);
  return path;
}

/** Open and create files without locks: they are written once, under names of their own, and read when they are
 *  complete; and many shared file systems have no locks.
 */
static herr_t use_no_locks(hid_t access) {
#if H5_VERSION_GE(1, 10, 7)
  return H5Pset_file_locking(access, 0, 1);
#else
  return 0; /* HDF5_USE_FILE_LOCKING, which is set before MPI starts */
#endif
}

/** HDF5 prints its error stack to the terminal on every rank unless told not to. */
static void be_quiet(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

smoe_status smoe_h5_create(hid_t *file, const char *path, const smoe_group *group) {
  be_quiet();
  *file = H5I_INVALID_HID;
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS), creation = H5Pcreate(H5P_FILE_CREATE);
  herr_t bad = access < 0 || creation < 0 ? -1 : 0;
  /* From 1.8 on object headers carry checksums of their own, so damage there is seen. */
  if (bad >= 0) bad = H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
  if (bad >= 0) bad = H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  if (bad >= 0) bad = H5Pset_obj_track_times(creation, 0);
  if (bad >= 0 && !group) bad = H5Pset_userblock(creation, SMOE_H5_SEAL_BYTES);
  /* Headers together, and so the values too: then the seal has few ranges to leave out. */
  if (bad >= 0) bad = H5Pset_meta_block_size(access, META_BLOCK_BYTES);
  if (bad >= 0) bad = use_no_locks(access);
  if (bad >= 0 && group) bad = H5Pset_fapl_mpio(access, group->comm, MPI_INFO_NULL);
  if (bad >= 0) *file = H5Fcreate(path, H5F_ACC_TRUNC, creation, access);
  smoe_status status = SMOE_OK;
  if (*file < 0) status = SMOE_FAIL(SMOE_ERR_IO, "cannot create '%s': %s", path, smoe_h5_error());
  if (access >= 0) H5Pclose(access);
  if (creation >= 0) H5Pclose(creation);
  return status;
}

smoe_status smoe_h5_open(hid_t *file, const char *path) {
  *file = H5I_INVALID_HID;
  SMOE_TRY(smoe_h5_check_seal(path));
  return smoe_h5_open_unsealed(file, path);
}

smoe_status smoe_h5_open_unsealed(hid_t *file, const char *path) {
  be_quiet();
  *file = H5I_INVALID_HID;
  const int descriptor = open(path, O_RDONLY);
  SMOE_CHECK(descriptor >= 0, SMOE_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  close(descriptor);
  SMOE_CHECK(H5Fis_hdf5(path) > 0, SMOE_ERR_FORMAT, "'%s' is not an HDF5 file, or its beginning is damaged",
             path);
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  if (access >= 0) H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  if (access >= 0) use_no_locks(access);
  *file = H5Fopen(path, H5F_ACC_RDONLY, access < 0 ? H5P_DEFAULT : access);
  smoe_status status = SMOE_OK;
  if (*file < 0)
    status =
        SMOE_FAIL(SMOE_ERR_FORMAT, "cannot open '%s', it is truncated or damaged: %s", path, smoe_h5_error());
  if (access >= 0) H5Pclose(access);
  return status;
}

smoe_status smoe_h5_open_together(hid_t *file, const char *path, const smoe_group *group) {
  be_quiet();
  *file = H5I_INVALID_HID;
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  herr_t bad = access < 0 ? -1 : H5Pset_fapl_mpio(access, group->comm, MPI_INFO_NULL);
  if (bad >= 0) bad = H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  if (bad >= 0) bad = use_no_locks(access);
  if (bad >= 0) *file = H5Fopen(path, H5F_ACC_RDWR, access);
  smoe_status status = SMOE_OK;
  if (*file < 0) status = SMOE_FAIL(SMOE_ERR_IO, "cannot open '%s' for all ranks: %s", path, smoe_h5_error());
  if (access >= 0) H5Pclose(access);
  return status;
}

/** Let a file of this rank that cannot be flushed go on in memory, so that it can be closed: after
 *  a failed H5Fclose, HDF5 1.10 crashes when the program ends. The second flush is for its cache,
 *  which the failed one left half way.
 */
static void divert(hid_t file) {
  void *handle = NULL;
  const hid_t access = H5Fget_access_plist(file);
  const bool alone = access >= 0 && H5Pget_driver(access) == H5FD_SEC2;
  if (alone && H5Fget_vfd_handle(file, access, &handle) >= 0 && handle) {
    const int memory = memfd_create("stablemoe", 0);
    if (memory >= 0) {
      dup2(memory, *(int *)handle);
      close(memory);
      H5Fflush(file, H5F_SCOPE_GLOBAL);
    }
  }
  if (access >= 0) H5Pclose(access);
}

/** Whether this rank alone has written a file that has room for a seal. */
static bool wants_seal(hid_t file) {
  unsigned intent = H5F_ACC_RDONLY;
  hsize_t room = 0;
  const hid_t access = H5Fget_access_plist(file), creation = H5Fget_create_plist(file);
  const bool known = access >= 0 && creation >= 0 && H5Fget_intent(file, &intent) >= 0 &&
                     H5Pget_userblock(creation, &room) >= 0;
  const bool wants =
      known && (intent & H5F_ACC_RDWR) && room == SMOE_H5_SEAL_BYTES && H5Pget_driver(access) == H5FD_SEC2;
  if (creation >= 0) H5Pclose(creation);
  if (access >= 0) H5Pclose(access);
  return wants;
}

smoe_status smoe_h5_close(hid_t file) {
  char path[SMOE_H5_PATH_BYTES];
  smoe_status status = SMOE_OK;
  const bool sealed = wants_seal(file);
  snprintf(path, sizeof path, "%s", smoe_h5_path(file));
  if (H5Fflush(file, H5F_SCOPE_GLOBAL) < 0) {
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot flush '%s': %s", path, smoe_h5_error());
    divert(file);
  }
  if (H5Fclose(file) < 0 && status == SMOE_OK)
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot close '%s': %s", path, smoe_h5_error());
  return status == SMOE_OK && sealed ? smoe_h5_seal(path) : status;
}

smoe_status smoe_h5_close_after(hid_t file, smoe_status written) {
  char *report = smoe_strdup(smoe_last_error());
  const smoe_status closed = smoe_h5_close(file);
  if (written != SMOE_OK) smoe_report_set(report);
  smoe_free(report);
  return written != SMOE_OK ? written : closed;
}

/** Make the groups on the way to an object, without time stamps. */
static herr_t make_groups(hid_t file, const char *name) {
  const hid_t creation = H5Pcreate(H5P_GROUP_CREATE);
  if (creation < 0) return -1;
  herr_t bad = H5Pset_obj_track_times(creation, 0);
  char *path = smoe_strdup(name);
  for (char *slash = strchr(path + 1, '/'); slash && bad >= 0; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    const htri_t there = H5Lexists(file, path, H5P_DEFAULT);
    if (there < 0) bad = -1;
    if (there == 0) {
      const hid_t group = H5Gcreate2(file, path, H5P_DEFAULT, creation, H5P_DEFAULT);
      bad = group < 0 ? -1 : H5Gclose(group);
    }
    *slash = '/';
  }
  smoe_free(path);
  return close_after(bad, H5Pclose, creation);
}

smoe_status smoe_h5_dataset(hid_t file, const char *name, hid_t type, int n_dims, const int64_t *shape) {
  hsize_t dims[SMOE_H5_DIMS];
  for (int d = 0; d < n_dims; d++) dims[d] = (hsize_t)shape[d];
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  const hid_t space = n_dims ? H5Screate_simple(n_dims, dims, NULL) : H5Screate(H5S_SCALAR);
  herr_t bad = creation < 0 || space < 0 ? -1 : 0;
  if (bad >= 0) bad = H5Pset_obj_track_times(creation, 0);
  if (bad >= 0) bad = H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
  if (bad >= 0) bad = H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
  if (bad >= 0) bad = make_groups(file, name);
  const hid_t set =
      bad < 0 ? H5I_INVALID_HID : H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  smoe_status status = SMOE_OK;
  if (set < 0)
    status =
        SMOE_FAIL(SMOE_ERR_IO, "cannot make '%s' in '%s': %s", name, smoe_h5_path(file), smoe_h5_error());
  if (set >= 0) H5Dclose(set);
  if (space >= 0) H5Sclose(space);
  if (creation >= 0) H5Pclose(creation);
  return status;
}

/** One transfer of the selected elements: a write where to is NULL, else a read. */
static herr_t transfer(hid_t set, hid_t space, hid_t type, const void *from, void *to, hsize_t n) {
  const hid_t memory = H5Screate_simple(1, &n, NULL);
  if (memory < 0) return -1;
  const herr_t bad = to ? H5Dread(set, type, memory, space, H5P_DEFAULT, to)
                        : H5Dwrite(set, type, memory, space, H5P_DEFAULT, from);
  return close_after(bad, H5Sclose, memory);
}

/** The next box of a range of consecutive elements: as many whole rows, planes, ... as follow
 *  element `first` without crossing the border of the dimension above. Returns its elements.
 */
static hsize_t next_box(int n_dims, const hsize_t *dims, int64_t first, int64_t n, hsize_t *start,
                        hsize_t *count) {
  int64_t stride[SMOE_H5_DIMS], rest = first;
  for (int d = n_dims - 1; d >= 0; d--)
    stride[d] = d == n_dims - 1 ? 1 : stride[d + 1] * (int64_t)dims[d + 1];
  for (int d = 0; d < n_dims; d++) {
    start[d] = (hsize_t)(rest / stride[d]);
    rest %= stride[d];
    count[d] = 1;
  }
  int level = n_dims - 1;
  while (level > 0 && start[level] == 0 && n >= stride[level - 1] && stride[level - 1] <= TRANSFER_MAX)
    level--;
  int64_t most = n / stride[level];
  if (most > (int64_t)(dims[level] - start[level])) most = (int64_t)(dims[level] - start[level]);
  if (most > TRANSFER_MAX / stride[level]) most = TRANSFER_MAX / stride[level];
  count[level] = (hsize_t)most;
  for (int d = level + 1; d < n_dims; d++) count[d] = dims[d];
  return (hsize_t)(most * stride[level]);
}

/** Move a range of consecutive elements, box by box. */
static herr_t move_range(hid_t set, hid_t space, hid_t type, const char *from, char *to, int64_t first,
                         int64_t n) {
  hsize_t dims[SMOE_H5_DIMS], start[SMOE_H5_DIMS], count[SMOE_H5_DIMS];
  const int n_dims = H5Sget_simple_extent_ndims(space);
  if (n_dims < 0 || n_dims > SMOE_H5_DIMS || H5Sget_simple_extent_dims(space, dims, NULL) < 0) return -1;
  const size_t bytes = H5Tget_size(type);
  if (n_dims == 0) return n ? transfer(set, H5S_ALL, type, from, to, 1) : 0;
  while (n > 0) {
    const hsize_t box = next_box(n_dims, dims, first, n, start, count);
    if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
        transfer(set, space, type, from, to, box) < 0)
      return -1;
    if (to) to += box * bytes;
    if (from) from += box * bytes;
    first += (int64_t)box;
    n -= (int64_t)box;
  }
  return 0;
}

/** Open a dataset and its space; -1 where that fails. */
static herr_t open_set(hid_t file, const char *name, hid_t *set, hid_t *space) {
  *space = H5I_INVALID_HID;
  *set = H5Dopen2(file, name, H5P_DEFAULT);
  if (*set >= 0) *space = H5Dget_space(*set);
  return *space < 0 ? -1 : 0;
}

static void close_set(hid_t set, hid_t space) {
  if (space >= 0) H5Sclose(space);
  if (set >= 0) H5Dclose(set);
}

/** Range of elements, write (to NULL) or read. */
static smoe_status flat(hid_t file, const char *name, hid_t type, const void *from, void *to, int64_t first,
                        int64_t n) {
  hid_t set, space;
  herr_t bad = open_set(file, name, &set, &space);
  smoe_status status = SMOE_OK;
  if (bad >= 0) {
    const int64_t size = (int64_t)H5Sget_simple_extent_npoints(space);
    if (first < 0 || n < 0 || first > size || n > size - first)
      status = SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' of '%s' has %lld elements, not %lld from %lld on", name,
                         smoe_h5_path(file), (long long)size, (long long)n, (long long)first);
    else
      bad = move_range(set, space, type, from, to, first, n);
  }
  if (bad < 0)
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot %s '%s' of '%s': %s", to ? "read" : "write", name,
                       smoe_h5_path(file), smoe_h5_error());
  close_set(set, space);
  return status;
}

/** Rectangular part, write (to NULL) or read. */
static smoe_status part(hid_t file, const char *name, hid_t type, const void *from, void *to, int n_dims,
                        const int64_t *first, const int64_t *count) {
  hsize_t start[SMOE_H5_DIMS], counts[SMOE_H5_DIMS], n = 1;
  for (int d = 0; d < n_dims; d++) {
    start[d] = (hsize_t)first[d];
    counts[d] = (hsize_t)count[d];
    n *= counts[d];
  }
  hid_t set, space;
  herr_t bad = open_set(file, name, &set, &space);
  smoe_status status = SMOE_OK;
  if (bad >= 0 && H5Sget_simple_extent_ndims(space) != n_dims)
    status = SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' of '%s' has %d dimensions, not %d", name, smoe_h5_path(file),
                       H5Sget_simple_extent_ndims(space), n_dims);
  else if (bad >= 0 && n > 0) {
    bad = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, counts, NULL);
    if (bad >= 0) bad = transfer(set, space, type, from, to, n);
  }
  if (bad < 0)
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot %s a part of '%s' of '%s': %s", to ? "read" : "write", name,
                       smoe_h5_path(file), smoe_h5_error());
  close_set(set, space);
  return status;
}

smoe_status smoe_h5_write(hid_t file, const char *name, hid_t memory_type, const void *data, int64_t first,
                          int64_t n) {
  return flat(file, name, memory_type, data, NULL, first, n);
}

smoe_status smoe_h5_read(hid_t file, const char *name, hid_t memory_type, void *data, int64_t first,
                         int64_t n) {
  return flat(file, name, memory_type, NULL, data, first, n);
}

smoe_status smoe_h5_write_part(hid_t file, const char *name, hid_t memory_type, const void *data, int n_dims,
                               const int64_t *first, const int64_t *count) {
  return part(file, name, memory_type, data, NULL, n_dims, first, count);
}

smoe_status smoe_h5_read_part(hid_t file, const char *name, hid_t memory_type, void *data, int n_dims,
                              const int64_t *first, const int64_t *count) {
  return part(file, name, memory_type, NULL, data, n_dims, first, count);
}

static char *directory_of(const char *path) {
  const char *slash = strrchr(path, '/');
  if (!slash) return smoe_strdup(".");
  return smoe_sprintf("%.*s", slash == path ? 1 : (int)(slash - path), path);
}

/** fsync of a file or directory by name; 0, or errno. */
static int flush_path(const char *path, int flags) {
  const int descriptor = open(path, flags);
  if (descriptor < 0) return errno;
  const int error = fsync(descriptor) ? errno : 0;
  close(descriptor);
  return error;
}

smoe_status smoe_h5_publish(const char *part_path, const char *path) {
  SMOE_TRY(smoe_h5_seal(part_path));
  return smoe_h5_publish_sealed(part_path, path);
}

smoe_status smoe_h5_publish_sealed(const char *part_path, const char *path) {
  int error = flush_path(part_path, O_RDWR);
  SMOE_CHECK(error == 0, SMOE_ERR_IO, "cannot flush '%s' to the disk: %s", part_path, strerror(error));
  SMOE_CHECK(rename(part_path, path) == 0, SMOE_ERR_IO, "cannot rename '%s' to '%s': %s", part_path, path,
             strerror(errno));
  char *directory = directory_of(path);
  error = flush_path(directory, O_RDONLY | O_DIRECTORY);
  smoe_free(directory);
  /* Some file systems cannot flush directories. */
  if (error == EINVAL || error == ENOTSUP || error == ENOSYS || error == EBADF) error = 0;
  SMOE_CHECK(error == 0, SMOE_ERR_IO, "cannot flush the directory of '%s': %s", path, strerror(error));
  return SMOE_OK;
}
