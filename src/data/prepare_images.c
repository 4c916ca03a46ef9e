#include "stablemoe/prepare_images.h"

#include <stdio.h>
#include <string.h>

#include "image_grid.h"
#include "images_file.h"
#include "picture.h"
#include "spool.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/random.h"

smoe_prepare_images_options smoe_prepare_images_defaults(void) {
  return (smoe_prepare_images_options){
      .valid_share = 0.1,
      .test_share = 0.2,
      .seed = 1,
      .samples = {1000, 200, 1000},
      .patterns = {.patches = 16, .dimension = 64, .sets = 8, .spread = 0.1},
  };
}

/** Everything of one preparation. */
typedef struct preparation {
  const smoe_prepare_images_options *options;
  smoe_pictures pictures[SMOE_SPLITS]; /* that a split's images are of; a share is of those of training */
  const smoe_pictures *from[SMOE_SPLITS];
  int64_t *chosen[SMOE_SPLITS]; /* [n_chosen] */
  int64_t n_chosen[SMOE_SPLITS];
  smoe_image_pool pool[SMOE_SPLITS];
  double *vector; /* of patterns */
  smoe_images images;
} preparation;

static smoe_split split_of(int s) {
  return (smoe_split)s;
}

/* ---- splits ---- */

static void choose_all(preparation *p, smoe_split s) {
  p->from[s] = &p->pictures[s];
  p->n_chosen[s] = p->pictures[s].n;
  p->chosen[s] = smoe_alloc((size_t)(p->n_chosen[s] + 1) * sizeof *p->chosen[s]);
  for (int64_t i = 0; i < p->n_chosen[s]; i++) p->chosen[s][i] = i;
}

/* The training images in a random order: first those of the test, then of validation, then the rest. */
static smoe_status choose_shares(preparation *p) {
  const smoe_prepare_images_options *o = p->options;
  const int64_t n = p->pictures[SMOE_TRAIN].n;
  const double share[SMOE_SPLITS] = {[SMOE_VALID] = o->valid_share, [SMOE_TEST] = o->test_share};
  static const smoe_split order[] = {SMOE_TEST, SMOE_VALID, SMOE_TRAIN};
  int64_t at = 0;
  for (int k = 0; k < SMOE_SPLITS; k++) {
    const smoe_split s = order[k];
    if (s != SMOE_TRAIN && o->input[s].images) continue;
    const int64_t wanted = (int64_t)((double)n * share[s] + 0.5);
    const int64_t count = s == SMOE_TRAIN || wanted > n - at ? n - at : wanted;
    p->from[s] = &p->pictures[SMOE_TRAIN];
    p->n_chosen[s] = count;
    p->chosen[s] = smoe_alloc((size_t)(count + 1) * sizeof *p->chosen[s]);
    for (int64_t i = 0; i < count; i++, at++)
      p->chosen[s][i] =
          (int64_t)smoe_random_permute(o->seed, SMOE_RANDOM_SPLIT, 0, (uint64_t)n, (uint64_t)at);
  }
  SMOE_CHECK(p->n_chosen[SMOE_TRAIN] > 0, SMOE_ERR_CONFIG,
             "no images are left for training: --valid %g and --test %g of %lld", o->valid_share,
             o->test_share, (long long)n);
  return SMOE_OK;
}

static smoe_status same_size(const preparation *p, smoe_split s) {
  const smoe_pictures *a = &p->pictures[SMOE_TRAIN], *b = &p->pictures[s];
  SMOE_CHECK(
      a->height == b->height && a->width == b->width && a->channels == b->channels, SMOE_ERR_CONFIG,
      "'%s' has images of %d x %d, %d channels, and '%s' of %d x %d, %d: all splits must have one size",
      p->options->input[s].images, b->height, b->width, b->channels, p->options->input[SMOE_TRAIN].images,
      a->height, a->width, a->channels);
  SMOE_CHECK(b->n_classes <= a->n_classes, SMOE_ERR_CONFIG,
             "label out of range: '%s' has label %d, and the training images have classes 0 to %d",
             p->options->input[s].images, b->n_classes - 1, a->n_classes - 1);
  for (int c = 0; c < b->n_classes && a->name && b->name; c++)
    SMOE_CHECK(strcmp(a->name[c], b->name[c]) == 0, SMOE_ERR_CONFIG,
               "'%s' and '%s' have different classes: number %d is '%s' and '%s'",
               p->options->input[SMOE_TRAIN].images, p->options->input[s].images, c, a->name[c], b->name[c]);
  return SMOE_OK;
}

