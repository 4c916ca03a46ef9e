/* The token exchange against what one rank would work out alone.
 *
 * Every number is a function of its global index, so each rank knows the whole
 * micro-batch and checks its own part of the exchange bit by bit.
 */
#include "stablemoe/exchange.h"

#include <string.h>

#include "harness.h"
#include "stablemoe/random.h"

enum { TOKENS = 41, WIDTH = 5, SLOTS_MAX = 2, EXPERTS_MAX = 7, GUARD = 12345 };

/* How tokens choose, and how they lie on the ranks. */
typedef enum { RANDOM, ALL_TO_ONE, ONE_IDLE, HOLES, NONE, N_CHOICES } choice_kind;
typedef enum { EVEN, FIRST_EMPTY, LAST_EMPTY, ALL_ON_LAST, NO_TOKENS, N_LAYOUTS } layout_kind;

static const char *const choice_name[] = {"random", "all to one", "one idle", "holes", "none"};
static const char *const layout_name[] = {"even", "first empty", "last empty", "all on last", "no tokens"};

/* The whole micro-batch, as one rank sees it. */
typedef struct {
  int n_experts, n_slots;
  double factor;
  choice_kind choice;
  int first[64];                      /* [R + 1] tokens of the ranks */
  int32_t chosen[TOKENS * SLOTS_MAX]; /* before capacity */
  int32_t kept[TOKENS * SLOTS_MAX];   /* after it, dropped ones as -2 - expert */
  int n_rows;                         /* of this rank's experts */
  int row_slot[TOKENS * SLOTS_MAX];   /* [n_rows] global slot of each, in expert order */
  int64_t offset[EXPERTS_MAX + 1];    /* [n_local + 1] */
  int64_t load[EXPERTS_MAX];
  int64_t n_assigned, n_dropped;
} world;

static smoe_group group;
static char label[200];

static smoe_real token_value(int token, size_t c) {
  return (smoe_real)smoe_random_normal(1, SMOE_RANDOM_TEST, 0, (uint64_t)token * WIDTH + c);
}

static smoe_real result_value(int slot, size_t c) {
  return (smoe_real)smoe_random_normal(1, SMOE_RANDOM_TEST, 1, (uint64_t)slot * WIDTH + c);
}

static smoe_real scale_value(int slot) {
  return (smoe_real)smoe_random_normal(1, SMOE_RANDOM_TEST, 2, (uint64_t)slot);
}

static int tokens_before(layout_kind layout, int rank, int n_ranks) {
  switch (layout) {
  case EVEN:
    return TOKENS * rank / n_ranks;
  case FIRST_EMPTY:
    return n_ranks == 1 ? TOKENS * rank : rank == 0 ? 0 : TOKENS * (rank - 1) / (n_ranks - 1);
  case LAST_EMPTY:
    return n_ranks == 1 ? TOKENS * rank : rank >= n_ranks - 1 ? TOKENS : TOKENS * rank / (n_ranks - 1);
  case ALL_ON_LAST:
    return rank == n_ranks ? TOKENS : 0;
  default:
    return 0;
  }
}

/* Slots of one token mostly choose different experts, but need not. */
static int32_t choose(const world *w, int token, int k) {
  const int E = w->n_experts;
  const uint64_t bits = smoe_random_bits(1, SMOE_RANDOM_TEST, 3, (uint64_t)token);
  const int32_t expert = (int32_t)((bits % (uint64_t)E + (uint64_t)k) % (uint64_t)E);
  switch (w->choice) {
  case ALL_TO_ONE:
    return k == 0 ? E - 1 : -1;
  case ONE_IDLE:
    return expert == E / 2 && E > 1 ? (expert + w->n_slots) % E : expert;
  case HOLES: /* some slots unused, some tokens without any expert */
    return bits >> (40 + k) & 1 || bits >> 60 == 0 ? -1 : expert;
  case NONE:
    return -1;
  default:
    return expert;
  }
}

