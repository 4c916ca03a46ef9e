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

GRID_MACS = {"cnn": 16 * 784 * 40, "pmoe-separate": 16 * 784 * 2 + 2 * 2 * 784 * 20,
             "pmoe-joint": 16 * 784 * 8 + 8 * 6 * 784 * 5}
"""Multiply-accumulates of an image: the router's on all 16 patches, the filters' on those that experts take."""

PATTERN_SAMPLES, PATTERN_L, PATTERN_PATCHES = (10, 20, 40, 80, 160, 320), (1, 2, 4, 8, 16), 16
PATTERN_UPDATES, PATTERN_ROUTER_UPDATES, PATTERN_LEVEL = 3000, 200, 99
"""Updates of the filters and of the router, for any number of samples; accuracy in per cent that counts as success."""

DIGIT_SAMPLES, DIGIT_UPDATES = (200, 2000, 7000), 750
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
    same = {"run.seed": seed, "model.width": 64, "train.updates": PATTERN_UPDATES}
    for samples in PATTERN_SAMPLES:
        for taken in PATTERN_L:
            own = {**settings_of(samples, BATCH, 1), **same, "router.pmoe.patches": taken, "model.cnn.pool": "chosen",
                   "router.pmoe.deviation": 0.01, "router.stage1_updates": PATTERN_ROUTER_UPDATES,
                   "train.updates": PATTERN_UPDATES + PATTERN_ROUTER_UPDATES}
            cases.append(Case(f"l{taken}-{samples}-{seed}", "pmoe-separate", f"patterns-{seed}.h5", own))
        cases.append(Case(f"cnn-{samples}-{seed}", "cnn", f"patterns-{seed}.h5",
                          {**settings_of(samples, BATCH, 1), **same}))
    return cases


def digits(seed: int) -> list[Case]:
    cases = []
    for samples in DIGIT_SAMPLES:
        for config in ("deep", "deep-dense"):
            own = {**settings_of(samples, 64, 1), "run.seed": seed, "train.updates": DIGIT_UPDATES}
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
                   "patterns": ["--synthetic", "patterns", "--patches", 16, "--dimension", 64, "--sets", 32,
                                "--delta-d", 0.6, "--delta-r", 0.3, "--spread", 0.5, "--samples", "1000,100,1000"],
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


def needed(curve: list[tuple[int, float]], level: float) -> float | None:
    """Samples at which an accuracy comes to `level`, between two sizes by the logarithm of samples; None: at none of
    them; below 0: at the least already, which is minus this. curve: (samples, accuracy), in order of samples."""
    if curve and curve[0][1] >= level:
        return -float(curve[0][0])
    for (low, before), (high, after) in zip(curve, curve[1:]):
        if before < level <= after:
            return math.exp(math.log(low) + math.log(high / low) * (level - before) / (after - before))
    return None


def mean_curve(out: Path, experiment: str, name: str, sizes: tuple[int, ...],
               seeds: list[int]) -> list[tuple[int, float]]:
    """Mean accuracies over the seeds, of the sizes that have any."""
    found = [(samples, accuracies(out, experiment, f"{name}-{samples}", seeds)) for samples in sizes]
    return [(samples, statistics.mean(values)) for samples, values in found if values]


def own_found(out: Path, experiment: str, name: str, seeds: list[int]) -> list[float]:
    """Per cent of test images whose deciding patch the expert of their class takes, by seed."""
    return [50 * sum(result["found"][0][c][c] for c in range(2)) for result in load(out, experiment, name, seeds)]


def best_found(out: Path, name: str, seeds: list[int]) -> list[float]:
    """Per cent of test images whose deciding patch the best expert of their class takes, by seed."""
    results = load(out, "grids", name, seeds)
    return [50 * sum(max(expert[c] for expert in result["found"][0][:-1]) for c in range(2)) for result in results]


def number(value: float | None) -> str:
    """Of `needed`."""
    return "not reached" if value is None else f"below {-value:,.0f}" if value < 0 else f"{value:,.0f}"


def ahead(out: Path, samples: int, one: str, other: str, seeds: list[int]) -> str:
    """Seeds in which a configuration is ahead of another one, of those that both have."""
    pairs = [(load(out, "grids", f"{one}-{samples}", [seed]), load(out, "grids", f"{other}-{samples}", [seed]))
             for seed in seeds]
    known = [a[0]["accuracy"] > b[0]["accuracy"] for a, b in pairs if a and b]
    return f"{sum(known)}/{len(known)}"


