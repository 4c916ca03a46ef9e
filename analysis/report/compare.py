"""What stands in the way of comparing runs."""

from __future__ import annotations

import os
import re
from typing import Any

import h5py
import numpy as np

from analysis.run import Run, trained_on

Data = dict[str, Any]


def fingerprint(run: Run) -> int:
    """Which tokens a run is about: by its newest checkpoint, else by its corpus; 0 where neither tells."""
    found = trained_on(run.path)
    if found or run.corpus is None:
        return found
    try:
        with h5py.File(run.corpus, "r") as file:
            return int(np.uint64(file.attrs["fingerprint"]))
    except (OSError, KeyError, ValueError, RuntimeError):
        return 0


OWN_KEYS = ("run.directory", "run.seed")
"""In these, runs of one group may differ."""


def group(data: list[Data]) -> None:
    """Number the groups of runs that differ in their seed alone: "group" and "group_name" of each entry.

    A run whose configuration is not known is a group of its own.
    """
    numbers: dict[Any, int] = {}
    members: dict[int, list[str]] = {}
    for i, entry in enumerate(data):
        settings = sorted((key, repr(value)) for key, value in entry["settings"].items() if key not in OWN_KEYS)
        entry["group"] = numbers.setdefault(tuple(settings) or i, len(numbers))
        members.setdefault(entry["group"], []).append(entry["name"])
    for entry in data:
        names = members[entry["group"]]
        common = re.sub(r"[-_./ ]*(seed)?[-_./ ]*$", "", os.path.commonprefix(names))
        several = f"{common} ({len(names)} runs)" if common else ", ".join(names)
        entry["group_name"] = names[0] if len(names) == 1 else several


def _groups(names: list[str], keys: list[Any]) -> str:
    """"a, b / c": names of runs with the same key together."""
    members: dict[Any, list[str]] = {}
    for name, key in zip(names, keys):
        members.setdefault(key, []).append(name)
    return " / ".join(", ".join(group) for group in members.values())


def warnings(runs: list[Run], data: list[Data]) -> list[str]:
    """One sentence for everything in which runs differ so that figures cannot be compared."""
    if len(runs) < 2:
        return []
    found = []
    names = [entry["name"] for entry in data]
    prints = [fingerprint(run) for run in runs]
    if len({p for p in prints if p}) > 1:
        rows = "patches" if all(entry.get("images") for entry in data) else "tokens"
        found.append(f"these runs are over different corpora: their losses and what they say of {rows} cannot be "
                     f"compared ({_groups(names, prints)})")
    probes = [run.log.probe_token.tobytes() if run.log is not None and run.log.n_probe else b"" for run in runs]
    if len({p for p in probes if p}) > 1 and not found:
        found.append("these runs probe different tokens: fluctuation and passages are of different texts "
                     f"({_groups(names, probes)})")
    batches = [(run.settings.get("train.batch_sequences"), run.settings.get("model.context")) for run in runs]
    if len(set(batches)) > 1:
        found.append("these runs have updates of different sizes: the same update is not the same "
                     f"amount of training ({_groups(names, batches)})")
    done = [entry["updates"] for entry in data]
    if len(set(done)) > 1:
        found.append(f"some runs have done fewer updates than the {max(done):,} of the others: "
                     + ", ".join(f"{name} {n:,}" for name, n in zip(names, done) if n < max(done)))
    return found
