"""`python3 -m analysis RUN`: figures and a short summary of a run directory.

`python3 -m analysis <command> ...` goes to the module of COMMANDS.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import analysis

if TYPE_CHECKING:
    from analysis.run import Run

COMMANDS = {"report": ("analysis.report", "one page in HTML on one run, or on several beside each other"),
            "watch": ("analysis.watch", "the same page in a browser, while runs go on"),
            "patches": ("analysis.patches", "the patches that experts take, drawn on images"),
            "score": ("analysis.score", "BLEU and chrF of a translation"),
            "scaling": ("analysis.scaling", "cost model of a scaling study, and a forecast for more ranks")}
"""First argument -> module with main(arguments), which uses the standard library alone, and what it makes."""

HELP = """\
Reads RUN/metrics.csv, RUN/routing/step-*.h5, RUN/used.yml and the corpus it names, and writes

  losses.png        task and validation loss, balance and distillation loss
  load-moe<m>.png   tokens per expert over time, per MoE layer
  fluctuation.png   share of tokens that have come to their final expert, against the share of the training
  agreement.png     learned against distilled router over stage 1

What the run has no data for is left out, with a line that says why; a run that is
still going on can be read too. Exit status: 0 where a figure was made; 2 where there
is no such directory, or Python packages are missing; 3 where there was nothing to
draw or the figures cannot be written.

Needs numpy, h5py, matplotlib and PyYAML (Debian: python3-numpy python3-h5py
python3-matplotlib python3-yaml); STABLEMOE_PYTHON names the interpreter to use if python3 on the
PATH does not have them."""


def _parser() -> argparse.ArgumentParser:
    others = "\n".join(f"  python3 -m analysis {name} --help   {what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(prog="python3 -m analysis", epilog=f"{HELP}\n\nOther commands:\n{others}",
                                     description="Figures and a short summary of a StableMoE run.",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path,
                        help="where the figures go (default: RUN/figures)")
    return parser


def _loss_lines(run: Run) -> list[str]:
    from analysis import series

    lines, line, valid, best = [], series.loss(run), series.valid_loss(run), series.best(run)
    if line.known:
        lines.append(f"training {line.end:.4f} nats per {run.item} (mean of the last 1/{line.tail} of the updates)")
    if best:
        lines.append(f"validation {valid.end:.4f} ({series.quality(run, 2)}) at update "
                     f"{int(valid.x[-1]):,}; best {best.value:.4f} at {best.update:,}")
    if run.metrics is not None and run.baselines is not None:
        lines.append(f"counting alone: unigram {run.baselines.unigram:.4f}, "
                     f"bigram {run.baselines.bigram:.4f}")
    return lines


def _load_lines(run: Run) -> list[str]:
    from analysis import series

    if run.log is None or not len(run.log.step) or not run.log.n_layers:
        return []
    lines = [f"mean of the last 1/10 of {len(run.log.step)} records (even: max/mean 1, cv 0, entropy 1)"]
    for layer in range(run.log.n_layers):
        even = series.balance(run, layer)
        if even:
            lines.append(f"moe{layer}  max/mean {even['max_over_mean'].end:.2f}  cv {even['cv'].end:.2f}  "
                         f"entropy {even['entropy'].end:.3f}  experts without "
                         f"{'patches' if run.is_images else 'tokens'} {even['dead'].end:.1f}  "
                         f"dropped {100 * series.drop(run, layer).end:.2f} %")
    return lines


def _fluctuation_lines(run: Run) -> list[str]:
    from analysis import look, routing, series

    if run.log is None or len(run.log.probe_step) < 2 or not run.log.n_layers:
        return []
    head = "tokens whose last fluctuation step exceeds"
    lines = [f"{head:<44}" + "".join(f"{percent:>6} %" for percent in routing.BASE_FLUCTUATION)
             + f"  of the {run.updates_done:,} updates"]
    for layer in range(run.log.n_layers):
        found = series.fluctuation(run.log, layer, run.updates_done)
        if found is not None:
            name = f"moe{layer} ({found.tokens:,} tokens, {found.probes} probes)"
            lines.append(f"{name:<44}" + "".join(f"{100 * share:>6.1f} %" for share in found.shares.values()))
    lines.append(f"{look.LABELS['published']:<44}"
                 + "".join(f"{value:>6.1f} %" for value in routing.BASE_FLUCTUATION.values()))
    return lines


def _agreement_lines(run: Run) -> list[str]:
    from analysis import series

    lines = []
    for layer in range(run.n_layers):
        parts, found = [], series.agreement(run, layer)
        if found.train.known:
            parts.append(f"training tokens {100 * found.train.end:.1f} % (last 1/{found.train.tail} of stage 1)")
        if found.probe.known:
            parts.append(f"probe {100 * found.probe.end:.1f} % at update {int(found.probe.x[-1]):,}")
        if parts:
            lines.append(f"moe{layer}  " + ", ".join(parts))
    return lines


def _block(title: str, lines: list[str]) -> list[str]:
    return [f"{title if i == 0 else '':<12} {line}" for i, line in enumerate(lines)]


def summary(run: Run) -> str:
    """The numbers behind the figures, as text."""
    planned = run.updates_planned
    state = f"{run.updates_done:,}" + (f" of {planned:,} updates" if planned else " updates")
    if planned and run.updates_done < planned:
        state += " (not finished: shares of the training are of the updates done)"
    if run.switch is not None:
        state += f", stage 2 from update {run.switch:,}"
    lines = _block("run", [run.title()]) + _block("progress", [state])
    lines += _block("loss", _loss_lines(run)) + _block("load", _load_lines(run))
    lines += _block("fluctuation", _fluctuation_lines(run)) + _block("agreement", _agreement_lines(run))
    return "\n".join(lines + _block("note", run.notes))


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
    options = _parser().parse_args(arguments)
    if not options.run.is_dir():
        print(f"analysis: no run directory '{options.run}'", file=sys.stderr)
        return 2
    message = analysis.ensure_modules(["-m", "analysis", *arguments])
    if message is not None:
        print(message, file=sys.stderr)
        return 2
    from analysis import figures
    from analysis.run import open_run

    run = open_run(options.run)
    if run.metrics is None and run.log is None:
        print(f"analysis: nothing to draw in '{options.run}': {'; '.join(run.notes)}", file=sys.stderr)
        return 3
    print(summary(run))
    try:
        written, skipped = figures.draw_all(run, options.output or options.run / "figures")
    except OSError as error:
        print(f"analysis: cannot write the figures: {error}", file=sys.stderr)
        return 3
    print("\n".join(_block("not made", skipped) + _block("written", [str(path) for path in written])))
    return 0 if written else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
