/* What a program that knows HDF5, and not our format, may do to a file. */
#include <stdio.h>
#include <string.h>

#include "damage.h"
#include "stablemoe/arena.h"

/* Earlier damages may have left nothing of the wanted kind: then there is nothing more to damage. */
enum { TRIES = 1000 };

/** A random dataset of the file; its name goes to target, "" where there is none. */
static void pick(damage_dice *dice, hid_t file, char target[512]) {
  char **names;
  smoe_h5_list(file, "/", &names);
  size_t n = 0;
  while (names[n]) n++;
  snprintf(target, 512, "%s", n ? names[damage_draw(dice, n)] : "");
  smoe_h5_list_free(names);
}

/** A random dataset with at least this many dimensions; negative where there is none. */
static hid_t pick_shaped(damage_dice *dice, hid_t file, char target[512], int n_min, hsize_t *shape,
                         int *n_dims) {
  for (int i = 0; i < TRIES; i++) {
    pick(dice, file, target);
    if (!target[0]) break;
    const hid_t set = H5Dopen2(file, target, H5P_DEFAULT), space = H5Dget_space(set);
    *n_dims = H5Sget_simple_extent_dims(space, shape, NULL);
    H5Sclose(space);
    if (*n_dims >= n_min) return set;
    H5Dclose(set);
  }
  return H5I_INVALID_HID;
}

static void make(hid_t file, const char *name, hid_t type, int n_dims, const hsize_t *shape, bool chunked) {
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  const hsize_t chunk[4] = {1, 1, 1, 1};
  if (chunked) H5Pset_chunk(creation, n_dims, chunk);
  const hid_t space = n_dims ? H5Screate_simple(n_dims, shape, NULL) : H5Screate(H5S_SCALAR);
  H5Dclose(H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT));
  H5Sclose(space);
  H5Pclose(creation);
}

void damage_delete(damage_dice *dice, hid_t file, char target[512]) {
  pick(dice, file, target);
  H5Ldelete(file, target, H5P_DEFAULT);
}

void damage_rename(damage_dice *dice, hid_t file, char target[512]) {
  char name[600];
  pick(dice, file, target);
  snprintf(name, sizeof name, "%s%c", target, (int)('a' + damage_draw(dice, 26)));
  H5Lmove(file, target, file, name, H5P_DEFAULT, H5P_DEFAULT);
}

void damage_reshape(damage_dice *dice, hid_t file, char target[512]) {
  hsize_t shape[8];
  int n_dims;
  const hid_t set = pick_shaped(dice, file, target, 0, shape, &n_dims);
  if (set < 0) return;
  const hid_t type = H5Dget_type(set);
  H5Dclose(set);
  H5Ldelete(file, target, H5P_DEFAULT);
  switch (n_dims ? damage_draw(dice, 4) : 0) {
  case 0: /* one dimension more */
    memmove(shape + 1, shape, sizeof *shape * (size_t)n_dims++);
    shape[0] = 1 + damage_draw(dice, 3);
    break;
  case 1: /* one fewer */
    n_dims--;
    break;
  case 2:
    shape[damage_draw(dice, (uint64_t)n_dims)] += 1 + damage_draw(dice, 4);
    break;
  default:
    shape[damage_draw(dice, (uint64_t)n_dims)] = 0;
  }
  make(file, target, type, n_dims, shape, false);
  H5Tclose(type);
}

void damage_retype(damage_dice *dice, hid_t file, char target[512]) {
  hsize_t shape[8];
  int n_dims;
  const hid_t set = pick_shaped(dice, file, target, 0, shape, &n_dims);
  if (set < 0) return;
  const hid_t was = H5Dget_type(set);
  const hid_t text = H5Tcopy(H5T_C_S1), loose = H5Tcopy(H5T_C_S1), pair = H5Tcreate(H5T_COMPOUND, 16);
  H5Tset_size(text, 1 + damage_draw(dice, 40));
  H5Tset_size(loose, H5T_VARIABLE);
  H5Tinsert(pair, "a", 0, H5T_STD_I64LE);
  H5Tinsert(pair, "b", 8, H5T_IEEE_F64LE);
  const hid_t types[] = {H5T_STD_I32LE, H5T_STD_U64BE, H5T_IEEE_F64LE,  H5T_IEEE_F32BE, H5T_STD_I64LE,
                         H5T_STD_I16LE, H5T_STD_B64LE, H5T_STD_REF_OBJ, text,           loose,
                         pair};
  hid_t type;
  do type = types[damage_draw(dice, sizeof types / sizeof *types)];
  while (H5Tequal(type, was) > 0);
  H5Dclose(set);
  H5Ldelete(file, target, H5P_DEFAULT);
  make(file, target, type, n_dims, shape, false);
  H5Tclose(was);
  H5Tclose(text);
  H5Tclose(loose);
  H5Tclose(pair);
}

