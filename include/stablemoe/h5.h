/** Helpers over HDF5, for io/ and data/ only: errors become statuses, handles close once.
 *
 *  Data moves by independent transfers: with Open MPI's own I/O layer a full
 *  disk is silent under collective ones. Best is a file that one rank makes
 *  alone, with everything small in it, and that all then open to write the
 *  data: so nothing but data is at stake when a parallel transfer fails.
 *  A dataset has at most SMOE_H5_DIMS dimensions. Every report names the object,
 *  the file, and the innermost thing HDF5 said.
 */
#ifndef STABLEMOE_H5_H
#define STABLEMOE_H5_H

#include <hdf5.h>

#include "stablemoe/group.h"

enum { SMOE_H5_DIMS = 4 };

/** Bytes in front of the superblock, which hold the seal (doc/file-formats.md). */
enum { SMOE_H5_SEAL_BYTES = 2048 };

/** Make a file that all ranks write. Collective. group NULL: a serial file of this rank.
 *
 *  Objects carry no time stamps, so equal runs make equal files.
 */
smoe_status smoe_h5_create(hid_t *file, const char *path, const smoe_group *group);

/** Open a file for reading with the serial driver, this rank alone, after its seal was checked.
 *
 *  Local.
 *  Errors:  SMOE_ERR_IO where it cannot be read, SMOE_ERR_FORMAT where it is no HDF5 file, or truncated or
 *           damaged anywhere but in the values of datasets that have checksums of their own.
 *           Files without room for a seal (of other programs) are opened as they are.
 */
smoe_status smoe_h5_open(hid_t *file, const char *path);

/** Open a file without looking at its seal: one that is being written, or that was checked before. Local. */
smoe_status smoe_h5_open_unsealed(hid_t *file, const char *path);

/** Compute the seal of a closed file anew and write it. Local. Reads all but the large values. */
smoe_status smoe_h5_seal(const char *path);

/** Compute the seal of a file anew after some of its bytes were changed, without HDF5: a thread may call it while others
 *  call HDF5. Local.
 *  Errors:  SMOE_ERR_IO, also where the file had no seal.
 */
smoe_status smoe_h5_reseal(const char *path);

/** Whether a file begins with a seal, right or wrong: it is one of ours, as it was written. Local. */
bool smoe_h5_is_sealed(const char *path);

/** Check the seal of a file. Local. Errors: as smoe_h5_open. */
smoe_status smoe_h5_check_seal(const char *path);

/** Open a file that is there for all ranks to write data into its datasets; nothing else may change.
 *
 *  Collective.
 */
smoe_status smoe_h5_open_together(hid_t *file, const char *path, const smoe_group *group);

/** Close a file; seal it where this rank alone has written it. Collective where it was made so.
 *  Errors:  what was not flushed is lost.
 */
smoe_status smoe_h5_close(hid_t file);

/** Close a file that was written with this status, and return the status of both: of two errors the first, with its
 *  report. Otherwise as smoe_h5_close.
 */
smoe_status smoe_h5_close_after(hid_t file, smoe_status written);

/** Make a dataset of n_dims dimensions (0: a scalar), with the groups on its way. Collective.
 *  type: of the elements in the file. Space is allocated at once and not filled.
 */
smoe_status smoe_h5_dataset(hid_t file, const char *name, hid_t type, int n_dims, const int64_t *shape);

/** Write n consecutive elements (row-major order of the whole dataset) from element first on.
 *  Local (independent transfer). n may be 0.
 */
smoe_status smoe_h5_write(hid_t file, const char *name, hid_t memory_type, const void *data, int64_t first,
                          int64_t n);

/** Write a rectangular part: count[d] elements from first[d] on. Local (independent transfer). */
smoe_status smoe_h5_write_part(hid_t file, const char *name, hid_t memory_type, const void *data, int n_dims,
                               const int64_t *first, const int64_t *count);

/** Read n consecutive elements from element first on. Local. */
smoe_status smoe_h5_read(hid_t file, const char *name, hid_t memory_type, void *data, int64_t first,
                         int64_t n);

/** Read a rectangular part. Local. */
smoe_status smoe_h5_read_part(hid_t file, const char *name, hid_t memory_type, void *data, int n_dims,
                              const int64_t *first, const int64_t *count);

/** Check that a dataset has this type class, size and shape. Local. Errors: SMOE_ERR_FORMAT, saying both. */
smoe_status smoe_h5_expect(hid_t file, const char *name, hid_t type, int n_dims, const int64_t *shape);

/** Shape of a dataset; n_dims out. Local. */
smoe_status smoe_h5_shape(hid_t file, const char *name, int *n_dims, int64_t shape[SMOE_H5_DIMS]);

/** Whether there is an object of that name, with every group on its way. Local. */
bool smoe_h5_exists(hid_t file, const char *name);

/** Names of all datasets below a group, relative to it, in alphabetical order.
 *
 *  Local.
 *  names  out  NULL-terminated, the list and each name in memory of smoe_alloc;
 *              empty where there is no such group
 */
smoe_status smoe_h5_list(hid_t file, const char *group, char ***names);

/** Give a list of smoe_h5_list or smoe_checkpoint_list back; NULL is fine. Local. */
void smoe_h5_list_free(char **names);

/** Find the bytes of the file that a dataset's values take: *first to *end - 1. Local.
 *  False where they have no place yet, or more than one.
 */
bool smoe_h5_place(hid_t file, const char *name, int64_t *first, int64_t *end);

/** Make a text of `bytes` bytes with its final NUL: a scalar of a fixed-length UTF-8 string. Collective. */
smoe_status smoe_h5_document(hid_t file, const char *name, size_t bytes);

/** Write the text of a document that was made for strlen(text) + 1 bytes. Local. */
smoe_status smoe_h5_write_document(hid_t file, const char *name, const char *text);

/** Read a document; *text in memory of smoe_alloc, NULL on error. Local. */
smoe_status smoe_h5_read_document(hid_t file, const char *name, char **text);

/** Return true if an object has an attribute of that name. Local. */
bool smoe_h5_has_attribute(hid_t file, const char *object, const char *name);

/** Attributes of an object ("/" for the file). Writing is collective, reading local. */
smoe_status smoe_h5_set_i64(hid_t file, const char *object, const char *name, int64_t value);
smoe_status smoe_h5_set_u64(hid_t file, const char *object, const char *name, uint64_t value);
smoe_status smoe_h5_set_f64(hid_t file, const char *object, const char *name, double value);
smoe_status smoe_h5_set_text(hid_t file, const char *object, const char *name, const char *value);
smoe_status smoe_h5_get_i64(hid_t file, const char *object, const char *name, int64_t *value);
smoe_status smoe_h5_get_u64(hid_t file, const char *object, const char *name, uint64_t *value);
smoe_status smoe_h5_get_f64(hid_t file, const char *object, const char *name, double *value);
smoe_status smoe_h5_get_text(hid_t file, const char *object, const char *name, char *value, size_t bytes);

/** Seal a finished file, flush it to the disk (fsync), give it its final name, and flush the directory. Local. */
smoe_status smoe_h5_publish(const char *part, const char *path);

/** The same for a file that is sealed already. Local; without HDF5, as smoe_h5_reseal. */
smoe_status smoe_h5_publish_sealed(const char *part, const char *path);

/** What the last HDF5 call that failed says, for reports; never NULL. Local. */
const char *smoe_h5_error(void);

/** The path of an open file, for reports. Local. */
const char *smoe_h5_path(hid_t file);

#endif
