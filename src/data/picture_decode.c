/* Image files: PGM and PPM by hand, PNG by libpng. */
#include <ctype.h>
#include <png.h>
#include <string.h>

#include "picture.h"
#include "stablemoe/arena.h"

enum { SIDE_MAX = 65535 };

/* A number of a PGM or PPM header, after blanks and comments; -1: there is none. */
static int64_t header_number(const uint8_t *data, size_t bytes, size_t *at) {
  while (*at < bytes && (isspace(data[*at]) || data[*at] == '#')) {
    if (data[*at] == '#')
      while (*at < bytes && data[*at] != '\n') (*at)++;
    else
      (*at)++;
  }
  if (*at >= bytes || !isdigit(data[*at])) return -1;
  int64_t number = 0;
  for (; *at < bytes && isdigit(data[*at]); (*at)++)
    if (number < INT32_MAX) number = 10 * number + (data[*at] - '0');
  return number;
}

/* P2 and P3 have their numbers as text, P5 and P6 as bytes. */
static smoe_status decode_pnm(smoe_picture *picture, const uint8_t *data, size_t bytes, const char *path) {
  const bool text = data[1] == '2' || data[1] == '3';
  size_t at = 2;
  const int64_t width = header_number(data, bytes, &at), height = header_number(data, bytes, &at);
  const int64_t most = header_number(data, bytes, &at);
  SMOE_CHECK(width >= 1 && width <= SIDE_MAX && height >= 1 && height <= SIDE_MAX && most >= 1 &&
                 most <= 65535 && at < bytes,
             SMOE_ERR_FORMAT, "'%s' is damaged: the header of a PGM or PPM image of %lld x %lld, up to %lld",
             path, (long long)width, (long long)height, (long long)most);
  picture->channels = data[1] == '3' || data[1] == '6' ? 3 : 1;
  picture->width = (int)width;
  picture->height = (int)height;
  const size_t n = (size_t)(width * height) * (size_t)picture->channels, size = most > 255 ? 2 : 1;
  at++; /* one blank ends the header */
  SMOE_CHECK(text ? (bytes - at) / 2 + 1 >= n : bytes - at >= n * size, SMOE_ERR_FORMAT,
             "'%s' is cut off: an image of %lld x %lld needs more than its %zu bytes", path, (long long)width,
             (long long)height, bytes);
  picture->pixel = smoe_alloc(n);
  for (size_t i = 0; i < n; i++) {
    int64_t value = -1;
    if (text)
      value = header_number(data, bytes, &at);
    else if (size == 2)
      value = data[at + 2 * i] << 8 | data[at + 2 * i + 1];
    else
      value = data[at + i];
    SMOE_CHECK(value >= 0 && value <= most, SMOE_ERR_FORMAT,
               "'%s' is damaged: pixel value %lld, and the header promises 0 to %lld", path, (long long)value,
               (long long)most);
    picture->pixel[i] = (uint8_t)(most == 255 ? value : (2 * 255 * value + most) / (2 * most));
  }
  return SMOE_OK;
}

static smoe_status decode_png(smoe_picture *picture, const uint8_t *data, size_t bytes, const char *path) {
  png_image image = {.version = PNG_IMAGE_VERSION};
  if (!png_image_begin_read_from_memory(&image, data, bytes))
    return SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' is not a valid PNG image: %s", path, image.message);
  if (image.width > SIDE_MAX || image.height > SIDE_MAX) {
    png_image_free(&image);
    return SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' is a PNG image of %u x %u: at most %d each way are read", path,
                     image.width, image.height, SIDE_MAX);
  }
  const bool color = image.format & PNG_FORMAT_FLAG_COLOR;
  const png_color black = {0, 0, 0};
  image.format = color ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
  picture->channels = color ? 3 : 1;
  picture->width = (int)image.width;
  picture->height = (int)image.height;
  picture->pixel = smoe_alloc(PNG_IMAGE_SIZE(image));
  if (!png_image_finish_read(&image, &black, picture->pixel, 0, NULL))
    return SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' is a damaged PNG image: %s", path, image.message);
  return SMOE_OK;
}

smoe_status smoe_picture_decode(smoe_picture *picture, const void *data, size_t bytes, const char *path) {
  const uint8_t *at = data;
  *picture = (smoe_picture){0};
  smoe_status status;
  if (bytes > 8 && memcmp(at, "\x89PNG\r\n\x1a\n", 8) == 0)
    status = decode_png(picture, at, bytes, path);
  else if (bytes > 3 && at[0] == 'P' && at[1] && strchr("2356", at[1]) && (isspace(at[2]) || at[2] == '#'))
    status = decode_pnm(picture, at, bytes, path);
  else
    status = SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' is neither a PGM, PPM nor PNG image", path);
  if (status != SMOE_OK) {
    smoe_free(picture->pixel);
    *picture = (smoe_picture){0};
  }
  return status;
}
