/** The file of a corpus of images: writing it, and what writing and reading share. */
#ifndef STABLEMOE_DATA_IMAGES_FILE_H
#define STABLEMOE_DATA_IMAGES_FILE_H

#include <xxhash.h>

#include "stablemoe/h5.h"
#include "stablemoe/images.h"

/** Where the images to be written come from. */
typedef struct smoe_image_source {
  void *context;
  /** Image i of a split: its pixels [height, width, channels], row-major, as numbers to be stored; its label, and
   *  the patch that decides it or -1. */
  void (*get)(void *context, smoe_split split, int64_t i, float *pixel, int32_t *label, int32_t *place);
} smoe_image_source;

/** Write a corpus: under `output`.part, closed, read again and compared, then renamed.
 *
 *  Local.
 *  images   inout  geometry, classes, bytes, scale and the splits' n; out: the fingerprint
 *  sources  in     where the images are from, for the file
 *  Errors:  SMOE_ERR_IO. Nothing is left behind then.
 */
smoe_status smoe_images_write(smoe_images *images, const smoe_image_source *source, const char *output,
                              const char *sources);

/** Set n_patches and patch_reals from the geometry. Local. Returns false where it is impossible or patches do not
 *  divide the image.
 */
bool smoe_images_measure(smoe_images *images);

/** Add what is the same for all splits to the fingerprint. Local. */
void smoe_images_hash_about(const smoe_images *images, XXH64_state_t *hash);

/** Compare an open file with its fingerprint. Local. Errors: SMOE_ERR_FORMAT, SMOE_ERR_IO. */
smoe_status smoe_images_verify_open(const smoe_images *images);

/** Numbers of one image. Local. */
static inline int64_t smoe_image_reals(const smoe_images *images) {
  return (int64_t)images->n_patches * (int64_t)images->patch_reals;
}

/** Type of the numbers in the file and in memory, and its bytes. Local. */
hid_t smoe_images_file_type(const smoe_images *images);
hid_t smoe_images_memory_type(const smoe_images *images);
size_t smoe_images_bytes(const smoe_images *images);

#endif
