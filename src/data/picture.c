#include "picture.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "stablemoe/arena.h"
#include "stablemoe/images.h"
#include "stablemoe/log.h"
#include "text.h"

/* ---- arrays ---- */

/* An array of an NPZ file by one of its usual names, or by what it looks like. */
static const smoe_array *find(const smoe_array *array, size_t n, const char *const *names, bool labels) {
  for (size_t i = 0; i < n; i++)
    for (size_t k = 0; names[k]; k++)
      if (array[i].name && strcasecmp(array[i].name, names[k]) == 0) return &array[i];
  for (size_t i = 0; i < n; i++)
    if (labels ? array[i].n_dims == 1 && n > 1 : array[i].n_dims >= 3) return &array[i];
  return NULL;
}

static const smoe_array *find_images(const smoe_array *array, size_t n) {
  static const char *const names[] = {"images", "x", "x_train", "data", NULL};
  return find(array, n, names, false);
}

static const smoe_array *find_labels(const smoe_array *array, size_t n) {
  static const char *const names[] = {"labels", "label", "y", "y_train", "target", NULL};
  return find(array, n, names, true);
}

static smoe_status take_labels(smoe_pictures *pictures, const smoe_array *array, const char *path) {
  SMOE_CHECK(array->n_dims == 1, SMOE_ERR_FORMAT,
             "'%s' holds an array of %d dimensions as labels: expected is one number for each image", path,
             array->n_dims);
  SMOE_CHECK(array->count == pictures->n, SMOE_ERR_CONFIG, "'%s' has %lld labels for %lld images", path,
             (long long)array->count, (long long)pictures->n);
  pictures->label = smoe_alloc((size_t)(pictures->n + 1) * sizeof *pictures->label);
  for (int64_t i = 0; i < pictures->n; i++) {
    const double value = array->bytes ? array->byte[i] : array->value[i];
    SMOE_CHECK(value >= 0 && value < SMOE_CLASSES_MAX && value == floor(value), SMOE_ERR_FORMAT,
               "label %lld of '%s' is %g: labels are integers from 0 to %d", (long long)i, path, value,
               SMOE_CLASSES_MAX - 1);
    pictures->label[i] = (int32_t)value;
    if (pictures->label[i] >= pictures->n_classes) pictures->n_classes = pictures->label[i] + 1;
  }
  return SMOE_OK;
}

static smoe_status take_images(smoe_pictures *pictures, const smoe_array *array, const char *path) {
  const int64_t *shape = array->shape;
  SMOE_CHECK(array->n_dims >= 3 && shape[1] >= 1 && shape[2] >= 1 && shape[1] <= SMOE_IMAGE_SIDE_MAX &&
                 shape[2] <= SMOE_IMAGE_SIDE_MAX && (array->n_dims == 3 || (shape[3] >= 1 && shape[3] <= 64)),
             SMOE_ERR_FORMAT,
             "'%s' has no images: expected is an array of [images, height, width] or [images, height, width, "
             "channels]",
             path);
  pictures->n = shape[0];
  pictures->height = (int)shape[1];
  pictures->width = (int)shape[2];
  pictures->channels = array->n_dims == 4 ? (int)shape[3] : 1;
  pictures->bytes = array->bytes;
  pictures->pixel = smoe_alloc((size_t)(array->count + 1) * sizeof *pictures->pixel);
  for (int64_t i = 0; i < array->count; i++) {
    const double value = array->bytes ? array->byte[i] : array->value[i];
    SMOE_CHECK(isfinite(value) && fabs(value) < 1e30, SMOE_ERR_FORMAT, "pixel %lld of '%s' is %g",
               (long long)i, path, value);
    pictures->pixel[i] = (float)value;
  }
  return SMOE_OK;
}

static smoe_status labels_of_file(smoe_pictures *pictures, const char *path) {
  smoe_array *array;
  size_t n;
  smoe_status status = smoe_arrays_read(path, &array, &n);
  const smoe_array *labels = n > 1 ? find_labels(array, n) : array;
  if (status == SMOE_OK)
    status = labels ? take_labels(pictures, labels, path)
                    : SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' has no array of labels", path);
  smoe_arrays_free(array, n);
  return status;
}

static smoe_status read_arrays(smoe_pictures *pictures, const char *path, const char *labels) {
  smoe_array *array;
  size_t n;
  smoe_status status = smoe_arrays_read(path, &array, &n);
  if (status == SMOE_OK) {
    const smoe_array *images = find_images(array, n);
    status = images
                 ? take_images(pictures, images, path)
                 : SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' has no array of images ([images, height, width])", path);
  }
  if (status == SMOE_OK && !labels) {
    const smoe_array *own = find_labels(array, n);
    if (own) status = take_labels(pictures, own, path);
  }
  smoe_arrays_free(array, n);
  SMOE_TRY(status);
  return labels ? labels_of_file(pictures, labels) : SMOE_OK;
}

/* ---- directories ---- */

/* The class of a file: the directory below the one that was named; its length, 0: there is none. */
static size_t class_of(const char *root, const char *path, const char **name) {
  *name = path + strlen(root);
  while (**name == '/') (*name)++;
  const size_t length = strcspn(*name, "/");
  return (*name)[length] ? length : 0;
}

