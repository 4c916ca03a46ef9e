#include <stdio.h>

#include "stablemoe/h5.h"
#include "stablemoe/routing_log.h"

static smoe_status print(hid_t file, const char *path) {
  static const char *const NAMES[] = {"/load", "/probe/expert", "/tokens/expert",
                                      "/ran",  "/probe/ran",    "/tokens/ran"};
  int64_t version;
  char method[128];
  SMOE_TRY(smoe_h5_get_i64(file, "/", "version", &version));
  SMOE_TRY(smoe_h5_get_text(file, "/", "method", method, sizeof method));
  printf("%s: routing log, format %lld, method %s\n", path, (long long)version, method);
  for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
    if (!smoe_h5_exists(file, NAMES[i])) continue;
    int n_dims;
    int64_t shape[SMOE_H5_DIMS];
    SMOE_TRY(smoe_h5_shape(file, NAMES[i], &n_dims, shape));
    printf("  %-16s [", NAMES[i]);
    for (int d = 0; d < n_dims; d++) printf("%s%lld", d ? ", " : "", (long long)shape[d]);
    printf("]\n");
  }
  return SMOE_OK;
}

smoe_status smoe_routing_log_print(const char *path) {
  hid_t file;
  SMOE_TRY(smoe_h5_open(&file, path));
  const smoe_status status = print(file, path);
  smoe_h5_close(file);
  return status;
}
