/** Making a corpus of images. Serial: rank 0 alone. */
#ifndef STABLEMOE_PREPARE_IMAGES_H
#define STABLEMOE_PREPARE_IMAGES_H

#include "stablemoe/images.h"

/** Files of images. */
typedef struct smoe_image_input {
  const char *images; /**< IDX, NPY or NPZ file, or directory of one directory per class */
  const char *labels; /**< IDX or NPY file; NULL: in the same file, or from the directories */
} smoe_image_input;

enum { SMOE_SIGNALS_MAX = 64 };

/** The synthetic patterns of Chowdhury et al. 2023, section 4.1: one patch of an image has its class's pattern, all
 *  others come from sets of irrelevant ones, which are equally likely in both classes. All are unit vectors.
 */
typedef struct smoe_patterns {
  int patches;    /**< n of an image */
  int dimension;  /**< d of a patch */
  int sets;       /**< p sets of irrelevant patterns */
  double delta_d; /**< inner product of the patterns of the two classes, in (-1, 1) */
  double delta_r; /**< of each set's centre with one of these, in [0, 1) */
  double spread;  /**< diameter of a set */
} smoe_patterns;

typedef struct smoe_prepare_images_options {
  const char *output;                  /**< replaced if it exists */
  double valid_share, test_share;      /**< of the training images, if no files are given for that split */
  uint64_t seed;                       /**< of the split, of grids and of synthetic images */
  smoe_image_input input[SMOE_SPLITS]; /**< images NULL: none for that split */
  double scale; /**< what the numbers are divided by; 0: 255 for 8-bit images, 1 for others */
  int patch_height, patch_width; /**< 0: the image of a grid's cell; else the height or width of the image */
  int grid_rows, grid_columns;   /**< images are grids of so many images; 0: they are not */
  int signal[SMOE_SIGNALS_MAX],
      n_signals;                /**< grids: classes of which each grid has one image, which is its class */
  int64_t samples[SMOE_SPLITS]; /**< grids and patterns: images of each split */
  bool synthetic;               /**< make patterns, read no files */
  smoe_patterns patterns;
} smoe_prepare_images_options;

/** Return the default options. Local. */
smoe_prepare_images_options smoe_prepare_images_defaults(void);

/** Prepare a corpus of images.
 *
 *  Local. The output appears under its final name only when complete. The same files and the same options give the
 *  same file. Training images that are drawn by share stand in a random order, so that the first N of them are a
 *  sample.
 *
 *  A grid has one image of a signal class at a random place; the others are of the other classes. The classes take
 *  turns, so that the first N grids have as many of each.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT, SMOE_ERR_CONFIG (patches that do not divide the images, a class without
 *           images, splits of different sizes).
 */
smoe_status smoe_prepare_images(const smoe_prepare_images_options *options);

#endif
