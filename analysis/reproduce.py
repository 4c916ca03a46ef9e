"""`jobs/reproduce.sh`: run a table of models, and write it, beside the paper's figures where it is the paper's.

Every run has a directory of its own, OUT/<size>/<row>-seed<k>, with what was measured in evaluation.json.
A run that is there is not run again, one that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from analysis import reproduce_print
from analysis.paper_tables import SIZES, Row, Settings, Size
from analysis.relative_tables import TABLES
from analysis.settings import parse_settings

STOPPED = 75
"""Exit status of stablemoe train, and of this program, after a signal or at the time limit."""
STOPPED_BY_HAND = 76
"""Exit status of stablemoe train that a person stopped, by a file `stop` or Ctrl-C."""
RESULT = "evaluation.json"
COLLECTED = "results.json"
"""Beside the run directories: the results of all runs of the last call."""


@dataclass(frozen=True)
class Job:
    """One training run of a table, and its evaluations."""

    row: Row
    seed: int
    directory: Path
    config: Path
    corpus: Path

    def is_text(self) -> bool:
        """Whether the model is of text, and not of translation."""
        return read_settings(self.config, self.row.settings).get("model.family") != "translation"

    def settings(self, alone: bool = False) -> list[str]:
        """-P arguments of the training; alone: without what needs another run."""
        own = [value for value in self.row.settings if not (alone and "{needs}" in value)]
        values = (*own, f"run.seed={self.seed}", f"run.directory={self.directory}", f"data.corpus={self.corpus}")
        needs = self.directory.with_name(f"{self.row.needs}-seed{self.seed}")
        return [argument for value in values for argument in ("-P", value.replace("{needs}", str(needs)))]

    def identity(self) -> dict:
        """What makes a result belong to this job; paths may move."""
        return {"settings": [*self.row.settings, f"run.seed={self.seed}"],
                "config": self.config.read_text(encoding="utf-8"), "corpus": fingerprint(self.corpus)}

    def key(self) -> str:
        """The identity as a short text."""
        return hashlib.sha256(json.dumps(self.identity()).encode()).hexdigest()[:32]

    def result(self) -> dict | None:
        """What a finished run measured, here or by a file of known results; None before that, and where a version
        of this program measured less: then only what is missing is done.

        ValueError where it is another run's.
        """
        try:
            result = json.loads((self.directory / RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = _known.get(self.directory.name)
            return known if known and known["key"] == self.key() else None
        if result["identity"] != self.identity():
            raise ValueError(f"'{self.directory}' holds a run with other settings or another corpus: give another "
                             "--out, or remove it")
        # An earlier version did not measure all of it. The run is there, so only that is done again.
        return result if "routing" in result else None


_known: dict[str, dict] = {}
"""Results of runs that were made elsewhere, by the name of their directory."""


def read_known(path: Path) -> None:
    """Take the results of a file that collect wrote."""
    _known.update(json.loads(path.read_text(encoding="utf-8")))


def collect(jobs: list[Job], path: Path) -> None:
    """Write what the tables need of all finished runs, to be known elsewhere."""
    results = {job.directory.name: {"key": job.key()} | {
        name: {part: value[part] for part in ("loss", "perplexity", "frequency", "directions") if part in value}
        if name in ("valid", "test") else value
        for name, value in result.items() if name not in ("identity", "key")}
        for job in jobs if (result := job.result()) is not None}
    part = path.with_name(path.name + ".part")
    lines = [f" {json.dumps(name)}: {json.dumps(result)}" for name, result in sorted(results.items())]
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    part.rename(path)


_fingerprints: dict[Path, str] = {}


def fingerprint(corpus: Path) -> str:
    """The corpus's own fingerprint, in hexadecimal."""
    if corpus not in _fingerprints:
        import h5py

        with h5py.File(corpus, "r") as file:
            _fingerprints[corpus] = f"{int(file.attrs['fingerprint']) % (1 << 64):016x}"
    return _fingerprints[corpus]


class Failed(Exception):
    """A run that failed; its message says how."""


