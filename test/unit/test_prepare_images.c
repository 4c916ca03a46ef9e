/* Images in every form that is read, grids and patterns with the properties they are for, and what is refused. */
#include "stablemoe/prepare_images.h"

#include <png.h>
#include <sys/stat.h>

#include "harness.h"
#include "stablemoe/log.h"
#include "temporary.h"

enum { N = 24, H = 6, W = 4, CLASSES = 3, BYTES = N * H * W };
static uint8_t pixel[BYTES], label[N];

static void make_numbers(void) {
  for (int i = 0; i < BYTES; i++) pixel[i] = (uint8_t)smoe_random_bits(3, SMOE_RANDOM_TEST, 0, (uint64_t)i);
  for (int i = 0; i < N; i++) {
    label[i] = (uint8_t)(i % CLASSES);
    pixel[i * H * W] = label[i]; /* an image's first pixel tells its class */
  }
}

static const char *idx(const char *name, const void *data, size_t bytes, int n_dims, const uint8_t *dims) {
  uint8_t file[16 + BYTES] = {0, 0, 8, (uint8_t)n_dims};
  size_t at = 4;
  for (int d = 0; d < n_dims; d++, at += 4) file[at + 3] = dims[d];
  memcpy(file + at, data, bytes);
  return test_file(name, file, at + bytes);
}

static const char *idx_images(void) {
  return idx("images.idx", pixel, BYTES, 3, (uint8_t[]){N, H, W});
}

static const char *idx_labels(void) {
  return idx("labels.idx", label, N, 1, (uint8_t[]){N});
}

/* The header is padded so that its length field is one byte. */
static const char *npy(const char *name, const char *dictionary, const void *data, size_t bytes) {
  uint8_t file[256 + 8 * BYTES] = "\x93NUMPY\1";
  file[8] = 118;
  memset(file + 10, ' ', 118);
  memcpy(file + 10, dictionary, strlen(dictionary));
  memcpy(file + 128, data, bytes);
  return test_file(name, file, 128 + bytes);
}

static const char *npy_images(bool fortran) {
  float value[BYTES];
  for (int i = 0; i < N; i++)
    for (int y = 0; y < H; y++)
      for (int x = 0; x < W; x++)
        value[fortran ? i + N * (y + H * x) : (i * H + y) * W + x] = pixel[(i * H + y) * W + x] / 4.0f;
  return npy(fortran ? "f.npy" : "c.npy",
             fortran ? "{'descr': '<f4', 'fortran_order': True, 'shape': (24, 6, 4), }"
                     : "{'descr': '<f4', 'fortran_order': False, 'shape': (24, 6, 4), }",
             value, sizeof value);
}

static const char *npy_labels(void) {
  int64_t value[N];
  for (int i = 0; i < N; i++) value[i] = label[i];
  return npy("l.npy", "{'descr': '<i8', 'fortran_order': False, 'shape': (24,), }", value, sizeof value);
}

static void write_picture(const char *path, int i) {
  const uint8_t *from = pixel + i * H * W;
  if (i % 3 == 0) {
    png_image image = {.version = PNG_IMAGE_VERSION, .width = W, .height = H, .format = PNG_FORMAT_GRAY};
    CHECK(png_image_write_to_file(&image, path, 0, from, 0, NULL));
    return;
  }
  FILE *file = fopen(path, "wb");
  fprintf(file, "%s\n# a comment\n%d %d\n255\n", i % 3 == 1 ? "P5" : "P2", W, H);
  for (int j = 0; j < H * W; j++)
    if (i % 3 == 1)
      fputc(from[j], file);
    else
      fprintf(file, "%d ", from[j]);
  CHECK(fclose(file) == 0);
}

static const char *directory(void) {
  static const char *const ends[] = {"png", "pgm", "pgm"};
  const char *root = test_path("classes");
  mkdir(root, 0777);
  for (int c = 0; c < CLASSES; c++) {
    char *path = smoe_sprintf("%s/%c", root, 'a' + c);
    mkdir(path, 0777);
    smoe_free(path);
  }
  for (int i = 0; i < N; i++) {
    char *path = smoe_sprintf("%s/%c/%02d.%s", root, 'a' + label[i], i, ends[i % 3]);
    write_picture(path, i);
    smoe_free(path);
  }
  return root;
}

