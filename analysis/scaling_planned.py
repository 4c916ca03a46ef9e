"""The time of an update on ranks that were planned: counts of `stablemoe train --dry-run --ranks N --json` at a study's costs.

Work, messages and bytes are those that the program counts for its own ranks; nothing of the model's arithmetic is
here. doc/scaling.md has the equations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import scaling_model
from analysis.scaling_model import Costs, Place, Time
from analysis.scaling_study import StudyError

MADE_BY = "stablemoe train CONFIG --dry-run --ranks N --per-node P --json"


@dataclass(frozen=True)
class Plan:
    """A plan: where its ranks are, and the object that the program printed."""

    place: Place
    counts: dict[str, Any]

    @property
    def memory_bytes(self) -> float:
        """What the rank that takes most is expected to take."""
        return self.counts["memory"]["rank_expected_bytes"]


def read(path: Path) -> Plan:
    """Read a plan; a node has a core for each of its ranks. Raises StudyError."""
    try:
        counts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot read the plan '{path}': {error}; `{MADE_BY}` prints one") from error
    if not isinstance(counts, dict) or "traffic" not in counts or "per_node" not in counts:
        raise StudyError(f"'{path}' is no plan: `{MADE_BY}` prints one")
    missing = [name for name in ("work", "reduction_bytes", "adam_parameters", "lanes", "experts") if name not in counts]
    if missing:
        raise StudyError(f"'{path}' lacks {', '.join(missing)}: another version of the program made it; plan again")
    per_node = min(counts["ranks"], counts["per_node"])
    return Plan(Place(counts["ranks"], per_node, per_node, max(1, counts["expert_ranks"])), counts)


def _direct(costs: Costs, place: Place, sent: dict[str, float], uneven: float = 1.0) -> float:
    """Seconds of messages that every rank sends to others, a node's through its one link."""
    network = costs.network
    return (sent["messages_within"] / place.ranks * network.latency_in
            + sent["messages_between"] / place.ranks * network.latency_out
            + uneven * (sent["bytes_within"] / place.ranks / network.bandwidth_in
                        + sent["most_of_a_node_bytes"] / network.bandwidth_out))


def _gathered(costs: Costs, place: Place, sent: dict[str, float]) -> float:
    """Seconds of all-gathers: each waits for its slowest link in every round."""
    latency, _ = scaling_model.link(costs.network, place)
    rounds = (sent["messages_within"] + sent["messages_between"]) / place.ranks
    received = (sent["bytes_within"] + sent["bytes_between"]) / place.ranks
    return rounds * latency + max(received / costs.network.bandwidth_in,
                                  sent["most_of_a_node_bytes"] / costs.network.bandwidth_out)


def predict(costs: Costs, plan: Plan) -> Time:
    """Time of a planned update."""
    counts, place, unit = plan.counts, plan.place, costs.seconds_per_unit
    work, traffic = counts["work"], counts["traffic"]
    slow = 1 + costs.contention * place.busy
    share = counts["lanes_of_rank"] / counts["lanes"]
    backbone = sum(work[name] * unit[name] for name in scaling_model.COMPUTE if name != "experts") * share * slow
    experts = work["experts"] * unit["experts"] / place.ranks * slow
    profile = scaling_model.profile_for(costs.profile, counts["experts"]) if counts["experts"] else np.ones(0)
    uneven = scaling_model.imbalance(profile, place.expert_ranks, costs.packed)
    return Time(
        compute=backbone + experts, imbalance=experts * (uneven - 1),
        waiting=costs.waiting * math.sqrt(2 * math.log(place.ranks)) * (backbone + experts),
        exchange=_direct(costs, place, traffic["exchange"], uneven) + _gathered(costs, place, traffic["counts"]),
        reduction=counts["reduction_bytes"] * costs.seconds_per_byte + _direct(costs, place, traffic["reduction"])
        + _gathered(costs, place, traffic["norms"]),
        optimizer=counts["adam_parameters"] * costs.seconds_per_adam + _gathered(costs, place, traffic["sharing"]))


def text(costs: Costs, plans: Sequence[Plan], title: str, memory: float = math.inf) -> str:
    """Table of plans by rank count; efficiency is tokens/s of a rank over that of the plan with the fewest ranks."""
    lines = [title, " ranks  nodes    G   tokens/upd  update ms    tokens/s  efficiency  memory    compute  uneven"
                    "  exchange  reduction  optimizer  waiting",
             "                                                               GiB/rank  % of the update"]
    first = math.nan
    for plan in sorted(plans, key=lambda p: p.place.ranks):
        place, counts, time = plan.place, plan.counts, predict(costs, plan)
        rate = counts["tokens"] / time.total
        first = rate / place.ranks if math.isnan(first) else first
        parts = (time.compute, time.imbalance, time.exchange, time.reduction, time.optimizer, time.waiting)
        lines.append(f"{place.ranks:6d} {counts['nodes']:6d} {counts['expert_ranks']:4d} {counts['tokens']:12d} "
                     f"{1e3 * time.total:10.1f} {rate:11.0f} {rate / place.ranks / first:11.2f} "
                     f"{plan.memory_bytes / 2 ** 30:8.2f} "
                     + " ".join(f"{100 * part / time.total:{width}.1f}" for part, width in zip(parts, (10, 7, 9, 10, 10, 8)))
                     + (" *" if plan.memory_bytes > memory else ""))
    if any(plan.memory_bytes > memory for plan in plans):
        lines.append(f"* more than {memory / 2 ** 30:g} GiB per rank")
    return "\n".join(lines)