class Stopped(Exception):
    """A run that was asked to stop and can go on later."""


class Runner:
    """Carries out jobs with the program."""

    def __init__(self, program: list[str], launcher: list[str]):
        self.program = program
        self.launcher = launcher
        self.running: set[subprocess.Popen] = set()
        self.stopping = False

    def stop(self) -> None:
        """Ask all running commands to stop; training saves a checkpoint then."""
        self.stopping = True
        for process in list(self.running):
            process.terminate()

    def _call(self, log: Path, *arguments: str) -> str:
        command = [*self.launcher, *self.program, *arguments]
        with open(log, "a", encoding="utf-8") as errors:
            errors.write("$ " + shlex.join(command) + "\n")
            errors.flush()
            # A session of its own: a Ctrl-C reaches it through stop alone, once.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                                       text=True, start_new_session=True)
            self.running.add(process)
            output, _ = process.communicate()
            self.running.discard(process)
            errors.write(output)
        if process.returncode in (STOPPED, STOPPED_BY_HAND) or (process.returncode and self.stopping):
            raise Stopped("stopped on request; the same command goes on")
        if process.returncode:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            wrong = [line for line in lines if line.startswith("stablemoe: error")] or lines
            raise Failed(f"exit status {process.returncode}: {wrong[-1] if wrong else 'no message'} (all of it: {log})")
        return output

    def check(self, job: Job) -> str:
        """The plan of a run without running it: its last lines."""
        log = job.directory.with_suffix(".out")
        log.parent.mkdir(parents=True, exist_ok=True)
        self._call(log, "train", str(job.config), *job.settings(alone=True), "--dry-run")
        return log.read_text(encoding="utf-8")

    def flops(self, job: Job) -> float:
        """Floating-point operations of training on a token of the text, as the program counts them."""
        plan = json.loads(self._call(job.directory.with_suffix(".out"), "train", str(job.config),
                                     *job.settings(alone=True), "--dry-run", "--ranks", "1", "--json"))
        return plan["flops"] / batch_tokens(read_settings(job.config, job.row.settings))

    def rate(self, job: Job) -> float:
        """Tokens per second of a row's updates by `stablemoe bench`, weighted by the length of its stages."""
        bench = json.loads(self._call(job.directory.with_suffix(".out"), "bench", str(job.config),
                                      *job.settings(alone=True), "-n", "10", "--json"))
        settings = read_settings(job.config, job.row.settings)
        updates, first = int(settings["train.updates"]), int(settings.get("router.stage1_updates", 0))
        times = {stage["stage"]: stage["seconds"] for stage in bench["stages"]}
        mean = (first * times[1] + (updates - first) * times[2]) / updates if len(times) == 2 else min(times.values())
        return batch_tokens(settings) / mean

    def run(self, job: Job) -> dict:
        """Train, evaluate, and keep the result."""
        job.directory.parent.mkdir(parents=True, exist_ok=True)
        log = job.directory.with_suffix(".out")
        begun = (job.directory / "checkpoints").is_dir()
        before = time.monotonic()
        self._call(log, "train", str(job.config), *job.settings(), "--start-or-resume" if begun else "--overwrite")
        result = {"identity": job.identity(), "seconds": time.monotonic() - before}
        # Translations are decoded by beam search: of the test split alone.
        for split in ("valid", "test") if job.is_text() else ("test",):
            text = self._call(log, "evaluate", str(job.directory), "--split", split, "--corpus", str(job.corpus),
                              "--json")
            result[split] = json.loads(text)
            # Where the report looks for it.
            (job.directory / f"{split}.json").write_text(text, encoding="utf-8")
        result["parameters"] = parameters(log)
        result["flops_per_token"] = self.flops(job)
        result["routing"] = reproduce_print.routing(job)
        part = job.directory / (RESULT + ".part")
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        part.rename(job.directory / RESULT)
        return result


