"""Read a run directory: used.yml, metrics.csv, the routing log, and the corpus's reference losses."""

from __future__ import annotations

import csv
import os
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Finished files never change, and shared file systems often have no locks.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py
import numpy as np

from analysis import routing
from analysis.counts import Tick
from analysis.settings import Scalar, parse_settings


@dataclass
class Metrics:
    """metrics.csv by column; one row per update, in order of update."""

    columns: dict[str, np.ndarray]
    """name -> [rows] float64; NaN where a field is empty."""
    notes: list[str] = field(default_factory=list)
    """What was left out of the file, and why."""

    def __len__(self) -> int:
        return len(self.columns["update"])

    def column(self, name: str) -> np.ndarray:
        """[rows] float64; all NaN where the file has no such column."""
        values = self.columns.get(name)
        return np.full(len(self), np.nan) if values is None else values

    @property
    def further_terms(self) -> list[str]:
        """Loss terms besides balance and distill: the columns between those of the MoE layers and `seconds`."""
        names = list(self.columns)
        last = max((i for i, name in enumerate(names) if re.match(r"moe\d+_", name) or name == "valid_perplexity"),
                   default=len(names))
        rest = names[last + 1:names.index("seconds")] if "seconds" in names[last + 1:] else []
        return [name for name in rest if not name.endswith(("_run", "accuracy", "bleu"))]

    @property
    def gates(self) -> list[str]:
        """Sublayers behind gates (model.skip), whose columns are <name>_run: the share of rows that ran."""
        return [name.removesuffix("_run") for name in self.columns if name.endswith("_run")]

    @property
    def n_layers(self) -> int:
        """MoE layers that have columns."""
        layers = {int(m.group(1)) for m in (re.match(r"moe(\d+)_", name) for name in self.columns) if m}
        return max(layers) + 1 if layers else 0


@dataclass(frozen=True)
class Baselines:
    """Losses that counting alone reaches on the validation split, nats per token."""

    path: Path
    unigram: float
    bigram: float


