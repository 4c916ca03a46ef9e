"""The table of jobs/network.sh: forms of the exchange on links of several bandwidths."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path

from analysis.scaling_study import StudyError


def read(directory: Path) -> dict[tuple[str, str, str], list[dict]]:
    """(bandwidth, exchange, overlap) -> last stage of every run. Raises StudyError where there is none."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for path in sorted(directory.glob("*.json")):
        match = re.fullmatch(r"(\w+)-(\w+)-(\d+)-\d+\.json", path.name)
        if match:
            stage = json.loads(path.read_text("utf-8"))["stages"][-1]
            found.setdefault((match[1], match[2], match[3]), []).append(stage)
    if not found:
        raise StudyError(f"no run in '{directory}'; jobs/network.sh makes them")
    return found


def _bits(bandwidth: str) -> float:
    match = re.fullmatch(r"([0-9.]+)([kmgt]?)bit", bandwidth)
    return float(match[1]) * 1000 ** " kmgt".index(match[2] or " ") if match else 0.0


def table(found: dict[tuple[str, str, str], list[dict]]) -> str:
    """Least and median update of each form, and how much faster than direct without overlap."""
    lines = ["links      exchange   overlap   runs   update ms, least   median   transfer ms   direct, 0 over it"]
    for key in sorted(found, key=lambda k: (-_bits(k[0]), k[1], int(k[2]))):
        runs = found[key]
        least = min(min(run["update_seconds"]) for run in runs)
        base = found.get((key[0], "direct", "0"))
        gain = min(min(run["update_seconds"]) for run in base) / least if base else float("nan")
        transfer = min(run["phase_seconds"]["transfer"] for run in runs)
        lines.append(f"{key[0]:<10} {key[1]:<10} {key[2]:>7} {len(runs):6d} {1e3 * least:18.1f} "
                     f"{1e3 * statistics.median(run['seconds'] for run in runs):8.1f} {1e3 * transfer:13.1f} {gain:19.2f}")
    return "\n".join(lines)


def same(found: dict[tuple[str, str, str], list[dict]]) -> bool:
    """Whether all runs had the same losses, bit for bit."""
    losses = [run["losses"] for runs in found.values() for run in runs]
    return all(other == losses[0] for other in losses)


def main(arguments: list[str]) -> int:
    """Print the table; returns the exit status."""
    try:
        found = read(Path(arguments[0]))
    except (StudyError, IndexError, OSError, ValueError) as error:
        print(f"network: {error}", file=sys.stderr)
        return 2
    print(table(found))
    good = same(found)
    print("losses: the same bit for bit in all runs" if good else "losses: NOT the same in all runs")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
