#include "routing_rows.h"

#include <hdf5_hl.h>
#include <string.h>

#include "stablemoe/arena.h"

typedef enum kind { I32, I64, F64, REAL } kind;

typedef struct column {
  const char *name;
  kind kind;
  int n_dims;
  smoe_routing_dim dim[SMOE_H5_DIMS];
  const char *units, *long_name;
} column;

/* Shapes. */
#define STEPS SMOE_DIM_STEP, SMOE_DIM_LAYER
#define PROBE SMOE_DIM_PROBE_STEP, SMOE_DIM_LAYER, SMOE_DIM_PROBE_TOKEN
#define TOKENS SMOE_DIM_TOKENS_STEP, SMOE_DIM_LAYER, SMOE_DIM_TOKENS_PLACE, SMOE_DIM_SLOT
#define PROBE_GATE SMOE_DIM_PROBE_STEP, SMOE_DIM_GATE, SMOE_DIM_PROBE_TOKEN
#define TOKENS_GATE SMOE_DIM_TOKENS_STEP, SMOE_DIM_GATE, SMOE_DIM_TOKENS_PLACE

/* A table is read by its columns. The first SMOE_DIMS entries are the scales of the dimensions of
 * the same number.
 */
// clang-format off
static const column columns[SMOE_COLS] = {
    [SMOE_COL_STEP]         = {"step",         I64, 1, {SMOE_DIM_STEP},         "updates", "updates done"},
    [SMOE_COL_LAYER]        = {"layer",        I32, 1, {SMOE_DIM_LAYER},        "1",       "MoE layer"},
    [SMOE_COL_EXPERT]       = {"expert",       I32, 1, {SMOE_DIM_EXPERT},       "1",       "expert"},
    [SMOE_COL_SLOT]         = {"slot",         I32, 1, {SMOE_DIM_SLOT},         "1",
                               "slot of a token: its first, second, ... expert"},
    [SMOE_COL_PROBE_STEP]   = {"probe/step",   I64, 1, {SMOE_DIM_PROBE_STEP},   "updates", "updates done"},
    [SMOE_COL_PROBE_TOKEN]  = {"probe/token",  I32, 1, {SMOE_DIM_PROBE_TOKEN},  "1",
                               "token id of each probe token, from the validation split"},
    [SMOE_COL_TOKENS_STEP]  = {"tokens/step",  I64, 1, {SMOE_DIM_TOKENS_STEP},  "updates", "updates done"},
    [SMOE_COL_TOKENS_PLACE] = {"tokens/place", I64, 1, {SMOE_DIM_TOKENS_PLACE}, "tokens",
                               "place in the batch of the update"},
    [SMOE_COL_GATE]         = {"gate",         I32, 1, {SMOE_DIM_GATE},         "1",
                               "sublayer behind a gate: its name is in the attribute gates"},

    [SMOE_COL_STAGE]     = {"stage",     I32, 1, {SMOE_DIM_STEP},           "1",      "training stage"},
    [SMOE_COL_LOAD]      = {"load",      I64, 3, {STEPS, SMOE_DIM_EXPERT},  "tokens",
                            "tokens per expert over the global batch, before dropping"},
    [SMOE_COL_ASSIGNED]  = {"assigned",  I64, 2, {STEPS}, "rows", "rows for experts, before dropping"},
    [SMOE_COL_DROPPED]   = {"dropped",   I64, 2, {STEPS}, "rows", "rows beyond the experts' capacity"},
    [SMOE_COL_BALANCE]   = {"balance",   F64, 2, {STEPS}, "loss per token", "balance loss"},
    [SMOE_COL_DISTILL]   = {"distill",   F64, 2, {STEPS}, "loss per token", "distillation loss"},
    [SMOE_COL_AGREEMENT] = {"agreement", F64, 2, {STEPS}, "1",
                            "share of tokens whose learned and distilled choice agree; NaN: no such choice"},
    [SMOE_COL_GATE_MEAN] = {"gate_mean", F64, 2, {STEPS}, "1", "mean gate of the tokens' experts"},
    [SMOE_COL_RAN]       = {"ran",       F64, 2, {SMOE_DIM_STEP, SMOE_DIM_GATE}, "1",
                            "share of the rows that ran behind each gate"},

    [SMOE_COL_PROBE_STAGE]     = {"probe/stage",     I32, 1, {SMOE_DIM_PROBE_STEP}, "1", "training stage"},
    [SMOE_COL_PROBE_SIDE]      = {"probe/side",      I32, 1, {SMOE_DIM_PROBE_TOKEN}, "1",
                                  "side of each probe token: 0 source, 1 target"},
    [SMOE_COL_PROBE_LANGUAGE]  = {"probe/language",  I32, 1, {SMOE_DIM_PROBE_TOKEN}, "1",
                                  "language of each probe token: number in the attribute languages"},
    [SMOE_COL_PROBE_EXPERT]    = {"probe/expert",    I32, 3, {PROBE}, "1", "expert that training uses"},
    [SMOE_COL_PROBE_LEARNED]   = {"probe/learned",   I32, 3, {PROBE}, "1",
                                  "expert of the learned router; -1: there is none"},
    [SMOE_COL_PROBE_DISTILLED] = {"probe/distilled", I32, 3, {PROBE}, "1",
                                  "expert of the distilled router; -1: there is none"},
    [SMOE_COL_PROBE_RAN]       = {"probe/ran",       I32, 3, {PROBE_GATE}, "1",
                                  "1: the token ran behind the gate, 0: it skipped; -1: padding"},

    [SMOE_COL_TOKENS_ID]     = {"tokens/id",     I32,  2, {SMOE_DIM_TOKENS_STEP, SMOE_DIM_TOKENS_PLACE}, "1",
                                "token id"},
    [SMOE_COL_TOKENS_EXPERT] = {"tokens/expert", I32,  4, {TOKENS}, "1",
                                "expert; -1: slot unused, -2 - e: dropped by expert e"},
    [SMOE_COL_TOKENS_GATE]   = {"tokens/gate",   REAL, 4, {TOKENS}, "1", "gate of the expert"},
    [SMOE_COL_TOKENS_RAN]    = {"tokens/ran",    I32,  3, {TOKENS_GATE}, "1",
                                "1: the token ran behind the gate, 0: it skipped"},
};
// clang-format on

