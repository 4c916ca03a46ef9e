/* A whole small model: the gradient of the update's loss, all parts, by every parameter. */
#include "../model_fixture.h"
#include "../values.h"
#include "decisions.h"
#include "stablemoe/kernel.h"

static smoe_group group;

static double model_value(void *context, uint64_t *piece) {
  model_fixture *f = context;
  smoe_model_begin_sums(f->model);
  for (size_t m = 0; m < f->n_micro; m++) {
    fixture_forward(f, m);
    piece_add_model(piece, f->model, f->model->shape);
  }
  return fixture_loss_of_sums(f);
}

static int64_t dropped(const smoe_model *model) {
  int64_t n = 0;
  for (int m = 0; m < model->n_moe; m++) n += model->moe[m]->n_dropped;
  return n;
}

/** head_rows: rows of a slice of the head; 0: as the model has it. */
static void test_gradient(const char *name, const char *method, int stage, const char *const *overrides,
                          size_t head_rows, size_t entries) {
  model_fixture f;
  fixture_open(&f, &group, method, overrides, stage);
  if (head_rows) *smoe_layer_head_rows(f.model->head) = head_rows;
  piecewise gradient = {.name = name, .value = model_value, .context = &f, .entries = entries};
  /* A state over depth begins at 0: with one MoE layer nothing comes from it. */
  if (f.model->n_moe == 1) gradient.idle = "moe/router/cell/hidden/weight";
  fixture_gradients(&f);
  const int n_slots = f.model->n_moe ? f.model->moe[0]->router.n_slots : 0;
  const bool may = f.settings->moe.capacity_factor > 0, must = may && n_slots == 1;
  CHECK(dropped(f.model) > 0 ? may : !must, "%s: %lld slots dropped", name, (long long)dropped(f.model));
  piecewise_check_params(&gradient, &f.model->params);
  piecewise_end(&gradient);
  fixture_close(&f);
}

/** Every combination of what a model can be, or so many that all pairs of settings meet; a few entries of
 *  each tensor.
 */
