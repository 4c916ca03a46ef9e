"""Figures of a run, as PNG files that come out the same every time.

Every figure is a function of a Run and a path; it raises NothingToShow where the
run has not what it needs. Colours are those of Okabe and Ito, which differ for
every kind of colour vision, and lines carry their names instead of a legend.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.patheffects as patheffects
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from analysis import routing
from analysis.run import Metrics, Run

BLUE, ORANGE, GREEN, VERMILION, SKY, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
LAYER_COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY)
INK, GREY, FAINT = "#222222", "#6b6b6b", "#e4e4e4"
STYLE = {
    "figure.dpi": 150, "savefig.dpi": 150, "font.family": "DejaVu Sans", "font.size": 10,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.8,
    "lines.linewidth": 1.8, "legend.frameon": False, "text.parse_math": False,
}
HEAT_COLUMNS = 400
LABEL_POINTS = 9


class NothingToShow(Exception):
    """The run does not have what a figure needs; the message says what is missing."""


def smooth(values: np.ndarray, window: int, breaks: np.ndarray | None = None) -> np.ndarray:
    """Centred running mean that leaves NaN out and does not look across breaks.

    The window narrows towards the beginning of a stretch, where losses fall fast.
    values: [n]; window: rows, made odd; breaks: rows at which a new stretch begins.
    Returns [n]; NaN where the window has no value or the value itself is missing.
    """
    half = max(0, window // 2)
    out = np.full(len(values), np.nan)
    edges = [0, *(int(b) for b in (breaks if breaks is not None else ())), len(values)]
    for first, last in zip(edges[:-1], edges[1:]):
        part = values[first:last]
        known = np.isfinite(part)
        sums = np.concatenate([[0.0], np.cumsum(np.where(known, part, 0.0))])
        counts = np.concatenate([[0], np.cumsum(known)])
        row = np.arange(len(part))
        reach = np.minimum(half, row)
        low, high = row - reach, np.minimum(row + reach + 1, len(part))
        n = counts[high] - counts[low]
        mean = np.divide(sums[high] - sums[low], n, out=np.full(len(part), np.nan), where=n > 0)
        out[first:last] = np.where(known, mean, np.nan)
    return out


def smoothing_window(n: int) -> int:
    """Rows to smooth over: a fiftieth of the run, at least 5."""
    return max(5, n // 50) | 1


def heat_columns(step: np.ndarray, values: np.ndarray,
                 limit: int = HEAT_COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """Means of rows over at most `limit` equal stretches of updates, for a heat map.

    step: [S] increasing; values: [S, E]. Returns edges [n + 1] in updates and means [n, E], NaN
    where a stretch has no row.
    """
    apart = float(np.median(np.diff(step))) if len(step) > 1 else 1.0
    low, high = step[0] - apart / 2, step[-1] + apart / 2
    n = int(min(limit, max(1, round((high - low) / apart))))
    edges = np.linspace(low, high, n + 1)
    column = np.clip(np.searchsorted(edges, step, side="right") - 1, 0, n - 1)
    sums, counts = np.zeros((n, values.shape[1])), np.zeros(n)
    np.add.at(sums, column, values)
    np.add.at(counts, column, 1)
    return edges, np.divide(sums, counts[:, None], out=np.full(sums.shape, np.nan), where=counts[:, None] > 0)


def _title(ax: Axes, subject: str, run: Run) -> None:
    """What is shown, and below it, smaller, of which run."""
    ax.set_title(subject, pad=21)
    ax.annotate(run.title(), (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points",
                color=GREY, fontsize=9)


def _layer_colour(layer: int, n_layers: int) -> str:
    """Distinct colours for a few layers, from dark to light by depth for many."""
    if n_layers <= len(LAYER_COLOURS):
        return LAYER_COLOURS[layer]
    return to_hex(matplotlib.colormaps["viridis"](0.78 * layer / (n_layers - 1)))


def _draw_mean(ax: Axes, x: np.ndarray, values: np.ndarray, mean: np.ndarray, colour: str) -> None:
    """Every value lightly, the running mean over it."""
    ax.plot(x, values, color=colour, linewidth=0.7, alpha=0.35)
    ax.plot(x, mean, color=colour, marker="o" if np.isfinite(mean).sum() == 1 else None, markersize=4)


def _updates_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _mark_switch(axes: list[Axes], switch: int | None) -> None:
    """A line where stage 2 begins, named in the first of the axes."""
    if switch is None:
        return
    for ax in axes:
        ax.axvline(switch - 0.5, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
    low, high = axes[0].get_xlim()
    near_end = (switch - low) / (high - low) > 0.7
    axes[0].annotate(f"stage 2 from update {switch:,}: routing frozen", (switch - 0.5, 1.0),
                     xycoords=("data", "axes fraction"), xytext=(-5 if near_end else 5, -2),
                     textcoords="offset points", va="top", ha="right" if near_end else "left", fontsize=9)


def _label_right(ax: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Names of lines beside their right ends, moved apart where they would overlap.

    labels: (y, text, colour). The limits of y must be final.
    """
    low, high = ax.get_ylim()
    box = ax.get_position()
    points = ax.figure.get_size_inches()[1] * 72 * box.height
    known = sorted((label for label in reversed(labels) if np.isfinite(label[0])), key=lambda label: label[0])
    if not known:
        return
    lines = np.array([text.count("\n") + 1 for _, text, _ in known], float)
    height = lines * LABEL_POINTS * 1.3
    at = np.clip(np.array([(y - low) / (high - low) for y, _, _ in known]), 0, 1) * points
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + (height[i] + height[i - 1]) / 2)
    over = at[-1] + height[-1] / 2 - max(points, height.sum())
    for i in range(len(at) - 1, -1, -1):  # push back down what stands out at the top
        top = at[i + 1] - (height[i] + height[i + 1]) / 2 if i + 1 < len(at) else at[-1] - max(0.0, over)
        at[i] = min(at[i], top)
    for y, (_, text, colour) in zip(at, known):
        ax.annotate(text, (1.0, y / points), xycoords="axes fraction", xytext=(6, 0),
                    textcoords="offset points", va="center", ha="left", color=colour, fontsize=LABEL_POINTS,
                    linespacing=1.1)


