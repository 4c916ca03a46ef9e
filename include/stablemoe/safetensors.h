/** Export: the parameters of a checkpoint as safetensors files, which other programs read.
 *
 *  A safetensors file is a length (8 bytes, little-endian), a JSON header that names every tensor
 *  with its type, shape and place, and the values, row-major and little-endian (doc/using-a-model.md).
 */
#ifndef STABLEMOE_SAFETENSORS_H
#define STABLEMOE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stablemoe/json.h"
#include "stablemoe/status.h"

typedef struct smoe_export {
  const char *checkpoint; /**< file to read */
  const char *output;     /**< "<stem>.safetensors": the other files' names begin with the stem */
  bool split_experts;     /**< each expert's parameters, of all MoE layers, in a file of its own */
  const char *about;      /**< JSON object for the header's `config` and the file <stem>.json */
  const char *tokenizer;  /**< bytes for <stem>.tokenizer; NULL: none */
  size_t tokenizer_bytes;
} smoe_export;

typedef struct smoe_export_result {
  int64_t n_files, n_tensors, n_values, n_bytes;
} smoe_export_result;

/** Write the files.
 *
 *  Local (serial), in memory of a few MB whatever the model's size; every value is checked against its
 *  checksum on the way. All files are written under temporary names and flushed to the disk, and only
 *  then get their names, the one called `output` last; after a failure none is there.
 *
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT for a checkpoint that is damaged or of another kind.
 */
smoe_status smoe_export_write(const smoe_export *export, smoe_export_result *result);

/** The beginning of a safetensors file, tensor by tensor: their values follow in the same order. */
typedef struct smoe_safetensors_header {
  smoe_json json;
  int64_t data; /**< bytes of the values so far */
} smoe_safetensors_header;

/** Begin one. Local.
 *
 *  format  in  what the tensors are, for the header's metadata
 *  config  in  text for it, too; NULL: none
 */
void smoe_safetensors_begin(smoe_safetensors_header *header, const char *format, const char *config);

/** Name the next tensor, of smoe_real. Local. */
void smoe_safetensors_add(smoe_safetensors_header *header, const char *name, int n_dims,
                          const int64_t *shape);

/** End it. Local.
 *
 *  bytes  out  of what is returned
 *  Returns the file's first bytes, in memory of smoe_alloc.
 */
char *smoe_safetensors_end(smoe_safetensors_header *header, size_t *bytes);

#endif
