#include "stablemoe/saver.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint_save.h"
#include "stablemoe/log.h"

/* Bytes that a comparison holds at a time. */
enum { BUFFER_BYTES = 1 << 20 };

/* Ranks come here at different times and not equally often, so the watchdog, which compares counts, is not told. */
#define MPI_UNWATCHED(call) smoe_mpi_check_at(__FILE__, __LINE__, (call), #call)

typedef enum saver_state {
  IDLE,
  WRITING,    /* this rank's part, by its thread */
  SUMMING,    /* checksums, and the number of ranks that failed */
  PUBLISHING, /* on rank 0, by its thread */
  OVER        /* until smoe_saver_finish */
} saver_state;

struct smoe_saver {
  smoe_group group;
  MPI_Comm comm; /* of the sum alone, which ranks start at different updates */
  smoe_arena copy;
  smoe_real *values; /* in it, smoe_params_state_bytes of them */
  char *buffer;      /* [BUFFER_BYTES] */
  smoe_saver_permit *permit;
  void *context;

  saver_state state;
  pthread_t thread;
  bool has_thread;
  atomic_bool at_end; /* of what the thread was started for */
  MPI_Request request;

  /* Of the save under way; while a thread runs, all is the thread's. */
  smoe_status status;
  char report[SMOE_REPORT_MAX]; /* of status */
  smoe_part_file part;
  char *directory;
  int64_t update;
  smoe_saver_after after;
  smoe_save_plan plan;
  int64_t *place; /* [2, n_sets, n_params] first byte in the file of values [0] and of checksums [1] */
};

/* ---- the file, without HDF5 ---- */

static int64_t *place_of(const smoe_saver *s, int which, int set, int param) {
  return &s->place[(which * s->plan.n_sets + set) * s->plan.params->n_params + param];
}

static smoe_status write_at(int descriptor, const char *path, const void *data, size_t bytes, int64_t first) {
  const char *from = data;
  while (bytes > 0) {
    const ssize_t n = pwrite(descriptor, from, bytes, (off_t)first);
    if (n < 0 && errno == EINTR) continue;
    SMOE_CHECK(n > 0, SMOE_ERR_IO, "cannot write '%s': %s", path, n < 0 ? strerror(errno) : "a short write");
    from += n;
    first += n;
    bytes -= (size_t)n;
  }
  return SMOE_OK;
}

static smoe_status compare_at(const smoe_saver *s, int descriptor, const char *name, const void *data,
                              size_t bytes, int64_t first) {
  const char *wanted = data;
  while (bytes > 0) {
    const size_t most = bytes < BUFFER_BYTES ? bytes : BUFFER_BYTES;
    const ssize_t n = pread(descriptor, s->buffer, most, (off_t)first);
    if (n < 0 && errno == EINTR) continue;
    SMOE_CHECK(n > 0, SMOE_ERR_IO, "cannot read '%s': %s", s->part.part,
               n < 0 ? strerror(errno) : "it ends early");
    SMOE_CHECK(memcmp(s->buffer, wanted, (size_t)n) == 0, SMOE_ERR_IO,
               "'%s' of '%s' does not read back as it was written; the disk or its file system is at fault",
               name, s->part.part);
    wanted += n;
    first += n;
    bytes -= (size_t)n;
  }
  return SMOE_OK;
}

/* Open the part file, do something with it, and close it. */
static smoe_status with_file(smoe_saver *s, int flags, smoe_status (*use)(smoe_saver *s, int descriptor)) {
  const int descriptor = open(s->part.part, flags);
  SMOE_CHECK(descriptor >= 0, SMOE_ERR_IO, "cannot open '%s': %s", s->part.part, strerror(errno));
  const smoe_status status = use(s, descriptor);
  const int closed = close(descriptor);
  if (status == SMOE_OK && closed != 0)
    return SMOE_FAIL(SMOE_ERR_IO, "cannot close '%s': %s", s->part.part, strerror(errno));
  return status;
}

/* ---- a rank's part ---- */

