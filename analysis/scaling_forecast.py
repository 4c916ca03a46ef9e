"""Forecasts of an update on rank counts that were not measured, and the best split of the ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.scaling_model import Batch, Costs, Place, Shape, Time, predict
from analysis.scaling_plan import expert_ranks
from analysis.scaling_study import REAL_BYTES


@dataclass(frozen=True)
class Forecast:
    """One rank count."""

    place: Place
    batch: Batch
    time: Time
    tokens_per_s: float
    efficiency: float
    state_bytes: float


def state_bytes(shape: Shape, batch: Batch, place: Place) -> float:
    """Parameters, gradients and moments of a rank; what activations take comes on top."""
    lanes, local = math.ceil(batch.lanes / place.ranks), shape.in_experts / place.expert_ranks
    replicas = max(1, place.ranks // place.expert_ranks)
    shared = shape.shared * (1 + lanes + 3 / place.ranks + (1 if place.ranks > 1 else 0))
    return REAL_BYTES * (shared + local * (2 + (3 if replicas > 1 else 2) / replicas))


def batch_at(batch: Batch, ranks: int, mode: str, base: int) -> Batch | None:
    """The batch of a rank count; None where there are fewer sequences than ranks.

    strong: as many lanes as ranks where there were fewer, and fewer micro-batches where need be.
    weak:   each rank has what it would have on `base` ranks.
    """
    if mode == "weak":
        lanes = max(1, batch.lanes // base) * ranks
        return Batch(max(1, batch.sequences // base) * ranks, batch.micro_batches, lanes)
    lanes = max(batch.lanes, ranks)
    if lanes > batch.sequences:
        return None
    return Batch(batch.sequences, max(1, min(batch.micro_batches, batch.sequences // lanes)), lanes)


def splits(ranks: int, experts: int) -> list[int]:
    """Numbers of ranks that can share the experts."""
    return [g for g in range(1, ranks + 1) if ranks % g == 0 and g <= max(1, experts)]


def forecast(costs: Costs, shape: Shape, batch: Batch, ranks: int, per_node: int, cores: float,
             memory: float = math.inf) -> Forecast:
    """The fastest split whose state fits into `memory` bytes per rank; the default split where none does."""
    def at(group: int) -> Forecast:
        place = Place(ranks, min(ranks, per_node), cores, group)
        time = predict(costs, shape, batch, place)
        tokens = batch.sequences * shape.context / time.total
        return Forecast(place, batch, time, tokens, math.nan, state_bytes(shape, batch, place))

    found = [at(group) for group in splits(ranks, shape.experts)]
    fitting = [f for f in found if f.state_bytes <= memory]
    return min(fitting, key=lambda f: f.time.total) if fitting else at(expert_ranks(ranks, shape.experts))


def forecasts(costs: Costs, shape: Shape, batch: Batch, ranks: Sequence[int], mode: str, per_node: int, cores: float,
              base: int, memory: float = math.inf) -> list[Forecast]:
    """A forecast for each rank count that can be; efficiency is tokens/s of a rank over that of one rank alone."""
    found = []
    one = batch_at(batch, 1, mode, base)
    alone = forecast(costs, shape, one, 1, per_node, cores)
    for count in ranks:
        of_count = batch_at(batch, count, mode, base)
        if of_count is None:
            continue
        f = forecast(costs, shape, of_count, count, per_node, cores, memory)
        found.append(replace(f, efficiency=f.tokens_per_s / count / alone.tokens_per_s))
    return found
