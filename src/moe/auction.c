#include "auction.h"

#include <math.h>
#include <omp.h>

#include "stablemoe/router.h"

/* Rounds in which a winner keeps what it has at the price of eps; after them it must bid anew, which
 * ends what the exact rule would drag out. */
enum { RETENTION_ROUNDS = 100 };

/* Scores beyond are cut, so that differences and prices stay finite. */
static const smoe_real SCORE_MAX = (smoe_real)1e30;

/* Prices rise by this part of the scores' range at least, and by no less than EPS_MIN. */
static const smoe_real RANGE_PER_EPS = 50, EPS_MIN = (smoe_real)1e-4;

/* Numbers to select from below which a second thread costs more than it gains. */
enum { PARALLEL_MIN = 32768 };

typedef struct auction {
  size_t m; /* tokens to sell: the rows that are no padding */
  int n_experts;
  smoe_real eps;
  smoe_real *value; /* [E, m] score less the largest of all */
  smoe_real *price; /* [m] */
  smoe_real *best;  /* [m] highest bid of the round; 0: none */
  smoe_real *bid;   /* [m] bids of expert e from first[e] on */
  smoe_real *worth; /* [threads, m] value less price */
  int32_t *order;   /* [threads, m] */
  int32_t *list;    /* [m] tokens that bid is for */
  int32_t *row;     /* [m] */
  int32_t *holder;  /* [m] winner of the round before; -1: none */
  int32_t *winner;  /* [m] of this round */
  int32_t *first;   /* [E + 1] expert e takes first[e + 1] - first[e] tokens */
} auction;

size_t smoe_auction_scratch(size_t n, int n_experts) {
  return n * ((size_t)n_experts + 7 + 2 * (size_t)omp_get_max_threads()) + 2 * ((size_t)n_experts + 1);
}

static auction auction_of(smoe_real *at, size_t n, int n_experts) {
  auction a = {.n_experts = n_experts, .value = at};
  const size_t threads = (size_t)omp_get_max_threads();
  a.price = at += (size_t)n_experts * n;
  a.best = at += n;
  a.bid = at += n;
  a.worth = at += n;
  a.order = (int32_t *)(at += threads * n);
  a.list = (int32_t *)(at += threads * n);
  a.row = (int32_t *)(at += n);
  a.holder = (int32_t *)(at += n);
  a.winner = (int32_t *)(at += n);
  a.first = (int32_t *)(at + n);
  return a;
}

/* Fill value with finite numbers from 0 down, and eps. */
static void read_scores(auction *a, const smoe_real *score) {
  const size_t e = (size_t)a->n_experts;
  smoe_real low = INFINITY, high = -INFINITY;
  for (size_t i = 0; i < a->m * e; i++) {
    const smoe_real s = score[(size_t)a->row[i / e] * e + i % e];
    if (!isfinite(s)) continue;
    low = s < low ? s : low;
    high = s > high ? s : high;
  }
  if (low > high) low = high = 0;
  low = low < -SCORE_MAX ? -SCORE_MAX : low;
  high = high > SCORE_MAX ? SCORE_MAX : high;
  for (size_t i = 0; i < a->m; i++)
    for (size_t j = 0; j < e; j++) {
      smoe_real s = score[(size_t)a->row[i] * e + j];
      s = isfinite(s) ? s : low;
      s = s < low ? low : s > high ? high : s;
      a->value[j * a->m + i] = s - high; /* near 0 where prices are small, so that eps is not rounded away */
    }
  const smoe_real eps = (high - low) / RANGE_PER_EPS;
  a->eps = eps > EPS_MIN ? eps : EPS_MIN;
}

/* The best expert of a token among those with room; the lower one on ties. */
static int32_t favourite(const auction *a, size_t i, const int32_t *room) {
  int32_t best = -1;
  for (int32_t e = 0; e < a->n_experts; e++) {
    if (room && room[e] == 0) continue;
    if (best < 0 || a->value[(size_t)e * a->m + i] > a->value[(size_t)best * a->m + i]) best = e;
  }
  return best;
}

/* How many tokens each expert takes: first [E + 1]. */
static void share_out(auction *a) {
  const int32_t e = a->n_experts, rest = (int32_t)(a->m % (size_t)e);
  int32_t *wanted = a->first + e + 1, *size = a->first + 1;
  for (int32_t j = 0; j < e; j++) {
    wanted[j] = 0;
    size[j] = (int32_t)(a->m / (size_t)e);
  }
  for (size_t i = 0; i < a->m && rest > 0; i++) wanted[favourite(a, i, NULL)]++;
  for (int32_t k = 0; k < rest; k++) {
    int32_t most = 0;
    for (int32_t j = 1; j < e; j++)
      if (wanted[j] > wanted[most]) most = j;
    wanted[most] = -1;
    size[most]++;
  }
  a->first[0] = 0;
  for (int32_t j = 0; j < e; j++) a->first[j + 1] += a->first[j];
}

