/** The learning rate's schedules, against values worked out by hand. */
#include "harness.h"
#include "stablemoe/optimizer.h"

static smoe_settings settings(smoe_schedule_kind kind, int64_t warmup, int64_t updates) {
  smoe_settings s = {0};
  s.optimizer.lr = 0.8;
  s.train.updates = updates;
  s.schedule.kind = kind;
  s.schedule.warmup = warmup;
  s.schedule.floor = 0.25;
  s.schedule.decay_share = 0.3;
  return s;
}

/* want [n] of the updates at [n]. */
static void check(const char *name, const smoe_settings *s, const int64_t *at, const double *want, size_t n) {
  for (size_t i = 0; i < n; i++) {
    const double got = smoe_learning_rate(s, at[i]);
    CHECK(fabs(got - want[i]) <= 1e-14, "%s, update %lld: %.17g, not %.17g", name, (long long)at[i], got,
          want[i]);
  }
}

#define CHECK_SCHEDULE(name, kind, warmup, updates, n, ...)                                                  \
  do {                                                                                                       \
    const smoe_settings s_ = settings(kind, warmup, updates);                                                \
    const struct {                                                                                           \
      int64_t at[n];                                                                                         \
      double want[n];                                                                                        \
    } table_ = __VA_ARGS__;                                                                                  \
    check(name, &s_, table_.at, table_.want, n);                                                             \
  } while (0)

int main(void) {
  /* Warm-up: 4 updates, a quarter of the peak each, and the peak itself at the fourth. */
  for (int kind = SMOE_LINEAR; kind <= SMOE_WSD; kind++)
    CHECK_SCHEDULE("warm-up", (smoe_schedule_kind)kind, 4, 14, 4, {{0, 1, 2, 3}, {0.2, 0.4, 0.6, 0.8}});
  CHECK_SCHEDULE("linear", SMOE_LINEAR, 4, 14, 4, {{4, 5, 9, 13}, {0.8, 0.72, 0.4, 0.08}});
  CHECK_SCHEDULE("inverse_sqrt", SMOE_INVERSE_SQRT, 4, 20, 2, {{4 * 4 - 1, 4 * 9 - 1}, {0.4, 0.8 / 3}});
  CHECK_SCHEDULE("constant", SMOE_CONSTANT, 4, 14, 2, {{4, 13}, {0.8, 0.8}});

  /* From 0.8 to 0.2 over 12 updates: half of it after 6, where the cosine is 0; after 4 it is 1/2, after 8 -1/2;
   * after 3 sqrt(1/2). */
  CHECK_SCHEDULE("cosine", SMOE_COSINE, 4, 16, 6,
                 {{4, 7, 8, 10, 12, 16}, {0.8, 0.5 + 0.3 * 0.70710678118654752440, 0.65, 0.5, 0.35, 0.2}});
  CHECK_SCHEDULE("cosine without warm-up", SMOE_COSINE, 0, 2, 2, {{0, 1}, {0.8, 0.5}});
  CHECK_SCHEDULE("cosine of warm-up alone", SMOE_COSINE, 5, 5, 2, {{4, 5}, {0.8, 0.8}});

  /* 0.3 of 20 are 6 updates: the first of them, 14, still has the peak, the last has a sixth left. */
  CHECK_SCHEDULE("wsd", SMOE_WSD, 4, 20, 7,
                 {{4, 13, 14, 15, 17, 19, 20}, {0.8, 0.8, 0.8, 0.7, 0.5, 0.3, 0.2}});
  /* Less than what the share asks for is left after the warm-up. */
  CHECK_SCHEDULE("wsd after a long warm-up", SMOE_WSD, 18, 20, 3, {{17, 18, 19}, {0.8, 0.8, 0.5}});
  smoe_settings s = settings(SMOE_WSD, 4, 20);
  s.schedule.decay_share = 0;
  check("wsd without decay", &s, (const int64_t[]){4, 19}, (const double[]){0.8, 0.8}, 2);
  return test_verdict("schedule");
}
