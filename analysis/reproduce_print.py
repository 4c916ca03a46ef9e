"""Tables of jobs/reproduce.sh as Markdown, their figures as JSON, and the fluctuation figure."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.paper_tables import PAPER_DIRECTIONS, Row, Size, multiply_adds
from analysis.relative_tables import TABLES

if TYPE_CHECKING:
    from analysis.reproduce import Job

PERCENTS = (20, 50, 80)
RATES = "rates.json"
"""Beside the tables: tokens per second of each row."""


def _spread(values: list[float]) -> str:
    """'43.21 ± 0.12' of several values; without spread of one."""
    if not values:
        return "missing"
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def _paper(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _large(value: float) -> str:
    """A count with a unit: '0.44 M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rows(jobs: list[Job]) -> list[tuple[Row, list[Job]]]:
    """Jobs by row, in the table's order."""
    rows: dict[str, tuple[Row, list[Job]]] = {}
    for job in jobs:
        rows.setdefault(job.row.name, (job.row, []))[1].append(job)
    return list(rows.values())


def _settings(job: Job) -> dict:
    from analysis.reproduce import read_settings

    return read_settings(job.config, job.row.settings)


def _vocabulary(corpus: Path) -> int:
    import h5py

    with h5py.File(corpus, "r") as file:
        return int(file.attrs["vocabulary"])


def perplexities(jobs: list[Job], size: Size) -> tuple[list[str], list[dict], int]:
    """Lines of the table, its figures, and how many runs are missing."""
    lines = [_line(["model", "shared", "in experts", "MAC per token", "runs", "validation", "paper", "test", "paper"]),
             _line(["---"] + ["---:"] * 8)]
    figures, missing = [], 0
    vocabulary = _vocabulary(jobs[0].corpus)
    for row, own in _rows(jobs):
        results = [result for job in own if (result := job.result()) is not None]
        missing += len(own) - len(results)
        shared, experts = results[0]["parameters"] if results else (0, 0)
        cost = multiply_adds(_settings(own[0]), vocabulary)
        valid, test = ([result[split]["perplexity"] for result in results] for split in ("valid", "test"))
        published = row.paper.get(size.column, (None, None))
        lines.append(_line([row.label, _large(shared) if results else "", _large(experts) if experts else "",
                            _large(cost), str(len(results)), _spread(valid), _paper(published[0]), _spread(test),
                            _paper(published[1])]))
        figures.append({"row": row.name, "label": row.label, "shared": shared, "experts": experts,
                        "multiply_adds_per_token": cost, "seeds": [job.seed for job in own if job.result()],
                        "valid": valid, "test": test, "paper": published,
                        "seconds": [result["seconds"] for result in results]})
    return lines, figures, missing


def paired(figures: list[dict], best: str) -> list[str]:
    """How each other row differs from one, seed by seed: seeds share data order and initial values."""
    own = next((f for f in figures if f["row"] == best), None)
    if own is None or len(own["seeds"]) < 2:
        return []
    bleu = isinstance(own["test"][0], dict)
    what, unit, digits = ("Mean BLEU", "", 2) if bleu else ("Log perplexity", " (nats per token)", 4)

    def value(figure: dict, seed: int) -> float:
        test = figure["test"][figure["seeds"].index(seed)]
        return _mean_bleu(test) if bleu else math.log(test)

    lines = ["", f"{what} of the test above that of {own['label']}, seed by seed{unit}:", "",
             _line(["model", "mean", "by seed"]), _line(["---", "---:", "---"])]
    for other in figures:
        common = [seed for seed in own["seeds"] if seed in other["seeds"]]
        if other is own or not common:
            continue
        at = [value(other, seed) - value(own, seed) for seed in common]
        lines.append(_line([other["label"], f"{statistics.fmean(at):+.{digits}f}",
                            ", ".join(f"{d:+.{digits}f}" for d in at)]))
    return lines


def _curves(job: Job) -> list[tuple]:
    """Per MoE layer that has probes: x and y of the fluctuation curve, and the shares that still change."""
    from analysis import routing, series

    log = routing.load_log(job.directory)
    total = int(_settings(job)["train.updates"])
    found = [series.fluctuation(log, layer, total) for layer in range(log.n_layers)]
    return [(curve.x, curve.y, [100 * curve.shares[p] for p in PERCENTS]) for curve in found if curve is not None]


