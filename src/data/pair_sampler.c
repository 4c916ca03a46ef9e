#include "stablemoe/pair_sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "spool.h"
#include "stablemoe/arena.h"
#include "stablemoe/random.h"

/** The pairs of one direction. */
typedef struct direction {
  int64_t n;     /* pairs of the split */
  int64_t share; /* pairs of an epoch */
  int64_t first; /* in member */
  uint64_t seed;
} direction;

/** A pair of a window. */
typedef struct entry {
  uint32_t key;   /* by which it is sorted */
  uint32_t place; /* in the drawn order, which decides among equal keys */
  int64_t pair;
} entry;

/** A micro-batch: pairs first .. first + n - 1 of the sorted window. */
typedef struct cut {
  int64_t first, n;
  int source_length, target_length;
} cut;

typedef struct smoe_pair_plan {
  direction direction[SMOE_DIRECTIONS_MAX];
  int n_directions;
  int64_t *member; /* [pairs of the split] by direction */

  int64_t *before; /* [n_known + 1] micro-batches before each window */
  int64_t n_known;
  int64_t window; /* that the following is of; -1: none */
  entry *entry;   /* [pairs of a window] */
  cut *cut;       /* [as many at most] */
  int64_t n_cuts;
  int64_t *pair; /* [rows of the largest micro-batch] of the last result */
} plan;

/* ---- what stands in an epoch ---- */

/** Pair at place j of an epoch. */
static int64_t pair_at(const smoe_pair_sampler *s, int64_t epoch, int64_t j) {
  const plan *p = s->plan;
  int64_t k = j;
  if (!s->options.in_order)
    k = (int64_t)smoe_random_permute(s->options.seed, SMOE_RANDOM_ORDER, (uint32_t)epoch,
                                     (uint64_t)s->epoch_pairs, (uint64_t)j);
  const direction *d = p->direction;
  while (k >= d->share) k -= d++->share;
  if (s->options.in_order) return p->member[d->first + k];
  const int64_t place = epoch * d->share + k;
  const uint64_t i = smoe_random_permute(d->seed, SMOE_RANDOM_PAIRS, (uint32_t)(place / d->n), (uint64_t)d->n,
                                         (uint64_t)(place % d->n));
  return p->member[d->first + (int64_t)i];
}

static int length_of(const smoe_pair_sampler *s, smoe_side side, int64_t pair) {
  return s->pairs->split[s->split].length[side][pair];
}

static int by_key(const void *a, const void *b) {
  const entry *x = a, *y = b;
  return x->key != y->key ? (x->key > y->key) - (x->key < y->key)
                          : (x->place > y->place) - (x->place < y->place);
}

/* ---- sorting and cutting a window ---- */

/** Sort a window so that neighbours are alike on both sides: by source into strips, and in each strip by target,
 *  up and down in turn. With B micro-batches, sqrt(2 B) strips leave about as much padding on either side.
 */
static void sort_window(const smoe_pair_sampler *s, int64_t n) {
  entry *e = s->plan->entry;
  double rows = 0;
  for (int64_t i = 0; i < n; i++) {
    const int source = length_of(s, SMOE_SIDE_SOURCE, e[i].pair),
              target = length_of(s, SMOE_SIDE_TARGET, e[i].pair);
    e[i].key = (uint32_t)source;
    rows += source > target ? source : target;
  }
  qsort(e, (size_t)n, sizeof *e, by_key);
  int64_t n_strips = llround(sqrt(2 * rows / (double)s->options.tokens));
  if (n_strips < 1) n_strips = 1;
  if (n_strips > SMOE_PAIR_TOKENS_MAX) n_strips = SMOE_PAIR_TOKENS_MAX;
  /* Sources of one length go to one strip: that of the first of them. */
  uint32_t strip = 0, length = 0;
  for (int64_t i = 0; i < n; i++) {
    if (e[i].key != length) {
      length = e[i].key;
      strip = (uint32_t)((double)i / (double)n * (double)n_strips);
    }
    const uint32_t target = (uint32_t)length_of(s, SMOE_SIDE_TARGET, e[i].pair);
    e[i].key = strip << 16 | (strip & 1 ? SMOE_PAIR_TOKENS_MAX - target : target);
  }
  qsort(e, (size_t)n, sizeof *e, by_key);
}

