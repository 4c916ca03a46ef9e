/* The HDF5 helpers, on files of one rank. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/h5.h"

static char directory[512];

static const char *path_of(const char *name) {
  static char path[1024];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

#define CHECK_OK(expression) CHECK((expression) == SMOE_OK, "%s", smoe_last_error())
#define CHECK_FAILS(expression, code, word)                                                                  \
  do {                                                                                                       \
    const smoe_status got_ = (expression);                                                                   \
    CHECK(got_ == (code), "status %d", (int)got_);                                                           \
    CHECK(strstr(smoe_last_error(), (word)), "the report does not say '%s': %s", (word), smoe_last_error()); \
  } while (0)

/** Write ranges in an odd order, read them back whole, in ranges and in boxes. */
static void test_ranges(int n_dims, const int64_t *shape) {
  const char *path = path_of("ranges.h5");
  int64_t n = 1;
  for (int d = 0; d < n_dims; d++) n *= shape[d];
  int32_t *wrote = malloc((size_t)n * sizeof *wrote), *read = calloc((size_t)n, sizeof *read);
  for (int64_t i = 0; i < n; i++) wrote[i] = (int32_t)(i * 2654435761u);
  hid_t file;
  CHECK_OK(smoe_h5_create(&file, path, NULL));
  CHECK_OK(smoe_h5_dataset(file, "a/b/values", H5T_STD_I32LE, n_dims, shape));
  const int64_t cuts[] = {n, n * 7 / 9, n / 2, n / 3, n / 3, n > 4, 0};
  for (size_t c = 0; c + 1 < sizeof cuts / sizeof *cuts; c++)
    CHECK_OK(smoe_h5_write(file, "a/b/values", H5T_NATIVE_INT32, wrote + cuts[c + 1], cuts[c + 1],
                           cuts[c] - cuts[c + 1]));
  CHECK_FAILS(smoe_h5_write(file, "a/b/values", H5T_NATIVE_INT32, wrote, 1, n), SMOE_ERR_FORMAT, "elements");
  CHECK_OK(smoe_h5_close(file));

  CHECK_OK(smoe_h5_open(&file, path));
  CHECK_OK(smoe_h5_read(file, "a/b/values", H5T_NATIVE_INT32, read, 0, n));
  CHECK(memcmp(wrote, read, (size_t)n * sizeof *read) == 0, "%d dimensions", n_dims);
  for (int64_t first = 0; first < n; first += 5) {
    const int64_t m = n - first < 11 ? n - first : 11;
    memset(read, 0, (size_t)n * sizeof *read);
    CHECK_OK(smoe_h5_read(file, "a/b/values", H5T_NATIVE_INT32, read, first, m));
    CHECK(memcmp(wrote + first, read, (size_t)m * sizeof *read) == 0, "%d dimensions, from %lld on", n_dims,
          (long long)first);
  }
  CHECK_OK(smoe_h5_expect(file, "a/b/values", H5T_STD_I32LE, n_dims, shape));
  CHECK_OK(smoe_h5_close(file));
  free(wrote);
  free(read);
}

