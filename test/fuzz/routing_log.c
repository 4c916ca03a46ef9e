/* Routing logs: printed or refused. */
#include "stablemoe/routing_log.h"

#include "files.h"
#include "stablemoe/inspect.h"

enum { EXPERTS = 4, PROBE = 8 };

static smoe_group group;

void fuzz_start(int *argc, char ***argv) {
  const smoe_routing_shape shape = {.terms = smoe_terms_common,
                                    .n_layers = 1,
                                    .n_experts = EXPERTS,
                                    .n_slots = 1,
                                    .n_probe = PROBE,
                                    .n_probe_local = PROBE,
                                    .n_tokens = PROBE,
                                    .method = "stable"};
  const int64_t load[EXPERTS] = {1, 2, 3, 4};
  const smoe_routing_load layer = {load, 10, 0, {0}, 0, 0};
  const int32_t expert[PROBE] = {0};
  smoe_group_start(&group, argc, argv);
  smoe_routing_log *log = smoe_routing_log_create(&group, &shape);
  smoe_routing_log_probe_tokens(log, expert);
  smoe_routing_log_load(log, 1, 1, &layer, NULL);
  smoe_routing_log_probe(log, 1, 1, expert, expert, expert);
  FUZZ_CHECK(smoe_routing_log_write(log, fuzz_path("routing"), 1) == SMOE_OK);
  smoe_routing_log_destroy(log);
  files_take(fuzz_path("routing/step-000000001.h5"));
}

void fuzz_seeds(void) {
  files_seeds();
}

void fuzz_one(const uint8_t *data, size_t size) {
  const char *path = files_damage(data, size);
  smoe_file_kind kind;
  if (smoe_file_kind_of(path, &kind) == SMOE_OK) FUZZ_CHECK(kind == SMOE_FILE_ROUTING);
  FUZZ_CHECK(smoe_routing_log_print(path) == SMOE_OK || strstr(smoe_last_error(), path));
}
