"""A scaling study: which runs it has, what they measured, and whether they computed the same.

A study is a directory: study.json says what is run and holds the figures of all runs
that are done; points/ has one file per run, as `stablemoe bench --json` wrote it.
analysis/scaling_plan.py plans the runs.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
REAL_BYTES = 4
DISTURBED = 1.15
"""Time over the processor's from which on a run was held up by other programs."""


class StudyError(Exception):
    """What is wrong with a study, and what to do."""


@dataclass
class Point:
    """One run: its place in the study and the object that bench printed."""

    ranks: int
    repeat: int
    bench: dict[str, Any]
    clock: str = "wall"
    """Which clock the fit looks at: "wall", or "processor", which does not count the waiting for a core."""

    def stage(self, index: int = -1) -> dict[str, Any]:
        """Figures of a stage; by default of the last one."""
        return self.bench["stages"][index]

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase of the last stage, mean over ranks, scaled from the mean update to the median one.

        One update that the machine's other work held up would else stand in the phases and not in the time.
        """
        return self._phases(self.stage()["seconds"])

    @property
    def least(self) -> float:
        """Seconds of the fastest update of the last stage: the one that was least disturbed."""
        return min(self.stage()["update_seconds" if self.clock == "wall" else "update_processor_seconds"])

    @property
    def disturbance(self) -> float:
        """Time of an update over the processor's: well above 1 where a rank waited for a core. Ranks of one thread."""
        stage = self.stage()
        processor = stage.get("update_processor_seconds")
        return stage["seconds"] / statistics.median(processor) if processor else math.nan

    @property
    def least_phases(self) -> dict[str, float]:
        """The phases, scaled to the fastest update."""
        return self._phases(self.least)

    def _phases(self, update: float) -> dict[str, float]:
        stage = self.stage()
        updates = stage["update_seconds"]
        factor = update / (sum(updates) / len(updates))
        return {name: factor * seconds for name, seconds in stage["phase_seconds"].items()}


