#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/h5.h"

/* A document longer than this is a damaged length, not a text. */
enum { DOCUMENT_MAX = 1 << 26 };

/** A fixed-length UTF-8 string type of `bytes` bytes with the final NUL. */
static hid_t text_type(size_t bytes) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  if (type >= 0 && (H5Tset_size(type, bytes) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)) {
    H5Tclose(type);
    return H5I_INVALID_HID;
  }
  return type;
}

/** Write a scalar attribute over what was there before. */
static smoe_status set(hid_t file, const char *object, const char *name, hid_t file_type, hid_t memory_type,
                       const void *value) {
  const hid_t at = H5Oopen(file, object, H5P_DEFAULT);
  const hid_t space = H5Screate(H5S_SCALAR);
  herr_t bad = at < 0 || space < 0 ? -1 : 0;
  if (bad >= 0 && H5Aexists(at, name) > 0) bad = H5Adelete(at, name);
  const hid_t attribute =
      bad < 0 ? H5I_INVALID_HID : H5Acreate2(at, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT);
  bad = attribute < 0 ? -1 : H5Awrite(attribute, memory_type, value);
  smoe_status status = SMOE_OK;
  if (bad < 0)
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot write the attribute '%s' of '%s' in '%s': %s", name, object,
                       smoe_h5_path(file), smoe_h5_error());
  if (attribute >= 0) H5Aclose(attribute);
  if (space >= 0) H5Sclose(space);
  if (at >= 0) H5Oclose(at);
  return status;
}