/* The first byte of a chunk in the file; *bytes of it. */
static int64_t place_of_chunk(const smoe_saver *s, const smoe_chunk *chunk, size_t *bytes) {
  *bytes = chunk->n * sizeof(smoe_real);
  return *place_of(s, 0, chunk->set, chunk->param) + chunk->first * (int64_t)sizeof(smoe_real);
}

static smoe_status write_chunks(smoe_saver *s, int descriptor) {
  size_t bytes;
  for (size_t i = 0; i < s->plan.n_chunks; i++) {
    const int64_t first = place_of_chunk(s, &s->plan.chunk[i], &bytes);
    SMOE_TRY(write_at(descriptor, s->part.part, s->plan.chunk[i].values, bytes, first));
  }
  SMOE_TRY(smoe_part_fault(&s->part, "write"));
  /* Here, not on rank 0 alone: what other machines have in memory is not its to flush. */
  SMOE_CHECK(fsync(descriptor) == 0, SMOE_ERR_IO, "cannot flush '%s' to the disk: %s", s->part.part,
             strerror(errno));
  return SMOE_OK;
}

static smoe_status compare_chunks(smoe_saver *s, int descriptor) {
  char name[SMOE_CHUNK_NAME];
  size_t bytes;
  for (size_t i = 0; i < s->plan.n_chunks; i++) {
    const smoe_chunk *chunk = &s->plan.chunk[i];
    const int64_t first = place_of_chunk(s, chunk, &bytes);
    smoe_chunk_name(name, smoe_set_folder[chunk->set], &s->plan.params->param[chunk->param]);
    SMOE_TRY(compare_at(s, descriptor, name, chunk->values, bytes, first));
  }
  return SMOE_OK;
}

static smoe_status write_part(smoe_saver *s) {
  smoe_chunk_checksums(s->plan.sums, s->plan.chunk, s->plan.n_chunks);
  SMOE_TRY(with_file(s, O_WRONLY, write_chunks));
  SMOE_TRY(smoe_part_fault(&s->part, "close"));
  SMOE_TRY(smoe_part_fault(&s->part, "verify"));
  SMOE_TRY(with_file(s, O_RDONLY, compare_chunks));
  return smoe_part_fault(&s->part, "rename");
}

/* ---- the rest, on rank 0 ---- */

/* Write the checksums, and read them back. */
static smoe_status put_sums(smoe_saver *s, int descriptor) {
  const smoe_params *params = s->plan.params;
  char name[SMOE_CHUNK_NAME];
  const uint64_t *sum = s->plan.sums;
  for (int set = 0; set < s->plan.n_sets; set++)
    for (int p = 0; p < params->n_params; p++) {
      const size_t n = smoe_chunk_slots(params, p), bytes = n * sizeof *sum;
      const int64_t first = *place_of(s, 1, set, p);
      if (smoe_chunk_in_set(params, set, p)) {
        smoe_chunk_name(name, smoe_set_checksum[set], &params->param[p]);
        SMOE_TRY(write_at(descriptor, s->part.part, sum, bytes, first));
        SMOE_TRY(compare_at(s, descriptor, name, sum, bytes, first));
      }
      sum += n;
    }
  return SMOE_OK;
}

static smoe_status publish(smoe_saver *s) {
  const smoe_saver_after *after = &s->after;
  SMOE_TRY(with_file(s, O_RDWR, put_sums));
  SMOE_TRY(smoe_h5_reseal(s->part.part));
  SMOE_TRY(smoe_h5_publish_sealed(s->part.part, s->part.path));
  SMOE_TRY(smoe_save_latest_fault(&s->part));
  smoe_save_point_latest(&s->part, s->directory);
  if (after->best == s->update) smoe_checkpoint_point_best(s->directory, s->update);
  return smoe_save_prune(s->directory, after->keep_last, after->keep_every, after->best);
}

/* ---- the thread ---- */

static void keep_status(smoe_saver *s, smoe_status status) {
  s->status = status;
  if (status != SMOE_OK) snprintf(s->report, sizeof s->report, "%s", smoe_last_error());
}

static void *work(void *context) {
  smoe_saver *s = context;
  keep_status(s, s->state == WRITING ? write_part(s) : publish(s));
  atomic_store(&s->at_end, true);
  return NULL;
}