/* Whether token i stands before j in an expert's list: no two are equal, so the list is one set. */
static bool before(const smoe_real *worth, int32_t i, int32_t j) {
  return worth[i] > worth[j] || (worth[i] == worth[j] && i < j);
}

static void swap(int32_t *a, int32_t *b) {
  const int32_t kept = *a;
  *a = *b;
  *b = kept;
}

/* Put the k tokens that stand first into order [0 .. k), and the next at order[k]; k < m. */
static void select_first(int32_t *order, const smoe_real *worth, size_t m, size_t k) {
  size_t low = 0, high = m - 1;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (before(worth, order[middle], order[low])) swap(order + middle, order + low);
    if (before(worth, order[high], order[low])) swap(order + high, order + low);
    if (before(worth, order[middle], order[high])) swap(order + middle, order + high);
    const int32_t pivot = order[high]; /* the middle one of three */
    size_t end = low;
    for (size_t i = low; i < high; i++)
      if (before(worth, order[i], pivot)) swap(order + i, order + end++);
    swap(order + end, order + high);
    if (end == k) return;
    if (end > k)
      high = end - 1;
    else
      low = end + 1;
  }
}

/* Expert e bids for the tokens worth most to it what each is worth more than the first one left out. */
static void bid_of_expert(const auction *a, int e, int round, smoe_real *worth, int32_t *order) {
  const int32_t first = a->first[e];
  const size_t m = a->m, size = (size_t)(a->first[e + 1] - first);
  if (size == 0) return;
  for (size_t i = 0; i < m; i++) {
    const smoe_real value = a->value[(size_t)e * m + i];
    const bool holds = a->holder[i] == e;
    worth[i] = !holds ? value - a->price[i] : round < RETENTION_ROUNDS ? (smoe_real)INFINITY : value;
    order[i] = (int32_t)i;
  }
  select_first(order, worth, m, size);
  const smoe_real threshold = worth[order[size]];
  for (size_t k = 0; k < size; k++) {
    const int32_t i = order[k];
    const bool keeps = a->holder[i] == e && round < RETENTION_ROUNDS;
    a->list[(size_t)first + k] = i;
    /* The least bid keeps a token that nobody else wants. */
    a->bid[(size_t)first + k] = keeps ? a->eps : worth[i] - threshold + a->eps;
  }
}

/* One round; returns the number of tokens sold. */
static size_t play(const auction *a, int round) {
#pragma omp parallel for schedule(dynamic, 1) if ((size_t)a->n_experts * a->m > PARALLEL_MIN)
  for (int e = 0; e < a->n_experts; e++) {
    const size_t own = (size_t)omp_get_thread_num() * a->m;
    bid_of_expert(a, e, round, a->worth + own, a->order + own);
  }
  for (size_t i = 0; i < a->m; i++) {
    a->best[i] = 0;
    a->winner[i] = -1;
  }
  for (int32_t e = 0; e < a->n_experts; e++)
    for (int32_t k = a->first[e]; k < a->first[e + 1]; k++) {
      const int32_t i = a->list[k];
      if (a->bid[k] > a->best[i]) {
        a->best[i] = a->bid[k];
        a->winner[i] = e;
      }
    }
  size_t sold = 0;
  for (size_t i = 0; i < a->m; i++) {
    a->price[i] += a->best[i];
    a->holder[i] = a->winner[i];
    sold += a->winner[i] >= 0;
  }
  return sold;
}

/* Tokens that were not sold go to their favourites among the experts with room, in token order. */
static void hand_out(const auction *a) {
  int32_t *room = a->first + a->n_experts + 1;
  for (int32_t e = 0; e < a->n_experts; e++) room[e] = a->first[e + 1] - a->first[e];
  for (size_t i = 0; i < a->m; i++)
    if (a->winner[i] >= 0) room[a->winner[i]]--;
  for (size_t i = 0; i < a->m; i++)
    if (a->winner[i] < 0) room[a->winner[i] = favourite(a, i, room)]--;
}

int smoe_auction(int32_t *expert, const smoe_real *score, const int32_t *token, size_t n, int n_experts,
                 int rounds, smoe_real *scratch) {
  auction a = auction_of(scratch, n, n_experts);
  for (size_t t = 0; t < n; t++) {
    expert[t] = -1;
    if (!token || token[t] >= 0) a.row[a.m++] = (int32_t)t;
  }
  read_scores(&a, score);
  share_out(&a);
  for (size_t i = 0; i < a.m; i++) {
    a.price[i] = 0;
    a.holder[i] = a.winner[i] = -1;
  }
  int round = 0;
  /* One expert or one token leaves nothing to bid against. */
  if (n_experts > 1 && a.m > 1)
    while (round < rounds && play(&a, round++) < a.m) continue;
  hand_out(&a);
  for (size_t i = 0; i < a.m; i++) expert[a.row[i]] = a.winner[i];
  return round;
}