def fluctuation(jobs: list[Job], out: Path) -> tuple[list[str], list[dict], int]:
    """Lines of the table of late fluctuation, its figures, and how many runs are missing; draws the curves."""
    from analysis.routing import BASE_FLUCTUATION

    lines = [_line(["model", "runs", *(f"still changing after {p} %" for p in PERCENTS)]),
             _line(["---"] + ["---:"] * (1 + len(PERCENTS)))]
    figures, missing, drawn = [], 0, []
    for row, own in _rows(jobs):
        curves = [curve for job in own if job.result() is not None for curve in _curves(job)]
        missing += sum(job.result() is None for job in own)
        late = [[curve[2][i] for curve in curves] for i in range(len(PERCENTS))]
        lines.append(_line([row.label, str(len(curves)), *(_spread(values) + (" %" if values else "")
                                                           for values in late)]))
        figures.append({"row": row.name, "label": row.label,
                        "still_changing_percent": dict(zip(map(str, PERCENTS), late))})
        if curves:
            drawn.append((row.label, curves))
    lines.append(_line(["BASE, as published", "", *(f"{BASE_FLUCTUATION[p]:.1f} %" for p in PERCENTS)]))
    if drawn:
        draw(drawn, out / "fluctuation.svg")
        lines += ["", "![Share of tokens against the update at which they last changed their expert]"
                      "(fluctuation.svg)"]
    return lines, figures, missing


def draw(drawn: list[tuple[str, list[tuple]]], path: Path) -> None:
    """Figure 1 of the paper, a line for every run and a colour for every method."""
    from analysis import figures, look, series

    plt = figures.plt
    with plt.rc_context(look.STYLE):
        figure, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
        for (label, curves), colour in zip(drawn, figures.LAYER_COLOURS):
            for i, (x, y, _) in enumerate(curves):
                ax.step(100 * x, 100 * y, where="post", color=colour, linewidth=1.3, label=label if i == 0 else None)
        x, y = series.published_fluctuation()
        ax.plot(100 * x, 100 * y, color=look.GREY, marker="D", markersize=5, linestyle=(0, (1, 2)),
                label=look.LABELS["published"])
        ax.set(xlim=(0, 100), ylim=(0, 102), xlabel=f"last fluctuation step, {look.LABELS['training']} (%)",
               ylabel=f"{look.LABELS['fluctuation'].lower()} (%)")
        ax.legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _mean_of(values: list[float | None], digits: int = 2, factor: float = 1) -> str:
    """Mean of those values that there are; empty without one."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return f"{factor * statistics.fmean(known):.{digits}f}" if known else ""


def routing(job: Job) -> dict[str, float | None]:
    """How a run routed, mean over its MoE layers; None for what it does not have.

    Shares are between 0 and 1; loads and drops are of the last tenth of the updates.
    """
    from analysis import run as runs
    from analysis import series

    run = runs.open_run(job.directory)
    total = int(_settings(job)["train.updates"])
    layers = range(run.n_layers if run.log is not None else 0)
    curves = [series.fluctuation(run.log, layer, total) for layer in layers]

    def mean(values: list[float]) -> float:
        return statistics.fmean(values) if values else math.nan

    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    facts = {"still_changing": mean([curve.shares[50] for curve in curves if curve is not None]),
             "max_over_mean": mean([balance["max_over_mean"].end for layer in layers
                                    if (balance := series.balance(run, layer))]),
             "dropped": mean([series.drop(run, layer).end for layer in layers]),
             "local": mean([series.local(run, layer).end for layer in layers])}
    return {name: known(value) for name, value in facts.items()}


def methods(jobs: list[Job], out: Path) -> tuple[list[str], list[dict], int]:
    """Lines of a table of quality, routing and cost, its figures, and how many runs are missing."""
    rates = json.loads((out / RATES).read_text(encoding="utf-8")) if (out / RATES).exists() else {}
    lines = [_line(["model", "shared", "in experts", "MFLOP per token", "runs", "validation", "test",
                    "still changing after 50 %", "largest load / mean", "dropped", "stays on its node", "tokens/s"]),
             _line(["---"] + ["---:"] * 11)]
    figures, missing, frequency = [], 0, []
    for row, own in _rows(jobs):
        done = [(job, result) for job in own if (result := job.result()) is not None]
        missing += len(own) - len(done)
        shared, experts = done[0][1]["parameters"] if done else (0, 0)
        flops = done[0][1]["flops_per_token"] if done else math.nan
        valid, test = ([result[split]["perplexity"] for _, result in done] for split in ("valid", "test"))
        column = {name: [result["routing"][name] for _, result in done]
                  for name in (done[0][1]["routing"] if done else ())}

        def share(name: str, column: dict = column) -> str:
            text = _mean_of(column.get(name, []), 1, 100)
            return f"{text} %" if text else ""

        rate = rates.get(row.name)
        lines.append(_line([row.label, _large(shared) if done else "", _large(experts) if experts else "",
                            _mean_of([flops], 2, 1e-6), str(len(done)), _spread(valid), _spread(test),
                            share("still_changing"), _mean_of(column.get("max_over_mean", [])), share("dropped"),
                            share("local"), f"{rate:.0f}" if rate else ""]))
        figures.append({"row": row.name, "label": row.label, "shared": shared, "experts": experts,
                        "flops_per_token": flops, "seeds": [job.seed for job, _ in done], "valid": valid,
                        "test": test, **column, "tokens_per_s": rate,
                        "seconds": [result["seconds"] for _, result in done]})
        frequency.append((row.label, [result["test"]["frequency"] for _, result in done]))
    return [*lines, *_by_frequency(frequency)], figures, missing


def _by_frequency(rows: list[tuple[str, list[list[dict]]]]) -> list[str]:
    """Lines of a table of the test loss by how often a token occurs in training, means over each row's runs."""
    buckets = {bucket["least"]: bucket for _, runs in rows for run in runs for bucket in run}
    lines = ["", "Loss of the test by how often a token occurs in training, nats per token:", "",
             _line(["model", *(f"{b['least']:,} to {b['most']:,} ({b['tokens']:,} tokens)"
                               for _, b in sorted(buckets.items()))]), _line(["---"] + ["---:"] * len(buckets))]
    for label, runs in rows:
        by_least = [{bucket["least"]: bucket["loss"] for bucket in run} for run in runs]
        lines.append(_line([label, *(_mean_of([run.get(least) for run in by_least], 3) for least in sorted(buckets))]))
    return lines