static smoe_status check_classes(const preparation *p) {
  const smoe_pictures *pictures = &p->pictures[SMOE_TRAIN];
  int64_t *count = smoe_alloc((size_t)pictures->n_classes * sizeof *count);
  for (int64_t i = 0; i < p->n_chosen[SMOE_TRAIN]; i++) count[pictures->label[p->chosen[SMOE_TRAIN][i]]]++;
  int missing = -1;
  for (int c = 0; c < pictures->n_classes; c++)
    if (count[c] == 0 && missing < 0) missing = c;
  smoe_free(count);
  SMOE_CHECK(missing < 0, SMOE_ERR_CONFIG,
             "class %d has no training images: labels must be 0 to %d, each with at least one", missing,
             pictures->n_classes - 1);
  SMOE_CHECK(pictures->n_classes >= 2, SMOE_ERR_CONFIG, "'%s' has one class: there is nothing to tell apart",
             p->options->input[SMOE_TRAIN].images);
  return SMOE_OK;
}

static smoe_status read_inputs(preparation *p) {
  const smoe_prepare_images_options *o = p->options;
  for (int s = 0; s < SMOE_SPLITS; s++) {
    if (!o->input[s].images) continue;
    SMOE_TRY(smoe_pictures_read(&p->pictures[s], o->input[s].images, o->input[s].labels));
    if (s != SMOE_TRAIN) {
      SMOE_TRY(same_size(p, split_of(s)));
      choose_all(p, split_of(s));
    }
  }
  if (o->input[SMOE_VALID].images && o->input[SMOE_TEST].images)
    choose_all(p, SMOE_TRAIN);
  else
    SMOE_TRY(choose_shares(p));
  return check_classes(p);
}

/* ---- grids ---- */

static smoe_status check_grid(preparation *p) {
  const smoe_prepare_images_options *o = p->options;
  const smoe_pictures *pictures = &p->pictures[SMOE_TRAIN];
  SMOE_CHECK(o->n_signals >= 2 && o->n_signals < pictures->n_classes, SMOE_ERR_CONFIG,
             "--signal names %d classes of %d: a grid needs two or more to tell apart, and others to fill it",
             o->n_signals, pictures->n_classes);
  for (int k = 0; k < o->n_signals; k++)
    SMOE_CHECK(o->signal[k] >= 0 && o->signal[k] < pictures->n_classes, SMOE_ERR_CONFIG,
               "--signal %d: the images have classes 0 to %d", o->signal[k], pictures->n_classes - 1);
  for (int s = 0; s < SMOE_SPLITS; s++) {
    smoe_image_pool *pool = &p->pool[s];
    smoe_image_pool_make(pool, p->from[s], p->chosen[s], p->n_chosen[s], o->signal, o->n_signals);
    for (int k = 0; k < o->n_signals && o->samples[s] > 0; k++)
      SMOE_CHECK(pool->first[o->signal[k] + 1] > pool->first[o->signal[k]] && pool->n_others > 0,
                 SMOE_ERR_CONFIG, "the %s split has no images of class %d, or none to fill the grids",
                 smoe_split_name(split_of(s)), o->signal[k]);
  }
  return SMOE_OK;
}

/* ---- the corpus ---- */

static void get_picture(void *context, smoe_split s, int64_t i, float *pixel, int32_t *label,
                        int32_t *place) {
  const preparation *p = context;
  const smoe_pictures *from = p->from[s];
  const size_t one = (size_t)from->height * (size_t)from->width * (size_t)from->channels;
  memcpy(pixel, from->pixel + (size_t)p->chosen[s][i] * one, one * sizeof *pixel);
  *label = from->label[p->chosen[s][i]];
  *place = -1;
}

static void get_grid(void *context, smoe_split s, int64_t i, float *pixel, int32_t *label, int32_t *place) {
  const preparation *p = context;
  smoe_image_grid(&p->pool[s], p->options, s, i, pixel, label, place);
}

static void get_pattern(void *context, smoe_split s, int64_t i, float *pixel, int32_t *label,
                        int32_t *place) {
  const preparation *p = context;
  smoe_pattern_image(&p->options->patterns, p->vector, p->options->seed, s, i, pixel, label, place);
}

