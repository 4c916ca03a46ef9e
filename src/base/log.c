#include "stablemoe/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static struct {
  int rank;
  bool quiet;
  bool live; /* a progress line stands on the terminal */
  FILE *file;
} state;

void smoe_log_setup(int rank, bool quiet) {
  state.rank = rank;
  state.quiet = quiet;
}

bool smoe_log_file(const char *path) {
  if (state.file) fclose(state.file);
  state.file = NULL;
  if (!path || state.rank != 0) return true;
  state.file = fopen(path, "a");
  return state.file != NULL;
}

bool smoe_log_is_terminal(void) {
  return isatty(STDERR_FILENO) == 1;
}

static void line_to_file(const char *prefix, const char *format, va_list args) {
  if (state.rank != 0 || !state.file) return;
  va_list copy;
  va_copy(copy, args);
  fputs(prefix, state.file);
  vfprintf(state.file, format, copy);
  fputc('\n', state.file);
  fflush(state.file);
  va_end(copy);
}

static void line(const char *prefix, const char *format, va_list args) {
  if (state.rank != 0) return;
  line_to_file(prefix, format, args);
  if (state.quiet) return;
  if (state.live) fputs("\r\033[K", stderr);
  state.live = false;
  fputs(prefix, stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
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
  fputs("\r\033[K", stderr);
  vfprintf(stderr, format, args);
  fflush(stderr);
  state.live = true;
  va_end(args);
}