static void test_parts(void) {
  hid_t file;
  const int64_t shape[2] = {5, 7}, first[2] = {1, 2}, count[2] = {3, 4};
  double whole[35] = {0}, part[12], back[12];
  for (int i = 0; i < 12; i++) part[i] = i + 1;
  CHECK_OK(smoe_h5_create(&file, path_of("parts.h5"), NULL));
  CHECK_OK(smoe_h5_dataset(file, "x", H5T_IEEE_F64LE, 2, shape));
  CHECK_OK(smoe_h5_write(file, "x", H5T_NATIVE_DOUBLE, whole, 0, 35));
  CHECK_OK(smoe_h5_write_part(file, "x", H5T_NATIVE_DOUBLE, part, 2, first, count));
  CHECK_OK(smoe_h5_read(file, "x", H5T_NATIVE_DOUBLE, whole, 0, 35));
  CHECK_OK(smoe_h5_read_part(file, "x", H5T_NATIVE_DOUBLE, back, 2, first, count));
  for (int i = 0; i < 12; i++)
    CHECK(whole[(1 + i / 4) * 7 + 2 + i % 4] == part[i] && back[i] == part[i], "element %d", i);
  CHECK(whole[0] == 0 && whole[34] == 0);
  CHECK_FAILS(smoe_h5_write_part(file, "x", H5T_NATIVE_DOUBLE, part, 2, first, shape), SMOE_ERR_IO, "'x'");
  CHECK_FAILS(smoe_h5_expect(file, "x", H5T_IEEE_F64LE, 2, count), SMOE_ERR_FORMAT, "[5, 7]");
  CHECK_FAILS(smoe_h5_expect(file, "x", H5T_IEEE_F32LE, 2, shape), SMOE_ERR_FORMAT, "4 bytes");
  CHECK_FAILS(smoe_h5_expect(file, "x", H5T_STD_I64LE, 2, shape), SMOE_ERR_FORMAT, "integer");
  CHECK_FAILS(smoe_h5_expect(file, "y", H5T_STD_I64LE, 2, shape), SMOE_ERR_FORMAT, "'y'");
  CHECK_OK(smoe_h5_close(file));
}

static void test_texts(void) {
  hid_t file;
  int64_t i;
  uint64_t u;
  double f;
  char text[32], *document;
  CHECK_OK(smoe_h5_create(&file, path_of("texts.h5"), NULL));
  CHECK_OK(smoe_h5_document(file, "meta/long", strlen("zwölf\nlines\n") + 1));
  CHECK_OK(smoe_h5_write_document(file, "meta/long", "zwölf\nlines\n"));
  CHECK_OK(smoe_h5_set_i64(file, "/", "i", -5));
  CHECK_OK(smoe_h5_set_i64(file, "/", "i", INT64_MIN)); /* over what was there */
  CHECK_OK(smoe_h5_set_u64(file, "meta", "u", UINT64_MAX));
  CHECK_OK(smoe_h5_set_f64(file, "meta/long", "f", 0.1));
  CHECK_OK(smoe_h5_set_text(file, "/", "t", "naïve"));
  CHECK_OK(smoe_h5_set_text(file, "/", "empty", ""));
  CHECK_OK(smoe_h5_close(file));

  CHECK_OK(smoe_h5_open(&file, path_of("texts.h5")));
  CHECK_OK(smoe_h5_get_i64(file, "/", "i", &i));
  CHECK_OK(smoe_h5_get_u64(file, "meta", "u", &u));
  CHECK_OK(smoe_h5_get_f64(file, "meta/long", "f", &f));
  CHECK(i == INT64_MIN && u == UINT64_MAX && f == 0.1);
  CHECK_OK(smoe_h5_get_text(file, "/", "t", text, sizeof text));
  CHECK(strcmp(text, "naïve") == 0, "%s", text);
  CHECK_FAILS(smoe_h5_get_text(file, "/", "t", text, 6), SMOE_ERR_FORMAT, "longer");
  CHECK_OK(smoe_h5_get_text(file, "/", "empty", text, sizeof text));
  CHECK(text[0] == '\0');
  CHECK_FAILS(smoe_h5_get_i64(file, "/", "t", &i), SMOE_ERR_FORMAT, "another type");
  CHECK_FAILS(smoe_h5_get_i64(file, "/", "none", &i), SMOE_ERR_FORMAT, "lacks the attribute 'none'");
  CHECK_OK(smoe_h5_read_document(file, "meta/long", &document));
  CHECK(document && strcmp(document, "zwölf\nlines\n") == 0, "%s", document ? document : "nothing");
  smoe_free(document);
  CHECK_FAILS(smoe_h5_read_document(file, "meta/none", &document), SMOE_ERR_FORMAT, "meta/none");
  CHECK_OK(smoe_h5_close(file));
}

