/** A whole micro-batch as one rank sees it: who chooses which expert, and what an exchange has to make of it. */
#ifndef STABLEMOE_TEST_EXCHANGE_WORLD_H
#define STABLEMOE_TEST_EXCHANGE_WORLD_H

#include "harness.h"
#include "stablemoe/exchange.h"
#include "stablemoe/random.h"

enum { TOKENS = 41, WIDTH = 5, OTHER = 3, SLOTS_MAX = 2, EXPERTS_MAX = 7, GUARD = 12345 };

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
static smoe_topology topology;
static int32_t *expert_at; /**< the experts' places; NULL: in order */
static smoe_exchange_options options;
static char label[400];

static int first_rank(void) {
  return group.rank - topology.experts.rank;
}

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
  const int64_t share = (int64_t)(factor * (n_routed * n_slots) / n_experts);
  const int64_t room = factor > 0 ? share > 1 ? share : 1 : INT64_MAX;
  for (int s = 0; s < n_tokens * n_slots; s++) {
    const int32_t e = w->kept[s] = w->chosen[s];
    if (e < 0) continue;
    w->n_assigned++;
    if (w->load[e]++ < room) continue;
    w->kept[s] = -2 - e;
    w->n_dropped++;
  }
  const int g = topology.experts.rank, n_ranks = topology.experts.n_ranks;
  const int first = smoe_expert_first(n_experts, g, n_ranks),
            end = smoe_expert_first(n_experts, g + 1, n_ranks);
  const int slot = w->first[first_rank()] * n_slots, slot_end = w->first[first_rank() + n_ranks] * n_slots;
  for (int place = first; place < end; place++) {
    for (int s = slot; s < slot_end; s++)
      if (w->kept[s] == smoe_expert_at(expert_at, place)) w->row_slot[w->n_rows++] = s;
    w->offset[place - first + 1] = w->n_rows;
  }
  snprintf(label, sizeof label,
           "rank %d of %d (%d, %d nodes), %d experts, %d slots, factor %g, %s, %s, kind %d, alltoallv %d, "
           "overlap %d, slices %g",
           group.rank, group.n_ranks, n_ranks, topology.nodes.n_nodes, n_experts, n_slots, factor,
           choice_name[choice], layout_name[layout], (int)options.kind, (int)options.alltoallv,
           options.overlap, options.slice_bytes);
}

#endif