int smoe_routing_columns(const smoe_routing_log *log) {
  return SMOE_COLS + (log->shape.terms.n > 2 ? log->shape.terms.n - 2 : 0);
}

int smoe_routing_term_column(int term) {
  return term < 2 ? SMOE_COL_BALANCE + term : SMOE_COLS + term - 2;
}

static column column_of(const smoe_routing_log *log, int c) {
  if (c < SMOE_COLS) return columns[c];
  return (column){log->shape.terms.name[c - SMOE_COLS + 2], F64, 2, {STEPS}, "loss per token", "loss term"};
}

static hid_t memory_type(kind k) {
  return k == I32   ? H5T_NATIVE_INT32
         : k == I64 ? H5T_NATIVE_INT64
         : k == F64 ? H5T_NATIVE_DOUBLE
                    : SMOE_H5_REAL;
}

static hid_t file_type(kind k) {
  return k == I32 ? H5T_STD_I32LE : k == I64 ? H5T_STD_I64LE : k == F64 ? H5T_IEEE_F64LE : SMOE_H5_REAL_FILE;
}

int64_t smoe_routing_length(const smoe_routing_log *log, smoe_routing_dim dim) {
  switch (dim) {
  case SMOE_DIM_STEP:
    return log->n_steps;
  case SMOE_DIM_LAYER:
    return log->shape.n_layers;
  case SMOE_DIM_EXPERT:
    return log->shape.n_experts;
  case SMOE_DIM_SLOT:
    return log->shape.n_slots;
  case SMOE_DIM_PROBE_STEP:
    return log->n_probes;
  case SMOE_DIM_PROBE_TOKEN:
    return log->n_probes ? log->shape.n_probe : 0;
  case SMOE_DIM_GATE:
    return log->shape.n_gates;
  case SMOE_DIM_TOKENS_STEP:
    return log->n_records;
  default:
    return log->n_records ? log->shape.n_tokens : 0;
  }
}

