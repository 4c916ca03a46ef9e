#!/usr/bin/env python3
"""A run that was stopped, killed or damaged, and goes on, maybe on another number of ranks, ends
as the run that was never interrupted, bit for bit.
"""

import os
import re
import resource
import signal
import subprocess
import time
import unittest

import program as p

UPDATES = 60


class Resume(p.ProgramTest):
    # Evaluating after every update makes an update long enough to be met.
    settings = (f"train.updates={UPDATES}", "router.stage1_updates=25", "train.checkpoint_every=10",
                "train.evaluate_every=1", "train.evaluate_sequences=16", "schedule.kind=constant",
                "log.tokens_every=10", "train.keep_last=0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.whole = cls.trained("whole")
        cls.trained("ten", ["train.updates=10"])

    def begin(self, run, ranks, until, settings=(), **how):
        """Start a run and return when it has done so many updates."""
        process = self.program.start(*self.train_args(run, settings), ranks=ranks, **how)
        limit = time.monotonic() + p.TIME_LIMIT
        while p.last_update(self.path(run)) < until:
            if process.popen.poll() is not None:
                self.fail(f"the run ended before update {until}: {process.wait()}")
            if time.monotonic() > limit:
                self.fail(f"no update {until} in time: {process.end()}")
            time.sleep(0.002)
        return process

    def ended(self, process):
        """The result; nothing of the run may be left."""
        pids = p.descendants(process.popen.pid)
        result = process.wait()
        self.assertIsNotNone(result.code, f"time ran out: {result}")
        limit = time.monotonic() + 5
        while any(map(p.alive, pids)) and time.monotonic() < limit:
            time.sleep(0.01)
        self.assertEqual([pid for pid in pids if p.alive(pid)], [], f"processes left behind: {result}")
        return result

    def check_interrupted(self, run):
        updates = p.last_update(self.path(run))
        self.assertLess(updates, UPDATES, "the run was over before it was interrupted")

    def check_resumed(self, run, ranks):
        result = self.train(run, ranks=ranks, resume=True)
        self.assertFine(result)
        self.assertRegex(result.err, "resumed from '.*step-0000000[0-5][0-9].h5'")
        self.assertSameRun(self.path(run), self.whole, [UPDATES])
        return result

    def test_on_other_ranks(self):
        """Also on nodes of other sizes, and with other copies of the shared parameters."""
        more = {2: ["comm.share=rank"], 4: ["comm.node_ranks=3"]}
        jobs = {}
        for ranks in (1, 2, 3, 4):
            self.copy("ten", f"ten-{ranks}")
            jobs[ranks] = lambda r=ranks: self.train(f"ten-{r}", more.get(r, []), ranks=r, resume=True)
        for ranks, result in p.several(jobs):
            with self.subTest(ranks=ranks):
                self.assertFine(result)
                self.assertRegex(result.err, "resumed from '.*step-000000010.h5': 10 updates done")
                self.assertSameRun(self.path(f"ten-{ranks}"), self.whole, range(10, UPDATES + 1, 10))

    def test_killed_rank(self):
        for ranks, rank, until, then in ((2, 1, 14, 4), (4, 0, 33, 1)):
            with self.subTest(ranks=ranks, rank=rank):
                run = f"killed-{rank}"
                process = self.begin(run, ranks, until)
                os.kill(process.rank_pid(rank), signal.SIGKILL)
                result = self.ended(process)
                self.assertNotIn(result.code, (0, p.STOPPED), result)
                self.check_interrupted(run)
                self.assertSound(self.path(run))
                self.check_resumed(run, then)

    def test_killed_while_saving(self):
        """The most awkward moments, one after the other in one run."""
        run, settings = "unlucky", ["train.checkpoint_every=5"]
        for number, place in enumerate(("routing.rename", "checkpoint.write", "checkpoint.rename",
                                        "checkpoint.latest")):
            result = self.train(run, settings, ranks=2, resume="start-or-resume",
                                env={"STABLEMOE_KILL": f"{place}@{number % 2}#{number + 2}"})
            with self.subTest(place):
                self.assertNotIn(result.code, (None, 0, p.STOPPED), result)
                self.check_interrupted(run)
        self.assertSound(self.path(run))
        self.check_resumed(run, 3)

    def test_time_limit(self):
        result = self.train("timed", ["run.max_minutes=0.0001"], ranks=2)
        self.assertEqual((result.code, result.reports), (p.STOPPED, []), result)
        self.assertIn("stopped on request (run.max_minutes) after update 1 of 60; checkpoint saved", result.err)
        self.check_resumed("timed", 2)

    def check_stopped(self, run, process, then, code=p.STOPPED):
        result = self.ended(process)
        self.assertEqual((result.code, result.reports), (code, []), result)
        self.check_interrupted(run)
        stopped = re.search(r"stopped on request \(.*\) after update (\d+) of 60; checkpoint saved", result.err)
        self.assertTrue(stopped, result)
        update = int(stopped[1])
        self.assertEqual(p.last_update(self.path(run)), update)
        self.assertIn(f"step-{update:09d}.h5", p.files_of(self.path(run), "checkpoints"))
        self.assertFalse(os.path.exists(self.path(run, "stop")))
        resumed = self.check_resumed(run, then)
        self.assertIn(f"{update} updates done", resumed.err)

    def test_signals(self):
        for number, ranks, rank, until, then in ((signal.SIGTERM, 2, 1, 12, 4), (signal.SIGUSR1, 4, 0, 27, 2)):
            with self.subTest(number.name, ranks=ranks, rank=rank):
                run = f"signal-{number.name}"
                process = self.begin(run, ranks, until)
                os.kill(process.rank_pid(rank), number)
                self.check_stopped(run, process, then)

    def test_stop_file(self):
        process = self.begin("stopped", 2, 21)
        with open(self.path("stopped", "stop"), "w"):
            pass
        self.check_stopped("stopped", process, 3, p.STOPPED_BY_HAND)

    def damage(self, run, change):
        """Damage the newest checkpoint, of update 20 after two; the run was at 20 of 60."""
        self.copy("whole", run)
        for folder in ("checkpoints", "routing"):
            for name in p.files_of(self.path(run), folder):
                if name > "step-000000020.h5":
                    os.remove(self.path(run, folder, name))
        newest = self.path(run, "checkpoints", "step-000000020.h5")
        latest = self.path(run, "checkpoints", "latest")
        os.remove(latest)
        os.symlink("step-000000020.h5", latest)
        change(newest)
        return newest

    @staticmethod
    def flip(path, at, n=8):
        with open(path, "r+b") as file:
            file.seek(at if at >= 0 else os.path.getsize(path) + at)
            data = file.read(n)
            file.seek(-len(data), os.SEEK_CUR)
            file.write(bytes(byte ^ 0xFF for byte in data))

    @staticmethod
    def find(path, text):
        with open(path, "rb") as file:
            return file.read().index(text)

    @staticmethod
    def offset_of(path, name):
        """Where the values of a dataset stand in the file."""
        with p.h5py.File(path, "r") as file:
            return file[name].id.get_offset()

    def test_damaged_newest_checkpoint(self):
        def flip_values(path):
            self.flip(path, self.offset_of(path, "param/moe0/expert/ffn0/w1") + 100)

        def flip_moments(path):
            self.flip(path, self.offset_of(path, "adam/v/embedding/table"), 1)

        cases = {
            "values": (flip_values, r"checksum of 'param/moe0/expert/ffn0/w1' of expert 0 is wrong"),
            "moments": (flip_moments, r"checksum of 'adam/v/embedding/table' is wrong"),
            "head": (lambda path: self.flip(path, 0), "is damaged"),
            "attribute": (lambda path: self.flip(path, self.find(path, b"fingerprint")), "is damaged"),
            "cut": (lambda path: os.truncate(path, os.path.getsize(path) // 2), "is truncated"),
            "empty": (lambda path: os.truncate(path, 0), "not an HDF5 file"),
        }
        jobs = {}
        for number, (name, (change, said)) in enumerate(cases.items()):
            newest = self.damage(f"damaged-{name}", change)
            self.assertRefused(self.program.run("info", newest, "--verify"), "format")
            jobs[name] = lambda n=name, r=number % 2 + 1: self.train(f"damaged-{n}", ranks=r, resume=True)
        for name, result in p.several(jobs):
            with self.subTest(name):
                self.assertFine(result)
                self.assertRegex(result.err, f"warning: .*step-000000020.h5.*{cases[name][1]}.*"
                                             "falling back to the checkpoint before")
                self.assertRegex(result.err, "resumed from '.*step-000000010.h5'")
                run = self.path(f"damaged-{name}")
                self.assertSameRun(run, self.whole, range(10, UPDATES + 1, 10))

    def test_damaged_after_a_stop(self):
        """The routing log of a stretch that is made again, with another end, is not kept beside it."""
        self.copy("ten", "odd")
        result = self.train("odd", ["run.max_minutes=0.0001"], ranks=2, resume=True)
        self.assertEqual(result.code, p.STOPPED, result)
        self.assertEqual(p.files_of(self.path("odd"), "routing"), [f"step-{u:09d}.h5" for u in (10, 11)])
        self.flip(self.path("odd", "checkpoints", "step-000000011.h5"), 100)
        resumed = self.check_resumed("odd", 2)
        self.assertRegex(resumed.err, "step-000000011.h5.*falling back to the checkpoint before")

    def test_no_sound_checkpoint(self):
        """Where all are damaged the run must not quietly begin anew."""
        newest = self.damage("hopeless", lambda path: self.flip(path, 0))
        self.flip(newest.replace("20.h5", "10.h5"), -1000, 1000)
        for ranks in (1, 2):
            result = self.train("hopeless", ranks=ranks, resume=True)
            self.assertRefused(result, "format", "step-000000010.h5")

    def test_done_already(self):
        self.copy("whole", "done")
        result = self.train("done", resume=True)
        self.assertFine(result)
        self.assertIn("all 60 updates are done: raise", result.err)
        self.assertSameRun(self.path("done"), self.whole, [UPDATES])

    def test_write_fails_on_one_rank(self):
        """From some update on one rank cannot write beyond a size, as under a quota."""
        for rank in (0, 1):
            with self.subTest(rank=rank):
                run = f"limited-{rank}"
                # The signal of that limit would end the process before it can report.
                process = self.begin(run, 2, 12, before="trap '' XFSZ")
                resource.prlimit(process.rank_pid(rank), resource.RLIMIT_FSIZE, (1000, 1000))
                result = self.ended(process)
                self.assertRefused(result, "io", f"on rank {rank} of 2: ")
                self.check_interrupted(run)
                self.assertSound(self.path(run))
                self.assertEqual(p.part_files(self.path(run)), [])
                self.check_resumed(run, 2)


@unittest.skipUnless(os.geteuid() == 0, "a small or read-only file system can be mounted by root only")
class FileSystem(p.ProgramTest):
    settings = ("train.updates=2000", "train.checkpoint_every=10", "train.evaluate_every=0", "train.keep_last=0",
                "log.probe_every=0", "schedule.kind=constant", "router.stage1_updates=5")

    def mount(self, name, options):
        os.makedirs(self.path(name))
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", self.path(name)], capture_output=True,
                              text=True)
        if done.returncode != 0:
            self.skipTest(f"cannot mount a file system: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", self.path(name)], check=True)

    def test_full(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                self.mount(f"small-{ranks}", "size=3m")
                run = f"small-{ranks}/run"
                result = self.train(run, ranks=ranks)
                self.assertRefused(result, "io", "not enough space|No space left|cannot write")
                self.check_left(run)

    def test_full_and_going_on(self):
        """A run may be told to go on without a checkpoint; without its last one it must not end well."""
        self.mount("patient", "size=3m")
        result = self.train("patient/run", ["train.updates=60", "train.on_save_error=continue"], ranks=2)
        self.assertRefused(result, "io", "not enough space|No space left|cannot write")
        self.assertIn("training continues", result.err)
        self.assertEqual(p.last_update(self.path("patient/run")), 60)
        self.check_left("patient/run")

    def check_left(self, run):
        self.assertGreater(len(p.files_of(self.path(run), "checkpoints")), 0)
        self.assertSound(self.path(run))
        self.assertEqual(p.part_files(self.path(run)), [])

    def test_filled_by_another(self):
        """The disk fills up while the run goes on, not by its own checkpoints."""
        self.mount("shared", "size=40m")
        process = self.program.start(*self.train_args("shared/run"), ranks=2)
        limit = time.monotonic() + p.TIME_LIMIT
        while p.last_update(self.path("shared/run")) < 15 and time.monotonic() < limit:
            time.sleep(0.002)
        with open(self.path("shared/ballast"), "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        result = process.wait()
        self.assertRefused(result, "io", "not enough space|No space left|cannot write")
        self.check_left("shared/run")
        os.remove(self.path("shared/ballast"))
        done = p.last_update(self.path("shared/run"))
        self.assertFine(self.train("shared/run", [f"train.updates={done + 5}"], resume=True))

    def test_read_only(self):
        self.mount("fixed", "size=1m,ro")
        for ranks in (1, 2):
            self.assertRefused(self.train("fixed/run", ranks=ranks), "io", "Read-only file system")
        output = self.path("fixed", "corpus.h5")
        self.assertRefused(self.program.run("prepare", self.path("text.txt"), "-o", output), "io",
                           "Read-only file system")


if __name__ == "__main__":
    p.main()
