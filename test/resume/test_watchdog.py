#!/usr/bin/env python3
"""A rank that stops answering is named by those that wait for it, and the run ends where that is asked for."""

import os
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

    def begin(self, run, ranks, settings=()):
        process = self.program.start(*self.train_args(run, settings), ranks=ranks)
        limit = time.monotonic() + p.TIME_LIMIT
        while p.last_update(self.path(run)) < 3:
            if process.popen.poll() is not None or time.monotonic() > limit:
                self.fail(f"the run did not begin: {process.end()}")
            time.sleep(0.01)
        return process

    def test_names_the_rank_that_is_late(self):
        process = self.begin("late", 3)
        pid = process.rank_pid(1)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(4)
        os.kill(pid, signal.SIGCONT)
        time.sleep(1)
        before = p.last_update(self.path("late"))
        time.sleep(1)
        self.assertGreater(p.last_update(self.path("late")), before, "the run should have gone on")
        result = process.end()
        said = [line for line in result.err.splitlines() if "watchdog on rank" in line]
        self.assertTrue(said, result)
        for line in said:
            # The stopped rank may speak too, when it wakes up; the others must name it.
            if "watchdog on rank 1" not in line:
                self.assertRegex(line, r"in MPI_\w+ at update \d+; it waits for .*\b1 \(not running\)", result)
        self.assertLessEqual(sum("watchdog on rank 0" in line for line in said), 1, "once per wait")

    def test_ends_the_run_where_asked(self):
        process = self.begin("end", 2, ["comm.watchdog_end=true"])
        stopped = process.rank_pid(1)
        os.kill(stopped, signal.SIGSTOP)
        result = process.wait(30)
        if p.alive(stopped):
            os.kill(stopped, signal.SIGKILL)
        self.assertEqual(result.code, p.CODES["mpi"], result)
        self.assertIn("ended by the watchdog", result.err)


if __name__ == "__main__":
    p.main()
