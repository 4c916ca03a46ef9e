/* Messages above 1 GiB: every way of the exchange, there and back.
 *
 * usage: mpirun -n 2 test_large [BYTES OF A MESSAGE]
 *
 * Every token of a rank belongs to the expert of the other one, so that a single message holds all of
 * a rank's rows. Takes some 9 times the message in memory on the whole machine, and is skipped where
 * that is not there.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "stablemoe/exchange.h"
#include "stablemoe/timer.h"

enum { WIDTH = 1024, SKIPPED = 77 };

static smoe_group group;
static smoe_topology topology;

/* Exact in single precision, and different for all rows and for neighbours in a row. */
static smoe_real value(size_t row, size_t c) {
  return (smoe_real)((row * 1031 + c * 7) % 16777213);
}

static size_t wrong(const smoe_real *rows, size_t n, size_t first) {
  size_t count = 0;
  for (size_t i = 0; i < n; i++)
    for (size_t c = 0; c < WIDTH; c++) count += !(rows[i * WIDTH + c] == value(first + i, c));
  return count;
}

/* Every slot sends a row, all to one expert: send order is that of the tokens. */
static void there_and_back(const smoe_exchange *ex, const char *name, smoe_real *x, smoe_real *out,
                           smoe_real *scratch) {
  const size_t n = ex->n_tokens, mine = (size_t)group.rank * n, other = (size_t)(1 - group.rank) * n;
  for (size_t i = 0; i < n * WIDTH; i++) x[i] = value(mine + i / WIDTH, i % WIDTH);
  memset(out, 0xff, n * WIDTH * sizeof *out);
  const double start = smoe_seconds();
  if (smoe_exchange_overlap(ex)) {
    smoe_exchange_begin(ex, x, NULL, NULL, scratch);
    smoe_exchange_take(ex, out, 0);
    smoe_exchange_return(ex, out, 0);
    for (int g = 1; g < smoe_exchange_overlap(ex); g++) {
      smoe_exchange_take(ex, out, g);
      smoe_exchange_return(ex, out, g);
    }
    memcpy(x, smoe_exchange_end_rows(ex).wide, n * WIDTH * sizeof *x);
  } else {
    smoe_dispatch(ex, out, x, NULL, scratch);
    memset(x, 0xff, n * WIDTH * sizeof *x);
    smoe_combine_rows(ex, x, out, scratch);
  }
  const double seconds = smoe_seconds() - start;
  CHECK(wrong(out, n, other) == 0, "%s: rows that came", name);
  CHECK(wrong(x, n, mine) == 0, "%s: rows that came back", name);
  if (group.rank == 0) {
    char text[128];
    smoe_exchange_describe(ex, text, sizeof text);
    printf("%-12s %5.1f s  %s\n", name, seconds, text);
    fflush(stdout);
  }
}

static void try_way(const char *name, smoe_exchange_options way, size_t n) {
  if (way.kind == SMOE_EXCHANGE_TWO_LEVEL) smoe_nodes_find(&topology.nodes, &topology.experts, 1);
  const smoe_exchange_shape shape = {2, 1, WIDTH, n, (int64_t)n * 2, 0, 0, way};
  smoe_arena arena;
  smoe_exchange ex;
  smoe_arena_measure(&arena, "exchange");
  smoe_exchange_declare(&ex, &topology, &shape, &arena);
  smoe_exchange_release(&ex);
  if (smoe_arena_reserve(&arena) != SMOE_OK) SMOE_PANIC(SMOE_ERR_MEMORY, "%s", smoe_last_error());
  smoe_exchange_declare(&ex, &topology, &shape, &arena);
  int32_t *expert = smoe_alloc(n * sizeof *expert);
  for (size_t i = 0; i < n; i++) expert[i] = 1 - group.rank;
  smoe_exchange_plan(&ex, expert, n);
  smoe_real *x = smoe_alloc(n * WIDTH * sizeof *x), *out = smoe_alloc(n * WIDTH * sizeof *out);
  smoe_real *scratch = smoe_alloc(smoe_exchange_scratch_rows(&ex) * WIDTH * sizeof *scratch);
  there_and_back(&ex, name, x, out, scratch);
  smoe_free(x), smoe_free(out), smoe_free(scratch), smoe_free(expert);
  smoe_exchange_release(&ex);
  smoe_arena_release(&arena);
  smoe_nodes_release(&topology.nodes);
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  const double bytes = argc > 1 ? atof(argv[1]) : 1.1 * (1 << 30);
  const size_t n = (size_t)(bytes / (WIDTH * sizeof(smoe_real)));
  const double there = (double)sysconf(_SC_AVPHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
  int verdict = SKIPPED;
  /* Memory is another's the next moment: the ranks need not have seen the same. */
  if (smoe_group_agree(&group, group.n_ranks == 2 && there >= 10 * bytes ? SMOE_OK : SMOE_ERR_MEMORY) !=
      SMOE_OK) {
    if (group.rank == 0)
      printf("skipped: needs two ranks and %.0f GiB of free memory, here are %d and %.0f GiB\n",
             10 * bytes / (1 << 30), group.n_ranks, there / (1 << 30));
  } else {
    topology = smoe_topology_whole(&group);
    try_way("plain", (smoe_exchange_options){0}, n);
    try_way("slices", (smoe_exchange_options){.slice_bytes = 3e8}, n);
    try_way("linear", (smoe_exchange_options){.alltoallv = SMOE_ALLTOALLV_LINEAR}, n);
    try_way("pairwise", (smoe_exchange_options){.alltoallv = SMOE_ALLTOALLV_PAIRWISE}, n);
    try_way("overlap", (smoe_exchange_options){.overlap = 1}, n);
    try_way("two-level", (smoe_exchange_options){.kind = SMOE_EXCHANGE_TWO_LEVEL}, n);
    verdict = test_verdict("large");
  }
  smoe_group_end(&group);
  return verdict;
}
