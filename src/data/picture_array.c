/* Arrays in IDX files (MNIST's form), NPY files and NPZ archives of these. */
#include <archive.h>
#include <archive_entry.h>
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "picture.h"
#include "stablemoe/arena.h"
#include "stream.h"

/* The most that is read of one array: what would not fit a machine's memory is damage more often than data. */
#define BYTES_MAX ((size_t)1 << 36)

smoe_status smoe_file_bytes(const char *path, uint8_t **data, size_t *bytes) {
  smoe_stream stream;
  *data = NULL;
  *bytes = 0;
  size_t room = 0, got = 0;
  smoe_status status = smoe_stream_open(&stream, path);
  do {
    if (*bytes + 1 > room) *data = smoe_realloc(*data, room = 2 * room + 65536);
    if (status == SMOE_OK) status = smoe_stream_read(&stream, *data + *bytes, room - *bytes, &got);
    *bytes += got;
  } while (status == SMOE_OK && got > 0 && *bytes < BYTES_MAX);
  smoe_stream_close(&stream);
  if (status != SMOE_OK) {
    smoe_free(*data);
    *data = NULL;
  }
  return status;
}

/* ---- elements ---- */

typedef struct element {
  char kind; /* u, i, f */
  int size;
  bool big;
} element;

static uint64_t bits_of(const uint8_t *at, const element *type) {
  uint64_t bits = 0;
  for (int b = 0; b < type->size; b++) bits = bits << 8 | at[type->big ? b : type->size - 1 - b];
  return bits;
}

