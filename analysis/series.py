"""What figures show of a run, as numbers: the static figures, the report page and the summary all take it from here.

NumPy arrays; nothing is drawn, thinned or rounded. Letters in shapes are those of analysis.routing. Shares are
between 0 and 1.
"""

from __future__ import annotations

from itertools import cycle
from typing import NamedTuple

import numpy as np

from analysis import routing
from analysis.counts import Tick
from analysis.run import Run

SMOOTHING = (0.02, 0.08)
"""Running means are over these shares of a line; where there is no choice, over the first."""

HEAT_COLUMNS = 400
"""Stretches of updates in a heat map of loads."""


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


def smoothing_window(n: int, share: float = SMOOTHING[0]) -> int:
    """Rows to smooth over: a share of the line, at least 5."""
    return max(5, int(n * share)) | 1


class Line(NamedTuple):
    """A line over updates."""

    x: np.ndarray
    """[n] update."""
    y: np.ndarray
    """[n]; NaN where a value is missing."""
    breaks: np.ndarray | None = None
    """Rows at which the second stage begins, across which nothing is smoothed."""
    tail: int = 10
    """The end of the line is its last 1/tail."""

    @property
    def known(self) -> bool:
        """Whether it has a value at all."""
        return bool(np.isfinite(self.y).any())

    def mean(self, share: float = SMOOTHING[0]) -> np.ndarray:
        """[n] running mean."""
        return smooth(self.y, smoothing_window(len(self.y), share), self.breaks)

    @property
    def end(self) -> float:
        """Mean of the last 1/tail of the values; NaN where there is none."""
        known = self.y[np.isfinite(self.y)]
        return float(known[-max(1, len(known) // self.tail):].mean()) if len(known) else float("nan")


def _breaks(stage: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(np.nan_to_num(stage)) != 0) + 1


def _of_metrics(run: Run, name: str, tail: int = 10) -> Line:
    """A column of metrics.csv; empty where there is no such file."""
    if run.metrics is None:
        return Line(np.zeros(0), np.zeros(0), None, tail)
    return Line(run.metrics.columns["update"], run.metrics.column(name), _breaks(run.metrics.column("stage")), tail)


# ---- losses ----


def loss(run: Run) -> Line:
    """Task loss of the updates, nats per token; its end is the last fiftieth."""
    return _of_metrics(run, "loss", 50)


def valid_loss(run: Run) -> Line:
    """Validation loss, only where an evaluation was; its end is the last one."""
    line = _of_metrics(run, "valid_loss")
    rows = np.flatnonzero(np.isfinite(line.y))
    return Line(line.x[rows], line.y[rows], None, max(1, len(rows)))


class Term(NamedTuple):
    """A figure of the updates besides the loss."""

    key: str
    title: str
    unit: str
    colour: int
    """Place in look.LINES."""
    line: Line


def loss_terms(run: Run) -> list[Term]:
    """Each loss term that is not zero throughout."""
    if run.metrics is None:
        return []
    named = [("balance", "balance", "Balance loss", f"per {run.item}", 2),
             ("distill", "distill", "Distillation loss", f"nats per {run.item}", 3)]
    named += [(name, f"term:{name}", f"Loss term {name}", f"per {run.item}", colour)
              for name, colour in zip(run.metrics.further_terms, cycle(range(6)))]
    stage, terms = run.metrics.column("stage"), []
    for column, key, title, unit, colour in named:
        line = _of_metrics(run, column, 50)
        values = np.where((stage == 2) & (line.y == 0), np.nan, line.y)  # the terms end with stage 1
        if np.any(values[np.isfinite(values)] != 0):
            terms.append(Term(key, title, unit, colour, line._replace(y=values)))
    return terms


def further(run: Run) -> list[Term]:
    """Shares of rows that ran behind gates, BLEU, and the norm of the gradient."""
    if run.metrics is None:
        return []
    terms = [Term(f"run:{name}", f"Rows that ran behind the gate of {name.replace('_', '/', 1)}", "share", 2,
                  _of_metrics(run, f"{name}_run")) for name in run.metrics.gates]
    terms.append(Term("valid_bleu", "Validation BLEU", "0 to 100", 1, _of_metrics(run, "valid_bleu")))
    terms.append(Term("grad_norm", "Gradient norm", "before clipping", 2, _of_metrics(run, "grad_norm")))
    return [term for term in terms if term.line.known]


class Best(NamedTuple):
    """The lowest validation loss."""

    update: int
    value: float


def best(run: Run) -> Best | None:
    """The best evaluation; None where there was none."""
    line = valid_loss(run)
    if not len(line.y):
        return None
    row = int(np.argmin(line.y))
    return Best(int(line.x[row]), float(line.y[row]))


def accuracy(run: Run) -> Line:
    """Of images: share of each update's batch that is predicted."""
    return _of_metrics(run, "accuracy", 50)


def valid_accuracy(run: Run) -> Line:
    """Of images: share of the validation split that is predicted; of the updates that have one, its end the last."""
    line = _of_metrics(run, "valid_accuracy")
    rows = np.isfinite(line.y)
    return Line(line.x[rows], line.y[rows], None, max(1, int(rows.sum())))


def quality(run: Run, digits: int) -> str:
    """The last evaluation in words: perplexity, of images accuracy."""
    if run.is_images:
        return f"accuracy {100 * valid_accuracy(run).end:.{digits}f} %"
    return f"perplexity {np.exp(valid_loss(run).end):.{digits}f}"


def rate(run: Run) -> Line:
    """Tokens per second, of images images."""
    return _of_metrics(run, "tokens_per_s")


# ---- the second stage ----


def switch_update(run: Run) -> float | None:
    """Where stage 2 begins, on an axis of updates; None: it has not."""
    return None if run.switch is None else run.switch - 0.5


def switch_share(run: Run) -> float | None:
    """The same on an axis of the share of the training."""
    return None if run.switch is None else (run.switch - 1) / max(run.updates_done, 1)


# ---- MoE layers ----


class Measure(NamedTuple):
    """A figure of balance (routing.Balance) and what it is called."""

    key: str
    label: str
    title: str
    even: float | None
    """Where an axis begins: the value of even loads; None: it is the highest."""


BALANCE = (Measure("max_over_mean", "max / mean", "Load of the fullest expert over the mean load", 1.0),
           Measure("cv", "coefficient of variation", "Coefficient of variation of the loads", 0.0),
           Measure("entropy", "entropy", "Entropy of the loads over that of even loads", None),
           Measure("dead", "dead experts", "Experts without a token", 0.0))


def is_dense(run: Run) -> bool:
    """Whether a run has no MoE layer, and so nothing of routing."""
    return run.settings.get("moe.layers") == 0


def n_experts(run: Run) -> int | None:
    """Experts of a MoE layer; None where there is no such layer, or nothing says."""
    if run.log is not None and run.log.n_layers:
        return run.log.n_experts
    value = run.settings.get("moe.experts")
    return value if isinstance(value, int) and not is_dense(run) else None


def balance(run: Run, layer: int) -> dict[str, Line]:
    """Figures of balance by their key, by the log, else by the metrics; nothing with one expert."""
    if n_experts(run) == 1:
        return {}
    if run.log is not None and len(run.log.step):
        even = routing.balance(run.log.load[:, layer])
        breaks = _breaks(run.log.stage)
        return {m.key: Line(run.log.step, getattr(even, m.key), breaks) for m in BALANCE}
    if run.metrics is not None and f"moe{layer}_max_over_mean" in run.metrics.columns:
        return {m.key: _of_metrics(run, f"moe{layer}_{m.key}") for m in BALANCE}
    return {}


class Heat(NamedTuple):
    """Loads over mean load in stretches of updates."""

    edges: np.ndarray
    """[n + 1] updates."""
    relative: np.ndarray
    """[n, E]; NaN where a stretch has no row."""
    highest: float
    """Where the scale of colours ends; a few cells may be beyond."""


def heat_columns(step: np.ndarray, values: np.ndarray,
                 limit: int = HEAT_COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """Means of rows over at most `limit` equal stretches of updates, for a heat map.

    step: [S] increasing; values: [S, E], rows with NaN are left out. Returns edges [n + 1] in updates and means
    [n, E], NaN where a stretch has no row.
    """
    apart = float(np.median(np.diff(step))) if len(step) > 1 else 1.0
    low, high = step[0] - apart / 2, step[-1] + apart / 2
    n = int(min(limit, max(1, round((high - low) / apart))))
    edges = np.linspace(low, high, n + 1)
    column = np.clip(np.searchsorted(edges, step, side="right") - 1, 0, n - 1)
    known = np.isfinite(values).all(1)
    sums, counts = np.zeros((n, values.shape[1])), np.zeros((n, 1))
    np.add.at(sums, column[known], values[known])
    np.add.at(counts, column[known], 1)
    return edges, np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def heat(run: Run, layer: int) -> Heat | None:
    """Load of every expert of a layer over the updates; None where the log has no loads or one expert."""
    if run.log is None or not len(run.log.step) or run.log.n_experts == 1:
        return None
    edges, relative = heat_columns(run.log.step, routing.load_share(run.log.load[:, layer]) * run.log.n_experts)
    known = relative[np.isfinite(relative)]
    return Heat(edges, relative, max(2.0, float(np.quantile(known, 0.999))) if len(known) else 2.0)


def _of_layer(run: Run, layer: int, name: str) -> Line:
    """A column moe<m>_<name> of the metrics, else the log's term; empty where there is neither."""
    line = _of_metrics(run, f"moe{layer}_{name}")
    if line.known or run.log is None or name not in run.log.terms:
        return line
    return Line(run.log.step, run.log.terms[name][:, layer], _breaks(run.log.stage))


def gate(run: Run, layer: int) -> Line:
    """Mean gate of a layer's tokens."""
    return _of_layer(run, layer, "gate_mean")


def drop(run: Run, layer: int) -> Line:
    """Share of the assignments that an expert's capacity turned away."""
    line = _of_metrics(run, f"moe{layer}_drop_rate")
    if line.known or run.log is None:
        return line
    routed = run.log.load[:, layer].sum(-1)
    share = np.divide(run.log.terms["dropped"][:, layer], routed, out=np.full(len(routed), np.nan), where=routed > 0)
    return Line(run.log.step, share, _breaks(run.log.stage))


def local(run: Run, layer: int) -> Line:
    """Share of the rows sent that stay on the node of their lane; empty with one node (moe.nodes)."""
    return _of_metrics(run, f"moe{layer}_local_rate")


class Fluctuation(NamedTuple):
    """How the tokens of a probe come to rest (StableMoE, figure 1)."""

    x: np.ndarray
    """[Q + 2] share of the training, 0 to 1."""
    y: np.ndarray
    """[Q + 2] share of the tokens whose last fluctuation step is at most x."""
    shares: dict[int, float]
    """After so many per cent of the training: share of the tokens whose last fluctuation step is later."""
    tokens: int
    probes: int


def fluctuation(log: routing.RoutingLog | None, layer: int, updates: int,
                tick: Tick | None = None) -> Fluctuation | None:
    """Fluctuation of a layer over a training of so many updates; None where there are fewer than two probes."""
    if log is None or len(log.probe_step) < 2 or log.n_experts < 2:
        return None
    counts, total = routing.fluctuation_counts(log, layer, tick), max(updates, 1)
    if not counts.sum():
        return None
    y = np.cumsum(counts) / counts.sum()
    return Fluctuation(np.concatenate([[0.0], log.probe_step / total, [1.0]]), np.append(y, y[-1]),
                       {percent: routing.share_after(counts, log.probe_step, total, percent)
                        for percent in routing.BASE_FLUCTUATION}, int(counts.sum()), len(log.probe_step))


def published_fluctuation() -> tuple[np.ndarray, np.ndarray]:
    """x and y of a Fluctuation, of BASE in the StableMoE paper."""
    x, y = zip(*routing.BASE_FLUCTUATION.items())
    return np.array(x) / 100, 1 - np.array(y) / 100


class Agreement(NamedTuple):
    """Shares of tokens for which learned and distilled router agree, over stage 1; empty where there are none."""

    train: Line
    """Of the updates' own tokens."""
    probe: Line
    """Of the probe's validation tokens; its end is the last probe."""


def agreement(run: Run, layer: int, tick: Tick | None = None) -> Agreement:
    """Agreement of the routers of a layer."""
    train = Line(*run.training_agreement(layer))
    steps, values = run.probe_agreement(layer, tick)
    return Agreement(train, Line(steps, values, None, max(1, len(values))))
