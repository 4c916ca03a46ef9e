#include "stablemoe/routing_log.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "routing_rows.h"
#include "stablemoe/arena.h"

/** Add bytes to rows; returns where they went, in bytes from the start. */
static size_t add(smoe_rows *rows, const void *data, size_t bytes) {
  if (rows->bytes + bytes > rows->room) {
    rows->room = 2 * rows->room > rows->bytes + bytes ? 2 * rows->room : rows->bytes + bytes;
    rows->data = smoe_realloc(rows->data, rows->room);
  }
  if (bytes) memcpy(rows->data + rows->bytes, data, bytes);
  rows->bytes += bytes;
  return rows->bytes - bytes;
}

static void add_i64(smoe_rows *rows, int64_t value) {
  add(rows, &value, sizeof value);
}

static void add_i32(smoe_rows *rows, int32_t value) {
  add(rows, &value, sizeof value);
}

static void add_f64(smoe_rows *rows, double value) {
  add(rows, &value, sizeof value);
}

smoe_routing_log *smoe_routing_log_create(const smoe_group *group, const smoe_routing_shape *shape) {
  smoe_routing_log *log = smoe_alloc(sizeof *log);
  log->group = group;
  log->shape = *shape;
  log->method = smoe_strdup(shape->method);
  log->shape.method = log->method;
  log->languages = shape->languages ? smoe_strdup(shape->languages) : NULL;
  log->layer_sides = shape->layer_sides ? smoe_strdup(shape->layer_sides) : NULL;
  log->gates = shape->gates ? smoe_strdup(shape->gates) : NULL;
  log->first_step = -1;
  for (int m = 0; m < shape->n_layers; m++) add_i32(&log->rows[SMOE_COL_LAYER], m);
  for (int e = 0; e < shape->n_experts; e++) add_i32(&log->rows[SMOE_COL_EXPERT], e);
  for (int k = 0; k < shape->n_slots; k++) add_i32(&log->rows[SMOE_COL_SLOT], k);
  for (int g = 0; g < shape->n_gates; g++) add_i32(&log->rows[SMOE_COL_GATE], g);
  return log;
}

void smoe_routing_log_destroy(smoe_routing_log *log) {
  if (!log) return;
  for (int c = 0; c < SMOE_COLS_MAX; c++) smoe_free(log->rows[c].data);
  smoe_free(log->chunk.data);
  smoe_free(log->method);
  smoe_free(log->languages);
  smoe_free(log->layer_sides);
  smoe_free(log->gates);
  smoe_free(log);
}

static void note_step(smoe_routing_log *log, int64_t step) {
  if (log->first_step < 0 || step < log->first_step) log->first_step = step;
}

void smoe_routing_log_load(smoe_routing_log *log, int64_t step, int stage, const smoe_routing_load *layers,
                           const double *ran) {
  note_step(log, step);
  log->n_steps++;
  if (log->group->rank != 0) return; /* all ranks have the same figures, rank 0 writes them */
  smoe_rows *rows = log->rows;
  add_i64(&rows[SMOE_COL_STEP], step);
  add_i32(&rows[SMOE_COL_STAGE], stage);
  for (int m = 0; m < log->shape.n_layers; m++) {
    const smoe_routing_load *layer = &layers[m];
    add(&rows[SMOE_COL_LOAD], layer->load, (size_t)log->shape.n_experts * sizeof *layer->load);
    add_i64(&rows[SMOE_COL_ASSIGNED], layer->n_assigned);
    add_i64(&rows[SMOE_COL_DROPPED], layer->n_dropped);
    for (int i = 0; i < log->shape.terms.n; i++) add_f64(&rows[smoe_routing_term_column(i)], layer->term[i]);
    add_f64(&rows[SMOE_COL_AGREEMENT], layer->agreement);
    add_f64(&rows[SMOE_COL_GATE_MEAN], layer->gate_mean);
  }
  for (int g = 0; g < log->shape.n_gates; g++) add_f64(&rows[SMOE_COL_RAN], ran[g]);
}

