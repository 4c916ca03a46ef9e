/* Small models of images: the gradient of the update's loss by every parameter, also with padding; the same bits with
 * recomputation; and what the equations of pMoE say of special cases. */
#include "../model_fixture.h"
#include "../values.h"
#include "decisions.h"

enum { LANES = 2, SEQUENCES = 3, PATCHES = 5, WIDTH = 8, IMAGES = LANES * SEQUENCES, N = IMAGES * PATCHES };

static smoe_group group;

typedef struct problem {
  smoe_config *config;
  smoe_model *model;
  smoe_objective objective;
  smoe_batch batch;
  smoe_pass pass;
  int32_t token[N], target[N];
  smoe_real patch[N * WIDTH];
} problem;

/* The last image is padding. */
static void fill(problem *p, int classes) {
  for (int i = 0; i < IMAGES; i++)
    for (int t = 0; t < PATCHES; t++) {
      const bool real = i < IMAGES - 1;
      p->token[i * PATCHES + t] = real ? i * PATCHES + t : -1;
      p->target[i * PATCHES + t] = real && t == 0 ? (i + i / classes) % classes : -1;
      for (int j = 0; j < WIDTH; j++)
        p->patch[(i * PATCHES + t) * WIDTH + j] =
            (smoe_real)(real ? smoe_random_normal(9, SMOE_RANDOM_TEST, 3,
                                                  (uint64_t)((i * PATCHES + t) * WIDTH + j))
                             : 0);
    }
  p->batch = smoe_model_batch(p->model, p->token, p->target);
  p->batch.patch = p->patch;
  p->pass.n_targets = IMAGES - 1;
}

static void begin(problem *p, const char *method, int stage, int classes, const char *const *more) {
  const char *overrides[24] = {"train.lanes=2", "train.batch_sequences=6", "model.context=5",
                               "moe.sublayers=1", "router.pmoe.patches=3"};
  size_t n = 5;
  for (size_t i = 0; more[i]; i++) overrides[n++] = more[i];
  *p = (problem){.config = fixture_config(method, overrides), .objective = smoe_objective_classes};
  const smoe_model_shape shape = {.vocabulary = classes == 2 ? 1 : classes,
                                  .n_lanes = LANES,
                                  .lane_sequences = SEQUENCES,
                                  .patch = WIDTH,
                                  .training = true,
                                  .objective = &p->objective};
  fixture_try(smoe_model_create(&p->model, p->config, &group, &shape, false), "model");
  fixture_randomise(&p->model->params, 3);
  if (stage == 2) smoe_model_freeze(p->model);
  p->pass = (smoe_pass){.seed = 3, .update = 5, .stage = stage, .training = true};
  fill(p, classes);
}

static void end(problem *p) {
  smoe_model_destroy(p->model);
  smoe_config_destroy(p->config);
}

static double loss_of(const problem *p) {
  const model_fixture f = {.group = &group, .model = p->model, .context = p->pass};
  return fixture_loss_of_sums(&f);
}

static double value(void *context, uint64_t *piece) {
  problem *p = context;
  smoe_model_begin_sums(p->model);
  smoe_model_forward(p->model, &p->batch, &p->pass);
  piece_add_model(piece, p->model, p->batch.shape);
  return loss_of(p);
}

static void gradients(problem *p) {
  smoe_model_begin_update(p->model);
  smoe_model_forward(p->model, &p->batch, &p->pass);
  smoe_model_backward(p->model);
}

/* Parameters that have no gradient although they learn: the experts' in stage 1 of separate training. */
static bool idle(const problem *p, const smoe_param *param) {
  return p->pass.stage == 1 && param->sharding == SMOE_EXPERT && p->model->moe[0]->router.ops->two_stages;
}

static void check_gradient(problem *p, const char *name) {
  const smoe_params *params = &p->model->params;
  piecewise gradient = {.name = name, .value = value, .context = p, .entries = 6};
  gradients(p);
  smoe_real **grad = smoe_alloc((size_t)params->n_params * sizeof *grad);
  for (int i = 0; i < params->n_params; i++) grad[i] = piecewise_gradient(params, i);
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    if (!param->frozen) {
      const double largest = piecewise_check_param(&gradient, params, i, grad[i]);
      CHECK((largest > 0) != idle(p, param), "%s: largest gradient of %s is %g", name, param->name, largest);
    }
    smoe_free(grad[i]);
  }
  smoe_free(grad);
  piecewise_end(&gradient);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

static void test_gradient(const char *what, const char *method, int stage, int classes,
                          const char *const *more) {
  problem p;
  char *name = smoe_sprintf("%s, stage %d, %d classes", what, stage, classes);
  begin(&p, method, stage, classes, more);
  check_gradient(&p, name);
  smoe_free(name);
  end(&p);
}

static void test_recompute(const char *method) {
  problem a, b;
  begin(&a, method, 1, 3, LIST("model.family=vision", "model.vision.dropout=0.2", "train.recompute=false"));
  begin(&b, method, 1, 3, LIST("model.family=vision", "model.vision.dropout=0.2", "train.recompute=true"));
  gradients(&a);
  gradients(&b);
  for (int i = 0; i < a.model->params.n_params; i++) {
    smoe_real *g = piecewise_gradient(&a.model->params, i), *h = piecewise_gradient(&b.model->params, i);
    CHECK(memcmp(g, h, a.model->params.param[i].count * sizeof *g) == 0, "recomputation: %s",
          a.model->params.param[i].name);
    smoe_free(g), smoe_free(h);
  }
  end(&a);
  end(&b);
}

