"""Runs as tables of pandas and data sets of xarray, for those who have these packages.

Everything here is also to be had from analysis.routing and analysis.run as NumPy
arrays. Debian: python3-pandas, python3-xarray. Letters in shapes are those of
analysis.routing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from analysis import routing, series
from analysis.run import Run, open_run

if TYPE_CHECKING:
    import pandas
    import xarray


def _pandas() -> object:
    try:
        import pandas
    except ImportError:
        raise ImportError("this needs pandas (Debian: python3-pandas); analysis.routing gives the same as NumPy "
                          "arrays") from None
    return pandas


def _run(run: Run | Path | str) -> Run:
    return run if isinstance(run, Run) else open_run(Path(run))


def _log(run: Run | Path | str) -> routing.RoutingLog:
    """Raises LogError where there is no log."""
    opened = _run(run)
    if opened.log is None:
        raise routing.LogError(f"{opened.path}: no routing log: {'; '.join(opened.notes)}")
    return opened.log


def metrics(run: Run | Path | str) -> pandas.DataFrame:
    """metrics.csv: one row per update, index "update"."""
    opened = _run(run)
    if opened.metrics is None:
        raise FileNotFoundError(f"{opened.path}: {'; '.join(opened.notes)}")
    frame = _pandas().DataFrame(opened.metrics.columns)
    return frame.astype({"update": "int64"}).set_index("update")


def loads(run: Run | Path | str) -> pandas.DataFrame:
    """Tokens per expert: index (update, layer), one column per expert."""
    pd, log = _pandas(), _log(run)
    index = pd.MultiIndex.from_product([log.step, range(log.n_layers)], names=["update", "layer"])
    columns = pd.Index(range(log.n_experts), name="expert")
    return pd.DataFrame(log.load.reshape(-1, log.n_experts), index=index, columns=columns)


def balance(run: Run | Path | str) -> pandas.DataFrame:
    """max_over_mean, cv, entropy and dead of the loads, and the terms of the log: index (update, layer)."""
    pd, log = _pandas(), _log(run)
    index = pd.MultiIndex.from_product([log.step, range(log.n_layers)], names=["update", "layer"])
    columns = routing.balance(log.load)._asdict() | log.terms
    return pd.DataFrame({name: values.reshape(-1) for name, values in columns.items()}, index=index)


def fluctuation(run: Run | Path | str) -> pandas.DataFrame:
    """Per cent of the probe's tokens that still change after 20, 50 and 80 % of the training, a row per layer."""
    pd, opened = _pandas(), _run(run)
    log = _log(opened)
    found = [series.fluctuation(log, layer, opened.updates_done) for layer in range(log.n_layers)]
    rows = [[float("nan") if one is None else 100 * one.shares[percent] for percent in routing.BASE_FLUCTUATION]
            for one in found]
    return pd.DataFrame(rows, index=pd.RangeIndex(log.n_layers, name="layer"),
                        columns=pd.Index(list(routing.BASE_FLUCTUATION), name="after % of training"))


def specialisation(run: Run | Path | str, layer: int = 0, n: int = 20) -> pandas.DataFrame:
    """The n most characteristic token ids of every expert, of the records that tell what experts have become."""
    pd, opened = _pandas(), _run(run)
    log = _log(opened)
    found = routing.settled(routing.records(log), opened.switch)
    table = (routing.count_layer(log, layer, found).token_expert if len(found.step)
             else routing.probe_counts(log, layer))
    parts = [pd.DataFrame({"expert": e, **special._asdict()})
             for e, special in enumerate(routing.specialisation(table, n))]
    return pd.concat(parts, ignore_index=True)


def open_xarray(run: Run | Path | str, tokens: bool = False) -> xarray.Dataset:
    """The whole routing log as one data set with named dimensions, whatever files it is in.

    Dimensions: step, layer, expert; gate, of a model with gates (ran, probe_ran); probe_step, probe (probe tokens);
    with tokens=True also tokens_step, place, slot. Coordinates of the first kind are updates; probe_token [probe] and tokens_id
    [tokens_step, place] are token ids. Of an update that two files hold, the later file counts.
    tokens: read the records of all tokens too (large: 8 bytes per assignment and layer).
    """
    try:
        import xarray
    except ImportError:
        raise ImportError("this needs xarray (Debian: python3-xarray)") from None
    log = _log(run)
    data = {"stage": ("step", log.stage), "load": (("step", "layer", "expert"), log.load),
            **{name: (("step", "layer"), values) for name, values in log.terms.items()}}
    coords = {"step": log.step, "layer": np.arange(log.n_layers), "expert": np.arange(log.n_experts)}
    if log.gates:
        data["ran"], coords["gate"] = (("step", "gate"), log.ran), log.gates
    if len(log.probe_step):
        rows = np.arange(len(log.probe_step))
        if log.gates:
            data["probe_ran"] = (("probe_step", "gate", "probe"), np.stack(
                [log.probe_part("ran", g, rows, 0, log.n_probe) for g in range(len(log.gates))], 1))
        for name in ("expert", "learned", "distilled") if log.n_layers else ():
            values = np.stack([log.probe_part(name, m, rows, 0, log.n_probe) for m in range(log.n_layers)], 1)
            data[f"probe_{name}"] = (("probe_step", "layer", "probe"), values)
        data["probe_stage"] = ("probe_step", log.probe_stage)
        coords |= {"probe_step": log.probe_step, "probe_token": ("probe", log.probe_token)}
    found = routing.records(log) if tokens else None
    if found is not None and len(found.step):
        parts = []
        for number, row in found.place:
            with h5py.File(log.files[number], "r") as file:
                parts.append([file[f"tokens/{name}"][row] for name in ("id", "expert", "gate")])
        ids, expert, gate = (np.stack(part) for part in zip(*parts))
        shape = ("tokens_step", "layer", "place", "slot")
        data |= {"tokens_expert": (shape, expert), "tokens_gate": (shape, gate),
                 "tokens_id": (("tokens_step", "place"), ids)}
        coords["tokens_step"] = found.step
    units = {"load": "tokens", "step": "updates", "probe_step": "updates", "tokens_step": "updates"}
    out = xarray.Dataset(data, coords, {"method": log.method, "files": [path.name for path in log.files]})
    for name, unit in units.items():
        if name in out.variables:
            out[name].attrs["units"] = unit
    return out