static cut cut_of(const smoe_pair_sampler *s, int64_t first, int64_t n) {
  cut c = {.first = first, .n = n};
  for (int64_t i = first; i < first + n; i++) {
    const int source = length_of(s, SMOE_SIDE_SOURCE, s->plan->entry[i].pair);
    const int target = length_of(s, SMOE_SIDE_TARGET, s->plan->entry[i].pair);
    if (source > c.source_length) c.source_length = source;
    if (target > c.target_length) c.target_length = target;
  }
  return c;
}

static int64_t sequences_of(const smoe_pair_sampler *s, int64_t n) {
  return (n + s->options.lanes - 1) / s->options.lanes;
}

static bool fits(const smoe_pair_sampler *s, const cut *c) {
  const int64_t longer = c->source_length > c->target_length ? c->source_length : c->target_length;
  return sequences_of(s, c->n) * s->options.lanes * longer <= s->options.tokens;
}

/** The largest micro-batch from `first` on: whole rounds over the lanes, but for the end of the window. */
static cut take(const smoe_pair_sampler *s, int64_t first, int64_t n_pairs) {
  cut c = {.first = first};
  while (first + c.n < n_pairs) {
    const int64_t rest = n_pairs - first - c.n;
    const cut round = cut_of(s, first + c.n, rest < s->options.lanes ? rest : s->options.lanes);
    cut larger = {.first = first, .n = c.n + round.n};
    larger.source_length = c.source_length > round.source_length ? c.source_length : round.source_length;
    larger.target_length = c.target_length > round.target_length ? c.target_length : round.target_length;
    if (!fits(s, &larger)) break;
    c = larger;
  }
  return c;
}

/** What is left at the end of a window may be a few pairs, which make a poor update: share with the micro-batch
 *  before, as evenly as the limit and no more rows allow.
 */
static void even_out(const smoe_pair_sampler *s) {
  plan *p = s->plan;
  if (p->n_cuts < 2) return;
  cut *a = &p->cut[p->n_cuts - 2], *b = a + 1;
  const int64_t sequences = sequences_of(s, a->n) + sequences_of(s, b->n);
  for (int64_t n = (a->n + b->n) / 2 - b->n; n > 0; n--) {
    if (sequences_of(s, a->n - n) + sequences_of(s, b->n + n) > sequences) continue;
    const cut larger = cut_of(s, b->first - n, b->n + n);
    if (!fits(s, &larger)) continue;
    *a = cut_of(s, a->first, a->n - n);
    *b = larger;
    return;
  }
}

/** Make the plan of a window, counted over all epochs. */
static void plan_window(smoe_pair_sampler *s, int64_t window) {
  plan *p = s->plan;
  const int64_t epoch = window / s->n_windows, w = window % s->n_windows;
  const int64_t first = w * s->epoch_pairs / s->n_windows,
                n = (w + 1) * s->epoch_pairs / s->n_windows - first;
  for (int64_t i = 0; i < n; i++) {
    const int64_t pair = pair_at(s, epoch, first + i);
    p->entry[i] = (entry){0, (uint32_t)i, pair};
  }
  sort_window(s, n);
  p->n_cuts = 0;
  for (int64_t at = 0; at < n; at += p->cut[p->n_cuts++].n) p->cut[p->n_cuts] = take(s, at, n);
  if (!s->options.in_order) even_out(s);
  p->window = window;
  if (window == p->n_known) {
    if ((window & (window + 1)) == 0)
      p->before = smoe_realloc(p->before, (2 * (size_t)window + 3) * sizeof *p->before);
    if (window == 0) p->before[0] = 0;
    p->before[window + 1] = p->before[window] + p->n_cuts;
    p->n_known++;
  }
}

