"""Colours and words of figures, for all that draws them: Matplotlib, the report page, drawings of patches.

The standard library alone. Colours are after those of Okabe and Ito, which differ for every kind of colour
vision; somewhat darker, so that texts in them can be read on white, and lighter ones for a dark ground.
"""

from __future__ import annotations

from typing import Any

LINES = {"light": ("#0072b2", "#d55e00", "#009e73", "#b85c93", "#c58a00", "#3aa0dc", "#5f6773"),
         "dark": ("#5cb3f0", "#ff8d52", "#34c79f", "#e59ccb", "#efc24d", "#9aa8ff", "#b6bdc9")}
"""Lines, experts, MoE layers and runs, in this order."""

EIGHTH = {"light": "#7a5c2e", "dark": "#d9d36a"}
"""One more where there are eight experts."""

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, SLATE = LINES["light"]
INK, GREY, FAINT = "#222222", "#6b6b6b", "#e4e4e4"

LOAD = {"light": ("#2c5697", "#f6f6f4", "#b35806"), "dark": ("#60a5ee", "#1d2229", "#f59e42")}
"""Load over mean load: none, even, and the most."""

PHASES = {"data": "#b9b4d8", "embedding": "#a6cee3", "norm": "#7fb2d6", "linear": "#3f87bd", "attention": "#14568f",
          "head": "#7d8cc4", "route": "#f7d488", "plan": "#f2b84b", "pack": "#f0975a", "transfer": "#d95f02",
          "experts": "#9c4a1a", "combine": "#c98a5e", "reduction": "#7cc7a2", "optimizer": "#1f8a5f",
          "other": "#9aa1ab"}
"""Phases of an update in the order of bars: blue the backbone, orange what experts take, green the parameters."""

STYLE = {
    "figure.dpi": 150, "savefig.dpi": 150, "font.family": "DejaVu Sans", "font.size": 10,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.8,
    "lines.linewidth": 1.8, "legend.frameon": False, "text.parse_math": False, "svg.hashsalt": "stablemoe",
}
"""Settings of Matplotlib."""

LABELS = {
    "update": "update", "loss": "nats per token", "unigram": "unigram counts", "bigram": "bigram counts",
    "loads": "Load of each expert", "heat": "load / mean load", "fluctuation": "Tokens that change expert no more",
    "training": "share of the training", "published": "BASE, as published",
    "agreement": "tokens with the same expert",
}
"""Titles, and names of axes and lines, that more than one figure has."""


def for_page() -> dict[str, Any]:
    """What the scripts of the report need of this file."""
    return {"lines": LINES, "eighth": EIGHTH, "load": LOAD, "phases": PHASES, "labels": LABELS}
