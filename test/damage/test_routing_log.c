/* A damaged routing log is refused, or is printed as the sound one is. */
#include "stablemoe/routing_log.h"

#include <string.h>

#include "damage.h"
#include "harness.h"
#include "temporary.h"

enum { LAYERS = 2, EXPERTS = 8, PROBE = 32, TOKENS = 64 };

static smoe_group group;

static void make_log(const char *directory) {
  const smoe_routing_shape shape = {.terms = smoe_terms_common,
                                    .n_layers = LAYERS,
                                    .n_experts = EXPERTS,
                                    .n_slots = 1,
                                    .n_probe = PROBE,
                                    .n_probe_local = PROBE,
                                    .n_tokens = TOKENS,
                                    .method = "stable"};
  smoe_routing_log *log = smoe_routing_log_create(&group, &shape);
  int32_t id[TOKENS] = {0}, expert[LAYERS * TOKENS] = {0};
  smoe_real gate[TOKENS] = {0};
  int64_t load[EXPERTS] = {1, 2, 3, 4};
  smoe_routing_load layers[LAYERS];
  for (int m = 0; m < LAYERS; m++) layers[m] = (smoe_routing_load){load, 10, 0, {0.5, 0.5}, 0.5, 0.5};
  smoe_routing_log_probe_tokens(log, id);
  for (int64_t step = 1; step <= 20; step++) {
    smoe_routing_log_load(log, step, 1, layers, NULL);
    smoe_routing_log_probe(log, step, 1, expert, expert, expert);
  }
  smoe_routing_log_tokens(log, 20);
  for (int m = 0; m < LAYERS; m++) smoe_routing_log_tokens_add(log, m, 0, TOKENS, id, expert, gate);
  CHECK(smoe_routing_log_write(log, directory, 20) == SMOE_OK, "%s", smoe_last_error());
  smoe_routing_log_destroy(log);
}

static damage_outcome read_log(const char *path) {
  return smoe_routing_log_print(path) == SMOE_OK ? DAMAGE_SAME : DAMAGE_REFUSED;
}

/** What the seal alone protects, and all of a log is: a damaged one must not pass for sound. */
static damage_outcome read_sealed(const char *path) {
  return smoe_routing_log_print(path) == SMOE_OK ? DAMAGE_DIFFERENT : DAMAGE_REFUSED;
}

static const damage_kind raw_kinds[] = {
    {"1 to 8 bytes", 60, .bytes = damage_flip},
    {"1 to 8 bytes at the front", 40, .bytes = damage_flip_head},
    {"cut off", 40, .bytes = damage_truncate},
    {"sector of noise", 30, .bytes = damage_noise_sector},
    {"bytes appended", 10, .bytes = damage_append},
    {"dataset deleted", 10, .structure = damage_delete},
    {"value changed", 20, .structure = damage_value},
    {"attribute changed", 20, .structure = damage_attribute_value},
};

static const damage_kind sealed_kinds[] = {
    {"dataset deleted", 20, .structure = damage_delete, .sealed = true},
    {"dataset of another shape", 40, .structure = damage_reshape, .sealed = true},
    {"dataset of another type", 40, .structure = damage_retype, .sealed = true},
    {"dataset of wild size", 30, .structure = damage_huge, .sealed = true},
    {"dataset made something else", 30, .structure = damage_replace, .sealed = true},
    {"attribute deleted", 20, .structure = damage_attribute_delete, .sealed = true},
    {"attribute of another type", 40, .structure = damage_attribute_type, .sealed = true},
};

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  test_directory_make();
  make_log(test_path("routing"));
  damage_test test = {"routing log", test_path("routing/step-000000020.h5"), raw_kinds,
                      sizeof raw_kinds / sizeof *raw_kinds, read_sealed};
  CHECK(read_log(test.path) == DAMAGE_SAME, "%s", smoe_last_error());
  int n_wrong = damage_run(&test, argc, argv);
  test.name = "routing log, sealed again";
  test.kinds = sealed_kinds;
  test.n_kinds = sizeof sealed_kinds / sizeof *sealed_kinds;
  test.read = read_log;
  n_wrong = damage_run(&test, argc, argv);
  smoe_group_end(&group);
  CHECK(n_wrong == 0, "%d damages went wrong", n_wrong);
  return test_verdict("damage of routing logs");
}
