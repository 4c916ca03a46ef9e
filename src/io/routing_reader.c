#include "stablemoe/routing_reader.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "part_file.h"
#include "stablemoe/arena.h"
#include "stablemoe/slot.h"

/* Where the record of an update is. */
typedef struct record {
  int64_t step;
  int file;    /* which of the files */
  int64_t row; /* of /tokens */
} record;

/* Everything below `shape` is rank 0's. */
struct smoe_routing_reader {
  const smoe_group *group;
  char *path; /* as it was given, for reports */
  smoe_routing_shape shape;
  char **files;
  int n_files;
  record *records; /* by update */
  size_t n_records;
  hid_t open; /* the file that was read last */
  int open_file;
};

/* ---- finding the records; rank 0 ---- */

static void add_file(smoe_routing_reader *r, char *path) {
  r->files = smoe_realloc(r->files, (size_t)(r->n_files + 1) * sizeof *r->files);
  r->files[r->n_files++] = path;
}

static bool is_directory(const char *path) {
  struct stat there;
  return stat(path, &there) == 0 && S_ISDIR(there.st_mode);
}

static smoe_status find_files(smoe_routing_reader *r) {
  struct stat there;
  SMOE_CHECK(stat(r->path, &there) == 0, SMOE_ERR_IO, "cannot read the routing logs in '%s': %s", r->path,
             strerror(errno));
  if (!S_ISDIR(there.st_mode)) {
    add_file(r, smoe_strdup(r->path));
    return SMOE_OK;
  }
  char *below = smoe_sprintf("%s/routing", r->path);
  const char *directory = is_directory(below) ? below : r->path;
  size_t n;
  int64_t *step = smoe_step_list(directory, &n);
  while (n > 0) add_file(r, smoe_step_path(directory, step[--n])); /* the list has the newest first */
  smoe_free(step);
  smoe_free(below);
  SMOE_CHECK(r->n_files > 0, SMOE_ERR_IO, "there is no routing log (step-<update>.h5) in '%s'", r->path);
  return SMOE_OK;
}

static smoe_status open_file(smoe_routing_reader *r, int file) {
  if (r->open_file == file) return SMOE_OK;
  if (r->open_file >= 0) smoe_h5_close(r->open);
  r->open_file = -1;
  SMOE_TRY(smoe_h5_open(&r->open, r->files[file]));
  r->open_file = file;
  return SMOE_OK;
}

static smoe_status check_number(const smoe_routing_reader *r, const char *attribute, int64_t wanted,
                                const char *keys) {
  int64_t found;
  SMOE_TRY(smoe_h5_get_i64(r->open, "/", attribute, &found));
  SMOE_CHECK(found == wanted, SMOE_ERR_CONFIG, "'%s' was recorded with %s = %lld, this run has %lld",
             r->files[r->open_file], keys, (long long)found, (long long)wanted);
  return SMOE_OK;
}

static smoe_status check_about(const smoe_routing_reader *r) {
  char format[64] = "";
  if (smoe_h5_get_text(r->open, "/", "format", format, sizeof format) != SMOE_OK ||
      strcmp(format, "stablemoe-routing") != 0)
    return SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' is not a routing log", r->files[r->open_file]);
  SMOE_TRY(check_number(r, "version", SMOE_ROUTING_FORMAT, "format version"));
  SMOE_TRY(check_number(r, "n_layers", r->shape.n_layers, "moe.layers"));
  SMOE_TRY(check_number(r, "n_experts", r->shape.n_experts, "moe.experts"));
  return check_number(r, "n_slots", r->shape.n_slots, "experts per token (router.replay.slots)");
}

/* Shapes of what will be read, and how many records there are. */
static smoe_status check_tokens(const smoe_routing_reader *r, int64_t *n_records) {
  int n_dims;
  int64_t shape[SMOE_H5_DIMS];
  SMOE_TRY(smoe_h5_shape(r->open, "tokens/id", &n_dims, shape));
  SMOE_CHECK(n_dims == 2, SMOE_ERR_FORMAT, "'tokens/id' of '%s' has %d dimensions, not 2",
             r->files[r->open_file], n_dims);
  *n_records = shape[0];
  SMOE_CHECK(
      shape[1] == r->shape.n_tokens, SMOE_ERR_CONFIG,
      "'%s' records batches of %lld tokens, this run has %lld: train.batch_sequences and model.context "
      "must be those of the recorded run",
      r->files[r->open_file], (long long)shape[1], (long long)r->shape.n_tokens);
  const int64_t expert[4] = {shape[0], r->shape.n_layers, r->shape.n_tokens, r->shape.n_slots};
  SMOE_TRY(smoe_h5_expect(r->open, "tokens/id", H5T_STD_I32LE, 2, shape));
  SMOE_TRY(smoe_h5_expect(r->open, "tokens/step", H5T_STD_I64LE, 1, shape));
  return smoe_h5_expect(r->open, "tokens/expert", H5T_STD_I32LE, 4, expert);
}

