/* A small encoder-decoder with padding on both sides: the gradient of the update's loss by every parameter; the same
 * bits with recomputation; padding changes nothing. */
#include "../model_fixture.h"
#include "../values.h"
#include "decisions.h"

enum { LANES = 2, SEQUENCES = 2, TARGET = 5, SOURCE = 4, ALL = LANES * SEQUENCES };

static smoe_group group;

typedef struct problem {
  smoe_config *config;
  smoe_model *model;
  int copies;                     /* of each sentence pair, one after another */
  smoe_objective each, objective; /* of a copy; of all */
  smoe_batch batch;
  smoe_pass pass;
  int32_t source[ALL * 2 * SOURCE], input[ALL * 2 * TARGET], target[ALL * 2 * TARGET];
  int32_t source_length[ALL], target_length[ALL];
} problem;

/* Sentences by number, in rows of ts and tt tokens; the first with its full length, others shorter. */
static void fill(problem *p, size_t ts, size_t tt) {
  int64_t n_targets = 0;
  for (size_t s = 0; s < ALL; s++) {
    const size_t number = s / (size_t)p->copies;
    p->source_length[s] = SOURCE - (int32_t)(number % 3);
    p->target_length[s] = TARGET - (int32_t)(number * 2 % 5);
    for (size_t t = 0; t < ts; t++)
      p->source[s * ts + t] =
          (int32_t)t < p->source_length[s] ? (int32_t)((7 * number + 3 * t + 1) % FIXTURE_VOCABULARY) : -1;
    for (size_t t = 0; t < tt; t++) {
      const bool there = (int32_t)t < p->target_length[s];
      p->input[s * tt + t] = there ? (int32_t)((5 * number + 2 * t) % FIXTURE_VOCABULARY) : -1;
      p->target[s * tt + t] = there ? (int32_t)((5 * number + 2 * t + 2) % FIXTURE_VOCABULARY) : -1;
      n_targets += there && s % (size_t)p->copies == 0;
    }
  }
  p->batch = (smoe_batch){.token = {[SMOE_MAIN] = p->input, [SMOE_ENCODER] = p->source},
                          .length = {[SMOE_MAIN] = p->target_length, [SMOE_ENCODER] = p->source_length},
                          .target = p->target,
                          .before = {100, 200},
                          .copies = p->copies};
  p->batch.shape[SMOE_MAIN] = smoe_model_token_shape(p->model, SEQUENCES, tt);
  p->batch.shape[SMOE_ENCODER] = smoe_model_token_shape(p->model, SEQUENCES, ts);
  p->pass.n_targets = n_targets;
}

static void begin(problem *p, const char *method, int stage, const char *dropout, const char *recompute) {
  const char *const overrides[] = {"model.family=translation",
                                   "train.lanes=2",
                                   "train.batch_tokens=1024",
                                   "model.context=16",
                                   "model.translation.label_smoothing=0.1",
                                   dropout,
                                   recompute,
                                   NULL};
  double consistency;
  *p = (problem){.config = fixture_config(method, overrides), .each = smoe_objective_smoothed(0.1)};
  p->copies = smoe_family_copies(p->config, &consistency);
  p->objective = p->copies > 1 ? smoe_objective_consistent(&p->each, consistency) : p->each;
  fixture_try(smoe_model_check(p->config), "check");
  const smoe_model_shape shape = {.vocabulary = FIXTURE_VOCABULARY,
                                  .n_lanes = LANES,
                                  .lane_sequences = SEQUENCES,
                                  .context = 2 * TARGET,
                                  .source_context = 2 * SOURCE,
                                  .training = true,
                                  .objective = &p->objective};
  fixture_try(smoe_model_create(&p->model, p->config, &group, &shape, false), "model");
  fixture_randomise(&p->model->params, 3);
  for (int m = 0; m < p->model->n_moe; m++) fixture_prepare(&p->model->moe[m]->router, &p->model->params);
  if (stage == 2) smoe_model_freeze(p->model);
  p->pass = (smoe_pass){.seed = 3, .update = 5, .stage = stage, .training = true};
  fill(p, SOURCE, TARGET);
}

