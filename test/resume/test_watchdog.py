#!/usr/bin/env python3
"""A rank that stops answering is named by those that wait for it, and the run ends where that is asked for."""

import os
import re
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import program as p  # noqa: E402  (the path comes first)

UPDATES = 100000  # never reached


class Watchdog(p.ProgramTest):
    settings = (f"train.updates={UPDATES}", "train.checkpoint_every=100000", "train.evaluate_every=0",
                "log.probe_every=0", "comm.watchdog_s=1", "run.log_every=1000")

    def until(self, condition, otherwise, process):
        limit = time.monotonic() + p.TIME_LIMIT
        while not condition():
            if process.popen.poll() is not None or time.monotonic() > limit:
                self.fail(f"{otherwise}: {process.end()}")
            time.sleep(0.05)

    def begin(self, run, ranks, settings=()):
        process = self.program.start(*self.train_args(run, settings), ranks=ranks)
        self.until(lambda: p.last_update(self.path(run)) >= 3, "the run did not begin", process)
        return process

    def test_names_the_rank_that_is_late(self):
        process = self.begin("late", 3)
        pid = process.rank_pid(1)
        os.kill(pid, signal.SIGSTOP)
        self.until(lambda: self.named(process.said()), "no rank names the one that is stopped", process)
        time.sleep(1)  # long enough to say it again
        os.kill(pid, signal.SIGCONT)
        before = p.last_update(self.path("late"))
        # What is written to the file by now may be updates from before.
        self.until(lambda: p.last_update(self.path("late")) > before + 3, "the run should have gone on", process)
        result = process.end()
        named = self.named(result.err)
        self.assertEqual(len(set(named)), len(named), f"once per wait: {result}")

    def named(self, err, ranks=3):
        """Rank, call and update of each report of another rank that waits for rank 1, which is stopped.

        On a busy machine ranks wait for others as well.
        """
        return re.findall(rf"watchdog on rank ([02]) of {ranks}: \d+ s in (MPI_\w+) at update (\d+); it waits for "
                          r"rank (?:\d(?: \(not running\))?, )*1 \(not running\)", err)

    def test_ends_the_run_where_asked(self):
        process = self.begin("end", 2, ["comm.watchdog_end=true"])
        stopped = process.rank_pid(1)
        os.kill(stopped, signal.SIGSTOP)
        result = process.wait(30)
        if p.alive(stopped):
            os.kill(stopped, signal.SIGKILL)
        self.assertEqual(result.code, p.CODES["mpi"], result)
        self.assertTrue(self.named(result.err, 2), result)
        # Woken by the launcher, which ends it, rank 1 may come to wait for rank 0 as long.
        self.assertTrue(any("on rank 0 of 2: ended by the watchdog" in report for report in result.reports), result)


if __name__ == "__main__":
    p.main()
