"""Which rows skipped sublayers behind gates (model.skip), from routing logs. NumPy arrays in, NumPy arrays out.

Letters in shapes: S recorded updates, G gates, P probe tokens, N tokens of an update, V vocabulary, T context.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py
import numpy as np

if TYPE_CHECKING:
    from analysis.routing import RoutingLog

FREQUENCIES = (0.25, 0.5, 0.75, 0.9, 1.0)
"""Classes of token ids: the most frequent ones that make up so much of all tokens, then so much, ..."""


class Counts(NamedTuple):
    """Of one gate, over the tokens counted."""

    total: np.ndarray
    """[V] tokens by id."""
    skipped: np.ndarray
    """[V] of them those that skipped."""
    place_total: np.ndarray
    """[T] tokens by their place in the sequence."""
    place_skipped: np.ndarray


class Found(NamedTuple):
    """Where the tokens are counted: the last half of the records of all tokens, else the last probe."""

    source: str
    """"training tokens" or "probe"; "" where there is neither."""
    step: np.ndarray
    """[n] updates."""
    place: np.ndarray
    """[n, 2] number of the file in log.files, and row in it."""


def find(log: RoutingLog) -> Found:
    """The tokens to count. Of two records of one update the later file's counts."""
    steps, places = [], []
    for number, path in enumerate(log.files):
        with h5py.File(path, "r") as file:
            if "tokens/ran" in file:
                step = file["tokens/step"][...].astype(np.int64)
                steps.append(step)
                places.append(np.column_stack([np.full(len(step), number), np.arange(len(step))]))
    if steps:
        step, place = np.concatenate(steps), np.concatenate(places)
        _, first = np.unique(step[::-1], return_index=True)
        keep = (len(step) - 1 - first)[len(first) // 2:]
        return Found("training tokens", step[keep], place[keep])
    if log.gates and len(log.probe_step):
        with h5py.File(log.files[log.probe_place[-1, 0]], "r") as file:
            if "probe/ran" in file:
                return Found("probe", log.probe_step[-1:], log.probe_place[-1:])
    return Found("", np.zeros(0, np.int64), np.zeros((0, 2), np.int64))


def rows(log: RoutingLog, found: Found, gate: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Row n of what was found: token ids and whether they ran behind a gate, [N] each; padding left out of neither."""
    number, row = found.place[n]
    with h5py.File(log.files[number], "r") as file:
        if found.source == "probe":
            return log.probe_token, file["probe/ran"][row, gate]
        return file["tokens/id"][row], file["tokens/ran"][row, gate]


def count(log: RoutingLog, found: Found, gate: int, context: int) -> Counts:
    """Count by id and by place, one record at a time."""
    out = [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(context, np.int64), np.zeros(context, np.int64)]
    for n in range(len(found.step)):
        ids, ran = rows(log, found, gate, n)
        real = (ids >= 0) & (ran >= 0)
        place, skip = np.arange(len(ids)) % context, real & (ran == 0)
        size = max(len(out[0]), int(ids.max(initial=-1)) + 1)
        for i, kept in enumerate((real, skip)):
            out[i] = np.pad(out[i], (0, size - len(out[i]))) + np.bincount(ids[kept], minlength=size)
            out[2 + i] += np.bincount(place[kept], minlength=context)
    return Counts(*out)


def by_frequency(counts: Counts) -> list[tuple[int, int, int]]:
    """Of each class of FREQUENCIES: distinct ids, tokens, and those that skipped. Ids of equal counts go by number."""
    order = np.argsort(-counts.total, kind="stable")
    order = order[counts.total[order] > 0]
    reached = np.cumsum(counts.total[order])
    out, first = [], 0
    for share in FREQUENCIES:
        end = int(np.searchsorted(reached, share * counts.total.sum())) + 1 if share < 1 else len(order)
        ids = order[first:max(first, end)]
        out.append((len(ids), int(counts.total[ids].sum()), int(counts.skipped[ids].sum())))
        first = max(first, end)
    return out


def extremes(counts: Counts, n: int, least: int) -> np.ndarray:
    """The n ids that skip most often and the n that skip least often, among those with `least` tokens or more; the one
    that skips most comes first, of equal shares the more frequent one."""
    ids = np.flatnonzero(counts.total >= max(1, least))
    share = counts.skipped[ids] / counts.total[ids]
    order = ids[np.lexsort((ids, -counts.total[ids], -share))]
    return order if len(order) <= 2 * n else np.concatenate([order[:n], order[-n:]])
