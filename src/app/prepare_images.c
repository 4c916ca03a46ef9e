#include "prepare_images.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"

const char *const smoe_image_synthetics[] = {"no", "patterns", NULL};

bool smoe_image_words_any(const smoe_image_words *words) {
  return words->synthetic ||
         words->input[SMOE_TRAIN].n + words->input[SMOE_VALID].n + words->input[SMOE_TEST].n > 0;
}

static bool has_patterns(const smoe_image_words *w) {
  return w->patches || w->dimension || w->sets || w->delta_d > -1 || w->delta_r >= 0 || w->spread >= 0;
}

smoe_status smoe_image_words_check(const smoe_image_words *w) {
  const size_t files = w->input[SMOE_TRAIN].n + w->input[SMOE_VALID].n + w->input[SMOE_TEST].n;
  SMOE_CHECK(
      !w->synthetic || (files == 0 && !w->grid && !w->patch && !w->signal && !(w->scale > 0)),
      SMOE_ERR_CONFIG,
      "prepare: --synthetic patterns reads no files: --images, --grid, --signal, --patch and --scale do not "
      "go with it");
  SMOE_CHECK(w->synthetic || w->input[SMOE_TRAIN].n > 0, SMOE_ERR_CONFIG,
             "prepare: no training images are named: --images IMAGES [LABELS]; see prepare --help");
  SMOE_CHECK(w->synthetic || !has_patterns(w), SMOE_ERR_CONFIG,
             "prepare: --patches, --dimension, --sets, --delta-d, --delta-r and --spread are of --synthetic "
             "patterns");
  SMOE_CHECK(w->synthetic || w->grid || !w->samples, SMOE_ERR_CONFIG,
             "prepare: --samples is of --grid and --synthetic patterns");
  SMOE_CHECK(!w->grid == !w->signal, SMOE_ERR_CONFIG,
             "prepare: --grid and --signal go together: --grid 4x4 --signal 0,1");
  for (int s = 0; s < SMOE_SPLITS; s++) {
    SMOE_CHECK(w->input[s].n <= 3, SMOE_ERR_CONFIG, "prepare: images of one split are named twice: '%s'",
               w->input[s].word[3]);
    SMOE_CHECK(w->input[s].n < 3 || !w->input[s].word[2], SMOE_ERR_CONFIG,
               "prepare: '%s' is one file too many: one of images, one of labels", w->input[s].word[2]);
  }
  return SMOE_OK;
}

/* Up to `most` integers with a separator between them. */
static smoe_status read_list(const char *name, const char *text, char separator, int64_t *out, int most,
                             int *n) {
  const char *at = text;
  for (*n = 0; *n < most;) {
    char *end;
    out[*n] = strtoll(at, &end, 10);
    if (end == at || !isdigit((unsigned char)*at) || out[*n] > INT32_MAX) break;
    (*n)++;
    if (!*end) return SMOE_OK;
    if (*end != separator) break;
    at = end + 1;
  }
  return SMOE_FAIL(SMOE_ERR_CONFIG, "prepare: --%s takes integers with '%c' between them, and got '%s'", name,
                   separator, text);
}

/* "7x5", or "7" for both. */
static smoe_status read_pair(const char *name, const char *text, int out[2]) {
  int64_t number[2];
  int n = 0;
  if (!text) return SMOE_OK;
  SMOE_TRY(read_list(name, text, 'x', number, 2, &n));
  if (n == 1) number[1] = number[0];
  SMOE_CHECK(number[0] >= 1 && number[1] >= 1 && number[0] <= SMOE_IMAGE_SIDE_MAX &&
                 number[1] <= SMOE_IMAGE_SIDE_MAX,
             SMOE_ERR_CONFIG, "prepare: --%s takes numbers from 1 to %d, and got '%s'", name,
             SMOE_IMAGE_SIDE_MAX, text);
  out[0] = (int)number[0];
  out[1] = (int)number[1];
  return SMOE_OK;
}

static smoe_status read_patterns(const smoe_image_words *w, smoe_patterns *patterns) {
  if (w->patches) patterns->patches = (int)w->patches;
  if (w->dimension) patterns->dimension = (int)w->dimension;
  if (w->sets) patterns->sets = (int)w->sets;
  if (w->delta_d > -1) patterns->delta_d = w->delta_d;
  if (w->delta_r >= 0) patterns->delta_r = w->delta_r;
  if (w->spread >= 0) patterns->spread = w->spread;
  return SMOE_OK;
}

smoe_status smoe_image_words_read(const smoe_image_words *w, smoe_prepare_images_options *options) {
  int64_t number[SMOE_SIGNALS_MAX];
  int pair[2] = {0, 0}, n = 0;
  for (int s = 0; s < SMOE_SPLITS; s++)
    if (w->input[s].n > 0) options->input[s] = (smoe_image_input){w->input[s].word[0], w->input[s].word[1]};
  options->scale = w->scale;
  SMOE_TRY(read_pair("patch", w->patch, pair));
  options->patch_height = pair[0];
  options->patch_width = pair[1];
  pair[0] = pair[1] = 0;
  SMOE_TRY(read_pair("grid", w->grid, pair));
  options->grid_rows = pair[0];
  options->grid_columns = pair[1];
  if (w->signal) SMOE_TRY(read_list("signal", w->signal, ',', number, SMOE_SIGNALS_MAX, &options->n_signals));
  for (int k = 0; k < options->n_signals; k++) options->signal[k] = (int)number[k];
  if (w->samples) {
    SMOE_TRY(read_list("samples", w->samples, ',', number, SMOE_SPLITS, &n));
    SMOE_CHECK(n == SMOE_SPLITS, SMOE_ERR_CONFIG,
               "prepare: --samples takes the images of three splits (TRAIN,VALID,TEST), and got '%s'",
               w->samples);
    memcpy(options->samples, number, sizeof options->samples);
  }
  options->synthetic = w->synthetic;
  return read_patterns(w, &options->patterns);
}

static void print_split(const smoe_images *images, int s, const char *name) {
  const smoe_image_split *split = &images->split[s];
  int64_t *count = smoe_alloc((size_t)images->n_classes * sizeof *count);
  for (int64_t i = 0; i < split->n; i++) count[split->label[i]]++;
  int64_t least = images->n_classes ? count[0] : 0, most = least;
  for (int c = 0; c < images->n_classes; c++) {
    if (count[c] < least) least = count[c];
    if (count[c] > most) most = count[c];
  }
  smoe_free(count);
  printf("  %-6s %10lld %12lld to %lld\n", name, (long long)split->n, (long long)least, (long long)most);
}

smoe_status smoe_app_print_images(const char *path) {
  static const char *const NAMES[] = {"train", "valid", "test"};
  smoe_images images;
  SMOE_TRY(smoe_images_open_local(&images, path));
  const smoe_image_geometry *g = &images.geometry;
  printf("%s: corpus of images of %d x %d, %d channel%s, %d classes; %d patches of %d x %d (%zu numbers)\n",
         path, g->height, g->width, g->channels, g->channels > 1 ? "s" : "", images.n_classes,
         images.n_patches, g->patch_height, g->patch_width, images.patch_reals);
  printf("  %-6s %10s %24s\n", "split", "images", "images of a class");
  for (int s = 0; s < SMOE_SPLITS; s++) print_split(&images, s, NAMES[s]);
  printf("  train with model.context=%d, and model.width=%zu for model.family=cnn\n", images.n_patches,
         images.patch_reals);
  printf("  fingerprint %016llx\n", (unsigned long long)images.fingerprint);
  smoe_images_close(&images);
  return SMOE_OK;
}
