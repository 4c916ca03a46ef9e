#include "stablemoe/status.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/log.h"

/* Of each thread: what one that writes a file has to report must not replace what the run does. */
static _Thread_local char report[SMOE_REPORT_MAX];

static struct {
  void (*end)(int code);
  int rank;
  int n_ranks;
} panic = {NULL, 0, 1};

/* The compiler names sources from the build directory, wherever that is: src/ and what follows says enough. */
static const char *short_path(const char *file) {
  const char *from = file;
  for (const char *at = file; (at = strstr(at, "src/")); at++)
    if (at == file || at[-1] == '/') from = at;
  return from;
}

static void format_report(char *out, const char *file, int line, const char *format, va_list args) {
  char text[SMOE_REPORT_MAX];
  vsnprintf(text, sizeof text, format, args);
  snprintf(out, SMOE_REPORT_MAX, "%.*s [%s:%d]", SMOE_REPORT_MAX - 128, text, short_path(file), line);
}

smoe_status smoe_fail_at(const char *file, int line, smoe_status code, const char *format, ...) {
  /* Formatted aside first: the arguments may quote the report that is pending. */
  char text[SMOE_REPORT_MAX];
  va_list args;
  va_start(args, format);
  format_report(text, file, line, format, args);
  va_end(args);
  smoe_report_set(text);
  return code;
}

const char *smoe_last_error(void) {
  return report;
}

void smoe_report_set(const char *text) {
  snprintf(report, sizeof report, "%s", text);
}

const char *smoe_status_name(smoe_status code) {
  switch (code) {
  case SMOE_OK:
    return "ok";
  case SMOE_ERR_CONFIG:
    return "config";
  case SMOE_ERR_IO:
    return "io";
  case SMOE_ERR_FORMAT:
    return "format";
  case SMOE_ERR_MEMORY:
    return "memory";
  case SMOE_ERR_NUMERIC:
    return "numeric";
  case SMOE_ERR_MPI:
    return "mpi";
  case SMOE_ERR_BUG:
    return "bug";
  case SMOE_STOPPED:
  case SMOE_STOPPED_BY_HAND:
    return "stopped";
  }
  return "unknown";
}

void smoe_panic_setup(void (*end)(int code), int rank, int n_ranks) {
  panic.end = end;
  panic.rank = rank;
  panic.n_ranks = n_ranks;
}

void smoe_panic_at(const char *file, int line, smoe_status code, const char *format, ...) {
  char text[SMOE_REPORT_MAX];
  va_list args;
  va_start(args, format);
  format_report(text, file, line, format, args);
  va_end(args);
  char where[64] = "";
  if (panic.n_ranks > 1) snprintf(where, sizeof where, " on rank %d of %d", panic.rank, panic.n_ranks);
  fflush(stdout);
  smoe_log_error("error (%s)%s: %s", smoe_status_name(code), where, text);
  smoe_log_only("error (%s)%s: %s", smoe_status_name(code), where, text);
  if (panic.end) panic.end((int)code);
  exit((int)code);
}

/* Whether a request "<site>@<rank>#<pass>" comes true now; counts the passes through its site. */
static bool fault_matches(const char *request, const char *site, long *passes) {
  const size_t length = strlen(site);
  if (!request) return false;
  if (strncmp(request, site, length) != 0 || request[length] != '@') return false;
  char *end;
  const long rank = strtol(request + length + 1, &end, 10);
  const long pass = *end == '#' ? strtol(end + 1, NULL, 10) : 1;
  if (rank != panic.rank) return false;
  return ++*passes == pass;
}

bool smoe_fault(const char *site) {
  static long failures, kills;
  if (fault_matches(getenv("STABLEMOE_KILL"), site, &kills)) raise(SIGKILL);
  return fault_matches(getenv("STABLEMOE_FAULT"), site, &failures);
}