static void make_world(world *w, int n_experts, int n_slots, double factor, choice_kind choice,
                       layout_kind layout) {
  *w = (world){.n_experts = n_experts, .n_slots = n_slots, .factor = factor, .choice = choice};
  for (int r = 0; r <= group.n_ranks; r++) w->first[r] = tokens_before(layout, r, group.n_ranks);
  const int n_tokens = w->first[group.n_ranks];
  int n_routed = 0;
  for (int t = 0; t < n_tokens; t++) {
    bool routed = false;
    for (int k = 0; k < n_slots; k++) {
      w->chosen[t * n_slots + k] = choose(w, t, k);
      routed = routed || w->chosen[t * n_slots + k] >= 0;
    }
    n_routed += routed;
  }
  const int64_t room = factor > 0 ? (int64_t)(factor * (n_routed * n_slots) / n_experts) : INT64_MAX;
  for (int s = 0; s < n_tokens * n_slots; s++) {
    const int32_t e = w->kept[s] = w->chosen[s];
    if (e < 0) continue;
    w->n_assigned++;
    if (w->load[e]++ < room) continue;
    w->kept[s] = -2 - e;
    w->n_dropped++;
  }
  const int first = smoe_expert_first(n_experts, group.rank, group.n_ranks);
  const int end = smoe_expert_first(n_experts, group.rank + 1, group.n_ranks);
  for (int e = first; e < end; e++) {
    for (int s = 0; s < n_tokens * n_slots; s++)
      if (w->kept[s] == e) w->row_slot[w->n_rows++] = s;
    w->offset[e - first + 1] = w->n_rows;
  }
  snprintf(label, sizeof label, "rank %d of %d, %d experts, %d slots, factor %g, %s, %s", group.rank,
           group.n_ranks, n_experts, n_slots, factor, choice_name[choice], layout_name[layout]);
}

static int same(const void *a, const void *b, size_t bytes) {
  return memcmp(a, b, bytes) == 0;
}

static void check_plan(const smoe_exchange *ex, const world *w, const int32_t *expert) {
  const size_t n_slots = ex->n_tokens * (size_t)w->n_slots;
  const int32_t *expected = w->kept + w->first[group.rank] * w->n_slots;
  CHECK(same(expert, expected, n_slots * sizeof *expert), "%s", label);
  CHECK(ex->n_recv == (size_t)w->n_rows, "%zu for %d: %s", ex->n_recv, w->n_rows, label);
  CHECK(ex->n_recv <= smoe_exchange_rows_max(ex), "%s", label);
  CHECK(same(ex->expert_offset, w->offset, ((size_t)ex->n_local + 1) * sizeof(int64_t)), "%s", label);
  CHECK(same(ex->load, w->load, (size_t)w->n_experts * sizeof(int64_t)), "%s", label);
  CHECK(ex->n_assigned == w->n_assigned && ex->n_dropped == w->n_dropped, "%s", label);
  size_t n_kept = 0;
  for (size_t s = 0; s < n_slots; s++) n_kept += expected[s] >= 0;
  CHECK(ex->n_send == n_kept, "%zu for %zu: %s", ex->n_send, n_kept, label);
}

static void check_dispatch(const smoe_exchange *ex, const world *w, const smoe_real *out, bool scaled) {
  for (int i = 0; i < w->n_rows; i++) {
    smoe_real expected[WIDTH];
    const int slot = w->row_slot[i];
    for (size_t c = 0; c < WIDTH; c++) {
      expected[c] = token_value(slot / w->n_slots, c);
      if (scaled) expected[c] = scale_value(slot) * expected[c];
    }
    CHECK(same(out + (size_t)i * WIDTH, expected, sizeof expected), "row %d: %s", i, label);
  }
  CHECK(out[ex->n_recv * WIDTH] == GUARD, "%s", label);
}