def summary(result: dict) -> str:
    """A line of one run's result."""
    test = result["test"]
    if "directions" in test:
        return f"BLEU {_mean_bleu(test):.2f}, loss {test['loss']:.4f} test"
    return f"perplexity {result['valid']['perplexity']:.2f} valid, {test['perplexity']:.2f} test"


def _mean_bleu(test: dict, score: str = "bleu") -> float:
    """Mean over the directions."""
    return statistics.fmean(direction[score] for direction in test["directions"].values())


def translations(jobs: list[Job], size: Size) -> tuple[list[str], list[dict], int]:
    """Lines of a table of BLEU by direction, its figures, and how many runs are missing."""
    done = {row.name: [(job, result) for job in own if (result := job.result()) is not None]
            for row, own in _rows(jobs)}
    directions = next((list(runs[0][1]["test"]["directions"]) for runs in done.values() if runs), [])
    lines = [_line(["model", "shared", "in experts", "FLOP of an update", "runs", "loss", *directions, "mean BLEU",
                    "BLEU lc", "chrF2", "still changing after 50 %", "paper: " + ", ".join(PAPER_DIRECTIONS)]),
             _line(["---"] + ["---:"] * (10 + len(directions)))]
    figures = []
    for row, own in _rows(jobs):
        runs = done[row.name]
        tests = [result["test"] for _, result in runs]
        shared, experts = runs[0][1]["parameters"] if runs else (0, 0)
        flops = runs[0][1]["flops_per_token"] * int(_settings(own[0])["train.batch_tokens"]) if runs else math.nan
        changing = [result["routing"]["still_changing"] for _, result in runs]
        late = _mean_of(changing, 1, 100)
        published = row.paper.get(size.column, ())
        lines.append(_line([row.label, _large(shared) if runs else "", _large(experts) if experts else "",
                            _large(flops) if runs else "", str(len(runs)), _mean_of([t["loss"] for t in tests], 4),
                            *(_spread([t["directions"][d]["bleu"] for t in tests]) for d in directions),
                            *(_spread([_mean_bleu(t, score) for t in tests])
                              for score in ("bleu", "bleu_lowercased", "chrf2")),
                            f"{late} %" if late else "", ", ".join(f"{value:.1f}" for value in published)]))
        figures.append({"row": row.name, "label": row.label, "shared": shared, "experts": experts, "flops": flops,
                        "seeds": [job.seed for job, _ in runs], "test": tests, "still_changing": changing,
                        "paper": published, "seconds": [result["seconds"] for _, result in runs]})
    return lines, figures, sum(len(own) - len(done[row.name]) for row, own in _rows(jobs))


def write(name: str, size: Size, jobs: list[Job], out: Path) -> int:
    """Write OUT/<name>.md and .json and print the table; returns how many of its runs are missing."""
    table = TABLES[name]
    out.mkdir(parents=True, exist_ok=True)
    if name == "fluctuation":
        lines, figures, missing = fluctuation(jobs, out)
    elif table.size:
        lines, figures, missing = translations(jobs, size)
    else:
        lines, figures, missing = methods(jobs, out) if table.routing else perplexities(jobs, size)
    if name != "fluctuation":
        lines += paired(figures, table.against or f"stable-{size.stage1_percent}")
    heading = f"{table.title} ({table.source}{'' if table.routing else ' of the paper'}), size {size.name}"
    text = "\n".join([f"### {heading}", "", *lines, ""])
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n" + text)
    if missing:
        print(f"{missing} runs are missing from this table")
    return missing