def parameters(log: Path) -> tuple[int, int]:
    """Shared parameters and those in experts, as the run itself says."""
    found = re.findall(r"parameters: (\d+) shared, (\d+) in experts", log.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"'{log}' does not say how many parameters the model has")
    return int(found[-1][0]), int(found[-1][1])


def read_settings(path: Path, overrides: tuple[str, ...] = ()) -> Settings:
    """Keys that a configuration sets, under overrides 'key=value'."""
    settings = parse_settings(path.read_text(encoding="utf-8"))
    for override in overrides:
        key, _, value = override.partition("=")
        settings[key] = int(value) if value.isdigit() else value
    return settings


def batch_tokens(settings: Settings) -> int:
    """Tokens of an update: of translation on either side, padding included."""
    if settings.get("model.family") == "translation":
        return int(settings["train.batch_tokens"])
    return int(settings["train.batch_sequences"]) * int(settings["model.context"])


def jobs_of(size: Size, tables: list[str], seeds: list[int], out: Path, corpus: Path) -> list[Job]:
    """All runs of these tables, each once, a seed after the other: an interrupted table is whole seeds."""
    config = Path(size.config)
    settings = read_settings(config)
    rows = {row.name: row for name in tables for row in TABLES[name].rows(size, settings)}
    return [Job(row, seed, out / size.name / f"{row.name}-seed{seed}", config, corpus)
            for seed in seeds for row in rows.values()]


def measure_rates(runner: Runner, jobs: list[Job], path: Path) -> None:
    """Measure the updates of each row, one after the other, and keep tokens per second by row in a JSON file."""
    rates = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for job in {job.row.name: job for job in jobs}.values():
        rates[job.row.name] = runner.rate(job)
        print(f"{job.row.label}: {rates[job.row.name]:.0f} tokens/s", flush=True)
        path.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")


def carry_out(runner: Runner, jobs: list[Job], parallel: int) -> int:
    """Run what is not there yet, what others need first; returns how many failed."""
    waiting = [job for job in jobs if job.result() is None]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished already", flush=True)
    began, done, failed, stop = time.monotonic(), 0, 0, []

    def one(job: Job) -> None:
        nonlocal done, failed
        if stop or runner.stopping:
            return
        name = f"{job.row.label}, seed {job.seed}"
        try:
            result = runner.run(job)
        except Stopped as reason:
            stop.append(reason)
            return
        except (Failed, OSError, ValueError) as reason:
            failed += 1
            print(f"{name}: {reason}", file=sys.stderr, flush=True)
            return
        done += 1
        left = (time.monotonic() - began) / done * (len(waiting) - done - failed)
        print(f"{done + failed}/{len(waiting)}  {name}: {reproduce_print.summary(result)} "
              f"({result['seconds'] / 60:.1f} min; about {left / 60:.0f} min left)", flush=True)

    with ThreadPoolExecutor(max_workers=parallel) as pool:
        list(pool.map(one, [job for job in waiting if not job.row.needs]))
        list(pool.map(one, [job for job in waiting if job.row.needs]))
    if stop or runner.stopping:
        raise Stopped(stop[0] if stop else "stopped on request; the same command goes on")
    return failed


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other calls out of the directory: two would train into the same run directories."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another call is at work in '{directory}': wait for it, or give another --out") from None
        yield


def show_plan(runner: Runner, job: Job) -> bool:
    """Print what a run would need; whether it could be run."""
    name = f"{job.row.label}, seed {job.seed}:"
    try:
        plan = re.findall(r"^(?:parameters|memory).*", runner.check(job), re.M)
    except Failed as reason:
        print(name, reason, file=sys.stderr)
        return False
    print(name, *plan[-2:], sep="\n  ")
    return True


