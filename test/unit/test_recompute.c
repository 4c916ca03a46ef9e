/* Recomputation of activations: the same bits, less memory; and what a lane costs. */
#include "../model_fixture.h"
#include "harness.h"

static const char *const SMALL[] = {"train.lanes=4", "train.batch_sequences=8", "train.micro_batches=2",
                                    "train.recompute=false", NULL};
static const char *const AGAIN[] = {"train.lanes=4", "train.batch_sequences=8", "train.micro_batches=2",
                                    "train.recompute=true", NULL};

static void check_bits(const smoe_group *group, const char *method, int stage) {
  model_fixture kept, again;
  fixture_open(&kept, group, method, SMALL, stage);
  fixture_open(&again, group, method, AGAIN, stage);
  fixture_gradients(&kept);
  fixture_gradients(&again);
  const smoe_params *a = &kept.model->params, *b = &again.model->params;
  for (int s = 0; s < a->n_slabs; s++) {
    const smoe_slab *x = &a->slab[s], *y = &b->slab[s];
    const size_t n = x->learns ? (size_t)x->lanes.count * (size_t)x->n_local * x->count : 0;
    CHECK(n == 0 || memcmp(x->grad, y->grad, n * sizeof *x->grad) == 0, "%s, stage %d: gradients of slab %d",
          method, stage, s);
  }
  CHECK(fixture_loss_of_sums(&kept) == fixture_loss_of_sums(&again), "%s: loss", method);
  /* One block's tape of one lane is left of those of all blocks and lanes, but for rounding to 64 bytes. */
  const smoe_settings *settings = kept.settings;
  const size_t c = (size_t)settings->model.width, n_blocks = (size_t)settings->model.blocks;
  const size_t row = 5 * c + (size_t)settings->model.heads + (size_t)settings->model.inner + 4;
  const size_t lane = kept.model->shape[SMOE_MAIN].lane_tokens * row * sizeof(smoe_real);
  const size_t spared = (n_blocks * (size_t)a->lanes.count - 1) * lane - 9 * 64;
  CHECK(again.model->tape.peak + spared <= kept.model->tape.peak,
        "%zu bytes of tape, %zu without recomputation", again.model->tape.peak, kept.model->tape.peak);
  CHECK(again.model->fixed.peak == kept.model->fixed.peak, "the model itself");
  fixture_close(&kept);
  fixture_close(&again);
}

/* Bytes that a model would take: expected, at most, or of one arena. */
typedef struct plan {
  double expected, most;
  size_t fixed, tape, slab;
} plan;

static plan plan_with(const smoe_group *group, const char *method, const char *const *overrides) {
  smoe_config *config = fixture_config(method, overrides);
  const smoe_settings *s = smoe_config_settings(config);
  const smoe_model_shape shape = {.vocabulary = 8192,
                                  .n_lanes = (int)s->train.lanes,
                                  .lane_sequences = (size_t)(s->train.batch_sequences / s->train.lanes),
                                  .training = true};
  smoe_model *model = NULL;
  fixture_try(smoe_model_create(&model, config, group, &shape, true), "plan");
  const plan p = {smoe_model_expected_bytes(model),
                  (double)(model->fixed.peak + model->tape.peak + model->scratch.peak), model->fixed.peak,
                  model->tape.peak, model->params.slab[SMOE_SLAB_REPLICATED].count * sizeof(smoe_real)};
  smoe_model_destroy(model);
  smoe_config_destroy(config);
  return p;
}

static plan plan_of(const smoe_group *group, const char *const *overrides) {
  return plan_with(group, "stable", overrides);
}

#define PAPER_LIKE                                                                                           \
  "model.width=256", "model.blocks=6", "model.heads=8", "model.inner=1024", "moe.experts=8",                 \
      "moe.inner=1024", "train.batch_sequences=16", "train.lanes=4"

static void check_plan(const smoe_group *group) {
  const plan kept = plan_of(group, (const char *const[]){PAPER_LIKE, "model.context=256", NULL});
  const plan twice =
      plan_of(group, (const char *const[]){PAPER_LIKE, "model.context=512", "train.recompute=true", NULL});
  printf("context 256: %.1f MiB; context 512 with recomputation: %.1f MiB\n", kept.expected / (1 << 20),
         twice.expected / (1 << 20));
  CHECK(twice.expected <= kept.expected, "twice the context takes %.0f bytes, not %.0f", twice.expected,
        kept.expected);
  /* Eight lanes for four, the same batch: four gradient slabs more, four lanes' sums, half as many positions of a
   * lane's rows in each of six attention layers, nothing else. */
  const size_t positions = 6 * 16 * 256 / 8 * sizeof(int32_t);
  const plan lanes =
      plan_of(group, (const char *const[]){PAPER_LIKE, "model.context=256", "train.lanes=8", NULL});
  CHECK(lanes.fixed + positions >= kept.fixed + 4 * kept.slab &&
            lanes.fixed + positions <= kept.fixed + 4 * kept.slab + 1024,
        "%zu bytes of the model with 8 lanes, %zu with 4, slabs of %zu", lanes.fixed, kept.fixed, kept.slab);
  CHECK(lanes.expected - kept.expected <= 4.0 * (double)kept.slab + 1024,
        "a lane costs more than its slab: %g of %zu", (lanes.expected - kept.expected) / 4, kept.slab);
}

/* The tape has the experts' results where gates learn, as they travel: nothing else differs. Room for slots that
 * balanced routing does not use is not expected to be taken. */
static void check_results(const smoe_group *group) {
  const size_t n = 16 * 64 * 256;
  const char *const plain[] = {PAPER_LIKE, "model.context=64", NULL};
  const char *const half[] = {PAPER_LIKE, "model.context=64", "train.precision=bf16",
                              "router.hash.segments=2", NULL};
  for (int b = 0; b < 2; b++) {
    const char *const *overrides = b ? half : plain;
    const size_t bytes = b ? 2 * n * 2 : n * sizeof(smoe_real);
    const plan fixed = plan_with(group, "hash", overrides),
               learned = plan_with(group, "hash router.hash.gate=sigmoid", overrides);
    CHECK(learned.tape == fixed.tape + bytes, "%zu bytes of tape, %zu with gate 1", learned.tape, fixed.tape);
  }
  const plan choice = plan_with(group, "expert_choice", plain); /* two of eight experts per token */
  CHECK(choice.most - choice.expected >= 6.0 * (double)(n * sizeof(smoe_real)), "%g of %g expected",
        choice.expected, choice.most);
}

int main(int argc, char **argv) {
  smoe_group group;
  smoe_group_start(&group, &argc, &argv);
  static const char *const methods[] = {"stable", "stable router.stable.features=transformer", "gshard",
                                        "hash router.hash.variant=bigram", NULL};
  for (size_t i = 0; methods[i]; i++)
    for (int stage = 1; stage <= 2; stage++)
      if (stage == 1 || strncmp(methods[i], "stable", 6) == 0) check_bits(&group, methods[i], stage);
  check_plan(&group);
  check_results(&group);
  const int verdict = test_verdict("recompute");
  smoe_group_end(&group);
  return verdict;
}
