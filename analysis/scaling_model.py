"""A cost model of an update, fitted to a scaling study.

doc/scaling.md has the equations and says how far to trust them. Seconds, bytes and
FLOP throughout; every time is that of the slowest rank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.scaling_study import REAL_BYTES, Point, Study

PRODUCTS = ("linear", "attention", "head", "experts")
PASSES = ("norm", "embedding", "route", "pack", "combine", "data", "other")
COMPUTE = (*PRODUCTS, "passes")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, named as in the output of bench."""

    width: int
    blocks: int
    heads: int
    inner: int
    context: int
    vocabulary: int
    moe_layers: int
    experts: int
    slots: int
    sublayers: int
    moe_inner: int

    @property
    def shared(self) -> int:
        """Parameters of the backbone: embedding, positions, blocks, last norm; routers count for little."""
        c = self.width
        block = 4 * c * c + 4 * c + 2 * c * self.inner + self.inner + c + 4 * c
        return (self.vocabulary + self.context) * c + self.blocks * block + 2 * c

    @property
    def in_experts(self) -> int:
        """Parameters of all experts of all layers."""
        c, f = self.width, self.moe_inner
        return self.moe_layers * self.experts * self.sublayers * (2 * c * f + f + c + 2 * c)


@dataclass(frozen=True)
class Batch:
    """What an update works on."""

    sequences: int
    micro_batches: int
    lanes: int


@dataclass(frozen=True)
class Place:
    """Where the ranks are: R ranks, p of them on each node, which has q cores; G ranks hold every expert once."""

    ranks: int
    per_node: int
    cores: float
    expert_ranks: int

    @property
    def turns(self) -> float:
        """How many ranks take turns on a core."""
        return max(1.0, self.per_node / self.cores)

    @property
    def busy(self) -> float:
        """Share of the node's cores that work beside one rank's own: 0 for one rank, 1 for a full node."""
        return min(1.0, (min(self.per_node, self.cores) - 1) / (self.cores - 1)) if self.cores > 1 else 0.0


@dataclass(frozen=True)
class Network:
    """Messages inside a node and between nodes: latency in s, bandwidth of a rank and of a node in bytes/s."""

    latency_in: float = 2e-6
    bandwidth_in: float = 5e9
    latency_out: float = 2e-6
    bandwidth_out: float = 12.5e9


@dataclass(frozen=True)
class Time:
    """Parts of an update, s."""

    compute: float
    imbalance: float
    exchange: float
    reduction: float
    optimizer: float
    waiting: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.imbalance + self.exchange + self.reduction + self.optimizer + self.waiting


@dataclass(frozen=True)
class Costs:
    """What is fitted."""

    seconds_per_unit: dict[str, float]
    """compute class -> s per unit of work() of one rank that has a node to itself."""
    contention: float
    """A rank on a full node is slower by this share."""
    seconds_per_byte: float
    """Of zeroing and adding up gradients in memory."""
    seconds_per_adam: float
    """Of Adam, per parameter."""
    waiting: float
    """Spread of the ranks' compute time, as a share of it."""
    network: Network
    profile: tuple[float, ...]
    """Rows of each expert over the mean, in order of the experts."""
    packed: bool
    """Experts are placed by load, not in their order."""
    fitted_in: bool = True
    fitted_out: bool = False
    """Whether the study had messages inside a node and between nodes to fit."""
    notes: list[str] = field(default_factory=list, compare=False)


def shape_of(point: Point) -> Shape:
    """Sizes of the model that a run measured."""
    return Shape(**point.bench["model"])


def batch_of(point: Point) -> Batch:
    """The batch that a run measured."""
    return Batch(**point.bench["batch"])


def place_of(study: Study, point: Point, clock: str | None = None) -> Place:
    """Where a run's ranks were; by the processor's clock, its own by default, each has a core of its own."""
    per_node = max(1, round(point.ranks / point.bench["nodes"]))
    cores = study.cores(point) if (clock or point.clock) == "wall" else per_node
    return Place(point.ranks, per_node, cores, point.bench["expert_ranks"])


def shape_of_config(settings: dict[str, Any], vocabulary: int) -> tuple[Shape, Batch]:
    """Sizes of a configuration that was not run."""
    slots = 2 if settings["router.method"] == "gshard" else 1
    model = Shape(settings["model.width"], settings["model.blocks"], settings["model.heads"], settings["model.inner"],
                  settings["model.context"], vocabulary, settings["moe.layers"],
                  settings["moe.experts"] if settings["moe.layers"] else 0, slots, settings["moe.sublayers"],
                  settings["moe.inner"])
    return model, Batch(settings["train.batch_sequences"], settings["train.micro_batches"], settings["train.lanes"])


