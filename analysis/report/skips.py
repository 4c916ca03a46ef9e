"""The part of a report on sublayers behind gates: how much skipped, and which tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from analysis import series, skips
from analysis.run import Run
from analysis.text import Vocabulary

TOKENS = 15
LEAST = 8
"""A token id is shown where it was counted so often."""

PLACES = 256
"""Points of the curve over places."""

Data = dict[str, Any]


def _gate(run: Run, found: skips.Found, gate: int, vocabulary: Vocabulary | None) -> Data:
    context = run.settings.get("model.context")
    counts = skips.count(run.log, found, gate, context if isinstance(context, int) and context > 0 else 128)
    total, skipped = int(counts.total.sum()), int(counts.skipped.sum())
    step = max(1, -(-len(counts.place_total) // PLACES))
    begin = np.arange(0, len(counts.place_total), step)
    tokens, skipping = (np.add.reduceat(values, begin) for values in (counts.place_total, counts.place_skipped))
    places = np.divide(100 * skipping, tokens, out=np.full(len(begin), np.nan), where=tokens > 0)
    chosen = skips.extremes(counts, TOKENS, LEAST)
    return {
        "tokens": total, "skipped": round(100 * skipped / total, 3) if total else None,
        "frequency": [{"ids": ids, "tokens": n, "skipped": round(100 * less / n, 3) if n else None}
                      for ids, n, less in skips.by_frequency(counts)],
        "place": {"x": [int(b) for b in begin[tokens > 0]], "y": [round(float(v), 3) for v in places[tokens > 0]]},
        "ids": [[vocabulary.text(int(t)) if vocabulary else f"#{t}", int(t), int(counts.total[t]),
                 round(100 * int(counts.skipped[t]) / int(counts.total[t]), 2)] for t in chosen]}


def collect(run: Run, line_of: Callable[[series.Line], Data | None], vocabulary: Vocabulary | None) -> Data | None:
    """What the page shows of the gates of a run; None where it has none, or a log without them."""
    log = run.log
    if log is None or not log.gates:
        return None
    found = skips.find(log)
    gates = []
    for g, name in enumerate(log.gates):
        one: Data = {"name": name, "share": line_of(series.Line(log.step, 100 * (1 - log.ran[:, g])))}
        if found.source:
            one |= _gate(run, found, g, vocabulary)
        gates.append(one)
    counted = {"source": found.source, "first": int(found.step[0]), "last": int(found.step[-1]),
               "records": len(found.step)} if found.source else None
    return {"gates": gates, "counted": counted, "unit": run.settings.get("model.skip.unit"),
            "classes": [round(100 * share) for share in skips.FREQUENCIES]}
