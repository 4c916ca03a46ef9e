"""What `python3 -m analysis scaling` prints: fitted costs, their error, and forecasts."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import numpy as np

from analysis import scaling_figures, scaling_forecast, scaling_model, scaling_plan, scaling_planned, scaling_study
from analysis.scaling_forecast import Forecast
from analysis.scaling_model import Costs
from analysis.scaling_study import Study, StudyError


def _rate(costs: Costs, study: Study) -> float:
    """FLOP/s of one rank over all products of the study's model."""
    point = study.points[0]
    amount = scaling_model.work(scaling_model.shape_of(point), scaling_model.batch_of(point))
    names = scaling_model.PRODUCTS
    return sum(amount[n] for n in names) / sum(amount[n] * costs.seconds_per_unit[n] for n in names)


def adjusted(costs: Costs, study: Study, rate: float | None, uneven: float | None,
             network: tuple[float, float] | None = None) -> Costs:
    """The costs of another machine or model than the study's.

    rate: of a rank's matrix products, FLOP/s; uneven: rows of the busiest expert over the mean;
    network: latency (s) and bandwidth (bytes/s) between nodes. None: as fitted.
    """
    if network:
        costs = replace(costs, network=replace(costs.network, latency_out=network[0], bandwidth_out=network[1]))
    if rate:
        factor = _rate(costs, study) / rate
        unit = {name: cost * (factor if name in scaling_model.PRODUCTS else 1)
                for name, cost in costs.seconds_per_unit.items()}
        costs = replace(costs, seconds_per_unit=unit)
    if uneven and len(costs.profile) > 1:
        profile = np.array(costs.profile)
        if profile.max() <= 1:  # even loads have no form that could be stretched
            profile = 1 + np.linspace(-1, 1, len(profile))
        profile = np.maximum(0, 1 + (profile - 1) * (uneven - 1) / (profile.max() - 1))
        costs = replace(costs, profile=tuple(profile / profile.mean()))
    return costs


def costs_text(costs: Costs, study: Study) -> str:
    """What was fitted."""
    point = study.middle(study.ranks[0])
    network, unit = costs.network, costs.seconds_per_unit
    rates = ", ".join(f"{name} {1e-9 / unit[name]:.1f}" for name in scaling_model.PRODUCTS if unit[name])
    lines = ["fitted to " + ", ".join(str(r) for r in study.ranks)
             + f" ranks on {point.bench['nodes']} node(s) of {study.cores(point):g} cores"
             + (", by the processor's clock" if point.clock == "processor" else ""),
             f"  products     {rates} GFLOP/s of a rank alone; GEMM itself {1e-9 * point.bench['gemm_flops_per_s']:.1f}",
             f"  memory       {1e-9 / costs.seconds_per_byte:.2f} GB/s adding gradients, Adam "
             f"{1e-6 / costs.seconds_per_adam:.0f} million parameters/s",
             f"  full node    a rank is {100 * costs.contention:.1f} % slower; spread between ranks "
             f"{100 * costs.waiting:.1f} %"]
    known_in, known_out = ("measured" if known else "assumed" for known in (costs.fitted_in, costs.fitted_out))
    lines.append(f"  in a node    {1e6 * network.latency_in:.1f} us, {1e-9 * network.bandwidth_in:.2f} GB/s ({known_in})")
    lines.append(f"  between      {1e6 * network.latency_out:.1f} us, {8e-9 * network.bandwidth_out:.2f} Gbit/s "
                 f"({known_out})")
    if costs.profile:
        lines.append(f"  experts      busiest over mean {max(costs.profile):.2f}, placed "
                     + ("by load" if costs.packed else "in their order"))
    return "\n".join(lines)


def error_text(study: Study) -> str:
    """How well the model predicts rank counts that were left out of its fit."""
    rows = scaling_model.left_out(study)
    if not rows:
        return "one rank count: nothing to test the model on"
    lines = ["left out of the fit:  ranks   measured ms  predicted ms   error"]
    for ranks, seen, predicted in rows:
        lines.append(f"{ranks:27d} {1e3 * seen:13.1f} {1e3 * predicted:13.1f} {100 * (predicted / seen - 1):+6.1f} %")
    errors = [abs(predicted / seen - 1) for _, seen, predicted in rows]
    lines.append(f"mean error {100 * float(np.mean(errors)):.1f} %, largest {100 * max(errors):.1f} %")
    return "\n".join(lines)


