/* Early stopping: what counts as the best evaluation, and when the patience is over. */
#include <math.h>
#include <string.h>

#include "../../src/train/patience.h"
#include "harness.h"
#include "stablemoe/arena.h"

static smoe_patience begin(int64_t patience, bool best) {
  smoe_settings *settings = smoe_alloc(sizeof *settings);
  settings->train.patience = patience;
  settings->train.best = best;
  smoe_patience p;
  smoe_patience_begin(&p, settings);
  smoe_free(settings);
  return p;
}

static void test_off(void) {
  smoe_patience p = begin(0, false);
  for (int64_t i = 1; i < 50; i++) CHECK(!smoe_patience_count(&p, i, 1) && !smoe_patience_over(&p));
  CHECK(p.best.metric == SMOE_BEST_NONE && p.best.update == 0);
}

static void test_best_alone(void) {
  smoe_patience p = begin(0, true);
  CHECK(smoe_patience_count(&p, 10, 3));
  for (int64_t i = 11; i < 50; i++) CHECK(!smoe_patience_count(&p, i, 3) && !smoe_patience_over(&p));
  CHECK(p.best.update == 10 && p.best.n_since == 39);
}

static void test_loss(void) {
  smoe_patience p = begin(2, false);
  const double value[] = {3, 2.5, 2.5, 2.4, NAN, 2.4};
  const bool better[] = {true, true, false, true, false, false};
  for (int64_t i = 0; i < 6; i++) {
    CHECK(!smoe_patience_over(&p), "evaluation %d", (int)i);
    CHECK(smoe_patience_count(&p, 10 * (i + 1), value[i]) == better[i], "evaluation %d", (int)i);
  }
  CHECK(smoe_patience_over(&p));
  CHECK(p.best.update == 40 && p.best.n_since == 2 && p.best.value == 2.4);
  char text[96];
  smoe_patience_describe(&p, text, sizeof text);
  CHECK(strcmp(text, " (best 2.4000 at update 40, 2 evaluations ago)") == 0, "%s", text);
}

/* BLEU: the higher the better, and nothing of a run that was judged by its loss. */
static void test_bleu(void) {
  smoe_settings *settings = smoe_alloc(sizeof *settings);
  settings->train.patience = 2;
  settings->train.patience_metric = SMOE_PATIENCE_BLEU;
  smoe_patience p;
  smoe_patience_begin(&p, settings);
  smoe_free(settings);
  const smoe_best by_loss = {.metric = SMOE_BEST_LOSS, .update = 5, .n_since = 1, .value = 2};
  smoe_patience_load(&p, &by_loss);
  CHECK(p.best.metric == SMOE_BEST_BLEU && p.best.update == 0);
  const double value[] = {0, 20.5, 20.5, 21, NAN, 20.9};
  const bool better[] = {true, true, false, true, false, false};
  for (int64_t i = 0; i < 6; i++) {
    CHECK(!smoe_patience_over(&p), "evaluation %d", (int)i);
    CHECK(smoe_patience_count(&p, 10 * (i + 1), value[i]) == better[i], "evaluation %d", (int)i);
  }
  CHECK(smoe_patience_over(&p) && p.best.update == 40 && p.best.value == 21);
  char text[96];
  smoe_patience_describe(&p, text, sizeof text);
  CHECK(strcmp(text, " (best 21.00 at update 40, 2 evaluations ago)") == 0, "%s", text);
  CHECK(strcmp(smoe_patience_what(&p), "validation BLEU") == 0);
  const smoe_best stored = {.metric = SMOE_BEST_BLEU, .update = 30, .n_since = 1, .value = 30};
  smoe_patience_load(&p, &stored);
  CHECK(p.best.update == 30 && !smoe_patience_over(&p));
}

/* A number that is not finite never becomes the best, whatever comes first. */
static void test_not_finite(void) {
  smoe_patience p = begin(2, false);
  CHECK(!smoe_patience_count(&p, 10, NAN) && !smoe_patience_count(&p, 20, -INFINITY));
  CHECK(smoe_patience_over(&p) && p.best.update == 0);
}

static void test_load(void) {
  const smoe_best stored = {.metric = SMOE_BEST_LOSS, .update = 30, .n_since = 1, .value = 2};
  smoe_patience p = begin(2, false), off = begin(0, false);
  smoe_patience_load(&p, &stored);
  CHECK(!smoe_patience_over(&p) && !smoe_patience_count(&p, 50, 2) && smoe_patience_over(&p));
  CHECK(p.best.update == 30 && p.best.value == 2);
  smoe_patience_load(&off, &stored);
  CHECK(off.best.metric == SMOE_BEST_NONE && off.best.update == 0);
  const smoe_best none = {.metric = SMOE_BEST_NONE};
  smoe_patience_load(&p, &none);
  CHECK(p.best.update == 30);
}

int main(void) {
  test_off();
  test_best_alone();
  test_loss();
  test_bleu();
  test_not_finite();
  test_load();
  return test_verdict("patience");
}