void smoe_routing_log_probe_tokens(smoe_routing_log *log, const int32_t *tokens) {
  log->rows[SMOE_COL_PROBE_TOKEN].bytes = 0;
  add(&log->rows[SMOE_COL_PROBE_TOKEN], tokens, (size_t)log->shape.n_probe_local * sizeof *tokens);
}

void smoe_routing_log_probe_sides(smoe_routing_log *log, const int32_t *side, const int32_t *language) {
  const size_t bytes = (size_t)log->shape.n_probe_local * sizeof *side;
  SMOE_ASSERT(log->languages);
  log->rows[SMOE_COL_PROBE_SIDE].bytes = log->rows[SMOE_COL_PROBE_LANGUAGE].bytes = 0;
  add(&log->rows[SMOE_COL_PROBE_SIDE], side, bytes);
  add(&log->rows[SMOE_COL_PROBE_LANGUAGE], language, bytes);
}

void smoe_routing_log_probe(smoe_routing_log *log, int64_t step, int stage, const int32_t *expert,
                            const int32_t *learned, const int32_t *distilled) {
  const size_t bytes = (size_t)log->shape.n_layers * (size_t)log->shape.n_probe_local * sizeof *expert;
  note_step(log, step);
  log->n_probes++;
  add(&log->rows[SMOE_COL_PROBE_EXPERT], expert, bytes);
  add(&log->rows[SMOE_COL_PROBE_LEARNED], learned, bytes);
  add(&log->rows[SMOE_COL_PROBE_DISTILLED], distilled, bytes);
  if (log->group->rank != 0) return;
  add_i64(&log->rows[SMOE_COL_PROBE_STEP], step);
  add_i32(&log->rows[SMOE_COL_PROBE_STAGE], stage);
}

void smoe_routing_log_probe_ran(smoe_routing_log *log, const int32_t *ran) {
  add(&log->rows[SMOE_COL_PROBE_RAN], ran,
      (size_t)log->shape.n_gates * (size_t)log->shape.n_probe_local * sizeof *ran);
}

void smoe_routing_log_tokens(smoe_routing_log *log, int64_t step) {
  note_step(log, step);
  log->n_records++;
  if (log->group->rank != 0) return;
  add_i64(&log->rows[SMOE_COL_TOKENS_STEP], step);
  if (log->rows[SMOE_COL_TOKENS_PLACE].bytes == 0)
    for (int64_t i = 0; i < log->shape.n_tokens; i++) add_i64(&log->rows[SMOE_COL_TOKENS_PLACE], i);
}

void smoe_routing_log_tokens_add(smoe_routing_log *log, int layer, int64_t first, size_t n, const int32_t *id,
                                 const int32_t *expert, const smoe_real *gate) {
  const size_t n_choices = n * (size_t)log->shape.n_slots;
  if (n == 0) return;
  smoe_token_chunk chunk = {.record = log->n_records - 1, .layer = layer, .first = first, .n = (int64_t)n};
  /* Token ids are the same for all layers; the first one brings them. */
  chunk.has_id = layer == 0;
  if (chunk.has_id) chunk.id = add(&log->rows[SMOE_COL_TOKENS_ID], id, n * sizeof *id) / sizeof *id;
  chunk.choice = add(&log->rows[SMOE_COL_TOKENS_EXPERT], expert, n_choices * sizeof *expert) / sizeof *expert;
  add(&log->rows[SMOE_COL_TOKENS_GATE], gate, n_choices * sizeof *gate);
  add(&log->chunk, &chunk, sizeof chunk);
}

void smoe_routing_log_tokens_ran(smoe_routing_log *log, int gate, int64_t first, size_t n, const int32_t *id,
                                 const int32_t *ran) {
  if (n == 0) return;
  smoe_token_chunk chunk = {
      .record = log->n_records - 1, .of_gate = true, .layer = gate, .first = first, .n = (int64_t)n};
  chunk.has_id = gate == 0 && log->shape.n_layers == 0;
  if (chunk.has_id) chunk.id = add(&log->rows[SMOE_COL_TOKENS_ID], id, n * sizeof *id) / sizeof *id;
  chunk.choice = add(&log->rows[SMOE_COL_TOKENS_RAN], ran, n * sizeof *ran) / sizeof *ran;
  add(&log->chunk, &chunk, sizeof chunk);
}

