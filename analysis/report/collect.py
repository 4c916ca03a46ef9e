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

from analysis import routing
from analysis.report import deep, skips
from analysis.report.progress import Progress
from analysis.run import Run

SERIES_POINTS = 1200
"""Points of a series; a longer one is given as means over stretches."""

HEAT_COLUMNS = 320
"""Stretches of updates in a heat map of loads."""

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


def series(x: np.ndarray, y: np.ndarray, digits: int = 6) -> Data | None:
    """A series without what is not finite; None where nothing is left."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    keep = np.isfinite(y)
    if not keep.any():
        return None
    per = max(1, -(-int(keep.sum()) // SERIES_POINTS))
    return {"x": numbers(thin(x[keep])), "y": numbers(thin(y[keep]), digits), "per": per}


def _losses(run: Run) -> Data:
    if run.metrics is None:
        return {}
    update, stage = run.metrics.columns["update"], run.metrics.column("stage")
    out: Data = {"loss": series(update, run.metrics.column("loss")),
                 "valid": series(update, run.metrics.column("valid_loss"), 8)}
    for name in ("balance", "distill", *run.metrics.further_terms):
        values = run.metrics.column(name)
        values = np.where((stage == 2) & (values == 0), np.nan, values)  # the terms end with stage 1
        if np.any(values[np.isfinite(values)] != 0):
            out[name if name in ("balance", "distill") else f"term:{name}"] = series(update, values)
    for name in run.metrics.gates:
        out[f"run:{name}"] = series(update, run.metrics.column(f"{name}_run"))
    out["grad_norm"] = series(update, run.metrics.column("grad_norm"))
    return {name: value for name, value in out.items() if value is not None}


def _time(run: Run) -> Data | None:
    """Seconds of the phases (columns time_<phase>) and tokens per second."""
    if run.metrics is None:
        return None
    update = run.metrics.columns["update"]
    names = [name for name in run.metrics.columns if name.startswith("time_")]
    phases = {}
    for name in names:
        values = run.metrics.columns[name]
        if np.isfinite(values).any():
            phases[name.removeprefix("time_")] = float(np.nanmean(values))
    rate = series(update, run.metrics.column("tokens_per_s"), 5)
    if rate is None and not phases:
        return None
    rates = run.metrics.column("tokens_per_s")
    return {"rate": rate, "phases": {name: numbers(np.array([value]))[0] for name, value in phases.items()},
            "median_rate": numbers(np.array([np.nanmedian(rates)]))[0] if np.isfinite(rates).any() else None}


def _heat(step: np.ndarray, relative: np.ndarray) -> Data:
    """Means of load over mean load, in stretches of updates. step: [S]; relative: [S, E]."""
    apart = float(np.median(np.diff(step))) if len(step) > 1 else 1.0
    low, high = float(step[0]) - apart / 2, float(step[-1]) + apart / 2
    n = int(min(HEAT_COLUMNS, max(1, round((high - low) / apart))))
    edges = np.linspace(low, high, n + 1)
    column = np.clip(np.searchsorted(edges, step, side="right") - 1, 0, n - 1)
    sums, counts = np.zeros((n, relative.shape[1])), np.zeros((n, 1))
    known = np.isfinite(relative).all(1)
    np.add.at(sums, column[known], relative[known])
    np.add.at(counts, column[known], 1)
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return {"edges": numbers(edges), "rows": [numbers(row, 3) for row in means.T]}


def n_experts(run: Run) -> int | None:
    """Experts of a MoE layer; None where there is no such layer, or nothing says."""
    if run.log is not None and run.log.n_layers:
        return run.log.n_experts
    value = run.settings.get("moe.experts")
    return value if isinstance(value, int) and not is_dense(run) else None


def _even(run: Run, layer: int) -> Data:
    """Heat map and figures of balance of a MoE layer, by the log, else by the metrics; none with one expert."""
    out: Data = {}
    if n_experts(run) == 1:
        return out
    if run.log is not None and len(run.log.step):
        share = routing.load_share(run.log.load[:, layer])
        out["heat"] = _heat(run.log.step, share * run.log.n_experts)
        x, even = run.log.step, routing.balance(run.log.load[:, layer])
        columns = even._asdict()
    elif run.metrics is not None:
        x = run.metrics.columns["update"]
        columns = {name: run.metrics.column(f"moe{layer}_{name}") for name in routing.Balance._fields}
    else:
        return out
    for name, values in columns.items():
        out[name] = series(x, values, 5)
        tail = values[-max(1, len(values) // 10):]
        out["end_" + name] = numbers(np.array([np.nanmean(tail)]), 5)[0] if np.isfinite(tail).any() else None
    return out


def _layer_series(run: Run, layer: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column moe<m>_<name> of the metrics, else the log's; empty where there is neither."""
    if run.metrics is not None and np.isfinite(run.metrics.column(f"moe{layer}_{name}")).any():
        return run.metrics.columns["update"], run.metrics.column(f"moe{layer}_{name}")
    if run.log is not None and name == "drop_rate":
        routed = run.log.load[:, layer].sum(-1)
        return run.log.step, np.divide(run.log.terms["dropped"][:, layer], routed,
                                       out=np.full(len(routed), np.nan), where=routed > 0)
    if run.log is not None and name in run.log.terms:
        return run.log.step, run.log.terms[name][:, layer]
    return np.zeros(0), np.zeros(0)