@dataclass
class Run:
    """What there is of a run. Parts that are not there are None, and notes say why."""

    path: Path
    settings: dict[str, Scalar]
    metrics: Metrics | None
    log: routing.RoutingLog | None
    baselines: Baselines | None
    notes: list[str]
    corpus: Path | None = None
    """The corpus that used.yml names, where it was found."""

    @property
    def is_images(self) -> bool:
        """Whether the model is of images, whose rows are patches."""
        return self.settings.get("model.family") in ("cnn", "vision")

    @property
    def item(self) -> str:
        """What a loss is of: an image or a token."""
        return "image" if self.is_images else "token"

    @property
    def n_layers(self) -> int:
        """MoE layers, by the log, else by the metrics."""
        if self.log is not None:
            return self.log.n_layers
        return self.metrics.n_layers if self.metrics is not None else 0

    @property
    def updates_done(self) -> int:
        """Last update that anything was recorded of; 0 where there is nothing."""
        last = 0
        if self.metrics is not None:
            last = int(self.metrics.columns["update"][-1])
        if self.log is not None:
            for steps in (self.log.step, self.log.probe_step):
                last = max(last, int(steps[-1])) if len(steps) else last
        return last

    @property
    def updates_planned(self) -> int | None:
        """train.updates of used.yml."""
        value = self.settings.get("train.updates")
        return value if isinstance(value, int) else None

    @property
    def switch(self) -> int | None:
        """First update of stage 2 (1-based); None where the run has not come there."""
        found = []
        if self.metrics is not None:
            rows = np.flatnonzero(self.metrics.column("stage") == 2)
            found += [int(self.metrics.columns["update"][rows[0]])] if len(rows) else []
        if not found and self.log is not None:
            rows = np.flatnonzero(self.log.stage == 2)
            found += [int(self.log.step[rows[0]])] if len(rows) else []
        return found[0] if found else None

    def training_agreement(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Share of the training tokens of stage 1 for which learned and distilled router agree.

        Returns update [n] and share [n], from the metrics, else from the log; empty where there is none.
        """
        sources = []
        if self.metrics is not None:
            sources.append((self.metrics.columns["update"], self.metrics.column("stage"),
                            self.metrics.column(f"moe{layer}_agreement")))
        if self.log is not None:
            sources.append((self.log.step, self.log.stage, self.log.terms["agreement"][:, layer]))
        for update, stage, values in sources:
            keep = (stage != 2) & np.isfinite(values)
            if keep.any():
                return update[keep], values[keep]
        return np.zeros(0), np.zeros(0)

    def probe_agreement(self, layer: int, tick: Tick | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The same share of the probe's validation tokens: update [q] and share [q].

        tick: told of the choices read.
        """
        if self.log is None:
            return np.zeros(0), np.zeros(0)
        rows = np.flatnonzero(self.log.probe_stage != 2)
        values = routing.probe_agreement(self.log, layer, rows, tick)
        keep = np.isfinite(values)
        return self.log.probe_step[rows][keep], values[keep]

    def title(self) -> str:
        """One line that says which run this is."""
        parts = []
        for key, form in (("router.method", "{}"), ("moe.experts", "{} experts"),
                          ("model.blocks", "{} blocks"), ("model.width", "width {}"),
                          ("run.seed", "seed {}")):
            if key in self.settings:
                parts.append(form.format(self.settings[key]))
        return self.path.resolve().name + (f" ({', '.join(parts)})" if parts else "")


def _number(text: str) -> float:
    """The number of a field; NaN where it is empty or no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def read_metrics(path: Path) -> Metrics:
    """Read metrics.csv. Of rows of one update the later wins; columns nobody knows are kept.

    Raises ValueError where the file has no header with a column "update", or no row.
    """
    notes = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if "update" not in header:
            raise ValueError(f"{path}: the first line has no column 'update'")
        values = [array("d") for _ in header]
        bad = 0
        for row in reader:
            if len(row) != len(header) or not _number(row[header.index("update")]) >= 0:
                bad += 1
                continue
            for column, text in zip(values, row):
                column.append(_number(text))
    if bad:
        notes.append(f"{path.name}: {bad} incomplete or unreadable row{'s' if bad > 1 else ''} left out")
    columns = {name: np.array(column, dtype=np.float64) for name, column in zip(header, values)}
    if not len(columns["update"]):
        raise ValueError(f"{path}: no rows yet")
    keep = routing.latest_rows(columns["update"])
    return Metrics({name: column[keep] for name, column in columns.items()}, notes)


def read_baselines(path: Path) -> Baselines | None:
    """Unigram and bigram loss of a corpus file; None where it does not say."""
    with h5py.File(path, "r") as file:
        known = all(name in file.attrs and np.isfinite(file.attrs[name]) for name in ("unigram_nats", "bigram_nats"))
        if known:  # not where training or validation is empty
            return Baselines(path, float(file.attrs["unigram_nats"]), float(file.attrs["bigram_nats"]))
    return None


def _of_newest_checkpoint(run: Path, name: str) -> Any:
    """An attribute of the newest checkpoint; None where there is none to be read."""
    newest = run / "checkpoints/latest"
    if not newest.exists():  # the file system has no symbolic links
        newest = max((run / "checkpoints").glob("step-*.h5"), key=lambda path: int(path.stem[5:]), default=newest)
    try:
        with h5py.File(newest, "r") as file:
            return file["meta"].attrs[name]
    except (OSError, KeyError, ValueError, RuntimeError):
        return None


def find_corpus(run: Path, settings: dict[str, Scalar]) -> Path | None:
    """The corpus of a run: where the training had it; as used.yml names it, from here or from the run; else corpus.h5
    in the run."""
    named = str(settings.get("data.corpus", ""))
    candidates = [Path(named), run / named, run.parent / named] if named else []
    trained = _of_newest_checkpoint(run, "corpus_absolute")
    if trained:
        candidates.insert(0, Path(trained.decode() if isinstance(trained, bytes) else str(trained)))
    return next((path for path in [*candidates, run / "corpus.h5"] if path.is_file()), None)


def trained_on(run: Path) -> int:
    """Fingerprint of the corpus that the newest checkpoint was trained on; 0 where there is none to be read."""
    found = _of_newest_checkpoint(run, "fingerprint")
    return 0 if found is None else int(np.uint64(found))


def _baselines_of(run: Path, corpus: Path | None, settings: dict[str, Scalar], notes: list[str]) -> Baselines | None:
    if corpus is None:
        named = str(settings.get("data.corpus", ""))
        notes.append(f"corpus {named or 'corpus.h5'} not found: no unigram and bigram lines")
        return None
    try:
        with h5py.File(corpus, "r") as file:
            present = int(np.uint64(file.attrs.get("fingerprint", 0)))
            if file.attrs.get("format") in ("stablemoe-images", b"stablemoe-images"):
                return None  # images have no counts of tokens
        baselines = read_baselines(corpus)
    except OSError as error:
        notes.append(f"{corpus}: cannot be read: {error}")
        return None
    if baselines is None:
        notes.append(f"{corpus}: has no unigram and bigram loss")
    trained = trained_on(run)
    if trained and present and trained != present:
        notes.append(f"{corpus} is not the corpus of the training any more: no unigram and bigram lines")
        return None
    return baselines


def open_run(path: Path) -> Run:
    """Read all there is of a run directory.

    Raises NotADirectoryError where there is no such directory; whatever else is
    missing or damaged becomes a note.
    """
    if not path.is_dir():
        raise NotADirectoryError(f"no run directory '{path}'")
    notes: list[str] = []
    settings: dict[str, Scalar] = {}
    try:
        settings = parse_settings((path / "used.yml").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        notes.append("no used.yml: the run's configuration is not known")
    except ValueError as error:
        notes.append(f"used.yml cannot be read, the run's configuration is not known: {error}")
    metrics = None
    try:
        metrics = read_metrics(path / "metrics.csv")
        notes += metrics.notes
    except FileNotFoundError:
        notes.append("no metrics.csv")
    except (OSError, ValueError) as error:
        notes.append(str(error))
    log = routing.load_log(path)
    notes += log.notes
    corpus = find_corpus(path, settings)
    return Run(path, settings, metrics, log if log.files else None,
               _baselines_of(path, corpus, settings, notes), notes, corpus)