static smoe_prepare_images_options options_of(const char *images, const char *labels) {
  smoe_prepare_images_options options = smoe_prepare_images_defaults();
  options.output = test_path("out.h5");
  options.input[SMOE_TRAIN] = (smoe_image_input){images, labels};
  options.valid_share = 0;
  options.test_share = 0.25;
  options.patch_height = 3;
  options.patch_width = 2;
  return options;
}

/* Every image is there once, cut into patches, with its label. */
static void check_images(const smoe_images *images, double scale) {
  bool seen[N] = {false};
  CHECK(images->n_patches == 4 && images->patch_reals == 6 && images->n_classes == CLASSES);
  CHECK(images->split[SMOE_TRAIN].n == 18 && images->split[SMOE_TEST].n == 6);
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int64_t i = 0; i < images->split[s].n; i++) {
      smoe_real patch[H * W];
      smoe_images_read(images, s, i, patch);
      for (int k = 0; k < N; k++) {
        bool same = label[k] == images->split[s].label[i];
        for (int j = 0; j < H * W; j++) {
          const int p = j / 6, y = p / 2 * 3 + j % 6 / 2, x = p % 2 * 2 + j % 2;
          same &= fabs((double)patch[j] - pixel[k * H * W + y * W + x] * scale) <= 1e-6;
        }
        if (same) seen[k] = true;
      }
      CHECK(images->split[s].place[i] == -1);
    }
  for (int k = 0; k < N; k++) CHECK(seen[k], "image %d", k);
}

static void test_forms(void) {
  const struct {
    const char *images, *labels;
    double scale;
  } forms[] = {{idx_images(), idx_labels(), 1 / 255.0},
               {npy_images(false), npy_labels(), 0.25},
               {npy_images(true), idx_labels(), 0.25},
               {directory(), NULL, 1 / 255.0}};
  for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
    const smoe_prepare_images_options options = options_of(forms[f].images, forms[f].labels);
    smoe_images images;
    CHECK(smoe_prepare_images(&options) == SMOE_OK, "%s", smoe_last_error());
    CHECK(smoe_images_open_local(&images, options.output) == SMOE_OK, "%s", smoe_last_error());
    check_images(&images, forms[f].scale);
    CHECK(strcmp(images.class_names, f == 3 ? "a\nb\nc\n" : "0\n1\n2\n") == 0, "%s", images.class_names);
    smoe_images_close(&images);
  }
}

static void test_grid(void) {
  smoe_prepare_images_options options = options_of(idx_images(), idx_labels());
  options.patch_height = options.patch_width = 0;
  options.grid_rows = 2;
  options.grid_columns = 3;
  options.n_signals = 2;
  options.signal[0] = 2;
  options.signal[1] = 0;
  const int64_t samples[] = {40, 0, 10};
  memcpy(options.samples, samples, sizeof samples);
  smoe_images images;
  CHECK(smoe_prepare_images(&options) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_images_open_local(&images, options.output) == SMOE_OK, "%s", smoe_last_error());
  CHECK(images.n_patches == 6 && images.patch_reals == H * W && images.n_classes == 2);
  CHECK(strcmp(images.class_names, "2\n0\n") == 0);
  int places = 0;
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int64_t i = 0; i < images.split[s].n; i++) {
      smoe_real patch[6 * H * W];
      smoe_images_read(&images, s, i, patch);
      const int32_t place = images.split[s].place[i];
      CHECK(images.split[s].label[i] == i % 2 && place >= 0 && place < 6);
      for (int p = 0; p < 6; p++) {
        const int class = (int)(patch[p * H * W] * 255 + (smoe_real)0.5);
        CHECK(class == (p == place ? options.signal[i % 2] : 1), "patch %d is of class %d", p, class);
      }
      places |= 1 << place;
    }
  CHECK(places == 63, "all places occur");
  smoe_images_close(&images);
}

static double inner(const smoe_real *a, const smoe_real *b, int d) {
  double sum = 0;
  for (int j = 0; j < d; j++) sum += (double)a[j] * (double)b[j];
  return sum;
}

