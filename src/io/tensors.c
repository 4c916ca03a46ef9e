#include "stablemoe/tensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/arena.h"

/* A header is some hundred bytes a tensor: more is not one. */
enum { HEADER_MAX = 1 << 28, CHUNK = 1 << 16 };

static int type_bytes(const char *type) {
  return strcmp(type, "F64") == 0    ? 8
         : strcmp(type, "F32") == 0  ? 4
         : strcmp(type, "F16") == 0  ? 2
         : strcmp(type, "BF16") == 0 ? 2
                                     : 0;
}

static smoe_status read_tensor(smoe_tensors *t, const char *name, const json_t *item, int64_t data,
                               int64_t end) {
  const char *type = json_string_value(json_object_get(item, "dtype"));
  const json_t *shape = json_object_get(item, "shape"), *place = json_object_get(item, "data_offsets");
  SMOE_CHECK(type && json_is_array(shape) && json_array_size(place) == 2 &&
                 json_array_size(shape) <= SMOE_TENSOR_DIMS && strlen(name) < SMOE_TENSOR_NAME &&
                 strlen(type) < sizeof t->tensor->type,
             SMOE_ERR_FORMAT, "'%s': the header describes '%.64s' in a way that this program does not read",
             t->path, name);
  t->tensor = smoe_realloc(t->tensor, (t->n + 1) * sizeof *t->tensor);
  smoe_tensor *out = &t->tensor[t->n++];
  *out = (smoe_tensor){.n_dims = (int)json_array_size(shape)};
  strcpy(out->name, name);
  strcpy(out->type, type);
  int64_t n = 1;
  for (int d = 0; d < out->n_dims; d++) {
    out->shape[d] = json_integer_value(json_array_get(shape, (size_t)d));
    SMOE_CHECK(out->shape[d] >= 0 && (out->shape[d] == 0 || n <= INT64_MAX / 16 / out->shape[d]),
               SMOE_ERR_FORMAT, "'%s': the shape of '%s' makes no sense", t->path, name);
    n *= out->shape[d];
  }
  const int64_t first = json_integer_value(json_array_get(place, 0)),
                last = json_integer_value(json_array_get(place, 1));
  SMOE_CHECK(first >= 0 && last >= first && last <= end - data, SMOE_ERR_FORMAT,
             "'%s' ends before '%s' does: the file is cut off, or its header is damaged", t->path, name);
  SMOE_CHECK(type_bytes(type) == 0 || last - first == n * type_bytes(type), SMOE_ERR_FORMAT,
             "'%s': shape and size of '%s' do not fit together", t->path, name);
  out->first = data + first;
  out->bytes = last - first;
  return SMOE_OK;
}

static smoe_status read_header(smoe_tensors *t, const char *text, size_t bytes, int64_t end) {
  json_error_t error;
  json_t *header = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
  SMOE_CHECK(json_is_object(header), SMOE_ERR_FORMAT,
             "'%s' is not a safetensors file: its header is not JSON%s%s", t->path, header ? "" : ": ",
             header ? "" : error.text);
  smoe_status status = SMOE_OK;
  const char *name;
  json_t *item;
  json_object_foreach(header, name, item) {
    if (strcmp(name, "__metadata__") == 0) {
      const char *config = json_string_value(json_object_get(item, "config"));
      if (config) t->config = smoe_strdup(config);
    } else {
      status = read_tensor(t, name, item, (int64_t)bytes + 8, end);
    }
    if (status != SMOE_OK) break;
  }
  json_decref(header);
  return status;
}

smoe_status smoe_tensors_open(smoe_tensors *t, const char *path) {
  *t = (smoe_tensors){.path = smoe_strdup(path)};
  FILE *file = fopen(path, "rb");
  SMOE_CHECK(file, SMOE_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  t->file = file;
  uint64_t length = 0;
  SMOE_CHECK(fread(&length, sizeof length, 1, file) == 1 && length >= 2 && length <= HEADER_MAX,
             SMOE_ERR_FORMAT,
             "'%s' is not a safetensors file: its first 8 bytes are not the length of a header", path);
  SMOE_CHECK(fseeko(file, 0, SEEK_END) == 0, SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  const int64_t end = (int64_t)ftello(file);
  SMOE_CHECK(end >= (int64_t)length + 8, SMOE_ERR_FORMAT, "'%s' ends within its header", path);
  char *text = smoe_alloc(length);
  smoe_status status = fseeko(file, 8, SEEK_SET) == 0 && fread(text, 1, length, file) == length
                           ? read_header(t, text, length, end)
                           : SMOE_FAIL(SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  smoe_free(text);
  return status;
}

void smoe_tensors_close(smoe_tensors *t) {
  if (t->file) fclose(t->file);
  smoe_free(t->path);
  smoe_free(t->tensor);
  smoe_free(t->config);
  *t = (smoe_tensors){0};
}

const smoe_tensor *smoe_tensors_find(const smoe_tensors *t, const char *name) {
  for (size_t i = 0; i < t->n; i++)
    if (strcmp(t->tensor[i].name, name) == 0) return &t->tensor[i];
  return NULL;
}

static float of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* IEEE half precision. */
static float of_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half >> 15) << 31, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent == 31) return of_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent > 0) return of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = (float)fraction * 0x1p-24f;
  return sign ? -small : small;
}

static void convert(smoe_real *out, const char *raw, int64_t n, const char *type) {
  for (int64_t i = 0; i < n; i++) {
    double f64;
    float f32;
    uint16_t f16;
    if (type[0] == 'B' || strcmp(type, "F16") == 0) {
      memcpy(&f16, raw + 2 * i, 2);
      out[i] = (smoe_real)(type[0] == 'B' ? of_bits((uint32_t)f16 << 16) : of_half(f16));
    } else if (strcmp(type, "F32") == 0) {
      memcpy(&f32, raw + 4 * i, 4);
      out[i] = (smoe_real)f32;
    } else {
      memcpy(&f64, raw + 8 * i, 8);
      out[i] = (smoe_real)f64;
    }
  }
}

smoe_status smoe_tensors_read(const smoe_tensors *t, const smoe_tensor *tensor, smoe_real *values) {
  const int size = type_bytes(tensor->type);
  SMOE_CHECK(size > 0, SMOE_ERR_FORMAT, "'%s': '%s' is of type %s; F64, F32, F16 and BF16 are read", t->path,
             tensor->name, tensor->type);
  FILE *file = t->file;
  char *raw = smoe_alloc((size_t)CHUNK * (size_t)size);
  const int64_t n = tensor->bytes / size;
  smoe_status status = fseeko(file, (off_t)tensor->first, SEEK_SET) == 0
                           ? SMOE_OK
                           : SMOE_FAIL(SMOE_ERR_IO, "cannot read '%s': %s", t->path, strerror(errno));
  for (int64_t done = 0; done < n && status == SMOE_OK; done += CHUNK) {
    const int64_t part = n - done < CHUNK ? n - done : CHUNK;
    if (fread(raw, (size_t)size, (size_t)part, file) == (size_t)part)
      convert(values + done, raw, part, tensor->type);
    else
      status = SMOE_FAIL(SMOE_ERR_IO, "cannot read '%s': %s", t->path,
                         ferror(file) ? strerror(errno) : "it ends early");
  }
  smoe_free(raw);
  return status;
}
