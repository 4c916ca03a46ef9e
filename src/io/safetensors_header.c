#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/real.h"
#include "stablemoe/safetensors.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "safetensors are little-endian, and so is this code");

/* The header ends at a multiple of it, so that values are aligned where the file is mapped. */
enum { ALIGNMENT = 8 };

void smoe_safetensors_begin(smoe_safetensors_header *header, const char *format, const char *config) {
  *header = (smoe_safetensors_header){.data = 0};
  smoe_json_begin_text(&header->json, 1);
  smoe_json_object(&header->json, NULL);
  smoe_json_object(&header->json, "__metadata__");
  smoe_json_text(&header->json, "format", format);
  if (config) smoe_json_text(&header->json, "config", config);
  smoe_json_end(&header->json);
}

void smoe_safetensors_add(smoe_safetensors_header *header, const char *name, int n_dims,
                          const int64_t *shape) {
  int64_t place[2] = {header->data, (int64_t)sizeof(smoe_real)};
  for (int d = 0; d < n_dims; d++) place[1] *= shape[d];
  place[1] += place[0];
  smoe_json_object(&header->json, name);
  smoe_json_text(&header->json, "dtype", sizeof(smoe_real) == 8 ? "F64" : "F32");
  smoe_json_ints(&header->json, "shape", shape, (size_t)n_dims);
  smoe_json_ints(&header->json, "data_offsets", place, 2);
  smoe_json_end(&header->json);
  header->data = place[1];
}

char *smoe_safetensors_end(smoe_safetensors_header *header, size_t *bytes) {
  size_t n;
  smoe_json_end(&header->json);
  char *text = smoe_json_take(&header->json, &n);
  n--; /* the newline: a header is padded with blanks alone */
  const uint64_t length = (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  char *all = smoe_alloc(sizeof length + length);
  memcpy(all, &length, sizeof length);
  memcpy(all + sizeof length, text, n);
  memset(all + sizeof length + n, ' ', length - n);
  smoe_free(text);
  *bytes = sizeof length + length;
  return all;
}