void damage_huge(damage_dice *dice, hid_t file, char target[512]) {
  hsize_t shape[8] = {0};
  int n_dims;
  const hid_t set = pick_shaped(dice, file, target, 1, shape, &n_dims);
  if (set < 0) return;
  const hid_t type = H5Dget_type(set);
  H5Dclose(set);
  H5Ldelete(file, target, H5P_DEFAULT);
  shape[damage_draw(dice, (uint64_t)n_dims)] = (hsize_t)1 << (20 + damage_draw(dice, 42));
  make(file, target, type, n_dims, shape, true);
  H5Tclose(type);
}

/** A group, a named type or a link to nowhere where a dataset was. */
void damage_replace(damage_dice *dice, hid_t file, char target[512]) {
  pick(dice, file, target);
  H5Ldelete(file, target, H5P_DEFAULT);
  hid_t type;
  switch (damage_draw(dice, 5)) {
  case 0:
    H5Gclose(H5Gcreate2(file, target, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    break;
  case 1:
    type = H5Tcopy(H5T_STD_I32LE);
    H5Tcommit2(file, target, type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Tclose(type);
    break;
  case 2:
    H5Lcreate_soft("/nowhere/at/all", file, target, H5P_DEFAULT, H5P_DEFAULT);
    break;
  case 3:
    H5Lcreate_soft("/", file, target, H5P_DEFAULT, H5P_DEFAULT);
    break;
  default:
    H5Lcreate_external("none.h5", "/x", file, target, H5P_DEFAULT, H5P_DEFAULT);
  }
}

/** Another dataset under this one's name. */
void damage_relink(damage_dice *dice, hid_t file, char target[512]) {
  char other[512];
  pick(dice, file, target);
  int tries = 0;
  do pick(dice, file, other);
  while (strcmp(other, target) == 0 && tries++ < TRIES);
  H5Ldelete(file, target, H5P_DEFAULT);
  H5Lcreate_hard(file, other, file, target, H5P_DEFAULT, H5P_DEFAULT);
}

/** Bytes of a dataset as they are in the file. */
static unsigned char *read_all(hid_t set, hid_t *type, size_t *bytes) {
  *type = H5Dget_type(set);
  const hid_t space = H5Dget_space(set);
  *bytes = H5Tget_size(*type) * (size_t)H5Sget_simple_extent_npoints(space);
  H5Sclose(space);
  unsigned char *data = smoe_alloc(*bytes);
  H5Dread(set, *type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
  return data;
}

void damage_value(damage_dice *dice, hid_t file, char target[512]) {
  hid_t type;
  size_t bytes;
  pick(dice, file, target);
  if (!target[0]) return;
  const hid_t set = H5Dopen2(file, target, H5P_DEFAULT);
  unsigned char *data = read_all(set, &type, &bytes);
  data[damage_draw(dice, bytes)] ^= (unsigned char)(1 << damage_draw(dice, 8));
  H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
  smoe_free(data);
  H5Tclose(type);
  H5Dclose(set);
}

/** Two rows change places: of an expert parameter that is two experts. */
void damage_swap_rows(damage_dice *dice, hid_t file, char target[512]) {
  hsize_t shape[8];
  int n_dims;
  hid_t set = H5I_INVALID_HID, type;
  for (int i = 0; i < TRIES && set < 0; i++) {
    set = pick_shaped(dice, file, target, 1, shape, &n_dims);
    if (set < 0) return;
    if (shape[0] >= 2) break;
    H5Dclose(set);
    set = H5I_INVALID_HID;
  }
  if (set < 0) return;
  size_t bytes;
  unsigned char *data = read_all(set, &type, &bytes);
  const size_t row = bytes / shape[0];
  const uint64_t a = damage_draw(dice, shape[0]), b = (a + 1 + damage_draw(dice, shape[0] - 1)) % shape[0];
  for (size_t i = 0; i < row; i++) {
    const unsigned char held = data[a * row + i];
    data[a * row + i] = data[b * row + i];
    data[b * row + i] = held;
  }
  H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
  smoe_free(data);
  H5Tclose(type);
  H5Dclose(set);
}

typedef struct attributes {
  char object[64][64], name[64][64];
  int n;
} attributes;

static herr_t note_attribute(hid_t object, const char *name, const H5A_info_t *info, void *context) {
  attributes *list = context;
  (void)info;
  if (list->n == 64) return 1;
  char path[512];
  H5Iget_name(object, path, sizeof path);
  snprintf(list->object[list->n], 64, "%.63s", path);
  snprintf(list->name[list->n++], 64, "%.63s", name);
  return 0;
}

/** A random attribute of the root, a group or a dataset; target is its name. */
static hid_t pick_attribute(damage_dice *dice, hid_t file, char target[512]) {
  static const char *const objects[] = {"/", "/meta", "/train", "/valid", "/test", "/load", "/probe/token"};
  attributes list = {.n = 0};
  for (size_t i = 0; i < sizeof objects / sizeof *objects; i++) {
    if (i > 0 && !smoe_h5_exists(file, objects[i])) continue;
    const hid_t object = H5Oopen(file, objects[i], H5P_DEFAULT);
    H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, NULL, note_attribute, &list);
    H5Oclose(object);
  }
  const uint64_t i = damage_draw(dice, (uint64_t)list.n);
  snprintf(target, 512, "%s", list.name[i]);
  return H5Oopen(file, list.object[i], H5P_DEFAULT);
}

void damage_attribute_delete(damage_dice *dice, hid_t file, char target[512]) {
  const hid_t object = pick_attribute(dice, file, target);
  H5Adelete(object, target);
  H5Oclose(object);
}

/** Another type or shape: texts of every form, one without its final NUL among them. */
void damage_attribute_type(damage_dice *dice, hid_t file, char target[512]) {
  static const char noise[6000] =
      "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
  static const char *const loose_text[4] = {"loose", "of", "variable", "length"};
  const hid_t object = pick_attribute(dice, file, target);
  const hid_t text = H5Tcopy(H5T_C_S1), loose = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, 1 + damage_draw(dice, 5000));
  H5Tset_strpad(text, damage_draw(dice, 2) ? H5T_STR_NULLPAD : H5T_STR_SPACEPAD);
  H5Tset_size(loose, H5T_VARIABLE);
  const hid_t types[] = {H5T_STD_I8LE,  H5T_STD_U64LE, H5T_IEEE_F32LE, H5T_IEEE_F64BE,
                         H5T_STD_I64BE, text,          loose};
  const uint64_t t = damage_draw(dice, sizeof types / sizeof *types);
  const hsize_t shapes[] = {1, 4, 0};
  const uint64_t s = types[t] == text ? 0 : damage_draw(dice, 4);
  const hid_t space = s == 3   ? H5Screate(H5S_SCALAR)
                      : s == 2 ? H5Screate(H5S_NULL)
                               : H5Screate_simple(1, &shapes[s], NULL);
  H5Adelete(object, target);
  const hid_t attribute = H5Acreate2(object, target, types[t], space, H5P_DEFAULT, H5P_DEFAULT);
  if (s != 2) H5Awrite(attribute, types[t], types[t] == loose ? (const void *)loose_text : noise);
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(text);
  H5Tclose(loose);
  H5Oclose(object);
}

/** Whether an attribute is one plain value, and no list of references as dimension scales have. */
static bool is_plain(hid_t attribute, hid_t type) {
  const H5T_class_t class = H5Tget_class(type);
  return (class == H5T_INTEGER || class == H5T_FLOAT || class == H5T_STRING) &&
         H5Tis_variable_str(type) == 0 && H5Aget_storage_size(attribute) == H5Tget_size(type);
}

void damage_attribute_value(damage_dice *dice, hid_t file, char target[512]) {
  hid_t object, attribute, type;
  for (;;) {
    object = pick_attribute(dice, file, target);
    attribute = H5Aopen(object, target, H5P_DEFAULT);
    type = H5Aget_type(attribute);
    if (is_plain(attribute, type)) break;
    H5Tclose(type);
    H5Aclose(attribute);
    H5Oclose(object);
  }
  const size_t bytes = H5Tget_size(type);
  unsigned char *data = smoe_alloc(bytes);
  H5Aread(attribute, type, data);
  data[damage_draw(dice, bytes)] ^= (unsigned char)(1 + damage_draw(dice, 255));
  H5Awrite(attribute, type, data);
  smoe_free(data);
  H5Tclose(type);
  H5Aclose(attribute);
  H5Oclose(object);
}
