/* Images and arrays as people have them: PGM, PPM, PNG, IDX, NPY. */
#include <png.h>

#include "data/picture.h"
#include "fuzz.h"
#include "stablemoe/log.h"

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  smoe_log_setup(1, true);
}

void fuzz_seeds(void) {
  static const uint8_t idx[] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4};
  fuzz_seed("idx", idx, sizeof idx);
  fuzz_seed("pgm", "P5\n# c\n2 2\n255\nabcd", 19);
  fuzz_seed("ppm", "P3 1 1 9\n1 2 3\n", 15);
  uint8_t npy[128 + 16] = "\x93NUMPY\1";
  npy[8] = 118;
  memset(npy + 10, ' ', 118);
  memcpy(npy + 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 2), }", 62);
  fuzz_seed("npy", npy, sizeof npy);
  uint8_t png[512];
  size_t bytes = sizeof png;
  png_image image = {.version = PNG_IMAGE_VERSION, .width = 2, .height = 2, .format = PNG_FORMAT_RGB};
  FUZZ_CHECK(png_image_write_to_memory(&image, png, &bytes, 0, "abcdefghijkl", 0, NULL));
  fuzz_seed("png", png, bytes);
}

void fuzz_one(const uint8_t *data, size_t size) {
  smoe_picture picture;
  /* A PNG of a few bytes may promise gigabytes of pixels, which is its right. */
  const bool large = size > 24 && data[0] == 0x89 && (data[16] || data[17] || data[20] || data[21]);
  if (!large && smoe_picture_decode(&picture, data, size, "input") == SMOE_OK) {
    FUZZ_CHECK(picture.height >= 1 && picture.width >= 1 && picture.pixel);
    smoe_free(picture.pixel);
  }
  smoe_array *array = smoe_alloc(sizeof *array);
  if (smoe_array_parse(array, data, size, "input") == SMOE_OK) {
    int64_t count = 1;
    for (int d = 0; d < array->n_dims; d++) count *= array->shape[d];
    FUZZ_CHECK(count == array->count && (array->bytes ? (void *)array->byte : (void *)array->value));
  }
  smoe_arrays_free(array, 1);
}
