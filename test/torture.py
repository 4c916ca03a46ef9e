"""Kill a training run again and again, resume it on other rank counts, compare it with an unbroken one.

Every life of the run is ended by SIGKILL on one rank: at a random moment, or in the middle of
saving (a site of STABLEMOE_KILL). In the end checkpoint, metrics and routing logs must be the
bits of a run on one rank that nothing ever happened to.
"""
import argparse
import glob
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np

UPDATES_PER_LIFE = 12
SITES = [kind + "." + place for kind in ("checkpoint", "routing")
         for place in ("create", "open", "write", "close", "verify", "rename")] + ["checkpoint.latest"]
WORDS = "the cat sat on a mat while seven old dogs ran round many green trees and sang".split()
KEYS = {"model.width": 16, "model.blocks": 2, "model.heads": 2, "model.context": 16, "moe.experts": 4,
        "moe.sublayers": 1, "train.batch_sequences": 8, "train.lanes": 4, "train.checkpoint_every": 5,
        "train.evaluate_every": 7, "train.evaluate_sequences": 8, "log.load_every": 1, "log.probe_every": 3,
        "log.probe_sequences": 2, "schedule.warmup": 5, "optimizer.lr": 1e-3}
PAIR_KEYS = {"model.family": "translation", "model.context": 40, "train.batch_tokens": 256, "schedule.warmup": 5}
"""Over KEYS, for a model that translates; a batch is so many tokens, not sequences."""
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
TIMED = ("seconds", "tokens_per_s")


