#include "stop.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/log.h"
#include "stablemoe/progress.h"
#include "stablemoe/run_directory.h"
#include "stablemoe/timer.h"
#include "stablemoe/train.h"

static volatile sig_atomic_t stop_request; /* smoe_stop */
static volatile sig_atomic_t speaks;

static void on_signal(int number) {
  static const char again[] = "\nCtrl-C: the run ends after this update, with a checkpoint; Ctrl-C again "
                              "quits now, without a checkpoint\n";
  const smoe_stop stop = number == SIGINT    ? SMOE_STOP_INT
                         : number == SIGTERM ? SMOE_STOP_TERM
                                             : SMOE_STOP_USR1;
  if ((sig_atomic_t)stop > stop_request) stop_request = (sig_atomic_t)stop;
  if (number == SIGINT && speaks && write(STDERR_FILENO, again, sizeof again - 1) < 0) speaks = 0;
}

void smoe_train_hold_signals(void) {
  const struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGUSR1, &action, NULL);
}

void smoe_stop_watch(const smoe_group *group) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  speaks = group->rank == 0;
  smoe_train_hold_signals();
  /* In the background of a shell it is ignored, and stays so. */
  struct sigaction present;
  if (sigaction(SIGINT, NULL, &present) == 0 && present.sa_handler == SIG_IGN) return;
  action.sa_flags |= (int)SA_RESETHAND;
  sigaction(SIGINT, &action, NULL);
}

smoe_stop smoe_stop_request(const smoe_group *group, const smoe_settings *settings, double launched) {
  double stop = stop_request;
  const double limit = settings->run.max_minutes;
  if (limit > 0 && stop < SMOE_STOP_TIME && smoe_seconds() - launched >= 60 * limit) stop = SMOE_STOP_TIME;
  if (group->rank == 0 && smoe_run_directory_stop(settings->run.directory)) stop = SMOE_STOP_FILE;
  smoe_group_max_f64(group, &stop, 1);
  return (smoe_stop)stop;
}

bool smoe_stop_clear(const smoe_group *group, const smoe_settings *settings) {
  bool there = group->rank == 0 && smoe_run_directory_stop(settings->run.directory);
  smoe_group_broadcast(group, &there, sizeof there, 0);
  return there;
}

smoe_status smoe_stop_report(smoe_stop stop, const smoe_settings *settings, int64_t done) {
  static const char *const names[SMOE_STOPS] = {
      [SMOE_STOP_USR1] = "SIGUSR1",         [SMOE_STOP_TERM] = "SIGTERM",
      [SMOE_STOP_TIME] = "run.max_minutes", [SMOE_STOP_INT] = "Ctrl-C",
      [SMOE_STOP_FILE] = "the file 'stop'",
  };
  smoe_note("stopped on request (%s) after update %lld of %lld; checkpoint saved, continue with --resume",
            names[stop], (long long)done, (long long)settings->train.updates);
  return stop >= SMOE_STOP_INT ? SMOE_STOPPED_BY_HAND : SMOE_STOPPED;
}

void smoe_run_report_done(const smoe_settings *settings, int64_t done, double seconds) {
  char duration[32];
  smoe_progress_duration(duration, sizeof duration, seconds);
  char *model = smoe_checkpoint_resolve(settings->run.directory);
  if (done < settings->train.updates)
    smoe_note("done: %lld of %lld updates, in %s; the model is '%s'", (long long)done,
              (long long)settings->train.updates, duration, model);
  else
    smoe_note("done: all %lld updates, in %s; the model is '%s'", (long long)done, duration, model);
  smoe_free(model);
}

void smoe_run_report_error(smoe_status status, const smoe_settings *settings, int64_t done, int64_t saved) {
  if (status == SMOE_OK || status == SMOE_STOPPED || status == SMOE_STOPPED_BY_HAND) return;
  if (done > 0 && saved > 0)
    smoe_note("an error ends the run after update %lld of %lld; the newest checkpoint is of update %lld: "
              "--resume continues from there",
              (long long)done, (long long)settings->train.updates, (long long)saved);
  else if (done > 0)
    smoe_note("an error ends the run after update %lld of %lld, before its first checkpoint", (long long)done,
              (long long)settings->train.updates);
  const char *report = smoe_last_error();
  const bool ranked = strncmp(report, "on rank ", 8) == 0;
  smoe_log_only("error (%s)%s %s", smoe_status_name(status), ranked ? "" : ":", report);
}
