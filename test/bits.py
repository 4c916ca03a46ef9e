"""Train many small configurations with two builds of the program and compare what they write, bit for bit.

    test/bits.sh OLD NEW [RANKS...]     says what is compared
"""

import argparse
import glob
import os
import re
import shutil
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "e2e"))
import program as p  # noqa: E402

CONFIGS = os.path.join(here, "..", "configs", "tiny")
UPDATES, RESUMED_FROM = 20, 10
TIME_LIMIT = 600

COMMON = ["log.tokens_every=5", f"train.updates={UPDATES}", f"train.checkpoint_every={RESUMED_FROM}",
          "train.keep_last=0"]
TWO_LAYERS = ["moe.layers=2", "moe.position=scattered", "moe.sublayers=2", "train.micro_batches=2"]

# Settings beside those of configs/tiny/stable.yml.
CASES = {
    "plain": [],
    "micro-batches": ["train.micro_batches=2"],
    "capacity": ["moe.capacity_factor=1.0"],
    "recompute": ["train.recompute=true", "train.micro_batches=2"],
    "two-layers": [*TWO_LAYERS, "moe.capacity_factor=1.0", "optimizer.decay=0.1", "schedule.kind=inverse_sqrt"],
    "two-layers-uneven": [*TWO_LAYERS, "moe.experts=5", "train.lanes=7", "train.batch_sequences=14",
                          "moe.identical_experts=false", "train.recompute=true"],
    "three-layers": ["model.blocks=3", "moe.layers=3", "moe.position=scattered", "router.method=hash",
                     "optimizer.decay=0.1"],
    "top": ["moe.position=top", "model.scale_embedding=false"],
    "bottom": ["moe.position=bottom", "optimizer.clip=0"],
    "uneven": ["moe.experts=5", "train.lanes=7", "train.batch_sequences=14", "moe.identical_experts=false"],
    "replicas": ["moe.experts=2", "train.lanes=8", "moe.capacity_factor=1.0"],
    "replicas-two-layers": [*TWO_LAYERS, "moe.experts=3", "comm.expert_ranks=1", "optimizer.decay=0.1"],
    "whole-replicas": ["comm.expert_ranks=1", "optimizer.expert_gradient_factor=4"],
    "wide": ["model.width=64", "model.inner=1024", "moe.inner=1024", "model.context=32"],
    "wide-two-layers": [*TWO_LAYERS, "model.width=64", "moe.inner=100", "moe.experts=6"],
    "overlap": ["comm.overlap=2", "moe.sublayers=2", "train.micro_batches=2"],
    "two-level": ["comm.exchange=two_level", "comm.node_ranks=1", "comm.overlap=1", "comm.slice_mib=0.001",
                  "moe.capacity_factor=1.0"],
    "pairwise": ["comm.alltoallv=pairwise", "moe.experts=6"],
    # Experts that move to other ranks when stage 2 begins.
    "placement": ["moe.experts=12", "moe.identical_experts=false", "moe.inner=32"],
    "placement-two-layers": [*TWO_LAYERS, "moe.experts=12", "moe.identical_experts=false", "moe.inner=32"],
    "placement-replicas": ["moe.experts=12", "moe.identical_experts=false", "moe.inner=32", "train.lanes=8",
                           "moe.layers=2", "moe.position=scattered", "comm.expert_ranks=1"],
    "stage-2-only": ["router.stage1_updates=0"],
    "dense": ["moe.layers=0"],
    "causal": ["router.method=expert_choice", "router.expert_choice.causal=true"],
    "topk-3": ["router.method=topk", "router.topk.k=3", "moe.experts=6", "moe.capacity_factor=1.0", *TWO_LAYERS],
    "topk-8-bf16": ["router.method=topk", "router.topk.k=8", "moe.experts=9", "moe.capacity_factor=0.9",
                    "train.precision=bf16", *TWO_LAYERS],
    "bf16": ["train.precision=bf16", "comm.overlap=2"],
    "sparsemixer-bf16": ["router.method=sparsemixer", "router.sparsemixer.k=2", "train.precision=bf16"],
    "decoder-8": ["model.family=decoder", "router.method=topk", "router.topk.k=8", "moe.experts=8", "moe.sublayers=1",
                  "train.recompute=true", "train.micro_batches=2", "comm.overlap=1"],
    "multi-hash": ["router.method=hash", "router.hash.segments=2", "moe.inner=16"],
}
for features in ("bigram", "cnn", "transformer"):
    CASES[features] = [f"router.stable.features={features}", "train.micro_batches=2"]