static smoe_status add_records(smoe_routing_reader *r, int file) {
  SMOE_TRY(open_file(r, file));
  SMOE_TRY(check_about(r));
  if (!smoe_h5_exists(r->open, "tokens/id")) return SMOE_OK;
  int64_t n = 0;
  SMOE_TRY(check_tokens(r, &n));
  int64_t *step = smoe_alloc((size_t)n * sizeof *step);
  smoe_status status = smoe_h5_read(r->open, "tokens/step", H5T_NATIVE_INT64, step, 0, n);
  r->records = smoe_realloc(r->records, (r->n_records + (size_t)n) * sizeof *r->records);
  for (int64_t i = 0; i < n && status == SMOE_OK; i++) {
    if (r->n_records && step[i] <= r->records[r->n_records - 1].step)
      status = SMOE_FAIL(SMOE_ERR_FORMAT, "'%s' records update %lld after update %lld", r->files[file],
                         (long long)step[i], (long long)r->records[r->n_records - 1].step);
    else
      r->records[r->n_records++] = (record){step[i], file, i};
  }
  smoe_free(step);
  return status;
}

static smoe_status find_records(smoe_routing_reader *r) {
  SMOE_TRY(find_files(r));
  for (int file = 0; file < r->n_files; file++) SMOE_TRY(add_records(r, file));
  SMOE_CHECK(r->n_records > 0, SMOE_ERR_CONFIG,
             "'%s' records no tokens: make that run with log.tokens_every=1", r->path);
  return SMOE_OK;
}

smoe_status smoe_routing_reader_open(smoe_routing_reader **reader, const smoe_group *group, const char *path,
                                     const smoe_routing_shape *shape) {
  smoe_routing_reader *r = smoe_alloc(sizeof *r);
  *r = (smoe_routing_reader){
      .group = group, .path = smoe_strdup(path), .shape = *shape, .open = H5I_INVALID_HID, .open_file = -1};
  const smoe_status status = smoe_group_agree(group, group->rank == 0 ? find_records(r) : SMOE_OK);
  *reader = r;
  if (status == SMOE_OK) return SMOE_OK;
  smoe_routing_reader_close(r);
  *reader = NULL;
  return status;
}

void smoe_routing_reader_close(smoe_routing_reader *reader) {
  if (!reader) return;
  if (reader->open_file >= 0) smoe_h5_close(reader->open);
  for (int file = 0; file < reader->n_files; file++) smoe_free(reader->files[file]);
  smoe_free(reader->files);
  smoe_free(reader->records);
  smoe_free(reader->path);
  smoe_free(reader);
}

/* ---- reading ---- */

static const record *find(const smoe_routing_reader *r, int64_t step) {
  for (size_t low = 0, high = r->n_records; low < high;) {
    const size_t middle = (low + high) / 2;
    if (r->records[middle].step == step) return &r->records[middle];
    if (r->records[middle].step < step)
      low = middle + 1;
    else
      high = middle;
  }
  return NULL;
}

static smoe_status covers(const smoe_routing_reader *r, int64_t last) {
  for (int64_t step = 1; step <= last; step++)
    SMOE_CHECK(
        find(r, step), SMOE_ERR_CONFIG,
        "'%s' has no record of update %lld, and updates 1 to %lld are needed; it has %zu, from %lld to "
        "%lld: record that run with log.tokens_every=1, or lower train.updates",
        r->path, (long long)step, (long long)last, r->n_records, (long long)r->records[0].step,
        (long long)r->records[r->n_records - 1].step);
  return SMOE_OK;
}

smoe_status smoe_routing_reader_covers(const smoe_routing_reader *reader, int64_t last) {
  return smoe_group_agree(reader->group, reader->group->rank == 0 ? covers(reader, last) : SMOE_OK);
}

static smoe_status read_id(smoe_routing_reader *r, const record *at, int32_t *id) {
  SMOE_TRY(open_file(r, at->file));
  return smoe_h5_read(r->open, "tokens/id", H5T_NATIVE_INT32, id, at->row * r->shape.n_tokens,
                      r->shape.n_tokens);
}

