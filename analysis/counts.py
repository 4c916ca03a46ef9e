"""Counts over every recorded assignment, by streaming: memory does not grow with the log.

A log may hold 100 million assignments. So everything here reads in blocks of at most
BLOCK_ITEMS of them and keeps counts alone. Letters in shapes are those of
analysis.routing, and Z records of all tokens, N tokens of an update, K slots, V
vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py
import numpy as np

if TYPE_CHECKING:
    from analysis.routing import RoutingLog

BLOCK_ITEMS = 2 << 20
"""Assignments held at a time: some 100 MB with all that is made of them."""

GATE_BINS = 50
"""Bins of a histogram of gates over [0, 1]; what is outside counts in the first or last one."""

Tick = Callable[[int], None]
"""Told of every so many assignments read, for a progress bar."""


class Records(NamedTuple):
    """The records of all tokens of a log: which updates, and where they are."""

    step: np.ndarray
    """[Z] update."""
    place: np.ndarray
    """[Z, 2] number of the file in log.files, and row in it."""
    n_tokens: int
    """Assignments of one MoE layer in all of them: Z * N * K."""

    def rows(self, keep: np.ndarray) -> Records:
        """Those records alone. keep: [Z] bool, or row numbers."""
        n = max(1, len(self.step))
        return Records(self.step[keep], self.place[keep], self.n_tokens // n * len(self.step[keep]))


def records(log: RoutingLog) -> Records:
    """Find the records of all tokens (log.tokens_every); of two of one update the later file's."""
    steps, places, size = [], [], 0
    for number, path in enumerate(log.files):
        with h5py.File(path, "r") as file:
            if "tokens/step" not in file or "tokens/expert" not in file:
                continue
            step = file["tokens/step"][...].astype(np.int64)
            steps.append(step)
            places.append(np.column_stack([np.full(len(step), number), np.arange(len(step))]))
            size = int(np.prod(file["tokens/expert"].shape[2:]))
    if not steps:
        return Records(np.zeros(0, np.int64), np.zeros((0, 2), np.int64), 0)
    step, place = np.concatenate(steps), np.concatenate(places)
    _, first = np.unique(step[::-1], return_index=True)
    keep = len(step) - 1 - first
    return Records(step[keep], place[keep], len(keep) * size)