/** Know the number of micro-batches before window n. */
static void know(smoe_pair_sampler *s, int64_t n) {
  while (s->plan->n_known < n) plan_window(s, s->plan->n_known);
}

/** The window that has micro-batch g of all. */
static int64_t window_of(smoe_pair_sampler *s, int64_t g) {
  plan *p = s->plan;
  know(s, 1);
  while (p->before[p->n_known] <= g) plan_window(s, p->n_known);
  int64_t low = 0, high = p->n_known - 1;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (p->before[middle] <= g)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

/* ---- results ---- */

static const cut *cut_at(smoe_pair_sampler *s, int64_t g) {
  plan *p = s->plan;
  const int64_t window = window_of(s, g);
  if (p->window != window) plan_window(s, window);
  int64_t i = g - p->before[window];
  if (!s->options.in_order)
    i = (int64_t)smoe_random_permute(s->options.seed, SMOE_RANDOM_BATCHES, (uint32_t)window,
                                     (uint64_t)p->n_cuts, (uint64_t)i);
  return &p->cut[i];
}

static int64_t sum_of(const smoe_pair_sampler *s, const cut *c, smoe_side side) {
  int64_t sum = 0;
  for (int64_t i = 0; i < c->n; i++) sum += length_of(s, side, s->plan->entry[c->first + i].pair);
  return sum;
}

smoe_pair_batch smoe_pair_sampler_batch(smoe_pair_sampler *sampler, int64_t update, int micro) {
  plan *p = sampler->plan;
  const cut *c = cut_at(sampler, update * sampler->options.micro_batches + micro);
  const int lanes = sampler->options.lanes;
  const int64_t sequences = sequences_of(sampler, c->n);
  /* Neighbours go to different lanes, so that all lanes have about as many tokens. */
  for (int64_t i = 0; i < sequences * lanes; i++)
    p->pair[i % lanes * sequences + i / lanes] = i < c->n ? p->entry[c->first + i].pair : -1;
  return (smoe_pair_batch){
      .lanes = lanes,
      .sequences = (int)sequences,
      .source_length = c->source_length,
      .target_length = c->target_length,
      .n_pairs = c->n,
      .n_sources = sum_of(sampler, c, SMOE_SIDE_SOURCE),
      .n_targets = sum_of(sampler, c, SMOE_SIDE_TARGET),
      .pair = p->pair,
  };
}

int64_t smoe_pair_sampler_targets(smoe_pair_sampler *sampler, int64_t update) {
  int64_t sum = 0;
  const int64_t M = sampler->options.micro_batches;
  for (int64_t m = 0; m < M; m++) sum += sum_of(sampler, cut_at(sampler, update * M + m), SMOE_SIDE_TARGET);
  return sum;
}

int64_t smoe_pair_sampler_micro_batches(smoe_pair_sampler *sampler, int64_t epoch) {
  const int64_t window = epoch * sampler->n_windows;
  know(sampler, window);
  return window > 0 ? sampler->plan->before[window] : 0;
}

int64_t smoe_pair_sampler_epoch(smoe_pair_sampler *sampler, int64_t update) {
  return window_of(sampler, update * sampler->options.micro_batches) / sampler->n_windows;
}

smoe_pair_padding smoe_pair_sampler_padding(smoe_pair_sampler *sampler, int64_t epoch) {
  double rows[SMOE_SIDES] = {0}, tokens[SMOE_SIDES] = {0};
  for (int64_t w = 0; w < sampler->n_windows; w++) {
    plan_window(sampler, epoch * sampler->n_windows + w);
    for (int64_t i = 0; i < sampler->plan->n_cuts; i++) {
      const cut *c = &sampler->plan->cut[i];
      const double n = (double)(sequences_of(sampler, c->n) * sampler->options.lanes);
      rows[SMOE_SIDE_SOURCE] += n * c->source_length;
      rows[SMOE_SIDE_TARGET] += n * c->target_length;
      for (int side = 0; side < SMOE_SIDES; side++) tokens[side] += (double)sum_of(sampler, c, side);
    }
  }
  return (smoe_pair_padding){1 - tokens[SMOE_SIDE_SOURCE] / rows[SMOE_SIDE_SOURCE],
                             1 - tokens[SMOE_SIDE_TARGET] / rows[SMOE_SIDE_TARGET]};
}

void smoe_pair_batch_read(const smoe_pairs *pairs, smoe_split split, const smoe_pair_batch *batch, int lane,
                          int32_t *source, int32_t *input, int32_t *target) {
  const int Ts = batch->source_length, Tt = batch->target_length;
  const size_t S = (size_t)batch->sequences;
  memset(source, 0xff, S * (size_t)Ts * sizeof *source);
  memset(input, 0xff, S * (size_t)Tt * sizeof *input);
  memset(target, 0xff, S * (size_t)Tt * sizeof *target);
  for (size_t j = 0; j < S; j++) {
    const int64_t pair = batch->pair[(size_t)lane * S + j];
    if (pair < 0) continue;
    int32_t *to = target + j * (size_t)Tt, *shifted = input + j * (size_t)Tt;
    const size_t n = (size_t)smoe_pairs_target_length(pairs, split, pair);
    smoe_pairs_read(pairs, split, SMOE_SIDE_SOURCE, pair, source + j * (size_t)Ts);
    smoe_pairs_read(pairs, split, SMOE_SIDE_TARGET, pair, to);
    shifted[0] = pairs->end_id;
    memcpy(shifted + 1, to, (n - 1) * sizeof *to);
  }
}

/* ---- making one ---- */

/** Sort the pairs of the split by direction; of all others there is none. */
static void find_members(smoe_pair_sampler *s) {
  const smoe_pair_split *split = &s->pairs->split[s->split];
  plan *p = s->plan;
  int64_t n = 0;
  p->member = smoe_alloc((size_t)split->n_pairs * sizeof *p->member);
  for (int d = 0; d < s->pairs->n_directions; d++) {
    direction *to = &p->direction[p->n_directions];
    *to = (direction){.first = n, .seed = s->options.seed ^ ((uint64_t)d + 1) * UINT64_C(0x9E3779B97F4A7C15)};
    if (s->options.direction >= 0 && s->options.direction != d) continue;
    for (int64_t i = 0; i < split->n_pairs; i++)
      if (split->direction[i] == d) p->member[n++] = i;
    to->n = to->share = n - to->first;
    p->n_directions += to->n > 0;
  }
  s->epoch_pairs = n;
}

/** Set the directions' shares of an epoch. */
static void share_out(smoe_pair_sampler *s) {
  plan *p = s->plan;
  if (s->options.in_order || s->options.temperature == 1) return;
  const double total = (double)s->epoch_pairs;
  double sum = 0;
  for (int d = 0; d < p->n_directions; d++)
    sum += pow((double)p->direction[d].n / total, 1 / s->options.temperature);
  s->epoch_pairs = 0;
  for (int d = 0; d < p->n_directions; d++) {
    direction *one = &p->direction[d];
    one->share = llround(total * pow((double)one->n / total, 1 / s->options.temperature) / sum);
    if (one->share < 1) one->share = 1;
    s->epoch_pairs += one->share;
  }
}

/** The longest pair on either side, and the shortest longer side. */
static cut extremes(const smoe_pair_sampler *s, int *shortest) {
  const plan *p = s->plan;
  cut c = {0};
  *shortest = SMOE_PAIR_TOKENS_MAX;
  for (int d = 0; d < p->n_directions; d++)
    for (int64_t i = 0; i < p->direction[d].n; i++) {
      const int64_t pair = p->member[p->direction[d].first + i];
      const int source = length_of(s, SMOE_SIDE_SOURCE, pair), target = length_of(s, SMOE_SIDE_TARGET, pair);
      if (source > c.source_length) c.source_length = source;
      if (target > c.target_length) c.target_length = target;
      const int longer = source > target ? source : target;
      if (longer < *shortest) *shortest = longer;
    }
  return c;
}

void smoe_pair_sampler_largest(const smoe_pair_sampler *sampler, int *sequences, int *source_length,
                               int *target_length) {
  int shortest;
  const cut c = extremes(sampler, &shortest);
  const int64_t by_rows = sampler->options.tokens / sampler->options.lanes / shortest;
  const int64_t by_window = sequences_of(sampler, sampler->window);
  *sequences = (int)(by_rows < by_window ? by_rows : by_window);
  *source_length = c.source_length;
  *target_length = c.target_length;
}

static smoe_status check_options(const smoe_pair_sampling *o) {
  SMOE_CHECK(
      o->lanes >= 1 && o->micro_batches >= 1 && o->tokens >= 1 && o->window >= 0 && o->window <= UINT32_MAX &&
          o->temperature >= 1,
      SMOE_ERR_CONFIG,
      "batches of pairs: %d lanes, %d micro-batches, %lld tokens, windows of %lld pairs, temperature %g",
      o->lanes, o->micro_batches, (long long)o->tokens, (long long)o->window, o->temperature);
  return SMOE_OK;
}

static smoe_status open_checked(smoe_pair_sampler *s) {
  const smoe_pair_sampling *o = &s->options;
  find_members(s);
  SMOE_CHECK(s->epoch_pairs > 0, SMOE_ERR_CONFIG, "the split %s of '%s' has no pair of that direction",
             smoe_split_name(s->split), s->pairs->path);
  share_out(s);
  int shortest;
  const cut longest = extremes(s, &shortest);
  const int side =
      longest.source_length > longest.target_length ? longest.source_length : longest.target_length;
  SMOE_CHECK((int64_t)side * o->lanes <= o->tokens, SMOE_ERR_CONFIG,
             "the longest pair of %s in '%s' has %d tokens: with %d lanes a micro-batch needs room for %lld, "
             "and has %lld; use larger batches, fewer micro-batches or lanes, or prepare the corpus with a "
             "smaller --max-tokens",
             smoe_split_name(s->split), s->pairs->path, side, o->lanes, (long long)side * o->lanes,
             (long long)o->tokens);
  s->window = o->in_order ? s->epoch_pairs : o->window > 0 ? o->window : SMOE_PAIR_WINDOW;
  if (s->window > s->epoch_pairs) s->window = s->epoch_pairs;
  s->n_windows = (s->epoch_pairs + s->window - 1) / s->window;
  s->plan->entry = smoe_alloc((size_t)s->window * sizeof *s->plan->entry);
  s->plan->cut = smoe_alloc((size_t)s->window * sizeof *s->plan->cut);
  int sequences, source_length, target_length;
  smoe_pair_sampler_largest(s, &sequences, &source_length, &target_length);
  s->plan->pair = smoe_alloc((size_t)sequences * (size_t)o->lanes * sizeof *s->plan->pair);
  return SMOE_OK;
}

smoe_status smoe_pair_sampler_open(smoe_pair_sampler *sampler, const smoe_pairs *pairs, smoe_split split,
                                   const smoe_pair_sampling *options) {
  *sampler = (smoe_pair_sampler){.pairs = pairs, .split = split, .options = *options};
  SMOE_TRY(check_options(options));
  sampler->plan = smoe_alloc(sizeof *sampler->plan);
  sampler->plan->window = -1;
  const smoe_status status = open_checked(sampler);
  if (status != SMOE_OK) smoe_pair_sampler_close(sampler);
  return status;
}

void smoe_pair_sampler_close(smoe_pair_sampler *sampler) {
  plan *p = sampler->plan;
  if (p) {
    smoe_free(p->member);
    smoe_free(p->before);
    smoe_free(p->entry);
    smoe_free(p->cut);
    smoe_free(p->pair);
  }
  smoe_free(p);
  sampler->plan = NULL;
}
