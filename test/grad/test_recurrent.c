/* RMoE: what its switches may and may not change, and the limit in which it is a router with one hidden layer. */
#include <math.h>

#include "../model_fixture.h"
#include "../values.h"
#include "harness.h"
#include "stablemoe/kernel.h"

static smoe_group group;

/* Three MoE layers; parameters by name, so that forms of the method share what they have in common. */
static void open_form(model_fixture *f, const char *method) {
  fixture_open(f, &group, method,
               (const char *const[]){"moe.layers=3", "moe.position=scattered", "model.blocks=3", NULL}, 1);
}

static size_t n_parameters(const model_fixture *f) {
  size_t n = 0;
  for (int i = 0; i < f->model->params.n_params; i++) n += f->model->params.param[i].count;
  return n;
}

static smoe_real *parameter(const model_fixture *f, const char *name, size_t *count) {
  const int index = smoe_params_find(&f->model->params, name);
  SMOE_ASSERT(index >= 0);
  if (count) *count = f->model->params.param[index].count;
  return smoe_params_shared(&f->model->params, index);
}

static double gradient_of(const model_fixture *f, const char *name, size_t i) {
  double sum = 0;
  const int index = smoe_params_find(&f->model->params, name);
  for (int lane = 0; lane < f->model->params.lanes.count; lane++)
    sum += (double)smoe_params_lane_grad(&f->model->params, index, lane)[i];
  return sum;
}

/* All sums of the lanes, and the scores' gates of the last layer. */
static bool same_forward(const model_fixture *a, const model_fixture *b) {
  const smoe_model *one = a->model, *other = b->model;
  const size_t sums = (size_t)(one->shape[SMOE_MAIN].n_lanes * one->n_sums);
  const size_t slots = one->shape[SMOE_MAIN].n_tokens * (size_t)one->moe[2]->router.n_slots;
  return memcmp(one->sums, other->sums, sums * sizeof *one->sums) == 0 &&
         memcmp(one->moe[2]->gate, other->moe[2]->gate, slots * sizeof(smoe_real)) == 0;
}

static void test_switches(const char *cell) {
  static const char *const recurrences[] = {"full", "detach", "none"};
  model_fixture f[3];
  double first[3], head[3], cells[3];
  for (int i = 0; i < 3; i++) {
    char *method = smoe_sprintf("recurrent router.recurrent.recurrence=%s", recurrences[i]);
    char *key = smoe_sprintf("router.recurrent.cell=%s", cell);
    fixture_open(&f[i], &group, method,
                 (const char *const[]){"moe.layers=3", "moe.position=scattered", "model.blocks=3", key, NULL},
                 1);
    fixture_gradients(&f[i]);
    first[i] = gradient_of(&f[i], "moe0/router/projection", 3);
    head[i] = gradient_of(&f[i], "moe2/router/head", 2);
    cells[i] = gradient_of(&f[i], "moe/router/cell/hidden/weight", 1);
    smoe_free(method), smoe_free(key);
  }
  CHECK(n_parameters(&f[0]) == n_parameters(&f[1]) && n_parameters(&f[0]) == n_parameters(&f[2]),
        "%s: %zu, %zu and %zu parameters", cell, n_parameters(&f[0]), n_parameters(&f[1]),
        n_parameters(&f[2]));
  CHECK(same_forward(&f[0], &f[1]), "%s: detach changes the forward pass", cell);
  CHECK(!same_forward(&f[0], &f[2]), "%s: no recurrence changes nothing in the forward pass", cell);
  CHECK(head[0] == head[1], "%s: the last head's gradient is %.17g, detached %.17g", cell, head[0], head[1]);
  CHECK(first[0] != first[1], "%s: the first projection's gradient does not know the later layers", cell);
  CHECK(cells[0] != 0 && cells[1] != 0 && cells[2] == 0, "%s: gradients of U are %g, %g, %g", cell, cells[0],
        cells[1], cells[2]);
  for (int i = 0; i < 3; i++) fixture_close(&f[i]);
}

/* U = 0, c_n = 0, z = 0, W_n = 1, b_n = 0: tanh of the projection. */
static void test_limit(void) {
  model_fixture gru, mlp;
  open_form(&gru, "recurrent");
  open_form(&mlp, "recurrent router.recurrent.cell=mlp");
  size_t n, p2;
  smoe_real *w = parameter(&gru, "moe/router/cell/input/weight", &n),
            *b = parameter(&gru, "moe/router/cell/input/bias", NULL);
  const size_t p = (size_t)sqrt((double)n / 3);
  SMOE_ASSERT(3 * p * p == n);
  memset(w + 2 * p * p, 0, p * p * sizeof *w);
  for (size_t i = 0; i < p; i++) {
    w[2 * p * p + i * p + i] = 1;
    b[p + i] = -1000; /* z = 0 */
    b[2 * p + i] = 0;
  }
  memset(parameter(&gru, "moe/router/cell/hidden/weight", &p2), 0, n * sizeof *w);
  memset(parameter(&gru, "moe/router/cell/hidden/bias", &p2), 0, 3 * p * sizeof *w);
  fixture_gradients(&gru);
  fixture_gradients(&mlp);
  CHECK_NEAR(fixture_loss_of_sums(&gru), fixture_loss_of_sums(&mlp), 1e-13, 0);
  static const char *const names[] = {"moe0/router/projection", "moe1/router/head", "moe2/router/projection"};
  for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
    parameter(&mlp, names[k], &n);
    for (size_t i = 0; i < n; i++)
      CHECK_NEAR(gradient_of(&gru, names[k], i), gradient_of(&mlp, names[k], i), 1e-10, 1e-14);
  }
  fixture_close(&gru);
  fixture_close(&mlp);
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  test_switches("gru");
  test_switches("rnn");
  test_limit();
  smoe_group_end(&group);
  return test_verdict("grad/recurrent");
}
