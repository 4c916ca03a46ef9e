/* Experts that live elsewhere: values, moments, gradients, norm and the next parameters, expert by
 * expert the same bits, also where replicas share out the moments.
 */
#include "../model_fixture.h"
#include "harness.h"
#include "stablemoe/optimizer.h"

enum { EXPERTS = 7 };

/* What is known of every expert by its number, on every rank. */
typedef struct sums {
  uint64_t value[EXPERTS], m[EXPERTS], v[EXPERTS], gradient[EXPERTS];
} sums;

/* Checksums add up over replicas, too: each rank counts the slice it owns. */
static sums sums_of(const smoe_params *params) {
  sums s = {{0}};
  for (int j = 0; j < params->n_local; j++)
    for (int i = 0; i < params->n_params; i++) {
      const smoe_param *param = &params->param[i];
      size_t first;
      if (param->sharding != SMOE_EXPERT) continue;
      const size_t n = smoe_params_expert_in_slice(params, i, j, &first);
      if (n == 0) continue;
      const int e = smoe_params_expert_number(params, j);
      const size_t own =
          (size_t)j * params->expert_count + param->offset + first - params->expert_slice_first;
      const uint64_t salt = 1 + (uint64_t)i; /* so that parameters cannot be exchanged unseen */
      s.value[e] += salt * smoe_checksum(smoe_params_expert(params, i, j) + first, first, n);
      s.m[e] += salt * smoe_checksum(params->expert_m + own, first, n);
      s.v[e] += salt * smoe_checksum(params->expert_v + own, first, n);
      s.gradient[e] += salt * smoe_checksum(params->expert_grad_own + own, first, n);
    }
  smoe_group_sum_u64(&params->group, (uint64_t *)&s, (int)(sizeof s / sizeof(uint64_t)));
  return s;
}

/* Moments that tell every element of every expert apart. */
static void fill_moments(smoe_params *params) {
  for (int j = 0; j < params->n_local; j++)
    for (int i = 0; i < params->n_params; i++) {
      const smoe_param *param = &params->param[i];
      size_t first;
      if (param->sharding != SMOE_EXPERT) continue;
      const size_t n = smoe_params_expert_in_slice(params, i, j, &first);
      const size_t at = (size_t)j * params->expert_count + param->offset + first;
      for (size_t k = 0; k < n; k++) {
        const uint64_t index = (uint64_t)smoe_params_expert_number(params, j) * param->count + first + k;
        const double u = smoe_random_uniform(1, SMOE_RANDOM_TEST, smoe_hash_text(param->name), index);
        params->expert_m[at + k - params->expert_slice_first] = (smoe_real)(u - 0.5);
        params->expert_v[at + k - params->expert_slice_first] = (smoe_real)u;
      }
    }
}

/* Another table: the experts turned by `turn` places, ascending within each rank. */
static void table(int32_t *expert_at, int turn, int n_ranks) {
  bool mine[EXPERTS];
  for (int r = 0, place = 0; r < n_ranks; r++) {
    const int first = smoe_expert_first(EXPERTS, r, n_ranks),
              end = smoe_expert_first(EXPERTS, r + 1, n_ranks);
    memset(mine, 0, sizeof mine);
    for (int i = first; i < end; i++) mine[(i * 3 + turn) % EXPERTS] = true;
    for (int e = 0; e < EXPERTS; e++)
      if (mine[e]) expert_at[place++] = e;
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
    int32_t expert_at[EXPERTS];
    const sums before = sums_of(a);
    table(expert_at, turn, b->topology.experts.n_ranks);
    smoe_params_move_experts(b, expert_at);
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
    CHECK(memcmp(a->shared, b->shared, a->shared_count * sizeof *a->shared) == 0, "%s, turn %d: backbone",
          method, turn);
    for (int m = 0; m < home.model->n_moe; m++)
      CHECK(memcmp(home.model->moe[m]->load, away.model->moe[m]->load, EXPERTS * sizeof(int64_t)) == 0,
            "%s: loads", method);
  }
  fixture_close(&home);
  fixture_close(&away);
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
  const int verdict = test_verdict("placement");
  smoe_group_end(&group);
  return verdict;
}
