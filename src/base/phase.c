#include "stablemoe/phase.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/directory.h"
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
  int rank;
  double began;
} trace;

static void book(double now) {
  at.seconds[at.phase] += now - at.since;
  if (trace.file && at.phase != SMOE_PHASE_OTHER)
    fprintf(trace.file, ",\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":0,\"tid\":%d,\"ts\":%.1f,\"dur\":%.1f}",
            names[at.phase], trace.rank, 1e6 * (at.since - trace.began), 1e6 * (now - at.since));
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
  fprintf(trace.file,
          "[{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":0,\"tid\":%d,\"args\":{\"name\":\"rank %d\"}}",
          rank, rank);
  return SMOE_OK;
}

smoe_status smoe_phase_trace_end(void) {
  if (!trace.file) return SMOE_OK;
  fputs("]\n", trace.file);
  const bool good = fflush(trace.file) == 0;
  FILE *file = trace.file;
  trace.file = NULL;
  SMOE_CHECK(fclose(file) == 0 && good, SMOE_ERR_IO, "cannot write the trace: %s", strerror(errno));
  return SMOE_OK;
}
