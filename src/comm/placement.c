#include "stablemoe/placement.h"

#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/lanes.h"

/* Rank sums looked at while improving a packing: some tens of milliseconds. */
enum { WORK_MAX = 20000000 };

/* A packing in the making. */
typedef struct packing {
  const int64_t *load; /* [E] */
  int n_experts, n_ranks;
  int *rank_of;   /* [E] */
  int64_t *total; /* [R] load of each rank */
} packing;

static int64_t busiest_of(const packing *p) {
  int64_t most = 0;
  for (int r = 0; r < p->n_ranks; r++)
    if (p->total[r] > most) most = p->total[r];
  return most;
}

static packing packing_begin(const int64_t *load, int n_experts, int n_ranks) {
  return (packing){.load = load,
                   .n_experts = n_experts,
                   .n_ranks = n_ranks,
                   .rank_of = smoe_alloc((size_t)n_experts * sizeof(int)),
                   .total = smoe_alloc((size_t)n_ranks * sizeof(int64_t))};
}

static void packing_end(packing *p) {
  smoe_free(p->rank_of);
  smoe_free(p->total);
}

static void add_expert(packing *p, int expert, int rank) {
  p->rank_of[expert] = rank;
  p->total[rank] += p->load[expert];
}

static void take_table(packing *p, const int32_t *expert_at) {
  for (int r = 0; r < p->n_ranks; r++)
    for (int i = smoe_expert_first(p->n_experts, r, p->n_ranks);
         i < smoe_expert_first(p->n_experts, r + 1, p->n_ranks); i++)
      add_expert(p, smoe_expert_at(expert_at, i), r);
}

/* Experts with their loads, the heaviest first, the lower number on ties. */
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
  int *places = smoe_alloc((size_t)p->n_ranks * sizeof *places);
  for (int e = 0; e < p->n_experts; e++) order[e] = (weighed){p->load[e], e};
  for (int r = 0; r < p->n_ranks; r++)
    places[r] =
        smoe_expert_first(p->n_experts, r + 1, p->n_ranks) - smoe_expert_first(p->n_experts, r, p->n_ranks);
  qsort(order, (size_t)p->n_experts, sizeof *order, compare_weighed);
  for (int i = 0; i < p->n_experts; i++) {
    int best = -1;
    for (int r = 0; r < p->n_ranks; r++)
      if (places[r] > 0 && (best < 0 || p->total[r] < p->total[best])) best = r;
    add_expert(p, order[i].expert, best);
    places[best]--;
  }
  smoe_free(order);
  smoe_free(places);
}

static void swap(packing *p, int a, int b) {
  const int rank_a = p->rank_of[a], rank_b = p->rank_of[b];
  p->total[rank_a] -= p->load[a];
  p->total[rank_b] -= p->load[b];
  add_expert(p, a, rank_b);
  add_expert(p, b, rank_a);
}

/* Carry out the swap that helps most, which is one with a busiest rank. Returns whether there was one;
 * adds to *work. */
static bool improve(packing *p, int64_t *work) {
  const int64_t before = busiest_of(p);
  int64_t best = before;
  int best_a = -1, best_b = -1;
  for (int a = 0; a < p->n_experts && *work < WORK_MAX; a++) {
    if (p->total[p->rank_of[a]] < before) continue;
    for (int b = 0; b < p->n_experts; b++) {
      if (p->rank_of[b] == p->rank_of[a]) continue;
      swap(p, a, b);
      const int64_t busiest = busiest_of(p);
      swap(p, a, b);
      *work += p->n_ranks;
      if (busiest >= best) continue;
      best = busiest;
      best_a = a;
      best_b = b;
    }
  }
  if (best == before) return false;
  swap(p, best_a, best_b);
  return true;
}

int64_t smoe_placement_busiest(const int32_t *expert_at, const int64_t *load, int n_experts, int n_ranks) {
  packing p = packing_begin(load, n_experts, n_ranks);
  take_table(&p, expert_at);
  const int64_t busiest = busiest_of(&p);
  packing_end(&p);
  return busiest;
}

void smoe_placement_pack(int32_t *expert_at, const int64_t *load, int n_experts, int n_ranks) {
  packing in_order = packing_begin(load, n_experts, n_ranks);
  packing p = packing_begin(load, n_experts, n_ranks);
  take_table(&in_order, NULL);
  longest_first(&p);
  int64_t work = 0;
  while (work < WORK_MAX && improve(&p, &work)) continue;
  const packing *better = busiest_of(&p) < busiest_of(&in_order) ? &p : &in_order;
  int place = 0;
  for (int r = 0; r < n_ranks; r++)
    for (int e = 0; e < n_experts; e++)
      if (better->rank_of[e] == r) expert_at[place++] = e;
  packing_end(&in_order);
  packing_end(&p);
}

/* Rank that has a place. */
static int rank_of_place(int place, int n_experts, int n_ranks) {
  int rank = (int)((int64_t)place * n_ranks / n_experts);
  while (smoe_expert_first(n_experts, rank, n_ranks) > place) rank--;
  while (smoe_expert_first(n_experts, rank + 1, n_ranks) <= place) rank++;
  return rank;
}

void smoe_placement_move(const smoe_group *group, const int32_t *from, const int32_t *to, int n_experts,
                         smoe_real *out, const smoe_real *in, size_t count) {
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
  for (int i = 0; i < n_experts; i++) place_now[smoe_expert_at(from, i)] = i;
  /* Both ends of a pair go through the new places in order, so messages need no names. */
  for (int i = 0; i < n_experts; i++) {
    const int source = rank_of_place(place_now[to[i]], n_experts, group->n_ranks);
    const int dest = rank_of_place(i, n_experts, group->n_ranks);
    if (source != group->rank && dest != group->rank) continue;
    const smoe_real *old = source == group->rank ? in + (size_t)(place_now[to[i]] - own_first) * count : NULL;
    smoe_real *new = dest == group->rank ? out + (size_t)(i - own_first) * count : NULL;
    if (old && new)
      memcpy(new, old, count * sizeof *new);
    else if (old)
      SMOE_MPI(MPI_Isend(old, units, unit, dest, 0, group->comm, &request[n++]));
    else
      SMOE_MPI(MPI_Irecv(new, units, unit, source, 0, group->comm, &request[n++]));
  }
  SMOE_MPI(MPI_Waitall(n, request, MPI_STATUSES_IGNORE));
  SMOE_MPI(MPI_Type_free(&unit));
  smoe_free(place_now);
  smoe_free(request);
}
