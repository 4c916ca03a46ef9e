"""Numbers from routing logs. NumPy arrays in, NumPy arrays out.

Letters in shapes: S recorded updates, Q probes, M MoE layers, E experts, P probe
tokens (occurrences: positions of the validation stream, not vocabulary types).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py
import numpy as np

from analysis.counts import (Information, LayerCounts, Records, Special, Tick, count_flow, count_layer,
                             first_choice, information, mutual_information, probe_counts, probe_flow, records,
                             settled, specialisation)

__all__ = ["Balance", "Information", "LayerCounts", "LogError", "Records", "RoutingLog", "Special", "agreement",
           "agreement_counts", "balance", "count_flow", "count_layer", "first_choice", "fluctuation_counts",
           "information", "last_fluctuation", "latest_rows", "load_log", "load_share", "mutual_information",
           "probe_agreement", "probe_counts", "probe_flow", "records", "settled", "share_after", "specialisation"]

KIND = "stablemoe-routing"
"""What the attribute "format" of a routing file begins with."""

FORMAT = 1
"""SMOE_ROUTING_FORMAT of include/stablemoe/routing_log.h: the layout this file reads."""

BASE_FLUCTUATION = {20: 40.9, 50: 29.1, 80: 15.4}
"""BASE in the StableMoE paper (section 1): after that per cent of training, so many per cent still change."""

BLOCK_BYTES = 64 << 20
"""Bound of a block of probe choices held at a time."""

LAYER_TERMS = ("dropped", "balance", "distill", "agreement", "gate_mean")

TERM_UNITS = "loss per token"
"""Units of a loss term: further ones of a method are the datasets of the file's root that have them."""


class LogError(Exception):
    """A routing file that cannot be used; the message says why."""


