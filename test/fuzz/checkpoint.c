/* Checkpoints: what is loaded is what was saved, or nothing. */
#include "stablemoe/checkpoint.h"

#include "files.h"

enum { EXPERTS = 2, LANES = 2 };

static smoe_group group;
static smoe_params params;
static smoe_arena arena;
static char *saved;

static void layout(void) {
  const smoe_lanes lanes = smoe_lanes_of_rank(LANES, 0, 1);
  const smoe_init normal = {SMOE_INIT_NORMAL, 1.0, false};
  smoe_params_begin(&params, &group, &lanes);
  smoe_params_begin_experts(&params, EXPERTS);
  smoe_params_declare(&params, SMOE_REPLICATED, (int64_t[]){11, 8, 0}, normal, true, "embedding/token");
  smoe_params_declare(&params, SMOE_EXPERT, (int64_t[]){8, 6, 0}, normal, true, "moe0/expert/w1");
  smoe_params_declare(&params, SMOE_REPLICATED, (int64_t[]){8, 0, 0}, normal, false, "norm/gain");
  smoe_arena_measure(&arena, "model");
  smoe_params_layout(&params, &arena, true);
  FUZZ_CHECK(smoe_arena_reserve(&arena) == SMOE_OK);
  smoe_params_layout(&params, &arena, true);
}

void fuzz_start(int *argc, char ***argv) {
  static char configuration[] = "model:\n  width: 8\n";
  const smoe_checkpoint_meta meta = {
      .update = 1, .stage = 1, .corpus = "c.h5", .configuration = configuration};
  smoe_group_start(&group, argc, argv);
  layout();
  smoe_params_initialise(&params, 1);
  FUZZ_CHECK(smoe_checkpoint_save(fuzz_path("run"), &params, &meta) == SMOE_OK);
  files_take(fuzz_path("run/step-000000001.h5"));
  saved = smoe_alloc(arena.bytes);
  memcpy(saved, arena.base, arena.bytes);
}

void fuzz_seeds(void) {
  files_seeds();
}

void fuzz_one(const uint8_t *data, size_t size) {
  const char *path = files_damage(data, size);
  smoe_checkpoint_meta meta = {0};
  memset(arena.base, 0, arena.bytes);
  (void)!smoe_checkpoint_print(path);
  (void)!smoe_checkpoint_verify(path);
  if (smoe_checkpoint_read_meta(path, &group, &meta) == SMOE_OK) FUZZ_CHECK(meta.configuration);
  smoe_free(meta.configuration);
  if (smoe_checkpoint_load(path, &params) == SMOE_OK)
    FUZZ_CHECK(memcmp(arena.base, saved, arena.bytes) == 0);
  else
    FUZZ_CHECK(strstr(smoe_last_error(), path));
}
