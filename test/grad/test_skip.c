/* Gates that skip sublayers: straight-through gradients against the function whose derivative they are, and rows that are
 * skipped in evaluation against rows that are masked in training. */
#include "../model_fixture.h"
#include "../values.h"
#include "piecewise.h"
#include "stablemoe/skip.h"

static smoe_group group;

static const char *const TINY[] = {"model.family=decoder", "moe.sublayers=1", "moe.layers=0",
                                   "model.blocks=4",       "model.context=7", "model.decoder.activation=gelu",
                                   "model.skip.layers=2"};
enum { N_TINY = sizeof TINY / sizeof *TINY, GATED = 2 };

static void open_tiny(model_fixture *f, const char *const *more) {
  const char *overrides[N_TINY + 8] = {NULL};
  size_t n = 0;
  for (; n < N_TINY; n++) overrides[n] = TINY[n];
  for (; *more; more++) overrides[n++] = *more;
  fixture_open(f, &group, "topk", overrides, 1);
}

static smoe_layer *gated(const model_fixture *f, int k) {
  for (int i = 0; i < f->model->n_layers; i++)
    if (f->model->layer[i].spec.skip && k-- == 0) return &f->model->layer[i];
  return NULL;
}

/* What the losses do not sum up: the share above the target, straight through. */
static double capacity(const model_fixture *f, smoe_real *const *base) {
  const smoe_skip_options *options = smoe_config_options(f->config, &smoe_skip_keys);
  const size_t n = f->model->shape[SMOE_MAIN].n_tokens;
  double sum = 0;
  for (int k = 0; k < GATED; k++) {
    const smoe_layer *layer = gated(f, k);
    const smoe_real *r = smoe_skip_r(layer);
    double rows = 0, ran = 0, more = 0;
    for (size_t i = 0; i < n; i++) {
      if (f->input[i] < 0) continue;
      rows++;
      ran += smoe_skip_ran(layer)[i];
      more += (double)(r[i] - base[k][i]);
    }
    if (ran > options->target * rows) sum += options->weight * more / rows;
  }
  return sum;
}

typedef struct subject {
  model_fixture f;
  smoe_real *base[GATED];
} subject;

static double value(void *context, uint64_t *piece) {
  subject *s = context;
  smoe_model_begin_sums(s->f.model);
  fixture_forward(&s->f, 0);
  for (int k = 0; k < GATED; k++)
    piece_add_choices(piece, smoe_skip_ran(gated(&s->f, k)), s->f.model->shape[SMOE_MAIN].n_tokens);
  /* Losses are sums over the lane's targets, divided by their number. */
  return fixture_loss_of_sums(&s->f) + capacity(&s->f, s->base);
}

static void test_gradient(const char *name, const char *const *more) {
  subject s;
  open_tiny(&s.f, more);
  const size_t n = s.f.model->shape[SMOE_MAIN].n_tokens;
  smoe_model_begin_update(s.f.model);
  fixture_forward(&s.f, 0);
  int64_t ran = 0, rows = 0;
  for (int k = 0; k < GATED; k++) {
    s.base[k] = smoe_alloc(n * sizeof *s.base[k]);
    memcpy(s.base[k], smoe_skip_r(gated(&s.f, k)), n * sizeof *s.base[k]);
    for (size_t i = 0; i < n; i++) ran += smoe_skip_ran(gated(&s.f, k))[i], rows += s.f.input[i] >= 0;
  }
  CHECK(ran > 0 && ran < rows, "%s: %lld of %lld rows ran: the test shows less", name, (long long)ran,
        (long long)rows);
  for (int k = 0; k < GATED; k++) smoe_skip_straighten(gated(&s.f, k), s.base[k]);
  fixture_gradients(&s.f);
  piecewise gradient = {.name = name, .value = value, .context = &s, .entries = 6};
  piecewise_check_params(&gradient, &s.f.model->params);
  piecewise_end(&gradient);
  for (int k = 0; k < GATED; k++) smoe_free(s.base[k]);
  fixture_close(&s.f);
}

/* Rows that skip are not computed in evaluation; the losses are those of masked rows. */
static void test_evaluation(const char *name, const char *const *more) {
  model_fixture f;
  open_tiny(&f, more);
  double loss[3];
  for (int i = 0; i < 3; i++) {
    f.context.training = i == 0;
    f.context.skip_nothing = i == 2;
    f.context.update = 0; /* what is drawn in evaluation is drawn as at update 0 */
    smoe_model_begin_sums(f.model);
    fixture_forward(&f, 0);
    loss[i] = fixture_loss_of_sums(&f);
  }
  CHECK(fabs(loss[1] - loss[0]) <= 1e-13 * fabs(loss[0]), "%s: %.17g in evaluation, %.17g masked", name,
        loss[1], loss[0]);
  CHECK(!(fabs(loss[2] - loss[0]) <= 1e-6), "%s: skipping changes nothing: the test shows less", name);
  fixture_close(&f);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  smoe_threads_set(1);
  static const char *const whats[] = {"model.skip.what=attention", "model.skip.what=ffn",
                                      "model.skip.what=block"};
  for (int i = 0; i < 3; i++) {
    test_gradient("running mean", LIST(whats[i], "model.skip.weight=0.7", "model.skip.target=0"));
    test_gradient("token, those that ran",
                  LIST(whats[i], "model.skip.unit=token", "model.skip.gradient=active"));
    test_gradient("whole mean, masked", LIST(whats[i], "model.skip.mean=whole", "model.skip.gradient=masked",
                                             "model.skip.weight=0.7", "model.skip.target=0", "run.seed=4"));
    test_gradient("LayerNorm, one lane",
                  LIST(whats[i], "model.decoder.norm=layer", "model.decoder.biases=true", "train.lanes=1",
                       "model.decoder.positions=learned", "run.seed=1"));
    test_evaluation("running mean", LIST(whats[i]));
    test_evaluation("token, grouped heads, biases",
                    LIST(whats[i], "model.skip.unit=token", "model.heads=4", "model.decoder.kv_heads=2",
                         "model.decoder.biases=true", "model.decoder.norm=layer"));
    test_evaluation("whole mean", LIST(whats[i], "model.skip.mean=whole", "model.decoder.positions=learned"));
    test_evaluation("at random", LIST(whats[i], "model.skip.choice=random", "model.skip.share=0.4"));
  }
  smoe_group_end(&group);
  return test_verdict("grad/skip");
}
