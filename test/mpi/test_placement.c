/* Experts that live elsewhere: values, moments, gradients, norm and the next parameters, expert by
 * expert the same bits, also where replicas share out the moments.
 */
#include "../model_fixture.h"
#include "harness.h"
#include "stablemoe/kernel.h"
#include "stablemoe/optimizer.h"

enum { EXPERTS = 7, FEWER = 5 };

/* What is known of every expert by its number, over all MoE layers, on every rank. */
typedef struct sums {
  uint64_t value[EXPERTS], m[EXPERTS], v[EXPERTS], gradient[EXPERTS];
} sums;

/* Checksums add up over replicas, too: each rank counts the slice it owns. */
static sums sums_of(const smoe_params *params) {
  sums s = {{0}};
  for (int i = 0; i < params->n_params; i++) {
    const smoe_slab *slab = smoe_params_slab(params, i);
    const uint64_t salt = 1 + (uint64_t)i; /* so that parameters cannot be exchanged unseen */
    for (int j = 0; j < slab->n_local && slab->n_experts > 0; j++) {
      size_t first, own;
      const size_t n = smoe_params_in_slice(params, i, j, &first, &own);
      const int e = smoe_slab_expert_number(slab, j);
      if (n == 0) continue;
      s.value[e] += salt * smoe_checksum(smoe_params_expert(params, i, j) + first, first, n);
      if (!slab->learns) continue;
      s.m[e] += salt * smoe_checksum(slab->m + own, first, n);
      s.v[e] += salt * smoe_checksum(slab->v + own, first, n);
      s.gradient[e] += salt * smoe_checksum(slab->grad_own + own, first, n);
    }
  }
  smoe_group_sum_u64(&params->group, (uint64_t *)&s, (int)(sizeof s / sizeof(uint64_t)));
  return s;
}

/* A number in [0, 1) that tells every element of every expert of every parameter apart. */
static double number(const smoe_param *param, int expert, size_t at) {
  return smoe_random_uniform(1, SMOE_RANDOM_TEST, smoe_hash_text(param->name),
                             (uint64_t)expert * param->count + at);
}

static void fill_moments(smoe_params *params) {
  for (int i = 0; i < params->n_params; i++) {
    const smoe_slab *slab = smoe_params_slab(params, i);
    for (int j = 0; j < slab->n_local && slab->n_experts > 0 && slab->learns; j++) {
      size_t first, own;
      const size_t n = smoe_params_in_slice(params, i, j, &first, &own);
      for (size_t k = 0; k < n; k++) {
        const double u = number(&params->param[i], smoe_slab_expert_number(slab, j), first + k);
        slab->m[own + k] = (smoe_real)(u - 0.5);
        slab->v[own + k] = (smoe_real)u;
      }
    }
  }
}

/* The sum over all ranks' tokens, in the own slice. */
static void fill_gradients(smoe_params *params) {
  for (int i = 0; i < params->n_params; i++) {
    const smoe_slab *slab = smoe_params_slab(params, i);
    for (int j = 0; j < slab->n_local && slab->learns; j++) {
      size_t first, own;
      const size_t n = smoe_params_in_slice(params, i, j, &first, &own);
      for (size_t k = 0; k < n; k++)
        slab->grad_own[own + k] =
            (smoe_real)(number(&params->param[i], smoe_slab_expert_number(slab, j), first + k) - 0.25);
    }
  }
}

/* Another table: n experts turned by `turn` places, ascending within each rank. */
static void table(int32_t *expert_at, int turn, int n, int n_ranks) {
  bool mine[EXPERTS];
  for (int r = 0, place = 0; r < n_ranks; r++) {
    const int first = smoe_expert_first(n, r, n_ranks), end = smoe_expert_first(n, r + 1, n_ranks);
    memset(mine, 0, sizeof mine);
    for (int i = first; i < end; i++) mine[(i * 3 + turn) % n] = true;
    for (int e = 0; e < n; e++)
      if (mine[e]) expert_at[place++] = e;
  }
}

/* Turn the experts of every MoE layer, each by other places. */
static void turn_layers(smoe_params *params, int turn) {
  for (int m = 0; m < params->n_moe; m++) {
    int32_t expert_at[EXPERTS];
    table(expert_at, turn + 2 * m, smoe_params_experts(params, m)->n_experts,
          params->topology.experts.n_ranks);
    smoe_params_move_experts(params, m, expert_at);
  }
}

