#include "stablemoe/phase.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/directory.h"
#include "stablemoe/json.h"
#include "stablemoe/timer.h"

static const char *const names[SMOE_PHASES] = {"other",     "data",    "embedding", "norm",      "linear",
                                               "attention", "head",    "route",     "plan",      "pack",
                                               "transfer",  "experts", "combine",   "reduction", "optimizer"};

static struct {
  smoe_phase_kind phase;
  double since;
  double seconds[SMOE_PHASES];
} at;

static struct {
  FILE *file; /* NULL: no trace */
  smoe_json json;
  int rank;
  double began;
} trace;

/* An event of the format that Perfetto and Chrome read; the caller adds to it and ends it. */
static void begin_event(const char *name, const char *kind) {
  smoe_json_object(&trace.json, NULL);
  smoe_json_text(&trace.json, "name", name);
  smoe_json_text(&trace.json, "ph", kind);
  smoe_json_int(&trace.json, "pid", 0);
  smoe_json_int(&trace.json, "tid", trace.rank);
}

static void write_phase(double now) {
  begin_event(names[at.phase], "X");
  smoe_json_fixed(&trace.json, "ts", 1e6 * (at.since - trace.began), 1);
  smoe_json_fixed(&trace.json, "dur", 1e6 * (now - at.since), 1);
  smoe_json_end(&trace.json);
}

static void book(double now) {
  at.seconds[at.phase] += now - at.since;
  if (trace.file && at.phase != SMOE_PHASE_OTHER) write_phase(now);
  at.since = now;
}

smoe_phase_kind smoe_phase(smoe_phase_kind next) {
  const smoe_phase_kind last = at.phase;
  if (next == last) return last;
  book(smoe_seconds());
  at.phase = next;
  return last;
}

void smoe_phase_sublayer(smoe_phase_kind next) {
  if (at.phase != SMOE_PHASE_EXPERTS && at.phase != SMOE_PHASE_ROUTE) smoe_phase(next);
}

const double *smoe_phase_seconds(void) {
  const double now = smoe_seconds();
  at.seconds[at.phase] += now - at.since;
  at.since = now;
  return at.seconds;
}

void smoe_phase_reset(void) {
  memset(at.seconds, 0, sizeof at.seconds);
  at.since = smoe_seconds();
}

const char *smoe_phase_name(smoe_phase_kind phase) {
  return names[phase];
}

smoe_status smoe_phase_trace_begin(const char *path, int rank) {
  char name[4096];
  snprintf(name, sizeof name, "%s.%d", path, rank);
  SMOE_TRY(smoe_directory_make_for(name));
  trace.file = fopen(name, "w");
  SMOE_CHECK(trace.file, SMOE_ERR_IO, "cannot write the trace '%s': %s", name, strerror(errno));
  trace.rank = rank;
  trace.began = smoe_seconds();
  snprintf(name, sizeof name, "rank %d", rank);
  smoe_json_begin(&trace.json, trace.file, 1);
  smoe_json_array(&trace.json, NULL);
  begin_event("thread_name", "M");
  smoe_json_object(&trace.json, "args");
  smoe_json_text(&trace.json, "name", name);
  smoe_json_end(&trace.json);
  smoe_json_end(&trace.json);
  return SMOE_OK;
}

smoe_status smoe_phase_trace_end(void) {
  if (!trace.file) return SMOE_OK;
  smoe_json_end(&trace.json);
  smoe_json_finish(&trace.json);
  const bool good = fflush(trace.file) == 0 && !ferror(trace.file);
  FILE *file = trace.file;
  trace.file = NULL;
  SMOE_CHECK(fclose(file) == 0 && good, SMOE_ERR_IO, "cannot write the trace: %s", strerror(errno));
  return SMOE_OK;
}