@dataclass
class Study:
    """A study and the runs that are done, by ranks and repeat."""

    path: Path
    about: dict[str, Any]
    points: list[Point] = field(default_factory=list)

    @property
    def ranks(self) -> list[int]:
        """Rank counts that have at least one run, rising."""
        return sorted({point.ranks for point in self.points})

    def of(self, ranks: int) -> list[Point]:
        """Runs of a rank count."""
        return [point for point in self.points if point.ranks == ranks]

    def middle(self, ranks: int) -> Point:
        """The run of a rank count whose last stage took the median time."""
        runs = sorted(self.of(ranks), key=lambda point: point.stage()["seconds"])
        return runs[(len(runs) - 1) // 2]

    def quietest(self) -> list[Point]:
        """For every rank count the run with the fastest update: other work on a machine only ever adds time."""
        return [min(self.of(ranks), key=lambda point: point.least) for ranks in self.ranks]

    def cores(self, point: Point) -> float:
        """Cores of a node: as the study was told, else as the program saw."""
        return self.about.get("cores_per_node") or point.bench["cores_per_node"]


def point_file(directory: Path, ranks: int, repeat: int) -> Path:
    """Where the figures of a run are; the file is there only when they are whole."""
    return directory / "points" / f"ranks-{ranks:04d}-repeat-{repeat}.json"


def write_json(path: Path, value: Any) -> None:
    """Write a file that has its name only when it is whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    part.replace(path)


def load(path: Path, clock: str = "wall") -> Study:
    """Read a study: its directory, or study.json. Raises StudyError."""
    file = path / "study.json" if path.is_dir() else path
    try:
        about = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"no scaling study in '{path}': {error}; jobs/scaling.sh makes one") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise StudyError(f"'{file}' is no study of format {FORMAT}")
    points = [Point(p["ranks"], p["repeat"], p["bench"]) for p in about.pop("points")]
    for found in sorted(file.parent.glob("points/ranks-*-repeat-*.json")):
        match = re.fullmatch(r"ranks-(\d+)-repeat-(\d+)\.json", found.name)
        if not match or any((p.ranks, p.repeat) == (int(match[1]), int(match[2])) for p in points):
            continue
        try:
            bench = json.loads(found.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise StudyError(f"'{found}' is damaged ({error}): remove it and run the study again") from error
        points.append(Point(int(match[1]), int(match[2]), bench))
    for point in points:
        point.clock = clock
    points.sort(key=lambda p: (p.ranks, p.repeat))
    return Study(file.parent, about, points)


def save(study: Study) -> None:
    """Write study.json with all points in it."""
    points = [{"ranks": p.ranks, "repeat": p.repeat, "bench": p.bench} for p in study.points]
    write_json(study.path / "study.json", dict(study.about, points=points))


def _losses(point: Point) -> list[float]:
    return [loss for stage in point.bench["stages"] for loss in stage["losses"]]


def _replicas(point: Point) -> int:
    return point.ranks // point.bench["expert_ranks"] if point.bench["model"]["moe_layers"] else 1


def check_losses(study: Study) -> tuple[bool, list[str]]:
    """Whether runs that must have the same losses, bit for bit, have them; and what to say about it."""
    good, lines = True, []
    groups: dict[tuple[int, ...], list[Point]] = {}
    for point in study.points:
        groups.setdefault((_replicas(point), *((point.ranks,) if study.about["mode"] == "weak" else ())), []).append(point)
    for key, points in sorted(groups.items()):
        different = [p for p in points if _losses(p) != _losses(points[0])]
        names = "ranks " + ", ".join(str(r) for r in sorted({p.ranks for p in points}))
        if key[0] > 1:
            names += f" ({key[0]} replicas)"
        if different:
            good = False
            first = different[0]
            lines.append(f"{names}: NOT the same: {first.ranks} ranks, repeat {first.repeat} differs from "
                         f"{points[0].ranks} ranks, repeat {points[0].repeat}")
        elif len(points) == 1:
            lines.append(f"{names}: one run, nothing to compare with")
        else:
            lines.append(f"{names}: {len(_losses(points[0]))} losses in each of {len(points)} runs, the same bit for bit")
    if study.about["mode"] == "weak":
        lines.append("weak scaling: every rank count has a batch of its own, so only repeats can be compared")
    elif len(groups) > 1:
        firsts = [points[0] for _, points in sorted(groups.items())]
        apart = max(abs(a / b - 1) for p in firsts[1:] for a, b in zip(_losses(p), _losses(firsts[0])))
        lines.append(f"different numbers of replicas agree to rounding: losses at most {apart:.1e} apart")
        good = good and apart < 1e-3
    return good, lines


def exchange_bytes(point: Point) -> float:
    """Bytes that all ranks together send to other ranks in the exchanges of an update."""
    model, batch, group = point.bench["model"], point.bench["batch"], point.bench["expert_ranks"]
    rows = batch["sequences"] * model["context"] * model["slots"] * model["moe_layers"]
    return 4.0 * rows * model["width"] * REAL_BYTES * (1 - 1 / group)


def exchange_rate(point: Point) -> float:
    """Bytes per second of one rank while it is in the exchange, waiting included; NaN on one rank."""
    seconds = point.phases["transfer"] * point.ranks
    volume = exchange_bytes(point)
    return volume / seconds if volume and seconds else math.nan


@dataclass
class Row:
    """One rank count of the table; times are of the last stage, medians over repeats."""

    ranks: int
    nodes: int
    group: int
    seconds: float
    low: float
    high: float
    tokens_per_s: float
    speedup: float
    efficiency: float
    imbalance: float
    volume: float
    rate: float
    waiting: float
    oversubscribed: bool
    disturbed: bool


def table(study: Study) -> list[Row]:
    """Rows by rank count. Speed-up and efficiency are by tokens/s, against the fewest ranks there are."""
    rows = []
    for ranks in study.ranks:
        runs, middle = study.of(ranks), study.middle(ranks)
        seconds = [run.stage()["seconds"] for run in runs]
        phases = middle.phases
        rate = statistics.median(run.stage()["tokens_per_s"] for run in runs)
        first = rows[0] if rows else None
        speedup = rate / first.tokens_per_s if first else 1.0
        rows.append(Row(ranks, middle.bench["nodes"], middle.bench["expert_ranks"], statistics.median(seconds),
                        min(seconds), max(seconds), rate, speedup, speedup * (first.ranks if first else ranks) / ranks,
                        middle.stage()["load_max_over_mean"] or math.nan, exchange_bytes(middle), exchange_rate(middle),
                        (phases["plan"] + phases["transfer"]) / sum(phases.values()),
                        ranks / middle.bench["nodes"] > study.cores(middle), middle.disturbance > DISTURBED))
    return rows


def text_table(study: Study) -> str:
    """The table for people."""
    about, rows = study.about, table(study)
    stage = study.points[0].stage()["stage"]
    lines = [f"{about['mode']} scaling of {about['config']}" + "".join(f" -P {key}" for key in about["keys"])
             + f", stage {stage}; medians of {max(len(study.of(r)) for r in study.ranks)} runs",
             "ranks nodes  G   update ms (least .. most)     tokens/s  speed-up  efficiency  busiest  exchange   rate"
             "  plan+transfer",
             "                                                                              /mean      MB/upd   GB/s"
             "      % of time"]
    for row in rows:
        lines.append(f"{row.ranks:5d} {row.nodes:5d} {row.group:2d}  {1e3 * row.seconds:9.1f} ({1e3 * row.low:.1f} .. "
                     f"{1e3 * row.high:.1f})".ljust(44)
                     + f"{row.tokens_per_s:10.0f} {row.speedup:9.2f} {row.efficiency:11.2f} {row.imbalance:8.3f} "
                     f"{1e-6 * row.volume:9.2f} {1e-9 * row.rate:6.2f} {100 * row.waiting:14.1f}"
                     + (" *" if row.oversubscribed else " !" if row.disturbed else ""))
    if any(row.oversubscribed for row in rows):
        lines.append("* more ranks than cores: they take turns, and no speed-up is to be had there")
    if any(row.disturbed and not row.oversubscribed for row in rows):
        lines.append("! other programs wanted the cores: too slow; measure again at a quieter time, with -o elsewhere")
    return "\n".join(lines)