/* One update; returns the norms. */
static smoe_norms update(model_fixture *f) {
  fixture_gradients(f);
  smoe_params_reduce(&f->model->params, f->model->reduce_scratch);
  return smoe_gradient_norms(&f->model->params);
}

static void check(const smoe_group *group, const char *method, int stage, const char *const *overrides) {
  model_fixture home, away;
  fixture_open(&home, group, method, overrides, stage);
  fixture_open(&away, group, method, overrides, stage);
  smoe_params *a = &home.model->params, *b = &away.model->params;
  fill_moments(a);
  fill_moments(b);
  for (int turn = 1; turn <= 3; turn++) {
    const sums before = sums_of(a);
    turn_layers(b, turn);
    sums placed = sums_of(b);
    memcpy(placed.gradient, before.gradient, sizeof placed.gradient); /* destroyed by the move */
    CHECK(memcmp(&before, &placed, sizeof placed) == 0, "%s, turn %d: moved", method, turn);

    const smoe_norms norm = update(&home), norm_away = update(&away);
    CHECK(memcmp(&norm, &norm_away, sizeof norm) == 0, "%s, turn %d: norms %.17g and %.17g", method, turn,
          norm.expert, norm_away.expert);
    CHECK(norm.expert > 0, "%s", method);
    smoe_optimizer_step(a, home.settings, 5 + turn, 0.5);
    smoe_optimizer_step(b, away.settings, 5 + turn, 0.5);
    const sums one = sums_of(a), other = sums_of(b);
    CHECK(memcmp(&one, &other, sizeof one) == 0, "%s, turn %d: updated experts", method, turn);
    CHECK(memcmp(a->slab[SMOE_SLAB_REPLICATED].value, b->slab[SMOE_SLAB_REPLICATED].value,
                 a->slab[SMOE_SLAB_REPLICATED].count * sizeof(smoe_real)) == 0,
          "%s, turn %d: backbone", method, turn);
    for (int m = 0; m < home.model->n_moe; m++)
      CHECK(memcmp(home.model->moe[m]->load, away.model->moe[m]->load, EXPERTS * sizeof(int64_t)) == 0,
            "%s: loads", method);
  }
  fixture_close(&home);
  fixture_close(&away);
}

/* ---- layers of different numbers of experts ---- */

/* Three MoE layers, the second of fewer experts; parameters of some units, and some that are frozen. */
static void declare_layers(smoe_params *params) {
  const smoe_init normal = {SMOE_INIT_NORMAL, 1, false};
  smoe_params_declare(params, SMOE_REPLICATED, (int64_t[]){5000, 0}, normal, true, "shared");
  for (int m = 0; m < 3; m++) {
    CHECK(smoe_params_begin_experts(params, m == 1 ? FEWER : EXPERTS) == m);
    smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){50, 60 + m, 0}, normal, true, "moe%d/w1", m);
    smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){700, 0}, normal, false, "moe%d/frozen", m);
    smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){1100, 0}, normal, false, "moe%d/later", m);
    smoe_params_declare(params, SMOE_EXPERT, (int64_t[]){10, 0}, normal, false, "moe%d/b1", m);
    char *name = smoe_sprintf("moe%d/frozen", m);
    if (m != 2) CHECK(smoe_params_freeze(params, name, true) == 1);
    smoe_free(name);
  }
}

/* The norm of the experts' gradients, in the order of its definition: a sum for each number over layers,
 * parameters and units, then over numbers. */
static double expected_norm(const smoe_params *params) {
  double all = 0;
  for (int e = 0; e < EXPERTS; e++) {
    double sum = 0;
    for (int i = 0; i < params->n_params; i++) {
      const smoe_param *param = &params->param[i];
      const int n_experts = smoe_params_slab(params, i)->n_experts;
      smoe_real unit[SMOE_UNIT];
      if (param->frozen || e >= n_experts) continue;
      for (size_t at = 0, n; at < param->count; at += n) {
        n = param->count - at < SMOE_UNIT ? param->count - at : SMOE_UNIT;
        for (size_t k = 0; k < n; k++) unit[k] = (smoe_real)(number(param, e, at + k) - 0.25);
        sum += smoe_sum_squares(unit, n);
      }
    }
    all += sum;
  }
  return sqrt(all);
}