/* Experts of one MoE layer: expert [N, K]. */
static smoe_status read_layer(smoe_routing_reader *r, const record *at, int layer, int32_t *expert) {
  const smoe_routing_shape *s = &r->shape;
  const int64_t n = s->n_tokens * s->n_slots;
  SMOE_TRY(open_file(r, at->file));
  SMOE_TRY(smoe_h5_read(r->open, "tokens/expert", H5T_NATIVE_INT32, expert,
                        (at->row * s->n_layers + layer) * n, n));
  for (int64_t i = 0; i < n; i++)
    SMOE_CHECK(expert[i] < s->n_experts && expert[i] >= -1 - s->n_experts, SMOE_ERR_FORMAT,
               "'%s' names expert %d in update %lld; there are %d", r->files[at->file], expert[i],
               (long long)at->step, s->n_experts);
  return SMOE_OK;
}

static smoe_status read_record(smoe_routing_reader *r, int64_t step, int32_t *id, int32_t *expert) {
  const record *at = find(r, step);
  SMOE_CHECK(at, SMOE_ERR_CONFIG, "'%s' has no record of update %lld", r->path, (long long)step);
  SMOE_TRY(read_id(r, at, id));
  for (int m = 0; m < r->shape.n_layers; m++)
    SMOE_TRY(read_layer(r, at, m, expert + m * r->shape.n_tokens * r->shape.n_slots));
  return SMOE_OK;
}

smoe_status smoe_routing_reader_read(smoe_routing_reader *reader, int64_t step, int32_t *id,
                                     int32_t *expert) {
  const smoe_group *group = reader->group;
  const smoe_routing_shape *s = &reader->shape;
  SMOE_TRY_ALL(group, group->rank == 0 ? read_record(reader, step, id, expert) : SMOE_OK);
  const size_t n = (size_t)s->n_tokens;
  smoe_group_broadcast(group, id, n * sizeof *id, 0);
  smoe_group_broadcast(group, expert, (size_t)s->n_layers * n * (size_t)s->n_slots * sizeof *expert, 0);
  return SMOE_OK;
}

/* count [V, E] += how often a record has each expert for each token. */
static smoe_status count_record(smoe_routing_reader *r, const record *at, int layer, int vocabulary,
                                int32_t *id, int32_t *expert, int64_t *count) {
  const int64_t k = r->shape.n_slots;
  SMOE_TRY(read_id(r, at, id));
  SMOE_TRY(read_layer(r, at, layer, expert));
  for (int64_t i = 0; i < r->shape.n_tokens * k; i++) {
    const int32_t token = id[i / k], e = smoe_slot_expert(expert[i]);
    if (token < 0 || e < 0) continue;
    SMOE_CHECK(token < vocabulary, SMOE_ERR_CONFIG,
               "'%s' records token %d, the corpus has %d: replay needs the corpus of the recorded run",
               r->files[at->file], token, vocabulary);
    count[(int64_t)token * r->shape.n_experts + e]++;
  }
  return SMOE_OK;
}

/* The k largest of count [E], emptied on the way. */
static void take_largest(int64_t *count, int n_experts, int k, int32_t *expert) {
  for (int s = 0; s < k; s++) {
    int best = 0;
    for (int e = 1; e < n_experts; e++)
      if (count[e] > count[best]) best = e;
    expert[s] = count[best] > 0 ? best : -1;
    count[best] = 0;
  }
}

static smoe_status usual(smoe_routing_reader *r, int vocabulary, int32_t *out) {
  const smoe_routing_shape *s = &r->shape;
  const size_t n = (size_t)s->n_tokens, v = (size_t)vocabulary, e = (size_t)s->n_experts;
  int32_t *id = smoe_alloc(n * sizeof *id), *expert = smoe_alloc(n * (size_t)s->n_slots * sizeof *expert);
  int64_t *count = smoe_alloc(v * e * sizeof *count);
  smoe_status status = SMOE_OK;
  for (int m = 0; m < s->n_layers && status == SMOE_OK; m++) {
    memset(count, 0, v * e * sizeof *count);
    for (size_t i = 0; i < r->n_records && status == SMOE_OK; i++)
      status = count_record(r, &r->records[i], m, vocabulary, id, expert, count);
    for (size_t t = 0; t < v; t++)
      take_largest(count + t * e, s->n_experts, s->n_slots, out + ((size_t)m * v + t) * (size_t)s->n_slots);
  }
  smoe_free(id);
  smoe_free(expert);
  smoe_free(count);
  return status;
}

smoe_status smoe_routing_reader_usual(smoe_routing_reader *reader, int vocabulary, int32_t *expert) {
  const smoe_group *group = reader->group;
  const size_t n = (size_t)reader->shape.n_layers * (size_t)vocabulary * (size_t)reader->shape.n_slots;
  SMOE_TRY_ALL(group, group->rank == 0 ? usual(reader, vocabulary, expert) : SMOE_OK);
  smoe_group_broadcast(group, expert, n * sizeof *expert, 0);
  return SMOE_OK;
}
