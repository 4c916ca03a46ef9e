/** Lines on standard error: whole ones, each in one write, so that lines of several ranks do not mix. */
#include "stablemoe/log.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "stablemoe/status.h"

enum { MOST = 32768, LONG = 10000 };

/* Standard error as a socket that keeps writes apart. */
static struct { int kept, reader; } capture;

static void begin_with(int reader, int writer) {
  fflush(stderr);
  capture.kept = dup(STDERR_FILENO);
  capture.reader = reader;
  dup2(writer, STDERR_FILENO);
  close(writer);
}

static void begin(void) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0) abort();
  begin_with(pair[0], pair[1]);
}

static void restore(void) {
  dup2(capture.kept, STDERR_FILENO);
  close(capture.kept);
}

/* What one write brought; "" if there was none. */
static const char *one_write(void) {
  static char text[MOST];
  const ssize_t n = recv(capture.reader, text, sizeof text - 1, MSG_DONTWAIT);
  text[n > 0 ? n : 0] = '\0';
  return text;
}

/* The writes since begin() are these and no others. */
static void check_writes(const char *what, const char *const *want) {
  restore();
  for (; *want; want++) {
    const char *got = one_write();
    CHECK(strcmp(got, *want) == 0, "%s: '%s', not '%s'", what, got, *want);
  }
  const char *more = one_write();
  CHECK(*more == '\0', "%s: one more write, '%s'", what, more);
  close(capture.reader);
}

#define WRITES(what, ...) check_writes(what, (const char *const[]){__VA_ARGS__, NULL})

static void check_lines(void) {
  begin();
  smoe_note("read %d files", 3);
  smoe_warn("%s is %d years old", "this", 7);
  smoe_log_error("error (%s): %s", "io", "no such file");
  WRITES("rank 0", "read 3 files\n", "warning: this is 7 years old\n",
         "stablemoe: error (io): no such file\n");

  smoe_log_setup(3, false);
  begin();
  smoe_note("silent");
  smoe_log_error("error (io) on rank 3");
  WRITES("rank 3", "stablemoe: error (io) on rank 3\n");

  smoe_log_setup(0, true);
  begin();
  smoe_warn("silent");
  smoe_log_error("error (config)");
  WRITES("quiet", "stablemoe: error (config)\n");
  smoe_log_setup(0, false);
}

/* Around the length of the buffer inside, and far beyond it. */
static void check_long_lines(void) {
  static char text[LONG + 1], want[LONG + 2];
  memset(text, 'x', LONG);
  for (int n = 4090; n <= LONG; n += n < 4100 ? 1 : LONG - 4101) {
    begin();
    smoe_note("%.*s", n, text);
    snprintf(want, sizeof want, "%.*s\n", n, text);
    restore();
    const char *got = one_write();
    CHECK(strcmp(got, want) == 0, "%d bytes: %zu came in one write", n + 1, strlen(got));
    close(capture.reader);
  }
}

static void check_panic(void) {
  begin();
  const pid_t child = fork();
  if (child == 0) {
    smoe_panic_setup(NULL, 2, 5);
    smoe_panic_at("../src/base/some.c", 12, SMOE_ERR_MEMORY, "no %d bytes", 40);
  }
  int status = 0;
  waitpid(child, &status, 0);
  WRITES("panic", "stablemoe: error (memory) on rank 2 of 5: no 40 bytes [src/base/some.c:12]\n");
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == SMOE_ERR_MEMORY, "status %d", status);
}

/* On a terminal, a progress line is cleared before any other line. */
static void check_progress(void) {
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
  CHECK(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0, "no pseudo-terminal");
  if (terminal < 0) return;
  begin_with(terminal, open(ptsname(terminal), O_RDWR | O_NOCTTY));
  smoe_live("update %d", 1);
  smoe_live("update %d", 2);
  smoe_log_error("error (io): full");
  smoe_note("and on");
  static const char want[] =
      "\r\033[Kupdate 1\r\033[Kupdate 2\r\033[Kstablemoe: error (io): full\r\nand on\r\n";
  char got[512] = "";
  size_t n = 0;
  while (n < sizeof want - 1) {
    const ssize_t more = read(terminal, got + n, sizeof got - 1 - n);
    if (more <= 0) break;
    n += (size_t)more;
  }
  restore();
  CHECK(strcmp(got, want) == 0, "'%s'", got);
  close(terminal);
}

int main(void) {
  smoe_log_setup(0, false);
  check_lines();
  check_long_lines();
  check_panic();
  check_progress();
  return test_verdict("test_log");
}
