/** The corpus of images: patches, labels and places of three splits.
 *
 *  Every image has the same height, width and channels, and is cut into equal patches, which do not overlap.
 *  An image is stored as its patches in row-major order of the grid of patches; a patch is the values of its
 *  pixels in row-major order, channels last. So a model reads rows: n_patches rows of patch_reals numbers.
 */
#ifndef STABLEMOE_IMAGES_H
#define STABLEMOE_IMAGES_H

#include <stdint.h>

#include "stablemoe/corpus.h"
#include "stablemoe/real.h"

enum {
  SMOE_CLASSES_MAX = 4096,
  SMOE_IMAGE_SIDE_MAX = 65535 /**< height, width */
};

/** Bytes of a corpus's images up to which they are kept in memory; more are read when they are needed. */
enum { SMOE_IMAGES_KEPT = 1 << 28 };

/** How images are cut into patches. */
typedef struct smoe_image_geometry {
  int height, width, channels;
  int patch_height, patch_width;
} smoe_image_geometry;

/** One split. */
typedef struct smoe_image_split {
  int64_t n;
  int32_t *label; /**< [n] 0 .. n_classes - 1 */
  int32_t *place; /**< [n] patch that decides the class, where the data are made so; else -1 */
  void *data;     /**< [n, n_patches, patch_reals] as stored; NULL: read when needed */
} smoe_image_split;

/** A corpus of images; the same on all ranks. */
typedef struct smoe_images {
  char path[1024];
  smoe_image_geometry geometry;
  int n_patches;      /**< of an image */
  size_t patch_reals; /**< d numbers of a patch */
  int n_classes;
  char *class_names; /**< one a line */
  bool bytes;        /**< stored as 8-bit numbers, else as 32-bit floating point */
  double scale;      /**< a value is the stored number times this */
  smoe_image_split split[SMOE_SPLITS];
  uint64_t fingerprint; /**< of geometry, labels, places and numbers; stored in checkpoints */
  void *file;           /**< open file, read-only, this rank's own */
} smoe_images;

/** Open a corpus of images; every rank opens it for itself.
 *
 *  Collective over group. Reads labels and places, and the images if they are few.
 *  Errors:  SMOE_ERR_IO if it cannot be read, SMOE_ERR_FORMAT if it is not a corpus of images.
 */
smoe_status smoe_images_open(smoe_images *images, const smoe_group *group, const char *path);

/** Open a corpus of images for this rank alone. Local. Errors: as smoe_images_open. */
smoe_status smoe_images_open_local(smoe_images *images, const char *path);

/** Read all of a corpus of images and compare it with its fingerprint. Local.
 *  Errors:  as smoe_images_open; SMOE_ERR_FORMAT if something has changed.
 */
smoe_status smoe_images_verify(const char *path);

/** Compare an open corpus of up to SMOE_CORPUS_CHECKED numbers with its fingerprint, before a run builds on it.
 *
 *  Collective over group. The first rank of each node reads.
 *  Errors:  as smoe_images_verify, agreed on all ranks.
 */
smoe_status smoe_images_check(const smoe_images *images, const smoe_group *group);

/** Close it; accepts a zero-initialised or already closed one. Local. */
void smoe_images_close(smoe_images *images);

/** Read the patches of image i of a split.
 *
 *  Local. An image that does not exist is a bug (panic); a failed read ends the run: it happens inside steps.
 *  patch  out  [n_patches, patch_reals]
 */
void smoe_images_read(const smoe_images *images, smoe_split split, int64_t i, smoe_real *patch);

#endif
