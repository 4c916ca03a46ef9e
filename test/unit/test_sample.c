/** Drawing tokens from logits. */
#include "../../src/app/sample.h"

#include <math.h>

#include "harness.h"

enum { N = 6, DRAWS = 20000 };

/* Probabilities 0.4, 0.3, 0.15, 0.1, 0.05 and none, in an order that is not theirs. */
static const double probability[N] = {0.15, 0.4, 0, 0.05, 0.3, 0.1};

static void make_logits(smoe_real *logits) {
  for (int i = 0; i < N; i++) logits[i] = (smoe_real)(log(probability[i]) + 3);
}

/* How often each token is drawn fits `want`, which need not add up to 1: within five standard deviations. */
static void check_draws(const char *name, const smoe_sampling *sampling, const double *want) {
  smoe_real logits[N];
  int count[N] = {0};
  double sum = 0;
  make_logits(logits);
  for (int64_t position = 0; position < DRAWS; position++) {
    const int32_t token = smoe_sample(logits, N, sampling, 2, position);
    CHECK(token >= 0 && token < N, "%s: token %d", name, token);
    count[token]++;
  }
  for (int i = 0; i < N; i++) sum += want[i];
  for (int i = 0; i < N; i++) {
    const double p = want[i] / sum, error = count[i] - DRAWS * p;
    CHECK(fabs(error) <= 5 * sqrt(DRAWS * p * (1 - p)), "%s: token %d drawn %d times, not %.0f", name, i,
          count[i], DRAWS * p);
  }
}

static void check_refused(void) {
  const smoe_sampling cold = {.temperature = 0, .top_p = 1}, warm = {.temperature = 1, .top_p = 1};
  const smoe_real not_a_number[] = {1, NAN, 2}, none[] = {-INFINITY, -INFINITY},
                  one[] = {-INFINITY, -3, -INFINITY};
  CHECK(smoe_sample(not_a_number, 3, &cold, 0, 0) == -1);
  CHECK(smoe_sample(not_a_number, 3, &warm, 0, 0) == -1);
  CHECK(smoe_sample(none, 2, &warm, 0, 0) == -1);
  CHECK(smoe_sample(one, 3, &cold, 0, 0) == 1);
  CHECK(smoe_sample(one, 3, &warm, 0, 0) == 1);
}

static void check_functions(void) {
  smoe_real logits[N], equal[] = {1, 2, 2, 1};
  int other_sample = 0, other_seed = 0;
  const smoe_sampling cold = {.temperature = 0, .top_p = 1}, a = {.temperature = 1, .top_p = 1, .seed = 1};
  const smoe_sampling b = {.temperature = 1, .top_p = 1, .seed = 2};
  make_logits(logits);
  CHECK(smoe_sample(equal, 4, &cold, 0, 0) == 1, "the lower of two equal ones");
  for (int64_t position = 0; position < 100; position++) {
    const int32_t token = smoe_sample(logits, N, &a, 0, position);
    CHECK(token == smoe_sample(logits, N, &a, 0, position));
    other_sample += token != smoe_sample(logits, N, &a, 1, position);
    other_seed += token != smoe_sample(logits, N, &b, 0, position);
  }
  CHECK(other_sample > 30 && other_seed > 30, "%d and %d of 100 differ", other_sample, other_seed);
}

int main(void) {
  const double all[N] = {0.15, 0.4, 0, 0.05, 0.3, 0.1}, three[N] = {0.15, 0.4, 0, 0, 0.3, 0};
  const double two[N] = {0, 0.4, 0, 0, 0.3, 0}, best[N] = {0, 1, 0, 0, 0, 0};
  double sharp[N];
  for (int i = 0; i < N; i++) sharp[i] = all[i] * all[i];
  check_draws("all", &(smoe_sampling){.temperature = 1, .top_p = 1}, all);
  check_draws("temperature", &(smoe_sampling){.temperature = 0.5, .top_p = 1}, sharp);
  check_draws("top 3", &(smoe_sampling){.temperature = 1, .top_k = 3, .top_p = 1}, three);
  check_draws("more than there are", &(smoe_sampling){.temperature = 1, .top_k = 9, .top_p = 1}, all);
  check_draws("probability 0.69", &(smoe_sampling){.temperature = 1, .top_p = 0.69}, two);
  check_draws("probability 0.71", &(smoe_sampling){.temperature = 1, .top_p = 0.71}, three);
  /* Of three, 0.7 of 0.85 is the likeliest two. */
  check_draws("both", &(smoe_sampling){.temperature = 1, .top_k = 3, .top_p = 0.8}, two);
  check_draws("probability 0", &(smoe_sampling){.temperature = 1, .top_p = 0}, best);
  check_draws("cold", &(smoe_sampling){.temperature = 0, .top_p = 1}, best);
  check_refused();
  check_functions();
  return test_verdict("sample");
}
