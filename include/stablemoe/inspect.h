/** What kind of file something is, before opening it as one. */
#ifndef STABLEMOE_INSPECT_H
#define STABLEMOE_INSPECT_H

#include "stablemoe/status.h"

typedef enum smoe_file_kind {
  SMOE_FILE_CHECKPOINT,
  SMOE_FILE_ROUTING,
  SMOE_FILE_CORPUS,
  SMOE_FILE_PAIRS,
  SMOE_FILE_IMAGES
} smoe_file_kind;

/** Kind of a file of ours, by the `format` attribute at its root. Local.
 *  Errors:  SMOE_ERR_IO where it cannot be read, SMOE_ERR_FORMAT where it is none of ours.
 */
smoe_status smoe_file_kind_of(const char *path, smoe_file_kind *kind);

#endif
