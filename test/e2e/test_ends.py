#!/usr/bin/env python3
"""How a run ends, as who started it sees it: the last line, log.txt, the exit status; and where results that a user
names are written.
"""

import os
import signal
import time

import program as p


class Ends(p.ProgramTest):
    settings = ("train.updates=8", "router.stage1_updates=4", "train.checkpoint_every=4", "train.evaluate_every=0",
                "train.evaluate_sequences=2", "log.probe_every=0")

    def assertEnds(self, result, code, line):
        """This exit status, and this last line of what the program said, on the terminal and in log.txt."""
        self.assertEqual(result.code, code, result)
        run = p.found(r"run\.directory=(\S+)", " ".join(result.command))[1]
        with open(os.path.join(run, "log.txt")) as file:
            logged = file.read().splitlines()
        self.assertRegex(logged[-1], line, result)
        self.assertIn(logged[-1], result.err, result)
        return logged

    def test_finished(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                run = f"finished-{ranks}"
                result = self.train(run, ranks=ranks)
                self.assertEnds(result, 0, rf"^done: all 8 updates, in \d+m\d\ds; the model is '.*/{run}/checkpoints/latest'$")
        again = self.train(run, resume=True)
        self.assertEnds(again, 0, "^all 8 updates are done: raise train.updates to continue$")

    def test_time_limit(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                result = self.train(f"timed-{ranks}", ["run.max_minutes=0.00001"], ranks=ranks)
                self.assertEnds(result, p.STOPPED, r"^stopped on request \(run.max_minutes\) after update 1 of 8; "
                                                   "checkpoint saved, continue with --resume$")

    def running(self, run, ranks):
        # Where tests run in the background of a shell the signal is ignored.
        process = self.program.start(*self.train_args(run, ["train.updates=100000"]), ranks=ranks,
                                     before='exec env --default-signal=INT "$@"')
        limit = time.monotonic() + p.TIME_LIMIT
        # Beyond the warmup of the configuration: a run of one update more is still longer than that.
        while p.last_update(self.path(run)) < 6 and process.popen.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        return process

    def test_signals(self):
        """A batch system's signals bring the run back; one from the keyboard does not."""
        for number, said, code in ((signal.SIGUSR1, "SIGUSR1", p.STOPPED), (signal.SIGTERM, "SIGTERM", p.STOPPED),
                                   (signal.SIGINT, "Ctrl-C", p.STOPPED_BY_HAND)):
            with self.subTest(said):
                process = self.running(said, 1)
                os.kill(process.popen.pid, number)
                self.assertEnds(process.wait(), code, rf"^stopped on request \({said}\) after update \d+ of 100000; checkpoint saved")

    def test_signal_before_ranks_have_met(self):
        """A batch system may ask for the end while a rank still waits in MPI_Init for another, which has not begun."""
        go, pid, first = self.path("go"), None, self.path("first")
        before = (f'if [ "$OMPI_COMM_WORLD_RANK" = 0 ]; then echo $$ >"{first}"; '
                  f'else while [ ! -e "{go}" ]; do sleep 0.02; done; fi')
        process = self.program.start(*self.train_args("early", ["train.updates=100000"]), ranks=2, before=before)
        limit, maps = time.monotonic() + p.TIME_LIMIT, ""
        while "mca_pmix" not in maps and time.monotonic() < limit:
            time.sleep(0.01)
            try:
                with open(first) as file:
                    pid = int(file.read())
                with open(f"/proc/{pid}/maps") as file:
                    maps = file.read()
            except (OSError, ValueError):  # not there yet
                continue
        os.kill(pid, signal.SIGUSR1)
        with open(go, "w"):
            pass
        self.assertEnds(process.wait(), p.STOPPED, r"^stopped on request \(SIGUSR1\) after update 1 of 100000; checkpoint saved")

    def test_second_interrupt(self):
        """Who presses Ctrl-C again does not want to wait: here the update in progress would not end."""
        process = self.running("impatient", 2)
        pid = process.rank_pid(0)
        os.kill(process.rank_pid(1), signal.SIGSTOP)
        os.kill(pid, signal.SIGINT)
        limit = time.monotonic() + p.TIME_LIMIT
        while "Ctrl-C again quits now" not in process.said() and time.monotonic() < limit:
            time.sleep(0.01)
        self.assertTrue(p.alive(pid), "the first one is a wish")
        os.kill(pid, signal.SIGINT)
        result = process.wait()
        self.assertNotIn(result.code, (None, 0, p.STOPPED, p.STOPPED_BY_HAND), result)
        self.assertIn("Ctrl-C again quits now", result.err, result)

    def test_stop_file(self):
        """Who stops a run by hand does not want it back: another exit status than that of a time limit."""
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                run = f"stopped-{ranks}"
                process = self.running(run, ranks)
                stop = self.path(run, "stop")
                with open(stop, "w"):
                    pass
                self.assertEnds(process.wait(), p.STOPPED_BY_HAND,
                                r"^stopped on request \(the file 'stop'\) after update \d+ of 100000; checkpoint saved")
                self.assertFalse(os.path.exists(stop))
                done = p.last_update(self.path(run))
                # Made while a batch system was about to start it again: not one update more.
                with open(stop, "w"):
                    pass
                goal = [f"train.updates={done + 1}"]
                result = self.train(run, goal, ranks=ranks, resume=True)
                self.assertEnds(result, p.STOPPED_BY_HAND, rf"^not started: found and removed '.*{run}/stop'; the "
                                                           rf"same command continues from update {done}$")
                self.assertFalse(os.path.exists(stop))
                self.assertEqual(p.last_update(self.path(run)), done)
                self.assertFine(self.train(run, goal, ranks=ranks, resume=True))
                self.assertEqual(p.last_update(self.path(run)), done + 1)

    def test_stop_file_of_an_old_run(self):
        """A run that begins anew knows of no wish that was for another one."""
        self.trained("old")
        for when in ("before", "after"):
            with open(self.path("old", "stop"), "w"):
                pass
            result = self.program.run(*self.train_args("old"), "--overwrite")
            self.assertFine(result)
            self.assertEqual((p.last_update(self.path("old")), os.path.exists(self.path("old", "stop"))), (8, False), when)

    def test_errors(self):
        """What is lost and what is not stands above the report, and the report in the log too."""
        for ranks, rank in ((1, 0), (2, 1)):
            fault = {"STABLEMOE_FAULT": f"checkpoint.write@{rank}#2"}
            with self.subTest("saving", ranks=ranks):
                result = self.train(f"failed-{ranks}", ranks=ranks, env=fault)
                logged = self.assertEnds(result, p.CODES["io"], r"^error \(io\).*: injected fault at checkpoint.write")
                self.assertEqual(logged[-2], "an error ends the run after update 8 of 8; the newest checkpoint is of "
                                             "update 4: --resume continues from there")
                self.assertRefused(result, "io", "injected fault")
                self.assertFine(self.train(f"failed-{ranks}", ranks=ranks, resume=True))
            with self.subTest("inside a step", ranks=ranks):
                result = self.train(f"panic-{ranks}", ranks=ranks, env={"STABLEMOE_FAULT": f"corpus.read@{rank}#9"})
                self.assertRefused(result, "io", "injected fault")
                if rank == 0:  # nobody else's log is that of the run
                    self.assertEnds(result, p.CODES["io"], r"^error \(io\): cannot read '/train/tokens'.*injected fault")

    def test_other_version(self):
        """metrics.csv of a version that did not write the times of the phases: a row stays a row."""
        whole = self.trained("this")
        self.train("older", env={"STABLEMOE_FAULT": "checkpoint.write@0#2"})
        path = self.path("older", "metrics.csv")
        with open(path) as file:
            rows = [line.rstrip("\n").split(",") for line in file]
        times = [i for i, name in enumerate(rows[0]) if name.startswith("time_")]
        self.assertGreater(len(times), 5)
        with open(path, "w") as file:
            file.writelines(",".join(row[:times[0]]) + "\n" for row in rows)
        result = self.train("older", ranks=2, resume=True)
        self.assertFine(result)
        self.assertRegex(result.err, rf"written anew with the columns of this one \({len(times)} are new, and empty up to update 4\)")
        with open(path) as file:
            lines = [line.rstrip("\n").split(",") for line in file]
        self.assertEqual({len(row) for row in lines}, {len(rows[0])})
        self.assertEqual([row[times[0]] == "" for row in lines[1:]], [True] * 4 + [False] * 4)
        self.assertSameRun(self.path("older"), whole, [8])
        # A column that is no more goes with the old file, until the run begins anew.
        with open(path) as file:
            rows = file.read().splitlines()
        with open(path, "w") as file:
            file.writelines(row + (",gone" if i == 0 else ",7") + "\n" for i, row in enumerate(rows))
        result = self.train("older", ["train.updates=9"], resume=True)
        self.assertFine(result)
        self.assertRegex(result.err, "as it was it is kept as '.*metrics-1.csv'")
        self.assertEqual(len(p.metrics(self.path("older"))), 10)
        self.assertFine(self.program.run(*self.train_args("older"), "--overwrite"))
        self.assertFalse(os.path.exists(self.path("older", "metrics-1.csv")))

    def test_directories_of_outputs(self):
        """They are made, before the work; where that cannot be, one report says so before it."""
        run = self.trained("used")
        commands = {
            "prepare": ["prepare", self.path("text.txt"), "--vocab", 300, "-o"],
            "export": ["export", run, "-o"],
            "evaluate": ["evaluate", run, "-n", 1, "--tokens"],
            "bench": ["bench", self.program.config, "-n", 1, "-w", 0, "--trace"],
            "train": [*self.train_args("traced"), "--overwrite", "--trace"],
        }
        for name, words in commands.items():
            for ranks in (1, 2):
                with self.subTest(name, ranks=ranks):
                    output = self.path(f"new-{name}-{ranks}", "below", "a.safetensors")
                    self.assertFine(self.program.run(*words, output, ranks=ranks))
                    traced = name in ("bench", "train")
                    for rank in range(ranks if traced else 1):
                        self.assertTrue(os.path.isfile(f"{output}.{rank}" if traced else output))
            with self.subTest(f"{name}, below a file"):
                result = self.program.run(*words, os.path.join(self.path("text.txt"), "below", "a.safetensors"))
                self.assertRefused(result, "io", r"cannot make the directory '.*text.txt/below': Not a directory")
                self.assertEqual((result.out, len(result.err.splitlines())), ("", 1), f"before any work: {result}")
        self.assertFine(self.program.run("info", os.path.join(run, "checkpoints", "latest")))


if __name__ == "__main__":
    p.main()