def _numbers(text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of whole numbers such as 1,2,3") from None
    return values


def _parser() -> argparse.ArgumentParser:
    tables = "\n".join(f"  {name:14} {table.title} ({table.source})" for name, table in TABLES.items())
    parser = argparse.ArgumentParser(
        prog="jobs/reproduce.sh", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run tables of the StableMoE paper and write them beside the paper's figures; or compare the "
                    "methods of all papers.",
        epilog=f"tables:\n{tables}\n\nsizes:\n"
               + "\n".join(f"  {size.name:14} {size.config}" for size in SIZES.values())
               + "\n\nThe table translation has a size of its own, captions, and needs --corpus: of sentence pairs.\n"
                 "Writes OUT/<size>/<table>.md with mean and spread over the seeds, and its figures as .json. "
                 "A finished\nrun is not run again; an interrupted one goes on. Exit status: 0 where the tables are "
                 "whole, 75 after a stop (Ctrl-C, SIGTERM): the same command goes on then.")
    parser.add_argument("table", nargs="+", choices=[*TABLES, "all"], metavar="TABLE",
                        help="as below, or all of text")
    parser.add_argument("--rates", action="store_true",
                        help="then measure updates of each row of the tables that show tokens per second, one row "
                             "after the other, for minutes: on a machine that does nothing else")
    parser.add_argument("--size", choices=[size for size in SIZES if size != "captions"], default="small",
                        help="configuration to start from (default small)")
    parser.add_argument("--config", type=Path, help="start from this configuration instead; its name is the size's")
    parser.add_argument("--seeds", type=_numbers, default=[1, 2, 3], help="default 1,2,3")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="default runs/reproduce")
    parser.add_argument("--corpus", type=Path, required=True, help="as `stablemoe prepare` makes it")
    parser.add_argument("--ranks", type=int, default=1, help="of each run (default 1)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--known", type=Path, action="append", default=[], metavar="FILE",
                        help="a results.json of this program, of runs that need not be made again; may be repeated")
    parser.add_argument("--launcher", help="command before the program (default 'mpirun --quiet -n RANKS')")
    parser.add_argument("--program", default="build/stablemoe", help="default build/stablemoe")
    parser.add_argument("--dry-run", action="store_true", help="check every run's configuration and memory, run none")
    parser.add_argument("--table-only", action="store_true", help="write the tables of what is there")
    return parser


def main(arguments: list[str]) -> int:
    """The program; returns its exit status."""
    options = _parser().parse_args(arguments)
    tables = [name for name in TABLES if not TABLES[name].size] if "all" in options.table else options.table
    sizes = {TABLES[name].size for name in tables}
    if len(sizes) > 1:
        print("tables of text and of translation need corpora of their own: call them one after the other",
              file=sys.stderr)
        return 2
    size = SIZES[sizes.pop() or options.size]
    if options.config:
        size = dataclasses.replace(size, name=options.config.stem, config=str(options.config))
    if not options.corpus.is_file():
        print(f"there is no corpus '{options.corpus}': make one with stablemoe prepare", file=sys.stderr)
        return 2
    try:
        for path in options.known:
            read_known(path)
    except (OSError, ValueError) as reason:
        print(f"cannot read the known results '{path}': {reason}", file=sys.stderr)
        return 2
    launcher = shlex.split(options.launcher or f"mpirun --quiet -n {options.ranks}")
    runner = Runner([options.program], launcher)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.stop())
    jobs = jobs_of(size, tables, options.seeds, options.out, options.corpus)
    try:
        if options.dry_run:
            return 1 if sum([not show_plan(runner, job) for job in jobs]) else 0
        failed = 0
        if not options.table_only:
            with alone(options.out / size.name):
                failed = carry_out(runner, jobs, options.parallel)
        routing = [name for name in tables if TABLES[name].routing]
        if options.rates and routing:
            measure_rates(runner, jobs_of(size, routing, options.seeds[:1], options.out, options.corpus),
                          options.out / size.name / reproduce_print.RATES)
        collect(jobs, options.out / size.name / COLLECTED)
        for name in tables:
            own = jobs_of(size, [name], options.seeds, options.out, options.corpus)
            failed += reproduce_print.write(name, size, own, options.out / size.name)
    except Stopped as reason:
        print(f"reproduce: {reason}", file=sys.stderr)
        return STOPPED
    except (Failed, ValueError, OSError) as reason:
        print(f"reproduce: {reason}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
