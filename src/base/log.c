#include "stablemoe/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/arena.h"

static struct {
  int rank;
  bool quiet;
  atomic_bool live; /* a progress line is on the terminal; the watchdog's thread reads it, too */
  FILE *file;
  char early[4096]; /* lines from before there was a file */
} state;

static const char clear_line[] = "\r\033[K";

void smoe_log_setup(int rank, bool quiet) {
  state.rank = rank;
  state.quiet = quiet;
}

bool smoe_log_file(const char *path) {
  if (state.file) fclose(state.file);
  state.file = NULL;
  if (!path || state.rank != 0) return true;
  state.file = fopen(path, "a");
  if (!state.file) return false;
  fputs(state.early, state.file);
  fflush(state.file);
  state.early[0] = '\0';
  return true;
}

bool smoe_log_is_terminal(void) {
  return isatty(STDERR_FILENO) == 1;
}

/* As much as fits; a line that does not is left out. */
static void keep(const char *prefix, const char *format, va_list args) {
  const size_t used = strlen(state.early), left = sizeof state.early - used;
  char *end = state.early + used;
  va_list copy;
  va_copy(copy, args);
  int n = snprintf(end, left, "%s", prefix);
  if (n >= 0 && (size_t)n < left) n += vsnprintf(end + n, left - (size_t)n, format, copy);
  va_end(copy);
  if (n >= 0 && (size_t)n + 2 <= left)
    strcpy(end + n, "\n");
  else
    *end = '\0';
}

static void line_to_file(const char *prefix, const char *format, va_list args) {
  if (state.rank != 0) return;
  if (!state.file) {
    keep(prefix, format, args);
    return;
  }
  va_list copy;
  va_copy(copy, args);
  flockfile(state.file); /* a thread that saves may have a line, too */
  fputs(prefix, state.file);
  vfprintf(state.file, format, copy);
  fputc('\n', state.file);
  fflush(state.file);
  funlockfile(state.file);
  va_end(copy);
}

static void write_all(const char *text, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = write(STDERR_FILENO, text, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return; /* nobody reads it any more */
    text += n;
    bytes -= (size_t)n;
  }
}

/* Put the clearing of a progress line, prefix, message and newline into out; returns the bytes that it takes,
 * which may be more than there are.
 */
static size_t compose(char *out, size_t bytes, bool clear, const char *prefix, const char *format,
                      va_list args) {
  const size_t head = (size_t)snprintf(out, bytes, "%s%s", clear ? clear_line : "", prefix);
  const size_t left = head < bytes ? bytes - head : 0;
  const size_t total = head + (size_t)vsnprintf(left ? out + head : NULL, left, format, args) + 1;
  if (total <= bytes) out[total - 1] = '\n';
  return total;
}

/* A line in one write: launchers forward pieces as they come, and would mix them with lines of other ranks. */
static void line_to_stderr(const char *prefix, const char *format, va_list args) {
  char text[4096];
  va_list copy;
  va_copy(copy, args);
  const bool clear = atomic_exchange(&state.live, false);
  const size_t bytes = compose(text, sizeof text, clear, prefix, format, args);
  if (bytes <= sizeof text) {
    write_all(text, bytes);
  } else {
    char *longer = smoe_alloc(bytes);
    compose(longer, bytes, clear, prefix, format, copy);
    write_all(longer, bytes);
    smoe_free(longer);
  }
  va_end(copy);
}

static void line(const char *prefix, const char *format, va_list args) {
  if (state.rank != 0) return;
  line_to_file(prefix, format, args);
  if (!state.quiet) line_to_stderr(prefix, format, args);
}

void smoe_log_error(const char *format, ...) {
  va_list args;
  va_start(args, format);
  line_to_stderr("stablemoe: ", format, args);
  va_end(args);
}

void smoe_note(const char *format, ...) {
  va_list args;
  va_start(args, format);
  line("", format, args);
  va_end(args);
}

void smoe_warn(const char *format, ...) {
  va_list args;
  va_start(args, format);
  line("warning: ", format, args);
  va_end(args);
}

void smoe_log_only(const char *format, ...) {
  va_list args;
  va_start(args, format);
  line_to_file("", format, args);
  va_end(args);
}

void smoe_live(const char *format, ...) {
  if (state.rank != 0 || state.quiet || !smoe_log_is_terminal()) return;
  va_list args;
  va_start(args, format);
  char text[512];
  const size_t bytes = compose(text, sizeof text, true, "", format, args);
  write_all(text, bytes <= sizeof text ? bytes - 1 : sizeof text - 1); /* without the newline */
  state.live = true;
  va_end(args);
}
