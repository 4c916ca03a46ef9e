/** Status codes, error reports, and injected faults.
 *
 *  Three kinds of failure, three tools (doc/architecture.md, "Errors"):
 *  - outside a step: a function returns a status; SMOE_CHECK makes one,
 *    SMOE_TRY hands it on, SMOE_TRY_ALL (group.h) agrees on it over ranks;
 *  - inside a step, or when MPI or an HDF5 transfer fails: SMOE_PANIC;
 *  - a bug: SMOE_ASSERT, in debug builds.
 */
#ifndef STABLEMOE_STATUS_H
#define STABLEMOE_STATUS_H

#include <stdbool.h>
#include <stddef.h>

/** What went wrong; the value is the program's exit code. */
typedef enum smoe_status {
  SMOE_OK = 0,
  SMOE_ERR_CONFIG = 2,  /**< usage or configuration */
  SMOE_ERR_IO = 3,      /**< the file system said no */
  SMOE_ERR_FORMAT = 4,  /**< a file is not what it should be */
  SMOE_ERR_MEMORY = 5,  /**< more memory needed than there is */
  SMOE_ERR_NUMERIC = 6, /**< a loss or gradient is not finite */
  SMOE_ERR_MPI = 7,     /**< MPI failed, or ranks disagree */
  SMOE_ERR_BUG = 8,     /**< a broken invariant */
  SMOE_STOPPED =
      75, /**< a signal or the time limit stopped it after a checkpoint: start again with --resume */
  SMOE_STOPPED_BY_HAND =
      76 /**< so did a person (a file `stop`, Ctrl-C), who does not want it back by itself */
} smoe_status;

/** Longest error report, in bytes with the final NUL. */
enum { SMOE_REPORT_MAX = 2048 };

/** Record an error report and return its code. Use it through SMOE_FAIL.
 *
 *  Local.
 *
 *  A report of the same thread that is already pending is replaced.
 */
smoe_status smoe_fail_at(const char *file, int line, smoe_status code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/** The report that smoe_fail_at recorded last in this thread of this rank; "" where there is none. Local. */
const char *smoe_last_error(void);

/** Replace the pending report, as agreement over ranks does. Local. */
void smoe_report_set(const char *text);

/** A word for a status code: "config", "io", ... Local. */
const char *smoe_status_name(smoe_status code);

/** Print a report on this rank and end the whole run. Use it through SMOE_PANIC.
 *
 *  Local; never returns. Under MPI it ends in MPI_Abort, which is the only way
 *  that ends the other ranks too when a parallel file is open.
 */
_Noreturn void smoe_panic_at(const char *file, int line, smoe_status code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/** Set how a panic ends the run (group.c: MPI_Abort), and who reports. Local. */
void smoe_panic_setup(void (*end)(int code), int rank, int n_ranks);

/** Whether the fault site is to fail now on this rank.
 *
 *  Local.
 *
 *  STABLEMOE_FAULT=<site>@<rank>[#<n>] makes the n-th pass (1 by default) through
 *  that site on that rank fail. STABLEMOE_KILL, in the same form, makes the process
 *  die there by SIGKILL, as in a crash. doc/architecture.md lists the sites.
 */
bool smoe_fault(const char *site);

#define SMOE_FAIL(code, ...) smoe_fail_at(__FILE__, __LINE__, code, __VA_ARGS__)

#define SMOE_CHECK(condition, code, ...)                                                                     \
  do {                                                                                                       \
    if (!(condition)) return SMOE_FAIL(code, __VA_ARGS__);                                                   \
  } while (0)

#define SMOE_TRY(expression)                                                                                 \
  do {                                                                                                       \
    const smoe_status smoe_try_ = (expression);                                                              \
    if (smoe_try_ != SMOE_OK) return smoe_try_;                                                              \
  } while (0)

#define SMOE_PANIC(code, ...) smoe_panic_at(__FILE__, __LINE__, code, __VA_ARGS__)

#ifdef NDEBUG
#define SMOE_ASSERT(condition) ((void)sizeof(condition))
#else
#define SMOE_ASSERT(condition)                                                                               \
  do {                                                                                                       \
    if (!(condition)) SMOE_PANIC(SMOE_ERR_BUG, "assertion failed: %s", #condition);                          \
  } while (0)
#endif

#endif