# ---- the equations ----


def work(shape: Shape, batch: Batch) -> dict[str, float]:
    """Work of an update of all ranks: FLOP of the products, and rows times width of the passes over memory."""
    n, c = batch.sequences * shape.context, shape.width
    return {
        "linear": 6.0 * n * shape.blocks * (4 * c * c + 2 * c * shape.inner),
        "attention": 6.0 * batch.sequences * shape.blocks * c * shape.context * (shape.context + 1),
        "head": 6.0 * n * c * shape.vocabulary,
        "experts": 6.0 * n * shape.slots * shape.moe_layers * shape.sublayers * 2 * c * shape.moe_inner,
        "passes": float(n * c * (shape.blocks + shape.moe_layers)),
    }


def lanes_share(batch: Batch, place: Place) -> float:
    """Share of the backbone's work that the rank with most lanes has."""
    return math.ceil(batch.lanes / place.ranks) / batch.lanes


def profile_for(profile: Sequence[float], experts: int) -> np.ndarray:
    """Loads over their mean of another number of experts with the same spread; a fixed order of no meaning."""
    if not len(profile) or experts == len(profile):
        return np.asarray(profile, float)
    ordered = np.sort(np.asarray(profile, float))
    at = (np.arange(experts) + 0.5) / experts * len(ordered) - 0.5
    values = np.interp(at, np.arange(len(ordered)), ordered)
    return (values / values.mean())[np.random.default_rng(1).permutation(experts)]