for variant in ("balanced", "bigram", "previous", "position"):
    CASES[f"hash-{variant}"] = ["router.method=hash", f"router.hash.variant={variant}"]
# These read what an earlier run of OLD left: {plain} is its directory.
for variant in ("clustered", "dispersed"):
    CASES[f"hash-{variant}"] = ["router.method=hash", f"router.hash.variant={variant}",
                                "router.hash.model={plain}/checkpoints/latest"]
CASES["replay"] = ["router.method=replay", "router.replay.log={plain}"]

# Runs that OLD begins and NEW goes on with.
RESUMED = ("plain", "two-layers", "placement-two-layers", "replicas", "hash-balanced", "multi-hash", "transformer",
           "dense", "method-base_stage2", "replay")
# What the program then writes of its own.
GENERATED = ("plain", "two-layers", "hash-bigram", "cnn", "transformer", "dense", "method-gshard", "method-switch")


def methods(program):
    text = program.run("train", "--help").out
    # Not those of one family of models alone.
    found = re.findall(r"^  (\w+) (?!.*\(family )", text.partition("Routing methods")[2].partition("\n\n")[0], re.M)
    assert "stable" in found, text
    return [name for name in found if name != "replay"]


class Failed(Exception):
    """Why two runs cannot be compared."""


class Skipped(Exception):
    """Why OLD has nothing to compare with."""


def compare_named(what, old, new, needed):
    """Differences and remarks of two {name: array}; a name that only one has is a difference where it begins so."""
    wrong = [f"{what} {name}" for name in p.different({n: old[n] for n in old if n in new},
                                                      {n: new[n] for n in new if n in old})]
    remarks = []
    for side, names in (("OLD", sorted(set(old) - set(new))), ("NEW", sorted(set(new) - set(old)))):
        for name in names:
            (wrong if name.startswith(needed) else remarks).append(f"only {side} has {what} {name}")
    if not set(old) & set(new):
        wrong.append(f"{what}: no name in common")
    return wrong, remarks


def columns(run):
    rows = p.metrics(run)
    return {name: p.np.array([row[i] for row in rows[1:]]) for i, name in enumerate(rows[0])}


def compare_runs(old, new):
    """(differences, remarks) of two run directories."""
    wrong, remarks = [], []

    def add(pair):
        wrong.extend(pair[0])
        remarks.extend(pair[1])

    names = [p.files_of(run, "checkpoints") for run in (old, new)]
    if names[0] != names[1] or not names[0]:
        wrong.append(f"checkpoints: OLD {names[0]}, NEW {names[1]}")
    for name in sorted(set(names[0]) & set(names[1])):
        found = [p.datasets(os.path.join(run, "checkpoints", name), ("param/", "adam/")) for run in (old, new)]
        add(compare_named(name, *found, needed="param/"))
    add(compare_named("metrics.csv", columns(old), columns(new), needed="loss"))
    logs = [p.files_of(run, "routing") for run in (old, new)]
    if logs[0] != logs[1]:
        wrong.append(f"routing logs: OLD {logs[0]}, NEW {logs[1]}")
    elif logs[0]:
        add(compare_named("routing log", p.routing(old), p.routing(new), needed=("load", "tokens/expert")))
    return wrong, remarks


