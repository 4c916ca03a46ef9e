"""`python3 -m analysis scaling STUDY`: fit a cost model to a scaling study and forecast other rank counts."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import analysis

DEFAULT_RANKS = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096"
DESCRIPTION = """\
Fits a cost model to a study of jobs/scaling.sh, says how well it predicts rank counts
that it did not see, and forecasts update time and efficiency for more ranks, with the
best split of the ranks into replicas (comm.expert_ranks). doc/scaling.md explains it.
"""


def _pair(text: str) -> tuple[float, float]:
    """LATENCY_US,GBIT as s and bytes/s."""
    try:
        latency, gbit = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not LATENCY_US,GBIT, as in 2,100") from error
    if not (latency >= 0 and gbit > 0):
        raise argparse.ArgumentTypeError(f"'{text}': a latency of 0 or more and a bandwidth above 0")
    return 1e-6 * latency, 1e9 / 8 * gbit


def _ranks(text: str) -> list[int]:
    try:
        ranks = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers, as in 1,2,4") from error
    if ranks[0] < 1:
        raise argparse.ArgumentTypeError("ranks begin at 1")
    return ranks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m analysis scaling", description=DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", metavar="STUDY", type=Path, help="directory of the study, or its study.json")
    parser.add_argument("--network", metavar="LATENCY_US,GBIT", type=_pair,
                        help="between nodes: latency of a message and bandwidth of a node's link (default: as the "
                             "study measured; 2,100 where it had one node)")
    parser.add_argument("--ranks", type=_ranks, default=_ranks(DEFAULT_RANKS), help=f"default {DEFAULT_RANKS}")
    parser.add_argument("--per-node", metavar="N", type=int, help="ranks of a node, a core each (default: the study's)")
    parser.add_argument("--config", metavar="CONFIG", type=Path, help="model to forecast (default: the study's)")
    parser.add_argument("-P", metavar="KEY=VALUE", dest="keys", action="append", default=[],
                        help="set a key of CONFIG")
    parser.add_argument("--vocab", type=int, default=50257, help="vocabulary of CONFIG (default 50257)")
    parser.add_argument("--base-ranks", metavar="N", type=int, default=1,
                        help="weak scaling: the batch of CONFIG is that of N ranks (default 1)")
    parser.add_argument("--rate", metavar="GFLOPS", type=float,
                        help="matrix product rate of a rank (default: as measured); memory stays as measured")
    parser.add_argument("--imbalance", metavar="X", type=float,
                        help="rows of the busiest expert over the mean (default: as measured)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall",
                        help="processor: fit what ranks had to do, without the time they waited for a core, which is "
                             "all that a machine with other work on it can say (default wall)")
    parser.add_argument("--memory", metavar="GIB", type=float, default=math.inf,
                        help="a rank's memory for parameters, gradients and moments: splits that need more are left out")
    parser.add_argument("--plan", metavar="PLAN", type=Path, nargs="+",
                        help="forecast the updates that `stablemoe train --dry-run --ranks N --json` planned, each a file "
                             "of its output, in place of --ranks and --config: work, messages and bytes are the plan's")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help="where the figure goes (default: the study)")
    return parser


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.plan and (options.config or options.per_node or options.keys):
        parser.error("--plan: the model and the nodes are those of the plan; leave --config, -P and --per-node out")
    message = analysis.ensure_modules(["-m", "analysis", "scaling", *arguments], ("numpy", "matplotlib", "yaml"))
    if message is not None:
        print(message, file=sys.stderr)
        return 2
    from analysis import scaling_report
    from analysis.scaling_study import StudyError

    try:
        return scaling_report.run(options)
    except StudyError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"analysis: cannot write the figure: {error}", file=sys.stderr)
        return 3
