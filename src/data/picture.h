/** Images from files that people have: IDX, NPY and NPZ arrays, and directories of PGM, PPM and PNG. */
#ifndef STABLEMOE_DATA_PICTURE_H
#define STABLEMOE_DATA_PICTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stablemoe/status.h"

/** Images of one size, in memory. */
typedef struct smoe_pictures {
  int height, width, channels;
  bool bytes; /**< every number is an integer from 0 to 255 */
  int64_t n;
  float *pixel;   /**< [n, height, width, channels] */
  int32_t *label; /**< [n]; NULL: there are none */
  int n_classes;  /**< 1 + the largest label */
  char **name;    /**< [n_classes] of the classes, from directories; NULL: they are numbers */
} smoe_pictures;

/** Read images, and their labels.
 *
 *  Local. Prints a note.
 *  images  in  an IDX or NPY file of [N, H, W] or [N, H, W, C], also compressed; an NPZ file; or a directory with one
 *              directory of images per class, in alphabetical order
 *  labels  in  an IDX or NPY file of [N] integers; NULL: of NPZ its array of labels, of directories their order
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT (damaged; images of different sizes), SMOE_ERR_CONFIG (numbers of images and
 *           labels differ, labels missing, a directory without images).
 */
smoe_status smoe_pictures_read(smoe_pictures *pictures, const char *images, const char *labels);

/** Free them; accepts a zero-initialised struct. Local. */
void smoe_pictures_release(smoe_pictures *pictures);

/** An array of a file. */
typedef struct smoe_array {
  char *name; /**< of an NPZ file's member, without ".npy"; NULL: the only one */
  int n_dims;
  int64_t shape[4];
  int64_t count; /**< product of the shape */
  bool bytes;    /**< type uint8 */
  bool integers;
  double *value; /**< [count] row-major; NULL where bytes */
  uint8_t *byte; /**< [count] where bytes */
} smoe_array;

/** Read all arrays of an IDX, NPY or NPZ file; *array [*n] in memory of smoe_alloc.
 *
 *  Local. Errors: SMOE_ERR_IO, SMOE_ERR_FORMAT.
 */
smoe_status smoe_arrays_read(const char *path, smoe_array **array, size_t *n);

/** Free arrays; NULL is fine. Local. */
void smoe_arrays_free(smoe_array *array, size_t n);

/** One array from the bytes of an IDX or NPY file. Local. path: for reports. Errors: SMOE_ERR_FORMAT. */
smoe_status smoe_array_parse(smoe_array *array, const void *data, size_t bytes, const char *path);

/** An image file that was decoded. */
typedef struct smoe_picture {
  int height, width, channels;
  uint8_t *pixel; /**< [height, width, channels] */
} smoe_picture;

/** Decode a PGM, PPM or PNG image in memory; transparency is laid over black.
 *
 *  Local. path: for reports. Errors: SMOE_ERR_FORMAT.
 */
smoe_status smoe_picture_decode(smoe_picture *picture, const void *data, size_t bytes, const char *path);

/** Read a file, decompressed, into memory of smoe_alloc. Local. Errors: SMOE_ERR_IO. */
smoe_status smoe_file_bytes(const char *path, uint8_t **data, size_t *bytes);

#endif