@dataclass
class RoutingLog:
    """The routing log of a run. Small arrays are held; probe choices are read in blocks.

    Where files repeat an update (a resumed run), the later file wins.
    """

    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Files that were left out, and why."""
    method: str = ""
    n_layers: int = 0
    n_experts: int = 0
    step: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[S] update of each row (1-based: updates done)."""
    stage: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[S]"""
    load: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.int64))
    """[S, M, E] tokens per expert over the global batch, before dropping."""
    terms: dict[str, np.ndarray] = field(default_factory=dict)
    """name of LAYER_TERMS -> [S, M] float64, NaN where a file does not have it."""
    probe_token: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[P] token ids; below 0 where the position is padding."""
    probe_side: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[P] of translation: 0 where a token is of the source, 1 of the target; else empty."""
    probe_language: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[P] of translation: number of a token's language in languages; else empty."""
    languages: list[str] = field(default_factory=list)
    """Codes of the languages of a translation model."""
    layer_sides: list[str] = field(default_factory=list)
    """[M] "source" or "target": which tokens an MoE layer of a translation model sees."""
    gates: list[str] = field(default_factory=list)
    """[G] sublayers behind gates; empty in logs of earlier programs, too."""
    ran: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """[S, G] share of the rows that ran behind each gate; NaN where a file does not have it."""
    probe_step: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[Q]"""
    probe_stage: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[Q]"""
    probe_place: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """[Q, 2] number of the file and row in it."""

    @property
    def n_probe(self) -> int:
        return len(self.probe_token)

    def probe_part(self, name: str, layer: int, rows: np.ndarray, first: int, end: int) -> np.ndarray:
        """Choices of one MoE layer for the probe tokens first to end - 1, padding among them.

        name: "expert", "learned" or "distilled"; or "ran", of a gate in place of a layer. rows: [q] probes wanted,
        increasing. Returns [q, end - first] int32; -1 where there is no such choice.
        """
        out = np.full((len(rows), max(0, min(end, self.n_probe) - first)), -1, np.int32)
        for number in np.unique(self.probe_place[rows, 0]):
            with h5py.File(self.files[number], "r") as file:
                data = file.get(f"probe/{name}")
                for i in np.flatnonzero(self.probe_place[rows, 0] == number) if data is not None else ():
                    out[i] = data[self.probe_place[rows[i], 1], layer, first:end]
        return out

    def probe_blocks(self, names: tuple[str, ...], layer: int, rows: np.ndarray | None = None,
                     tick: Tick | None = None) -> Iterator[tuple[np.ndarray, ...]]:
        """Probe choices of one MoE layer in blocks of tokens, padding left out.

        names: of "expert", "learned", "distilled".
        rows:  [q] probes wanted, increasing; None: all.
        tick:  told of the choices read.
        Yields one array [q, p] int32 per name; p is bounded by BLOCK_BYTES. -1 where there is no such choice.
        """
        rows = np.arange(len(self.probe_step)) if rows is None else np.asarray(rows)
        if not len(rows):
            return
        width = max(1, BLOCK_BYTES // (4 * len(rows) * len(names)))
        for first in range(0, self.n_probe, width):
            real = self.probe_token[first:first + width] >= 0
            block = [self.probe_part(name, layer, rows, first, first + width) for name in names]
            yield tuple(out[:, real] for out in block)
            if tick is not None:
                tick(len(rows) * len(names) * len(real))


def latest_rows(step: np.ndarray) -> np.ndarray:
    """Rows in order of update, of several of one update the last.

    step: [n]. Returns [<= n] indices.
    """
    _, first = np.unique(step[::-1], return_index=True)
    return len(step) - 1 - first


def text_attribute(file: h5py.File, name: str) -> str:
    """A text attribute of the file; "" where there is none."""
    value = file.attrs.get(name, "")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _check(file: h5py.File, log: RoutingLog) -> tuple[int, int]:
    """MoE layers and experts of the file. Raises LogError where it is of another format or another run."""
    kind = text_attribute(file, "format")
    if not kind.startswith(KIND):
        raise LogError(f"is no routing log: its attribute 'format' is '{kind}', not '{KIND}'")
    version = int(file.attrs.get("version", 0))
    if version != FORMAT:
        raise LogError(f"has format version {version}, this program reads {FORMAT}: "
                       "use the analysis/ of the version that wrote it")
    layers, experts = int(file.attrs["n_layers"]), int(file.attrs["n_experts"])
    if log.files and (layers, experts) != (log.n_layers, log.n_experts):
        raise LogError(f"has {layers} MoE layers and {experts} experts, the files before it {log.n_layers} "
                       f"and {log.n_experts}: the directory holds two runs")
    return layers, experts


def _further_terms(file: h5py.File, rows: int, layers: int) -> dict[str, np.ndarray]:
    """Loss terms of the method besides LAYER_TERMS, each [rows, layers]."""
    terms = {}
    for name, item in file.items():
        if name in LAYER_TERMS or not isinstance(item, h5py.Dataset) or item.shape != (rows, layers):
            continue
        units = item.attrs.get("units", "")
        if (units.decode(errors="replace") if isinstance(units, bytes) else str(units)) == TERM_UNITS:
            terms[name] = item[...].astype(np.float64)
    return terms


class _Stretch(NamedTuple):
    """What one file holds, without the probe choices."""

    method: str
    n_layers: int
    n_experts: int
    step: np.ndarray
    stage: np.ndarray
    load: np.ndarray
    terms: dict[str, np.ndarray]
    probe_token: np.ndarray
    probe_step: np.ndarray
    probe_stage: np.ndarray
    n_records: int
    probe_side: np.ndarray
    probe_language: np.ndarray
    languages: list[str]
    layer_sides: list[str]
    gates: list[str]
    ran: np.ndarray


def _read_stretch(path: Path, log: RoutingLog) -> _Stretch:
    """Read a file. Raises LogError or what h5py raises; log is not changed."""
    with h5py.File(path, "r") as file:
        layers, experts = _check(file, log)

        def read(name: str, otherwise: np.ndarray) -> np.ndarray:
            return file[name][...] if name in file else otherwise

        none = np.zeros(0, np.int64)
        step = read("step", none)  # what has no rows is absent
        missing = np.full((len(step), layers), np.nan)
        gates = text_attribute(file, "gates").split()
        if log.files and gates != log.gates:
            raise LogError("has other gates than the files before it: the directory holds two runs")
        token, probe_step = read("probe/token", none), read("probe/step", none)
        if log.n_probe and len(token) and not np.array_equal(token, log.probe_token):
            raise LogError("probes other tokens than the files before it: the directory holds two runs")
        return _Stretch(text_attribute(file, "method"), layers, experts, step,
                        read("stage", np.zeros(len(step), np.int64)),
                        read("load", np.zeros((len(step), layers, experts), np.int64)),
                        {name: read(name, missing).astype(np.float64) for name in LAYER_TERMS}
                        | _further_terms(file, len(step), layers),
                        token, probe_step if len(token) else none,
                        read("probe/stage", np.zeros(len(probe_step), np.int64)) if len(token) else none,
                        len(read("tokens/step", none)), read("probe/side", none), read("probe/language", none),
                        text_attribute(file, "languages").split(), text_attribute(file, "layer_sides").split(),
                        gates, read("ran", np.full((len(step), len(gates)), np.nan)))


def load_log(run: Path | str) -> RoutingLog:
    """Read RUN/routing/step-*.h5 in order of update.

    A file that cannot be read, or is of another format version, is left out with a
    note. No file at all gives an empty log, with a note.
    """
    log = RoutingLog()
    matches = [(re.fullmatch(r"step-(\d+)\.h5", path.name), path) for path in Path(run).glob("routing/*.h5")]
    paths = [path for _, path in sorted((int(match.group(1)), path) for match, path in matches if match)]
    if not paths:
        log.notes.append("no routing files yet (routing/step-*.h5 are written with the checkpoints)")
    parts: list[_Stretch] = []
    for path in paths:
        try:
            part = _read_stretch(path, log)
        except LogError as error:
            log.notes.append(f"{path.name} {error}")
            continue
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            log.notes.append(f"{path.name} cannot be read: {error}")
            continue
        if not len(part.step) + len(part.probe_step) + part.n_records:
            log.notes.append(f"{path.name} has no rows: nothing was recorded in that stretch")
        parts.append(part)
        log.files.append(path)
        log.method = log.method or part.method
        log.n_layers, log.n_experts, log.gates = part.n_layers, part.n_experts, part.gates
        if len(part.probe_token):
            log.probe_token = part.probe_token
            log.probe_side, log.probe_language = part.probe_side, part.probe_language
        log.languages, log.layer_sides = log.languages or part.languages, log.layer_sides or part.layer_sides
    if not parts:
        return log
    step = np.concatenate([part.step for part in parts])
    keep = latest_rows(step)
    log.step, log.stage = step[keep], np.concatenate([part.stage for part in parts])[keep]
    log.load = np.concatenate([part.load for part in parts])[keep]
    log.ran = np.concatenate([part.ran for part in parts])[keep]
    names = dict.fromkeys(name for part in parts for name in part.terms)
    missing = [np.full((len(part.step), log.n_layers), np.nan) for part in parts]
    log.terms = {name: np.concatenate([part.terms.get(name, nothing) for part, nothing in zip(parts, missing)])[keep]
                 for name in names}
    step = np.concatenate([part.probe_step for part in parts])
    keep = latest_rows(step)
    place = [(number, row) for number, part in enumerate(parts) for row in range(len(part.probe_step))]
    log.probe_step, log.probe_stage = step[keep], np.concatenate([part.probe_stage for part in parts])[keep]
    log.probe_place = np.array(place, np.int64).reshape(-1, 2)[keep]
    return log


class Balance(NamedTuple):
    """How even loads are; each [...] float64, NaN where there was no token."""

    max_over_mean: np.ndarray
    """Load of the fullest expert over the mean load; 1 is even, E is all to one."""
    cv: np.ndarray
    """Coefficient of variation: standard deviation over mean."""
    entropy: np.ndarray
    """Entropy of the shares over log(E): 1 is even, 0 is all to one."""
    dead: np.ndarray
    """Experts without a token."""


def load_share(load: np.ndarray) -> np.ndarray:
    """Share of the load per expert.

    load: [..., E] tokens. Returns [..., E] float64, NaN where there was no token.
    """
    load = np.asarray(load, np.float64)
    total = load.sum(-1, keepdims=True)
    return np.divide(load, total, out=np.full(load.shape, np.nan), where=total > 0)


def balance(load: np.ndarray) -> Balance:
    """How even loads are.

    load: [..., E] tokens per expert. Returns arrays of shape [...].
    """
    share = load_share(load)
    n_experts = share.shape[-1]
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    dead = np.where(np.isnan(share).any(-1), np.nan, (share == 0).sum(-1))
    nats = np.where(np.isnan(dead), np.nan, -(share * logs).sum(-1))
    entropy = nats / np.log(n_experts) if n_experts > 1 else nats + 1
    return Balance(share.max(-1) * n_experts, share.std(-1) * n_experts, entropy, dead)


def last_fluctuation(expert: np.ndarray) -> np.ndarray:
    """Last probe at which a token's expert differs from its expert at the final probe.

    expert: [Q, P]. Returns [P] row numbers, -1 where it never differs.
    """
    expert = np.asarray(expert)
    if not len(expert):
        raise ValueError("last_fluctuation: no probe")
    differs = (expert != expert[-1])[::-1]
    return np.where(differs.any(0), len(expert) - 1 - differs.argmax(0), -1)


def fluctuation_counts(log: RoutingLog, layer: int, tick: Tick | None = None) -> np.ndarray:
    """How many of the real probe tokens of a layer have which last fluctuation step, in bounded memory.

    Returns [Q + 1] int64: first those that never fluctuate, then by probe; all 0 where there are fewer
    than two probes or no choice.
    """
    counts = np.zeros(len(log.probe_step) + 1, np.int64)
    if len(log.probe_step) >= 2:
        for (expert,) in log.probe_blocks(("expert",), layer, tick=tick):
            last = last_fluctuation(expert[:, (expert >= 0).any(0)])
            counts += np.bincount(last + 1, minlength=len(counts))
    return counts


def share_after(counts: np.ndarray, step: np.ndarray, total: int, percent: int) -> float:
    """Share of tokens whose last fluctuation step exceeds that per cent of the training.

    counts: [Q + 1] of fluctuation_counts; step: [Q] update of each probe; total: updates of the training. NaN where
    there is no token.
    """
    late = np.concatenate([[False], np.asarray(step) * 100 > percent * total])
    return float(counts[late].sum() / counts.sum()) if counts.sum() else float("nan")


def agreement_counts(learned: np.ndarray, distilled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens for which both choices are known, and those for which they agree.

    learned, distilled: [..., P]; below 0 where there is no such choice. Returns two arrays [...] int64.
    """
    known = (learned >= 0) & (distilled >= 0)
    return known.sum(-1), (known & (learned == distilled)).sum(-1)


def agreement(learned: np.ndarray, distilled: np.ndarray) -> np.ndarray:
    """Share of tokens for which learned and distilled choice agree.

    learned, distilled: [..., P]. Returns [...] float64, NaN where no token has both.
    """
    known, agree = agreement_counts(learned, distilled)
    return np.divide(agree, known, out=np.full(known.shape, np.nan), where=known > 0)


def probe_agreement(log: RoutingLog, layer: int, rows: np.ndarray | None = None,
                    tick: Tick | None = None) -> np.ndarray:
    """agreement of the probes of a layer, read in blocks.

    rows: [q] probes wanted; None: all. Returns [q] float64, NaN where no token has both choices.
    """
    n_rows = len(log.probe_step) if rows is None else len(rows)
    known, agree = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
    for learned, distilled in log.probe_blocks(("learned", "distilled"), layer, rows, tick):
        block_known, block_agree = agreement_counts(learned, distilled)
        known += block_known
        agree += block_agree
    return np.divide(agree, known, out=np.full(n_rows, np.nan), where=known > 0)