def forecast_text(forecasts: list[Forecast], title: str, memory: float = math.inf) -> str:
    """Table of a forecast; rows whose state takes more than `memory` bytes are marked."""
    lines = [title, " ranks  nodes    G  replicas  update ms    tokens/s  efficiency  state     compute  uneven"
                    "  exchange  reduction  optimizer  waiting",
             "                                                              GiB/rank  % of the update"]
    for f in forecasts:
        place, total = f.place, f.time.total
        parts = (f.time.compute, f.time.imbalance, f.time.exchange, f.time.reduction, f.time.optimizer, f.time.waiting)
        widths = (9, 7, 9, 10, 10, 8)
        lines.append(f"{place.ranks:6d} {math.ceil(place.ranks / place.per_node):6d} {place.expert_ranks:4d} "
                     f"{place.ranks // place.expert_ranks:9d} {1e3 * total:10.1f} {f.tokens_per_s:11.0f} "
                     f"{f.efficiency:11.2f} {f.state_bytes / 2 ** 30:9.2f} "
                     + " ".join(f"{100 * part / total:{width}.1f}" for part, width in zip(parts, widths))
                     + (" *" if f.state_bytes > memory else ""))
    if any(f.state_bytes > memory for f in forecasts):
        lines.append(f"* no split fits into {memory / 2 ** 30:g} GiB per rank")
    return "\n".join(lines)


def _network_text(costs: Costs) -> str:
    return f"{1e6 * costs.network.latency_out:g} us, {8e-9 * costs.network.bandwidth_out:g} Gbit/s"


def _plans(options: argparse.Namespace, costs: Costs, study: Study) -> int:
    """Forecast what was planned; returns the exit status."""
    plans = [scaling_planned.read(path) for path in options.plan]
    measured = study.points[0].bench.get("precision", "fp32")
    others = sorted({plan.counts["precision"] for plan in plans} - {measured})
    if others:
        print(f"note: planned in {', '.join(others)}; the study's rates are those of {measured}")
    costs = adjusted(costs, study, options.rate and 1e9 * options.rate, options.imbalance, options.network)
    title = f"forecast for {len(plans)} plan{'s' if len(plans) > 1 else ''}, between nodes {_network_text(costs)}"
    print("\n" + scaling_planned.text(costs, plans, title, options.memory * 2 ** 30))
    return 0


def run(options: argparse.Namespace) -> int:
    """Fit, test, forecast, draw; returns the exit status."""
    study = scaling_study.load(options.study, options.clock)
    if not study.points:
        raise StudyError(f"{options.study}: no run is done; jobs/scaling.sh goes on with it")
    costs = scaling_model.fit(study)
    print(costs_text(costs, study))
    print(error_text(study))
    if options.plan:
        return _plans(options, costs, study)
    point = study.points[0]
    shape, batch, name = scaling_model.shape_of(point), scaling_model.batch_of(point), "forecast"
    if study.about["mode"] == "weak":
        batch = replace(batch, sequences=batch.sequences // point.ranks, lanes=batch.lanes // point.ranks)
    title = study.about["config"]
    if options.config:
        settings = scaling_plan.resolved_config(options.config, options.keys)
        shape, batch = scaling_model.shape_of_config(settings, options.vocab)
        name, title = f"forecast-{options.config.stem}", str(options.config)
    costs = adjusted(costs, study, options.rate and 1e9 * options.rate, options.imbalance, options.network)
    cores = study.cores(point)
    per_node = options.per_node or max(1, int(cores))
    title += f", {per_node} rank{'s' if per_node > 1 else ''} per node, between nodes {_network_text(costs)}"
    both, memory = [], options.memory * 2 ** 30
    for mode, text in (("strong", "strong scaling: the same batch on all"),
                       ("weak", f"weak scaling: a rank has what it would have on {options.base_ranks}")):
        both.append(scaling_forecast.forecasts(costs, shape, batch, options.ranks, mode, per_node, max(1, per_node),
                                               options.base_ranks, memory))
        print("\n" + forecast_text(both[-1], f"forecast for {title}; {text}", memory))
        if mode == "strong" and len(both[0]) < len(options.ranks):
            print(f"  ({batch.sequences} sequences are too few for more ranks)")
    directory = options.output or study.path
    directory.mkdir(parents=True, exist_ok=True)
    for path in scaling_figures.draw_forecast(both[0], both[1], title, directory, name):
        print(f"written: {path}")
    return 0
