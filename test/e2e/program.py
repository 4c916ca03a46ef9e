"""Run the program as its users do, and read what it leaves.

The tests of the suites e2e, fault and mpi-<R> that drive the whole program begin here:
ProgramTest starts runs in a directory of its own; the rest compares runs bit for bit.
"""

import argparse
import concurrent.futures
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

try:
    import h5py
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}; jobs/install.sh brings python3-h5py and python3-numpy", file=sys.stderr)
    sys.exit(77)

# Exit codes by the word in a report.
CODES = {"config": 2, "io": 3, "format": 4, "memory": 5, "numeric": 6, "mpi": 7, "bug": 8}
STOPPED = 75
STOPPED_BY_HAND = 76

# No case here takes more than a few seconds on quiet cores; more is a hang. Cores that run tests are often busy.
TIME_LIMIT = 180


class Result:
    """How a command ended, and what it said."""

    def __init__(self, command, code, out, err, seconds):
        self.command, self.code, self.out, self.err, self.seconds = command, code, out, err, seconds

    @property
    def reports(self):
        """The error reports, each from its first word on.

        The launcher forwards pieces of what ranks write, and writes itself: other text can stand before a report
        in its line, and behind it.
        """
        return re.findall(r"stablemoe: error.*?(?=stablemoe: error|$)", self.err, re.M)

    def __str__(self):
        ended = "did not end" if self.code is None else f"exit status {self.code}"
        return (f"\n$ {' '.join(self.command)}\n{ended} after {self.seconds:.1f} s\n"
                f"--- stdout\n{self.out[-4000:]}\n--- stderr\n{self.err[-8000:]}")


def found(pattern, text, flags=0):
    """The match of a pattern in a text or result; where there is none, the test fails and shows the text."""
    match = re.search(pattern, text.err if isinstance(text, Result) else text, flags)
    assert match, f"no match of {pattern!r} in: {text}"
    return match


def descendants(pid):
    """Process ids below one, from /proc."""
    children = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Process:
    """A command that runs: its output goes to files, so that no pipe can fill up."""

    def __init__(self, command, env, cwd):
        self.command, self.begin = command, time.monotonic()
        self.files = [tempfile.TemporaryFile("w+", errors="replace") for _ in range(2)]
        self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.files[0], stderr=self.files[1],
                                      env=env, cwd=cwd)

    def rank_pid(self, rank):
        """The process of a rank: the launcher's child of that number, or the only process."""
        for pid in descendants(self.popen.pid):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if f"OMPI_COMM_WORLD_RANK={rank}".encode() in file.read().split(b"\0"):
                        return pid
            except OSError:
                continue
        if rank == 0 and self.command[0].endswith("stablemoe"):
            return self.popen.pid
        raise AssertionError(f"no process of rank {rank}: {self.end()}")

    def said(self):
        """What it wrote to standard error until now."""
        at = self.files[1].fileno()
        return os.pread(at, os.fstat(at).st_size, 0).decode(errors="replace")

    def wait(self, timeout=TIME_LIMIT):
        """The result; its code is None where the time ran out, and everything is ended then."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.end()
        return self._result(code)

    def end(self):
        below = descendants(self.popen.pid)
        self.popen.terminate()
        try:
            self.popen.wait(5)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for pid in filter(alive, below):
            os.kill(pid, signal.SIGKILL)
        return self._result(None)

    def _result(self, code):
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return Result(self.command, code, *texts, time.monotonic() - self.begin)


class Program:
    """The program under test and how to launch it."""

    def __init__(self, path, mpirun, config, source):
        self.path, self.mpirun, self.config, self.source = path, mpirun, config, source

    def start(self, *args, ranks=1, env=None, cwd=None, launcher=False, before=None):
        """One rank needs no launcher, and starts faster without. before: shell text that each rank runs first."""
        command = [self.path, *map(str, args)]
        if before:
            command = ["/bin/sh", "-c", f'{before}; exec "$@"', "sh", *command]
        if ranks > 1 or launcher:
            # Several launchers would bind their ranks to the same cores.
            command = [self.mpirun, "--bind-to", "none", "-n", str(ranks), *command]
        return Process(command, dict(environment(), **(env or {})), cwd)

    def run(self, *args, timeout=TIME_LIMIT, **how):
        return self.start(*args, **how).wait(timeout)


def environment():
    """As in test/meson.build, so that a test also runs by hand."""
    env = dict(os.environ)
    env.pop("STABLEMOE_FAULT", None)
    if os.geteuid() == 0:
        env.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        env.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    env.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    env.setdefault("OMPI_MCA_rmaps_base_oversubscribe", "1")
    env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("OMP_WAIT_POLICY", "passive")  # several runs share the cores: no thread spins
    return env


def write_text(path, seed=1, paragraphs=150):
    """Some text: words of a small vocabulary, a blank line after every sixty."""
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 8))) for _ in range(200)]
    with open(path, "w") as file:
        for _ in range(paragraphs):
            file.write(" ".join(rng.choice(words) for _ in range(60)) + ".\n\n")


def several(jobs, at_once=2):
    """Run jobs (name: function) two at a time, which hides the launcher's start; yields (name, result)."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        for name, future in futures.items():
            yield name, future.result()