def settled(found: Records, switch: int | None) -> Records:
    """The records that tell what experts have become: those of stage 2, else those of the last half.

    switch: first update of stage 2; None: there is none.
    """
    late = found.step >= switch if switch is not None else np.zeros(len(found.step), bool)
    return found.rows(late if late.any() else np.arange(len(found.step) // 2, len(found.step)))


def _stretches(found: Records, width: int) -> Iterator[tuple[int, int, int]]:
    """File, first row and end of rows that follow each other, at most `width` at a time."""
    begin = 0
    for i in range(1, len(found.place) + 1):
        apart = i == len(found.place) or tuple(found.place[i]) != (found.place[i - 1][0],
                                                                  found.place[i - 1][1] + 1)
        if apart or i - begin == width:
            yield int(found.place[begin][0]), int(found.place[begin][1]), int(found.place[i - 1][1]) + 1
            begin = i


def blocks(log: RoutingLog, found: Records, names: tuple[str, ...], layers: tuple[int, ...],
           tick: Tick | None = None) -> Iterator[tuple[np.ndarray, ...]]:
    """Stream the records.

    names:  of "id", "expert", "gate".
    layers: MoE layers wanted; each of "expert" and "gate" is given once for each.
    Yields for each block and in the order of names: id [z, n]; expert, gate [z, n, K] per layer.
    """
    if not len(found.step):
        return
    per_row = max(1, found.n_tokens // len(found.step))
    for number, first, end in _stretches(found, max(1, BLOCK_ITEMS // per_row)):
        with h5py.File(log.files[number], "r") as file:
            n, slots = file["tokens/expert"].shape[2:]
            width = max(1, BLOCK_ITEMS // (slots * (end - first)))
            for low in range(0, n, width):
                part = slice(low, min(n, low + width))
                out = []
                for name in names:
                    data = file["tokens/" + name]
                    if name == "id":
                        out.append(data[first:end, part])
                    else:
                        out += [data[first:end, layer, part, :] for layer in layers]
                yield tuple(out)
                if tick is not None:
                    tick((end - first) * (part.stop - part.start) * slots)


def chosen(expert: np.ndarray) -> np.ndarray:
    """The expert that was chosen, also where it had no room (stored as -2 - expert); -1: slot unused."""
    return np.where(expert <= -2, -2 - expert, expert)


def _add(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """table[row, column] += 1 for every pair; the table grows by rows where it must. Returns the table."""
    if not len(rows):
        return table
    if int(rows.max()) >= len(table):
        more = np.zeros((int(rows.max()) + 1 - len(table), table.shape[1]), np.int64)
        table = np.concatenate([table, more])
    key = rows.astype(np.int64) * table.shape[1] + columns
    if table.size <= 4 * BLOCK_ITEMS:
        table += np.bincount(key, minlength=table.size).reshape(table.shape)
    else:
        places, counts = np.unique(key, return_counts=True)
        table.reshape(-1)[places] += counts
    return table


@dataclass
class LayerCounts:
    """Counts of one MoE layer over some records."""

    token_expert: np.ndarray
    """[V, E] int64: how often an expert was chosen for a token id, over all slots."""
    gate: np.ndarray
    """[E, GATE_BINS] int64: gates of an expert's tokens."""
    gate_sum: np.ndarray
    """[E] float64."""
    n_dropped: int
    """Assignments beyond the expert's capacity."""

    @property
    def gate_mean(self) -> np.ndarray:
        """[E] float64, NaN where an expert has no token."""
        n = self.gate.sum(1)
        return np.divide(self.gate_sum, n, out=np.full(len(n), np.nan), where=n > 0)


def count_layer(log: RoutingLog, layer: int, found: Records | None = None, vocabulary: int = 1,
                tick: Tick | None = None, period: int = 0) -> LayerCounts:
    """Count token ids, gates and drops by expert of one MoE layer over all tokens of some records.

    found: None: every record. vocabulary: rows of the table to begin with; it grows where an id is larger.
    period: of images, their patches: an id counts by its place in the image, id modulo this; 0: as it is.
    """
    experts = log.n_experts
    counts = LayerCounts(np.zeros((max(1, vocabulary), experts), np.int64),
                         np.zeros((experts, GATE_BINS), np.int64), np.zeros(experts), 0)
    for ids, expert, gate in blocks(log, records(log) if found is None else found,
                                    ("id", "expert", "gate"), (layer,), tick):
        counts.n_dropped += int((expert <= -2).sum())
        expert = chosen(expert)
        known = (expert >= 0) & (ids >= 0)[..., None]
        column = expert[known]
        ids = ids % period if period else ids
        counts.token_expert = _add(counts.token_expert,
                                   np.broadcast_to(ids[..., None], expert.shape)[known], column)
        values = gate[known]
        bins = np.clip(np.nan_to_num(values) * GATE_BINS, 0, GATE_BINS - 1).astype(np.int64)
        _add(counts.gate, column, bins)
        counts.gate_sum += np.bincount(column, weights=np.nan_to_num(values), minlength=experts)
    return counts


def count_flow(log: RoutingLog, layer: int, found: Records | None = None,
               tick: Tick | None = None) -> np.ndarray:
    """Tokens by their expert in a MoE layer and in the next one, of each token its first slot that is used.

    Returns [E, E] int64: row the expert in `layer`, column that in `layer` + 1.
    """
    flow = np.zeros((log.n_experts, log.n_experts), np.int64)
    for here, there in blocks(log, records(log) if found is None else found, ("expert",),
                              (layer, layer + 1), tick):
        a, b = first_choice(here), first_choice(there)
        known = (a >= 0) & (b >= 0)
        _add(flow, a[known], b[known])
    return flow


def first_choice(expert: np.ndarray) -> np.ndarray:
    """The expert in the first slot that is used. expert: [..., K]. Returns [...], -1 where none is."""
    expert = chosen(expert)
    slot = (expert >= 0).argmax(-1)[..., None]
    return np.take_along_axis(expert, slot, -1)[..., 0]


def probe_counts(log: RoutingLog, layer: int, row: int = -1, vocabulary: int = 1) -> np.ndarray:
    """[V, E] int64 as LayerCounts.token_expert, of one probe: where no training tokens were recorded."""
    table = np.zeros((max(1, vocabulary), log.n_experts), np.int64)
    row = row % max(1, len(log.probe_step))
    ids, first = log.probe_token[log.probe_token >= 0], 0
    for (expert,) in log.probe_blocks(("expert",), layer, np.array([row])):
        token = ids[first:first + expert.shape[1]]
        first += expert.shape[1]
        known = expert[0] >= 0
        table = _add(table, token[known], expert[0][known])
    return table


def probe_languages(log: RoutingLog, layer: int, row: int = -1) -> np.ndarray:
    """[L, E] int64: tokens of each of log.languages that each expert has, of one probe of a translation model."""
    table = np.zeros((len(log.languages), log.n_experts), np.int64)
    if not len(log.probe_language) or not len(log.probe_step):
        return table
    row = row % len(log.probe_step)
    ids, first = log.probe_language[log.probe_token >= 0], 0
    for (expert,) in log.probe_blocks(("expert",), layer, np.array([row])):
        language = ids[first:first + expert.shape[1]]
        first += expert.shape[1]
        known = expert[0] >= 0
        np.add.at(table, (language[known], expert[0][known]), 1)
    return table


def probe_flow(log: RoutingLog, layer: int, row: int = -1) -> np.ndarray:
    """[E, E] int64 as count_flow, of one probe."""
    flow = np.zeros((log.n_experts, log.n_experts), np.int64)
    rows = np.array([row % max(1, len(log.probe_step))])
    for (a,), (b,) in zip(log.probe_blocks(("expert",), layer, rows),
                          log.probe_blocks(("expert",), layer + 1, rows)):
        known = (a[0] >= 0) & (b[0] >= 0)
        _add(flow, a[0][known], b[0][known])
    return flow


class Information(NamedTuple):
    """What token ids say of experts, in bits."""

    mutual: float
    """Mutual information of token id and expert; 0 where there is no token."""
    expert: float
    """Entropy of the expert."""
    token: float
    """Entropy of the token id."""

    @property
    def share(self) -> float:
        """Mutual information over the expert's entropy: 1 where the id alone decides; NaN with one expert used."""
        return self.mutual / self.expert if self.expert > 0 else float("nan")


def _entropy(counts: np.ndarray) -> float:
    total = counts.sum()
    p = counts[counts > 0] / total if total else np.zeros(0)
    return float(-(p * np.log2(p)).sum()) + 0.0


def mutual_information(table: np.ndarray) -> Information:
    """Mutual information of rows and columns of a table of counts. table: [V, E]."""
    token, expert = _entropy(table.sum(1)), _entropy(table.sum(0))
    return Information(max(0.0, token + expert - _entropy(table)), expert, token)


def information(ids: np.ndarray, expert: np.ndarray, n_experts: int,
                seed: int = 1) -> tuple[Information, float]:
    """mutual_information of some tokens, and what chance alone would give.

    Few tokens seem to say much of experts, since a rare id occurs with one expert only. So the
    same is measured with the experts dealt to the tokens anew (by a fixed seed).

    ids, expert: [n]; below 0 where there is none. Returns Information, and the mutual information by chance.
    """
    known = (np.asarray(ids) >= 0) & (np.asarray(expert) >= 0)
    ids, expert = np.unique(np.asarray(ids)[known], return_inverse=True)[1], np.asarray(expert)[known]
    none = np.zeros((1, n_experts), np.int64)
    dealt = np.random.default_rng(seed).permutation(expert)
    return (mutual_information(_add(none.copy(), ids, expert)),
            mutual_information(_add(none.copy(), ids, dealt)).mutual)


class Special(NamedTuple):
    """The most characteristic token ids of one expert, best first; all [n]."""

    token: np.ndarray
    count: np.ndarray
    """How often the expert was chosen for it."""
    lift: np.ndarray
    """Share of the id among the expert's tokens over its share among all tokens."""
    share: np.ndarray
    """Share of the id's occurrences that go to the expert."""


def specialisation(table: np.ndarray, n: int = 20, prior: float = 20.0) -> list[Special]:
    """What each expert specialises in: token ids by their lift over the unigram share.

    table: [V, E]. n: ids wanted. prior: so many occurrences spread as the experts' loads are added to
    each id when ids are ordered, so that what occurred once or twice does not come first. The lifts
    given are those without. Returns one Special per expert.
    """
    table = np.asarray(table)
    of_token, of_expert, total = table.sum(1), table.sum(0), max(1, int(table.sum()))
    found = []
    for e in range(table.shape[1]):
        seen = np.flatnonzero(table[:, e])
        if not len(seen):
            found.append(Special(*(np.zeros(0, kind) for kind in (np.int64, np.int64, float, float))))
            continue
        even = of_expert[e] / total
        count, all_of = table[seen, e], of_token[seen]
        order = np.argsort(-(count + prior * even) / (all_of + prior), kind="stable")[:n]
        share = count[order] / all_of[order]
        found.append(Special(seen[order], count[order], share / even, share))
    return found