def _save(figure: Figure, path: Path) -> None:
    """Write the file; under its final name only what is complete."""
    part = path.with_name(path.name + ".part")
    try:
        figure.savefig(part, format="png", metadata={"Software": None})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        plt.close(figure)


def _pad_limits(ax: Axes, low: float, high: float, top: float = 0.08) -> None:
    room = (high - low) or abs(high) or 1.0
    ax.set_ylim(low - 0.05 * room, high + top * room)


def _stage_breaks(stage: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(stage) != 0) + 1


def loss_terms(metrics: Metrics) -> list[tuple[np.ndarray, str, str]]:
    """Values, title and colour of each loss term that is not zero throughout."""
    stage = metrics.column("stage")
    terms = []
    further = [(name, f"Loss term {name}", colour) for name, colour in zip(metrics.further_terms, cycle(LAYER_COLOURS))]
    for name, title, colour in (("balance", "Balance loss", GREEN), ("distill", "Distillation loss", PINK), *further):
        values = metrics.column(name)
        values = np.where((stage == 2) & (values == 0), np.nan, values)  # the terms end with stage 1
        if np.any(values[np.isfinite(values)] != 0):
            terms.append((values, title, colour))
    return terms


def _draw_task_loss(ax: Axes, run: Run, smoothed: np.ndarray) -> list[tuple[float, str, str]]:
    """Training and validation loss, and what counting reaches; returns the labels for the right margin."""
    update, task = run.metrics.columns["update"], run.metrics.column("loss")
    _draw_mean(ax, update, task, smoothed, BLUE)
    end = smoothed[np.isfinite(smoothed)][-1]
    labels = [(float(end), f"training {end:.3f}", BLUE)]
    shown = [task[np.isfinite(task)]]
    valid = run.metrics.column("valid_loss")
    rows = np.flatnonzero(np.isfinite(valid))
    if len(rows):
        ax.plot(update[rows], valid[rows], color=VERMILION, linewidth=1.2, marker="o", markersize=4,
                markerfacecolor="white", markeredgewidth=1.3)
        last = valid[rows[-1]]
        labels.append((float(last), f"validation {last:.3f}\n(perplexity {np.exp(last):.1f})", VERMILION))
        shown.append(valid[rows])
    for name in ("unigram", "bigram") if run.baselines is not None else ():
        value = getattr(run.baselines, name)
        ax.axhline(value, color=GREY, linewidth=1.0, linestyle=(0, (1, 2)))
        labels.append((value, f"{name} counts {value:.3f}", GREY))
        shown.append(np.array([value]))
    everything = np.concatenate(shown)
    _pad_limits(ax, float(everything.min()), float(everything.max()))
    return labels