/* Take the steps of updates whose gradients are known, moving experts in between or not; returns the sums. */
static sums step_layers(const smoe_group *group, const smoe_topology *topology, const smoe_settings *settings,
                        bool move) {
  smoe_params params;
  smoe_arena arena;
  const smoe_lanes lanes = smoe_lanes_of_rank(4, group->rank, group->n_ranks);
  smoe_params_begin(&params, group, &lanes);
  if (topology) smoe_params_set_topology(&params, topology);
  declare_layers(&params);
  smoe_arena_measure(&arena, "model");
  smoe_params_layout(&params, &arena, true);
  fixture_try(smoe_arena_reserve(&arena), "memory");
  smoe_params_layout(&params, &arena, true);
  smoe_params_initialise(&params, 3);
  fill_moments(&params);
  CHECK(smoe_params_freeze(&params, "moe1/later", true) == 1);
  for (int turn = 1; turn <= 3; turn++) {
    if (move) turn_layers(&params, turn);
    for (int m = 0; m < params.n_moe; m++) {
      const smoe_slab *slab = smoe_params_experts(&params, m);
      for (int j = 0; move && j < slab->n_local; j++) {
        const int place = slab->place_first + j, e = smoe_slab_expert_number(slab, j);
        CHECK(e >= 0 && e < slab->n_experts && (j == 0 || e > slab->expert_at[place - 1]), "layer %d", m);
      }
    }
    fill_gradients(&params); /* a move destroys them */
    const smoe_norms norms = smoe_gradient_norms(&params);
    const double expected = expected_norm(&params);
    CHECK(norms.expert == expected, "norm %.17g, expected %.17g", norms.expert, expected);
    smoe_optimizer_step(&params, settings, turn, 0.5);
  }
  const sums s = sums_of(&params);
  smoe_params_end(&params);
  smoe_arena_release(&arena);
  return s;
}

/* Placements that differ from layer to layer, on one replica and on several: what one rank alone makes. */
static void check_layers(const smoe_group *group) {
  const smoe_group self = {MPI_COMM_SELF, 0, 1};
  smoe_config *config = fixture_config("stable", NULL);
  const smoe_settings *settings = smoe_config_settings(config);
  const sums alone = step_layers(&self, NULL, settings, false);
  for (int g = 1; g <= group->n_ranks && g <= FEWER; g++) {
    smoe_topology topology;
    if (group->n_ranks % g != 0) continue;
    fixture_try(smoe_topology_create(&topology, group, FEWER, g), "topology");
    for (int move = 0; move < 2; move++) {
      const sums s = step_layers(group, &topology, settings, move);
      CHECK(memcmp(s.m, alone.m, sizeof s.m) == 0 && memcmp(s.v, alone.v, sizeof s.v) == 0,
            "%d of %d ranks, moved %d: moments", g, group->n_ranks, move);
      CHECK(memcmp(s.value, alone.value, sizeof s.value) == 0, "%d of %d ranks, moved %d: values", g,
            group->n_ranks, move);
    }
    smoe_topology_release(&topology);
  }
  smoe_config_destroy(config);
}

int main(int argc, char **argv) {
  smoe_group group;
  smoe_group_start(&group, &argc, &argv);
  static const char *const plain[] = {"moe.experts=7", "train.lanes=4", "train.batch_sequences=8", NULL};
  static const char *const all[] = {
      "moe.experts=7",          "train.lanes=4",         "train.batch_sequences=8", "moe.layers=2",
      "moe.position=scattered", "train.micro_batches=2", "moe.capacity_factor=1",   NULL};
  static const char *const replicas[] = {"moe.experts=7", "train.lanes=4", "train.batch_sequences=8",
                                         "comm.expert_ranks=2", NULL};
  check(&group, "stable", 2, plain);
  check(&group, "gshard", 1, all);
  if (group.n_ranks == 4) check(&group, "stable", 2, replicas);
  check_layers(&group);
  const int verdict = test_verdict("placement");
  smoe_group_end(&group);
  return verdict;
}
