/** A directory for the files of a test over ranks, and what looks into it. */
#ifndef STABLEMOE_TEST_FILES_H
#define STABLEMOE_TEST_FILES_H

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/h5.h"

static char test_directory[512];

/** Make the directory. Collective. */
static inline void test_directory_make(const smoe_group *group) {
  const char *root = getenv("TMPDIR");
  snprintf(test_directory, sizeof test_directory, "%s/test_files_XXXXXX", root ? root : "/tmp");
  if (group->rank == 0 && !mkdtemp(test_directory)) CHECK(0, "cannot make a directory below %s", root);
  smoe_group_broadcast(group, test_directory, sizeof test_directory, 0);
}

/** Path below the directory, in memory of smoe_alloc. */
static inline char *test_path(const char *name) {
  return smoe_sprintf("%s/%s", test_directory, name);
}

/** Delete a directory of files and one level of directories. Collective. */
static inline void test_directory_delete(const smoe_group *group, const char *path) {
  smoe_group_barrier(group);
  DIR *entries = group->rank == 0 ? opendir(path) : NULL;
  for (struct dirent *entry; entries && (entry = readdir(entries));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    char *below = smoe_sprintf("%s/%s", path, entry->d_name);
    if (unlink(below) != 0) {
      const smoe_group alone = {MPI_COMM_SELF, 0, 1};
      test_directory_delete(&alone, below);
    }
    smoe_free(below);
  }
  if (entries) {
    closedir(entries);
    rmdir(path);
  }
}

/** Files of a directory whose names end like this. */
static inline int test_count_files(const char *path, const char *end) {
  int n = 0;
  DIR *entries = opendir(path);
  for (struct dirent *entry; entries && (entry = readdir(entries));) {
    const size_t length = strlen(entry->d_name), tail = strlen(end);
    n += length >= tail && strcmp(entry->d_name + length - tail, end) == 0;
  }
  if (entries) closedir(entries);
  return n;
}

static inline void test_copy_file(const char *from, const char *to) {
  char buffer[1 << 16];
  FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
  for (size_t n; in && out && (n = fread(buffer, 1, sizeof buffer, in)) > 0;) fwrite(buffer, 1, n, out);
  CHECK(in && out, "cannot copy '%s' to '%s'", from, to);
  if (in) fclose(in);
  if (out) fclose(out);
}

/** All bytes of a dataset, in the file's own type; *bytes of them. */
static inline char *test_read_bytes(hid_t file, const char *name, size_t *bytes) {
  const hid_t set = H5Dopen2(file, name, H5P_DEFAULT), type = H5Dget_type(set), space = H5Dget_space(set);
  *bytes = H5Tget_size(type) * (size_t)H5Sget_simple_extent_npoints(space);
  char *data = smoe_alloc(*bytes);
  CHECK(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0, "%s", name);
  H5Sclose(space);
  H5Tclose(type);
  H5Dclose(set);
  return data;
}

/** Two files have the same datasets, byte for byte; returns how many. Local. */
static inline int test_same_files(const char *path_a, const char *path_b) {
  hid_t a, b;
  char **names_a, **names_b;
  int n = 0;
  CHECK(smoe_h5_open(&a, path_a) == SMOE_OK && smoe_h5_open(&b, path_b) == SMOE_OK, "%s", smoe_last_error());
  if (a < 0 || b < 0) return 0;
  CHECK(smoe_h5_list(a, "/", &names_a) == SMOE_OK && smoe_h5_list(b, "/", &names_b) == SMOE_OK);
  for (; names_a[n] && names_b[n]; n++) {
    size_t bytes_a, bytes_b;
    CHECK(strcmp(names_a[n], names_b[n]) == 0, "'%s' and '%s'", names_a[n], names_b[n]);
    char *data_a = test_read_bytes(a, names_a[n], &bytes_a),
         *data_b = test_read_bytes(b, names_b[n], &bytes_b);
    CHECK(bytes_a == bytes_b && memcmp(data_a, data_b, bytes_a) == 0, "'%s' differs", names_a[n]);
    smoe_free(data_a);
    smoe_free(data_b);
  }
  CHECK(!names_a[n] && !names_b[n], "one file has more datasets");
  smoe_h5_list_free(names_a);
  smoe_h5_list_free(names_b);
  smoe_h5_close(a);
  smoe_h5_close(b);
  return n;
}

/** Make a fault site fail on a rank at its next pass there. Always the same rank in one program:
 *  the passes through the sites that were asked for are counted together.
 */
static inline void test_fault(const char *site, int rank) {
  static int pass;
  char text[96];
  snprintf(text, sizeof text, "%s@%d#%d", site, rank, ++pass);
  setenv("STABLEMOE_FAULT", text, 1);
}

/** A check that must have one outcome on all ranks, and a report with this word. */
#define CHECK_REFUSED(expression, code, word)                                                                \
  do {                                                                                                       \
    const smoe_status got_ = (expression);                                                                   \
    CHECK(got_ == (code), "status %d: %s", (int)got_, smoe_last_error());                                    \
    CHECK(strstr(smoe_last_error(), (word)), "the report does not say '%s': %s", (word), smoe_last_error()); \
  } while (0)

#define CHECK_OK(expression) CHECK((expression) == SMOE_OK, "%s", smoe_last_error())

#endif