smoe_status smoe_h5_set_i64(hid_t file, const char *object, const char *name, int64_t value) {
  return set(file, object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

smoe_status smoe_h5_set_u64(hid_t file, const char *object, const char *name, uint64_t value) {
  return set(file, object, name, H5T_STD_U64LE, H5T_NATIVE_UINT64, &value);
}

smoe_status smoe_h5_set_f64(hid_t file, const char *object, const char *name, double value) {
  return set(file, object, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

smoe_status smoe_h5_set_text(hid_t file, const char *object, const char *name, const char *value) {
  const hid_t type = text_type(strlen(value) + 1);
  SMOE_CHECK(type >= 0, SMOE_ERR_IO, "cannot make a text type: %s", smoe_h5_error());
  const smoe_status status = set(file, object, name, type, type, value);
  H5Tclose(type);
  return status;
}

bool smoe_h5_has_attribute(hid_t file, const char *object, const char *name) {
  return H5Aexists_by_name(file, object, name, H5P_DEFAULT) > 0;
}

/** Open a scalar attribute whose type has this class. */
static smoe_status open_scalar(hid_t file, const char *object, const char *name, H5T_class_t class,
                               hid_t *attribute, hid_t *type) {
  *attribute = H5Aopen_by_name(file, object, name, H5P_DEFAULT, H5P_DEFAULT);
  *type = *attribute < 0 ? H5I_INVALID_HID : H5Aget_type(*attribute);
  const hid_t space = *attribute < 0 ? H5I_INVALID_HID : H5Aget_space(*attribute);
  const bool fine =
      *type >= 0 && space >= 0 && H5Sget_simple_extent_npoints(space) == 1 && H5Tget_class(*type) == class;
  if (space >= 0) H5Sclose(space);
  if (fine) return SMOE_OK;
  const bool there = *attribute >= 0;
  if (*type >= 0) H5Tclose(*type);
  if (there) H5Aclose(*attribute);
  return SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' %s the attribute '%s' of '%s'", smoe_h5_path(file),
                   there ? "has another type for" : "lacks", name, object);
}

/** Read a scalar attribute of a class. */
static smoe_status get(hid_t file, const char *object, const char *name, H5T_class_t class, hid_t memory_type,
                       void *value) {
  hid_t attribute, type;
  SMOE_TRY(open_scalar(file, object, name, class, &attribute, &type));
  const herr_t bad = H5Aread(attribute, memory_type, value);
  H5Tclose(type);
  H5Aclose(attribute);
  SMOE_CHECK(bad >= 0, SMOE_ERR_FORMAT, "cannot read the attribute '%s' of '%s' in '%s': %s", name, object,
             smoe_h5_path(file), smoe_h5_error());
  return SMOE_OK;
}

smoe_status smoe_h5_get_i64(hid_t file, const char *object, const char *name, int64_t *value) {
  return get(file, object, name, H5T_INTEGER, H5T_NATIVE_INT64, value);
}

smoe_status smoe_h5_get_u64(hid_t file, const char *object, const char *name, uint64_t *value) {
  return get(file, object, name, H5T_INTEGER, H5T_NATIVE_UINT64, value);
}

smoe_status smoe_h5_get_f64(hid_t file, const char *object, const char *name, double *value) {
  return get(file, object, name, H5T_FLOAT, H5T_NATIVE_DOUBLE, value);
}

/** Text of an open attribute into memory of smoe_alloc; NULL where that fails.
 *  Python writes texts of variable length, this program those of fixed length.
 */
static char *attribute_text(hid_t attribute, hid_t type) {
  char *text = NULL;
  if (H5Tis_variable_str(type) > 0) {
    char *loose = NULL;
    if (H5Aread(attribute, type, &loose) >= 0 && loose) text = smoe_strdup(loose);
    if (loose) H5free_memory(loose);
    return text;
  }
  text = smoe_alloc(H5Tget_size(type) + 1);
  if (H5Aread(attribute, type, text) >= 0) return text;
  smoe_free(text);
  return NULL;
}

smoe_status smoe_h5_get_text(hid_t file, const char *object, const char *name, char *value, size_t bytes) {
  hid_t attribute, type;
  value[0] = '\0';
  SMOE_TRY(open_scalar(file, object, name, H5T_STRING, &attribute, &type));
  char *text = attribute_text(attribute, type);
  H5Tclose(type);
  H5Aclose(attribute);
  smoe_status status = SMOE_OK;
  if (!text)
    status = SMOE_FAIL(SMOE_ERR_FORMAT, "cannot read the attribute '%s' of '%s' in '%s': %s", name, object,
                       smoe_h5_path(file), smoe_h5_error());
  else if (strlen(text) >= bytes)
    status = SMOE_FAIL(SMOE_ERR_FORMAT, "the attribute '%s' of '%s' in '%s' is longer than %zu bytes", name,
                       object, smoe_h5_path(file), bytes - 1);
  else
    memcpy(value, text, strlen(text) + 1);
  smoe_free(text);
  return status;
}

smoe_status smoe_h5_document(hid_t file, const char *name, size_t bytes) {
  const hid_t type = text_type(bytes);
  SMOE_CHECK(type >= 0, SMOE_ERR_IO, "cannot make a text type: %s", smoe_h5_error());
  const smoe_status status = smoe_h5_dataset(file, name, type, 0, NULL);
  H5Tclose(type);
  return status;
}

smoe_status smoe_h5_write_document(hid_t file, const char *name, const char *text) {
  const hid_t type = text_type(strlen(text) + 1);
  SMOE_CHECK(type >= 0, SMOE_ERR_IO, "cannot make a text type: %s", smoe_h5_error());
  const smoe_status status = smoe_h5_write(file, name, type, text, 0, 1);
  H5Tclose(type);
  return status;
}

smoe_status smoe_h5_read_document(hid_t file, const char *name, char **text) {
  *text = NULL;
  const hid_t data = H5Dopen2(file, name, H5P_DEFAULT);
  const hid_t type = data < 0 ? H5I_INVALID_HID : H5Dget_type(data);
  const bool fine = type >= 0 && H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0;
  const size_t bytes = fine ? H5Tget_size(type) : 0;
  if (type >= 0) H5Tclose(type);
  if (data >= 0) H5Dclose(data);
  SMOE_CHECK(fine && bytes <= DOCUMENT_MAX, SMOE_ERR_FORMAT, "'%s' has no text '%s', or it is damaged",
             smoe_h5_path(file), name);
  const hid_t memory = text_type(bytes + 1);
  SMOE_CHECK(memory >= 0, SMOE_ERR_FORMAT, "the text '%s' of '%s' is damaged", name, smoe_h5_path(file));
  *text = smoe_alloc(bytes + 1);
  const smoe_status status = smoe_h5_read(file, name, memory, *text, 0, 1);
  H5Tclose(memory);
  if (status != SMOE_OK) {
    smoe_free(*text);
    *text = NULL;
  }
  return status;
}
