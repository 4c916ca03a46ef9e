#include "stablemoe/images.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "corpus_file.h"
#include "images_file.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"

static hid_t file_of(const smoe_images *images) {
  return *(const hid_t *)images->file;
}

bool smoe_images_measure(smoe_images *images) {
  const smoe_image_geometry *g = &images->geometry;
  if (g->height < 1 || g->width < 1 || g->channels < 1 || g->patch_height < 1 || g->patch_width < 1 ||
      g->height > SMOE_IMAGE_SIDE_MAX || g->width > SMOE_IMAGE_SIDE_MAX || g->channels > 64 ||
      g->height % g->patch_height || g->width % g->patch_width)
    return false;
  const int64_t n = (int64_t)(g->height / g->patch_height) * (g->width / g->patch_width);
  images->n_patches = (int)n;
  images->patch_reals = (size_t)g->patch_height * (size_t)g->patch_width * (size_t)g->channels;
  return n <= INT32_MAX;
}

hid_t smoe_images_file_type(const smoe_images *images) {
  return images->bytes ? H5T_STD_U8LE : H5T_IEEE_F32LE;
}

hid_t smoe_images_memory_type(const smoe_images *images) {
  return images->bytes ? H5T_NATIVE_UINT8 : H5T_NATIVE_FLOAT;
}

size_t smoe_images_bytes(const smoe_images *images) {
  return images->bytes ? 1 : sizeof(float);
}

static smoe_status check_format(hid_t file, const char *path) {
  char format[64] = "";
  int64_t version = 0;
  smoe_h5_get_text(file, "/", "format", format, sizeof format);
  SMOE_CHECK(strcmp(format, "stablemoe-corpus") != 0 && strcmp(format, "stablemoe-pairs") != 0,
             SMOE_ERR_FORMAT,
             "'%s' is a corpus of %s, and the model of model.family reads images: make a corpus of them with "
             "'stablemoe prepare --images IMAGES [LABELS] -o IMAGES.h5', or choose another family",
             path, strcmp(format, "stablemoe-pairs") == 0 ? "sentence pairs" : "text");
  SMOE_CHECK(strcmp(format, "stablemoe-images") == 0, SMOE_ERR_FORMAT,
             "'%s' is an HDF5 file but not a corpus of images: make one with 'stablemoe prepare --images'",
             path);
  SMOE_TRY(smoe_h5_get_i64(file, "/", "format_version", &version));
  SMOE_CHECK(version == 1, SMOE_ERR_FORMAT,
             "the corpus '%s' has format version %lld, this program reads version 1: prepare it again", path,
             (long long)version);
  return SMOE_OK;
}

static smoe_status read_geometry(smoe_images *images, hid_t file) {
  smoe_image_geometry *g = &images->geometry;
  const struct {
    const char *name;
    int *to;
  } sizes[] = {{"height", &g->height},           {"width", &g->width},
               {"channels", &g->channels},       {"patch_height", &g->patch_height},
               {"patch_width", &g->patch_width}, {"classes", &images->n_classes}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    int64_t value = 0;
    SMOE_TRY(smoe_h5_get_i64(file, "/", sizes[i].name, &value));
    SMOE_CHECK(value >= 1 && value <= SMOE_IMAGE_SIDE_MAX, SMOE_ERR_FORMAT,
               "the corpus '%s' is damaged: its %s is %lld", images->path, sizes[i].name, (long long)value);
    *sizes[i].to = (int)value;
  }
  SMOE_CHECK(smoe_images_measure(images) && images->n_classes <= SMOE_CLASSES_MAX, SMOE_ERR_FORMAT,
             "the corpus '%s' is damaged: images of %d x %d x %d with patches of %d x %d, %d classes",
             images->path, g->height, g->width, g->channels, g->patch_height, g->patch_width,
             images->n_classes);
  int64_t bytes = 0;
  SMOE_TRY(smoe_h5_get_i64(file, "/", "bytes", &bytes));
  SMOE_TRY(smoe_h5_get_f64(file, "/", "scale", &images->scale));
  SMOE_CHECK((bytes == 0 || bytes == 1) && isfinite(images->scale) && images->scale > 0, SMOE_ERR_FORMAT,
             "the corpus '%s' is damaged: bytes %lld, scale %g", images->path, (long long)bytes,
             images->scale);
  images->bytes = bytes == 1;
  return SMOE_OK;
}

static smoe_status read_integers(const smoe_images *images, hid_t file, const char *name, int32_t **out,
                                 int64_t n, int32_t least, int32_t end) {
  SMOE_TRY(smoe_h5_expect(file, name, H5T_STD_I32LE, 1, &n));
  *out = smoe_alloc((size_t)(n + 1) * sizeof **out);
  SMOE_TRY(smoe_h5_read(file, name, H5T_NATIVE_INT32, *out, 0, n));
  for (int64_t i = 0; i < n; i++)
    SMOE_CHECK((*out)[i] >= least && (*out)[i] < end, SMOE_ERR_FORMAT,
               "the corpus '%s' is damaged: element %lld of '%s' is %d, not from %d to %d", images->path,
               (long long)i, name, (*out)[i], least, end - 1);
  return SMOE_OK;
}

