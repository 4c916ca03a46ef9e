#include "stablemoe/inspect.h"

#include <string.h>

#include "stablemoe/h5.h"

smoe_status smoe_file_kind_of(const char *path, smoe_file_kind *kind) {
  static const char *const FORMATS[] = {[SMOE_FILE_CHECKPOINT] = "stablemoe-checkpoint",
                                        [SMOE_FILE_ROUTING] = "stablemoe-routing",
                                        [SMOE_FILE_CORPUS] = "stablemoe-corpus",
                                        [SMOE_FILE_PAIRS] = "stablemoe-pairs",
                                        [SMOE_FILE_IMAGES] = "stablemoe-images"};
  hid_t file;
  char format[64] = "";
  SMOE_TRY(smoe_h5_open(&file, path));
  const smoe_status status = smoe_h5_get_text(file, "/", "format", format, sizeof format);
  smoe_h5_close(file);
  if (status == SMOE_OK)
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++)
      if (strcmp(format, FORMATS[i]) == 0) {
        *kind = (smoe_file_kind)i;
        return SMOE_OK;
      }
  return SMOE_FAIL(SMOE_ERR_FORMAT,
                   "'%s' is an HDF5 file, but no checkpoint, routing log or corpus of this program", path);
}
