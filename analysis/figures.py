"""Figures of a run, as PNG files that come out the same every time.

Every figure is a function of a Run and a path; it raises NothingToShow where the
run has not what it needs. Numbers are those of analysis.series, colours and words
those of analysis.look, as in the report page; lines carry their names instead of a legend.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.patheffects as patheffects
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from analysis import series
from analysis.look import BLUE, GREY, INK, LABELS, LINES, LOAD, STYLE, VERMILION
from analysis.run import Run

LAYER_COLOURS = LINES["light"][:6]
LABEL_POINTS = 9


class NothingToShow(Exception):
    """The run does not have what a figure needs; the message says what is missing."""


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


def _mark_switch(axes: list[Axes], run: Run) -> None:
    """A line where stage 2 begins, named in the first of the axes."""
    at = series.switch_update(run)
    if at is None:
        return
    for ax in axes:
        ax.axvline(at, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
    low, high = axes[0].get_xlim()
    near_end = (at - low) / (high - low) > 0.7
    axes[0].annotate(f"stage 2 from update {run.switch:,}: routing frozen", (at, 1.0),
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


def _draw_task_loss(ax: Axes, run: Run, line: series.Line) -> list[tuple[float, str, str]]:
    """Training and validation loss, and what counting reaches; returns the labels for the right margin."""
    smoothed = line.mean()
    _draw_mean(ax, line.x, line.y, smoothed, BLUE)
    labels = [(float(smoothed[np.isfinite(smoothed)][-1]), f"training {line.end:.3f}", BLUE)]
    shown = [line.y[np.isfinite(line.y)]]
    valid = series.valid_loss(run)
    if valid.known:
        ax.plot(valid.x, valid.y, color=VERMILION, linewidth=1.2, marker="o", markersize=4,
                markerfacecolor="white", markeredgewidth=1.3)
        labels.append((valid.end, f"validation {valid.end:.3f}\n({series.quality(run, 1)})", VERMILION))
        shown.append(valid.y)
    for name in ("unigram", "bigram") if run.baselines is not None else ():
        value = getattr(run.baselines, name)
        ax.axhline(value, color=GREY, linewidth=1.0, linestyle=(0, (1, 2)))
        labels.append((value, f"{LABELS[name]} {value:.3f}", GREY))
        shown.append(np.array([value]))
    everything = np.concatenate(shown)
    _pad_limits(ax, float(everything.min()), float(everything.max()))
    return labels


def _draw_term(ax: Axes, term: series.Term) -> None:
    """One loss term, with its end."""
    update, values, line, colour = term.line.x, term.line.y, term.line.mean(), LAYER_COLOURS[term.colour]
    _draw_mean(ax, update, values, line, colour)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.set_ylim(min(0.0, float(np.nanmin(values))), float(np.nanmax(values)) * 1.08)
    ax.set_ylabel(term.unit)
    ax.set_title(term.title, fontsize=10)
    last = np.flatnonzero(np.isfinite(line))[-1]
    ends_early = last + 1 < len(line)
    text = f"{term.line.end:.3g}" + (f" at update {int(update[last]):,}" if ends_early else "")
    ax.annotate(text, (update[last], line[last]), xytext=(6, 4 if ends_early else 0), color=colour,
                textcoords="offset points", fontsize=LABEL_POINTS, annotation_clip=False,
                va="bottom" if ends_early else "center")


def _said(line: series.Line, of: str) -> str:
    """What the light and the full line are, and the number beside it. of: what a point of the line is."""
    rows = series.smoothing_window(len(line.y))
    return f"lines: mean over {rows} {of}; light: every one; numbers: mean of the last 1/{line.tail}"


def losses(run: Run, path: Path) -> None:
    """Task and validation loss over updates; balance and distillation loss below."""
    if run.metrics is None:
        raise NothingToShow("no metrics")
    line, terms = series.loss(run), series.loss_terms(run)
    if not line.known:
        raise NothingToShow("the metrics have no loss")
    figure, axes = plt.subplots(1 + len(terms), 1, figsize=(9, 4.6 + 1.5 * len(terms)), sharex=True,
                                squeeze=False, layout="constrained", height_ratios=[3.2] + [1.2] * len(terms))
    top, *lower = axes[:, 0]
    labels = _draw_task_loss(top, run, line)
    top.set_xlim(min(1, line.x[0]) - 0.5, line.x[-1] + 0.5)
    top.set_ylabel(f"cross entropy (nats per {run.item})")
    _title(top, "Loss", run)
    for ax, term in zip(lower, terms):
        _draw_term(ax, term)
    axes[-1, 0].set_xlabel(f"update ({_said(line, 'updates')})")
    _updates_axis(axes[-1, 0])
    _mark_switch(list(axes[:, 0]), run)
    figure.align_ylabels()
    figure.canvas.draw()
    _label_right(top, labels)
    _save(figure, path)


def _draw_heat(ax: Axes, heat: series.Heat) -> None:
    """Load of every expert relative to an even one, over the updates."""
    n_experts, highest = heat.relative.shape[1], heat.highest
    mesh = ax.pcolormesh(heat.edges, np.arange(n_experts + 1) - 0.5, heat.relative.T,
                         cmap=LinearSegmentedColormap.from_list("load", LOAD["light"]),
                         norm=TwoSlopeNorm(1.0, 0.0, highest))
    ax.grid(False)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    ax.invert_yaxis()
    ax.set_ylabel("expert")
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.015, aspect=22)
    middle = 1 + (highest - 1) / 2
    beyond = " or more" if np.nanmax(heat.relative) > highest else ""
    bar.set_ticks([0, 0.5, 1, middle, highest],
                  labels=["0: none", "0.5", f"1: even ({100 / n_experts:.3g} %)", f"{middle:.2g}",
                          f"{highest:.2g}{beyond}"])
    bar.set_label(LABELS["heat"])
    bar.outline.set_visible(False)


def load(run: Run, layer: int, path: Path) -> None:
    """Load per expert of one MoE layer: heat map, max/mean and coefficient of variation."""
    even, heat = series.balance(run, layer), series.heat(run, layer)
    measures = series.BALANCE[:2]
    if not even:
        raise NothingToShow("neither the routing log nor the metrics have loads of this layer")
    if not even[measures[0].key].known:
        raise NothingToShow("no token was routed yet")
    first = even[measures[0].key]
    figure, axes = plt.subplots(2 + bool(heat), 1, figsize=(9, 4.2 + 2.8 * bool(heat)), sharex=True,
                                layout="constrained", height_ratios=[2.6] * bool(heat) + [1, 1])
    if heat:
        _draw_heat(axes[0], heat)
    labels = []
    for ax, measure, colour in zip(axes[-2:], measures, (VERMILION, BLUE)):
        line = even[measure.key]
        mean, top = line.mean(), float(np.nanmax(line.y))
        _draw_mean(ax, line.x, line.y, mean, colour)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.set_ylim(measure.even, top + 0.08 * (top - measure.even) + 1e-6)
        ax.set_ylabel(measure.label.replace(" of ", "\nof "))
        labels.append((ax, float(mean[np.isfinite(mean)][-1]), f"{line.end:.2f}", colour))
    axes[0].set_xlim(min(1, first.x[0]) - 0.5, first.x[-1] + 0.5)
    _title(axes[0], f"{LABELS['loads']}, MoE layer {layer}", run)
    axes[-1].set_xlabel(f"update\n({_said(first, 'records')}; axes begin at an even load)")
    _updates_axis(axes[-1])
    _mark_switch([axes[-2], axes[-1]], run)
    if heat and run.switch is not None:
        axes[0].axvline(series.switch_update(run), color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    figure.align_ylabels()
    figure.canvas.draw()
    for ax, y, text, colour in labels:
        _label_right(ax, [(y, text, colour)])
    _save(figure, path)


def _layer_names(n: int) -> list[str]:
    return ["this run"] if n == 1 else [f"MoE layer {layer}" for layer in range(n)]


def _draw_published(ax: Axes) -> None:
    """The figures of the StableMoE paper for BASE."""
    x, y = series.published_fluctuation()
    ax.plot(x, y, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)), marker="D", markersize=5, zorder=3)
    name = ax.annotate(LABELS["published"], (x[1], y[1]), xytext=(0, -9), textcoords="offset points",
                       color=GREY, fontsize=9, va="top", ha="left", zorder=4)
    name.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


def fluctuation(run: Run, path: Path) -> None:
    """Cumulative share of tokens against their last fluctuation step, a line per MoE layer."""
    log = run.log
    if log is None or not log.n_layers:
        raise NothingToShow("no routing log, or no MoE layer")
    if len(log.probe_step) < 2:
        raise NothingToShow(f"{len(log.probe_step)} of the 2 probes that a comparison needs")
    found = [series.fluctuation(log, layer, run.updates_done) for layer in range(log.n_layers)]
    if not any(found):
        raise NothingToShow("the probes hold no choice of an expert")
    figure, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
    labels = []
    for layer, (name, curve) in enumerate(zip(_layer_names(log.n_layers), found)):
        if curve is not None:
            colour = _layer_colour(layer, log.n_layers)
            ax.step(curve.x, curve.y, where="post", color=colour)
            labels.append((float(curve.y[-3]), name, colour))  # before the last probe, with which all tokens rest
    _draw_published(ax)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.set_xlabel(f"last fluctuation step, {LABELS['training']} ({max(run.updates_done, 1):,} updates)")
    ax.set_ylabel(LABELS["fluctuation"].lower())
    _title(ax, "Routing fluctuation", run)
    _mark_switch_share(ax, series.switch_share(run))
    figure.canvas.draw()
    _label_right(ax, labels)
    _save(figure, path)


def _mark_switch_share(ax: Axes, at: float | None) -> None:
    if at is None:
        return
    ax.axvline(at, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
    right = at > 0.7
    ax.annotate(f"stage 2 from {100 * at:.3g} %: routing frozen", (at, 0.0),
                xycoords=("data", "axes fraction"), xytext=(-5 if right else 5, 5),
                textcoords="offset points", va="bottom", ha="right" if right else "left", fontsize=9)


def _draw_agreement(ax: Axes, found: series.Agreement, name: str | None, colour: str) -> list[tuple[float, str, str]]:
    """Both lines of a layer; name: None where it is the only one. Returns the labels for the right margin."""
    labels = []
    train, probe = found
    if train.known:
        mean = train.mean()
        _draw_mean(ax, train.x, train.y, mean, colour)
        labels.append((float(mean[-1]), f"{name or 'training tokens'} {100 * train.end:.1f} %", colour))
    if probe.known:
        ax.plot(probe.x, probe.y, color=colour if name else VERMILION, linewidth=1.0, marker="o",
                linestyle=(0, (1, 2)), markersize=4.5, markerfacecolor="white", markeredgewidth=1.3)
        if not name:
            labels.append((probe.end, f"probe, validation {100 * probe.end:.1f} %", VERMILION))
        elif not train.known:
            labels.append((probe.end, f"{name} {100 * probe.end:.1f} %", colour))
    return labels


def agreement(run: Run, path: Path) -> None:
    """Agreement of the learned and the distilled router over stage 1, a line per MoE layer."""
    found = [series.agreement(run, layer) for layer in range(run.n_layers)]
    lines = [line for pair in found for line in pair if line.known]
    if not lines:
        raise NothingToShow("no update of stage 1 with both a learned and a distilled choice")
    figure, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
    labels: list[tuple[float, str, str]] = []
    for layer, (name, pair) in enumerate(zip(_layer_names(run.n_layers), found)):
        labels += _draw_agreement(ax, pair, name if run.n_layers > 1 else None, _layer_colour(layer, run.n_layers))
    ax.set_ylim(0, 1.02)
    ax.set_xlim(0, max(1.0, *(float(line.x[-1]) for line in lines)) + 0.5)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.set_ylabel(LABELS["agreement"])
    points = run.n_layers > 1 and any(pair.probe.known for pair in found)
    ax.set_xlabel("update of stage 1" + (" (lines: training tokens; circles: probe of validation tokens)" if points
                                         else ""))
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
