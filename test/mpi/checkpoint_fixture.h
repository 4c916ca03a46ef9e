/** A small table of parameters of every kind, with values and moments that are functions of the place: what checkpoints
 *  of it must hold.
 */
#ifndef STABLEMOE_TEST_CHECKPOINT_FIXTURE_H
#define STABLEMOE_TEST_CHECKPOINT_FIXTURE_H

#include "files.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/random.h"

/* The two MoE layers have different numbers of experts. */
enum { EXPERTS = 4, EXPERTS_OF_1 = 3, LANES = 4, SEED = 5 };

static smoe_group world;
static const smoe_group self = {MPI_COMM_SELF, 0, 1};

typedef struct model {
  smoe_params params;
  smoe_arena arena;
} model;

/** How ranks share the experts of the models that follow; NULL: one replica. */
static const smoe_topology *topology;

/** What is frozen from the start is frozen after the layout only: as earlier programs had it. */
static bool frozen_late;

static inline void freeze(smoe_params *params) {
  CHECK(smoe_params_freeze(params, "moe1/router/table", true) == 1);
  CHECK(smoe_params_freeze(params, "moe1/expert/frozen", true) == 1);
}

/** Lay a small model out; extra: with one more parameter. */
static inline void begin(model *m, const smoe_group *group, bool training, bool extra) {
  const smoe_lanes lanes = smoe_lanes_of_rank(LANES, group->rank, group->n_ranks);
  const smoe_init normal = {SMOE_INIT_NORMAL, 1.0, false};
  smoe_params *params = &m->params;
  smoe_params_begin(params, group, &lanes);
  if (topology && group == &world) smoe_params_set_topology(params, topology);
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){97, 33, 0}, normal, true, "embedding/token");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){3, 5, 7}, normal, true, "block0/cube");
  smoe_params_begin_experts(params, EXPERTS);
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){33, 66, 0}, normal, true, "moe0/expert/w1");
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){5, 0, 0}, normal, false, "moe0/expert/b1");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){1500, 0, 0}, normal, false, "moe1/router/table");
  smoe_params_begin_experts(params, EXPERTS_OF_1);
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){20, 60, 0}, normal, true, "moe1/expert/w1");
  smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){1100, 0, 0}, normal, false, "moe1/expert/frozen");
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){33, 0, 0}, normal, false, "norm/gain");
  if (extra) smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){2, 0, 0}, normal, false, "norm/extra");
  if (!frozen_late) freeze(params);
  smoe_arena_measure(&m->arena, "model");
  smoe_params_layout(params, &m->arena, training);
  CHECK_OK(smoe_arena_reserve(&m->arena));
  smoe_params_layout(params, &m->arena, training);
  if (frozen_late) freeze(params);
}

static inline void end(model *m) {
  smoe_params_end(&m->params);
  smoe_arena_release(&m->arena);
}

static inline smoe_real moment(int which, size_t index) {
  return (smoe_real)smoe_random_uniform(SEED, SMOE_RANDOM_TEST, (uint32_t)which, index);
}

/** Values and moments that are functions of the global index. */
static inline void fill(model *m) {
  smoe_params *params = &m->params;
  smoe_params_initialise(params, SEED);
  for (int p = 0; p < params->n_params; p++) {
    const smoe_slab *slab = smoe_params_slab(params, p);
    for (int j = 0; j < slab->n_local && slab->m; j++) {
      size_t first, own;
      const size_t n = smoe_params_in_slice(params, p, j, &first, &own);
      const size_t index = (size_t)smoe_slab_expert_number(slab, j) * params->param[p].count + first;
      for (size_t i = 0; i < n; i++) {
        slab->m[own + i] = moment(2 * p, index + i);
        slab->v[own + i] = moment(2 * p + 1, index + i);
      }
    }
  }
}

static inline void check_reals(const smoe_real *a, const smoe_real *b, size_t n, const char *what) {
  CHECK(n == 0 || memcmp(a, b, n * sizeof *a) == 0, "%s differ", what);
}

static inline void check_equal(const model *a, const model *b) {
  const smoe_params *p = &a->params, *q = &b->params;
  for (int i = 0; i < p->n_slabs; i++) {
    const smoe_slab *x = &p->slab[i], *y = &q->slab[i];
    check_reals(x->value, y->value, (size_t)x->n_local * x->count, "values");
    if (!x->m || !y->m) continue;
    check_reals(x->m, y->m, x->slice_count, "first moments");
    check_reals(x->v, y->v, x->slice_count, "second moments");
  }
}

/** Meta data of an update. */
static inline smoe_checkpoint_meta meta_of(int64_t update) {
  static char text[] = "model:\n  width: 33\n";
  return (smoe_checkpoint_meta){
      .update = update,
      .stage = 2,
      .seed = UINT64_MAX - 1,
      .n_tokens_seen = 1234567890123,
      .fingerprint = 0xfedcba9876543210u,
      .tokenizer = 0x0123456789abcdefu,
      .corpus = "corpus.h5",
      .absolute = "/data/corpus.h5",
      .best = {.metric = SMOE_BEST_LOSS, .update = 9, .n_since = 2, .value = 1.0 / 3},
      .configuration = text};
}

#endif