/** Check that the ranks' chunks make every record whole: none may hold what was never written. */
static smoe_status check_whole(const smoe_routing_log *log) {
  const size_t n_chunks = log->chunk.bytes / sizeof(smoe_token_chunk);
  const smoe_token_chunk *chunk = (const smoe_token_chunk *)(const void *)log->chunk.data;
  const int64_t n_wanted = log->n_records * (log->shape.n_layers + log->shape.n_gates) * log->shape.n_tokens;
  int64_t n = 0;
  for (size_t i = 0; i < n_chunks; i++) n += chunk[i].n;
  smoe_group_sum_i64(log->group, &n, 1);
  SMOE_CHECK(n == n_wanted, SMOE_ERR_BUG,
             "the token records of the routing log hold %lld choices instead of %lld", (long long)n,
             (long long)n_wanted);
  return SMOE_OK;
}

static bool stays(int c) {
  return c == SMOE_COL_LAYER || c == SMOE_COL_EXPERT || c == SMOE_COL_SLOT || c == SMOE_COL_GATE ||
         c == SMOE_COL_PROBE_TOKEN || c == SMOE_COL_PROBE_SIDE || c == SMOE_COL_PROBE_LANGUAGE;
}

/** Forget the rows, but not the names of dimensions and the probe's tokens. */
static void forget(smoe_routing_log *log) {
  for (int c = 0; c < smoe_routing_columns(log); c++)
    if (!stays(c)) log->rows[c].bytes = 0;
  log->chunk.bytes = 0;
  log->n_steps = log->n_probes = log->n_records = 0;
  log->first_step = -1;
}

/** What rank 0 needs to make the file. */
typedef struct make_plan {
  const smoe_routing_log *log;
  int64_t update;
} make_plan;

static smoe_status make(const smoe_part_file *part, const void *context) {
  const make_plan *plan = context;
  return smoe_routing_make(plan->log, part, plan->update);
}

static smoe_status write_file(const smoe_routing_log *log, smoe_part_file *part, const char *directory,
                              int64_t update) {
  const make_plan plan = {log, update};
  SMOE_TRY(check_whole(log));
  SMOE_TRY(
      smoe_part_create(part, log->group, "routing", directory, update, smoe_routing_bytes(log), make, &plan));
  smoe_status mine = smoe_routing_put_parts(log, part);
  if (mine == SMOE_OK) mine = smoe_part_fault(part, "write");
  SMOE_TRY(smoe_part_close(part, mine));
  mine = smoe_routing_put_parts(log, part);
  if (mine == SMOE_OK && log->group->rank == 0) mine = smoe_routing_put_columns(log, part);
  return smoe_part_publish(part, mine);
}

smoe_status smoe_routing_log_write(smoe_routing_log *log, const char *directory, int64_t update) {
  if (log->n_steps + log->n_probes + log->n_records == 0) return SMOE_OK;
  smoe_part_file part = {.group = log->group};
  const smoe_status status = write_file(log, &part, directory, update);
  smoe_part_end(&part);
  if (status == SMOE_OK) forget(log);
  return status;
}

static smoe_status rewind_files(const char *directory, int64_t update) {
  size_t n;
  int64_t *step = smoe_step_list(directory, &n);
  smoe_status status = SMOE_OK;
  for (size_t i = 0; i < n && step[i] > update; i++) {
    char *path = smoe_step_path(directory, step[i]);
    if (unlink(path) != 0 && errno != ENOENT)
      status = SMOE_FAIL(SMOE_ERR_IO, "cannot delete the routing log '%s': %s", path, strerror(errno));
    smoe_free(path);
  }
  smoe_free(step);
  return status;
}

smoe_status smoe_routing_log_rewind(const smoe_group *group, const char *directory, int64_t update) {
  return smoe_group_agree(group, group->rank == 0 ? rewind_files(directory, update) : SMOE_OK);
}