static void test_list(void) {
  hid_t file;
  char **names;
  const char *made[] = {"p/b/w", "p/a/z", "p/a/b/c", "q"};
  const int64_t shape[1] = {3};
  CHECK_OK(smoe_h5_create(&file, path_of("list.h5"), NULL));
  for (int i = 0; i < 4; i++) CHECK_OK(smoe_h5_dataset(file, made[i], H5T_STD_U8LE, 1, shape));
  CHECK_OK(smoe_h5_list(file, "p", &names));
  CHECK(names[0] && strcmp(names[0], "a/b/c") == 0);
  CHECK(names[0] && names[1] && strcmp(names[1], "a/z") == 0);
  CHECK(names[0] && names[1] && names[2] && strcmp(names[2], "b/w") == 0 && !names[3]);
  smoe_h5_list_free(names);
  CHECK_OK(smoe_h5_list(file, "none/of/them", &names));
  CHECK(names[0] == NULL);
  smoe_h5_list_free(names);
  CHECK(smoe_h5_exists(file, "p/a/b") && smoe_h5_exists(file, "q") && !smoe_h5_exists(file, "p/x/b"));
  CHECK_OK(smoe_h5_close(file));
}

/** Files that are none, and places where none can be made. */
static void test_bad_files(void) {
  hid_t file;
  CHECK_FAILS(smoe_h5_open(&file, path_of("none.h5")), SMOE_ERR_IO, "No such file");
  FILE *text = fopen(path_of("text.h5"), "w");
  fputs("not what you think\n", text);
  fclose(text);
  CHECK_FAILS(smoe_h5_open(&file, path_of("text.h5")), SMOE_ERR_FORMAT, "not an HDF5 file");
  CHECK_FAILS(smoe_h5_create(&file, path_of("none/file.h5"), NULL), SMOE_ERR_IO, "none/file.h5");
  struct stat size;
  CHECK(stat(path_of("parts.h5"), &size) == 0);
  CHECK(truncate(path_of("parts.h5"), size.st_size / 2) == 0);
  CHECK_FAILS(smoe_h5_open(&file, path_of("parts.h5")), SMOE_ERR_FORMAT, "truncated");
}

/** What cannot be flushed is reported, and the program still ends well. */
static void test_failed_flush(void) {
  hid_t file;
  int *descriptor;
  CHECK_OK(smoe_h5_create(&file, path_of("full.h5"), NULL));
  for (int i = 0; i < 100; i++) {
    char name[32];
    snprintf(name, sizeof name, "group%d/x", i);
    CHECK_OK(smoe_h5_dataset(file, name, H5T_STD_I64LE, 1, (int64_t[]){10}));
  }
  CHECK(H5Fget_vfd_handle(file, H5P_DEFAULT, (void **)&descriptor) >= 0);
  const int unwritable = open(path_of("full.h5"), O_RDONLY);
  CHECK(dup2(unwritable, *descriptor) >= 0);
  close(unwritable);
  CHECK_FAILS(smoe_h5_close(file), SMOE_ERR_IO, "Bad file descriptor");
}

static void test_publish(void) {
  char part[1024];
  snprintf(part, sizeof part, "%s", path_of("texts.h5"));
  CHECK_OK(smoe_h5_publish(part, path_of("published.h5")));
  CHECK(access(part, F_OK) != 0 && access(path_of("published.h5"), F_OK) == 0);
  CHECK_FAILS(smoe_h5_publish(part, path_of("again.h5")), SMOE_ERR_IO, "texts.h5");
}

int main(void) {
  const char *names[] = {"ranges.h5", "parts.h5", "texts.h5",    "list.h5",
                         "text.h5",   "full.h5",  "published.h5"};
  const char *root = getenv("TMPDIR");
  snprintf(directory, sizeof directory, "%s/test_h5_XXXXXX", root ? root : "/tmp");
  if (!mkdtemp(directory)) return 2;
  test_ranges(0, NULL);
  test_ranges(1, (int64_t[]){100});
  test_ranges(2, (int64_t[]){9, 13});
  test_ranges(2, (int64_t[]){1, 40});
  test_ranges(3, (int64_t[]){4, 5, 6});
  test_ranges(4, (int64_t[]){3, 2, 5, 4});
  test_parts();
  test_texts();
  test_list();
  test_bad_files();
  test_failed_flush();
  test_publish();
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(path_of(names[i]));
  rmdir(directory);
  return test_verdict("h5");
}
