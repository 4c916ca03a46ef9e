/* Gradients of routing methods with other options than the defaults, which test_router covers: more and fewer
 * slots per token, gates of other kinds, strong noise, strong losses, capacity. A whole model each.
 */
#include "../model_fixture.h"
#include "../values.h"
#include "piecewise.h"
#include "stablemoe/kernel.h"

static smoe_group group;

static double value(void *context, uint64_t *piece) {
  model_fixture *f = context;
  const size_t n = f->model->shape[SMOE_MAIN].n_tokens;
  smoe_model_begin_sums(f->model);
  fixture_forward(f, 0);
  for (int i = 0; i < f->model->n_layers; i++)
    if (f->model->layer[i].spec.ops == &smoe_layer_ffn)
      piece_add_active(piece, smoe_layer_ffn_tape(&f->model->layer[i])->h.wide,
                       n * f->model->layer[i].spec.inner);
  for (int m = 0; m < f->model->n_moe; m++) {
    const smoe_moe_layer *moe = f->model->moe[m];
    piece_add_choices(piece, moe->expert, n * (size_t)moe->router.n_slots);
    for (int s = 0; s < moe->experts.n_sublayers; s++)
      piece_add_active(piece, moe->experts.tape[s].h.wide, moe->exchange.n_recv * moe->experts.shape.inner);
  }
  return fixture_loss_of_sums(f);
}

static void test_gradient(const char *method, const char *const *overrides) {
  model_fixture f;
  fixture_open(&f, &group, method, overrides, 1);
  char *name = smoe_strdup(method);
  for (size_t i = 0; overrides[i]; i++) {
    char *longer = smoe_sprintf("%s, %s", name, overrides[i]);
    smoe_free(name);
    name = longer;
  }
  piecewise gradient = {.name = name, .value = value, .context = &f, .entries = 12};
  fixture_gradients(&f);
  piecewise_check_params(&gradient, &f.model->params);
  piecewise_end(&gradient);
  smoe_free(name);
  fixture_close(&f);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1);
  test_gradient("switch", LIST("router.switch.jitter=0.5", "router.switch.balance_weight=1"));
  test_gradient("switch", LIST("router.switch.jitter=0", "router.switch.init=normal"));
  test_gradient("gshard", LIST("router.gshard.second=always", "moe.capacity_factor=0.7"));
  test_gradient("gshard", LIST("router.gshard.balance_weight=1", "moe.experts=2"));
  test_gradient("stable", LIST("router.stable.gate_start=0.8", "router.stable.balance_weight=1",
                               "moe.capacity_factor=0.8"));
  test_gradient("stable", LIST("router.stable.bias_rate=0.1", "router.stable.gate_start=0.3"));
  test_gradient("smile", LIST("moe.experts=6", "moe.nodes=2", "router.smile.balance_weight=1",
                              "router.smile.place_balance_weight=2", "moe.capacity_factor=0.8"));
  test_gradient("smile", LIST("moe.experts=4", "moe.nodes=2", "router.smile.places=per_node",
                              "router.smile.place_balance_weight=2"));
  test_gradient("smile", LIST("moe.experts=4", "moe.nodes=2", "router.smile.place_balance_over=all",
                              "router.smile.place_balance_weight=2"));
  test_gradient("local", LIST("moe.experts=4", "moe.nodes=2", "router.local.locality_weight=2",
                              "router.local.balance_weight=1", "moe.capacity_factor=0.8"));
  test_gradient("local", LIST("moe.experts=1", "moe.nodes=2", "router.local.locality_weight=2"));
  test_gradient("topk", LIST("router.topk.k=1", "router.topk.balance_weight=1"));
  test_gradient("topk", LIST("router.topk.k=1", "router.topk.normalise=false"));
  test_gradient("topk", LIST("router.topk.k=2", "router.topk.normalise=false", "moe.capacity_factor=0.7"));
  test_gradient("topk", LIST("router.topk.k=3", "router.topk.balance_weight=0"));
  test_gradient("topk", LIST("router.topk.z_loss_weight=1", "router.topk.balance_over=sequence"));
  test_gradient("topk", LIST("router.topk.scores=sigmoid", "router.topk.bias_rate=0.1",
                             "router.topk.z_loss_weight=1", "router.topk.balance_weight=1"));
  test_gradient("topk", LIST("router.topk.scores=sigmoid", "router.topk.normalise=false",
                             "router.topk.balance_over=lane", "router.topk.balance_weight=1"));
  test_gradient("topk", LIST("router.topk.forced_balance=true", "router.topk.scores=sigmoid"));
  test_gradient("expert_choice", LIST("router.expert_choice.causal=true"));
  test_gradient("expert_choice", LIST("router.expert_choice.max_experts=1", "moe.capacity_factor=0.7"));
  test_gradient("expert_choice", LIST("router.expert_choice.capacity=1", "moe.experts=5"));
  test_gradient("recurrent", LIST("moe.layers=3", "moe.position=scattered", "model.blocks=3"));
  test_gradient("recurrent",
                LIST("moe.layers=4", "moe.position=scattered", "model.blocks=4", "router.recurrent.cell=rnn",
                     "moe.capacity_factor=0.8", "train.batch_sequences=8", "router.recurrent.width=5"));
  test_gradient("recurrent", LIST("moe.layers=3", "moe.position=scattered", "model.blocks=3",
                                  "router.recurrent.scores=sigmoid", "router.recurrent.bias_rate=0.1",
                                  "router.recurrent.z_loss_weight=1", "router.recurrent.balance_weight=1"));
  test_gradient("recurrent",
                LIST("model.family=decoder", "moe.sublayers=1", "model.blocks=3", "model.decoder.kv_heads=1",
                     "router.recurrent.balance_over=sequence", "router.recurrent.balance_weight=1"));
  test_gradient("sparsemixer router.sparsemixer.version=plain",
                LIST("router.sparsemixer.k=2", "moe.experts=5", "router.sparsemixer.epsilon=0.6",
                     "router.sparsemixer.z_loss_weight=1", "router.sparsemixer.balance_weight=1",
                     "router.sparsemixer.balance_over=lane", "moe.capacity_factor=0.8",
                     "train.batch_sequences=8"));
  test_gradient("sparsemixer router.sparsemixer.version=plain",
                LIST("router.sparsemixer.k=3", "moe.experts=4", "router.sparsemixer.epsilon=9",
                     "router.sparsemixer.balance_on=all", "router.sparsemixer.mask=paper",
                     "router.sparsemixer.balance_weight=1"));
  test_gradient("hash", LIST("router.hash.segments=3", "moe.capacity_factor=0.7"));
  test_gradient("hash",
                LIST("router.hash.segments=3", "moe.capacity_factor=0.7", "router.hash.gate=sigmoid"));
  test_gradient("replay", LIST("router.replay.slots=2", "moe.capacity_factor=0.9"));
  smoe_group_end(&group);
  return test_verdict("grad/router_options");
}
