#include "image_grid.h"

#include <math.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/random.h"

/* ---- grids of images ---- */

static bool is_signal(const int *signal, int n, int class) {
  for (int i = 0; i < n; i++)
    if (signal[i] == class) return true;
  return false;
}

void smoe_image_pool_make(smoe_image_pool *pool, const smoe_pictures *pictures, const int64_t *chosen,
                          int64_t n, const int *signal, int n_signals) {
  const int classes = pictures->n_classes;
  *pool = (smoe_image_pool){.pictures = pictures,
                            .index = smoe_alloc((size_t)(n + 1) * sizeof *pool->index),
                            .first = smoe_alloc((size_t)(classes + 1) * sizeof *pool->first),
                            .others = smoe_alloc((size_t)(n + 1) * sizeof *pool->others)};
  int64_t at = 0;
  for (int c = 0; c < classes; c++) {
    pool->first[c] = at;
    for (int64_t i = 0; i < n; i++)
      if (pictures->label[chosen[i]] == c) pool->index[at++] = chosen[i];
  }
  pool->first[classes] = at;
  for (int64_t i = 0; i < n; i++)
    if (!is_signal(signal, n_signals, pictures->label[chosen[i]])) pool->others[pool->n_others++] = chosen[i];
}

void smoe_image_pool_release(smoe_image_pool *pool) {
  smoe_free(pool->index);
  smoe_free(pool->first);
  smoe_free(pool->others);
  *pool = (smoe_image_pool){0};
}

/* Purposes of a grid's random numbers: streams of their own in each split. */
enum { PLACE, SIGNAL, OTHER, STREAMS };

static int64_t draw(uint64_t seed, smoe_split split, int stream, uint64_t index, int64_t n) {
  return (int64_t)(smoe_random_bits(seed, SMOE_RANDOM_IMAGES, (uint32_t)(split * STREAMS + stream), index) %
                   (uint64_t)n);
}

static void put(const smoe_pictures *pictures, int64_t image, float *pixel, int columns, int cell) {
  const size_t h = (size_t)pictures->height, run = (size_t)pictures->width * (size_t)pictures->channels;
  const size_t row = (size_t)(cell / columns) * h, column = (size_t)(cell % columns) * run;
  const float *from = pictures->pixel + (size_t)image * h * run;
  for (size_t y = 0; y < h; y++)
    memcpy(pixel + (row + y) * run * (size_t)columns + column, from + y * run, run * sizeof *pixel);
}

/* The number-th image of a class: each once in a random order, then in another one. */
static int64_t of_class(const smoe_image_pool *pool, uint64_t seed, smoe_split split, int class,
                        int64_t number) {
  const int64_t n = pool->first[class + 1] - pool->first[class];
  const uint32_t stream =
      (uint32_t)(split * STREAMS + SIGNAL) + (uint32_t)(number / n * SMOE_CLASSES_MAX + class) * 16;
  const uint64_t i =
      smoe_random_permute(seed, SMOE_RANDOM_IMAGES, stream, (uint64_t)n, (uint64_t)(number % n));
  return pool->index[pool->first[class] + (int64_t)i];
}

void smoe_image_grid(const smoe_image_pool *pool, const smoe_prepare_images_options *options,
                     smoe_split split, int64_t i, float *pixel, int32_t *label, int32_t *place) {
  const int cells = options->grid_rows * options->grid_columns, n_signals = options->n_signals;
  *label = (int32_t)(i % n_signals);
  *place = (int32_t)draw(options->seed, split, PLACE, (uint64_t)i, cells);
  for (int c = 0; c < cells; c++) {
    int64_t image;
    if (c == *place)
      image = of_class(pool, options->seed, split, options->signal[*label], i / n_signals);
    else
      image = pool->others[draw(options->seed, split, OTHER, (uint64_t)(i * cells + c), pool->n_others)];
    put(pool->pictures, image, pixel, options->grid_columns, c);
  }
}

/* ---- patterns ---- */

static double dot(const double *a, const double *b, int d) {
  double sum = 0;
  for (int j = 0; j < d; j++) sum += a[j] * b[j];
  return sum;
}

/* v += factor u */
static void add(double *v, const double *u, double factor, int d) {
  for (int j = 0; j < d; j++) v[j] += factor * u[j];
}

static void normalise(double *v, int d) {
  const double norm = sqrt(dot(v, v, d));
  for (int j = 0; j < d; j++) v[j] /= norm;
}

static void random_direction(double *v, uint64_t seed, uint32_t stream, uint64_t index, int d) {
  for (int j = 0; j < d; j++)
    v[j] = smoe_random_normal(seed, SMOE_RANDOM_IMAGES, stream, index * (uint64_t)d + (uint64_t)j);
}

enum { VECTORS = 1000, NOISE = 1001 }; /* streams, beyond those of grids */

void smoe_pattern_vectors(const smoe_patterns *patterns, uint64_t seed, double *vector) {
  const int d = patterns->dimension;
  double *o1 = vector, *o2 = vector + d, *second = smoe_alloc((size_t)d * sizeof *second);
  random_direction(o1, seed, VECTORS, 0, d);
  normalise(o1, d);
  random_direction(second, seed, VECTORS, 1, d);
  add(second, o1, -dot(second, o1, d), d);
  normalise(second, d);
  for (int j = 0; j < d; j++)
    o2[j] = patterns->delta_d * o1[j] + sqrt(1 - patterns->delta_d * patterns->delta_d) * second[j];
  for (int s = 0; s < patterns->sets; s++) {
    double *q = vector + (size_t)(2 + s) * (size_t)d;
    /* Orthogonal to both patterns, and then turned towards one of them, or away from it. */
    random_direction(q, seed, VECTORS, (uint64_t)(2 + s), d);
    add(q, o1, -dot(q, o1, d), d);
    add(q, second, -dot(q, second, d), d);
    normalise(q, d);
    const double sign = s % 4 < 2 ? 1 : -1, r = patterns->delta_r;
    for (int j = 0; j < d; j++) q[j] = sqrt(1 - r * r) * q[j] + sign * r * (s % 2 ? o2 : o1)[j];
  }
  smoe_free(second);
}

void smoe_pattern_image(const smoe_patterns *patterns, const double *vector, uint64_t seed, smoe_split split,
                        int64_t i, float *pixel, int32_t *label, int32_t *place) {
  const int d = patterns->dimension, n = patterns->patches;
  double *v = smoe_alloc((size_t)d * sizeof *v), *noise = smoe_alloc((size_t)d * sizeof *noise);
  *label = (int32_t)(i % 2);
  *place = (int32_t)draw(seed, split, PLACE, (uint64_t)i, n);
  for (int p = 0; p < n; p++) {
    const uint64_t index = (uint64_t)i * (uint64_t)n + (uint64_t)p;
    const int64_t set = draw(seed, split, OTHER, index, patterns->sets);
    const int64_t which = p == *place ? *label : 2 + set;
    memcpy(v, vector + (size_t)which * (size_t)d, (size_t)d * sizeof *v);
    if (p != *place && patterns->spread > 0) {
      random_direction(noise, seed, (uint32_t)(NOISE + split), index, d);
      normalise(noise, d);
      add(v, noise, patterns->spread / 2, d);
      normalise(v, d);
    }
    for (int j = 0; j < d; j++) pixel[(size_t)p * (size_t)d + (size_t)j] = (float)v[j];
  }
  smoe_free(v);
  smoe_free(noise);
}
