/** Options of prepare about images, and what a corpus of images holds. */
#ifndef STABLEMOE_APP_PREPARE_IMAGES_H
#define STABLEMOE_APP_PREPARE_IMAGES_H

#include "options.h"
#include "stablemoe/prepare_images.h"

/** Values of the options. */
typedef struct smoe_image_words {
  smoe_words input[SMOE_SPLITS];
  const char *patch, *grid, *signal, *samples;
  double scale, delta_d, delta_r, spread;
  int synthetic; /**< index into smoe_image_synthetics */
  int64_t patches, dimension, sets;
} smoe_image_words;

/** The values where an option is not given: none that can be given. */
#define SMOE_IMAGE_WORDS                                                                                     \
  { .delta_d = -1, .delta_r = -1, .spread = -1 }

extern const char *const smoe_image_synthetics[];

/** Whether images are asked for. Local. */
bool smoe_image_words_any(const smoe_image_words *words);

/** Check the options against each other. Local. Errors: SMOE_ERR_CONFIG. */
smoe_status smoe_image_words_check(const smoe_image_words *words);

/** Read them. Local. options: defaults, whose other members stay. Errors: SMOE_ERR_CONFIG. */
smoe_status smoe_image_words_read(const smoe_image_words *words, smoe_prepare_images_options *options);

/** Print what a corpus of images holds. Local. Errors: as smoe_images_open_local. */
smoe_status smoe_app_print_images(const char *path);

#endif