def _draw_term(ax: Axes, update: np.ndarray, values: np.ndarray, line: np.ndarray, title: str, colour: str) -> None:
    """One loss term, with the last value of its running mean."""
    _draw_mean(ax, update, values, line, colour)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.set_ylim(min(0.0, float(np.nanmin(values))), float(np.nanmax(values)) * 1.08)
    ax.set_ylabel("nats per token" if title.startswith("Dist") else "per token")
    ax.set_title(title, fontsize=10)
    last = np.flatnonzero(np.isfinite(line))[-1]
    ends_early = last + 1 < len(line)
    text = f"{line[last]:.3g}" + (f" at update {int(update[last]):,}" if ends_early else "")
    ax.annotate(text, (update[last], line[last]), xytext=(6, 4 if ends_early else 0), color=colour,
                textcoords="offset points", fontsize=LABEL_POINTS, annotation_clip=False,
                va="bottom" if ends_early else "center")


def losses(run: Run, path: Path) -> None:
    """Task and validation loss over updates; balance and distillation loss below."""
    if run.metrics is None:
        raise NothingToShow("no metrics")
    update, task = run.metrics.columns["update"], run.metrics.column("loss")
    if not np.isfinite(task).any():
        raise NothingToShow("the metrics have no loss")
    breaks = _stage_breaks(run.metrics.column("stage"))
    window = smoothing_window(len(update))
    terms = loss_terms(run.metrics)
    figure, axes = plt.subplots(1 + len(terms), 1, figsize=(9, 4.6 + 1.5 * len(terms)), sharex=True,
                                squeeze=False, layout="constrained", height_ratios=[3.2] + [1.2] * len(terms))
    top, *lower = axes[:, 0]
    labels = _draw_task_loss(top, run, smooth(task, window, breaks))
    top.set_xlim(min(1, update[0]) - 0.5, update[-1] + 0.5)
    top.set_ylabel("cross entropy (nats per token)")
    _title(top, "Loss", run)
    for ax, (values, title, colour) in zip(lower, terms):
        _draw_term(ax, update, values, smooth(values, window, breaks), title, colour)
    axes[-1, 0].set_xlabel(f"update (lines: mean over {window} updates; light: every update)")
    _updates_axis(axes[-1, 0])
    _mark_switch(list(axes[:, 0]), run.switch)
    figure.align_ylabels()
    figure.canvas.draw()
    _label_right(top, labels)
    _save(figure, path)


def _load_lines(run: Run, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """update [n], stage [n], max/mean [n] and cv [n] of a layer, from the log, else from the metrics."""
    if run.log is not None and len(run.log.step):
        even = routing.balance(run.log.load[:, layer])
        return run.log.step, run.log.stage, even.max_over_mean, even.cv
    if run.metrics is not None and f"moe{layer}_max_over_mean" in run.metrics.columns:
        return (run.metrics.columns["update"], run.metrics.column("stage"),
                run.metrics.column(f"moe{layer}_max_over_mean"), run.metrics.column(f"moe{layer}_cv"))
    raise NothingToShow("neither the routing log nor the metrics have loads of this layer")


def _draw_heat(ax: Axes, update: np.ndarray, log: routing.RoutingLog, layer: int) -> None:
    """Load of every expert relative to an even one, over the updates."""
    n_experts = log.n_experts
    edges, relative = heat_columns(update, routing.load_share(log.load[:, layer]) * n_experts)
    highest = max(2.0, float(np.nanquantile(relative, 0.999)))
    mesh = ax.pcolormesh(edges, np.arange(n_experts + 1) - 0.5, relative.T, cmap="PuOr_r",
                         norm=TwoSlopeNorm(1.0, 0.0, highest))
    ax.grid(False)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    ax.invert_yaxis()
    ax.set_ylabel("expert")
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.015, aspect=22)
    middle = 1 + (highest - 1) / 2
    beyond = " or more" if np.nanmax(relative) > highest else ""
    bar.set_ticks([0, 0.5, 1, middle, highest],
                  labels=["0: none", "0.5", f"1: even ({100 / n_experts:.3g} %)", f"{middle:.2g}",
                          f"{highest:.2g}{beyond}"])
    bar.set_label("load / mean load")
    bar.outline.set_visible(False)