# ---- what a run leaves ----


def files_of(run, folder):
    """Names of the HDF5 files of a folder, sorted; `latest` is not one."""
    directory = os.path.join(run, folder)
    return sorted(name for name in os.listdir(directory) if name.endswith(".h5"))


def part_files(run):
    return [name for _, _, names in os.walk(run) for name in names if name.endswith(".part")]


def metrics(run):
    """Lines of metrics.csv without its last columns, which are times."""
    with open(os.path.join(run, "metrics.csv")) as file:
        rows = [line.rstrip("\n").split(",") for line in file]
    first = rows[0].index("seconds")
    assert all(name.startswith("time_") for name in rows[0][first + 2:]), rows[0]
    return [row[:first] for row in rows]


def column(run, name):
    rows = metrics(run)
    at = rows[0].index(name)
    return [float(row[at] or "nan") for row in rows[1:]]


def last_update(run):
    """The last whole line of metrics.csv; 0 before there is one."""
    try:
        rows = metrics(run)
        return int(rows[-1][0]) if len(rows) > 1 else 0
    except (OSError, IndexError, ValueError, AssertionError):
        return 0


def datasets(path, prefixes=("",)):
    """Name -> array of every dataset below these groups."""
    found = {}
    with h5py.File(path, "r") as file:

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and name.startswith(tuple(prefixes)):
                found[name] = item[()]

        file.visititems(visit)
    return found


def different(a, b):
    """Names of datasets that are not the same in type, shape and every bit."""
    names = sorted(set(a) ^ set(b))
    for name in sorted(set(a) & set(b)):
        x, y = np.asarray(a[name]), np.asarray(b[name])
        if x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes():
            names.append(name)
    return names


def checkpoint(run, update):
    """Datasets of a checkpoint that the rank count must not change, and its numbers."""
    path = os.path.join(run, "checkpoints", f"step-{update:09d}.h5")
    found = datasets(path, ("param/", "adam/", "checksum/"))
    with h5py.File(path, "r") as file:
        for name in ("update", "stage", "seed", "tokens", "fingerprint"):
            found[f"meta@{name}"] = np.asarray(file["meta"].attrs[name])
    assert any(name.startswith("param/") for name in found) and any(name.startswith("adam/") for name in found), path
    return found


# Datasets of a routing log that name a dimension, and have no row per update.
DIMENSIONS = ("layer", "expert", "slot", "gate", "probe/token", "tokens/place")


def routing(run):
    """The routing log of a whole run: its files one after the other."""
    whole = {}
    for name in files_of(run, "routing"):
        for key, values in datasets(os.path.join(run, "routing", name)).items():
            if key not in whole:
                whole[key] = values
            elif key in DIMENSIONS:
                assert np.array_equal(whole[key], values), (name, key)
            else:
                whole[key] = np.concatenate([whole[key], values])
    return whole


def chosen(expert):
    """The expert that was chosen, also where its capacity dropped the token."""
    return np.where(expert < -1, -2 - expert, expert)


