#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/h5.h"

/* Nested groups deeper than this are no file of ours (or a loop of links). */
enum { DEPTH_MAX = 16 };

bool smoe_h5_exists(hid_t file, const char *name) {
  char *path = smoe_strdup(name);
  bool there = true;
  for (char *slash = strchr(path + 1, '/'); slash && there; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    there = H5Lexists(file, path, H5P_DEFAULT) > 0;
    *slash = '/';
  }
  there = there && H5Lexists(file, path, H5P_DEFAULT) > 0;
  smoe_free(path);
  return there;
}

static const char *class_name(hid_t type) {
  switch (H5Tget_class(type)) {
  case H5T_INTEGER:
    return H5Tget_sign(type) == H5T_SGN_NONE ? "unsigned integer" : "integer";
  case H5T_FLOAT:
    return "real";
  case H5T_STRING:
    return "text";
  default:
    return "another type";
  }
}

static void shape_text(char *text, size_t bytes, int n_dims, const int64_t *shape) {
  size_t used = (size_t)snprintf(text, bytes, "[");
  for (int d = 0; d < n_dims && used < bytes; d++)
    used += (size_t)snprintf(text + used, bytes - used, "%s%lld", d ? ", " : "", (long long)shape[d]);
  if (used < bytes) snprintf(text + used, bytes - used, "]");
}

smoe_status smoe_h5_shape(hid_t file, const char *name, int *n_dims, int64_t shape[SMOE_H5_DIMS]) {
  hsize_t dims[SMOE_H5_DIMS] = {0};
  const hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
  const hid_t space = set < 0 ? H5I_INVALID_HID : H5Dget_space(set);
  const int n = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
  const bool fine = n >= 0 && n <= SMOE_H5_DIMS && H5Sget_simple_extent_dims(space, dims, NULL) >= 0;
  if (space >= 0) H5Sclose(space);
  if (set >= 0) H5Dclose(set);
  SMOE_CHECK(fine, SMOE_ERR_FORMAT, "'%s' has no dataset '%s', or it is damaged", smoe_h5_path(file), name);
  *n_dims = n;
  for (int d = 0; d < SMOE_H5_DIMS; d++) shape[d] = d < n ? (int64_t)dims[d] : 0;
  return SMOE_OK;
}

static bool is_empty(int n_dims, const int64_t *shape) {
  bool empty = false;
  for (int d = 0; d < n_dims; d++) empty = empty || shape[d] == 0;
  return empty;
}

smoe_status smoe_h5_expect(hid_t file, const char *name, hid_t type, int n_dims, const int64_t *shape) {
  int n;
  int64_t found[SMOE_H5_DIMS];
  SMOE_TRY(smoe_h5_shape(file, name, &n, found));
  bool same = n == n_dims;
  for (int d = 0; d < n && same; d++) same = found[d] == shape[d];
  if (!same) {
    char has[96], wants[96];
    shape_text(has, sizeof has, n, found);
    shape_text(wants, sizeof wants, n_dims, shape);
    return SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' of '%s' has the shape %s, this run needs %s", name,
                     smoe_h5_path(file), has, wants);
  }
  const hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
  const hid_t has = set < 0 ? H5I_INVALID_HID : H5Dget_type(set);
  smoe_status status = SMOE_OK;
  if (has < 0 || H5Tget_class(has) != H5Tget_class(type) || H5Tget_size(has) != H5Tget_size(type) ||
      strcmp(class_name(has), class_name(type)) != 0)
    status = SMOE_FAIL(SMOE_ERR_FORMAT,
                       "'%s' of '%s' has the type %s of %zu bytes, this run needs %s of %zu bytes", name,
                       smoe_h5_path(file), has < 0 ? "nothing" : class_name(has),
                       has < 0 ? 0 : H5Tget_size(has), class_name(type), H5Tget_size(type));
  else if (H5Dget_storage_size(set) == 0 && !is_empty(n, found))
    /* Not even space was taken: to read it gives zeros, of any size that a damaged shape claims. */
    status = SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' of '%s' has no values", name, smoe_h5_path(file));
  if (has >= 0) H5Tclose(has);
  if (set >= 0) H5Dclose(set);
  return status;
}

typedef struct name_list {
  char **name;
  size_t n, room;
  char bad[512]; /**< what could not be opened */
} name_list;

static void list_add(name_list *list, const char *name) {
  if (list->n + 1 >= list->room) {
    list->room *= 2;
    list->name = smoe_realloc(list->name, list->room * sizeof *list->name);
  }
  list->name[list->n++] = smoe_strdup(name);
}

/** Open an object that a hard link of a group leads to: our files have no others, and they may lead
 *  out of the file. A group that several links lead to is refused: it may contain itself, and have
 *  more names than anyone can list.
 */
static hid_t open_linked(hid_t group, const char *link) {
  H5L_info_t info;
  H5O_info_t target;
  if (H5Lget_info(group, link, &info, H5P_DEFAULT) < 0 || info.type != H5L_TYPE_HARD) return H5I_INVALID_HID;
  const hid_t object = H5Oopen(group, link, H5P_DEFAULT);
  if (object < 0) return object;
  if (H5Iget_type(object) != H5I_GROUP) return object;
  if (H5Oget_info2(object, &target, H5O_INFO_BASIC) >= 0 && target.rc == 1) return object;
  H5Oclose(object);
  return H5I_INVALID_HID;
}

/** Add the datasets below a group; prefix is what stands before their names. */
static herr_t list_group(hid_t group, const char *prefix, int depth, name_list *list) {
  H5G_info_t info;
  if (H5Gget_info(group, &info) < 0) return -1;
  herr_t bad = 0;
  for (hsize_t i = 0; i < info.nlinks && bad >= 0; i++) {
    char link[512];
    if (H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, link, sizeof link, H5P_DEFAULT) < 0)
      return -1;
    const hid_t object = depth < DEPTH_MAX ? open_linked(group, link) : H5I_INVALID_HID;
    if (object < 0) {
      snprintf(list->bad, sizeof list->bad, "/%.250s%.250s", prefix, link);
      return -1;
    }
    char *name = smoe_sprintf("%s%s", prefix, link);
    if (H5Iget_type(object) == H5I_DATASET) list_add(list, name);
    if (H5Iget_type(object) == H5I_GROUP) {
      char *below = smoe_sprintf("%s/", name);
      bad = list_group(object, below, depth + 1, list);
      smoe_free(below);
    }
    smoe_free(name);
    H5Oclose(object);
  }
  return bad;
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

smoe_status smoe_h5_list(hid_t file, const char *group_name, char ***names) {
  name_list list = {.name = smoe_alloc(64 * sizeof *list.name), .room = 64};
  *names = list.name;
  if (!smoe_h5_exists(file, group_name)) return SMOE_OK;
  const hid_t group = H5Gopen2(file, group_name, H5P_DEFAULT);
  const herr_t bad = group < 0 ? -1 : list_group(group, "", 0, &list);
  if (group >= 0) H5Gclose(group);
  list.name[list.n] = NULL;
  qsort(list.name, list.n, sizeof *list.name, by_name);
  *names = list.name;
  SMOE_CHECK(bad >= 0, SMOE_ERR_FORMAT, "cannot list '%s%s' of '%s', it is damaged: %s", group_name, list.bad,
             smoe_h5_path(file), smoe_h5_error());
  return SMOE_OK;
}

void smoe_h5_list_free(char **names) {
  for (char **name = names; name && *name; name++) smoe_free(*name);
  smoe_free(names);
}
