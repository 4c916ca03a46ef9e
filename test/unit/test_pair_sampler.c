/* Batches of pairs: every pair once, within their limits, and the same whatever was asked before. */
#include "stablemoe/pair_sampler.h"

#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/random.h"

enum { DIRECTIONS = 3, PAIRS = 7001, LONGEST = 60 };

static smoe_pairs pairs;

/** Number of pairs of a direction: 10 to 3 to 1. */
static int direction_of(int64_t i) {
  const int r = (int)(i % 14);
  return r < 10 ? 0 : r < 13 ? 1 : 2;
}

/** A corpus without a file: lengths as of sentences, targets like their sources. */
static void make_pairs(void) {
  smoe_pair_split *split = &pairs.split[SMOE_TRAIN];
  pairs.n_directions = DIRECTIONS;
  split->n_pairs = PAIRS;
  split->direction = smoe_alloc(PAIRS);
  for (int side = 0; side < SMOE_SIDES; side++) split->length[side] = smoe_alloc(PAIRS * sizeof(uint16_t));
  for (int64_t i = 0; i < PAIRS; i++) {
    split->direction[i] = (uint8_t)direction_of(i);
    const double r = smoe_random_normal(4, SMOE_RANDOM_TEST, 0, (uint64_t)i);
    const double t = smoe_random_normal(4, SMOE_RANDOM_TEST, 1, (uint64_t)i);
    const int source = (int)(16 * exp(0.35 * r));
    const int target = (int)(0.9 * source * exp(0.2 * t));
    split->length[SMOE_SIDE_SOURCE][i] = (uint16_t)(source < 3 ? 3 : source > LONGEST ? LONGEST : source);
    split->length[SMOE_SIDE_TARGET][i] = (uint16_t)(target < 2 ? 2 : target > LONGEST ? LONGEST : target);
  }
}

static smoe_pair_sampling sampling(void) {
  return (smoe_pair_sampling){.lanes = 8,
                              .micro_batches = 2,
                              .tokens = 2000,
                              .window = 1000,
                              .temperature = 1,
                              .seed = 5,
                              .direction = -1};
}

static smoe_pair_sampler open_sampler(smoe_pair_sampling options) {
  smoe_pair_sampler sampler;
  CHECK(smoe_pair_sampler_open(&sampler, &pairs, SMOE_TRAIN, &options) == SMOE_OK, "%s", smoe_last_error());
  return sampler;
}

static uint16_t length(smoe_side side, int64_t i) {
  return pairs.split[SMOE_TRAIN].length[side][i];
}

/** One micro-batch against its promises; seen counts its pairs. */
static void check_batch(const smoe_pair_sampler *s, const smoe_pair_batch *b, int *seen) {
  int longest[SMOE_SIDES] = {0}, largest[SMOE_SIDES], sequences;
  int64_t sum[SMOE_SIDES] = {0}, n = 0;
  for (int64_t i = 0; i < (int64_t)b->lanes * b->sequences; i++) {
    const int64_t pair = b->pair[i];
    const int64_t lane = i / b->sequences, place = i % b->sequences;
    /* Padding alone stands at the end of the last lanes. */
    CHECK((pair >= 0) == (place * b->lanes + lane < b->n_pairs), "lane %lld, place %lld: pair %lld",
          (long long)lane, (long long)place, (long long)pair);
    if (pair < 0) continue;
    seen[pair]++;
    n++;
    for (int side = 0; side < SMOE_SIDES; side++) {
      sum[side] += length(side, pair);
      if (length(side, pair) > longest[side]) longest[side] = length(side, pair);
    }
  }
  CHECK(n == b->n_pairs && b->lanes == s->options.lanes, "%lld pairs, not %lld", (long long)n,
        (long long)b->n_pairs);
  CHECK(sum[SMOE_SIDE_SOURCE] == b->n_sources && sum[SMOE_SIDE_TARGET] == b->n_targets, "%lld targets",
        (long long)b->n_targets);
  CHECK(longest[SMOE_SIDE_SOURCE] == b->source_length && longest[SMOE_SIDE_TARGET] == b->target_length,
        "%d x %d for lengths up to %d and %d", b->source_length, b->target_length, longest[SMOE_SIDE_SOURCE],
        longest[SMOE_SIDE_TARGET]);
  const int64_t rows = (int64_t)b->lanes * b->sequences;
  CHECK(rows * b->source_length <= s->options.tokens && rows * b->target_length <= s->options.tokens,
        "%lld rows of %d and %d", (long long)rows, b->source_length, b->target_length);
  smoe_pair_sampler_largest(s, &sequences, &largest[SMOE_SIDE_SOURCE], &largest[SMOE_SIDE_TARGET]);
  CHECK(b->sequences <= sequences && b->source_length <= largest[SMOE_SIDE_SOURCE] &&
            b->target_length <= largest[SMOE_SIDE_TARGET],
        "%d x %d x %d is larger than the largest", b->sequences, b->source_length, b->target_length);
}

