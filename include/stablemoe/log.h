/** Messages for people: to the terminal and to the run's log.txt, from rank 0 only, but for errors.
 *
 *  Every line is one write, newline included: launchers forward what ranks write in pieces, and lines written in
 *  parts would mix. Warnings and notes go to standard error, results of a subcommand to
 *  standard output by plain printf in app/.
 */
#ifndef STABLEMOE_LOG_H
#define STABLEMOE_LOG_H

#include <stdbool.h>

/** Say who this rank is; ranks other than 0 stay silent. Local. */
void smoe_log_setup(int rank, bool quiet);

/** Also append every line to the file at path (rank 0). NULL closes it. Lines from before the first call, up to 4 KiB,
 *  are written to the file too. Local.
 *
 *  Errors:  false where the file cannot be opened; errno says why.
 */
bool smoe_log_file(const char *path);

/** One line about what happens. printf format, without newline. Local. */
void smoe_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** One line about something the user should look at. Local. */
void smoe_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** One line "stablemoe: ..." to standard error, on any rank, also if quiet: an error report, or what the watchdog
 *  reports. printf format, without newline. The log file is not written. Local; any thread may call it.
 */
void smoe_log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** One line to the file alone: what the terminal is told in another way. Local. */
void smoe_log_only(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** A line that replaces itself on a terminal (progress); nothing where standard
 *  error is no terminal. The next note or warning starts on a fresh line. Local.
 */
void smoe_live(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** Whether standard error of rank 0 is a terminal. Local. */
bool smoe_log_is_terminal(void);

#endif