/** Shape of a column now; returns its elements, 0: the column is absent. */
static int64_t shape_of(const smoe_routing_log *log, const column *c, int64_t shape[SMOE_H5_DIMS]) {
  const bool sides =
      c->name == columns[SMOE_COL_PROBE_SIDE].name || c->name == columns[SMOE_COL_PROBE_LANGUAGE].name;
  int64_t n = sides && !log->languages ? 0 : 1;
  for (int d = 0; d < c->n_dims; d++) n *= shape[d] = smoe_routing_length(log, c->dim[d]);
  return n;
}

int64_t smoe_routing_bytes(const smoe_routing_log *log) {
  int64_t bytes = 0, shape[SMOE_H5_DIMS];
  for (int c = 0; c < smoe_routing_columns(log); c++) {
    const column col = column_of(log, c);
    bytes += shape_of(log, &col, shape) * (int64_t)H5Tget_size(memory_type(col.kind)) + 4096;
  }
  return bytes;
}

/** Attach the scales of a column's dimensions, or make it one. */
static smoe_status attach(hid_t file, const column *col, int c) {
  const hid_t set = H5Dopen2(file, col->name, H5P_DEFAULT);
  herr_t bad = set < 0 ? -1 : 0;
  if (bad >= 0 && c < SMOE_DIMS) {
    const char *slash = strrchr(col->name, '/');
    bad = H5DSset_scale(set, slash ? slash + 1 : col->name);
  } else {
    for (int d = 0; d < col->n_dims && bad >= 0; d++) {
      const hid_t by = H5Dopen2(file, columns[col->dim[d]].name, H5P_DEFAULT);
      bad = by < 0 ? -1 : H5DSattach_scale(set, by, (unsigned)d);
      if (by >= 0) H5Dclose(by);
    }
  }
  smoe_status status = SMOE_OK;
  if (bad < 0)
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot attach the dimension scales of '%s' in '%s': %s", col->name,
                       smoe_h5_path(file), smoe_h5_error());
  if (set >= 0) H5Dclose(set);
  return status;
}

static smoe_status write_attributes(const smoe_routing_log *log, hid_t file, int64_t update) {
  SMOE_TRY(smoe_h5_set_text(file, "/", "format", "stablemoe-routing"));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "version", SMOE_ROUTING_FORMAT));
  SMOE_TRY(smoe_h5_set_text(file, "/", "method", log->method));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "first_update", log->first_step));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "last_update", update));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "n_layers", log->shape.n_layers));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "n_experts", log->shape.n_experts));
  SMOE_TRY(smoe_h5_set_i64(file, "/", "n_slots", log->shape.n_slots));
  if (log->languages) SMOE_TRY(smoe_h5_set_text(file, "/", "languages", log->languages));
  if (log->layer_sides) SMOE_TRY(smoe_h5_set_text(file, "/", "layer_sides", log->layer_sides));
  if (log->gates) SMOE_TRY(smoe_h5_set_text(file, "/", "gates", log->gates));
  /* True from the moment the file has its final name. */
  return smoe_h5_set_i64(file, "/", "complete", 1);
}

smoe_status smoe_routing_make(const smoe_routing_log *log, const smoe_part_file *part, int64_t update) {
  const hid_t file = part->file;
  SMOE_TRY(write_attributes(log, file, update));
  for (int c = 0; c < smoe_routing_columns(log); c++) {
    const column col = column_of(log, c);
    int64_t shape[SMOE_H5_DIMS];
    if (shape_of(log, &col, shape) == 0) continue;
    SMOE_TRY(smoe_h5_dataset(file, col.name, file_type(col.kind), col.n_dims, shape));
    SMOE_TRY(smoe_h5_set_text(file, col.name, "units", col.units));
    SMOE_TRY(smoe_h5_set_text(file, col.name, "long_name", col.long_name));
    SMOE_TRY(attach(file, &col, c));
  }
  return smoe_routing_put_columns(log, part);
}