def load(run: Run, layer: int, path: Path) -> None:
    """Load per expert of one MoE layer: heat map, max/mean and coefficient of variation."""
    update, stage, fullest, cv = _load_lines(run, layer)
    if not np.isfinite(fullest).any():
        raise NothingToShow("no token was routed yet")
    heat = run.log is not None and len(run.log.step) > 0
    figure, axes = plt.subplots(2 + heat, 1, figsize=(9, 4.2 + 2.8 * heat), sharex=True, layout="constrained",
                                height_ratios=[2.6] * heat + [1, 1])
    if heat:
        _draw_heat(axes[0], update, run.log, layer)
    window = smoothing_window(len(update))
    breaks = _stage_breaks(stage)
    labels = []
    for ax, values, colour, name, even in ((axes[-2], fullest, VERMILION, "max / mean", 1.0),
                                           (axes[-1], cv, BLUE, "coefficient\nof variation", 0.0)):
        line = smooth(values, window, breaks)
        _draw_mean(ax, update, values, line, colour)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.set_ylim(even, float(np.nanmax(values)) + 0.08 * (float(np.nanmax(values)) - even) + 1e-6)
        ax.set_ylabel(name)
        known = line[np.isfinite(line)]
        labels.append((ax, float(known[-1]), f"{known[-1]:.2f}", colour))
    axes[0].set_xlim(min(1, update[0]) - 0.5, update[-1] + 0.5)
    _title(axes[0], f"Load of the experts, MoE layer {layer}", run)
    axes[-1].set_xlabel(f"update (lines: mean over {window} records; axes begin at an even load)")
    _updates_axis(axes[-1])
    _mark_switch([axes[-2], axes[-1]], run.switch)
    if heat and run.switch is not None:
        axes[0].axvline(run.switch - 0.5, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    figure.align_ylabels()
    figure.canvas.draw()
    for ax, y, text, colour in labels:
        _label_right(ax, [(y, text, colour)])
    _save(figure, path)


def _layer_names(n: int) -> list[str]:
    return ["this run"] if n == 1 else [f"MoE layer {layer}" for layer in range(n)]


def fluctuation(run: Run, path: Path) -> None:
    """Cumulative share of tokens against their last fluctuation step, a line per MoE layer."""
    log = run.log
    if log is None or not log.n_layers:
        raise NothingToShow("no routing log, or no MoE layer")
    if len(log.probe_step) < 2:
        raise NothingToShow(f"{len(log.probe_step)} of the 2 probes that a comparison needs")
    total = max(run.updates_done, 1)
    figure, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
    labels = []
    for layer, name in enumerate(_layer_names(log.n_layers)):
        last = routing.layer_last_fluctuation(log, layer)
        if not len(last):
            continue
        x, y = routing.fluctuation_curve(last, log.probe_step, total)
        colour = _layer_colour(layer, log.n_layers)
        ax.step(np.append(x, 1.0), np.append(y, y[-1]), where="post", color=colour)
        labels.append((float(y[-2] if len(y) > 1 else y[-1]), name, colour))
    if not labels:
        plt.close(figure)
        raise NothingToShow("the probes hold no choice of an expert")
    x = np.array(list(routing.BASE_FLUCTUATION)) / 100
    y = 1 - np.array(list(routing.BASE_FLUCTUATION.values())) / 100
    ax.plot(x, y, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)), marker="D", markersize=5, zorder=3)
    name = ax.annotate("BASE, as published", (x[1], y[1]), xytext=(0, -9), textcoords="offset points",
                       color=GREY, fontsize=9, va="top", ha="left", zorder=4)
    name.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.set_xlabel(f"last fluctuation step, share of the training ({total:,} updates)")
    ax.set_ylabel("tokens that change expert no more")
    _title(ax, "Routing fluctuation", run)
    if run.switch is not None:
        _mark_switch_share(ax, run.switch, total)
    figure.canvas.draw()
    _label_right(ax, labels)
    _save(figure, path)


