/* The auction against an exact solver, its balance, and scores that nobody would wish for. */
#include "../../src/moe/auction.h"

#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/kernel.h"
#include "stablemoe/random.h"

static int most_rounds;

typedef struct problem {
  size_t n;
  int e;
  smoe_real *score;
  int32_t *token, *expert;
  int rounds;
} problem;

static problem make(size_t n, int e) {
  problem p = {.n = n, .e = e};
  p.score = smoe_alloc((n * (size_t)e + 1) * sizeof *p.score);
  p.token = smoe_alloc((n + 1) * sizeof *p.token);
  p.expert = smoe_alloc((n + 1) * sizeof *p.expert);
  return p;
}

static void drop(problem *p) {
  smoe_free(p->score);
  smoe_free(p->token);
  smoe_free(p->expert);
}

/** Run it; every expert must get floor(m / E) or ceil(m / E) of the m tokens that are no padding. */
static void solve(problem *p, const char *what, int rounds) {
  smoe_real *scratch = smoe_alloc(smoe_auction_scratch(p->n, p->e) * sizeof *scratch);
  p->rounds = smoe_auction(p->expert, p->score, p->token, p->n, p->e, rounds, scratch);
  if (p->rounds > most_rounds) most_rounds = p->rounds;
  int64_t *size = smoe_alloc((size_t)p->e * sizeof *size), m = 0;
  for (size_t t = 0; t < p->n; t++) {
    const int32_t a = p->expert[t];
    CHECK(p->token[t] < 0 ? a == -1 : a >= 0 && a < p->e, "%s: token %zu goes to %d", what, t, (int)a);
    if (a < 0) continue;
    size[a]++;
    m++;
  }
  for (int j = 0; j < p->e; j++)
    CHECK(size[j] == m / p->e || size[j] == (m + p->e - 1) / p->e, "%s: expert %d has %lld of %lld tokens",
          what, j, (long long)size[j], (long long)m);
  smoe_free(size);
  smoe_free(scratch);
}

static double total(const problem *p) {
  double sum = 0;
  for (size_t t = 0; t < p->n; t++) sum += (double)p->score[t * (size_t)p->e + (size_t)p->expert[t]];
  return sum;
}

/** Largest total where every expert has as many tokens as it has now: the Hungarian method on tokens and
 *  places, an expert being as many places as it has tokens.
 */
static double best_total(const problem *p) {
  const size_t n = p->n;
  size_t *place = smoe_alloc(n * sizeof *place); /* expert of each place */
  size_t at = 0;
  for (int j = 0; j < p->e; j++)
    for (size_t t = 0; t < n; t++)
      if (p->expert[t] == j) place[at++] = (size_t)j;
  double *u = smoe_alloc((n + 1) * sizeof *u), *v = smoe_alloc((n + 1) * sizeof *v);
  double *least = smoe_alloc((n + 1) * sizeof *least);
  size_t *owner = smoe_alloc((n + 1) * sizeof *owner), *way = smoe_alloc((n + 1) * sizeof *way);
  char *used = smoe_alloc(n + 1);
  for (size_t i = 1; i <= n; i++) {
    owner[0] = i;
    size_t j0 = 0;
    for (size_t j = 0; j <= n; j++) least[j] = INFINITY;
    memset(used, 0, n + 1);
    do {
      used[j0] = 1;
      const size_t i0 = owner[j0];
      size_t j1 = 0;
      double delta = INFINITY;
      for (size_t j = 1; j <= n; j++) {
        if (used[j]) continue;
        const double cost = -(double)p->score[(i0 - 1) * (size_t)p->e + place[j - 1]] - u[i0] - v[j];
        if (cost < least[j]) least[j] = cost, way[j] = j0;
        if (least[j] < delta) delta = least[j], j1 = j;
      }
      for (size_t j = 0; j <= n; j++)
        if (used[j])
          u[owner[j]] += delta, v[j] -= delta;
        else
          least[j] -= delta;
      j0 = j1;
    } while (owner[j0]);
    for (; j0; j0 = way[j0]) owner[j0] = owner[way[j0]];
  }
  double sum = 0;
  for (size_t j = 1; j <= n; j++) sum += (double)p->score[(owner[j] - 1) * (size_t)p->e + place[j - 1]];
  smoe_free(place), smoe_free(u), smoe_free(v), smoe_free(least), smoe_free(owner), smoe_free(way);
  smoe_free(used);
  return sum;
}

