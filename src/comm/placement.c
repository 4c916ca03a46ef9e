#include "stablemoe/placement.h"

#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/lanes.h"

/* Rank sums looked at while improving a packing: some tens of milliseconds. */
enum { WORK_MAX = 20000000 };

/* A packing in the making. */
typedef struct packing {
  const int64_t *load; /* [M, E] */
  int n_layers, n_experts, n_ranks;
  int *rank_of;   /* [E] */
  int64_t *total; /* [M, R] load of each rank */
} packing;

static int64_t load_of(const packing *p, int layer, int expert) {
  return p->load[(size_t)layer * (size_t)p->n_experts + (size_t)expert];
}

static int64_t *total_of(const packing *p, int layer, int rank) {
  return &p->total[(size_t)layer * (size_t)p->n_ranks + (size_t)rank];
}

static void add_expert(packing *p, int expert, int rank, int sign) {
  for (int m = 0; m < p->n_layers; m++) *total_of(p, m, rank) += sign * load_of(p, m, expert);
}

/* Layers run one after the other, and each waits for its busiest rank. */
static int64_t cost_of(const packing *p) {
  int64_t cost = 0;
  for (int m = 0; m < p->n_layers; m++) {
    int64_t most = 0;
    for (int r = 0; r < p->n_ranks; r++)
      if (*total_of(p, m, r) > most) most = *total_of(p, m, r);
    cost += most;
  }
  return cost;
}

static packing packing_begin(const int64_t *load, int n_layers, int n_experts, int n_ranks) {
  return (packing){.load = load,
                   .n_layers = n_layers,
                   .n_experts = n_experts,
                   .n_ranks = n_ranks,
                   .rank_of = smoe_alloc((size_t)n_experts * sizeof(int)),
                   .total = smoe_alloc((size_t)n_layers * (size_t)n_ranks * sizeof(int64_t))};
}

static void packing_end(packing *p) {
  smoe_free(p->rank_of);
  smoe_free(p->total);
}

static void take_table(packing *p, const int32_t *expert_at) {
  for (int r = 0; r < p->n_ranks; r++)
    for (int i = smoe_expert_first(p->n_experts, r, p->n_ranks);
         i < smoe_expert_first(p->n_experts, r + 1, p->n_ranks); i++) {
      const int expert = expert_at ? expert_at[i] : i;
      p->rank_of[expert] = r;
      add_expert(p, expert, r, 1);
    }
}

/* Experts with their loads over all layers, the heaviest first, the lower number on ties. */
typedef struct weighed {
  int64_t load;
  int expert;
} weighed;

static int compare_weighed(const void *left, const void *right) {
  const weighed *a = left, *b = right;
  if (a->load != b->load) return a->load > b->load ? -1 : 1;
  return a->expert - b->expert;
}

/* The heaviest expert that is left goes to the rank that has least, where it has a place. */
static void longest_first(packing *p) {
  weighed *order = smoe_alloc((size_t)p->n_experts * sizeof *order);
  int64_t *sum = smoe_alloc((size_t)p->n_ranks * sizeof *sum);
  int *room = smoe_alloc((size_t)p->n_ranks * sizeof *room);
  for (int e = 0; e < p->n_experts; e++) {
    order[e] = (weighed){0, e};
    for (int m = 0; m < p->n_layers; m++) order[e].load += load_of(p, m, e);
  }
  for (int r = 0; r < p->n_ranks; r++)
    room[r] =
        smoe_expert_first(p->n_experts, r + 1, p->n_ranks) - smoe_expert_first(p->n_experts, r, p->n_ranks);
  qsort(order, (size_t)p->n_experts, sizeof *order, compare_weighed);
  for (int i = 0; i < p->n_experts; i++) {
    int best = -1;
    for (int r = 0; r < p->n_ranks; r++)
      if (room[r] > 0 && (best < 0 || sum[r] < sum[best])) best = r;
    p->rank_of[order[i].expert] = best;
    add_expert(p, order[i].expert, best, 1);
    sum[best] += order[i].load;
    room[best]--;
  }
  smoe_free(order);
  smoe_free(sum);
  smoe_free(room);
}

static void swap(packing *p, int a, int b) {
  const int rank_a = p->rank_of[a], rank_b = p->rank_of[b];
  add_expert(p, a, rank_a, -1);
  add_expert(p, b, rank_b, -1);
  add_expert(p, a, rank_b, 1);
  add_expert(p, b, rank_a, 1);
  p->rank_of[a] = rank_b;
  p->rank_of[b] = rank_a;
}

/* Whether a rank is the busiest one of some layer: only swaps with such a one can help. */
static bool is_busiest(const packing *p, int rank) {
  for (int m = 0; m < p->n_layers; m++) {
    bool busiest = true;
    for (int r = 0; r < p->n_ranks; r++) busiest = busiest && *total_of(p, m, r) <= *total_of(p, m, rank);
    if (busiest) return true;
  }
  return false;
}

