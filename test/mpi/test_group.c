/* Agreement and integer collectives, on any number of ranks. */
#include "stablemoe/group.h"

#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"

static smoe_group group;

/* What agreement makes of a report of one rank. */
static const char *with_rank(int rank, const char *text) {
  static char line[SMOE_REPORT_MAX];
  if (group.n_ranks == 1)
    snprintf(line, sizeof line, "%s", text);
  else
    snprintf(line, sizeof line, "on rank %d of %d: %s", rank, group.n_ranks, text);
  return line;
}

static void check_agreed(smoe_status mine, smoe_status expected, int rank, const char *text) {
  const smoe_status status = smoe_group_agree(&group, mine);
  CHECK(status == expected, "rank %d got %d, not %d", group.rank, (int)status, (int)expected);
  CHECK(strcmp(smoe_last_error(), with_rank(rank, text)) == 0, "'%s'", smoe_last_error());
}

static void test_agree(void) {
  const int last = group.n_ranks - 1;
  smoe_report_set("kept");
  CHECK(smoe_group_agree(&group, SMOE_OK) == SMOE_OK);
  CHECK(strcmp(smoe_last_error(), "kept") == 0, "'%s'", smoe_last_error());

  char text[64];
  snprintf(text, sizeof text, "no file %d", group.rank);
  smoe_report_set(text);
  snprintf(text, sizeof text, "no file %d", last);
  check_agreed(group.rank == last ? SMOE_ERR_IO : SMOE_OK, SMOE_ERR_IO, last, text);
  /* Agreed on once more by a caller: the prefix stays single. */
  check_agreed(SMOE_ERR_IO, SMOE_ERR_IO, last, text);

  /* Every rank fails alike: the lowest one speaks. */
  snprintf(text, sizeof text, "key %d", group.rank);
  smoe_report_set(text);
  check_agreed(SMOE_ERR_CONFIG, SMOE_ERR_CONFIG, 0, "key 0");

  /* The largest code wins, ... */
  smoe_report_set(group.rank == last ? "worse" : "bad");
  check_agreed(group.rank == last ? SMOE_ERR_NUMERIC : SMOE_ERR_IO, SMOE_ERR_NUMERIC, last, "worse");
  /* ... but a stop on request hides no error, though its code is larger. */
  smoe_report_set(group.rank == last ? "worse" : "stopped");
  check_agreed(group.rank == last ? SMOE_ERR_IO : SMOE_STOPPED, SMOE_ERR_IO, last, "worse");
  check_agreed(group.rank == last ? SMOE_ERR_CONFIG : SMOE_STOPPED_BY_HAND, SMOE_ERR_CONFIG, last, "worse");
  CHECK(smoe_group_agree(&group, group.rank == last ? SMOE_STOPPED : SMOE_OK) == SMOE_STOPPED);
  CHECK(smoe_group_agree(&group, group.rank == last ? SMOE_STOPPED_BY_HAND : SMOE_STOPPED) ==
        SMOE_STOPPED_BY_HAND);
}

static smoe_status try_all(smoe_status mine) {
  SMOE_TRY_ALL(&group, mine);
  return SMOE_OK;
}

static void test_try_all(void) {
  CHECK(try_all(SMOE_OK) == SMOE_OK);
  CHECK(try_all(group.rank == 0 ? SMOE_FAIL(SMOE_ERR_FORMAT, "rank %d", 0) : SMOE_OK) == SMOE_ERR_FORMAT);
  CHECK(strstr(smoe_last_error(), "rank 0"), "'%s'", smoe_last_error());
}

static void test_same(void) {
  CHECK(smoe_group_same(&group, INT64_MIN, "x") == SMOE_OK);
  CHECK(smoe_group_same(&group, INT64_MAX, "x") == SMOE_OK);
  CHECK(smoe_group_same(&group, -7, "x") == SMOE_OK);
  const smoe_status status = smoe_group_same(&group, group.rank - 1, "update");
  CHECK(status == (group.n_ranks > 1 ? SMOE_ERR_BUG : SMOE_OK), "%d", (int)status);
  if (group.n_ranks > 1) CHECK(strstr(smoe_last_error(), "update"), "'%s'", smoe_last_error());
}

static void test_sums(void) {
  const int R = group.n_ranks;
  int64_t i64[2] = {group.rank + 1, -((int64_t)1 << 60) / R};
  smoe_group_sum_i64(&group, i64, 2);
  CHECK(i64[0] == (int64_t)R * (R + 1) / 2);
  CHECK(i64[1] == R * (-((int64_t)1 << 60) / R));
  uint64_t u64[1] = {UINT64_MAX - (uint64_t)group.rank};
  uint64_t expected = 0;
  for (int r = 0; r < R; r++) expected += UINT64_MAX - (uint64_t)r;
  smoe_group_sum_u64(&group, u64, 1);
  CHECK(u64[0] == expected);
  double f64[2] = {-group.rank, group.rank * 0.5};
  smoe_group_max_f64(&group, f64, 2);
  CHECK(f64[0] == 0 && f64[1] == (R - 1) * 0.5, "%g %g", f64[0], f64[1]);
}

/* Rank r has r values, so rank 0 has none where there are others. */
static void test_gather(void) {
  const int R = group.n_ranks;
  int count[64] = {0}, total = 0;
  double mine_f64[64] = {0}, all_f64[64 * 64];
  int32_t mine_i32[64] = {0}, all_i32[64 * 64];
  for (int r = 0; r < R; r++) {
    count[r] = R == 1 ? 3 : r;
    total += count[r];
  }
  for (int i = 0; i < count[group.rank]; i++) {
    mine_f64[i] = group.rank + i / 64.0;
    mine_i32[i] = group.rank * 64 + i;
  }
  smoe_group_gather_f64(&group, all_f64, mine_f64, count);
  smoe_group_gather_i32(&group, all_i32, mine_i32, count);
  int at = 0;
  for (int r = 0; r < R; r++)
    for (int i = 0; i < count[r]; i++, at++)
      CHECK(all_f64[at] == r + i / 64.0 && all_i32[at] == r * 64 + i, "value %d of rank %d", i, r);
  CHECK(at == total);
}

static void test_broadcast(void) {
  char text[100] = "";
  const int root = group.n_ranks - 1;
  if (group.rank == root) snprintf(text, sizeof text, "from the last rank");
  smoe_group_broadcast(&group, text, sizeof text, root);
  CHECK(strcmp(text, "from the last rank") == 0, "'%s'", text);
  smoe_group_broadcast(&group, NULL, 0, root);
  smoe_group_barrier(&group);
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  test_agree();
  test_try_all();
  test_same();
  test_sums();
  test_gather();
  test_broadcast();
  smoe_group_end(&group);
  return test_verdict("group");
}