static smoe_status read_split(smoe_images *images, hid_t file, smoe_split s) {
  smoe_image_split *split = &images->split[s];
  char name[64];
  int n_dims;
  int64_t shape[SMOE_H5_DIMS];
  snprintf(name, sizeof name, "/%s/patches", smoe_split_name(s));
  SMOE_TRY(smoe_h5_shape(file, name, &n_dims, shape));
  split->n = n_dims == 3 ? shape[0] : -1;
  const int64_t expected[] = {split->n, images->n_patches, (int64_t)images->patch_reals};
  SMOE_CHECK(split->n >= 0, SMOE_ERR_FORMAT, "the corpus '%s' is damaged: '%s' has %d dimensions",
             images->path, name, n_dims);
  SMOE_TRY(smoe_h5_expect(file, name, smoe_images_file_type(images), 3, expected));
  snprintf(name, sizeof name, "/%s/label", smoe_split_name(s));
  SMOE_TRY(read_integers(images, file, name, &split->label, split->n, 0, images->n_classes));
  snprintf(name, sizeof name, "/%s/place", smoe_split_name(s));
  return read_integers(images, file, name, &split->place, split->n, -1, images->n_patches);
}

/* All images, where they are few. */
static smoe_status keep(smoe_images *images, hid_t file) {
  const int64_t one = smoe_image_reals(images);
  double bytes = 0;
  for (int s = 0; s < SMOE_SPLITS; s++)
    bytes += (double)images->split[s].n * (double)one * (double)smoe_images_bytes(images);
  if (bytes > SMOE_IMAGES_KEPT) return SMOE_OK;
  for (int s = 0; s < SMOE_SPLITS; s++) {
    smoe_image_split *split = &images->split[s];
    char name[64];
    snprintf(name, sizeof name, "/%s/patches", smoe_split_name(s));
    split->data = smoe_alloc((size_t)(split->n * one + 1) * smoe_images_bytes(images));
    SMOE_TRY(smoe_h5_read(file, name, smoe_images_memory_type(images), split->data, 0, split->n * one));
  }
  return SMOE_OK;
}

static smoe_status read_about(smoe_images *images, hid_t file) {
  SMOE_TRY(check_format(file, images->path));
  SMOE_TRY(smoe_h5_get_u64(file, "/", "fingerprint", &images->fingerprint));
  SMOE_TRY(read_geometry(images, file));
  SMOE_TRY(smoe_h5_read_document(file, "/class_names", &images->class_names));
  int lines = 0;
  for (const char *at = images->class_names; *at; at++) lines += *at == '\n';
  SMOE_CHECK(lines == images->n_classes, SMOE_ERR_FORMAT,
             "the corpus '%s' is damaged: '/class_names' has %d of %d classes", images->path, lines,
             images->n_classes);
  for (int s = 0; s < SMOE_SPLITS; s++) SMOE_TRY(read_split(images, file, s));
  return keep(images, file);
}

static const smoe_corpus_words words = {"stablemoe prepare --images", " IMAGES [LABELS]", "corpus of images",
                                        "images"};

smoe_status smoe_images_open_local(smoe_images *images, const char *path) {
  *images = (smoe_images){0};
  SMOE_TRY(smoe_corpus_open_file(&images->file, images->path, sizeof images->path, path, &words));
  const smoe_status status = read_about(images, file_of(images));
  if (status != SMOE_OK) {
    /* Closing may fail again, and the first report says more. */
    char *report = smoe_strdup(smoe_last_error());
    smoe_images_close(images);
    smoe_report_set(report);
    smoe_free(report);
  }
  return status;
}

smoe_status smoe_images_open(smoe_images *images, const smoe_group *group, const char *path) {
  smoe_status status = smoe_group_agree(group, smoe_images_open_local(images, path));
  if (status == SMOE_OK) status = smoe_corpus_check_same(group, images->fingerprint, path, &words);
  if (status != SMOE_OK) smoe_images_close(images);
  return status;
}

void smoe_images_close(smoe_images *images) {
  if (images->file) smoe_h5_close(file_of(images));
  smoe_free(images->file);
  smoe_free(images->class_names);
  images->file = NULL;
  images->class_names = NULL;
  for (int s = 0; s < SMOE_SPLITS; s++) {
    smoe_free(images->split[s].label);
    smoe_free(images->split[s].place);
    smoe_free(images->split[s].data);
    images->split[s] = (smoe_image_split){0};
  }
}