/* rows back: those of a slot in [N, K, C], and their sum added to what is in [N, C]. */
static void check_combine(const smoe_exchange *ex, const world *w, const smoe_real *slots,
                          const smoe_real *sums) {
  const int first = w->first[group.rank];
  for (size_t t = 0; t < ex->n_tokens; t++) {
    smoe_real sum[WIDTH];
    for (size_t c = 0; c < WIDTH; c++) sum[c] = token_value(first + (int)t, c);
    for (int k = 0; k < w->n_slots; k++) {
      smoe_real expected[WIDTH] = {0};
      const int slot = (first + (int)t) * w->n_slots + k;
      for (size_t c = 0; c < WIDTH && w->kept[slot] >= 0; c++) {
        expected[c] = result_value(slot, c);
        sum[c] += expected[c];
      }
      CHECK(same(slots + (t * (size_t)w->n_slots + (size_t)k) * WIDTH, expected, sizeof expected),
            "token %zu, slot %d: %s", t, k, label);
    }
    CHECK(same(sums + t * WIDTH, sum, sizeof sum), "token %zu: %s", t, label);
  }
  CHECK(slots[ex->n_tokens * (size_t)w->n_slots * WIDTH] == GUARD, "%s", label);
  CHECK(sums[ex->n_tokens * WIDTH] == GUARD, "%s", label);
}

/* <a, b> over all ranks, added in rank order. */
static double dot(const smoe_real *a, const smoe_real *b, size_t n) {
  int count[64];
  double mine = 0, all[64], total = 0;
  for (size_t i = 0; i < n; i++) mine += (double)a[i] * (double)b[i];
  for (int r = 0; r < group.n_ranks; r++) count[r] = 1;
  smoe_group_gather_f64(&group, all, &mine, count);
  for (int r = 0; r < group.n_ranks; r++) total += all[r];
  return total;
}

/* Memory of one call, each piece exactly as large as promised and then a guard. */
typedef struct {
  smoe_real *x, *scale, *slots, *sums, *out, *rows, *scratch;
} buffers;

static smoe_real *guarded(size_t n) {
  smoe_real *values = smoe_alloc((n + 1) * sizeof *values);
  values[n] = GUARD;
  return values;
}

static buffers make_buffers(const smoe_exchange *ex, const world *w) {
  const size_t N = ex->n_tokens, K = (size_t)w->n_slots, M = ex->n_recv;
  const int first = w->first[group.rank];
  buffers b = {guarded(N * WIDTH), guarded(N * K),     guarded(N * K * WIDTH),           guarded(N * WIDTH),
               guarded(M * WIDTH), guarded(M * WIDTH), guarded((ex->n_send + M) * WIDTH)};
  for (size_t i = 0; i < N * WIDTH; i++)
    b.x[i] = b.sums[i] = token_value(first + (int)(i / WIDTH), i % WIDTH);
  for (size_t s = 0; s < N * K; s++) b.scale[s] = scale_value(first * w->n_slots + (int)s);
  for (size_t i = 0; i < N * K * WIDTH; i++) b.slots[i] = NAN;
  for (size_t i = 0; i < M * WIDTH; i++) {
    b.out[i] = NAN;
    b.rows[i] = result_value(w->row_slot[i / WIDTH], i % WIDTH);
  }
  return b;
}

static void free_buffers(buffers *b) {
  smoe_free(b->x);
  smoe_free(b->scale);
  smoe_free(b->slots);
  smoe_free(b->sums);
  smoe_free(b->out);
  smoe_free(b->rows);
  smoe_free(b->scratch);
}

/* Dispatch with factors on one side, combine and the factors on the other. */
static void check_adjoint(const smoe_exchange *ex, const world *w, buffers *b) {
  const size_t N = ex->n_tokens, K = (size_t)w->n_slots, M = ex->n_recv;
  smoe_real *dx = guarded(N * WIDTH);

  smoe_dispatch(ex, b->out, b->x, NULL, b->scratch);
  smoe_combine_add(ex, dx, b->rows, b->scratch);
  CHECK_NEAR(dot(b->out, b->rows, M * WIDTH), dot(b->x, dx, N * WIDTH), 1e-5, 1);

  smoe_dispatch(ex, b->out, b->x, b->scale, b->scratch);
  smoe_combine_rows(ex, b->slots, b->rows, b->scratch);
  for (size_t i = 0; i < N * WIDTH; i++) dx[i] = 0;
  for (size_t i = 0; i < N * K * WIDTH; i++)
    dx[i / (K * WIDTH) * WIDTH + i % WIDTH] += b->scale[i / WIDTH] * b->slots[i];
  CHECK_NEAR(dot(b->out, b->rows, M * WIDTH), dot(b->x, dx, N * WIDTH), 1e-5, 1);
  smoe_free(dx);
}