/** Micro-batch g of all. */
static smoe_pair_batch batch_at(smoe_pair_sampler *s, int64_t g) {
  return smoe_pair_sampler_batch(s, g / s->options.micro_batches, (int)(g % s->options.micro_batches));
}

/** All micro-batches of an epoch; seen: how often each pair was in it. */
static void read_epoch(smoe_pair_sampler *s, int64_t epoch, int *seen) {
  const int64_t first = smoe_pair_sampler_micro_batches(s, epoch);
  const int64_t last = smoe_pair_sampler_micro_batches(s, epoch + 1);
  CHECK(last > first, "epoch %lld has no micro-batch", (long long)epoch);
  for (int64_t g = first; g < last; g++) {
    const smoe_pair_batch b = batch_at(s, g);
    check_batch(s, &b, seen);
    if (s->options.micro_batches == 1)
      CHECK(smoe_pair_sampler_epoch(s, g) == epoch, "micro-batch %lld is of epoch %lld", (long long)g,
            (long long)smoe_pair_sampler_epoch(s, g));
  }
}

static void check_epochs(smoe_pair_sampling options) {
  smoe_pair_sampler s = open_sampler(options);
  for (int64_t epoch = 0; epoch < 3; epoch++) {
    int *seen = smoe_alloc(PAIRS * sizeof *seen), n_wrong = 0;
    read_epoch(&s, epoch, seen);
    for (int i = 0; i < PAIRS; i++)
      n_wrong += seen[i] != (options.direction < 0 || direction_of(i) == options.direction);
    CHECK(n_wrong == 0, "epoch %lld: %d pairs are not there once", (long long)epoch, n_wrong);
    smoe_free(seen);
  }
  smoe_pair_sampler_close(&s);
}

static bool same_batch(const smoe_pair_batch *a, const int64_t *pair, const smoe_pair_batch *b) {
  return a->sequences == b->sequences && a->source_length == b->source_length &&
         a->target_length == b->target_length && a->n_targets == b->n_targets &&
         memcmp(pair, b->pair, (size_t)a->lanes * (size_t)a->sequences * sizeof *pair) == 0;
}

/** A sampler asked for one update alone gives what one gives that was asked for all before; another seed and
 *  the next epoch do not.
 */
static void check_pure(void) {
  enum { UPDATES = 300 };
  smoe_pair_sampler s = open_sampler(sampling());
  smoe_pair_sampling reseeded = sampling();
  reseeded.seed = 6;
  smoe_pair_sampler other = open_sampler(reseeded);
  int n_same = 0;
  for (int64_t u = 0; u < UPDATES; u++) {
    int64_t sum = 0;
    for (int m = 0; m < 2; m++) {
      smoe_pair_batch b = smoe_pair_sampler_batch(&s, u, m);
      const size_t bytes = (size_t)b.lanes * (size_t)b.sequences * sizeof *b.pair;
      int64_t *pair = memcpy(smoe_alloc(bytes), b.pair, bytes);
      sum += b.n_targets;
      const smoe_pair_batch elsewhere = smoe_pair_sampler_batch(&other, u, m);
      n_same += same_batch(&b, pair, &elsewhere);
      if (u % 37 == 0) {
        smoe_pair_sampler fresh = open_sampler(sampling());
        const smoe_pair_batch again = smoe_pair_sampler_batch(&fresh, u, m);
        CHECK(same_batch(&b, pair, &again), "update %lld differs in a fresh sampler", (long long)u);
        smoe_pair_sampler_close(&fresh);
      }
      smoe_free(pair);
    }
    CHECK(sum == smoe_pair_sampler_targets(&s, u), "update %lld has %lld targets", (long long)u,
          (long long)sum);
  }
  CHECK(smoe_pair_sampler_epoch(&s, UPDATES - 1) >= 2, "too few updates for several epochs");
  CHECK(n_same == 0, "%d micro-batches do not depend on the seed", n_same);
  smoe_pair_sampler_close(&s);
  smoe_pair_sampler_close(&other);
}

/** Directions' shares of an epoch under a temperature, and equal use of a direction's pairs. */
static void check_temperature(double temperature) {
  smoe_pair_sampling options = sampling();
  options.temperature = temperature;
  smoe_pair_sampler s = open_sampler(options);
  int *seen = smoe_alloc(PAIRS * sizeof *seen);
  enum { EPOCHS = 4 };
  for (int64_t epoch = 0; epoch < EPOCHS; epoch++) read_epoch(&s, epoch, seen);
  double n[DIRECTIONS] = {0}, read[DIRECTIONS] = {0}, weights = 0, all = 0;
  int least[DIRECTIONS], most[DIRECTIONS] = {0};
  for (int d = 0; d < DIRECTIONS; d++) least[d] = 1 << 30;
  for (int i = 0; i < PAIRS; i++) {
    const int d = direction_of(i);
    n[d]++;
    read[d] += seen[i];
    all += seen[i];
    if (seen[i] < least[d]) least[d] = seen[i];
    if (seen[i] > most[d]) most[d] = seen[i];
  }
  for (int d = 0; d < DIRECTIONS; d++) weights += pow(n[d], 1 / temperature);
  printf("temperature %g: shares of an epoch", temperature);
  for (int d = 0; d < DIRECTIONS; d++) {
    const double share = read[d] / all, expected = pow(n[d], 1 / temperature) / weights;
    printf("  %.4f (%.4f)", share, expected);
    CHECK(fabs(share - expected) <= 1e-3, "direction %d: share %.5f, expected %.5f", d, share, expected);
    CHECK(most[d] - least[d] <= 1, "direction %d: pairs are read %d to %d times", d, least[d], most[d]);
  }
  printf("\n");
  CHECK(fabs(all - EPOCHS * (double)PAIRS) <= EPOCHS * DIRECTIONS, "%g pairs in all", all);
  smoe_free(seen);
  smoe_pair_sampler_close(&s);
}