def print_grids(out: Path, seeds: list[int]) -> None:
    print("Test accuracy in per cent; in brackets as published\n")
    rows = []
    for k, samples in enumerate(GRID_SAMPLES):
        row = [f"{samples:,}"]
        for config, published in PUBLISHED.items():
            row.append(f"{spread(accuracies(out, 'grids', f'{config}-{samples}', seeds))} ({published[k]})")
        rows.append(row)
    rows.append(["multiply-accumulates per image", *(f"{GRID_MACS[config]:,}" for config in PUBLISHED)])
    table(["training images", "CNN", "pMoE, separate", "pMoE, joint"], rows)
    print("Seeds in which one is ahead of the other\n")
    pairs = (("pmoe-separate", "cnn"), ("pmoe-joint", "pmoe-separate"), ("pmoe-joint", "cnn"))
    table(["training images", "separate of CNN", "joint of separate", "joint of CNN"],
          [[f"{samples:,}", *(ahead(out, samples, *pair, seeds) for pair in pairs)] for samples in GRID_SAMPLES])
    print("Training images at which the mean accuracy comes to a level, and their ratio to the CNN's\n")
    rows = []
    for level in (90, 95):
        at = {config: needed(mean_curve(out, "grids", config, GRID_SAMPLES, seeds), level) for config in PUBLISHED}
        paper = {config: needed(list(zip(GRID_SAMPLES, PUBLISHED[config])), level) for config in PUBLISHED}
        for who, each in (("here", at), ("as published", paper)):
            rows.append([f"{level} %, {who}"])
            for value in each.values():
                ratio = f" ({value / each['cnn']:.2f})" if value and value > 0 and each["cnn"] else ""
                rows[-1].append(number(value) + ratio)
    table(["level", "CNN", "pMoE, separate", "pMoE, joint"], rows)
    print("Share of test images, in per cent, whose deciding patch is taken: by its class's expert (separate), by the "
          "best expert of its class (joint)\n")
    table(["training images", "separate, l = 2", "joint, l = 6"],
          [[f"{samples:,}", spread(own_found(out, "grids", f"pmoe-separate-{samples}", seeds)),
            spread(best_found(out, f"pmoe-joint-{samples}", seeds))] for samples in GRID_SAMPLES])


def slope(points: list[tuple[float, float]]) -> float:
    """Exponent a of y = c x^a by least squares in logarithms."""
    x, y = ([math.log(p[i]) for p in points] for i in range(2))
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def print_needed(out: Path, seeds: list[int]) -> None:
    """Samples against n / l: the theory bounds the CNN's over those of pMoE (separate) by (n / l)^8."""
    at = {name: needed(mean_curve(out, "patterns", name, PATTERN_SAMPLES, seeds), PATTERN_LEVEL)
          for name in ["cnn", *(f"l{taken}" for taken in PATTERN_L)]}
    cnn, rows, points = at["cnn"], [], []
    for taken in PATTERN_L:
        value = at[f"l{taken}"]
        if value and value > 0:
            points.append((PATTERN_PATCHES / taken, value))
        rows.append([str(taken), f"{PATTERN_PATCHES / taken:g}", number(value),
                     f"{cnn / value:.2f}" if cnn and value and value > 0 else ""])
    rows.append(["CNN", "", number(cnn), ""])
    print(f"Samples at which the mean accuracy comes to {PATTERN_LEVEL} %\n")
    table(["l", "n / l", "samples", "CNN's samples over these"], rows)
    if len(points) > 2:
        print(f"Least squares: samples ~ (n / l)^{slope(points):.2f} over all l, (n / l)^{slope(points[1:]):.2f} "
              "without the smallest; the theory's bound: (n / l)^-8\n")


def print_patterns(out: Path, seeds: list[int]) -> None:
    names = [(f"l{taken}", f"pMoE, separate, l = {taken}") for taken in PATTERN_L] + [("cnn", "CNN")]
    head = ["model"] + [f"{samples:,} images" for samples in PATTERN_SAMPLES]
    print(f"Runs with a test accuracy of at least {PATTERN_LEVEL} %, of those that ended; mean accuracy in per cent in "
          "brackets\n")
    rows = []
    for name, title in names:
        row = [title]
        for samples in PATTERN_SAMPLES:
            values = accuracies(out, "patterns", f"{name}-{samples}", seeds)
            won = sum(value >= PATTERN_LEVEL for value in values)
            row.append(f"{won}/{len(values)} ({statistics.mean(values):.1f})" if values else "")
        rows.append(row)
    table(head, rows)
    print("Share of test images, in per cent, whose deciding patch the expert of their class takes\n")
    table(head, [[f"l = {taken}"] + [spread(own_found(out, "patterns", f"l{taken}-{samples}", seeds))
                                     for samples in PATTERN_SAMPLES] for taken in PATTERN_L])
    print_needed(out, seeds)


def digit_macs(experts: int) -> int:
    """Multiply-accumulates of an image in configs/images/deep.yml: every patch has one feed-forward layer."""
    patches, numbers, width, blocks, inner, classes = 16, 49, 64, 4, 128, 10
    block = patches * (4 * width * width + 2 * width * inner + experts * width) + 2 * patches * patches * width
    return patches * numbers * width + blocks * block + width * classes


def print_digits(out: Path, seeds: list[int]) -> None:
    print("Test accuracy in per cent\n")
    rows = [[f"{samples:,}"] + [spread(accuracies(out, "digits", f"{config}-{samples}", seeds))
                                for config in ("deep-dense", "deep")] for samples in DIGIT_SAMPLES]
    rows.append(["multiply-accumulates per image", f"{digit_macs(0):,}", f"{digit_macs(4):,}"])
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