/* Rows that are sent and come straight back are the tokens' rows, zero where nothing was sent. */
static void check_round_trip(const smoe_exchange *ex, const world *w, buffers *b) {
  const size_t K = (size_t)w->n_slots;
  const int32_t *kept = w->kept + w->first[group.rank] * w->n_slots;
  smoe_dispatch(ex, b->out, b->x, NULL, b->scratch);
  smoe_combine_rows(ex, b->slots, b->out, b->scratch);
  for (size_t i = 0; i < ex->n_tokens * K * WIDTH; i++) {
    const smoe_real x = b->x[i / (K * WIDTH) * WIDTH + i % WIDTH];
    CHECK(b->slots[i] == (kept[i / WIDTH] < 0 ? 0 : x), "element %zu: %s", i, label);
  }
}

static void test_case(smoe_exchange *ex, const world *w) {
  const int first = w->first[group.rank], n = w->first[group.rank + 1] - first;
  int32_t expert[TOKENS * SLOTS_MAX];
  memcpy(expert, w->chosen + first * w->n_slots, (size_t)(n * w->n_slots) * sizeof *expert);
  smoe_exchange_plan(ex, expert, (size_t)n);
  check_plan(ex, w, expert);
  /* With a wrong number of rows nothing below would make sense; all ranks leave together. */
  if (smoe_group_agree(&group, ex->n_recv == (size_t)w->n_rows ? SMOE_OK : SMOE_ERR_BUG) != SMOE_OK) return;

  buffers b = make_buffers(ex, w);
  smoe_dispatch(ex, b.out, b.x, NULL, b.scratch);
  check_dispatch(ex, w, b.out, false);
  smoe_dispatch(ex, b.out, b.x, b.scale, b.scratch);
  check_dispatch(ex, w, b.out, true);
  smoe_combine_rows(ex, b.slots, b.rows, b.scratch);
  smoe_combine_add(ex, b.sums, b.rows, b.scratch);
  check_combine(ex, w, b.slots, b.sums);
  check_adjoint(ex, w, &b);
  check_round_trip(ex, w, &b);
  CHECK(b.scratch[(ex->n_send + ex->n_recv) * WIDTH] == GUARD, "%s", label);
  free_buffers(&b);
}

/* One exchange for all choices and layouts: a plan leaves nothing behind for the next. */
static void test_shape(int n_experts, int n_slots, double factor) {
  const smoe_topology topology = smoe_topology_whole(&group);
  const smoe_exchange_shape shape = {n_experts, n_slots, WIDTH, TOKENS, TOKENS, factor, 0};
  smoe_arena arena;
  smoe_exchange ex;
  smoe_arena_measure(&arena, "exchange");
  smoe_exchange_declare(&ex, &topology, &shape, &arena);
  smoe_exchange_release(&ex);
  if (smoe_arena_reserve(&arena) != SMOE_OK) SMOE_PANIC(SMOE_ERR_MEMORY, "%s", smoe_report());
  smoe_exchange_declare(&ex, &topology, &shape, &arena);
  for (int c = 0; c < N_CHOICES; c++) {
    for (int l = 0; l < N_LAYOUTS; l++) {
      world w;
      make_world(&w, n_experts, n_slots, factor, (choice_kind)c, (layout_kind)l);
      test_case(&ex, &w);
    }
  }
  smoe_exchange_release(&ex);
  smoe_arena_release(&arena);
}

int main(int argc, char **argv) {
  static const int n_experts[] = {1, 2, 3, 4, EXPERTS_MAX};
  static const double factor[] = {0, 0.5, 1, 1.25};
  smoe_group_start(&group, &argc, &argv);
  for (size_t e = 0; e < sizeof n_experts / sizeof n_experts[0]; e++)
    for (int k = 1; k <= SLOTS_MAX; k++)
      for (size_t f = 0; f < sizeof factor / sizeof factor[0]; f++) test_shape(n_experts[e], k, factor[f]);
  smoe_group_end(&group);
  return test_verdict("exchange");
}