class Bits:
    def __init__(self, old, new, directory):
        self.program = {side: p.Program(os.path.abspath(path), "mpirun", None, None)
                        for side, path in (("OLD", old), ("NEW", new))}
        self.directory = directory

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def prepare(self):
        p.write_text(self.path("text.txt"))
        result = self.program["OLD"].run("prepare", self.path("text.txt"), "-o", self.path("corpus.h5"), "--vocab", 300)
        if result.code != 0:
            raise Failed(str(result))
        # With the choices of every token: the case "replay" repeats it.
        self.train("OLD", "reference", 1, None, ["log.tokens_every=1"])

    def train(self, side, run, ranks, config, settings, resume=False):
        values = [f"data.corpus={self.path('corpus.h5')}", f"run.directory={self.path(run)}", *COMMON]
        values += [value.format(plain=self.path("reference")) for value in settings]
        args = ["train", config or os.path.join(CONFIGS, "stable.yml")]
        args += [word for value in values for word in ("-P", value)] + (["--resume"] if resume else [])
        result = self.program[side].run(*args, ranks=ranks, timeout=TIME_LIMIT)
        if result.code == p.CODES["config"] and side == "OLD" and config:
            raise Skipped(f"OLD refuses it: {result.reports[0] if result.reports else result}")
        if result.code != 0:
            raise Failed(f"{side} does not train: {result}")
        return self.path(run)

    def generated(self, side, run):
        result = self.program[side].run("generate", run, "-p", "the", "-n", 12, timeout=TIME_LIMIT)
        if result.code != 0 or not result.out.strip():
            raise Failed(f"{side} does not generate: {result}")
        return result.out

    def resume(self, run, ranks, config, settings):
        """NEW goes on where OLD was after RESUMED_FROM updates; returns the run's directory."""
        resumed = run.replace("OLD", "resumed")
        shutil.copytree(self.path(run), self.path(resumed), symlinks=True)
        os.unlink(self.path(resumed, "checkpoints", f"step-{UPDATES:09d}.h5"))
        return self.train("NEW", resumed, ranks, config, settings, resume=True)

    def case(self, name, ranks, config, settings):
        """(differences, remarks) of one configuration on so many ranks."""
        runs = {side: f"{name}-{ranks}-{side}" for side in ("OLD", "NEW")}
        old, new = (self.train(side, runs[side], ranks, config, settings) for side in ("OLD", "NEW"))
        wrong, remarks = compare_runs(old, new)
        if name in RESUMED:
            more = compare_runs(old, self.resume(runs["OLD"], ranks, config, settings))
            wrong += [f"resumed: {text}" for text in more[0]]
            remarks += [f"resumed: {text}" for text in more[1]]
        if name in GENERATED and ranks == 1 and self.generated("OLD", old) != self.generated("NEW", new):
            wrong.append("generate")
        return wrong, remarks

    def checked(self, name, ranks, config, settings):
        try:
            return self.case(name, ranks, config, settings)
        except (Failed, Skipped) as error:
            return error
        except Exception as error:  # a file that cannot be read is one configuration's failure
            return Failed(f"{type(error).__name__}: {error}")


def merged(remarks):
    """What only one program has, once for all checkpoints."""
    return list(dict.fromkeys(re.sub(r"(?:resumed: )?(.* has )step-\d+\.h5 ", r"\1/", text) for text in remarks))


def short(texts, most=6):
    return "".join(f"\n      {text}" for text in texts[:most]) + (
        f"\n      and {len(texts) - most} more" if len(texts) > most else "")


def main():
    parser = argparse.ArgumentParser(prog="test/bits.sh")
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    parser.add_argument("ranks", metavar="RANKS", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--only", default="")
    parser.add_argument("--keep")
    options = parser.parse_args()
    temporary = None if options.keep else tempfile.TemporaryDirectory(prefix="stablemoe-bits-")
    if options.keep:
        os.makedirs(options.keep)
    bits = Bits(options.old, options.new, os.path.abspath(options.keep) if options.keep else temporary.name)
    cases = {name: (None, settings) for name, settings in CASES.items()}
    for name in methods(bits.program["OLD"]):
        cases[f"method-{name}"] = (None, [f"router.method={name}", "train.micro_batches=2"])
    for path in sorted(glob.glob(os.path.join(CONFIGS, "*.yml"))):
        cases[f"tiny-{os.path.basename(path)[:-4]}"] = (path, [])
    bits.prepare()
    jobs = {(name, ranks): lambda a=(name, ranks, *case): bits.checked(*a)
            for ranks in options.ranks for name, case in cases.items() if re.search(options.only, name)}
    n_different = n_skipped = 0
    for (name, ranks), result in p.several(jobs, 2):
        label = f"{name} on {ranks} rank{'s' * (ranks > 1)}"
        if isinstance(result, Skipped):
            n_skipped += 1
            print(f"skipped    {label}: {result}", flush=True)
        elif isinstance(result, Failed):
            n_different += 1
            print(f"FAILED     {label}: {result}", flush=True)
        else:
            wrong, remarks = result
            n_different += bool(wrong)
            print(f"{'DIFFERENT ' if wrong else 'same      '} {label}{short(wrong)}{short(merged(remarks))}", flush=True)
    n = len(jobs)
    print(f"{n - n_different - n_skipped} of {n} configurations are the same bit for bit"
          f"{f', {n_skipped} skipped' if n_skipped else ''}{f', {n_different} are NOT' if n_different else ''}")
    return 1 if n_different or n_skipped == n else 0


if __name__ == "__main__":
    sys.exit(main())