/* Each expert takes exactly l patches of each image, those of its largest scores, and its gates add up to 1. */
static void test_choice(void) {
  problem p;
  begin(&p, "pmoe", 1, 2, LIST("model.family=cnn"));
  smoe_model_begin_sums(p.model);
  smoe_model_forward(p.model, &p.batch, &p.pass);
  const smoe_moe_layer *moe = p.model->moe[0];
  const int index = smoe_params_find(&p.model->params, "moe0/router/centroid");
  const smoe_real *w = smoe_params_shared(&p.model->params, index);
  for (int i = 0; i < IMAGES; i++)
    for (int e = 0; e < 3; e++) {
      double least = INFINITY, rest = -INFINITY, gates = 0;
      int taken = 0;
      for (int t = i * PATCHES; t < (i + 1) * PATCHES; t++) {
        double score = 0;
        bool has = false;
        for (int j = 0; j < WIDTH; j++) score += (double)(w[e * WIDTH + j] * p.patch[t * WIDTH + j]);
        for (int k = 0; k < 3; k++)
          if (moe->expert[t * 3 + k] == e) has = true, gates += (double)moe->gate[t * 3 + k];
        taken += has;
        if (has && score < least) least = score;
        if (!has && score > rest) rest = score;
      }
      CHECK(taken == (i < IMAGES - 1 ? 3 : 0), "expert %d takes %d patches of image %d", e, taken, i);
      CHECK(taken == 0 || (least >= rest && fabs(gates - 1) <= 1e-12), "gates %g, %g before %g", gates, least,
            rest);
    }
  end(&p);
}

/* One expert that takes all patches, with the plain CNN's filters and gates of 1 / n: the plain CNN. */
static void test_plain(void) {
  problem a, b;
  begin(&a, "stable", 1, 3, LIST("model.family=cnn", "moe.layers=0", "model.inner=10"));
  begin(&b, "pmoe", 1, 3,
        LIST("model.family=cnn", "moe.experts=1", "router.pmoe.patches=5", "model.cnn.pool=chosen"));
  smoe_params *x = &a.model->params, *y = &b.model->params;
  const char *const names[][2] = {{"filters/w1", "moe0/expert/ffn0/w1"},
                                  {"filters/w2", "moe0/expert/ffn0/w2"}};
  for (int i = 0; i < 2; i++) {
    const int from = smoe_params_find(x, names[i][0]), to = smoe_params_find(y, names[i][1]);
    CHECK(x->param[from].count == y->param[to].count && from >= 0 && to >= 0);
    memcpy(smoe_params_expert(y, to, 0), smoe_params_shared(x, from),
           x->param[from].count * sizeof(smoe_real));
  }
  smoe_real *w = smoe_params_shared(y, smoe_params_find(y, "moe0/router/centroid"));
  memset(w, 0, WIDTH * sizeof *w);
  smoe_model_begin_sums(a.model);
  smoe_model_forward(a.model, &a.batch, &a.pass);
  smoe_model_begin_sums(b.model);
  smoe_model_forward(b.model, &b.batch, &b.pass);
  /* The gates are 1 / n here, and the head divides by l = n once more. */
  const smoe_moe_layer *moe = b.model->moe[0];
  const smoe_real *one = a.model->in[2].rows, *other = b.model->in[2].rows;
  for (int i = 0; i < (IMAGES - 1) * PATCHES * 3; i++)
    CHECK_NEAR((double)other[i] * PATCHES, (double)one[i], 1e-12, 1e-12);
  CHECK_NEAR((double)moe->gate[0], 1.0 / PATCHES, 1e-12, 0);
  end(&a);
  end(&b);
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  for (int classes = 2; classes <= 4; classes += 2) {
    test_gradient("CNN", "stable", 1, classes, LIST("model.family=cnn", "moe.layers=0"));
    test_gradient("pMoE, joint", "pmoe", 1, classes, LIST("model.family=cnn", "model.cnn.pool=all"));
    for (int stage = 1; stage <= 2; stage++)
      test_gradient("pMoE, separate", "pmoe_separate", stage, classes,
                    LIST("model.family=cnn", "model.cnn.output=class", "moe.experts=4"));
  }
  test_gradient("vision, dense", "stable", 1, 3, LIST("model.family=vision", "moe.layers=0"));
  test_gradient(
      "vision, expert choice", "expert_choice", 1, 3,
      LIST("model.family=vision", "router.expert_choice.within_sequence=true", "model.vision.dropout=0.1"));
  test_gradient("vision, pMoE", "pmoe", 1, 2, LIST("model.family=vision", "model.vision.moe_every=2"));
  test_gradient("vision, top-k", "topk", 1, 3, LIST("model.family=vision"));
  test_recompute("expert_choice");
  test_choice();
  test_plain();
  smoe_group_end(&group);
  return test_verdict("grad/images");
}