def _mark_switch_share(ax: Axes, switch: int, total: int) -> None:
    at = (switch - 1) / total
    ax.axvline(at, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
    right = at > 0.7
    ax.annotate(f"stage 2 from {100 * at:.3g} %: routing frozen", (at, 0.0),
                xycoords=("data", "axes fraction"), xytext=(-5 if right else 5, 5),
                textcoords="offset points", va="bottom", ha="right" if right else "left", fontsize=9)


def agreement(run: Run, path: Path) -> None:
    """Agreement of the learned and the distilled router over stage 1, a line per MoE layer."""
    figure, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
    labels: list[tuple[float, str, str]] = []
    has_probe = False
    last_update = 1.0
    for layer, name in enumerate(_layer_names(run.n_layers)):
        colour = _layer_colour(layer, run.n_layers)
        update, values = run.training_agreement(layer)
        if len(update):
            line = smooth(values, smoothing_window(len(values)))
            _draw_mean(ax, update, values, line, colour)
            labels.append((float(line[-1]), f"training tokens {100 * line[-1]:.1f} %" if run.n_layers == 1
                           else f"{name} {100 * line[-1]:.1f} %", colour))
            last_update = max(last_update, float(update[-1]))
        steps, values = run.probe_agreement(layer)
        if len(steps):
            has_probe = True
            ax.plot(steps, values, color=colour if run.n_layers > 1 else VERMILION, linewidth=1.0, marker="o",
                    linestyle=(0, (1, 2)), markersize=4.5, markerfacecolor="white", markeredgewidth=1.3)
            if run.n_layers == 1:
                labels.append((float(values[-1]), f"probe, validation {100 * values[-1]:.1f} %", VERMILION))
            elif not len(update):
                labels.append((float(values[-1]), f"{name} {100 * values[-1]:.1f} %", colour))
            last_update = max(last_update, float(steps[-1]))
    if not labels:
        plt.close(figure)
        raise NothingToShow("no update of stage 1 with both a learned and a distilled choice")
    ax.set_ylim(0, 1.02)
    ax.set_xlim(0, last_update + 0.5)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.set_ylabel("tokens with the same expert")
    points = "; circles: probe of validation tokens" if has_probe and run.n_layers > 1 else ""
    ax.set_xlabel(f"update of stage 1 (lines: training tokens{points})" if points else "update of stage 1")
    _title(ax, "Agreement of learned and distilled router", run)
    _updates_axis(ax)
    figure.canvas.draw()
    _label_right(ax, labels)
    _save(figure, path)


def draw_all(run: Run, directory: Path) -> tuple[list[Path], list[str]]:
    """Draw every figure that the run has data for.

    Returns the files written, and a line for each figure that was not made. Raises
    OSError where the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[str, Callable[[Path], None]]] = [("losses.png", lambda path: losses(run, path))]
    for layer in range(run.n_layers):
        jobs.append((f"load-moe{layer}.png", lambda path, layer=layer: load(run, layer, path)))
    if run.n_layers:
        jobs += [("fluctuation.png", lambda path: fluctuation(run, path)),
                 ("agreement.png", lambda path: agreement(run, path))]
    written, skipped = [], []
    for name, draw in jobs:
        with plt.style.context(["default", STYLE]):
            try:
                draw(directory / name)
                written.append(directory / name)
            except NothingToShow as reason:
                skipped.append(f"{name}: {reason}")
    return written, skipped
