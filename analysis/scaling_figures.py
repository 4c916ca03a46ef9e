"""Figures of a scaling study and of its forecast, each as PNG and SVG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis import look, scaling_study
from analysis.look import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION

if TYPE_CHECKING:
    from analysis.scaling_forecast import Forecast

STYLE = {**look.STYLE, "font.size": 9.5, "axes.titlesize": 10.5, "axes.labelsize": "medium",
         "xtick.labelsize": "medium", "ytick.labelsize": "medium", "grid.linewidth": 0.8, "lines.linewidth": 1.5,
         "legend.fontsize": 8.5}
# Phases of an update that belong together, from the bottom of the stack to its top.
STACK = (("blocks", ("linear", "attention", "norm", "embedding"), BLUE), ("head and loss", ("head",), SKY),
         ("experts", ("experts",), GREEN), ("routing, packing", ("route", "pack", "combine", "data", "other"), ORANGE),
         ("exchange and waiting", ("plan", "transfer"), VERMILION), ("reduction", ("reduction",), PINK),
         ("optimizer", ("optimizer",), GREY))


def _rank_axis(ax: Axes, ranks: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(ranks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel("ranks")


def _speedup(ax: Axes, study: scaling_study.Study, rows: list[scaling_study.Row]) -> None:
    ranks = np.array([row.ranks for row in rows])
    cores = max(study.cores(point) * point.bench["nodes"] for point in study.points)
    ideal = np.minimum(ranks, max(cores, ranks[0])) / ranks[0]
    ax.plot(ranks, ideal, color=GREY, linestyle=":", linewidth=1.2,
            label=f"ideal on {cores:g} cores" if ranks[-1] > cores else "ideal")
    ax.plot(ranks, [row.speedup for row in rows], color=BLUE, marker="o", label="speed-up")
    for row in rows:
        ax.annotate(f"{100 * row.efficiency:.0f} %", (row.ranks, row.speedup), xytext=(0, 7), ha="center",
                    textcoords="offset points", fontsize=8.5, color=GREY if row.oversubscribed else BLUE)
    _rank_axis(ax, ranks)
    ax.set_ylim(0, 1.25 * max(*ideal, *(row.speedup for row in rows)))
    ax.set_title("Speed-up by tokens/s, with efficiency")
    ax.legend(loc="upper left")


def _phases(ax: Axes, study: scaling_study.Study, rows: list[scaling_study.Row]) -> None:
    bottom = np.zeros(len(rows))
    for name, phases, colour in STACK:
        height = np.array([1e3 * sum(study.middle(row.ranks).phases[p] for p in phases)
                           for row in rows])
        ax.bar(range(len(rows)), height, bottom=bottom, color=colour, width=0.62, label=name)
        bottom += height
    ax.set_xticks(range(len(rows)), [f"{row.ranks}{'*' if row.oversubscribed else ''}" for row in rows])
    ax.set_xlabel("ranks (* more than cores)" if any(row.oversubscribed for row in rows) else "ranks")
    ax.set_ylabel("ms per update, mean over ranks")
    ax.set_title("Where the time of an update goes")
    ax.set_ylim(0, 1.42 * bottom.max())
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], ncols=2, loc="upper left")


def _exchange(ax: Axes, rows: list[scaling_study.Row]) -> None:
    at = np.arange(len(rows))
    ax.bar(at, [1e-6 * row.volume for row in rows], color=SKY, width=0.62)
    ax.set_ylabel("MB per update between ranks")
    ax.set_xticks(at, [str(row.ranks) for row in rows])
    ax.set_xlabel("ranks")
    other = ax.twinx()
    other.spines["right"].set_visible(True)
    other.grid(False)
    other.plot(at, [1e-9 * row.rate for row in rows], color=VERMILION, marker="o")
    other.set_ylabel("GB/s per rank in the exchange, waiting included", color=VERMILION, fontsize=8.5)
    other.set_ylim(bottom=0)
    ax.set_title("Exchange: volume (bars) and rate (line)")


def _imbalance(ax: Axes, rows: list[scaling_study.Row]) -> None:
    at = np.arange(len(rows))
    ax.plot(at, [row.imbalance for row in rows], color=GREEN, marker="o")
    ax.plot(at, [row.high / row.low for row in rows], color=GREY, marker="s", linestyle="--")
    ax.annotate("rows of the busiest rank over the mean", (0.03, 0.93), xycoords="axes fraction", color=GREEN)
    ax.annotate("slowest over fastest repeat", (0.03, 0.86), xycoords="axes fraction", color=GREY)
    ax.set_xticks(at, [str(row.ranks) for row in rows])
    ax.set_xlabel("ranks")
    top = np.nanmax([value for row in rows for value in (row.imbalance, row.high / row.low, 1.1)])
    ax.set_ylim(0.95, 1 + 1.35 * (top - 1))
    ax.set_title("Imbalance")


def _save(figure: Figure, directory: Path, name: str) -> list[Path]:
    written = []
    for end in ("png", "svg"):
        path = directory / f"{name}.{end}"
        part = directory / f".{name}.part.{end}"
        figure.savefig(part, metadata={"Date": None} if end == "svg" else {"Software": None})
        os.replace(part, path)
        written.append(path)
    plt.close(figure)
    return written


def draw_study(study: scaling_study.Study, directory: Path) -> list[Path]:
    """scaling.png and scaling.svg: speed-up, phases, exchange, imbalance of the last stage."""
    rows = scaling_study.table(study)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10.4, 7.6), constrained_layout=True)
        _speedup(axes[0][0], study, rows)
        _phases(axes[0][1], study, rows)
        _exchange(axes[1][0], rows)
        _imbalance(axes[1][1], rows)
        figure.suptitle(f"{study.about['mode'].capitalize()} scaling of {study.about['config']}", x=0.01, ha="left",
                        fontsize=12)
        return _save(figure, directory, "scaling")


def _shares(ax: Axes, forecasts: list[Forecast], title: str) -> None:
    ranks = [forecast.place.ranks for forecast in forecasts]
    parts = (("compute", BLUE, "compute"), ("imbalance", GREEN, "uneven experts"), ("waiting", GREY, "waiting"),
             ("exchange", VERMILION, "exchange"), ("reduction", PINK, "reduction"), ("optimizer", ORANGE, "optimizer"))
    shares = np.array([[getattr(f.time, name) / f.time.total for f in forecasts] for name, _, _ in parts])
    ax.stackplot(ranks, 100 * shares, colors=[colour for _, colour, _ in parts], labels=[text for _, _, text in parts])
    _rank_axis(ax, ranks[::2] if len(ranks) > 8 else ranks)
    ax.set_ylim(0, 100)
    ax.set_xlim(ranks[0], max(ranks[-1], 2))
    ax.set_ylabel("% of the update")
    ax.set_title(title)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], loc="lower left", ncols=2, facecolor="white", frameon=True)


def draw_forecast(strong: list[Forecast], weak: list[Forecast], title: str, directory: Path, name: str) -> list[Path]:
    """<name>.png and .svg: efficiency over ranks, and the shares of an update's time."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), constrained_layout=True)
        for forecasts, colour, text in ((strong, BLUE, "strong: the same batch"), (weak, VERMILION, "weak: batch grows")):
            ranks = [forecast.place.ranks for forecast in forecasts]
            axes[0].plot(ranks, [100 * f.efficiency for f in forecasts], color=colour, marker="o", markersize=4,
                         label=text)
        every = sorted({f.place.ranks for f in strong + weak})
        _rank_axis(axes[0], every[::2] if len(every) > 8 else every)
        axes[0].set_ylim(0, 105)
        axes[0].set_ylabel("efficiency, %")
        axes[0].set_title("Forecast of the efficiency")
        axes[0].legend(loc="lower left")
        _shares(axes[1], strong, "Strong: where the time goes")
        _shares(axes[2], weak, "Weak: where the time goes")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        return _save(figure, directory, name)