static void test_patterns(void) {
  enum { PATCHES = 5, D = 16 };
  smoe_prepare_images_options options = smoe_prepare_images_defaults();
  options.output = test_path("patterns.h5");
  options.synthetic = true;
  options.patterns =
      (smoe_patterns){.patches = PATCHES, .dimension = D, .sets = 3, .delta_d = 0.5, .delta_r = 0.25};
  smoe_images images;
  CHECK(smoe_prepare_images(&options) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_images_open_local(&images, options.output) == SMOE_OK, "%s", smoe_last_error());
  smoe_real class[2][PATCHES * D], patch[PATCHES * D];
  for (int c = 0; c < 2; c++) {
    smoe_images_read(&images, SMOE_TRAIN, c, patch);
    memcpy(class[c], patch + images.split[SMOE_TRAIN].place[c] * D, D * sizeof *patch);
  }
  CHECK_NEAR(inner(class[0], class[1], D), 0.5, 1e-5, 1);
  for (int64_t i = 0; i < 50; i++) {
    smoe_images_read(&images, SMOE_TEST, i, patch);
    for (int p = 0; p < PATCHES; p++) {
      const smoe_real *at = patch + p * D;
      CHECK_NEAR(inner(at, at, D), 1, 1e-5, 1);
      if (p == images.split[SMOE_TEST].place[i])
        CHECK_NEAR(inner(at, class[i % 2], D), 1, 1e-5, 1);
      else
        CHECK(fabs(inner(at, class[0], D)) <= 0.2501 && fabs(inner(at, class[1], D)) <= 0.2501);
    }
  }
  smoe_images_close(&images);
}

static void refuse(const char *what, smoe_prepare_images_options options, const char *word) {
  CHECK(smoe_prepare_images(&options) != SMOE_OK, "%s was accepted", what);
  CHECK(strstr(smoe_last_error(), word), "%s: %s", what, smoe_last_error());
  CHECK(access(options.output, F_OK) != 0, "%s left a file", what);
}

static void test_refused(void) {
  const char *images = idx_images(), *labels = idx_labels();
  smoe_prepare_images_options options = options_of(images, labels);
  options.output = test_path("refused.h5");
  smoe_prepare_images_options o = options;
  o.patch_height = 4;
  refuse("a patch that does not divide", o, "divide");
  o = options;
  o.input[SMOE_TRAIN].labels = idx("few.idx", label, N - 1, 1, (uint8_t[]){N - 1});
  refuse("a label too few", o, "23 labels for 24 images");
  o = options;
  o.input[SMOE_TRAIN].labels = NULL;
  refuse("no labels", o, "no labels");
  uint8_t gap[N];
  for (int i = 0; i < N; i++) gap[i] = label[i] == 1 ? 3 : label[i];
  o = options;
  o.input[SMOE_TRAIN].labels = idx("gap.idx", gap, N, 1, (uint8_t[]){N});
  refuse("a class without images", o, "class 1 has no training images");
  const char *beyond = o.input[SMOE_TRAIN].labels;
  o = options;
  o.input[SMOE_TEST] = (smoe_image_input){images, beyond};
  refuse("a test label beyond the classes", o, "label out of range");
  const int16_t negative[N] = {-1};
  o = options;
  o.input[SMOE_TRAIN].labels = npy("minus.npy", "{'descr': '<i2', 'fortran_order': False, 'shape': (24,), }",
                                   negative, sizeof negative);
  refuse("a negative label", o, "label 0");
  o = options;
  o.input[SMOE_TRAIN].images = idx("cut.idx", pixel, BYTES - 1, 3, (uint8_t[]){N, H, W});
  refuse("a file cut off", o, "cut off");
  o = options;
  o.input[SMOE_TRAIN].images = test_file("text.txt", "hello there", 11);
  refuse("a text", o, "neither");
  o = options;
  o.input[SMOE_TRAIN].images = test_path("absent");
  refuse("no file", o, "absent");
  o = options;
  o.grid_rows = o.grid_columns = 2;
  o.patch_height = o.patch_width = 0;
  o.n_signals = 2;
  o.signal[1] = 3;
  refuse("a signal that is no class", o, "classes 0 to 2");
  o = options;
  o.input[SMOE_TRAIN] = (smoe_image_input){directory(), NULL};
  char *other = smoe_sprintf("%s/c/x.pgm", o.input[SMOE_TRAIN].images);
  FILE *file = fopen(other, "wb");
  fprintf(file, "P5 3 3 255\n123456789");
  fclose(file);
  refuse("images of two sizes", o, "one size");
  unlink(other);
  char *empty = smoe_sprintf("%s/empty", o.input[SMOE_TRAIN].images);
  mkdir(empty, 0777);
  refuse("an empty class", o, "a class needs images");
  rmdir(empty);
  smoe_free(other);
  smoe_free(empty);
}

int main(void) {
  smoe_log_setup(1, true);
  test_directory_make();
  make_numbers();
  test_forms();
  test_grid();
  test_patterns();
  test_refused();
  return test_verdict("prepare_images");
}