class Torture:
    def __init__(self, program: str, directory: str, kills: int, seed: int, pairs: bool, keys: list):
        self.program = program
        self.pairs = pairs
        self.keys = keys
        self.directory = directory
        self.kills = kills
        self.random = random.Random(seed)
        self.updates = UPDATES_PER_LIFE * (kills + 1)
        self.fallbacks = 0

    def make_text(self) -> list:
        """Files of random words, as arguments of prepare; the target of a pair is its source, turned round."""
        names = [os.path.join(self.directory, name) for name in ("text.txt", "target.txt")]
        with open(names[0], "w", encoding="utf-8") as file, open(names[1], "w", encoding="utf-8") as target:
            for i in range(6000):
                words = [WORDS[self.random.randrange(len(WORDS))] for _ in range(self.random.randint(3, 9) if self.pairs else 8)]
                file.write(" ".join(words) + ("\n\n" if i % 10 == 9 and not self.pairs else "\n"))
                target.write(" ".join(reversed(words)) + "\n")
        return ["--pair", "xx-yy", *names, "--valid", "0.02"] if self.pairs else names[:1]

    def make_corpus(self) -> None:
        subprocess.run([self.program, "prepare", *self.make_text(), "-o", self.corpus(), "--vocab", "300"], check=True,
                       env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        keys = {**KEYS, **PAIR_KEYS} if self.pairs else dict(KEYS)
        if self.pairs:
            del keys["train.batch_sequences"]
        with open(os.path.join(self.directory, "run.yml"), "w", encoding="utf-8") as file:
            for key, value in keys.items():
                file.write(f"{key}: {value}\n")
            for assignment in self.keys:
                file.write(assignment.replace("=", ": ", 1) + "\n")

    def corpus(self) -> str:
        return os.path.join(self.directory, "corpus.h5")

    def start(self, run: str, ranks: int, *more: str, environment=None) -> subprocess.Popen:
        command = ["mpirun", "-n", str(ranks), self.program, "train", os.path.join(self.directory, "run.yml"),
                   "-P", f"data.corpus={self.corpus()}", "-P", f"run.directory={self.path(run)}",
                   "-P", f"train.updates={self.updates}", *more]
        log = open(os.path.join(self.directory, run + ".log"), "ab")
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                env={**os.environ, **ENVIRONMENT, **(environment or {})})

    def path(self, run: str) -> str:
        return os.path.join(self.directory, run)

    def done(self) -> int:
        """Updates in the broken run's metrics file."""
        try:
            with open(os.path.join(self.path("broken"), "metrics.csv"), encoding="utf-8") as file:
                return max(0, sum(1 for _ in file) - 1)
        except OSError:
            return 0

    def ranks_of(self, job: subprocess.Popen) -> list:
        """Process ids of the job's ranks."""
        found = []
        for status in glob.glob("/proc/[0-9]*/stat"):
            try:
                with open(status, encoding="utf-8") as file:
                    text = file.read()
            except OSError:
                continue
            name, rest = text[text.index("(") + 1:].rsplit(")", 1)
            if int(rest.split()[1]) == job.pid and name.startswith("stablemoe"):
                found.append(int(text.split(" ", 1)[0]))
        return found

    def live(self, number: int) -> str:
        """One life of the broken run; returns what ended it."""
        ranks = 4 if number == 0 else self.random.choice((1, 2, 3, 4))
        more = () if number == 0 else ("--start-or-resume",)
        if self.random.random() < 0.4:
            # The wished pass through the site comes with one of the next saves.
            site = self.random.choice(SITES)
            wish = f"{site}@{self.random.randrange(ranks)}#{self.random.randint(1, 3)}"
            job = self.start("broken", ranks, *more, environment={"STABLEMOE_KILL": wish})
            self.wait(job, 60)
            if job.returncode == 0:
                return "survived " + wish
            return f"{wish} of {ranks}"
        goal = self.done() + self.random.randint(0, 2 * UPDATES_PER_LIFE)
        job = self.start("broken", ranks, *more)
        end = time.monotonic() + 60
        while job.poll() is None and self.done() < goal and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(self.random.random() * 0.1)
        # The moment may come before the launcher has started a rank: the first one it starts, then.
        victims = self.ranks_of(job)
        while not victims and job.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
            victims = self.ranks_of(job)
        if victims:
            os.kill(self.random.choice(victims), signal.SIGKILL)
        self.wait(job, 60)
        return f"update {self.done()} of {self.updates}, one of {ranks}"

    def wait(self, job: subprocess.Popen, seconds: float) -> None:
        try:
            job.wait(seconds)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
            raise SystemExit("the job hung after a rank was killed; see " + self.path("broken.log"))

    def run(self) -> int:
        self.make_corpus()
        print(f"unbroken run of {self.updates} updates on 1 rank", flush=True)
        unbroken = self.start("unbroken", 1)
        if unbroken.wait() != 0:
            raise SystemExit("the unbroken run failed; see " + self.path("unbroken.log"))
        began = time.monotonic()
        in_saving = 0
        for number in range(self.kills):
            end = self.live(number)
            in_saving += "@" in end and not end.startswith("survived")
            print(f"kill {number + 1}/{self.kills}: {end}", flush=True)
        ranks = self.random.choice((1, 2, 3, 4))
        print(f"last life, on {ranks} ranks, to the end", flush=True)
        last = self.start("broken", ranks, "--start-or-resume")
        if last.wait() != 0:
            raise SystemExit("the last resume failed; see " + self.path("broken.log"))
        differences = self.compare()
        for difference in differences:
            print("DIFFERS: " + difference)
        print(f"{self.kills} kills, {in_saving} of them in the middle of saving, {time.monotonic() - began:.0f} s: "
              + ("the bits of the unbroken run" if not differences else f"{len(differences)} differences"))
        return 1 if differences else 0

    def compare(self) -> list:
        return (self.compare_metrics() + self.compare_files("checkpoints", ("param", "adam", "checksum"))
                + self.compare_routing())

    def compare_metrics(self) -> list:
        rows = []
        for run in ("unbroken", "broken"):
            with open(os.path.join(self.path(run), "metrics.csv"), encoding="utf-8") as file:
                lines = [line.rstrip("\n").split(",") for line in file]
            keep = [i for i, name in enumerate(lines[0]) if name not in TIMED and not name.startswith("time_")]
            rows.append([[line[i] for i in keep] for line in lines])
        if len(rows[0]) != len(rows[1]):
            return [f"metrics.csv has {len(rows[1])} lines instead of {len(rows[0])}"]
        return [f"metrics.csv, line {i + 1}" for i, pair in enumerate(zip(*rows)) if pair[0] != pair[1]]

    def compare_files(self, folder: str, groups: tuple) -> list:
        files = [h5py.File(os.path.join(self.path(run), folder, "latest"), "r") for run in ("unbroken", "broken")]
        differences = []
        for group in groups:
            def visit(name, item, group=group):
                other = files[1][group].get(name)
                if isinstance(item, h5py.Dataset) and (other is None or not same(item[()], other[()])):
                    differences.append(f"{folder}: {group}/{name}")
            files[0][group].visititems(visit)
        return differences

    def compare_routing(self) -> list:
        """Files of a broken run may be cut elsewhere; what they hold in a row may not differ."""
        parts = [{}, {}]
        for run, part in zip(("unbroken", "broken"), parts):
            for path in sorted(glob.glob(os.path.join(self.path(run), "routing", "step-*.h5"))):
                with h5py.File(path, "r") as file:
                    for name in ("step", "load", "probe/step", "probe/expert"):
                        if name in file:
                            part.setdefault(name, []).append(file[name][()])
        return [f"routing log: {name}" for name in parts[0]
                if name not in parts[1] or not same(np.concatenate(parts[0][name]), np.concatenate(parts[1][name]))]


def same(a, b) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="lives of the run (default 20)")
    parser.add_argument("--build", default="build", help="build directory (default build)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other kills (default 1)")
    parser.add_argument("--pairs", action="store_true", help="a translation model on sentence pairs")
    parser.add_argument("-P", dest="keys", metavar="KEY=VALUE", action="append", default=[],
                        help="configuration key of both runs; may be repeated")
    parser.add_argument("--keep", action="store_true", help="keep the directory with both runs")
    arguments = parser.parse_args()
    program = os.path.join(os.path.abspath(arguments.build), "src", "app", "stablemoe")
    if not os.access(program, os.X_OK):
        print(f"torture: no program at {program}: build first, or name the build directory", file=sys.stderr)
        return 2
    directory = tempfile.mkdtemp(prefix="stablemoe-torture-")
    result = 1
    try:
        result = Torture(program, directory, arguments.kills, arguments.seed, arguments.pairs, arguments.keys).run()
    finally:
        if result == 0 and not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print("both runs are in " + directory)
    return result


if __name__ == "__main__":
    sys.exit(main())