static double number(const uint8_t *at, const element *type) {
  const uint64_t bits = bits_of(at, type);
  if (type->kind == 'f' && type->size == 4) {
    const uint32_t half = (uint32_t)bits;
    float value;
    memcpy(&value, &half, sizeof value);
    return (double)value;
  }
  if (type->kind == 'f') {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
  if (type->kind == 'u') return (double)bits;
  const int unused = 64 - 8 * type->size;
  return (double)((int64_t)(bits << unused) >> unused);
}

/* The elements of an array whose shape is known; fortran: the first index runs fastest. */
static smoe_status take_elements(smoe_array *array, const uint8_t *at, size_t bytes, const element *type,
                                 bool fortran, const char *path) {
  int64_t count = 1;
  for (int d = 0; d < array->n_dims; d++) {
    SMOE_CHECK(array->shape[d] >= 0 &&
                   (array->shape[d] == 0 || count <= (int64_t)BYTES_MAX / array->shape[d]),
               SMOE_ERR_FORMAT, "'%s' is damaged: its array is too large", path);
    count *= array->shape[d];
  }
  SMOE_CHECK((size_t)count * (size_t)type->size == bytes, SMOE_ERR_FORMAT,
             "'%s' is damaged or cut off: its header promises %lld numbers of %d bytes, and %zu bytes follow",
             path, (long long)count, type->size, bytes);
  array->count = count;
  array->bytes = type->kind == 'u' && type->size == 1;
  array->integers = type->kind != 'f';
  if (array->bytes)
    array->byte = smoe_alloc((size_t)count + 1);
  else
    array->value = smoe_alloc((size_t)(count + 1) * sizeof *array->value);
  int64_t stride[4] = {1, 1, 1, 1};
  for (int d = 1; d < array->n_dims; d++) stride[d] = stride[d - 1] * array->shape[d - 1];
  for (int64_t i = 0; i < count; i++) {
    int64_t from = i;
    if (fortran) {
      from = 0;
      int64_t rest = i;
      for (int d = array->n_dims - 1; d >= 0; d--) {
        from += rest % array->shape[d] * stride[d];
        rest /= array->shape[d];
      }
    }
    if (array->bytes)
      array->byte[i] = at[from];
    else
      array->value[i] = number(at + (size_t)from * (size_t)type->size, type);
  }
  return SMOE_OK;
}

/* ---- IDX: two zeros, a type, the number of dimensions, sizes and numbers, all big-endian ---- */

static bool idx_type(uint8_t code, element *type) {
  static const struct {
    uint8_t code;
    element type;
  } types[] = {{0x08, {'u', 1, true}}, {0x09, {'i', 1, true}}, {0x0b, {'i', 2, true}},
               {0x0c, {'i', 4, true}}, {0x0d, {'f', 4, true}}, {0x0e, {'f', 8, true}}};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (types[i].code == code) {
      *type = types[i].type;
      return true;
    }
  return false;
}

static smoe_status parse_idx(smoe_array *array, const uint8_t *data, size_t bytes, const char *path) {
  static const element size_type = {'u', 4, true};
  element type;
  const size_t header = 4 + 4 * (size_t)data[3];
  SMOE_CHECK(idx_type(data[2], &type) && data[3] >= 1 && data[3] <= 4 && bytes >= header, SMOE_ERR_FORMAT,
             "'%s' is damaged, or an IDX file of a kind that holds neither images nor labels: type %d, %d "
             "dimensions",
             path, data[2], data[3]);
  array->n_dims = data[3];
  for (int d = 0; d < array->n_dims; d++) array->shape[d] = (int64_t)bits_of(data + 4 + 4 * d, &size_type);
  return take_elements(array, data + header, bytes - header, &type, false, path);
}

/* ---- NPY: a magic, a Python dictionary as text, numbers ---- */

/* The text after 'key': in the dictionary; NULL: it is not there. */
static const char *value_of(const char *dictionary, const char *key) {
  char quoted[32];
  snprintf(quoted, sizeof quoted, "'%s'", key);
  const char *at = strstr(dictionary, quoted);
  if (!at) return NULL;
  at += strlen(quoted);
  while (*at == ' ' || *at == ':') at++;
  return at;
}

static bool npy_shape(smoe_array *array, const char *at) {
  if (!at || *at++ != '(') return false;
  for (array->n_dims = 0; *at != ')';) {
    char *end;
    const long long size = strtoll(at, &end, 10);
    if (end == at || size < 0 || array->n_dims == 4) return false;
    array->shape[array->n_dims++] = size;
    for (at = end; *at == ',' || *at == ' ' || *at == 'L';) at++;
    if (!*at) return false;
  }
  return array->n_dims >= 1;
}

static bool npy_type(const char *at, element *type) {
  if (!at || *at++ != '\'') return false;
  type->big = *at == '>';
  if (!strchr("<>|=", *at) || !*at) return false;
  type->kind = at[1] == 'b' ? 'u' : at[1];
  if (!type->kind || !strchr("uif", type->kind) || !isdigit((unsigned char)at[2]) || at[3] != '\'')
    return false;
  type->size = at[2] - '0';
  return type->kind == 'f' ? type->size == 4 || type->size == 8
                           : type->size == 1 || type->size == 2 || type->size == 4 || type->size == 8;
}

static smoe_status parse_npy(smoe_array *array, const uint8_t *data, size_t bytes, const char *path) {
  static const element two = {'u', 2, false}, four = {'u', 4, false};
  const size_t start = data[6] >= 2 ? 12 : 10;
  SMOE_CHECK(bytes >= start, SMOE_ERR_FORMAT, "'%s' is cut off: it has no header of an NPY file", path);
  const uint64_t length = bits_of(data + 8, start == 12 ? &four : &two);
  SMOE_CHECK(length <= bytes - start && length < 65536, SMOE_ERR_FORMAT,
             "'%s' is damaged: the header of an NPY file of %llu bytes", path, (unsigned long long)length);
  char *dictionary = smoe_alloc((size_t)length + 1);
  memcpy(dictionary, data + start, (size_t)length);
  element type;
  const char *fortran = value_of(dictionary, "fortran_order");
  const bool column = fortran && strncmp(fortran, "True", 4) == 0;
  const bool understood =
      npy_type(value_of(dictionary, "descr"), &type) && npy_shape(array, value_of(dictionary, "shape"));
  smoe_status status = SMOE_OK;
  if (!understood)
    status = SMOE_FAIL(SMOE_ERR_FORMAT,
                       "'%s' holds '%.200s': expected is an array of 1 to 4 dimensions of integers or of "
                       "32- or 64-bit floating-point numbers",
                       path, dictionary);
  smoe_free(dictionary);
  SMOE_TRY(status);
  return take_elements(array, data + start + length, bytes - start - (size_t)length, &type, column, path);
}

smoe_status smoe_array_parse(smoe_array *array, const void *data, size_t bytes, const char *path) {
  const uint8_t *at = data;
  *array = (smoe_array){0};
  if (bytes >= 10 && memcmp(at, "\x93NUMPY", 6) == 0) return parse_npy(array, at, bytes, path);
  if (bytes >= 4 && at[0] == 0 && at[1] == 0) return parse_idx(array, at, bytes, path);
  return SMOE_FAIL(SMOE_ERR_FORMAT,
                   "'%s' is neither an IDX, NPY or NPZ file: images come as one of these, or as a directory "
                   "with one directory of PGM, PPM or PNG files for each class",
                   path);
}

/* ---- NPZ: a zip archive of NPY files ---- */

static smoe_status read_member(struct archive *a, struct archive_entry *entry, smoe_array *array,
                               const char *path) {
  uint8_t *data = NULL;
  size_t bytes = 0, room = 0;
  for (;;) {
    if (bytes == room) data = smoe_realloc(data, room = 2 * room + 65536);
    const la_ssize_t n = archive_read_data(a, data + bytes, room - bytes);
    if (n < 0 || bytes > BYTES_MAX) {
      smoe_free(data);
      return SMOE_FAIL(SMOE_ERR_IO, "cannot read '%s': %s", path,
                       n < 0 ? archive_error_string(a) : "too large");
    }
    if (n == 0) break;
    bytes += (size_t)n;
  }
  const smoe_status status = smoe_array_parse(array, data, bytes, path);
  smoe_free(data);
  SMOE_TRY(status);
  array->name = smoe_strdup(archive_entry_pathname(entry) ? archive_entry_pathname(entry) : "");
  const size_t length = strlen(array->name);
  if (length > 4 && strcmp(array->name + length - 4, ".npy") == 0) array->name[length - 4] = '\0';
  return SMOE_OK;
}

static smoe_status read_npz(struct archive *a, const char *path, smoe_array **array, size_t *n) {
  archive_read_support_format_zip(a);
  if (archive_read_open_filename(a, path, 1 << 18) != ARCHIVE_OK)
    return SMOE_FAIL(SMOE_ERR_IO, "cannot read '%s': %s", path, archive_error_string(a));
  struct archive_entry *entry;
  int got;
  while ((got = archive_read_next_header(a, &entry)) == ARCHIVE_OK) {
    *array = smoe_realloc(*array, (*n + 1) * sizeof **array);
    (*array)[*n] = (smoe_array){0};
    (*n)++;
    SMOE_TRY(read_member(a, entry, &(*array)[*n - 1], path));
  }
  SMOE_CHECK(got == ARCHIVE_EOF, SMOE_ERR_IO, "cannot read '%s': %s", path, archive_error_string(a));
  return SMOE_OK;
}

smoe_status smoe_arrays_read(const char *path, smoe_array **array, size_t *n) {
  uint8_t *data;
  size_t bytes;
  *array = NULL;
  *n = 0;
  if (smoe_stream_is_named(path, ".npz")) {
    struct archive *a = archive_read_new();
    if (!a) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory to read an archive");
    const smoe_status status = read_npz(a, path, array, n);
    archive_read_free(a);
    return status;
  }
  SMOE_TRY(smoe_file_bytes(path, &data, &bytes));
  *array = smoe_alloc(sizeof **array);
  *n = 1;
  const smoe_status status = smoe_array_parse(*array, data, bytes, path);
  smoe_free(data);
  return status;
}

void smoe_arrays_free(smoe_array *array, size_t n) {
  for (size_t i = 0; i < n; i++) {
    smoe_free(array[i].name);
    smoe_free(array[i].value);
    smoe_free(array[i].byte);
  }
  smoe_free(array);
}