/* Signals are for the thread that trains. Where there is no thread to be had, the work is done here. */
static void start(smoe_saver *s, saver_state state) {
  sigset_t all, before;
  s->state = state;
  atomic_store(&s->at_end, false);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  s->has_thread = pthread_create(&s->thread, NULL, work, s) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!s->has_thread) work(s);
}

static void join(smoe_saver *s) {
  if (s->has_thread) pthread_join(s->thread, NULL);
  s->has_thread = false;
}

/* ---- from one state to the next ---- */

/* The last number is that of ranks which failed. */
static void begin_sum(smoe_saver *s) {
  join(s);
  s->plan.sums[s->plan.n_sums] = s->status != SMOE_OK;
  s->state = SUMMING;
  MPI_UNWATCHED(MPI_Iallreduce(MPI_IN_PLACE, s->plan.sums, (int)s->plan.n_sums + 1, MPI_UINT64_T, MPI_SUM,
                               s->comm, &s->request));
}

static void end_sum(smoe_saver *s) {
  s->state = OVER;
  if (s->plan.sums[s->plan.n_sums] > 0) {
    if (s->group.rank == 0) unlink(s->part.part);
  } else if (s->group.rank > 0) {
    keep_status(s, smoe_save_latest_fault(&s->part));
  } else {
    keep_status(s, s->permit ? s->permit(s->context) : SMOE_OK);
    if (s->status == SMOE_OK) start(s, PUBLISHING);
  }
}

static void end_publishing(smoe_saver *s) {
  join(s);
  s->state = OVER;
  if (s->status != SMOE_OK) unlink(s->part.part);
}

void smoe_saver_poll(smoe_saver *s) {
  int done = 0;
  if (!s) return;
  if (s->state == WRITING && atomic_load(&s->at_end)) begin_sum(s);
  if (s->state == SUMMING) MPI_UNWATCHED(MPI_Test(&s->request, &done, MPI_STATUS_IGNORE));
  if (done) end_sum(s);
  if (s->state == PUBLISHING && atomic_load(&s->at_end)) end_publishing(s);
}

bool smoe_saver_busy(const smoe_saver *s) {
  return s && s->state != IDLE && s->state != OVER;
}

static void end_save(smoe_saver *s) {
  smoe_save_plan_end(&s->plan);
  smoe_part_end(&s->part);
  smoe_free(s->directory);
  smoe_free(s->place);
  s->directory = NULL;
  s->place = NULL;
  s->state = IDLE;
}

smoe_status smoe_saver_finish(smoe_saver *s, int64_t *update) {
  *update = 0;
  if (!s || s->state == IDLE) return SMOE_OK;
  *update = s->update;
  if (s->state == WRITING) begin_sum(s);
  /* Also where the sum is there already: the watchdog counts the calls of every rank. */
  SMOE_MPI(MPI_Wait(&s->request, MPI_STATUS_IGNORE));
  if (s->state == SUMMING) end_sum(s);
  if (s->state == PUBLISHING) end_publishing(s);
  if (s->status != SMOE_OK) smoe_report_set(s->report);
  const smoe_status status = smoe_group_agree(&s->group, s->status);
  end_save(s);
  return status;
}

/* ---- beginning ---- */

/* Everything but the values, and where in the file all has its place. */
static smoe_status make(const smoe_part_file *part, const void *context) {
  const smoe_saver *s = context;
  const smoe_params *params = s->plan.params;
  char name[SMOE_CHUNK_NAME];
  int64_t end;
  SMOE_TRY(smoe_save_make(part, &s->plan));
  for (int which = 0; which < 2; which++)
    for (int set = 0; set < s->plan.n_sets; set++)
      for (int p = 0; p < params->n_params; p++) {
        if (!smoe_chunk_in_set(params, set, p)) continue;
        smoe_chunk_name(name, (which ? smoe_set_checksum : smoe_set_folder)[set], &params->param[p]);
        SMOE_CHECK(smoe_h5_place(part->file, name, place_of(s, which, set, p), &end), SMOE_ERR_IO,
                   "'%s' of '%s' has no place in the file", name, part->part);
      }
  return SMOE_OK;
}

