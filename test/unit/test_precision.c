/** Training in bf16 against fp32: losses and gradients of small models, for layers of all kinds and every routing
 *  method, with the processor's bf16 instructions and without.
 *
 *  Every product rounds two operands to 2^-9 of their size. Rounding errors are independent, and a gradient lies
 *  behind at most PRODUCTS products, so it is off by about e = sqrt(2 PRODUCTS) 2^-9 of its norm; SLACK times that is
 *  allowed, since softmax, norms and sums that cancel make some errors larger. ReLU adds to that: of numbers spread
 *  as a normal distribution, a share of 0.8 e is so near to 0 that they may change their sign, and that share of a
 *  gradient's terms comes or goes: the square root of it by norm. Where a router chooses by hidden states, a choice
 *  may turn over between nearly equal scores, and then gradients are of other experts: such models compare the share
 *  of equal choices, and losses.
 */
#include "../model_fixture.h"
#include "harness.h"
#include "stablemoe/bf16.h"

enum { PRODUCTS = 24 };
static const double SLACK = 4;

static double bound(bool relu) {
  const double e = sqrt(2.0 * PRODUCTS) * ldexp(1, -9);
  return SLACK * e + (relu ? sqrt(0.8 * e) : 0);
}

/* How far b is from a, by norms over all lanes' or experts' gradients of a parameter. */
static double distance(const smoe_params *a, const smoe_params *b, int p) {
  const smoe_slab *x = smoe_params_slab(a, p), *y = smoe_params_slab(b, p);
  const smoe_param *param = &a->param[p];
  const size_t copies = x->n_experts ? (size_t)x->n_local : (size_t)x->lanes.count;
  double error = 0, size = 0;
  for (size_t j = 0; j < copies && x->grad; j++)
    for (size_t i = 0; i < param->count; i++) {
      const double own = x->grad[j * x->count + param->offset + i];
      const double off = y->grad[j * y->count + param->offset + i] - own;
      error += off * off;
      size += own * own;
    }
  return size > 0 ? sqrt(error / size) : 0;
}

/* Share of the choices of all MoE layers that are the same in both. */
static double agreement(const smoe_model *a, const smoe_model *b) {
  size_t same = 0, n = 0;
  for (int m = 0; m < a->n_moe; m++)
    for (size_t i = 0; i < a->shape[a->moe[m]->stream].n_tokens * (size_t)a->moe[m]->router.n_slots; i++, n++)
      same += a->moe[m]->expert[i] == b->moe[m]->expert[i];
  return n ? (double)same / (double)n : 1;
}

static void compare(const smoe_group *group, const char *method, const char *const *keys) {
  const char *with[16] = {"train.precision=bf16"};
  for (int i = 0; keys[i]; i++) with[i + 1] = keys[i];
  model_fixture wide, half;
  fixture_open(&wide, group, method, keys, 1);
  fixture_open(&half, group, method, with, 1);
  fixture_gradients(&wide);
  fixture_gradients(&half);
  const double want = fixture_loss_of_sums(&wide), got = fixture_loss_of_sums(&half);
  const double agreed = agreement(wide.model, half.model);
  CHECK(agreed >= 0.8, "%s %s: %.2f of the choices agree", method, keys[0], agreed);
  CHECK(fabs(got - want) <= bound(false) * fabs(want), "%s %s: the loss is %g, in fp32 %g", method, keys[0],
        got, want);
  CHECK(got != want, "%s %s: nothing was rounded", method, keys[0]);
  const bool relu = strcmp(half.settings->model.family, "decoder") != 0;
  double worst = 0;
  for (int p = 0; p < wide.model->params.n_params && agreed == 1; p++) {
    const double off = distance(&wide.model->params, &half.model->params, p);
    worst = off > worst ? off : worst;
    CHECK(off <= bound(relu), "%s %s: the gradient of %s is off by %.2g of its norm", method, keys[0],
          wide.model->params.param[p].name, off);
  }
  printf("%-60s %-30s agreement %.3f, worst gradient %.4f\n", method, keys[0], agreed, worst);
  fixture_close(&wide);
  fixture_close(&half);
}

#define WIDE "model.width=32", "model.inner=64", "moe.inner=64", "model.heads=4", "model.context=16"
static const char *const STABLEMOE[] = {WIDE, NULL};
static const char *const DENSE[] = {"moe.layers=0", WIDE, NULL};
static const char *const DECODER[] = {"model.family=decoder",
                                      "moe.sublayers=1",
                                      "model.decoder.kv_heads=2",
                                      "model.decoder.shared_experts=1",
                                      "model.decoder.dropout=0.1",
                                      WIDE,
                                      NULL};
static const char *const GELU[] = {"model.family=decoder",
                                   "moe.sublayers=1",
                                   "model.decoder.activation=gelu",
                                   "model.decoder.norm=layer",
                                   "model.decoder.positions=learned",
                                   "model.decoder.biases=true",
                                   "model.decoder.tied=true",
                                   WIDE,
                                   "train.recompute=true",
                                   NULL};

int main(int argc, char **argv) {
  smoe_group group;
  smoe_group_start(&group, &argc, &argv);
  for (int fallback = 0; fallback < 2; fallback++) {
    smoe_bf16_force_fallback(fallback);
    compare(&group, "hash", STABLEMOE);
    compare(&group, "hash", DENSE);
    compare(&group, "hash", DECODER);
    compare(&group, "hash", GELU);
    for (size_t i = 0; smoe_router_methods[i]; i++)
      if (strcmp(smoe_router_methods[i]->name, "local") == 0)
        compare(&group, "local moe.experts=4", STABLEMOE); /* which divide the width */
      else if (strcmp(smoe_router_methods[i]->name, "replay") != 0 && !smoe_router_methods[i]->family)
        compare(&group, smoe_router_methods[i]->name, STABLEMOE);
  }
  const int verdict = test_verdict("precision");
  smoe_group_end(&group);
  return verdict;
}