static void end(problem *p) {
  smoe_model_destroy(p->model);
  smoe_config_destroy(p->config);
}

static double loss_of(const problem *p) {
  const model_fixture f = {.group = &group, .model = p->model, .context = p->pass, .copies = p->copies};
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

static void test_gradient(const char *method, int stage, const char *dropout) {
  problem p;
  begin(&p, method, stage, dropout, "train.recompute=false");
  char *name = smoe_sprintf("%s, stage %d, %s", method, stage, dropout);
  piecewise gradient = {.name = name, .value = value, .context = &p, .entries = 8};
  gradients(&p);
  piecewise_check_params(&gradient, &p.model->params);
  piecewise_end(&gradient);
  smoe_free(name);
  end(&p);
}

/* Compare all gradients of two problems. */
static void compare(const problem *a, const problem *b, double tolerance, const char *what) {
  const smoe_params *x = &a->model->params, *y = &b->model->params;
  for (int i = 0; i < x->n_params; i++) {
    smoe_real *g = piecewise_gradient(x, i), *h = piecewise_gradient(y, i);
    for (size_t k = 0; k < x->param[i].count && !x->param[i].frozen; k++)
      CHECK(fabs((double)g[k] - (double)h[k]) <= tolerance * (1e-3 + fabs((double)g[k])),
            "%s: %s [%zu]: %g, %g", what, x->param[i].name, k, (double)g[k], (double)h[k]);
    smoe_free(g), smoe_free(h);
  }
}

static void test_recompute(const char *method) {
  problem a, b;
  begin(&a, method, 1, "model.translation.dropout=0.2", "train.recompute=false");
  begin(&b, method, 1, "model.translation.dropout=0.2", "train.recompute=true");
  gradients(&a);
  gradients(&b);
  compare(&a, &b, 0, "recomputation");
  CHECK(b.model->tape.peak < a.model->tape.peak, "%zu bytes of tape with recomputation, %zu without",
        b.model->tape.peak, a.model->tape.peak);
  end(&a);
  end(&b);
}

/* Twice the padding: the loss and the gradients stay, but for how products of more rows round. */
static void test_padding(const char *method) {
  problem a, b;
  begin(&a, method, 1, "model.translation.dropout=0", "train.recompute=false");
  begin(&b, method, 1, "model.translation.dropout=0", "train.recompute=false");
  fill(&b, 2 * SOURCE, 2 * TARGET);
  gradients(&a);
  gradients(&b);
  CHECK(fabs(loss_of(&a) - loss_of(&b)) <= 1e-12 * fabs(loss_of(&a)), "%.17g, %.17g with more padding",
        loss_of(&a), loss_of(&b));
  compare(&a, &b, 1e-8, "padding");
  for (int m = 0; m < 2; m++)
    CHECK(memcmp(a.model->moe[m]->load, b.model->moe[m]->load, 3 * sizeof(int64_t)) == 0,
          "padding is routed");
  end(&a);
  end(&b);
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1); /* tiny products: a second thread only waits */
  test_gradient("stable", 1, "model.translation.dropout=0");
  test_gradient("stable", 1, "model.translation.dropout=0.2");
  test_gradient("stable", 2, "model.translation.dropout=0");
  test_gradient("topk", 1, "model.translation.dropout=0.1");
  test_gradient("hash", 1, "model.translation.dropout=0");
  test_gradient("thor router.thor.draw=sequence", 1, "model.translation.dropout=0.1");
  test_recompute("stable");
  test_recompute("thor router.thor.draw=token");
  test_recompute("topk");
  test_padding("stable");
  test_padding("topk");
  smoe_group_end(&group);
  return test_verdict("grad/translation");
}