/* Read back what HDF5 has written. */
static smoe_status check_made(smoe_saver *s) {
  SMOE_TRY(smoe_h5_open_unsealed(&s->part.file, s->part.part));
  const smoe_status same = smoe_save_compare_meta(&s->part, &s->plan);
  const smoe_status closed = smoe_h5_close_after(s->part.file, same);
  s->part.file = H5I_INVALID_HID;
  return closed;
}

static void copy_values(smoe_saver *s) {
  smoe_real *to = s->values;
  for (size_t i = 0; i < s->plan.n_chunks; i++) {
    smoe_chunk *chunk = &s->plan.chunk[i];
    if (chunk->n > 0) memcpy(to, chunk->values, chunk->n * sizeof *to);
    chunk->values = to;
    to += chunk->n;
  }
}

static smoe_status make_file(smoe_saver *s) {
  SMOE_TRY(smoe_part_make(&s->part, &s->group, "checkpoint", s->directory, s->update,
                          smoe_save_bytes(&s->plan), make, s));
  const smoe_status status = smoe_group_agree(&s->group, s->group.rank == 0 ? check_made(s) : SMOE_OK);
  if (status != SMOE_OK && s->group.rank == 0) unlink(s->part.part);
  return status;
}

smoe_status smoe_saver_begin(smoe_saver *s, const char *directory, const smoe_params *params,
                             const smoe_checkpoint_meta *meta, const smoe_saver_after *after) {
  if (s->state != IDLE) SMOE_PANIC(SMOE_ERR_BUG, "a save begins before smoe_saver_finish of the one before");
  keep_status(s, SMOE_OK);
  s->directory = smoe_strdup(directory);
  s->update = meta->update;
  s->after = *after;
  smoe_save_plan_begin(&s->plan, params, meta);
  s->plan.sums = smoe_realloc(s->plan.sums, (s->plan.n_sums + 1) * sizeof *s->plan.sums);
  const size_t places = (size_t)(2 * s->plan.n_sets * params->n_params);
  s->place = smoe_alloc(places * sizeof *s->place);
  const smoe_status status = make_file(s);
  if (status != SMOE_OK) {
    end_save(s);
    return status;
  }
  smoe_group_broadcast(&s->group, s->place, places * sizeof *s->place, 0);
  copy_values(s);
  s->plan.meta = NULL; /* the caller's */
  start(s, WRITING);
  return SMOE_OK;
}

void smoe_saver_create(smoe_saver **out, const smoe_params *params, smoe_saver_permit *permit,
                       void *context) {
  smoe_saver *s = smoe_alloc(sizeof *s);
  s->group = params->group;
  s->permit = permit;
  s->context = context;
  s->request = MPI_REQUEST_NULL;
  smoe_arena_measure(&s->copy, "copy");
  smoe_arena_take(&s->copy, smoe_params_state_bytes(params));
  *out = s;
  smoe_status status = smoe_arena_reserve(&s->copy);
  /* Numbers go to the file as they are in memory. */
  if (status == SMOE_OK && H5Tequal(SMOE_H5_REAL, SMOE_H5_REAL_FILE) <= 0)
    status = SMOE_FAIL(SMOE_ERR_MEMORY, "numbers of this machine are not those of the file");
  status = smoe_group_agree(&s->group, status);
  if (status == SMOE_OK) {
    s->values = smoe_arena_take(&s->copy, smoe_params_state_bytes(params));
    s->buffer = smoe_alloc(BUFFER_BYTES);
    SMOE_MPI(MPI_Comm_dup(s->group.comm, &s->comm));
    SMOE_MPI(MPI_Comm_set_errhandler(s->comm, MPI_ERRORS_RETURN));
    return;
  }
  smoe_note("checkpoints are not written in the background, updates wait for them: %s", smoe_last_error());
  smoe_arena_release(&s->copy);
  smoe_free(s);
  *out = NULL;
}

void smoe_saver_destroy(smoe_saver *s) {
  if (!s) return;
  SMOE_MPI(MPI_Comm_free(&s->comm));
  smoe_arena_release(&s->copy);
  smoe_free(s->buffer);
  smoe_free(s);
}
