/** Reading of a safetensors file, as any program writes them. All functions are Local (serial). */
#ifndef STABLEMOE_TENSORS_H
#define STABLEMOE_TENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stablemoe/real.h"
#include "stablemoe/status.h"

enum { SMOE_TENSOR_DIMS = 4, SMOE_TENSOR_NAME = 256 };

typedef struct smoe_tensor {
  char name[SMOE_TENSOR_NAME];
  char type[8]; /**< "F32", "BF16", ... */
  int n_dims;
  int64_t shape[SMOE_TENSOR_DIMS];
  int64_t first, bytes; /**< in the file */
} smoe_tensor;

typedef struct smoe_tensors {
  char *path;
  void *file; /**< FILE * */
  size_t n;
  smoe_tensor *tensor; /**< [n] */
  char *config;        /**< text `config` of the header's metadata; NULL: none */
} smoe_tensors;

/** Open a file and read its header.
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT where header, places or sizes make no sense, or the file is cut off.
 */
smoe_status smoe_tensors_open(smoe_tensors *tensors, const char *path);

/** Free it; accepts a zeroed one. */
void smoe_tensors_close(smoe_tensors *tensors);

/** The tensor of that name; NULL: there is none. */
const smoe_tensor *smoe_tensors_find(const smoe_tensors *tensors, const char *name);

/** Read all values of a tensor, from F64, F32, F16 or BF16; values has as many reals as the shape says.
 *  Errors:  SMOE_ERR_IO; SMOE_ERR_FORMAT for another type.
 */
smoe_status smoe_tensors_read(const smoe_tensors *tensors, const smoe_tensor *tensor, smoe_real *values);

#endif
