/* A damaged checkpoint is refused, or gives the very values that were saved. */
#include <string.h>
#include <unistd.h>

#include "damage.h"
#include "harness.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/random.h"
#include "temporary.h"

enum { EXPERTS = 4, LANES = 4 };

static smoe_group group;
static bool unsealed; /**< leave the seal out: what HDF5 alone makes of damages */

typedef struct model {
  smoe_params params;
  smoe_arena arena;
} model;

static model saved, loaded;
static smoe_checkpoint_meta meta = {.update = 12,
                                    .stage = 2,
                                    .seed = 3,
                                    .n_tokens_seen = 1234567,
                                    .fingerprint = 0xfedcba9876543210u,
                                    .corpus = "corpus.h5"};

static void begin(model *m) {
  const smoe_lanes lanes = smoe_lanes_of_rank(LANES, 0, 1);
  const smoe_init normal = {SMOE_INIT_NORMAL, 1.0, false};
  smoe_params *params = &m->params;
  smoe_params_begin(params, &group, &lanes);
  smoe_params_begin_experts(params, EXPERTS);
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){40, 16, 0}, normal, true, "embedding/token");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){3, 5, 7}, normal, true, "block0/cube");
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){16, 24, 0}, normal, true, "moe0/expert/w1");
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){5, 0, 0}, normal, false, "moe0/expert/b1");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){16, 0, 0}, normal, false, "norm/gain");
  smoe_arena_measure(&m->arena, "model");
  smoe_params_layout(params, &m->arena, true);
  CHECK(smoe_arena_reserve(&m->arena) == SMOE_OK, "%s", smoe_last_error());
  smoe_params_layout(params, &m->arena, true);
}

/** Values and moments of both models. */
static bool equal(void) {
  const smoe_params *a = &saved.params, *b = &loaded.params;
  bool same = true;
  for (int s = 0; s < a->n_slabs; s++) {
    const smoe_slab *x = &a->slab[s], *y = &b->slab[s];
    const size_t bytes = (size_t)x->n_local * x->count * sizeof *x->value;
    same = same && memcmp(x->value, y->value, bytes) == 0;
    if (x->learns) same = same && memcmp(x->m, y->m, bytes) == 0 && memcmp(x->v, y->v, bytes) == 0;
  }
  return same;
}

/** Values, and moments that follow from them. */
static void fill(void) {
  smoe_params *p = &saved.params;
  smoe_params_initialise(p, 3);
  for (int s = 0; s < p->n_slabs; s++) {
    const smoe_slab *slab = &p->slab[s];
    for (size_t i = 0; i < slab->slice_count && slab->learns; i++) {
      slab->m[i] = slab->value[i] * 2;
      slab->v[i] = slab->value[i] * slab->value[i];
    }
  }
}

/** As `stablemoe info` looks at it, and then as a resumed run reads it. */
static damage_outcome read_checkpoint(const char *path) {
  smoe_checkpoint_meta read = {0};
  memset(loaded.arena.base, 0, loaded.arena.bytes);
  smoe_checkpoint_print(path);
  smoe_checkpoint_verify(path);
  if (!unsealed && smoe_checkpoint_read_meta(path, &group, &read) != SMOE_OK) return DAMAGE_REFUSED;
  if (smoe_checkpoint_load(path, &loaded.params) != SMOE_OK) return DAMAGE_REFUSED;
  if (unsealed) return equal() ? DAMAGE_SAME : DAMAGE_DIFFERENT;
  const bool same = read.update == meta.update && read.stage == meta.stage && read.seed == meta.seed &&
                    read.n_tokens_seen == meta.n_tokens_seen && read.fingerprint == meta.fingerprint &&
                    strcmp(read.corpus, meta.corpus) == 0 &&
                    strcmp(read.configuration, meta.configuration) == 0;
  return same && equal() ? DAMAGE_SAME : DAMAGE_DIFFERENT;
}

static const damage_kind raw_kinds[] = {
    {"1 to 8 bytes", 250, .bytes = damage_flip},
    {"1 to 8 bytes at the front", 250, .bytes = damage_flip_head},
    {"cut off", 150, .bytes = damage_truncate},
    {"block of zeros", 100, .bytes = damage_zero_block},
    {"sector of noise", 100, .bytes = damage_noise_sector},
    {"blocks swapped", 100, .bytes = damage_swap_blocks},
    {"bytes appended", 50, .bytes = damage_append},
    {"dataset deleted", 20, .structure = damage_delete},
    {"dataset renamed", 20, .structure = damage_rename},
    {"value changed", 40, .structure = damage_value},
    {"rows swapped", 40, .structure = damage_swap_rows},
    {"attribute changed", 40, .structure = damage_attribute_value},
};

/* Through HDF5 and with a new seal: only our own checks are left. */
static const damage_kind sealed_kinds[] = {
    {"dataset deleted", 40, .structure = damage_delete, .sealed = true},
    {"dataset renamed", 40, .structure = damage_rename, .sealed = true},
    {"dataset of another shape", 60, .structure = damage_reshape, .sealed = true},
    {"dataset of another type", 60, .structure = damage_retype, .sealed = true},
    {"dataset of wild size", 60, .structure = damage_huge, .sealed = true},
    {"dataset made something else", 60, .structure = damage_replace, .sealed = true},
    {"dataset linked to another", 60, .structure = damage_relink, .sealed = true},
    {"value changed", 100, .structure = damage_value, .sealed = true},
    {"rows swapped", 60, .structure = damage_swap_rows, .sealed = true},
    {"attribute deleted", 40, .structure = damage_attribute_delete, .sealed = true},
    {"attribute of another type", 100, .structure = damage_attribute_type, .sealed = true,
     .may_differ = true},
    {"attribute changed", 60, .structure = damage_attribute_value, .sealed = true, .may_differ = true},
};

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  unsealed = argc > 1 && strcmp(argv[1], "--unsealed") == 0;
  test_directory_make();
  begin(&saved);
  begin(&loaded);
  fill();
  meta.configuration = test_source(1, 3000);
  CHECK(smoe_checkpoint_save(test_path("run"), &saved.params, &meta) == SMOE_OK, "%s", smoe_last_error());
  damage_test test = {"checkpoint",
                      test_path("run/step-000000012.h5"),
                      raw_kinds,
                      sizeof raw_kinds / sizeof *raw_kinds,
                      read_checkpoint,
                      "meta/configuration",
                      0};
  CHECK(read_checkpoint(test.path) == DAMAGE_SAME, "%s", smoe_last_error());
  int n_wrong = damage_run(&test, argc, argv);
  if (!unsealed) {
    test.name = "checkpoint, sealed again";
    test.kinds = sealed_kinds;
    test.n_kinds = sizeof sealed_kinds / sizeof *sealed_kinds;
    n_wrong = damage_run(&test, argc, argv);
  }
  smoe_group_end(&group);
  CHECK(n_wrong == 0, "%d damages went wrong", n_wrong);
  return test_verdict("damage of checkpoints");
}
