"""The plan of a scaling study, and the program that jobs/scaling.sh calls to plan its runs and to collect them."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from analysis.scaling_study import FORMAT, Study, StudyError, check_losses, load, point_file, save, text_table, write_json
from analysis.settings import parse_scalar, parse_settings

ROOT = Path(__file__).resolve().parent.parent
SAME_STUDY = ("format", "config", "config_sha256", "mode", "keys", "bench")
"""What a study that goes on must have in common with what is there."""


# ---- configurations ----


def resolved_config(path: Path, keys: list[str]) -> dict[str, Any]:
    """A configuration file over the defaults of configs/reference.yml, and KEY=VALUE over both.

    Raises StudyError where the file cannot be read.
    """
    settings = parse_settings((ROOT / "configs" / "reference.yml").read_text("utf-8"))
    try:
        settings.update(parse_settings(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot read the configuration '{path}': {error}") from error
    for assignment in keys:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise StudyError(f"-P {assignment}: write KEY=VALUE")
        settings[name] = parse_scalar(value)
    for name in ("model.inner", "moe.inner"):
        settings[name] = settings[name] or 4 * settings["model.width"]
    return settings


# ---- the plan ----


def expert_ranks(ranks: int, experts: int) -> int:
    """G as the program chooses it: the largest divisor of the ranks that is at most the experts."""
    return max((g for g in range(1, ranks + 1) if ranks % g == 0 and g <= max(1, experts)), default=1)


def run_keys(settings: dict[str, Any], mode: str, ranks: int) -> list[str]:
    """What a run of this many ranks sets beside the study's own keys."""
    if mode == "strong":
        return []
    return [f"train.{name}={settings['train.' + name] * ranks}" for name in ("batch_sequences", "lanes")]


def check_ranks(settings: dict[str, Any], mode: str, ranks: list[int]) -> list[str]:
    """Notes on rank counts that mean something special; raises StudyError for those that cannot be."""
    notes = []
    lanes, experts = settings["train.lanes"], settings["moe.experts"]
    chosen = settings["comm.expert_ranks"]
    for count in ranks:
        if mode == "strong" and count > lanes:
            raise StudyError(
                f"{count} ranks but train.lanes = {lanes}: a lane is the least a rank can work on, so {count - lanes} "
                f"ranks would have nothing to do; leave {count} out, or give the whole study "
                f"-P train.lanes={count} (train.batch_sequences must be a multiple of it)")
        if chosen and count % chosen:
            raise StudyError(f"comm.expert_ranks = {chosen} does not divide {count} ranks")
        if not settings["moe.layers"]:
            continue
        group = chosen or expert_ranks(count, experts)
        if count > group:
            notes.append(f"{count} ranks for {experts} experts form {count // group} replicas of {group}: experts' "
                         "gradients are sums of that many parts, so losses agree to rounding with one replica's")
    return notes


def plan(options: argparse.Namespace) -> list[str]:
    """Write or check study.json; returns a line "ranks repeat KEY=VALUE ..." for every run that is not done."""
    config = Path(options.config)
    settings = resolved_config(config, options.keys)
    try:
        ranks = sorted({int(text) for text in options.ranks.split(",")})
    except ValueError as error:
        raise StudyError(f"--ranks {options.ranks}: write numbers with commas between them: 1,2,4,8") from error
    if not ranks or ranks[0] < 1 or options.repeat < 1:
        raise StudyError("ranks and repeats begin at 1")
    for note in check_ranks(settings, options.mode, ranks):
        print(f"scaling: note: {note}", file=sys.stderr)
    text = config.read_bytes()
    about = {"format": FORMAT, "config": options.config, "config_sha256": hashlib.sha256(text).hexdigest(),
             "mode": options.mode, "keys": options.keys, "bench": options.bench.split(),
             "cores_per_node": options.cores}
    directory = Path(options.study)
    (directory / "points").mkdir(parents=True, exist_ok=True)
    file = directory / "study.json"
    if file.exists():
        there = load(directory).about
        changed = [name for name in SAME_STUDY if there.get(name) != about[name]]
        if changed:
            raise StudyError(f"{directory} holds another study ({', '.join(changed)} differ): choose another -o, or "
                             "remove it")
    write_json(file, dict(about, points=[]))
    lines = []
    for repeat in range(1, options.repeat + 1):  # rank counts in turn, so that a busy hour meets all alike
        for count in ranks:
            if not point_file(directory, count, repeat).exists():
                lines.append(" ".join([str(count), str(repeat), *run_keys(settings, options.mode, count)]))
    return lines


# ---- the program that jobs/scaling.sh calls ----


def collect(study: Study) -> int:
    """Save, print, check and draw; returns the exit status."""
    if not study.points:
        raise StudyError(f"{study.path}: no run is done")
    save(study)
    print(text_table(study))
    good, lines = check_losses(study)
    print("\n".join(f"losses: {line}" for line in lines))
    from analysis import scaling_figures

    for path in scaling_figures.draw_study(study, study.path):
        print(f"written: {path}")
    return 0 if good else 1


def main(arguments: list[str]) -> int:
    """`plan` or `collect`; see jobs/scaling.sh."""
    parser = argparse.ArgumentParser(prog="analysis.scaling_plan", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    planning = commands.add_parser("plan")
    planning.add_argument("study")
    planning.add_argument("config")
    planning.add_argument("--mode", choices=("strong", "weak"), default="strong")
    planning.add_argument("--ranks", default="1,2,4,8")
    planning.add_argument("--repeat", type=int, default=3)
    planning.add_argument("--bench", default="", help="options of bench, in one text")
    planning.add_argument("--cores", type=float)
    planning.add_argument("-P", dest="keys", action="append", default=[])
    commands.add_parser("collect").add_argument("study")
    options = parser.parse_args(arguments)
    try:
        if options.command == "plan":
            print("\n".join(plan(options)))
            return 0
        return collect(load(Path(options.study)))
    except StudyError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    import analysis

    MESSAGE = analysis.ensure_modules(["-m", "analysis.scaling_plan", *sys.argv[1:]], ("numpy", "matplotlib", "yaml"))
    if MESSAGE is not None:
        sys.exit(MESSAGE)
    sys.exit(main(sys.argv[1:]))
