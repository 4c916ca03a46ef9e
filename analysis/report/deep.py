"""The parts of a report that need every token: specialisation, information, flow, gates, a passage."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from analysis import counts, routing
from analysis.report import images
from analysis.report.progress import Progress
from analysis.run import Run, trained_on
from analysis.text import Vocabulary, read_vocabulary

INFORMATION_ROWS = 48
"""Probes or records over which the mutual information is drawn."""

INFORMATION_TOKENS = 100_000
"""Tokens of a probe or record that it is made of."""

TOP_TOKENS = 24
PASSAGE_TOKENS, PASSAGE_ROWS, PASSAGE_PARTS = 640, 72, 5

Data = dict[str, Any]


def _some(n: int, limit: int) -> np.ndarray:
    """At most `limit` of n rows, evenly spread, the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).round().astype(np.int64)) if n else np.zeros(0, np.int64)


class Plan:
    """What there is to read of a run, and how much."""

    def __init__(self, run: Run) -> None:
        self.run, self.log = run, run.log
        self.records = self.settled = counts.Records(np.zeros(0, np.int64), np.zeros((0, 2), np.int64), 0)
        self.n_assignments = 0
        if self.log is None or self.log.n_experts < 2:
            return
        self.records = counts.records(self.log)
        self.settled = counts.settled(self.records, run.switch)
        layers, probe = self.log.n_layers, len(self.log.probe_step) * self.log.n_probe
        stage1 = int((self.log.probe_stage != 2).sum()) * self.log.n_probe
        self.n_assignments = layers * (probe + 2 * stage1 + self.settled.n_tokens)
        self.n_assignments += max(0, layers - 1) * self.settled.n_tokens


def _round(value: float, digits: int = 4) -> float | None:
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def vocabulary_of(run: Run, notes: list[str]) -> Vocabulary | None:
    """The corpus's pieces, if they are those that the run was trained with."""
    if run.corpus is None:
        named = run.settings.get("data.corpus", "")
        notes.append(f"{f'corpus {named} not found' if named else 'no corpus is known'}: tokens are shown by their ids")
        return None
    try:
        vocabulary = read_vocabulary(run.corpus)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        notes.append(f"{run.corpus}: cannot be read: {error}; tokens are shown by their ids")
        return None
    trained = trained_on(run.path)
    if trained and vocabulary.fingerprint and trained != vocabulary.fingerprint:
        notes.append(f"{run.corpus} is not the corpus of the training any more (its fingerprint differs): tokens are "
                     "shown by their ids")
        return None
    if not vocabulary.pieces:
        notes.append(f"{run.corpus} has no tokenizer: tokens are shown by their ids")
    return vocabulary


def _special(table: np.ndarray, gate_mean: np.ndarray | None, vocabulary: Vocabulary | None) -> list[Data]:
    """One entry per expert: its share of the tokens, how many ids it has seen, and its characteristic ids."""
    total = max(1, int(table.sum()))
    out = []
    for e, top in enumerate(counts.specialisation(table, TOP_TOKENS)):
        tokens = [[vocabulary.text(int(t)) if vocabulary else f"#{t}", int(t), int(n), _round(lift, 3),
                   _round(share, 3)]
                  for t, n, lift, share in zip(top.token, top.count, top.lift, top.share)]
        out.append({"share": _round(table[:, e].sum() / total), "ids": int((table[:, e] > 0).sum()),
                    "gate": None if gate_mean is None else _round(float(gate_mean[e])), "top": tokens})
    return out


def _information_of_probes(run: Run, layer: int) -> Data | None:
    log = run.log
    rows = _some(len(log.probe_step), INFORMATION_ROWS)
    ids = log.probe_token[:INFORMATION_TOKENS]
    x, y, chance = [], [], []
    expert = log.probe_part("expert", layer, rows, 0, len(ids)) if len(rows) and len(ids) else np.zeros((0, 0))
    for row, choice in zip(rows, expert):
        found, dealt = counts.information(ids, choice, log.n_experts)
        if found.expert > 0:
            x.append(int(log.probe_step[row]))
            y.append(_round(100 * found.share))
            chance.append(_round(100 * dealt / found.expert))
    return {"x": x, "y": y, "chance": chance, "tokens": int((ids >= 0).sum())} if x else None


def _languages(log: routing.RoutingLog, layer: int) -> list[Data]:
    """One entry per language of the last probe: the share of its tokens that each expert has."""
    table = counts.probe_languages(log, layer)
    return [{"language": name, "tokens": int(row.sum()), "share": [_round(100 * float(n) / row.sum()) for n in row]}
            for name, row in zip(log.languages, table) if row.sum()]


