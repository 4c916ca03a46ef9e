/** Images that are made of others, or of numbers alone. */
#ifndef STABLEMOE_DATA_IMAGE_GRID_H
#define STABLEMOE_DATA_IMAGE_GRID_H

#include "picture.h"
#include "stablemoe/prepare_images.h"

/** Images of one split by class, to draw from. */
typedef struct smoe_image_pool {
  const smoe_pictures *pictures;
  int64_t *index;  /**< [n] of the pictures, class by class */
  int64_t *first;  /**< [n_classes + 1] */
  int64_t *others; /**< [n_others] of no signal class */
  int64_t n_others;
} smoe_image_pool;

/** Sort the images of a split by class. Local. chosen: [n] their numbers. */
void smoe_image_pool_make(smoe_image_pool *pool, const smoe_pictures *pictures, const int64_t *chosen,
                          int64_t n, const int *signal, int n_signals);

/** Free it. Local. */
void smoe_image_pool_release(smoe_image_pool *pool);

/** Grid i of a split. Local. pixel [rows height, columns width, channels]; a pure function of (seed, split, i). */
void smoe_image_grid(const smoe_image_pool *pool, const smoe_prepare_images_options *options,
                     smoe_split split, int64_t i, float *pixel, int32_t *label, int32_t *place);

/** The patterns of both classes and the centres of the sets: [2 + p, d]. Local. */
void smoe_pattern_vectors(const smoe_patterns *patterns, uint64_t seed, double *vector);

/** Synthetic image i of a split. Local. pixel [n, d]; a pure function of (seed, split, i). */
void smoe_pattern_image(const smoe_patterns *patterns, const double *vector, uint64_t seed, smoe_split split,
                        int64_t i, float *pixel, int32_t *label, int32_t *place);

#endif
