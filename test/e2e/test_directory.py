#!/usr/bin/env python3
"""Run directories: copied and moved ones, a resume where there is nothing, and two runs in one of them."""

import os
import re
import signal
import threading
import time

import program as p


class Directory(p.ProgramTest):
    settings = ("train.updates=4", "router.stage1_updates=2", "schedule.warmup=1", "train.checkpoint_every=2",
                "train.evaluate_every=0", "train.evaluate_sequences=2", "train.keep_last=0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.trained("original")

    def tree(self, run):
        """Every file of a run directory, with its content."""
        found = {}
        for folder, _, names in os.walk(self.path(run)):
            for name in names:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    with open(path, "rb") as file:
                        found[os.path.relpath(path, self.path(run))] = file.read()
        return found

    # ---- used.yml belongs to the directory it is in ----

    def test_copied(self):
        before = self.tree("original")
        self.copy("original", "copied")
        result = self.program.run("train", self.path("copied", "used.yml"), "--resume", "-P", "train.updates=6")
        self.assertFine(result)
        self.assertIn(f"run.directory is '{self.path('copied')}', where this used.yml is", result.err)
        self.assertEqual(self.tree("original"), before, "the original was changed")
        self.assertEqual(p.files_of(self.path("copied"), "checkpoints")[-1], "step-000000006.h5")
        with open(self.path("copied", "used.yml")) as file:
            self.assertIn(self.path("copied"), file.read())

    def test_moved(self):
        self.copy("original", "to-move")
        os.rename(self.path("to-move"), self.path("moved"))
        for args, cwd in ((["used.yml"], self.path("moved")), (["./moved/used.yml"], self.directory)):
            result = self.program.run("train", *args, "--resume", "-P", "train.updates=6", cwd=cwd)
            self.assertFine(result)
        self.assertFalse(os.path.exists(self.path("to-move")))
        self.assertEqual(p.last_update(self.path("moved")), 6)

    def test_not_copied(self):
        """Where it is the original, and where a directory is given, that counts, and nothing is said."""
        result = self.program.run("train", self.path("original", "used.yml"), "--resume")
        self.assertFine(result)
        self.assertNotIn("run.directory is", result.err)
        result = self.program.run("train", self.path("original", "used.yml"), "-P",
                                  f"run.directory={self.path('elsewhere')}")
        self.assertFine(result)
        self.assertNotIn("run.directory is", result.err)
        self.assertEqual(p.last_update(self.path("elsewhere")), 4)

    # ---- nothing to resume ----

    def test_nothing_to_resume(self):
        os.makedirs(self.path("killed"))
        with open(self.path("killed", "used.yml"), "w"):
            pass
        for run in ("misspelt", "killed"):
            for ranks in (1, 2):
                result = self.train(run, ranks=ranks, resume=True)
                self.assertRefused(result, "config", "there is no checkpoint in .* to resume from")
        self.assertFalse(os.path.exists(self.path("misspelt")), "a directory was made")
        for run in ("misspelt", "killed"):
            self.assertFine(self.train(run, resume="start-or-resume"))
            self.assertSameRun(self.path(run), self.path("original"), [2, 4])
        self.assertIn("all 4 updates are done: raise", self.train("misspelt", resume="start-or-resume").err)

    # ---- two runs in one directory ----

    def going(self, run, **how):
        process = self.program.start(*self.train_args(run, ["train.updates=100000"]), **how)
        self.addCleanup(lambda: process.popen.poll() is None and process.end())
        limit = time.monotonic() + p.TIME_LIMIT
        while p.last_update(self.path(run)) < 3 and process.popen.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        return process

    def test_two_at_once(self):
        first = self.going("both", ranks=2)
        for ranks, more in ((1, "--resume"), (2, "--overwrite"), (1, "--start-or-resume")):
            result = self.program.run(*self.train_args("both"), more, ranks=ranks, env={"SLURM_JOB_ID": ""})
            self.assertRefused(result, "config", r"is in use by another run: process \d+ on host '.+' \(since ")
        self.assertIsNone(first.popen.poll(), "the first one goes on")
        self.assertGreater(len(p.files_of(self.path("both"), "checkpoints")), 0)
        with open(self.path("both", "stop"), "w"):
            pass
        self.assertEqual(first.wait().code, p.STOPPED_BY_HAND)
        self.assertFalse(os.path.exists(self.path("both", "lock")), "left by the run")
        self.assertSound(self.path("both"))

    def test_killed_owner(self):
        """On the same machine a dead process is seen to be dead, at once."""
        first = self.going("dead")
        os.kill(first.popen.pid, signal.SIGKILL)
        first.wait()
        self.assertTrue(os.path.exists(self.path("dead", "lock")))
        begin = time.monotonic()
        result = self.train("dead", ["run.max_minutes=0.0001", "train.updates=100000"], resume="start-or-resume")
        self.assertEqual(result.code, p.STOPPED, result)
        self.assertIn("which has ended without releasing it", result.err)
        self.assertLess(time.monotonic() - begin, 60)
        self.assertFalse(os.path.exists(self.path("dead", "lock")))

    def foreign(self, run, old=0.0, **fields):
        """A lock as a run on another machine leaves it; the paths that belong to it."""
        self.copy("original", run)
        lines = {"host": "n17", "process": "4711", "started": "1", "boot": "of another machine", "space": "pid:[1]",
                 "job": "", "attempt": "0", "since": "2026-01-01 00:00:00 +0000", "directory": self.path(run),
                 "inode": "0", "token": "0123456789abcdef", **fields}
        path = self.path(run, "lock")
        with open(path, "w") as file:
            lines["inode"] = str(os.fstat(file.fileno()).st_ino)
            file.write("".join(f"{name}: {value}\n" for name, value in lines.items()))
        now = time.time()
        os.utime(path, (now - old, now - old))
        return path

    def test_owner_on_another_machine(self):
        path = self.foreign("foreign")
        stop = threading.Event()

        def renew():
            while not stop.wait(1):
                os.utime(path)

        thread = threading.Thread(target=renew)
        thread.start()
        try:
            result = self.train("foreign", resume=True, ranks=2)
        finally:
            stop.set()
            thread.join()
        self.assertRefused(result, "config", "is in use by another run: process 4711 on host 'n17'")
        self.assertTrue(os.path.exists(path))

    def test_owner_that_died_elsewhere(self):
        """No sign of life for two minutes by the clock of the file system, or an earlier attempt of this job."""
        cases = {"silent": (self.foreign("silent", 3600), {}),
                 "requeued": (self.foreign("requeued", 1, job="slurm 12"),
                              {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"})}
        for run, (path, env) in cases.items():
            with self.subTest(run):
                result = self.train(run, ["train.updates=6"], resume=True, env=env)
                self.assertFine(result)
                self.assertIn("took over the lock of process 4711 on host 'n17'", result.err)
                self.assertFalse(os.path.exists(path))

    def test_lock_in_a_copy(self):
        """A directory that was copied while its run went on is not locked by that."""
        first = self.going("running")
        p.shutil.copytree(self.path("running"), self.path("snapshot"), symlinks=True)
        self.assertTrue(os.path.exists(self.path("snapshot", "lock")))
        result = self.program.run("train", self.path("snapshot", "used.yml"), "--resume", "-P", "run.max_minutes=0.0001")
        self.assertEqual(result.code, p.STOPPED, result)
        self.assertIsNone(first.popen.poll())

    def test_suspended_owner(self):
        """A run that lost its lock while it did not run must not save over the other one's files."""
        for ranks in (1, 2):
            run = f"suspended-{ranks}"
            with self.subTest(ranks=ranks):
                process = self.going(run, ranks=ranks)
                pid = process.rank_pid(0)
                os.kill(pid, signal.SIGSTOP)
                with open(self.path(run, "lock")) as file:
                    text = file.read()
                with open(self.path(run, "lock"), "w") as file:
                    file.write(re.sub("token: .*", "token: of the other", text))
                before = p.files_of(self.path(run), "checkpoints")
                os.kill(pid, signal.SIGCONT)
                result = process.wait()
                self.assertRefused(result, "config", f"another run took over '.*{run}'")
                # One save may have begun before.
                more = set(p.files_of(self.path(run), "checkpoints")) - set(before)
                self.assertLessEqual(len(more), 1, more)
                self.assertTrue(os.path.exists(self.path(run, "lock")), "it is the other one's")


if __name__ == "__main__":
    p.main()
