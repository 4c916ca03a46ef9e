/* Planning an exchange: which slot goes where, from the ranks' counts per expert.
 *
 * Counts are all a rank needs of the others: a slot's place in global order follows
 * from how many rows of its expert lower ranks have.
 */
#include <math.h>

#include "exchange_parts.h"
#include "stablemoe/slot.h"

/* Rows an expert takes when n_tokens tokens are routed; -1 without a limit. At least one: an evaluation of few
 * sequences would drop everything otherwise. */
static int64_t capacity(const smoe_exchange_shape *shape, int64_t n_tokens) {
  if (!(shape->capacity_factor > 0)) return -1;
  const double n_slots = (double)n_tokens * shape->n_slots;
  return (int64_t)fmax(1, floor(shape->capacity_factor * n_slots / shape->n_experts));
}

size_t smoe_exchange_rows_max(const smoe_exchange *ex) {
  const smoe_exchange_shape *shape = &ex->shape;
  const int64_t n_tokens = shape->n_replica_max > 0 ? shape->n_replica_max : shape->n_global_max;
  const int64_t all = n_tokens * shape->n_slots;
  const int64_t per_expert = capacity(shape, shape->n_global_max);
  if (ex->n_local == 0) return 0;
  if (per_expert < 0 || per_expert >= all / ex->n_local) return (size_t)all;
  return (size_t)(per_expert * ex->n_local);
}

static void declare_rows(smoe_exchange *ex, size_t width, const smoe_arena *arena) {
  ex->shape.width = width;
  ex->row_bytes = width * smoe_precision_bytes(ex->shape.precision);
  ex->row_type = MPI_DATATYPE_NULL;
  ex->state = NULL;
  if (arena->base) smoe_exchange_rows_create(ex);
}

void smoe_exchange_declare(smoe_exchange *ex, const smoe_topology *topology, const smoe_exchange_shape *shape,
                           smoe_arena *arena) {
  const smoe_group *group = &topology->experts;
  const size_t E = (size_t)shape->n_experts, G = (size_t)group->n_ranks;
  const size_t R = (size_t)topology->world.n_ranks;
  const size_t n_slots = shape->n_tokens_max * (size_t)shape->n_slots;
  if (shape->n_global_max > INT32_MAX / shape->n_slots)
    SMOE_PANIC(SMOE_ERR_CONFIG,
               "a micro-batch of %lld tokens with %d slots is too large: use more micro-batches",
               (long long)shape->n_global_max, shape->n_slots);
  const int first = smoe_expert_first(shape->n_experts, group->rank, group->n_ranks);
  const int end = smoe_expert_first(shape->n_experts, group->rank + 1, group->n_ranks);
  *ex = (smoe_exchange){.shape = *shape, .topology = topology, .place_first = first, .n_local = end - first};

  ex->send_row = smoe_arena_ints(arena, n_slots);
  ex->slot_place = smoe_arena_ints(arena, n_slots);
  ex->recv_place = smoe_arena_ints(arena, smoe_exchange_rows_max(ex));
  ex->expert_offset = smoe_arena_take(arena, ((size_t)ex->n_local + 1) * sizeof *ex->expert_offset);
  ex->load = smoe_arena_take(arena, E * sizeof *ex->load);
  ex->kept = smoe_arena_ints(arena, R * (E + 1));
  ex->cursor = smoe_arena_ints(arena, 2 * E);
  ex->send_count = smoe_arena_take(arena, G * sizeof *ex->send_count);
  ex->send_offset = smoe_arena_take(arena, G * sizeof *ex->send_offset);
  ex->recv_count = smoe_arena_take(arena, G * sizeof *ex->recv_count);
  ex->recv_offset = smoe_arena_take(arena, G * sizeof *ex->recv_offset);

  smoe_exchange_blocks_declare(ex, arena);
  declare_rows(ex, shape->width, arena);
}

void smoe_exchange_declare_with(smoe_exchange *ex, const smoe_exchange *of, size_t width, smoe_arena *arena) {
  *ex = *of;
  declare_rows(ex, width, arena);
}

void smoe_exchange_release(smoe_exchange *ex) {
  /* A zeroed plan was never declared. */
  if (ex->topology && ex->row_type != MPI_DATATYPE_NULL) SMOE_MPI(MPI_Type_free(&ex->row_type));
  smoe_exchange_blocks_release(ex);
}

/* This rank's row of counts: slots per expert, and tokens with at least one. */
static void count_slots(const smoe_exchange *ex, int32_t *count, const int32_t *expert) {
  const int E = ex->shape.n_experts, K = ex->shape.n_slots;
  for (int e = 0; e <= E; e++) count[e] = 0;
  for (size_t t = 0; t < ex->n_tokens; t++) {
    bool routed = false;
    for (int k = 0; k < K; k++) {
      const int32_t e = expert[t * (size_t)K + (size_t)k];
      if (e < 0) continue;
      if (e >= E) SMOE_PANIC(SMOE_ERR_BUG, "token %zu of this rank chose expert %d of %d", t, (int)e, E);
      count[e]++;
      routed = true;
    }
    count[E] += routed;
  }
}