def _flow_data(flow: np.ndarray) -> Data | None:
    total = int(flow.sum())
    if not total:
        return None
    found = counts.mutual_information(flow)
    return {"counts": flow.tolist(), "tokens": total, "information": _round(100 * found.share)}


def _bytes(values: np.ndarray, n_experts: int) -> str:
    """Experts as base64 of bytes, or of little-endian pairs of bytes; the largest value: none."""
    kind = np.dtype("<u1") if n_experts < 255 else np.dtype("<u2")
    none = np.iinfo(kind).max
    return base64.b64encode(np.where(values < 0, none, values).astype(kind).tobytes()).decode()


def _passage(run: Run, vocabulary: Vocabulary | None) -> Data | None:
    """Sequences of the probe as text, with the experts of their tokens at some probes."""
    log = run.log
    if not len(log.probe_step) or not log.n_probe:
        return None
    rows = _some(len(log.probe_step), PASSAGE_ROWS)
    context = run.settings.get("model.context")
    length = min(context if isinstance(context, int) and context > 0 else 128, log.n_probe)
    shown = min(length, PASSAGE_TOKENS)
    n_parts = max(1, min(PASSAGE_PARTS, log.n_probe // length, PASSAGE_TOKENS // shown))
    parts = []
    for part in range(n_parts):
        first = part * length
        ids = log.probe_token[first:first + shown].tolist()
        choices = {}
        for name in ("expert", "learned", "distilled"):
            values = np.stack([log.probe_part(name, m, rows, first, first + shown)
                               for m in range(log.n_layers)], 1)
            if (values >= 0).any():
                choices[name] = _bytes(values, log.n_experts)
        parts.append({"ids": ids, "text": [vocabulary.text(t) if vocabulary else f"#{t} " for t in ids],
                      "choices": choices})
    return {"steps": log.probe_step[rows].tolist(), "parts": parts, "wide": log.n_experts >= 255}


def collect(plan: Plan, layers: list[Data], notes: list[str], progress: Progress) -> Data:
    """Add to the layers what is counted over all tokens; returns what belongs to the run as a whole."""
    run, log = plan.run, plan.log
    if log is None or log.n_experts < 2:  # one expert takes all: nothing is routed
        return {"flow": [], "passage": None, "counted": None}
    patches = images.patches(run)
    vocabulary = vocabulary_of(run, notes) if not patches else None
    rows = len(vocabulary.pieces) if vocabulary else max(1, patches)
    recorded = bool(len(plan.settled.step))
    counted = None
    if recorded:
        first, last = int(plan.settled.step[0]), int(plan.settled.step[-1])
        counted = {"source": "training tokens", "first": first, "last": last, "records": len(plan.settled.step),
                   "of": len(plan.records.step), "tokens": plan.settled.n_tokens}
    elif len(log.probe_step):
        last = int(log.probe_step[-1])
        counted = {"source": "probe", "first": last, "last": last, "records": 1, "of": len(log.probe_step),
                   "tokens": int((log.probe_token >= 0).sum())}
    flow = []
    for m, layer in enumerate(layers):
        if recorded:
            found = counts.count_layer(log, m, plan.settled, rows, progress.tick, patches)
            table, gate_mean = found.token_expert, found.gate_mean
            layer["gates"] = {"bins": found.gate.sum(0).tolist(), "mean": [_round(float(g)) for g in gate_mean],
                              "dropped": found.n_dropped}
        elif counted:
            table, gate_mean = routing.probe_counts(log, m, -1, rows), None
        if counted and table.sum():
            layer["special"] = _special(table, gate_mean, vocabulary)
            layer["places"] = images.places(table) if patches else None
            found = counts.mutual_information(table)
            layer["information_end"] = {"mutual": _round(found.mutual), "expert": _round(found.expert),
                                        "token": _round(found.token), "share": _round(100 * found.share)}
        layer["languages"] = _languages(log, m)
        layer["side"] = log.layer_sides[m] if m < len(log.layer_sides) else None
        layer["information"] = _information_of_probes(run, m)
        if counted and m + 1 < len(layers):
            flow.append(_flow_data(counts.count_flow(log, m, plan.settled, progress.tick) if recorded
                                   else routing.probe_flow(log, m)))
    return {"flow": flow, "passage": None if patches else _passage(run, vocabulary), "counted": counted,
            "pictures": images.pictures(run, plan.settled, notes) if patches else None}