static void test_combinations(const char *method, int stage, bool every) {
  for (int i = 0; i < 16; i++) {
    const bool in_pairs = i == 0 || i == 7 || i == 11 || i == 13 || i == 14;
    if (!every && !in_pairs) continue;
    const char *const overrides[] = {
        i & 1 ? "moe.layers=2" : "moe.layers=1",
        i & 1 ? "moe.position=scattered" : "moe.position=middle",
        i & 2 ? "moe.capacity_factor=0.8" : "moe.capacity_factor=0",
        i & 4 ? "train.micro_batches=2" : "train.micro_batches=1",
        i & 4 ? "train.batch_sequences=8" : "train.batch_sequences=4",
        i & 8 ? "model.scale_embedding=false" : "model.scale_embedding=true",
        /* With the seed of the others a decision is within the smallest step of its edge in one case. */
        strcmp(method, "pmoe") == 0 ? "run.seed=6" : "run.seed=3",
        NULL,
    };
    char *name = smoe_sprintf("%s, stage %d, %s, %s, %s, %s", method, stage, overrides[0], overrides[2],
                              overrides[3], overrides[5]);
    test_gradient(name, method, stage, overrides, 0, 2);
    smoe_free(name);
  }
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

/** Many entries of every tensor, or few, and shapes that the combinations leave out. */
static void test_whole(const char *method, int stage, bool every) {
  char *name = smoe_sprintf("%s, stage %d", method, stage);
  test_gradient(name, method, stage,
                LIST("moe.layers=2", "moe.position=scattered", "moe.capacity_factor=0.9",
                     "train.micro_batches=2", "train.batch_sequences=8"),
                3, every ? 40 : 2); /* 10 rows of a lane in slices of 3 */
  smoe_free(name);
  name = smoe_sprintf("%s, stage %d, MoE layer at the top, one lane", method, stage);
  test_gradient(name, method, stage, LIST("moe.position=top", "train.lanes=1", "moe.sublayers=1"), 0, 3);
  smoe_free(name);
  name = smoe_sprintf("%s, stage %d, MoE layer at the bottom, four lanes", method, stage);
  test_gradient(name, method, stage,
                LIST("moe.position=bottom", "train.lanes=4", "model.heads=4", "model.blocks=1"), 0, 3);
  smoe_free(name);
}

/** Evaluation: a model without gradients, whose layers share their tapes, gives the same sums and
 *  logits as one for training; and a forward pass of evaluation adds no gradient.
 */
static void test_evaluation(const char *method, int stage) {
  model_fixture f;
  fixture_open(&f, &group, method, LIST("moe.layers=2", "moe.position=scattered", "moe.sublayers=3"), stage);
  const smoe_model_shape shape = {.vocabulary = FIXTURE_VOCABULARY,
                                  .n_lanes = (int)f.settings->train.lanes,
                                  .lane_sequences = f.model->shape[SMOE_MAIN].lane_sequences,
                                  .objective = &f.objective};
  smoe_model *plain;
  fixture_try(smoe_model_create(&plain, f.config, &group, &shape, false), "model for evaluation");
  fixture_randomise(&plain->params, (uint64_t)f.settings->run.seed);
  for (int m = 0; m < plain->n_moe; m++) fixture_prepare(&plain->moe[m]->router, &plain->params);
  smoe_model *const models[] = {f.model, plain};
  smoe_real logits[2][FIXTURE_VOCABULARY];
  smoe_model_begin_update(f.model);
  f.context.training = false;
  for (int i = 0; i < 2; i++) {
    smoe_model_begin_sums(models[i]);
    const smoe_batch batch = smoe_model_batch(models[i], f.input, f.target);
    smoe_model_forward(models[i], &batch, &f.context);
    smoe_model_logits(models[i], 7, logits[i]);
  }
  CHECK(f.model->n_sums == plain->n_sums &&
            memcmp(f.model->sums, plain->sums,
                   (size_t)(plain->shape[SMOE_MAIN].n_lanes * plain->n_sums) * sizeof *plain->sums) == 0,
        "%s, stage %d: other sums", method, stage);
  CHECK(memcmp(logits[0], logits[1], sizeof *logits) == 0, "%s, stage %d: other logits", method, stage);
  for (int i = 0; i < f.model->params.n_params; i++) {
    if (f.model->params.param[i].sharding == SMOE_EXPERT) continue;
    smoe_real *gradient = piecewise_gradient(&f.model->params, i);
    for (size_t k = 0; k < f.model->params.param[i].count; k++)
      CHECK(gradient[k] == 0, "an evaluation adds to the gradient of %s", f.model->params.param[i].name);
    smoe_free(gradient);
  }
  smoe_model_destroy(plain);
  fixture_close(&f);
}

/** The logits of single rows are those whose cross entropy the loss sums up, also where the head works in slices. */
static void test_logits(size_t head_rows) {
  model_fixture f;
  fixture_open(&f, &group, "stable", NULL, 1);
  if (head_rows) *smoe_layer_head_rows(f.model->head) = head_rows;
  const smoe_model *model = f.model;
  double loss = 0, n_targets = 0, sums = 0;
  smoe_model_begin_sums(f.model);
  fixture_forward(&f, 0);
  for (int lane = 0; lane < model->shape[SMOE_MAIN].n_lanes; lane++) {
    const smoe_lane_sums *lane_sums = (const smoe_lane_sums *)(model->sums + lane * model->n_sums);
    sums += lane_sums->loss, n_targets += lane_sums->n_targets;
  }
  for (size_t t = 0; t < model->shape[SMOE_MAIN].n_tokens; t++) {
    smoe_real logits[FIXTURE_VOCABULARY];
    double sum = 0;
    smoe_model_logits(f.model, t, logits);
    for (int v = 0; v < FIXTURE_VOCABULARY; v++) sum += exp((double)logits[v]);
    if (f.target[t] >= 0) loss += log(sum) - (double)logits[f.target[t]];
  }
  CHECK_NEAR(loss, sums, 1e-12, 0);
  CHECK(n_targets == (double)f.context.n_targets, "%g targets of %lld", n_targets,
        (long long)f.context.n_targets);
  fixture_close(&f);
}

/** The form of a method whose backward is the gradient, where the usual one estimates another. */
static const char *exact(const char *method) {
  return strcmp(method, "sparsemixer") == 0 ? "sparsemixer router.sparsemixer.version=plain" : method;
}

/* Give `two` both copies of each sequence of `one`. */
static void copy_tokens(model_fixture *two, const model_fixture *one) {
  const size_t context = one->model->shape[SMOE_MAIN].context;
  for (size_t t = 0; t < one->n_micro * one->model->shape[SMOE_MAIN].n_tokens; t++)
    for (size_t copy = 0; copy < 2; copy++) {
      const size_t to = (t / context * 2 + copy) * context + t % context;
      two->input[to] = one->input[t];
      two->target[to] = one->target[t];
    }
  two->context.n_targets = one->context.n_targets;
}

/** Two copies with the same experts and without dropout predict alike: no divergence, twice the gradient. */
static void test_copies(void) {
  model_fixture one, two;
  fixture_open(&one, &group, "thor", LIST("router.thor.copies=1", "moe.experts=1"), 1);
  fixture_open(&two, &group, "thor", LIST("router.thor.consistency=7", "moe.experts=1"), 1);
  copy_tokens(&two, &one);
  fixture_gradients(&one);
  fixture_gradients(&two);
  const double *sums = two.model->sums + sizeof(smoe_lane_sums) / sizeof(double);
  CHECK(sums[0] == 0, "equal copies differ by %g", sums[0]);
  const double a = ((const smoe_lane_sums *)one.model->sums)->loss,
               b = ((const smoe_lane_sums *)two.model->sums)->loss;
  CHECK(fabs(a - b) <= 1e-12 * a, "the mean loss of equal copies is %.17g, of one %.17g", b, a);
  for (int i = 0; i < one.model->params.n_params; i++) {
    smoe_real *g = piecewise_gradient(&one.model->params, i), *h = piecewise_gradient(&two.model->params, i);
    for (size_t k = 0; k < one.model->params.param[i].count; k++)
      CHECK(fabs(2 * (double)g[k] - (double)h[k]) <= 1e-11 * (1 + fabs((double)g[k])),
            "%s: %g of two, %g of one", one.model->params.param[i].name, (double)h[k], (double)g[k]);
    smoe_free(g), smoe_free(h);
  }
  fixture_close(&one);
  fixture_close(&two);
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  for (size_t i = 0; smoe_router_methods[i]; i++) {
    const smoe_router_ops *method = smoe_router_methods[i];
    if (method->family) continue; /* test_images.c */
    for (int stage = 1; stage <= (method->two_stages ? 2 : 1); stage++) {
      test_combinations(exact(method->name), stage, i == 0);
      test_whole(exact(method->name), stage, i == 0 && stage == 1);
      test_evaluation(method->name, stage);
    }
  }
  test_gradient("dense", "stable", 1, LIST("moe.layers=0"), 0, 0);
  test_gradient("decoder", "topk", 1,
                LIST("model.family=decoder", "moe.sublayers=1", "model.heads=4", "model.decoder.kv_heads=2",
                     "model.decoder.shared_experts=1", "model.decoder.dropout=0.2", "train.micro_batches=2"),
                0, 10);
  test_gradient("decoder, other layers", "stable", 1,
                LIST("model.family=decoder", "moe.sublayers=1", "model.blocks=3", "model.decoder.moe_every=2",
                     "model.decoder.norm=layer", "model.decoder.positions=learned", "model.decoder.tied=true",
                     "model.decoder.activation=gelu", "model.decoder.biases=true", "train.recompute=true"),
                0, 10);
  test_gradient("two copies", "thor", 1,
                LIST("router.thor.draw=token", "router.thor.consistency=3", "train.micro_batches=2",
                     "moe.layers=2", "moe.position=scattered"),
                5, 20); /* slices of 2 rows of each copy */
  test_gradient("two copies, dropout", "thor", 1,
                LIST("model.family=decoder", "moe.sublayers=1", "model.decoder.dropout=0.2",
                     "router.thor.draw=sequence", "router.thor.distinct=true", "moe.capacity_factor=0.8",
                     "router.thor.consistency=5", "train.recompute=true"),
                0, 10);
  test_copies();
  test_logits(0);
  test_logits(3);
  smoe_group_end(&group);
  return test_verdict("grad/model");
}