static char *names_of(const smoe_pictures *pictures, const int *class, int n) {
  char *text = smoe_strdup("");
  for (int k = 0; k < n; k++) {
    const int c = class ? class[k] : k;
    char *longer = pictures && pictures->name ? smoe_sprintf("%s%s\n", text, pictures->name[c])
                                              : smoe_sprintf("%s%d\n", text, c);
    smoe_free(text);
    text = longer;
  }
  return text;
}

static void describe_files(preparation *p) {
  const smoe_prepare_images_options *o = p->options;
  const smoe_pictures *pictures = &p->pictures[SMOE_TRAIN];
  const bool grid = o->grid_rows > 0;
  smoe_images *images = &p->images;
  images->geometry = (smoe_image_geometry){pictures->height * (grid ? o->grid_rows : 1),
                                           pictures->width * (grid ? o->grid_columns : 1), pictures->channels,
                                           o->patch_height ? o->patch_height : pictures->height,
                                           o->patch_width ? o->patch_width : pictures->width};
  images->bytes = true;
  for (int s = 0; s < SMOE_SPLITS; s++) {
    images->bytes &= p->from[s]->bytes;
    images->split[s].n = grid ? o->samples[s] : p->n_chosen[s];
  }
  images->scale = 1 / (o->scale > 0 ? o->scale : images->bytes ? 255 : 1);
  images->n_classes = grid ? o->n_signals : pictures->n_classes;
  images->class_names = names_of(pictures, grid ? o->signal : NULL, images->n_classes);
}

static void describe_patterns(preparation *p) {
  const smoe_patterns *patterns = &p->options->patterns;
  smoe_images *images = &p->images;
  images->geometry = (smoe_image_geometry){patterns->patches, patterns->dimension, 1, 1, patterns->dimension};
  images->scale = 1;
  images->n_classes = 2;
  images->class_names = names_of(NULL, NULL, 2);
  for (int s = 0; s < SMOE_SPLITS; s++) images->split[s].n = p->options->samples[s];
  p->vector = smoe_alloc((size_t)(2 + patterns->sets) * (size_t)patterns->dimension * sizeof *p->vector);
  smoe_pattern_vectors(patterns, p->options->seed, p->vector);
}

static smoe_status write(preparation *p, const char *sources) {
  const smoe_prepare_images_options *o = p->options;
  const smoe_image_geometry *g = &p->images.geometry;
  SMOE_CHECK(g->height <= SMOE_IMAGE_SIDE_MAX && g->width <= SMOE_IMAGE_SIDE_MAX, SMOE_ERR_CONFIG,
             "images of %d x %d are too large: at most %d each way", g->height, g->width,
             SMOE_IMAGE_SIDE_MAX);
  SMOE_CHECK(smoe_images_measure(&p->images), SMOE_ERR_CONFIG,
             "patches of %d x %d do not divide images of %d x %d: choose another --patch", g->patch_height,
             g->patch_width, g->height, g->width);
  SMOE_CHECK(p->images.split[SMOE_TRAIN].n > 0, SMOE_ERR_CONFIG, "no training images are asked for");
  const smoe_image_source source = {p, o->synthetic       ? get_pattern
                                       : o->grid_rows > 0 ? get_grid
                                                          : get_picture};
  return smoe_images_write(&p->images, &source, o->output, sources);
}

static smoe_status prepare(preparation *p) {
  const smoe_prepare_images_options *o = p->options;
  if (o->synthetic) {
    describe_patterns(p);
    return write(p, "synthetic patterns");
  }
  SMOE_TRY(read_inputs(p));
  if (o->grid_rows > 0) SMOE_TRY(check_grid(p));
  describe_files(p);
  return write(p, o->input[SMOE_TRAIN].images);
}

smoe_status smoe_prepare_images(const smoe_prepare_images_options *options) {
  preparation p = {.options = options};
  const smoe_status status = prepare(&p);
  for (int s = 0; s < SMOE_SPLITS; s++) {
    smoe_pictures_release(&p.pictures[s]);
    smoe_image_pool_release(&p.pool[s]);
    smoe_free(p.chosen[s]);
  }
  smoe_free(p.vector);
  smoe_images_close(&p.images);
  return status;
}