typedef enum score_kind { GAUSSIAN, SKEWED, DUPLICATES, SIGNED_UNITS, KINDS } score_kind;

static double draw(score_kind kind, uint64_t seed, uint64_t t, uint64_t e, uint64_t n_experts) {
  const double normal = smoe_random_normal(seed, SMOE_RANDOM_TEST, 1, t * n_experts + e);
  switch (kind) {
  case SKEWED: /* all tokens want the low experts */
    return 5 + normal + 4.0 * exp(-(double)e);
  case DUPLICATES: /* a dozen different tokens, many of each */
    return 2 + smoe_random_normal(seed, SMOE_RANDOM_TEST, 2, t % 12 * n_experts + e);
  case SIGNED_UNITS:
    return normal > 0 ? 1 : -1;
  default:
    return normal;
  }
}

static void fill(problem *p, score_kind kind, uint64_t seed) {
  for (size_t t = 0; t < p->n; t++)
    for (size_t e = 0; e < (size_t)p->e; e++)
      p->score[t * (size_t)p->e + e] = (smoe_real)draw(kind, seed, t, e, (uint64_t)p->e);
}

/** Within 2 % of the optimum; where scores are full of ties the published rules lose more. */
static void test_optimum(score_kind kind, size_t n, int e) {
  char *name = smoe_sprintf("kind %d, %zu tokens, %d experts", (int)kind, n, e);
  const double least = kind == GAUSSIAN || kind == SKEWED ? 0.98 : 0.8;
  double worst = 0;
  for (uint64_t seed = 1; seed <= 5; seed++) {
    problem p = make(n, e);
    fill(&p, kind, seed);
    solve(&p, name, SMOE_AUCTION_ROUNDS);
    const double best = best_total(&p), mine = total(&p);
    CHECK(mine <= best + 1e-4 * fabs(best), "%s: %g is better than the best, %g", name, mine, best);
    CHECK(mine >= least * best, "%s, seed %d: a total of %g where %g is possible", name, (int)seed, mine,
          best);
    CHECK(p.rounds <= 100, "%s: %d rounds", name, p.rounds);
    worst = fmax(worst, 1 - mine / best);
    drop(&p);
  }
  printf("%s: within %.2f %% of the optimum\n", name, 100 * worst);
  smoe_free(name);
}

