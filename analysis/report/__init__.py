"""`python3 -m analysis report RUN [RUN...] -o report.html`: one page on one run, or on several beside each other.

This file uses the standard library alone, as analysis/__init__.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import analysis

HELP = """\
Writes one HTML file that needs nothing else, no network and no other file: losses, routing
fluctuation beside the published figures, loads, agreement of the two routers, what each
expert specialises in, the experts of a text over the updates, the flow of tokens from MoE
layer to MoE layer, gates, drops, and time. Figures zoom, tables sort, and each has buttons
that save it as SVG, PNG or CSV. It opens from the disk in any browser of today.

Logs of any length are read in bounded memory. What is missing, damaged or of another
version is named in the page and on stderr, and the rest is made.

Exit status: 0 where the page was written; 2 where a RUN is no run directory, or Python
packages are missing; 3 where the page cannot be written.

Needs numpy, h5py and PyYAML (Debian: python3-numpy python3-h5py python3-yaml)."""

MARKS = ("metrics.csv", "used.yml", "routing")
"""A directory with one of these is a run."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m analysis report", epilog=HELP,
                                     description="A page on one run, or a comparison of several.",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, nargs="+", help="run directory")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=Path("report.html"),
                        help="the page (default: report.html)")
    parser.add_argument("--title", metavar="TEXT", help="what stands at the top of the page")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr; warnings all the same")
    return parser


def names_of(paths: list[Path]) -> list[str]:
    """What runs are called: the last part of their path, and as many before it as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i + 1})" for i, name in enumerate(names)]


def collect_all(paths: list[Path], quiet: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """What the page shows of runs, and in what they cannot be compared."""
    from analysis.report import collect, compare
    from analysis.run import open_run

    runs = [open_run(path) for path in paths]
    data = [collect.collect(run, name, quiet) for run, name in zip(runs, names_of(paths))]
    warnings = compare.warnings(runs, data)
    compare.group(data)
    return data, warnings


def _write(path: Path, text: str) -> None:
    """Under its final name only what is complete; the directory is made where it is missing."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status. arguments: those after "report"."""
    options = _parser().parse_args(arguments)
    for path in options.run:
        if not path.is_dir() or not any((path / mark).exists() for mark in MARKS):
            what = "no such directory" if not path.is_dir() else f"it has none of {', '.join(MARKS)}"
            print(f"analysis: '{path}' is no run directory: {what}", file=sys.stderr)
            return 2
    message = analysis.ensure_modules(["-m", "analysis", "report", *arguments], ("numpy", "h5py", "yaml"))
    if message is not None:
        print(message, file=sys.stderr)
        return 2
    from analysis.report import page

    data, warnings = collect_all(options.run, options.quiet)
    for entry in data:
        for note in entry["notes"]:
            print(f"analysis: warning: {entry['name']}: {note}", file=sys.stderr)
    for warning in warnings:
        print(f"analysis: warning: {warning}", file=sys.stderr)
    text = page.render(options.title or page.title_of(data), data, warnings)
    try:
        _write(options.output, text)
    except OSError as error:
        print(f"analysis: cannot write the report '{options.output}': {error}", file=sys.stderr)
        return 3
    print(f"report: {options.output} ({len(text.encode()) / 1e6:.1f} MB, {len(data)} run{'s' * (len(data) > 1)})")
    return 0