void smoe_images_read(const smoe_images *images, smoe_split split, int64_t i, smoe_real *patch) {
  const smoe_image_split *from = &images->split[split];
  if (i < 0 || i >= from->n)
    SMOE_PANIC(SMOE_ERR_BUG, "image %lld is outside the split %s of '%s', which has %lld", (long long)i,
               smoe_split_name(split), images->path, (long long)from->n);
  if (smoe_fault("corpus.read"))
    SMOE_PANIC(SMOE_ERR_IO, "cannot read image %lld of '%s': injected fault", (long long)i, images->path);
  const size_t one = (size_t)smoe_image_reals(images), size = smoe_images_bytes(images);
  void *taken = NULL;
  const char *data = from->data;
  if (!data) {
    char name[64];
    snprintf(name, sizeof name, "/%s/patches", smoe_split_name(split));
    taken = smoe_alloc(one * size);
    if (smoe_h5_read(file_of(images), name, smoe_images_memory_type(images), taken, i * (int64_t)one,
                     (int64_t)one) != SMOE_OK)
      SMOE_PANIC(SMOE_ERR_IO, "%s", smoe_last_error());
    data = taken;
  } else {
    data += (size_t)i * one * size;
  }
  if (images->bytes)
    for (size_t j = 0; j < one; j++) patch[j] = (smoe_real)(((const uint8_t *)data)[j] * images->scale);
  else
    for (size_t j = 0; j < one; j++)
      patch[j] = (smoe_real)((double)((const float *)(const void *)data)[j] * images->scale);
  smoe_free(taken);
}

/* ---- the fingerprint ---- */

void smoe_images_hash_about(const smoe_images *images, XXH64_state_t *hash) {
  const smoe_image_geometry *g = &images->geometry;
  const int32_t about[] = {g->height,      g->width,          g->channels,  g->patch_height,
                           g->patch_width, images->n_classes, images->bytes};
  XXH64_reset(hash, 0);
  XXH64_update(hash, about, sizeof about);
  XXH64_update(hash, &images->scale, sizeof images->scale);
}

static smoe_status hash_data(const smoe_images *images, smoe_split s, XXH64_state_t *hash, void *buffer,
                             int64_t images_at_once) {
  const int64_t one = smoe_image_reals(images), n = images->split[s].n;
  char name[64];
  snprintf(name, sizeof name, "/%s/patches", smoe_split_name(s));
  for (int64_t i = 0; i < n; i += images_at_once) {
    const int64_t count = (n - i < images_at_once ? n - i : images_at_once) * one;
    SMOE_TRY(smoe_h5_read(file_of(images), name, smoe_images_memory_type(images), buffer, i * one, count));
    XXH64_update(hash, buffer, (size_t)count * smoe_images_bytes(images));
  }
  return SMOE_OK;
}

smoe_status smoe_images_verify_open(const smoe_images *images) {
  const int64_t one = smoe_image_reals(images);
  const int64_t at_once = one < SMOE_CORPUS_BLOCK ? SMOE_CORPUS_BLOCK / one : 1;
  void *buffer = smoe_alloc((size_t)(at_once * one) * smoe_images_bytes(images));
  XXH64_state_t *hash = XXH64_createState();
  smoe_images_hash_about(images, hash);
  smoe_status status = SMOE_OK;
  for (int s = 0; s < SMOE_SPLITS && status == SMOE_OK; s++) {
    const smoe_image_split *split = &images->split[s];
    const size_t n = (size_t)split->n;
    XXH64_update(hash, &split->n, sizeof split->n);
    status = hash_data(images, s, hash, buffer, at_once);
    XXH64_update(hash, split->label, n * sizeof *split->label);
    XXH64_update(hash, split->place, n * sizeof *split->place);
  }
  if (status == SMOE_OK && XXH64_digest(hash) != images->fingerprint)
    status = SMOE_FAIL(
        SMOE_ERR_FORMAT,
        "the corpus '%s' is damaged: its images are not those of its fingerprint; take a valid copy, or "
        "prepare it again",
        images->path);
  XXH64_freeState(hash);
  smoe_free(buffer);
  return status;
}

smoe_status smoe_images_verify(const char *path) {
  smoe_images images;
  SMOE_TRY(smoe_images_open_local(&images, path));
  const smoe_status status = smoe_images_verify_open(&images);
  smoe_images_close(&images);
  return status;
}

smoe_status smoe_images_check(const smoe_images *images, const smoe_group *group) {
  double n = 0;
  for (int s = 0; s < SMOE_SPLITS; s++) n += (double)images->split[s].n * (double)smoe_image_reals(images);
  if (n > SMOE_CORPUS_CHECKED) {
    smoe_note(
        "'%s' is large: its images are not compared with their fingerprint; `stablemoe info --verify` does",
        images->path);
    return SMOE_OK;
  }
  const bool mine = smoe_corpus_first_of_node(group) && smoe_h5_is_sealed(images->path);
  return smoe_group_agree(group, mine ? smoe_images_verify_open(images) : SMOE_OK);
}
