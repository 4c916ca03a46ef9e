"""What a report shows of a run, as data for the page: plain lists, numbers and texts.

Everything is bounded, however long the run: series are means over stretches, the
assignments are counted by streaming (analysis.counts).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from analysis import series
from analysis.report import deep, skips
from analysis.report.progress import Progress
from analysis.run import Run

SERIES_POINTS = 1200
"""Points of a series; a longer one is given as means over stretches."""

Data = dict[str, Any]


def numbers(values: np.ndarray, digits: int = 6) -> list[float | int | None]:
    """Numbers of an array as short as JSON takes them; what is not finite becomes None."""
    out: list[float | int | None] = []
    for value in np.asarray(values, np.float64).ravel().tolist():
        if not math.isfinite(value):
            out.append(None)
        elif value == int(value) and abs(value) < 1e15:
            out.append(int(value))
        else:
            out.append(float(f"{value:.{digits}g}"))
    return out


def stretches(n: int, limit: int) -> np.ndarray:
    """Where at most `limit` equal stretches of n rows begin."""
    return np.arange(0, n, max(1, -(-n // limit)))


def thin(values: np.ndarray, limit: int = SERIES_POINTS) -> np.ndarray:
    """Means over at most `limit` stretches; what is not finite is left out of them. values: [n]."""
    values = np.asarray(values, np.float64)
    begin = stretches(len(values), limit)
    if len(begin) == len(values):
        return values
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), begin)
    counts = np.add.reduceat(known.astype(np.int64), begin)
    return np.divide(sums, counts, out=np.full(len(begin), np.nan), where=counts > 0)


def line_of(line: series.Line, digits: int = 6, shares: tuple[float, ...] = series.SMOOTHING[:1],
            scale: float = 1) -> Data | None:
    """A line for the page without what is not finite; None where nothing is left.

    shares: of the running means to go with it.
    """
    keep = np.isfinite(line.y)
    if not keep.any():
        return None
    per = max(1, -(-int(keep.sum()) // SERIES_POINTS))

    def short(values: np.ndarray) -> list[float | int | None]:
        return numbers(thin(scale * np.asarray(values, np.float64)[keep]), digits)

    out: Data = {"x": numbers(thin(np.asarray(line.x, np.float64)[keep])), "y": short(line.y), "per": per}
    if shares:
        out["mean"] = {f"{share:g}": short(line.mean(share)) for share in shares}
    return out


def _end(line: series.Line, scale: float = 1, digits: int = 5) -> float | int | None:
    return numbers(np.array([scale * line.end]), digits)[0]


def _losses(run: Run) -> Data:
    out: Data = {"loss": line_of(series.loss(run), 6, series.SMOOTHING), "valid": line_of(series.valid_loss(run), 8, ())}
    out["accuracy"] = line_of(series.accuracy(run), 6, series.SMOOTHING, 100)
    out["valid_accuracy"] = line_of(series.valid_accuracy(run), 6, (), 100)
    for term in [*series.loss_terms(run), *series.further(run)]:
        line = line_of(term.line, 6, series.SMOOTHING)
        out[term.key] = line and {**line, "title": term.title, "unit": term.unit, "place": term.colour}
    return {name: value for name, value in out.items() if value is not None}


def _time(run: Run) -> Data | None:
    """Seconds of the phases (columns time_<phase>) and tokens per second."""
    if run.metrics is None:
        return None
    names = [name for name in run.metrics.columns if name.startswith("time_")]
    phases = {}
    for name in names:
        values = run.metrics.columns[name]
        if np.isfinite(values).any():
            phases[name.removeprefix("time_")] = float(np.nanmean(values))
    rate = series.rate(run)
    if not rate.known and not phases:
        return None
    return {"rate": line_of(rate, 5), "phases": {name: numbers(np.array([value]))[0] for name, value in phases.items()},
            "median_rate": numbers(np.array([np.nanmedian(rate.y)]))[0] if rate.known else None}


def _heat(run: Run, layer: int) -> Data | None:
    found = series.heat(run, layer)
    return found and {"edges": numbers(found.edges), "rows": [numbers(row, 3) for row in found.relative.T],
                      "highest": numbers(np.array([found.highest]), 4)[0]}


def _even(run: Run, layer: int) -> Data:
    """Heat map and figures of balance of a MoE layer."""
    out: Data = {"heat": _heat(run, layer)}
    for name, line in series.balance(run, layer).items():
        out[name] = line_of(line, 5)
        out["end_" + name] = _end(line)
    return out


def _fluctuation(run: Run, layer: int, progress: Progress) -> Data | None:
    found = series.fluctuation(run.log, layer, run.updates_done, progress.tick)
    return found and {"x": numbers(100 * found.x), "y": numbers(100 * found.y), "tokens": found.tokens,
                      "shares": {str(percent): 100 * share for percent, share in found.shares.items()},
                      "probes": found.probes}


def _agreement(run: Run, layer: int, progress: Progress) -> Data | None:
    found = series.agreement(run, layer, progress.tick)
    train, probe = line_of(found.train), line_of(found.probe, 6, ())
    return {"train": train, "probe": probe, "end": _end(found.train, 100)} if train or probe else None


def _layer(run: Run, layer: int, progress: Progress) -> Data:
    out = _even(run, layer)
    out["fluctuation"] = _fluctuation(run, layer, progress)
    out["agreement"] = _agreement(run, layer, progress)
    for key, line, scale in (("gate_mean", series.gate(run, layer), 1), ("drop", series.drop(run, layer), 100)):
        out[key] = line_of(line, scale=scale)
        out["end_" + key] = _end(line, scale)
    return out


def _ends(run: Run) -> Data:
    """Figures of the end of a run for the table of runs."""
    out: Data = {}
    if run.metrics is None:
        return out
    loss, valid, best = series.loss(run), series.valid_loss(run), series.best(run)
    if loss.known:
        out["train"] = _end(loss, 1, 6)
    if best is not None:
        out |= {"valid": valid.end, "best": best.value}
    if series.valid_accuracy(run).known:
        out["accuracy"] = 100 * series.valid_accuracy(run).end
    tokens = run.metrics.column("tokens")
    if np.isfinite(tokens[-1:]).any():
        out["tokens"] = int(tokens[-1])
    return out


def _switch(run: Run) -> Data | None:
    """Where figures mark the beginning of stage 2: on an axis of updates, and of the share of the training in %."""
    return run.switch and {"update": series.switch_update(run),
                           "share": numbers(np.array([100 * series.switch_share(run)]))[0]}


def _evaluations(run: Run) -> Data:
    """Perplexities, of images accuracies, of the splits by `stablemoe evaluate --json`, kept as RUN/<split>.json."""
    out, what = {}, "accuracy" if run.is_images else "perplexity"
    for split in ("valid", "test"):
        try:
            value = json.loads((run.path / f"{split}.json").read_text(encoding="utf-8"))[what]
            out[split] = float(f"{float(value):.8g}")
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {f"{what}_{split}": value for split, value in out.items() if math.isfinite(value)}


def state_notes(run: Run) -> list[str]:
    """What a reader has to know of a run before its figures: damage, incompleteness, empty stretches."""
    notes = [note for note in run.notes if not re.match(r"corpus .* not found", note)
             and not (series.is_dense(run) and note.startswith("no routing files"))]
    planned = run.updates_planned
    if planned and run.updates_done < planned:
        notes.append(f"not finished: {run.updates_done:,} of {planned:,} updates; "
                     "shares of the training are of the updates done")
    if run.log is not None and not len(run.log.step) and not len(run.log.probe_step):
        notes.append("the routing log has no rows: no loads and no probes were recorded")
    return notes


def collect(run: Run, name: str, quiet: bool = False) -> Data:
    """Everything that the page shows of a run. name: what it is called in the report."""
    notes = state_notes(run)
    plan = deep.Plan(run)
    progress = Progress(f"analysis: {name}", plan.n_assignments, quiet)
    layers = [_layer(run, layer, progress) for layer in range(run.n_layers)]
    baselines = run.baselines
    method = run.settings.get("router.method") or (run.log.method if run.log is not None else "")
    data: Data = {
        "name": name, "method": "dense" if series.is_dense(run) else str(method), "settings": run.settings,
        "images": run.is_images,
        "updates": run.updates_done, "planned": run.updates_planned, "switch": run.switch, "switch_at": _switch(run),
        "n_layers": run.n_layers, "n_experts": series.n_experts(run),
        "ends": _ends(run) | _evaluations(run), "losses": _losses(run), "time": _time(run), "layers": layers,
        "baselines": None if baselines is None else {"unigram": baselines.unigram, "bigram": baselines.bigram},
    }
    data |= deep.collect(plan, layers, notes, progress)
    known = [] if run.log is not None and run.log.n_experts > 1 else notes  # said already
    vocabulary = deep.vocabulary_of(run, known) if run.log is not None and run.log.gates else None
    data["skips"] = skips.collect(run, lambda line: line_of(line, 6, ()), vocabulary)
    data["notes"] = notes
    progress.end()
    return data