/* From counts of chosen slots to counts of kept ones, lower ranks first; the loads on the way. */
static void apply_capacity(smoe_exchange *ex) {
  const size_t E = (size_t)ex->shape.n_experts, stride = E + 1;
  const int R = ex->topology->world.n_ranks;
  int64_t n_tokens = 0;
  for (int r = 0; r < R; r++) n_tokens += ex->kept[(size_t)r * stride + E];
  const int64_t limit = capacity(&ex->shape, n_tokens);
  ex->n_assigned = ex->n_dropped = 0;
  for (size_t e = 0; e < E; e++) {
    int64_t load = 0;
    for (int r = 0; r < R; r++) {
      int32_t *kept = &ex->kept[(size_t)r * stride + e];
      const int64_t room = limit < 0 || limit - load > *kept ? *kept : limit - load;
      load += *kept;
      *kept = room > 0 ? (int32_t)room : 0;
    }
    ex->load[e] = load;
    ex->n_assigned += load;
    if (limit >= 0 && load > limit) ex->n_dropped += load - limit;
  }
}

/* A stable counting sort of the kept slots by their expert's place; the others are marked as dropped. */
static void order_slots(smoe_exchange *ex, int32_t *expert) {
  const int E = ex->shape.n_experts, G = ex->topology->experts.n_ranks;
  const int32_t *kept = ex->kept + (size_t)ex->topology->world.rank * (size_t)(E + 1);
  int32_t *next = ex->cursor, *end = ex->cursor + E;
  int32_t n = 0;
  for (int r = 0, place = 0; r < G; r++) {
    ex->send_offset[r] = n;
    for (; place < smoe_expert_first(E, r + 1, G); place++) {
      const int e = smoe_expert_at(ex->shape.expert_at, place);
      next[e] = n;
      end[e] = n += kept[e];
    }
    ex->send_count[r] = n - ex->send_offset[r];
  }
  ex->n_send = (size_t)n;

  const size_t n_slots = ex->n_tokens * (size_t)ex->shape.n_slots;
  for (size_t s = 0; s < n_slots; s++) {
    const int32_t e = expert[s];
    ex->slot_place[s] = -1;
    if (e < 0) continue;
    if (next[e] == end[e]) {
      expert[s] = smoe_slot_dropped(e);
    } else {
      ex->slot_place[s] = next[e];
      ex->send_row[next[e]++] = (int32_t)s;
    }
  }
}

/* Where arriving rows go: they come by rank, then expert, and stand by expert, then rank. */
static void place_rows(smoe_exchange *ex) {
  const size_t stride = (size_t)ex->shape.n_experts + 1;
  const int G = ex->topology->experts.n_ranks;
  /* The replica's ranks follow one another; this rank stands at experts.rank among them. */
  const int first_rank = ex->topology->world.rank - ex->topology->experts.rank;
  const int32_t *kept = ex->kept + (size_t)first_rank * stride;
  int32_t *next = ex->cursor;
  ex->expert_offset[0] = 0;
  for (int j = 0; j < ex->n_local; j++) {
    const size_t e = (size_t)smoe_expert_at(ex->shape.expert_at, ex->place_first + j);
    int64_t n = 0;
    for (int r = 0; r < G; r++) n += kept[(size_t)r * stride + e];
    next[j] = (int32_t)ex->expert_offset[j];
    ex->expert_offset[j + 1] = ex->expert_offset[j] + n;
  }
  ex->n_recv = (size_t)ex->expert_offset[ex->n_local];
  if (ex->n_recv > smoe_exchange_rows_max(ex))
    SMOE_PANIC(SMOE_ERR_BUG, "an exchange brings %zu rows where at most %zu were planned", ex->n_recv,
               smoe_exchange_rows_max(ex));
  int arrived = 0;
  for (int r = 0; r < G; r++) {
    ex->recv_offset[r] = arrived;
    for (int j = 0; j < ex->n_local; j++) {
      const size_t e = (size_t)smoe_expert_at(ex->shape.expert_at, ex->place_first + j);
      for (int32_t i = 0; i < kept[(size_t)r * stride + e]; i++) ex->recv_place[arrived++] = next[j]++;
    }
    ex->recv_count[r] = arrived - ex->recv_offset[r];
  }
}

void smoe_exchange_plan(smoe_exchange *ex, int32_t *expert, size_t n) {
  const int n_counts = ex->shape.n_experts + 1;
  if (smoe_fault("exchange.plan")) SMOE_PANIC(SMOE_ERR_MPI, "injected fault at exchange.plan");
  if (n > ex->shape.n_tokens_max)
    SMOE_PANIC(SMOE_ERR_BUG, "an exchange of %zu tokens where at most %zu were planned", n,
               ex->shape.n_tokens_max);
  ex->n_tokens = n;
  const smoe_group *world = &ex->topology->world;
  count_slots(ex, ex->kept + (size_t)world->rank * (size_t)n_counts, expert);
  if (world->n_ranks > 1)
    SMOE_MPI(MPI_Allgather(MPI_IN_PLACE, 0, MPI_INT32_T, ex->kept, n_counts, MPI_INT32_T, world->comm));
  apply_capacity(ex);
  order_slots(ex, expert);
  place_rows(ex);
  smoe_exchange_blocks(ex);
}
