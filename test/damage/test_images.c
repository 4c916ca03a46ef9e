/* A damaged corpus of images is refused when it is opened, ends the run when it is read, or gives its images. */
#include <string.h>

#include "damage.h"
#include "harness.h"
#include "stablemoe/log.h"
#include "stablemoe/prepare_images.h"
#include "temporary.h"

static smoe_images sound;

static bool same_split(const smoe_images *images, smoe_split s) {
  const smoe_image_split *split = &images->split[s], *other = &sound.split[s];
  const size_t n = (size_t)other->n, one = (size_t)sound.n_patches * sound.patch_reals;
  bool same = split->n == other->n && memcmp(split->label, other->label, n * sizeof *split->label) == 0 &&
              memcmp(split->place, other->place, n * sizeof *split->place) == 0;
  smoe_real *a = smoe_alloc(one * sizeof *a), *b = smoe_alloc(one * sizeof *b);
  for (int64_t i = 0; i < other->n && same; i++) {
    smoe_images_read(images, s, i, a);
    smoe_images_read(&sound, s, i, b);
    same = memcmp(a, b, one * sizeof *a) == 0;
  }
  smoe_free(a);
  smoe_free(b);
  return same;
}

static damage_outcome read_images(const char *path) {
  smoe_images images;
  if (smoe_images_open_local(&images, path) != SMOE_OK) return DAMAGE_REFUSED;
  bool same = memcmp(&images.geometry, &sound.geometry, sizeof sound.geometry) == 0 &&
              images.n_classes == sound.n_classes && images.fingerprint == sound.fingerprint &&
              strcmp(images.class_names, sound.class_names) == 0;
  for (int s = 0; s < SMOE_SPLITS && same; s++) same = same_split(&images, s);
  smoe_images_close(&images);
  if (smoe_images_verify(path) != SMOE_OK) return DAMAGE_REFUSED;
  return same ? DAMAGE_SAME : DAMAGE_DIFFERENT;
}

static const damage_kind raw_kinds[] = {
    {"1 to 8 bytes", 24, .bytes = damage_flip},
    {"1 to 8 bytes at the front", 16, .bytes = damage_flip_head},
    {"cut off", 16, .bytes = damage_truncate},
    {"sector of noise", 12, .bytes = damage_noise_sector},
    {"attribute changed", 10, .structure = damage_attribute_value},
    {"dataset deleted", 8, .structure = damage_delete},
};

static const damage_kind sealed_kinds[] = {
    {"dataset deleted", 12, .structure = damage_delete, .sealed = true, .may_differ = true},
    {"dataset of another shape", 24, .structure = damage_reshape, .sealed = true, .may_differ = true},
    {"dataset of another type", 24, .structure = damage_retype, .sealed = true, .may_differ = true},
    {"dataset of wild size", 24, .structure = damage_huge, .sealed = true, .may_differ = true},
    {"attribute deleted", 16, .structure = damage_attribute_delete, .sealed = true, .may_differ = true,
     .any_words = true},
    {"attribute of another type", 16, .structure = damage_attribute_type, .sealed = true, .may_differ = true,
     .any_words = true},
    {"attribute changed", 24, .structure = damage_attribute_value, .sealed = true, .may_differ = true,
     .any_words = true},
};

int main(int argc, char **argv) {
  smoe_log_setup(1, true);
  test_directory_make();
  smoe_prepare_images_options options = smoe_prepare_images_defaults();
  options.output = test_path("images.h5");
  options.synthetic = true;
  const int64_t samples[] = {40, 7, 20};
  memcpy(options.samples, samples, sizeof samples);
  CHECK(smoe_prepare_images(&options) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_images_open_local(&sound, options.output) == SMOE_OK, "%s", smoe_last_error());
  damage_test test = {"images",    options.output,           raw_kinds, sizeof raw_kinds / sizeof *raw_kinds,
                      read_images, .panic_code = SMOE_ERR_IO};
  CHECK(read_images(test.path) == DAMAGE_SAME, "%s", smoe_last_error());
  int n_wrong = damage_run(&test, argc, argv);
  test.name = "images, sealed again";
  test.kinds = sealed_kinds;
  test.n_kinds = sizeof sealed_kinds / sizeof *sealed_kinds;
  n_wrong += damage_run(&test, argc, argv);
  smoe_images_close(&sound);
  CHECK(n_wrong == 0, "%d damages went wrong", n_wrong);
  return test_verdict("damage of corpora of images");
}
