/* The token exchange against what one rank would work out alone.
 *
 * Every number is a function of its global index, so each rank knows the whole
 * micro-batch and checks its own part of the exchange bit by bit. all shapes go the plain way;
 * the other ways, nodes and replicas, are tried on some shapes each.
 */
#include "stablemoe/exchange.h"

#include <string.h>

#include "exchange_world.h"

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
  smoe_real *x, *scale, *slots, *sums, *out, *rows, *scratch, *keep;
} buffers;

static smoe_real *guarded(size_t n) {
  smoe_real *values = smoe_alloc((n + 1) * sizeof *values);
  values[n] = GUARD;
  return values;
}

static buffers make_buffers(const smoe_exchange *ex, const world *w) {
  const size_t N = ex->n_tokens, K = (size_t)w->n_slots, M = ex->n_recv;
  const int first = w->first[group.rank];
  buffers b = {guarded(N * WIDTH),
               guarded(N * K),
               guarded(N * K * WIDTH),
               guarded(N * WIDTH),
               guarded(M * WIDTH),
               guarded(M * WIDTH),
               guarded(smoe_exchange_scratch_rows(ex) * WIDTH),
               guarded(ex->n_send * WIDTH)};
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

/* Scratch with nothing in it that a call could take for a row. */
static smoe_real *fresh(const smoe_exchange *ex, buffers *b) {
  for (size_t i = 0; i < smoe_exchange_scratch_rows(ex) * WIDTH; i++) b->scratch[i] = NAN;
  return b->scratch;
}

static void free_buffers(buffers *b) {
  smoe_free(b->x);
  smoe_free(b->scale);
  smoe_free(b->slots);
  smoe_free(b->sums);
  smoe_free(b->out);
  smoe_free(b->rows);
  smoe_free(b->scratch);
  smoe_free(b->keep);
}

/* Where results are to be kept, with nothing in it; NULL: nowhere. */
static smoe_real *keep_of(const smoe_exchange *ex, buffers *b, bool keep) {
  for (size_t i = 0; i < ex->n_send * WIDTH; i++) b->keep[i] = NAN;
  return keep ? b->keep : NULL;
}

/* slots [N, K, C] of results in send order: zero where nothing was sent. */
static void spread_results(const smoe_exchange *ex, buffers *b, smoe_operand results, bool kept) {
  CHECK(!kept || results.wide == b->keep, "%s", label);
  for (size_t s = 0; s < ex->n_tokens * (size_t)ex->shape.n_slots; s++) {
    const int32_t place = ex->slot_place[s];
    for (size_t c = 0; c < WIDTH; c++)
      b->slots[s * WIDTH + c] = place < 0 ? 0 : results.wide[(size_t)place * WIDTH + c];
  }
  CHECK(b->keep[ex->n_send * WIDTH] == GUARD, "%s", label);
}

static void combine_slots(const smoe_exchange *ex, buffers *b, const smoe_real *rows, bool keep) {
  smoe_real *kept = keep_of(ex, b, keep);
  spread_results(ex, b, smoe_combine_rows(ex, kept, rows, fresh(ex, b)), keep);
}

/* Dispatch with factors on one side, combine and the factors on the other. */
static void check_adjoint(const smoe_exchange *ex, const world *w, buffers *b) {
  const size_t N = ex->n_tokens, K = (size_t)w->n_slots, M = ex->n_recv;
  smoe_real *dx = guarded(N * WIDTH);

  smoe_dispatch(ex, b->out, b->x, NULL, fresh(ex, b));
  smoe_combine_add(ex, dx, b->rows, fresh(ex, b));
  CHECK_NEAR(dot(b->out, b->rows, M * WIDTH), dot(b->x, dx, N * WIDTH), 1e-5, 1);

  smoe_dispatch(ex, b->out, b->x, b->scale, fresh(ex, b));
  combine_slots(ex, b, b->rows, true);
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
  smoe_dispatch(ex, b->out, b->x, NULL, fresh(ex, b));
  combine_slots(ex, b, b->out, false);
  for (size_t i = 0; i < ex->n_tokens * K * WIDTH; i++) {
    const smoe_real x = b->x[i / (K * WIDTH) * WIDTH + i % WIDTH];
    CHECK(b->slots[i] == (kept[i / WIDTH] < 0 ? 0 : x), "element %zu: %s", i, label);
  }
}

/* The same by groups: rows of a group are there when it is taken, and results come back by themselves. */
static void pass_groups(const smoe_exchange *ex, const world *w, buffers *b, const smoe_real *scale,
                        bool keep) {
  smoe_real *kept = keep_of(ex, b, keep);
  smoe_exchange_begin(ex, b->x, scale, kept, fresh(ex, b));
  int next = 0;
  for (int g = 0; g < ex->n_groups; g++) {
    int first, end;
    smoe_exchange_group(ex, g, &first, &end);
    CHECK(first == next && end >= first, "group %d: %s", g, label);
    next = end;
    smoe_exchange_take(ex, b->out, g);
    for (int64_t i = ex->expert_offset[first]; i < ex->expert_offset[end]; i++)
      CHECK(b->out[(size_t)i * WIDTH] == b->out[(size_t)i * WIDTH], "row %d of group %d: %s", (int)i, g,
            label);
    /* Ranks that give MPI much time, and ranks that give it none. */
    for (int i = 0; i < 3 * group.rank; i++) smoe_exchange_progress(ex);
    smoe_exchange_return(ex, b->rows, g);
    for (int i = 0; i < g; i++) smoe_exchange_progress(ex);
  }
  CHECK(next == ex->n_local, "%d of %d experts: %s", next, ex->n_local, label);
  check_dispatch(ex, w, b->out, scale);
}

static void check_groups(const smoe_exchange *ex, const world *w, buffers *b) {
  if (!smoe_exchange_overlap(ex)) return;
  const int first = w->first[group.rank];
  for (size_t i = 0; i < ex->n_recv * WIDTH; i++) b->out[i] = NAN;
  for (size_t i = 0; i < ex->n_tokens * (size_t)w->n_slots * WIDTH; i++) b->slots[i] = NAN;
  for (size_t i = 0; i < ex->n_tokens * WIDTH; i++)
    b->sums[i] = token_value(first + (int)(i / WIDTH), i % WIDTH);
  for (int keep = 0; keep < 2; keep++) {
    pass_groups(ex, w, b, NULL, keep);
    spread_results(ex, b, smoe_exchange_end_rows(ex), keep);
    for (size_t i = 0; i < ex->n_recv * WIDTH; i++) b->out[i] = NAN;
  }
  pass_groups(ex, w, b, b->scale, false);
  smoe_exchange_end_add(ex, b->sums);
  check_combine(ex, w, b->slots, b->sums);
}

/* Rows of another width by the same plan: there and back. */
static void check_follower(smoe_exchange *other, const smoe_exchange *ex, const world *w) {
  smoe_exchange_follow(other, ex);
  const size_t n = ex->n_tokens * OTHER, first = (size_t)w->first[group.rank];
  smoe_real *x = smoe_alloc((n + 1) * sizeof *x), *out = smoe_alloc((ex->n_recv * OTHER + 1) * sizeof *out);
  smoe_real *scratch = smoe_alloc((smoe_exchange_scratch_rows(other) + 1) * other->row_bytes);
  for (size_t i = 0; i < n; i++) x[i] = token_value((int)(first + i / OTHER), i % OTHER);
  smoe_dispatch(other, out, x, NULL, scratch);
  for (size_t i = 0; i < ex->n_recv * OTHER; i++)
    CHECK(out[i] == token_value(w->row_slot[i / OTHER] / w->n_slots, i % OTHER), "%zu: %s", i, label);
  const smoe_operand results = smoe_combine_rows(other, NULL, out, scratch);
  for (size_t s = 0; s < ex->n_tokens * (size_t)w->n_slots; s++)
    for (size_t c = 0; c < OTHER && ex->slot_place[s] >= 0; c++)
      CHECK(results.wide[(size_t)ex->slot_place[s] * OTHER + c] == x[s / (size_t)w->n_slots * OTHER + c],
            "slot %zu: %s", s, label);
  smoe_free(x), smoe_free(out), smoe_free(scratch);
}

static void test_case(smoe_exchange *ex, smoe_exchange *other, const world *w) {
  const int first = w->first[group.rank], n = w->first[group.rank + 1] - first;
  int32_t expert[TOKENS * SLOTS_MAX];
  memcpy(expert, w->chosen + first * w->n_slots, (size_t)(n * w->n_slots) * sizeof *expert);
  smoe_exchange_plan(ex, expert, (size_t)n);
  check_plan(ex, w, expert);
  /* With a wrong number of rows nothing below would make sense; all ranks leave together. */
  if (smoe_group_agree(&group, ex->n_recv == (size_t)w->n_rows ? SMOE_OK : SMOE_ERR_BUG) != SMOE_OK) return;

  if (other) check_follower(other, ex, w);
  buffers b = make_buffers(ex, w);
  smoe_dispatch(ex, b.out, b.x, NULL, fresh(ex, &b));
  check_dispatch(ex, w, b.out, false);
  smoe_dispatch(ex, b.out, b.x, b.scale, fresh(ex, &b));
  check_dispatch(ex, w, b.out, true);
  smoe_combine_add(ex, b.sums, b.rows, fresh(ex, &b));
  for (int keep = 0; keep < 2; keep++) {
    combine_slots(ex, &b, b.rows, keep);
    check_combine(ex, w, b.slots, b.sums);
  }
  check_adjoint(ex, w, &b);
  check_round_trip(ex, w, &b);
  check_groups(ex, w, &b);
  CHECK(smoe_exchange_scratch_rows(ex) <= smoe_exchange_scratch_max(ex), "%s", label);
  CHECK(b.scratch[smoe_exchange_scratch_rows(ex) * WIDTH] == GUARD, "%s", label);
  free_buffers(&b);
}

/* One exchange for all choices and layouts: a plan leaves nothing behind for the next. */
static void test_shape(int n_experts, int n_slots, double factor) {
  const smoe_exchange_shape shape = {n_experts, n_slots, WIDTH,   TOKENS,   TOKENS,
                                     factor,    0,       options, expert_at};
  smoe_arena arena;
  smoe_exchange ex, other;
  smoe_arena_measure(&arena, "exchange");
  smoe_exchange_declare(&ex, &topology, &shape, &arena);
  smoe_exchange_release(&ex);
  if (smoe_arena_reserve(&arena) != SMOE_OK) SMOE_PANIC(SMOE_ERR_MEMORY, "%s", smoe_last_error());
  smoe_exchange_declare(&ex, &topology, &shape, &arena);
  smoe_exchange_declare_with(&other, &ex, OTHER, &arena);
  for (int c = 0; c < N_CHOICES; c++) {
    for (int l = 0; l < N_LAYOUTS; l++) {
      world w;
      make_world(&w, n_experts, n_slots, factor, (choice_kind)c, (layout_kind)l);
      test_case(&ex, l == EVEN && c == HOLES ? &other : NULL, &w);
    }
  }
  smoe_exchange_release(&other);
  smoe_exchange_release(&ex);
  smoe_arena_release(&arena);
}

/* Experts dealt out like cards, ascending within a rank. */
static void deal(int n_experts) {
  int32_t *table = smoe_alloc((size_t)n_experts * sizeof *table);
  const int n_ranks = topology.experts.n_ranks;
  int *room = smoe_alloc((size_t)n_ranks * sizeof *room);
  for (int r = 0; r < n_ranks; r++)
    room[r] = smoe_expert_first(n_experts, r + 1, n_ranks) - smoe_expert_first(n_experts, r, n_ranks);
  for (int e = 0, r = 0; e < n_experts; e++, r = (r + 1) % n_ranks) {
    while (room[r] == 0) r = (r + 1) % n_ranks;
    table[smoe_expert_first(n_experts, r + 1, n_ranks) - room[r]--] = e;
  }
  smoe_free(room);
  smoe_free(expert_at);
  expert_at = table;
}

/* A set of options on two shapes, which together with the other ways' are all. */
static void test_way(int number, int node_ranks) {
  if (options.kind == SMOE_EXCHANGE_TWO_LEVEL)
    smoe_nodes_find(&topology.nodes, &topology.experts, node_ranks);
  for (int i = 0; i < 2; i++) {
    const int shape = (i == 0 ? number : 3 * number + 5) % 8, n_experts = shape & 1 ? EXPERTS_MAX : 4;
    if (number % 3 == 0) deal(n_experts);
    test_shape(n_experts, shape & 2 ? 2 : 1, shape & 4 ? 0.5 : 0);
    smoe_free(expert_at);
    expert_at = NULL;
  }
  smoe_nodes_release(&topology.nodes);
}

static void test_ways(void) {
  static const int node_ranks[] = {1, 2, 3, 0};
  static const int overlap[] = {0, 1, 2, 5};
  int number = 0;
  for (int slices = 0; slices < 2; slices++)
    for (size_t o = 0; o < sizeof overlap / sizeof *overlap; o++) {
      options = (smoe_exchange_options){.overlap = overlap[o],
                                        .slice_bytes = slices ? 2.5 * WIDTH * sizeof(smoe_real) : 0};
      for (int a = SMOE_ALLTOALLV_AUTO; a <= SMOE_ALLTOALLV_PAIRWISE; a++) {
        options.alltoallv = (smoe_alltoallv)a;
        test_way(number++, 0);
      }
      options.alltoallv = SMOE_ALLTOALLV_AUTO;
      options.kind = SMOE_EXCHANGE_TWO_LEVEL;
      for (size_t n = 0; n < sizeof node_ranks / sizeof *node_ranks; n++) test_way(number++, node_ranks[n]);
    }
}

/* Two replicas, or as many as there are ranks. */
static void test_replicas(void) {
  for (int expert_ranks = 1; expert_ranks <= 2; expert_ranks++) {
    if (group.n_ranks % expert_ranks || expert_ranks == group.n_ranks) continue;
    if (smoe_topology_create(&topology, &group, 4, expert_ranks) != SMOE_OK)
      SMOE_PANIC(SMOE_ERR_BUG, "%s", smoe_last_error());
    options = (smoe_exchange_options){0};
    test_shape(4, 2, 0.5);
    options = (smoe_exchange_options){.overlap = 2, .alltoallv = SMOE_ALLTOALLV_PAIRWISE};
    test_shape(4, 1, 0);
    options = (smoe_exchange_options){.overlap = 2, .kind = SMOE_EXCHANGE_TWO_LEVEL};
    smoe_nodes_find(&topology.nodes, &topology.experts, 1);
    test_shape(4, 2, 0.5);
    smoe_topology_release(&topology);
  }
}

static void test_nodes(void) {
  const int n = group.n_ranks;
  for (int per_node = 1; per_node <= 3; per_node++) {
    smoe_nodes nodes;
    smoe_nodes_find(&nodes, &group, per_node);
    CHECK(nodes.n_nodes == (n + per_node - 1) / per_node, "%d nodes of %d", nodes.n_nodes, per_node);
    for (int r = 0; r < n; r++)
      CHECK(nodes.node[r] == r / per_node && nodes.rank[r] == r, "rank %d, nodes of %d", r, per_node);
    for (int x = 0; x <= nodes.n_nodes; x++)
      CHECK(nodes.first[x] == (x * per_node < n ? x * per_node : n), "node %d of %d", x, per_node);
    smoe_nodes_release(&nodes);
  }
  smoe_nodes nodes;
  smoe_nodes_find(&nodes, &group, 0);
  CHECK(nodes.first[nodes.n_nodes] == n && nodes.node[0] == 0, "%d nodes", nodes.n_nodes);
  CHECK(nodes.first[nodes.node[group.rank] + 1] - nodes.first[nodes.node[group.rank]] ==
            smoe_group_ranks_here(&group),
        "%d nodes", nodes.n_nodes);
  smoe_nodes_release(&nodes);
}

/* Messages between nodes of one transfer: by way of nodes one from each node to each other one, whatever their ranks;
 * directly one from each rank to each rank of another node. Every rank has rows for every expert. */
static void test_messages(void) {
  for (int kind = SMOE_EXCHANGE_DIRECT; kind <= SMOE_EXCHANGE_TWO_LEVEL; kind++) {
    smoe_arena arena;
    smoe_exchange ex;
    world w;
    options = (smoe_exchange_options){.kind = (smoe_exchange_kind)kind, .alltoallv = SMOE_ALLTOALLV_LINEAR};
    smoe_nodes_find(&topology.nodes, &topology.experts, 2);
    const smoe_exchange_shape shape = {4, 2, WIDTH, TOKENS, TOKENS, 0, 0, options, NULL};
    smoe_arena_measure(&arena, "exchange");
    smoe_exchange_declare(&ex, &topology, &shape, &arena);
    smoe_exchange_release(&ex);
    if (smoe_arena_reserve(&arena) != SMOE_OK) SMOE_PANIC(SMOE_ERR_MEMORY, "%s", smoe_last_error());
    smoe_exchange_declare(&ex, &topology, &shape, &arena);
    make_world(&w, 4, 2, 0, (choice_kind)0, EVEN);
    int32_t *expert = w.chosen + w.first[group.rank] * 2;
    smoe_exchange_plan(&ex, expert, (size_t)(w.first[group.rank + 1] - w.first[group.rank]));
    buffers b = make_buffers(&ex, &w);
    smoe_dispatch(&ex, b.out, b.x, NULL, fresh(&ex, &b));
    int64_t count[2]; /* within, across */
    smoe_exchange_messages(&ex, &count[0], &count[1]);
    smoe_group_sum_i64(&group, count, 2);
    const int nodes = topology.nodes.n_nodes, ranks = group.n_ranks;
    int64_t pairs = 0;
    for (int r = 0; r < ranks; r++)
      for (int s = 0; s < ranks; s++) pairs += topology.nodes.node[r] != topology.nodes.node[s];
    const int64_t across = kind == SMOE_EXCHANGE_TWO_LEVEL ? nodes * (nodes - 1) : pairs,
                  all = ranks * (ranks - 1);
    CHECK(count[1] == across && count[0] >= all - pairs, "%lld between, %lld within nodes: %s",
          (long long)count[1], (long long)count[0], label);
    free_buffers(&b);
    smoe_exchange_release(&ex);
    smoe_arena_release(&arena);
    smoe_nodes_release(&topology.nodes);
  }
}

int main(int argc, char **argv) {
  static const int n_experts[] = {1, 2, 3, 4, EXPERTS_MAX};
  static const double factor[] = {0, 0.5, 1, 1.25};
  smoe_group_start(&group, &argc, &argv);
  topology = smoe_topology_whole(&group);
  for (size_t e = 0; e < sizeof n_experts / sizeof n_experts[0]; e++)
    for (int k = 1; k <= SLOTS_MAX; k++)
      for (size_t f = 0; f < sizeof factor / sizeof factor[0]; f++) test_shape(n_experts[e], k, factor[f]);
  test_nodes();
  test_ways();
  test_messages();
  test_replicas();
  smoe_group_end(&group);
  return test_verdict("exchange");
}