/** Evaluation: each pair once, and one list however often it is asked for. */
static void check_in_order(void) {
  smoe_pair_sampling options = sampling();
  options.in_order = true;
  options.micro_batches = 1;
  check_epochs(options);
  options.direction = 1;
  check_epochs(options);
  smoe_pair_sampler s = open_sampler(options);
  const int64_t n = smoe_pair_sampler_micro_batches(&s, 1);
  for (int64_t g = 0; g < n; g++) {
    const smoe_pair_batch b = batch_at(&s, g), again = batch_at(&s, g + n);
    CHECK(b.n_targets == again.n_targets, "micro-batch %lld is another one the second time", (long long)g);
  }
  smoe_pair_sampler_close(&s);
}

static void check_padding(void) {
  static const int64_t windows[] = {500, 2000, PAIRS};
  static const double bound[] = {0.3, 0.2, 0.1};
  for (int w = 0; w < 3; w++) {
    smoe_pair_sampling options = sampling();
    options.window = windows[w];
    smoe_pair_sampler s = open_sampler(options);
    const smoe_pair_padding padding = smoe_pair_sampler_padding(&s, 1);
    printf("windows of %lld pairs: padding %.4f of the source, %.4f of the target\n", (long long)windows[w],
           padding.source, padding.target);
    int64_t n = 0, rows = 0;
    const int64_t last = smoe_pair_sampler_micro_batches(&s, 2);
    for (int64_t g = smoe_pair_sampler_micro_batches(&s, 1); g < last; g++) {
      const smoe_pair_batch b = batch_at(&s, g);
      n += b.n_targets;
      rows += (int64_t)b.lanes * b.sequences * b.target_length;
      CHECK(b.n_pairs >= 4, "a micro-batch of %lld pairs", (long long)b.n_pairs);
    }
    CHECK_NEAR(padding.target, 1 - (double)n / (double)rows, 1e-12, 1);
    CHECK(padding.source <= bound[w] && padding.target <= bound[w], "too much padding");
    smoe_pair_sampler_close(&s);
  }
}

/** Consecutive micro-batches are not sorted by length: the order is drawn. */
static void check_mixed(void) {
  smoe_pair_sampling options = sampling();
  options.window = PAIRS;
  smoe_pair_sampler s = open_sampler(options);
  const int64_t n = smoe_pair_sampler_micro_batches(&s, 1);
  int n_up = 0, before = 0;
  for (int64_t g = 0; g < n; g++) {
    const smoe_pair_batch b = batch_at(&s, g);
    n_up += b.source_length > before;
    before = b.source_length;
  }
  CHECK(n_up > n / 4 && n_up < 3 * n / 4, "%d of %lld micro-batches are longer than the one before", n_up,
        (long long)n);
  smoe_pair_sampler_close(&s);
}

static void expect(smoe_pair_sampling options, const char *words) {
  smoe_pair_sampler s;
  CHECK(smoe_pair_sampler_open(&s, &pairs, SMOE_TRAIN, &options) == SMOE_ERR_CONFIG &&
            strstr(smoe_last_error(), words),
        "expected '%s': %s", words, smoe_last_error());
  smoe_pair_sampler_close(&s);
}

static void check_errors(void) {
  smoe_pair_sampling options = sampling();
  options.tokens = 8 * LONGEST - 1;
  expect(options, "with 8 lanes a micro-batch needs room for 480, and has 479");
  options.tokens++;
  check_epochs(options);
  options = sampling();
  options.temperature = 0.5;
  expect(options, "temperature 0.5");
  options = sampling();
  options.direction = 7;
  expect(options, "has no pair of that direction");
}

int main(void) {
  make_pairs();
  smoe_pair_sampling options = sampling();
  check_epochs(options);
  options.window = 0;
  options.lanes = 3;
  options.micro_batches = 1;
  check_epochs(options);
  options.direction = 2;
  check_epochs(options);
  check_pure();
  check_temperature(1);
  check_temperature(1.5);
  check_temperature(5);
  check_in_order();
  check_padding();
  check_mixed();
  check_errors();
  return test_verdict("pair_sampler");
}
