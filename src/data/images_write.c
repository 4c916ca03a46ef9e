#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "corpus_file.h"
#include "images_file.h"
#include "stablemoe/arena.h"

typedef struct writing {
  smoe_images *images;
  const smoe_image_source *source;
  const char *sources;
  hid_t file;
  float *pixel;    /* [height, width, channels] */
  void *block;     /* [at_once] images as stored */
  int64_t at_once; /* images per transfer */
  XXH64_state_t *hash;
} writing;

/* One image's pixels in the order of patches, as stored. */
static void cut(const smoe_images *images, const float *pixel, void *out) {
  const smoe_image_geometry *g = &images->geometry;
  const int columns = g->width / g->patch_width, run = g->patch_width * g->channels;
  size_t at = 0;
  for (int p = 0; p < images->n_patches; p++)
    for (int y = 0; y < g->patch_height; y++) {
      const size_t row = (size_t)(p / columns * g->patch_height + y) * (size_t)g->width;
      const float *from =
          pixel + (row + (size_t)(p % columns) * (size_t)g->patch_width) * (size_t)g->channels;
      for (int x = 0; x < run; x++, at++)
        if (images->bytes)
          ((uint8_t *)out)[at] = (uint8_t)from[x];
        else
          ((float *)out)[at] = from[x];
    }
}

static smoe_status write_patches(writing *w, smoe_split s, const char *name) {
  smoe_images *images = w->images;
  smoe_image_split *split = &images->split[s];
  const int64_t one = smoe_image_reals(images);
  const int64_t shape[] = {split->n, images->n_patches, (int64_t)images->patch_reals};
  SMOE_TRY(smoe_h5_dataset(w->file, name, smoe_images_file_type(images), 3, shape));
  for (int64_t first = 0; first < split->n; first += w->at_once) {
    const int64_t n = split->n - first < w->at_once ? split->n - first : w->at_once;
    for (int64_t i = 0; i < n; i++) {
      w->source->get(w->source->context, s, first + i, w->pixel, &split->label[first + i],
                     &split->place[first + i]);
      cut(images, w->pixel, (char *)w->block + (size_t)(i * one) * smoe_images_bytes(images));
    }
    SMOE_TRY(smoe_h5_write(w->file, name, smoe_images_memory_type(images), w->block, first * one, n * one));
    XXH64_update(w->hash, w->block, (size_t)(n * one) * smoe_images_bytes(images));
  }
  return SMOE_OK;
}

static smoe_status write_split(writing *w, smoe_split s) {
  smoe_image_split *split = &w->images->split[s];
  char name[64];
  split->label = smoe_alloc((size_t)(split->n + 1) * sizeof *split->label);
  split->place = smoe_alloc((size_t)(split->n + 1) * sizeof *split->place);
  XXH64_update(w->hash, &split->n, sizeof split->n);
  snprintf(name, sizeof name, "/%s/patches", smoe_split_name(s));
  SMOE_TRY(write_patches(w, s, name));
  XXH64_update(w->hash, split->label, (size_t)split->n * sizeof *split->label);
  XXH64_update(w->hash, split->place, (size_t)split->n * sizeof *split->place);
  snprintf(name, sizeof name, "/%s/label", smoe_split_name(s));
  SMOE_TRY(smoe_corpus_put(w->file, name, H5T_STD_I32LE, H5T_NATIVE_INT32, split->label, split->n));
  snprintf(name, sizeof name, "/%s/place", smoe_split_name(s));
  return smoe_corpus_put(w->file, name, H5T_STD_I32LE, H5T_NATIVE_INT32, split->place, split->n);
}

static smoe_status write_about(writing *w) {
  const smoe_images *images = w->images;
  const smoe_image_geometry *g = &images->geometry;
  const struct {
    const char *name;
    int value;
  } sizes[] = {{"format_version", 1},
               {"height", g->height},
               {"width", g->width},
               {"channels", g->channels},
               {"patch_height", g->patch_height},
               {"patch_width", g->patch_width},
               {"classes", images->n_classes},
               {"bytes", images->bytes}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    SMOE_TRY(smoe_h5_set_i64(w->file, "/", sizes[i].name, sizes[i].value));
  SMOE_TRY(smoe_h5_set_f64(w->file, "/", "scale", images->scale));
  SMOE_TRY(smoe_h5_set_u64(w->file, "/", "fingerprint", images->fingerprint));
  SMOE_TRY(smoe_h5_set_text(w->file, "/", "format", "stablemoe-images"));
  SMOE_TRY(smoe_h5_set_text(w->file, "/", "sources", w->sources));
  SMOE_TRY(smoe_h5_document(w->file, "/class_names", strlen(images->class_names) + 1));
  return smoe_h5_write_document(w->file, "/class_names", images->class_names);
}

static smoe_status write_all(writing *w) {
  smoe_images_hash_about(w->images, w->hash);
  for (int s = 0; s < SMOE_SPLITS; s++) SMOE_TRY(write_split(w, s));
  SMOE_CHECK(!smoe_fault("corpus.write"), SMOE_ERR_IO, "cannot write '%s': injected fault",
             smoe_h5_path(w->file));
  w->images->fingerprint = XXH64_digest(w->hash);
  return write_about(w);
}

static smoe_status write_part(writing *w, const char *path) {
  SMOE_TRY(smoe_h5_create(&w->file, path, NULL));
  return smoe_h5_close_after(w->file, write_all(w));
}

/* Read the file again and compare it with what was hashed while it was written. */
static smoe_status verify(const writing *w, const char *path) {
  smoe_images read;
  SMOE_TRY(smoe_images_open_local(&read, path));
  const bool same = read.fingerprint == w->images->fingerprint;
  const smoe_status status = same ? smoe_images_verify_open(&read) : SMOE_ERR_IO;
  smoe_images_close(&read);
  SMOE_CHECK(status == SMOE_OK, SMOE_ERR_IO,
             "what was written to '%s' is not what is read back from it: a bad disk?", path);
  return SMOE_OK;
}

smoe_status smoe_images_write(smoe_images *images, const smoe_image_source *source, const char *output,
                              const char *sources) {
  const int64_t one = smoe_image_reals(images);
  writing w = {.images = images, .source = source, .sources = sources, .hash = XXH64_createState()};
  w.at_once = one < SMOE_CORPUS_BLOCK ? SMOE_CORPUS_BLOCK / one : 1;
  w.pixel = smoe_alloc((size_t)one * sizeof *w.pixel);
  w.block = smoe_alloc((size_t)(w.at_once * one) * smoe_images_bytes(images));
  char *part = smoe_sprintf("%s.part", output);
  smoe_status status = write_part(&w, part);
  if (status == SMOE_OK) status = verify(&w, part);
  if (status == SMOE_OK) status = smoe_h5_publish(part, output);
  if (status != SMOE_OK) unlink(part);
  smoe_free(part);
  smoe_free(w.block);
  smoe_free(w.pixel);
  XXH64_freeState(w.hash);
  return status;
}