/** Numbers of tokens that experts do not divide, fewer tokens than experts, one of either, none. */
static void test_sizes(void) {
  static const struct {
    size_t n;
    int e;
  } sizes[] = {{0, 4}, {1, 4}, {2, 4}, {3, 4},  {5, 4},   {7, 2},   {17, 16}, {31, 16},
               {9, 1}, {1, 1}, {0, 1}, {64, 5}, {100, 7}, {257, 8}, {3, 64},  {1000, 32}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (int k = 0; k < KINDS; k++) {
      problem p = make(sizes[i].n, sizes[i].e);
      fill(&p, (score_kind)k, 7);
      char *name = smoe_sprintf("%zu tokens, %d experts, kind %d", p.n, p.e, k);
      solve(&p, name, SMOE_AUCTION_ROUNDS);
      CHECK(p.rounds < SMOE_AUCTION_ROUNDS, "%s: cut off", name);
      smoe_free(name);
      drop(&p);
    }
}

/** Cut off after any number of rounds the experts still have equal shares. */
static void test_cut_off(void) {
  for (int rounds = 0; rounds < 20; rounds++) {
    problem p = make(203, 8);
    fill(&p, SKEWED, 11);
    solve(&p, "cut off", rounds);
    CHECK(p.rounds <= rounds, "%d rounds of %d", p.rounds, rounds);
    drop(&p);
  }
}

static void test_padding(void) {
  problem p = make(50, 4), without = make(50, 4);
  fill(&p, GAUSSIAN, 3);
  size_t m = 0;
  for (size_t t = 0; t < p.n; t++) {
    p.token[t] = t % 3 == 1 ? -1 : (int32_t)t;
    if (p.token[t] >= 0) memcpy(without.score + 4 * m++, p.score + 4 * t, 4 * sizeof *p.score);
  }
  without.n = m;
  solve(&p, "padding", SMOE_AUCTION_ROUNDS);
  solve(&without, "padding left out", SMOE_AUCTION_ROUNDS);
  size_t k = 0;
  for (size_t t = 0; t < p.n; t++)
    if (p.token[t] >= 0) CHECK(p.expert[t] == without.expert[k++], "token %zu", t);
  for (size_t t = 0; t < p.n; t++) p.token[t] = -1;
  solve(&p, "nothing but padding", SMOE_AUCTION_ROUNDS);
  drop(&p);
  drop(&without);
}

static void test_ties(void) {
  static const int32_t expected[] = {0, 0, 1, 1};
  problem p = make(4, 2);
  for (int offset = 0; offset < 3; offset++) {
    for (size_t i = 0; i < 8; i++) p.score[i] = (smoe_real)(offset * 1e6);
    solve(&p, "equal scores", SMOE_AUCTION_ROUNDS);
    CHECK(memcmp(p.expert, expected, sizeof expected) == 0, "%d %d %d %d", (int)p.expert[0], (int)p.expert[1],
          (int)p.expert[2], (int)p.expert[3]);
  }
  drop(&p);
}

/** Not finite, and as large as a real gets. */
static void test_wild(void) {
  problem p = make(60, 4), tame = make(60, 4);
  fill(&p, GAUSSIAN, 4);
  fill(&tame, GAUSSIAN, 4);
  double low = INFINITY;
  for (size_t i = 0; i < 240; i++)
    if (i % 11 != 0) low = fmin(low, (double)p.score[i]);
  for (size_t i = 0; i < 240; i += 11) {
    const smoe_real wild[] = {NAN, INFINITY, -INFINITY};
    p.score[i] = wild[i % 3];
    tame.score[i] = (smoe_real)low;
  }
  solve(&p, "not finite", SMOE_AUCTION_ROUNDS);
  solve(&tame, "the least", SMOE_AUCTION_ROUNDS);
  CHECK(memcmp(p.expert, tame.expert, 60 * sizeof *p.expert) == 0, "what is not finite is not the least");
  for (size_t i = 0; i < 240; i++) p.score[i] = NAN;
  solve(&p, "nothing finite", SMOE_AUCTION_ROUNDS);
  for (size_t i = 0; i < 240; i++) p.score[i] = (i % 7 < 3 ? -1 : 1) * (smoe_real)3e38;
  solve(&p, "large", SMOE_AUCTION_ROUNDS);
  drop(&p);
  drop(&tame);
}

/** The order of lists, and with it the threads, must not matter. */
static void test_threads(void) {
  problem p = make(2048, 32);
  fill(&p, GAUSSIAN, 5);
  smoe_threads_set(1);
  solve(&p, "one thread", SMOE_AUCTION_ROUNDS);
  int32_t *one = smoe_alloc(p.n * sizeof *one);
  memcpy(one, p.expert, p.n * sizeof *one);
  smoe_threads_set(3);
  solve(&p, "three threads", SMOE_AUCTION_ROUNDS);
  CHECK(memcmp(one, p.expert, p.n * sizeof *one) == 0, "three threads choose other experts than one");
  smoe_free(one);
  drop(&p);
}

int main(void) {
  for (int k = 0; k < KINDS; k++) {
    test_optimum((score_kind)k, 64, 4);
    test_optimum((score_kind)k, 128, 8);
    test_optimum((score_kind)k, 130, 8);
    test_optimum((score_kind)k, 256, 32);
  }
  test_sizes();
  test_cut_off();
  test_padding();
  test_ties();
  test_wild();
  test_threads();
  printf("%d rounds at most\n", most_rounds);
  return test_verdict("auction");
}