class ProgramTest(unittest.TestCase):
    """A directory for runs and a corpus, and what one asks of every run."""

    program = None  # set by main()
    settings = ()  # of every run of the class

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="stablemoe-")
        cls.addClassCleanup(directory.cleanup)
        cls.directory = directory.name
        write_text(cls.path("text.txt"))
        cls.corpus = cls.path("corpus.h5")
        result = cls.program.run("prepare", cls.path("text.txt"), "-o", cls.corpus, "--vocab", 300)
        assert result.code == 0, result

    @classmethod
    def path(cls, *names):
        return os.path.join(cls.directory, *names)

    @classmethod
    def train_args(cls, run, settings=(), resume=False):
        args = ["train", cls.program.config]
        for setting in (f"data.corpus={cls.corpus}", f"run.directory={cls.path(run)}", *cls.settings, *settings):
            args += ["-P", setting]
        return args + ([] if not resume else ["--resume"] if resume is True else [f"--{resume}"])

    @classmethod
    def train(cls, run, settings=(), ranks=1, resume=False, **how):
        """Train in the run directory of this name; returns the result."""
        return cls.program.run(*cls.train_args(run, settings, resume), ranks=ranks, **how)

    @classmethod
    def trained(cls, run, settings=(), **how):
        """The same for a run that the test builds on: its path."""
        result = cls.train(run, settings, **how)
        assert result.code == 0, result
        return cls.path(run)

    @classmethod
    def copy(cls, run, to):
        """Another run directory with what a run left."""
        return shutil.copytree(cls.path(run), cls.path(to), symlinks=True)

    def assertFine(self, result):
        self.assertEqual((result.code, result.reports), (0, []), result)

    def assertRefused(self, result, kind, pattern="."):
        """One report of this kind that says this much, its exit code, and no trace of HDF5's or a crash's noise."""
        self.assertIsNotNone(result.code, f"time ran out: {result}")
        self.assertEqual(result.code, CODES[kind], result)
        self.assertEqual(len(result.reports), 1, f"one report wanted: {result}")
        self.assertRegex(result.reports[0], rf"^stablemoe: error \({kind}\)[ :]", result)
        self.assertRegex(result.reports[0], pattern, result)
        for noise in ("HDF5-DIAG", "Signal:", "Segmentation", "AddressSanitizer", "Traceback"):
            self.assertNotIn(noise, result.err, result)

    def assertSameRun(self, run, reference, updates):
        """The same metrics, routing log and checkpoints of these updates, bit for bit."""
        for one, other in zip(metrics(run), metrics(reference)):
            self.assertEqual(one, other, f"metrics.csv of {run} is not that of {reference}")
        self.assertEqual(len(metrics(run)), len(metrics(reference)), f"lines of metrics.csv of {run}")
        self.assertEqual(different(routing(run), routing(reference)), [], f"routing log of {run}")
        for update in updates:
            self.assertEqual(different(checkpoint(run, update), checkpoint(reference, update)), [],
                             f"checkpoint {update} of {run}")
        self.assertEqual(part_files(run), [], "left by the run")

    def assertSound(self, run):
        """Every checkpoint of a run passes `info --verify`, `latest` is one of them, and every routing log is whole."""
        names = files_of(run, "checkpoints")
        jobs = {name: lambda n=name: self.program.run("info", os.path.join(run, "checkpoints", n), "--verify")
                for name in names}
        for _, result in several(jobs, 3):
            self.assertFine(result)
        if names:
            self.assertIn(os.readlink(os.path.join(run, "checkpoints", "latest")), names)
        for name in files_of(run, "routing"):
            with h5py.File(os.path.join(run, "routing", name), "r") as file:
                self.assertEqual(file.attrs["complete"], 1, name)
                self.assertEqual(file.attrs["last_update"], int(name[5:-3]), name)


def main():
    """Take the options of these tests from the command line; the rest goes to unittest."""
    parser = argparse.ArgumentParser(epilog="Further arguments (-v, TestCase.test_name) go to unittest.")
    parser.add_argument("--program", required=True, help="path of stablemoe")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--source", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    parser.add_argument("--ranks", type=int, default=2, help="for the tests of one rank count")
    parser.add_argument("--small", action="store_true", help="of long tests a part: for builds with sanitizers")
    options, rest = parser.parse_known_args()
    source = os.path.abspath(options.source)
    config = os.path.join(source, "configs", "tiny", "stable.yml")
    ProgramTest.program = Program(os.path.abspath(options.program), options.mpirun, config, source)
    ProgramTest.ranks = options.ranks
    ProgramTest.small = options.small
    unittest.main(module="__main__", argv=[sys.argv[0], *rest], verbosity=2)