def _fluctuation(run: Run, layer: int, progress: Progress) -> Data | None:
    log = run.log
    if log is None or len(log.probe_step) < 2 or log.n_experts < 2:
        return None
    counts = routing.fluctuation_counts(log, layer, progress.tick)
    if not counts.sum():
        return None
    total = max(run.updates_done, 1)
    y = np.cumsum(counts) / counts.sum()
    shares = {str(percent): 100 * routing.share_after(counts, log.probe_step, total, percent)
              for percent in routing.BASE_FLUCTUATION}
    return {"x": numbers(np.concatenate([[0.0], 100 * log.probe_step / total, [100.0]])),
            "y": numbers(100 * np.append(y, y[-1])), "shares": shares, "tokens": int(counts.sum()),
            "probes": len(log.probe_step)}


def _agreement(run: Run, layer: int, progress: Progress) -> Data | None:
    update, values = run.training_agreement(layer)
    train, probe = series(update, values), None
    end = numbers(100 * np.array([values[-max(1, len(values) // 10):].mean()]), 5)[0] if len(values) else None
    if run.log is not None:
        rows = np.flatnonzero(run.log.probe_stage != 2)
        values = routing.probe_agreement(run.log, layer, rows, progress.tick)
        probe = series(run.log.probe_step[rows], values)
    return {"train": train, "probe": probe, "end": end} if train or probe else None


def _layer(run: Run, layer: int, progress: Progress) -> Data:
    out = _even(run, layer)
    out["fluctuation"] = _fluctuation(run, layer, progress)
    out["agreement"] = _agreement(run, layer, progress)
    for key, name in (("gate_mean", "gate_mean"), ("drop", "drop_rate")):
        x, y = _layer_series(run, layer, name)
        out[key] = series(x, 100 * y if key == "drop" else y)
        tail = y[-max(1, len(y) // 10):]
        known = tail[np.isfinite(tail)]
        out["end_" + key] = float(f"{known.mean() * (100 if key == 'drop' else 1):.5g}") if len(known) else None
    return out


def _ends(run: Run) -> Data:
    """Figures of the end of a run for the table of runs."""
    out: Data = {}
    if run.metrics is None:
        return out
    loss = run.metrics.column("loss")
    known = loss[np.isfinite(loss)]
    if len(known):
        out["train"] = float(f"{known[-max(1, len(known) // 50):].mean():.6g}")
    valid = run.metrics.column("valid_loss")
    rows = np.flatnonzero(np.isfinite(valid))
    if len(rows):
        best = rows[np.argmin(valid[rows])]
        out |= {"valid": float(valid[rows[-1]]), "best": float(valid[best])}
    tokens = run.metrics.column("tokens")
    if np.isfinite(tokens[-1:]).any():
        out["tokens"] = int(tokens[-1])
    return out


def _evaluations(run: Run) -> Data:
    """Perplexities of the splits by `stablemoe evaluate --json`, kept as RUN/<split>.json."""
    out = {}
    for split in ("valid", "test"):
        try:
            value = json.loads((run.path / f"{split}.json").read_text(encoding="utf-8"))["perplexity"]
            out[split] = float(f"{float(value):.8g}")
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {f"perplexity_{split}": value for split, value in out.items() if math.isfinite(value)}


def is_dense(run: Run) -> bool:
    """Whether a run has no MoE layer, and so nothing of routing."""
    return run.settings.get("moe.layers") == 0


def state_notes(run: Run) -> list[str]:
    """What a reader has to know of a run before its figures: damage, incompleteness, empty stretches."""
    notes = [note for note in run.notes if not re.match(r"corpus .* not found", note)
             and not (is_dense(run) and note.startswith("no routing files"))]
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
        "name": name, "method": "dense" if is_dense(run) else str(method), "settings": run.settings,
        "updates": run.updates_done, "planned": run.updates_planned, "switch": run.switch,
        "n_layers": run.n_layers, "n_experts": n_experts(run),
        "ends": _ends(run) | _evaluations(run), "losses": _losses(run), "time": _time(run), "layers": layers,
        "baselines": None if baselines is None else {"unigram": baselines.unigram, "bigram": baselines.bigram},
    }
    data |= deep.collect(plan, layers, notes, progress)
    known = [] if run.log is not None and run.log.n_experts > 1 else notes  # said already
    vocabulary = deep.vocabulary_of(run, known) if run.log is not None and run.log.gates else None
    data["skips"] = skips.collect(run, series, vocabulary)
    data["notes"] = notes
    progress.end()
    return data
