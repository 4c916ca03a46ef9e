"""Has an update become slower? Ratios within one run against what was measured before.

Absolute speeds say nothing on machines that are shared or differ; ratios of things
measured beside each other do. test/bench/expected.json has the ratios and how far below
them is still fine. Exit status 1 where one is lower than that: then look at `stablemoe
bench` and `git log`, or, where the change is meant, at the file. Of every round the
fastest update counts, the one that other work disturbed least, and by the processor's
clock where one rank is looked at. Two ranks need two cores, so that ratio is not judged
where the machine has other work.
Updates of width 256 and the kernels' benchmark: about two minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "configs" / "bench" / "width256.yml"
KEYS = ("train.batch_sequences=8",)


def run(command: list[str]) -> str:
    """Standard output of a command that must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode:
        sys.exit(f"regression: {' '.join(command)} failed:\n{result.stderr}")
    return result.stdout


def bench(options: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """Figures of one run; quicker ones without the launcher."""
    launcher = [options.mpirun, "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
    keys = [part for key in KEYS for part in ("-P", key)]
    return json.loads(run([*launcher, options.program, "bench", str(CONFIG), "--json", "-n", "3", "-w", "1", *keys]))


def _least(figures: dict[str, Any]) -> float:
    return min(figures["stages"][-1]["update_seconds"])


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Name of a ratio -> its value in every round."""
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        one, two = bench(options, 1), bench(options, 2)
        first, second = (min(stage["update_processor_seconds"]) for stage in one["stages"])
        values = {"update over GEMM": one["flops_per_update"] / second / one["gemm_flops_per_processor_s"],
                  "2 ranks over 1": _least(one) / _least(two),
                  "stage 2 over stage 1": first / second}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
        if two["stages"][-1]["losses"] != one["stages"][-1]["losses"]:
            sys.exit("regression: losses on 2 ranks are not those of 1: that is worse than slow")
    width = None
    for line in run([options.kernels]).splitlines():
        width = re.match(r"width (\d+)", line) or width
        share = re.search(r"block forward and backward.* (\d+) % of gemm", line)
        if share and width:
            found[f"block's kernels over GEMM, width {width.group(1)}"] = [float(share.group(1)) / 100]
    return found


def main() -> int:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--kernels", required=True, help="bench_kernels")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--expected", type=Path, default=HERE / "expected.json")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    expected = json.loads(options.expected.read_text("utf-8"))["ratios"]
    found, slower = measure(options), 0
    cores = len(os.sched_getaffinity(0))
    # This program's own two ranks are part of the load.
    busy = os.getloadavg()[0] > cores + 0.7
    print(f"{'ratio':<38} {'now':>7} {'before':>7} {'at least':>9}   rounds")
    for name, about in expected.items():
        values = found.get(name, [])
        now = statistics.median(values) if values else math.nan
        least = about["value"] * (1 - about["tolerance"])
        verdict = ""
        if cores < about.get("cores", 1):
            verdict = f"not judged: {cores} core"
        elif busy and "cores" in about and not now >= least:
            verdict = f"not judged: {os.getloadavg()[0]:.0f} programs want the {cores} cores"
        elif not now >= least:
            verdict, slower = "SLOWER", slower + 1
        print(f"{name:<38} {now:7.3f} {about['value']:7.3f} {least:9.3f}   "
              f"{' '.join(f'{value:.3f}' for value in values)}  {verdict}")
    print(f"{slower} of {len(expected)} slower than expected" if slower else "none is slower than expected")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