static smoe_status add_class(smoe_pictures *pictures, const char *root, const char *path, int32_t *label) {
  const char *name;
  const size_t length = class_of(root, path, &name);
  SMOE_CHECK(length > 0, SMOE_ERR_CONFIG,
             "'%s' is in no directory of a class: '%s' needs one directory of images for each class", path,
             root);
  *label = pictures->n_classes - 1;
  /* Files come in order of their names, so those of a class follow one another. */
  if (*label >= 0 && strlen(pictures->name[*label]) == length &&
      memcmp(pictures->name[*label], name, length) == 0)
    return SMOE_OK;
  SMOE_CHECK(pictures->n_classes < SMOE_CLASSES_MAX, SMOE_ERR_CONFIG, "'%s' has more than %d classes", root,
             SMOE_CLASSES_MAX);
  pictures->name = smoe_realloc(pictures->name, (size_t)(pictures->n_classes + 1) * sizeof *pictures->name);
  pictures->name[pictures->n_classes] = smoe_sprintf("%.*s", (int)length, name);
  *label = pictures->n_classes++;
  return SMOE_OK;
}

static smoe_status take_picture(smoe_pictures *pictures, const smoe_picture *picture, const char *path,
                                const char *first, int64_t i) {
  if (i == 0) {
    pictures->height = picture->height;
    pictures->width = picture->width;
    pictures->channels = picture->channels;
  }
  SMOE_CHECK(picture->height == pictures->height && picture->width == pictures->width &&
                 picture->channels == pictures->channels,
             SMOE_ERR_FORMAT,
             "'%s' has %d x %d pixels of %d channels, and '%s' %d x %d of %d: all images must have one size; "
             "scale or crop them first",
             path, picture->height, picture->width, picture->channels, first, pictures->height,
             pictures->width, pictures->channels);
  const size_t one = (size_t)pictures->height * (size_t)pictures->width * (size_t)pictures->channels;
  if ((i & (i - 1)) == 0)
    pictures->pixel = smoe_realloc(pictures->pixel, one * (i ? 2 * (size_t)i : 1) * sizeof *pictures->pixel);
  for (size_t j = 0; j < one; j++) pictures->pixel[(size_t)i * one + j] = picture->pixel[j];
  return SMOE_OK;
}

static smoe_status read_files(smoe_pictures *pictures, const char *root, const smoe_text_list *list) {
  SMOE_CHECK(list->n_files > 0, SMOE_ERR_CONFIG, "'%s' has no PGM, PPM or PNG files", root);
  pictures->bytes = true;
  pictures->label = smoe_alloc((list->n_files + 1) * sizeof *pictures->label);
  for (size_t f = 0; f < list->n_files; f++) {
    const char *path = list->file[f].path;
    uint8_t *data;
    size_t bytes;
    smoe_picture picture = {0};
    SMOE_TRY(add_class(pictures, root, path, &pictures->label[f]));
    SMOE_TRY(smoe_file_bytes(path, &data, &bytes));
    smoe_status status = smoe_picture_decode(&picture, data, bytes, path);
    smoe_free(data);
    if (status == SMOE_OK) status = take_picture(pictures, &picture, path, list->file[0].path, (int64_t)f);
    smoe_free(picture.pixel);
    SMOE_TRY(status);
    pictures->n++;
  }
  return SMOE_OK;
}

/* A class whose directory has no images is a mistake more often than a wish. */
static smoe_status check_classes(const smoe_pictures *pictures, const char *root) {
  DIR *directory = opendir(root);
  smoe_status status = SMOE_OK;
  for (struct dirent *entry; directory && (entry = readdir(directory)) && status == SMOE_OK;) {
    char *path = smoe_sprintf("%s/%s", root, entry->d_name);
    struct stat about;
    bool known = entry->d_name[0] == '.' || stat(path, &about) != 0 || !S_ISDIR(about.st_mode);
    for (int c = 0; c < pictures->n_classes; c++) known |= strcmp(pictures->name[c], entry->d_name) == 0;
    if (!known)
      status = SMOE_FAIL(SMOE_ERR_CONFIG,
                         "'%s' has no PGM, PPM or PNG files: a class needs images; remove it", path);
    smoe_free(path);
  }
  if (directory) closedir(directory);
  return status;
}

static smoe_status read_directory(smoe_pictures *pictures, const char *path) {
  smoe_text_list list = {0};
  smoe_status status =
      smoe_text_list_add(&list, path, ".pgm,.ppm,.pnm,.png,.PGM,.PPM,.PNM,.PNG", SMOE_SPLITS);
  if (status == SMOE_OK) status = read_files(pictures, path, &list);
  if (status == SMOE_OK) status = check_classes(pictures, path);
  smoe_text_list_free(&list);
  return status;
}

smoe_status smoe_pictures_read(smoe_pictures *pictures, const char *images, const char *labels) {
  struct stat about;
  *pictures = (smoe_pictures){0};
  const bool directory = stat(images, &about) == 0 && S_ISDIR(about.st_mode);
  SMOE_CHECK(!directory || !labels, SMOE_ERR_CONFIG,
             "'%s' is a directory, whose classes are its directories: leave '%s' out", images, labels);
  SMOE_TRY(directory ? read_directory(pictures, images) : read_arrays(pictures, images, labels));
  SMOE_CHECK(pictures->label, SMOE_ERR_CONFIG, "'%s' has no labels: name their file after it", images);
  SMOE_CHECK(pictures->n > 0, SMOE_ERR_CONFIG, "'%s' has no images", images);
  smoe_note("'%s': %lld images of %d x %d, %d channel%s, %d classes", images, (long long)pictures->n,
            pictures->height, pictures->width, pictures->channels, pictures->channels > 1 ? "s" : "",
            pictures->n_classes);
  return SMOE_OK;
}

void smoe_pictures_release(smoe_pictures *pictures) {
  for (int c = 0; pictures->name && c < pictures->n_classes; c++) smoe_free(pictures->name[c]);
  smoe_free(pictures->name);
  smoe_free(pictures->pixel);
  smoe_free(pictures->label);
  *pictures = (smoe_pictures){0};
}
