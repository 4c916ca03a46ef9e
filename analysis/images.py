"""Experiments on images (jobs/images.sh): prepare corpora, train what is not finished yet, print tables.

    python3 -m analysis.images EXPERIMENT... [--images FILE --labels FILE] [--seeds 1,2,3] [--out DIR] [--table-only]

A run is finished when DIR/<experiment>/<name>.json is there: what `stablemoe evaluate --json` printed of its last
checkpoint on the test split. The run directory is removed then. Standard library alone.
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

GRID_SAMPLES = (100, 300, 500, 700, 900, 1000)
PUBLISHED = {"cnn": (78.6, 89.5, 92.7, 94.0, 94.5, 95.2), "pmoe-separate": (82.3, 92.3, 94.8, 95.7, 96.5, 96.8),
             "pmoe-joint": (89.1, 94.3, 94.7, 95.5, 95.2, 96.6)}
"""Test accuracy of pMoE's experiment A in per cent, read off the paper's figure by eye."""

PATTERN_SAMPLES, PATTERN_L = (20, 40, 80, 160, 320), (1, 2, 4, 8, 16)
DIGIT_SAMPLES = (200, 700, 2000, 7000)
PASSES, BATCH = 150, 20


@dataclass
class Case:
    """One run: its name, configuration, corpus, and settings."""

    name: str
    config: str
    corpus: str
    settings: dict[str, object] = field(default_factory=dict)


def settings_of(samples: int, batch: int, passes: int, router_passes: int = 0) -> dict[str, object]:
    """Updates of so many passes over the first samples."""
    each = -(-samples // batch)
    updates = each * (passes + router_passes)
    more = {"router.stage1_updates": each * router_passes} if router_passes else {}
    return {"data.train_images": samples, "train.updates": updates, "train.batch_sequences": batch,
            "train.evaluate_every": 0, "train.checkpoint_every": 0, "log.tokens_every": 0, "log.load_every": 0,
            "run.log_every": 1000000, **more}


def grids(seed: int) -> list[Case]:
    cases = []
    for samples in GRID_SAMPLES:
        for config, router in (("cnn", 0), ("pmoe-separate", 100), ("pmoe-joint", 0)):
            cases.append(Case(f"{config}-{samples}-{seed}", config, f"grids-{seed}.h5",
                              {**settings_of(samples, BATCH, PASSES, router), "run.seed": seed}))
    return cases


def patterns(seed: int) -> list[Case]:
    cases = []
    for samples in PATTERN_SAMPLES:
        for taken in PATTERN_L:
            own = {**settings_of(samples, BATCH, PASSES, 100), "run.seed": seed, "model.width": 64,
                   "router.pmoe.patches": taken, "model.cnn.pool": "chosen", "router.pmoe.deviation": 0.01}
            cases.append(Case(f"l{taken}-{samples}-{seed}", "pmoe-separate", f"patterns-{seed}.h5", own))
        own = {**settings_of(samples, BATCH, PASSES), "run.seed": seed, "model.width": 64}
        cases.append(Case(f"cnn-{samples}-{seed}", "cnn", f"patterns-{seed}.h5", own))
    return cases


def digits(seed: int) -> list[Case]:
    cases = []
    for samples in DIGIT_SAMPLES:
        for config in ("deep", "deep-dense"):
            own = {**settings_of(samples, 64, 1), "run.seed": seed, "train.updates": 1500}
            cases.append(Case(f"{config}-{samples}-{seed}", config, f"digits-{seed}.h5", own))
    return cases


EXPERIMENTS: dict[str, Callable[[int], list[Case]]] = {"grids": grids, "patterns": patterns, "digits": digits}


class Runner:
    """Runs the program in one directory."""

    def __init__(self, out: Path, images: str | None, labels: str | None):
        self.out, self.images, self.labels, self.program = out, images, labels, "build/stablemoe"

    def call(self, *arguments: object) -> str:
        done = subprocess.run([self.program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join([self.program, *map(str, arguments)])}\n{done.stderr[-2000:]}")
        return done.stdout

    def corpus(self, name: str) -> Path:
        """Prepare a corpus unless it is there; its seed is in its name."""
        path, seed = self.out / name, name.rpartition("-")[2].partition(".")[0]
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        files = []
        if not name.startswith("patterns"):
            if not self.images or not self.labels:
                raise SystemExit("images of digits are needed: --images and --labels, or STABLEMOE_DIGITS; see --help")
            files = ["--images", self.images, self.labels]
        options = {"grids": ["--grid", "4x4", "--signal", "0,1", "--samples", "1000,100,1000"],
                   "patterns": ["--synthetic", "patterns", "--patches", 16, "--dimension", 64, "--sets", 8,
                                "--delta-d", 0.2, "--delta-r", 0.3, "--spread", 1.0, "--samples", "1000,100,1000"],
                   "digits": ["--patch", "7"]}[name.partition("-")[0]]
        self.call("prepare", *files, *options, "--seed", seed, "-o", path)
        return path

    def run(self, experiment: str, case: Case) -> None:
        result = self.out / experiment / f"{case.name}.json"
        if result.exists():
            return
        directory = self.out / experiment / case.name
        shutil.rmtree(directory, ignore_errors=True)
        corpus = self.corpus(case.corpus)
        settings = {**case.settings, "data.corpus": corpus, "run.directory": directory}
        words = [word for key, value in settings.items() for word in ("-P", f"{key}={value}")]
        self.call("train", f"configs/images/{case.config}.yml", *words)
        text = self.call("evaluate", directory, "--json")
        part = result.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.rename(result)
        shutil.rmtree(directory)
        print(f"{experiment} {case.name}: {100 * json.loads(text)['accuracy']:.2f} %", flush=True)


def load(out: Path, experiment: str, name: str, seeds: list[int]) -> list[dict]:
    """Results of a case for the seeds that are finished."""
    paths = [out / experiment / f"{name}-{seed}.json" for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def accuracies(out: Path, experiment: str, name: str, seeds: list[int]) -> list[float]:
    return [100 * result["accuracy"] for result in load(out, experiment, name, seeds)]


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("| --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def print_grids(out: Path, seeds: list[int]) -> None:
    print("Test accuracy in per cent; in brackets as published\n")
    rows = []
    for k, samples in enumerate(GRID_SAMPLES):
        row = [f"{samples:,}"]
        for config, published in PUBLISHED.items():
            row.append(f"{spread(accuracies(out, 'grids', f'{config}-{samples}', seeds))} ({published[k]})")
        rows.append(row)
    table(["training images", "CNN", "pMoE, separate", "pMoE, joint"], rows)
    print("Share of test images, in per cent, whose deciding patch is taken: by its class's expert (separate), by the "
          "best expert of its class (joint)\n")
    rows = []
    for samples in GRID_SAMPLES:
        own, best = [], []
        for result in load(out, "grids", f"pmoe-separate-{samples}", seeds):
            own.append(50 * sum(result["found"][0][c][c] for c in range(2)))
        for result in load(out, "grids", f"pmoe-joint-{samples}", seeds):
            experts = result["found"][0][:-1]
            best.append(50 * sum(max(expert[c] for expert in experts) for c in range(2)))
        rows.append([f"{samples:,}", spread(own), spread(best)])
    table(["training images", "separate, l = 2", "joint, l = 6"], rows)


def print_patterns(out: Path, seeds: list[int]) -> None:
    print("Runs with a test accuracy of at least 99 %, of those that ended; mean accuracy in per cent in brackets\n")
    rows = []
    names = [(f"l{taken}", f"pMoE, separate, l = {taken}") for taken in PATTERN_L] + [("cnn", "CNN")]
    for name, title in names:
        row = [title]
        for samples in PATTERN_SAMPLES:
            values = accuracies(out, "patterns", f"{name}-{samples}", seeds)
            won = sum(value >= 99 for value in values)
            row.append(f"{won}/{len(values)} ({statistics.mean(values):.1f})" if values else "")
        rows.append(row)
    table(["model"] + [f"{samples:,} images" for samples in PATTERN_SAMPLES], rows)


def print_digits(out: Path, seeds: list[int]) -> None:
    print("Test accuracy in per cent\n")
    rows = [[f"{samples:,}"] + [spread(accuracies(out, "digits", f"{config}-{samples}", seeds))
                                for config in ("deep-dense", "deep")] for samples in DIGIT_SAMPLES]
    table(["training images", "dense", "4 experts in each block"], rows)


PRINT = {"grids": print_grids, "patterns": print_patterns, "digits": print_digits}


def find_digits() -> tuple[str | None, str | None]:
    directory = os.environ.get("STABLEMOE_DIGITS", "")
    found = [sorted(glob.glob(os.path.join(directory, f"*{kind}*"))) for kind in
             ("images-idx3-ubyte", "labels-idx1-ubyte")] if directory else [[], []]
    return (found[0] or [None])[0], (found[1] or [None])[0]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="jobs/images.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="+", choices=tuple(EXPERIMENTS))
    parser.add_argument("--images", help="digits, 28 x 28: an IDX file, also .gz")
    parser.add_argument("--labels", help="their labels")
    parser.add_argument("--seeds", default="1,2,3,4,5", help="of data and initial values (default 1,2,3,4,5)")
    parser.add_argument("--out", type=Path, default=Path("runs/images"), help="(default runs/images)")
    parser.add_argument("--table-only", action="store_true", help="print the tables of what is finished")
    options = parser.parse_args(arguments)
    images, labels = find_digits()
    runner = Runner(options.out, options.images or images, options.labels or labels)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for experiment in options.experiment:
        for seed in seeds:
            for case in [] if options.table_only else EXPERIMENTS[experiment](seed):
                (options.out / experiment).mkdir(parents=True, exist_ok=True)
                runner.run(experiment, case)
        PRINT[experiment](options.out, seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