def imbalance(profile: np.ndarray, group: int, packed: bool) -> float:
    """Rows of the busiest rank over the mean, where G ranks share the experts."""
    n = len(profile)
    if n == 0 or group <= 1:
        return 1.0
    rows = np.zeros(group)
    if packed:
        room = np.array([(r + 1) * n // group - r * n // group for r in range(group)])
        for load in np.sort(profile)[::-1]:
            rank = min((r for r in range(group) if room[r]), key=lambda r: rows[r])
            rows[rank] += load
            room[rank] -= 1
    else:
        for r in range(group):
            rows[r] = profile[r * n // group:(r + 1) * n // group].sum()
    return float(rows.max() / rows.mean())


def pieces(place: Place, group: int, stride: int, sent: float) -> tuple[float, float, float, float]:
    """Messages and bytes of an all-to-all in groups whose ranks are `stride` apart, as one rank sees them.

    sent: bytes of a rank, its own part included. Returns messages inside the node and to others,
    bytes inside the node, and bytes of all the node's ranks that go through its link.
    """
    here = max(1, min(group, place.per_node // stride))
    away = group - here
    return here - 1.0, float(away), sent * (here - 1) / group, place.per_node * sent * away / group


def all_to_all(network: Network, place: Place, group: int, stride: int, sent: float) -> float:
    """Seconds of an all-to-all."""
    near, far, bytes_near, bytes_far = pieces(place, group, stride, sent)
    return place.turns * (near * network.latency_in + far * network.latency_out + bytes_near / network.bandwidth_in
                          + bytes_far / network.bandwidth_out)


def link(network: Network, place: Place) -> tuple[float, float]:
    """Latency of a message of the slowest link that ranks use, and seconds per byte."""
    if place.ranks > place.per_node:
        return network.latency_out, max(1 / network.bandwidth_out, 1 / network.bandwidth_in)
    return network.latency_in, 1 / network.bandwidth_in


def ring(network: Network, place: Place, group: int, received: float, at_once: int = 1) -> float:
    """Seconds of an all-gather in a ring; at_once rings share a node's link."""
    latency, per_byte = link(network, place)
    return place.turns * ((group - 1) * latency + at_once * received * (1 - 1 / group) * per_byte)


def tree(network: Network, place: Place, group: int, received: float) -> float:
    """Seconds of a small all-gather by doubling."""
    latency, per_byte = link(network, place)
    return place.turns * (math.ceil(math.log2(group)) * latency + received * per_byte) if group > 1 else 0.0


def exchange_seconds(shape: Shape, batch: Batch, place: Place, network: Network, uneven: float) -> float:
    """Plans and the four all-to-alls of every MoE layer and micro-batch."""
    rows = batch.sequences * shape.context * shape.slots / batch.micro_batches / place.ranks
    sent = rows * shape.width * REAL_BYTES * uneven
    calls = shape.moe_layers * batch.micro_batches
    counts = 4.0 * place.ranks * (shape.experts + 1)
    return calls * (4 * all_to_all(network, place, place.expert_ranks, 1, sent)
                    + tree(network, place, place.ranks, counts))


def reduction_bytes(shape: Shape, batch: Batch, place: Place) -> float:
    """Bytes that a rank moves in its own memory to zero and add up gradients."""
    lanes, r = math.ceil(batch.lanes / place.ranks), place.ranks
    replicas = max(1, r // place.expert_ranks)
    local = shape.in_experts / place.expert_ranks
    reals = lanes * shape.shared + 3 * (lanes - 1) * shape.shared + 3 * shape.shared * (r - 1) / r
    reals += 2 * shape.shared / r + local + 3 * local * (replicas - 1) / replicas
    return REAL_BYTES * reals


def reduction_messages(shape: Shape, place: Place, network: Network) -> float:
    """Seconds of the messages of the ordered reduction, of the experts' one over replicas, and of the norm."""
    seconds = all_to_all(network, place, place.ranks, 1, REAL_BYTES * shape.shared)
    replicas = place.ranks // place.expert_ranks
    if replicas > 1 and shape.in_experts:
        sent = REAL_BYTES * shape.in_experts / place.expert_ranks
        seconds += all_to_all(network, place, replicas, place.expert_ranks, sent)
    return seconds + 3 * tree(network, place, place.ranks, 8 * shape.shared / 1024)


def optimizer_messages(shape: Shape, place: Place, network: Network) -> float:
    """Seconds of sharing the new parameters."""
    seconds = ring(network, place, place.ranks, REAL_BYTES * shape.shared)
    replicas = place.ranks // place.expert_ranks
    if replicas > 1 and shape.in_experts:
        seconds += ring(network, place, replicas, REAL_BYTES * shape.in_experts / place.expert_ranks,
                        min(place.per_node, place.expert_ranks))
    return seconds


def optimizer_parameters(shape: Shape, place: Place) -> float:
    """Parameters that a rank's Adam steps."""
    return (shape.shared + shape.in_experts) / place.ranks


def predict(costs: Costs, shape: Shape, batch: Batch, place: Place) -> Time:
    """Time of an update."""
    amount, unit = work(shape, batch), costs.seconds_per_unit
    slow = place.turns * (1 + costs.contention * place.busy)
    share = lanes_share(batch, place)
    backbone = sum(amount[name] * unit[name] for name in COMPUTE if name != "experts") * share * slow
    experts = amount["experts"] * unit["experts"] / place.ranks * slow
    uneven = imbalance(profile_for(costs.profile, shape.experts), place.expert_ranks, costs.packed)
    # Ranks that take turns on a core fill each other's gaps.
    excess = experts * (uneven - 1) / place.turns
    spread = costs.waiting * math.sqrt(2 * math.log(place.ranks)) * (backbone + experts)
    return Time(
        compute=backbone + experts, imbalance=excess, waiting=spread,
        exchange=exchange_seconds(shape, batch, place, costs.network, uneven) if place.ranks > 1 else 0.0,
        reduction=reduction_bytes(shape, batch, place) * costs.seconds_per_byte * place.turns
        + (reduction_messages(shape, place, costs.network) if place.ranks > 1 else 0.0),
        optimizer=optimizer_parameters(shape, place) * costs.seconds_per_adam * place.turns
        + (optimizer_messages(shape, place, costs.network) if place.ranks > 1 else 0.0))


# ---- the fit ----


def non_negative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least squares of a x = b with x >= 0, for a handful of unknowns: the best of all sets of positive ones."""
    best, best_error = np.zeros(a.shape[1]), float(np.sum(b * b))
    for n in range(1, a.shape[1] + 1):
        for columns in itertools.combinations(range(a.shape[1]), n):
            x, *_ = np.linalg.lstsq(a[:, columns], b, rcond=None)
            error = float(np.sum((a[:, columns] @ x - b) ** 2))
            if (x >= 0).all() and error < best_error:
                best, best_error = np.zeros(a.shape[1]), error
                best[list(columns)] = x
    return best


def _fit_network(study: Study, points: list[Point]) -> tuple[Network, bool, bool]:
    """Latencies and bandwidths from the bare all-to-alls, each weighted by its own time."""
    rows, right = [], []
    for point in points:
        place = place_of(study, point, "wall")
        for link in point.bench["alltoallv"]:
            row = np.array(pieces(place, place.expert_ranks, 1, link["bytes"])) * place.turns
            rows.append(row / link["seconds"])
            right.append(1.0)
    network = Network()
    if not rows:
        return network, False, False
    a = np.array(rows)
    used = a.any(axis=0)
    x = np.zeros(4)
    # Columns of 1 and of 1e6 bytes in one system: scaled, so that none is lost to rounding.
    scale = np.where(used, a.max(axis=0), 1.0)
    x[used] = non_negative(a[:, used] / scale[used], np.array(right)) / scale[used]
    if used[0]:
        network = replace(network, latency_in=x[0], bandwidth_in=1 / max(x[2], 1e-13))
    if used[1]:
        network = replace(network, latency_out=x[1], bandwidth_out=1 / max(x[3], 1e-13))
    return network, bool(used[0]), bool(used[1])


def _median_cost(pairs: list[tuple[float, float]]) -> float:
    values = [seconds / amount for seconds, amount in pairs if amount > 0]
    return float(np.median(values)) if values else 0.0


def _quietest(study: Study, points: list[Point]) -> list[Point]:
    """Points whose ranks have a core each and the least company: what a rate is best seen on."""
    key = {id(p): (place_of(study, p).turns, p.ranks) for p in points}
    least = min(key.values())
    return [p for p in points if key[id(p)] == least]


def _contention(study: Study, points: list[Point], unit: dict[str, float]) -> float:
    slower = []
    for point in points:
        place = place_of(study, point)
        if place.turns > 1 or place.busy == 0:
            continue
        amount, phases = work(shape_of(point), batch_of(point)), point.least_phases
        expected = sum(amount[name] * unit[name] for name in PRODUCTS) / point.ranks
        slower.append((sum(phases[name] for name in PRODUCTS) / expected - 1) / place.busy)
    return max(0.0, float(np.median(slower))) if slower else 0.0


def fit(study: Study, points: list[Point] | None = None) -> Costs:
    """Fit the costs to runs of a study, by default the least disturbed one of every rank count.

    Each cost comes from the phases or the bare messages that it is about; only the spread of the
    ranks is fitted to whole updates.
    """
    points = study.quietest() if points is None else points
    quiet = _quietest(study, points)
    unit, notes = {}, []
    for name in COMPUTE:
        pairs = []
        for point in quiet:
            place, phases = place_of(study, point), point.least_phases
            seconds = phases[name] if name in PRODUCTS else sum(phases[part] for part in PASSES)
            pairs.append((seconds / place.turns, work(shape_of(point), batch_of(point))[name] / place.ranks))
        unit[name] = _median_cost(pairs)
    links, fitted_in, fitted_out = _fit_network(study, points)
    memory, adam = [], []
    for point in quiet:
        place, shape, phases = place_of(study, point), shape_of(point), point.least_phases
        several = place.ranks > 1
        sent = reduction_messages(shape, place, links) if several else 0.0
        shared = optimizer_messages(shape, place, links) if several else 0.0
        memory.append((max(0.0, phases["reduction"] - sent) / place.turns, reduction_bytes(shape, batch_of(point), place)))
        adam.append((max(0.0, phases["optimizer"] - shared) / place.turns, optimizer_parameters(shape, place)))
    loads = np.array([row for point in points for row in point.stage()["loads"]], float)
    profile = tuple(loads.mean(axis=0) / loads.mean()) if loads.size else ()
    costs = Costs(unit, _contention(study, points, unit) if quiet[0].ranks == 1 else 0.0, _median_cost(memory),
                  _median_cost(adam), 0.0, links, profile, _is_packed(points, profile), fitted_in, fitted_out, notes)
    return replace(costs, waiting=_spread(study, points, costs))


def _is_packed(points: list[Point], profile: tuple[float, ...]) -> bool:
    """Whether the measured imbalance looks like that of experts placed by load."""
    errors = [0.0, 0.0]
    for point in points:
        seen = point.stage()["load_max_over_mean"]
        for packed in (False, True):
            if seen:
                errors[packed] += abs(imbalance(np.array(profile), point.bench["expert_ranks"], packed) - seen)
    return errors[1] < errors[0]


def _spread(study: Study, points: list[Point], costs: Costs) -> float:
    """Least squares of what is left of the updates; waiting is linear in it."""
    products, squares = 0.0, 0.0
    for point in points:
        if point.ranks == 1:
            continue
        without = predict(costs, shape_of(point), batch_of(point), place_of(study, point))
        slope = math.sqrt(2 * math.log(point.ranks)) * without.compute
        seconds = point.least
        products += slope * (seconds - without.total) / seconds ** 2
        squares += slope ** 2 / seconds ** 2
    return max(0.0, products / squares) if squares else 0.0


def left_out(study: Study) -> list[tuple[int, float, float]]:
    """For every rank count: ranks, measured and predicted s, where the fit did not see that rank count."""
    rows = []
    for ranks in study.ranks:
        points = study.quietest()
        others = [point for point in points if point.ranks != ranks]
        if not others:
            continue
        costs, seen = fit(study, others), next(point for point in points if point.ranks == ranks)
        time = predict(costs, shape_of(seen), batch_of(seen), place_of(study, seen))
        rows.append((ranks, seen.least, time.total))
    return rows