/** This rank's part of the probe: its tokens of every row. */
static smoe_status put_probe(const smoe_routing_log *log, const smoe_part_file *part) {
  const int64_t first[3] = {0, 0, log->shape.probe_first};
  const int64_t count[3] = {log->n_probes, log->shape.n_layers, log->shape.n_probe_local};
  const int64_t gates[3] = {log->n_probes, log->shape.n_gates, log->shape.n_probe_local};
  if (log->n_probes == 0 || log->shape.n_probe_local == 0) return SMOE_OK;
  for (int c = SMOE_COL_PROBE_EXPERT; c <= SMOE_COL_PROBE_DISTILLED && log->shape.n_layers > 0; c++)
    SMOE_TRY(smoe_part_put(part, columns[c].name, H5T_NATIVE_INT32, log->rows[c].data, 3, first, count));
  if (log->shape.n_gates > 0)
    SMOE_TRY(smoe_part_put(part, columns[SMOE_COL_PROBE_RAN].name, H5T_NATIVE_INT32,
                           log->rows[SMOE_COL_PROBE_RAN].data, 3, first, gates));
  return smoe_part_put(part, "probe/token", H5T_NATIVE_INT32, log->rows[SMOE_COL_PROBE_TOKEN].data, 1,
                       first + 2, count + 2);
}

/** Choices and gates of a chunk of one MoE layer. */
static smoe_status put_choices(const smoe_routing_log *log, const smoe_part_file *part,
                               const smoe_token_chunk *p) {
  const int32_t *expert = (const int32_t *)(const void *)log->rows[SMOE_COL_TOKENS_EXPERT].data;
  const smoe_real *gate = (const smoe_real *)(const void *)log->rows[SMOE_COL_TOKENS_GATE].data;
  const int64_t first[4] = {p->record, p->layer, p->first, 0};
  const int64_t count[4] = {1, 1, p->n, log->shape.n_slots};
  SMOE_TRY(smoe_part_put(part, "tokens/expert", H5T_NATIVE_INT32, expert + p->choice, 4, first, count));
  return smoe_part_put(part, "tokens/gate", SMOE_H5_REAL, gate + p->choice, 4, first, count);
}

/** What ran of a chunk of one gate. */
static smoe_status put_ran(const smoe_routing_log *log, const smoe_part_file *part,
                           const smoe_token_chunk *p) {
  const int32_t *ran = (const int32_t *)(const void *)log->rows[SMOE_COL_TOKENS_RAN].data;
  const int64_t first[3] = {p->record, p->layer, p->first}, count[3] = {1, 1, p->n};
  return smoe_part_put(part, "tokens/ran", H5T_NATIVE_INT32, ran + p->choice, 3, first, count);
}

/** This rank's chunks of the token records. */
static smoe_status put_tokens(const smoe_routing_log *log, const smoe_part_file *part) {
  const smoe_token_chunk *chunk = (const smoe_token_chunk *)(const void *)log->chunk.data;
  const size_t n_chunks = log->chunk.bytes / sizeof *chunk;
  const int32_t *id = (const int32_t *)(const void *)log->rows[SMOE_COL_TOKENS_ID].data;
  for (size_t i = 0; i < n_chunks; i++) {
    const smoe_token_chunk *p = &chunk[i];
    SMOE_TRY(p->of_gate ? put_ran(log, part, p) : put_choices(log, part, p));
    if (!p->has_id) continue;
    const int64_t at[2] = {p->record, p->first}, n[2] = {1, p->n};
    SMOE_TRY(smoe_part_put(part, "tokens/id", H5T_NATIVE_INT32, id + p->id, 2, at, n));
  }
  return SMOE_OK;
}

smoe_status smoe_routing_put_parts(const smoe_routing_log *log, const smoe_part_file *part) {
  SMOE_TRY(put_probe(log, part));
  return put_tokens(log, part);
}

smoe_status smoe_routing_put_columns(const smoe_routing_log *log, const smoe_part_file *part) {
  for (int c = 0; c < smoe_routing_columns(log); c++) {
    const column col = column_of(log, c);
    int64_t shape[SMOE_H5_DIMS];
    const int64_t n = shape_of(log, &col, shape);
    const bool shared_out =
        c == SMOE_COL_PROBE_TOKEN || (c >= SMOE_COL_PROBE_EXPERT && c <= SMOE_COL_TOKENS_RAN);
    if (n == 0 || shared_out) continue;
    SMOE_TRY(smoe_part_put_range(part, col.name, memory_type(col.kind), log->rows[c].data, 0, n));
  }
  return SMOE_OK;
}
