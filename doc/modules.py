"""Draw the modules (folders of src/) and what each includes, as SVG: `python3 doc/modules.py > doc/modules.svg`.

The arrows are read from the #include lines. One that follows from others (app -> train -> model gives
app -> model) is left out. The suite lint compares doc/modules.svg with what this script prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "test" / "lint"))

import rules  # noqa: E402

WHAT = {
    "base": "status, memory, random, log", "config": "keys and values", "comm": "MPI: lanes, exchange",
    "kernel": "arithmetic, GEMM", "params": "parameter table", "layer": "layers of a model",
    "moe": "routers, experts", "model": "families, passes, decoding", "io": "HDF5: checkpoints, logs",
    "data": "corpora, tokenizer", "task": "batches, objective", "train": "update, loop, evaluation",
    "app": "subcommands",
}
BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW, MARGIN = 190, 46, 230, 84, 20


def arrows(root: Path) -> dict[str, set[str]]:
    """For each module that occurs the other modules whose headers its files include."""
    found: dict[str, set[str]] = {}
    for _, _, own, public, header in rules.includes(root):
        other = rules.module_of_header(root, header) if public else own
        if own in rules.MODULES:
            found.setdefault(own, set())
            if other in rules.MODULES and other != own:
                found[own].add(other)
                found.setdefault(other, set())
    return found


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All modules that arrows lead to from a module."""
    found, ahead = set(), [start]
    while ahead:
        for other in graph[ahead.pop()] - found:
            found.add(other)
            ahead.append(other)
    return found


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """The longest way down from each module; 0 includes nothing."""
    level = dict.fromkeys(graph, 0)
    for _ in graph:  # as many rounds as the longest way can have steps, so that circles end too
        for module in graph:
            level[module] = min(len(graph), max((level[other] + 1 for other in graph[module]), default=0))
    return level


def places(graph: dict[str, set[str]]) -> dict[str, tuple[int, int]]:
    """Upper left corner of each module's box: the rows are levels, the columns in the order of rules.MODULES."""
    level = levels(graph)
    rows = [[m for m in rules.MODULES if level.get(m) == number] for number in range(max(level.values(), default=0) + 1)]
    widest = max(map(len, rows), default=1)
    place = {}
    for number, row in enumerate(reversed(rows)):
        left = MARGIN + (widest - len(row)) * COLUMN // 2
        for column, module in enumerate(row):
            place[module] = (left + column * COLUMN, MARGIN + number * ROW)
    return place


def arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """A curve from the lower edge of one box to the upper edge of another; past other rows it runs straight down."""
    x0, y0, x1, y1 = start[0] + BOX_WIDTH // 2, start[1] + BOX_HEIGHT, end[0] + BOX_WIDTH // 2, end[1] - 2
    x0 += max(-60, min(60, (x1 - x0) // 4))
    x1 += max(-60, min(60, (x0 - x1) // 4)) if end[1] - start[1] == ROW else 0
    turn = y0 + ROW - BOX_HEIGHT - 2
    bend, down = (turn - y0) // 2, f" V{y1}" if y1 > turn else ""
    return f'<path d="M{x0} {y0} C{x0} {y0 + bend} {x1} {turn - bend} {x1} {turn}{down}" marker-end="url(#head)"/>'


def drawing(root: Path) -> str:
    """The SVG of a tree."""
    graph = arrows(root)
    place = places(graph)
    width = max((x for x, _ in place.values()), default=0) + BOX_WIDTH + MARGIN
    height = max((y for _, y in place.values()), default=0) + BOX_HEIGHT + MARGIN
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}" role="img" aria-label="Modules and their includes">',
             "<title>Modules and their includes</title>", "<style>",
             '  text { font-family: "DejaVu Sans", Verdana, sans-serif; text-anchor: middle; fill: #1f2a33 }',
             "  .name { font-weight: bold; font-size: 14px }", "  .what { font-size: 11px; fill: #46535e }",
             "  rect { fill: #eef2f4; stroke: #7b8790 }", "  path { fill: none; stroke: #46535e; stroke-width: 1.4 }",
             "  #head path { fill: #46535e; stroke: none }", "  .ground { fill: #fdfdfb; stroke: none }", "</style>",
             '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
             'orient="auto"><path d="M0 0 L10 5 L0 10 z"/></marker></defs>',
             f'<rect class="ground" width="{width}" height="{height}"/>']
    for module in place:
        implied = set().union(*(reachable(graph, other) for other in graph[module]))
        lines += [arrow(place[module], place[other]) for other in place if other in graph[module] - implied]
    for module, (x, y) in place.items():
        middle = x + BOX_WIDTH // 2
        lines += [f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>',
                  f'<text class="name" x="{middle}" y="{y + 20}">{module}</text>',
                  f'<text class="what" x="{middle}" y="{y + 36}">{WHAT[module]}</text>']
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    print(drawing(ROOT), end="")
