/* A safetensors file of another program. The first byte says whether the input is a whole file, or a header that is
 * given its length and some values behind it.
 */
#include "stablemoe/tensors.h"

#include <unistd.h>

#include "fuzz.h"
#include "stablemoe/log.h"

enum { VALUES = 256, MOST = 1 << 16 };

static char *path;

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  smoe_log_setup(1, true);
  path = fuzz_path("model.safetensors");
}

void fuzz_seeds(void) {
  static const char *const headers[] = {
      "\1{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}",
      "\1{\"__metadata__\":{\"config\":\"x: "
      "1\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[8,16]},"
      "\"c\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[16,18]}}",
      "\1{\"d\":{\"dtype\":\"F64\",\"shape\":[0,9],\"data_offsets\":[3,3]},"
      "\"e\":{\"dtype\":\"I64\",\"shape\":[1,1,2,1],\"data_offsets\":[0,16]}}"};
  for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
    const char name[] = {'h', (char)('0' + i), 0};
    fuzz_seed(name, headers[i], strlen(headers[i]));
  }
  fuzz_seed("file", "\0\2\0\0\0\0\0\0\0{}", 11);
}

static void make_file(const uint8_t *data, size_t size) {
  uint8_t *file = smoe_alloc(8 + size + VALUES);
  const uint64_t length = size;
  memcpy(file, &length, sizeof length);
  memcpy(file + 8, data, size);
  for (size_t i = 0; i < VALUES; i++) file[8 + size + i] = (uint8_t)(37 * i);
  fuzz_write(path, file, 8 + size + VALUES);
  smoe_free(file);
}

/* Of what was accepted every tensor is within the file, and as large as its shape says. */
static void read_all(const smoe_tensors *tensors, int64_t file_bytes) {
  for (size_t i = 0; i < tensors->n; i++) {
    const smoe_tensor *tensor = &tensors->tensor[i];
    int64_t n = 1;
    FUZZ_CHECK(tensor->n_dims >= 0 && tensor->n_dims <= SMOE_TENSOR_DIMS);
    for (int d = 0; d < tensor->n_dims; d++) {
      FUZZ_CHECK(tensor->shape[d] >= 0 && (n == 0 || tensor->shape[d] <= INT64_MAX / n));
      n *= tensor->shape[d];
    }
    FUZZ_CHECK(tensor->first >= 8 && tensor->bytes >= 0 && tensor->first + tensor->bytes <= file_bytes);
    FUZZ_CHECK(smoe_tensors_find(tensors, tensor->name) == tensor);
    /* Of types that are not read the shape may be anything. */
    if (n > MOST) n = 0;
    smoe_real *values = smoe_alloc((size_t)n * sizeof *values);
    const smoe_status status = n > 0 ? smoe_tensors_read(tensors, tensor, values) : SMOE_OK;
    FUZZ_CHECK(status == SMOE_OK || status == SMOE_ERR_FORMAT);
    smoe_free(values);
  }
}

void fuzz_one(const uint8_t *data, size_t size) {
  if (size < 2 || size > MOST) return;
  size_t bytes;
  if (data[0] & 1)
    make_file(data + 1, size - 1);
  else
    fuzz_write(path, data + 1, size - 1);
  smoe_free(fuzz_read(path, &bytes));
  smoe_tensors tensors;
  const smoe_status status = smoe_tensors_open(&tensors, path);
  FUZZ_CHECK(status == SMOE_OK || (status == SMOE_ERR_FORMAT && strstr(smoe_last_error(), path)));
  if (status == SMOE_OK) read_all(&tensors, (int64_t)bytes);
  smoe_tensors_close(&tensors);
}