/* Carry out the swap that helps most. Returns whether there was one; adds to *work. */
static bool improve(packing *p, int64_t *work) {
  const int64_t before = cost_of(p);
  int64_t best = before;
  int best_a = -1, best_b = -1;
  for (int a = 0; a < p->n_experts && *work < WORK_MAX; a++) {
    if (!is_busiest(p, p->rank_of[a])) continue;
    for (int b = 0; b < p->n_experts; b++) {
      if (p->rank_of[b] == p->rank_of[a]) continue;
      swap(p, a, b);
      const int64_t cost = cost_of(p);
      swap(p, a, b);
      *work += (int64_t)p->n_layers * p->n_ranks;
      if (cost >= best) continue;
      best = cost;
      best_a = a;
      best_b = b;
    }
  }
  if (best == before) return false;
  swap(p, best_a, best_b);
  return true;
}

double smoe_placement_imbalance(const int32_t *expert_at, const int64_t *load, int n_layers, int n_experts,
                                int n_ranks) {
  packing p = packing_begin(load, n_layers, n_experts, n_ranks);
  take_table(&p, expert_at);
  double all = 0;
  for (size_t i = 0; i < (size_t)n_layers * (size_t)n_experts; i++) all += (double)load[i];
  const double busiest = (double)cost_of(&p);
  packing_end(&p);
  return all > 0 ? busiest / (all / n_ranks) : 1;
}

void smoe_placement_pack(int32_t *expert_at, const int64_t *load, int n_layers, int n_experts, int n_ranks) {
  packing as_it_is = packing_begin(load, n_layers, n_experts, n_ranks);
  packing p = packing_begin(load, n_layers, n_experts, n_ranks);
  take_table(&as_it_is, NULL);
  longest_first(&p);
  int64_t work = 0;
  while (work < WORK_MAX && improve(&p, &work)) continue;
  const packing *better = cost_of(&p) < cost_of(&as_it_is) ? &p : &as_it_is;
  int place = 0;
  for (int r = 0; r < n_ranks; r++)
    for (int e = 0; e < n_experts; e++)
      if (better->rank_of[e] == r) expert_at[place++] = e;
  packing_end(&as_it_is);
  packing_end(&p);
}

/* Rank that has a place. */
static int rank_of_place(int place, int n_experts, int n_ranks) {
  int rank = (int)((int64_t)place * n_ranks / n_experts);
  while (smoe_expert_first(n_experts, rank, n_ranks) > place) rank--;
  while (smoe_expert_first(n_experts, rank + 1, n_ranks) <= place) rank++;
  return rank;
}

void smoe_placement_move(const smoe_topology *topology, const int32_t *to, int n_experts, smoe_real *out,
                         const smoe_real *in, size_t count) {
  const smoe_group *group = &topology->experts;
  const int own_first = smoe_expert_first(n_experts, group->rank, group->n_ranks);
  const int n_local = smoe_expert_first(n_experts, group->rank + 1, group->n_ranks) - own_first;
  int *place_now = smoe_alloc((size_t)n_experts * sizeof *place_now);
  MPI_Request *request = smoe_alloc(2 * (size_t)n_local * sizeof *request);
  MPI_Datatype unit;
  int n = 0;
  if (smoe_fault("placement.move")) SMOE_PANIC(SMOE_ERR_MPI, "injected fault at placement.move");
  /* In units an int counts any slab. */
  SMOE_MPI(MPI_Type_contiguous(SMOE_UNIT, SMOE_MPI_REAL, &unit));
  SMOE_MPI(MPI_Type_commit(&unit));
  const int units = (int)(count / SMOE_UNIT);
  for (int i = 0; i < n_experts; i++) place_now[smoe_expert_at(topology, i)] = i;
  /* Both ends of a pair go through the new places in order, so messages need no names. */
  for (int i = 0; i < n_experts; i++) {
    const int from = rank_of_place(place_now[to[i]], n_experts, group->n_ranks);
    const int dest = rank_of_place(i, n_experts, group->n_ranks);
    if (from != group->rank && dest != group->rank) continue;
    const smoe_real *old = from == group->rank ? in + (size_t)(place_now[to[i]] - own_first) * count : NULL;
    smoe_real *new = dest == group->rank ? out + (size_t)(i - own_first) * count : NULL;
    if (old && new)
      memcpy(new, old, count * sizeof *new);
    else if (old)
      SMOE_MPI(MPI_Isend(old, units, unit, dest, 0, group->comm, &request[n++]));
    else
      SMOE_MPI(MPI_Irecv(new, units, unit, from, 0, group->comm, &request[n++]));
  }
  SMOE_MPI(MPI_Waitall(n, request, MPI_STATUSES_IGNORE));
  SMOE_MPI(MPI_Type_free(&unit));
  smoe_free(place_now);
  smoe_free(request);
}
