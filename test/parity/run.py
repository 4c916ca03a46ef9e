#!/usr/bin/env python3
"""Run the dump program on every case at several rank counts and compare with the reference.

    run.py --dump PROGRAM --tolerance 1e-10 --epsilon 1e-6 [--ranks 1,2] [--methods] [--case NAME]
           [--keep DIRECTORY]

Beside the tolerance, a case says what it must meet (tokens dropped, gradients clipped,
which stages), so that it cannot pass by never reaching what it is for. Dumps of
different rank counts must have the same bits. Exit status 77: NumPy or h5py is missing.
"""

import argparse
import os
import subprocess
import sys
import tempfile

try:
    import h5py  # noqa: F401, for compare
    import numpy as np
except ImportError as missing:
    print(f"skipped: {missing}; install python3-numpy and python3-h5py", file=sys.stderr)
    sys.exit(77)

import compare
from tiny_corpus import write_corpus

BASE = {
    "run.seed": 7, "model.width": 16, "model.blocks": 3, "model.heads": 2, "model.inner": 24,
    "model.context": 8, "model.scale_embedding": "true", "moe.layers": 2, "moe.position": "scattered",
    "moe.experts": 5, "moe.sublayers": 2, "moe.inner": 20, "moe.capacity_factor": 0,
    "router.method": "stable", "router.stage1_updates": 2, "router.stable.width": 6,
    "router.stable.distill_weight": 0.7, "train.updates": 10, "train.batch_sequences": 8,
    "train.micro_batches": 1, "train.lanes": 4, "optimizer.lr": 0.02, "optimizer.decay": 0.1,
    "optimizer.clip": 0.1, "schedule.warmup": 3,
}

# Rows that do not fit, uneven shares, several MoE layers, lanes and micro-batches.
INCONVENIENT = {"moe.capacity_factor": 0.9, "train.micro_batches": 2, "train.lanes": 3,
                "train.batch_sequences": 12, "moe.sublayers": 1}

# Name: what differs from BASE, and what the case must meet.
CASES = {
    "stage-1": ({}, {"stages": [1, 1]}),
    "stage-1-capacity": ({"moe.capacity_factor": 1.0, "train.micro_batches": 2},
                         {"stages": [1, 1], "dropped": True}),
    "stage-2": ({"router.stage1_updates": 0, "train.micro_batches": 2}, {"stages": [2, 2]}),
    "stage-2-capacity": ({"router.stage1_updates": 0, "moe.capacity_factor": 1.0},
                         {"stages": [2, 2], "dropped": True}),
    "switch-of-stages": (
        {"router.stage1_updates": 1, "moe.layers": 1, "moe.position": "middle", "model.blocks": 2,
         "model.scale_embedding": "false", "optimizer.clip": 0, "optimizer.expert_gradient_factor": 5,
         "optimizer.decay": 0, "schedule.kind": "inverse_sqrt", "schedule.warmup": 1},
        {"stages": [1, 2], "clipped": False}),
    "top": ({"moe.layers": 1, "moe.position": "top", "schedule.kind": "constant", "schedule.warmup": 0,
             "optimizer.clip": 1000}, {"clipped": False}),
    "bottom": ({"moe.layers": 1, "moe.position": "bottom", "moe.capacity_factor": 0.5,
                "schedule.warmup": 0}, {"dropped": True}),
    "dense": ({"moe.layers": 0, "train.micro_batches": 2}, {"dropped": False}),
}

# Every other way to route. In double alone: some choices hang on differences that float does not resolve.
METHODS = {
    # Distilled routers that look at more than the word.
    "bigram": ({"router.stable.features": "bigram", "train.micro_batches": 2}, {}),
    "cnn": ({"router.stable.features": "cnn", "moe.capacity_factor": 0.8}, {"dropped": True}),
    "transformer": ({"router.stable.features": "transformer", "router.stable.layers": 2,
                     "router.stable.heads": 3, "router.stage1_updates": 1}, {"stages": [1, 2]}),
    # Methods, where a wrong count, unit or order shows: rows that do not fit, several slots, lanes and parts.
    "base": (dict(INCONVENIENT, **{"router.method": "base"}), {"dropped": True}),
    "base-stage-2": (dict(INCONVENIENT, **{
        "router.method": "base_stage2", "router.stage1_updates": 1, "router.base_stage2.distill_weight": 0.6,
        "router.base_stage2.width": 6, "router.base_stage2.features": "bigram"}),
                     {"dropped": True, "stages": [1, 2]}),
    "switch": (dict(INCONVENIENT, **{"router.method": "switch", "router.switch.balance_weight": 0.4,
                                     "router.switch.jitter": 0.3, "model.width": 18}), {"dropped": True}),
    "gshard": (dict(INCONVENIENT, **{"router.method": "gshard", "router.gshard.balance_weight": 0.4}),
               {"dropped": True}),
    "gshard-always": ({"router.method": "gshard", "router.gshard.balance_weight": 0.4,
                       "router.gshard.second": "always"}, {}),
    "topk": (dict(INCONVENIENT, **{"router.method": "topk", "router.topk.k": 3,
                                   "router.topk.balance_weight": 0.4}), {"dropped": True}),
    "topk-raw": ({"router.method": "topk", "router.topk.k": 2, "router.topk.normalise": "false",
                  "router.topk.balance_weight": 0.4, "train.micro_batches": 2}, {}),
    "expert-choice": (dict(INCONVENIENT, **{
        "router.method": "expert_choice", "router.expert_choice.capacity": 1.5,
        "router.expert_choice.max_experts": 2, "moe.capacity_factor": 0.6}), {"dropped": True}),
    "expert-choice-causal": ({"router.method": "expert_choice", "router.expert_choice.causal": "true",
                              "router.expert_choice.capacity": 3.2, "train.batch_sequences": 16,
                              "train.lanes": 4, "train.micro_batches": 2}, {}),
    "hash": (dict(INCONVENIENT, **{"router.method": "hash", "router.hash.variant": "balanced"}),
             {"dropped": True}),
    "hash-segments": (dict(INCONVENIENT, **{"router.method": "hash", "moe.experts": 6, "router.hash.segments": 3,
                                            "router.hash.variant": "previous"}), {"dropped": True}),
    "hash-bigram": ({"router.method": "hash", "router.hash.variant": "bigram", "moe.experts": 4,
                     "router.hash.segments": 2}, {}),
    "hash-position": ({"router.method": "hash", "router.hash.variant": "position"}, {}),
}

ALL = {**CASES, **METHODS}


def write_config(path, keys):
    """Nested YAML of dotted names."""
    tree = {}
    for name, value in keys.items():
        *sections, last = name.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[last] = value

    def lines(branch, indent):
        for name, value in branch.items():
            if isinstance(value, dict):
                yield f"{indent}{name}:"
                yield from lines(value, indent + "  ")
            else:
                yield f"{indent}{name}: {value}"

    with open(path, "w") as file:
        file.write("\n".join(lines(tree, "")) + "\n")


def run_case(name, options, directory):
    """Returns the complaints about one case."""
    different, must_meet = ALL[name]
    corpus, config = os.path.join(directory, "corpus.h5"), os.path.join(directory, f"{name}.yml")
    keys = dict(BASE, **different, **{"data.corpus": corpus, "optimizer.epsilon": options.epsilon})
    write_config(config, keys)
    complaints, dumps = [], []
    for ranks in options.ranks:
        dump = os.path.join(directory, f"{name}-{ranks}.h5")
        command = [options.mpirun, "-n", str(ranks), options.dump, config, dump]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            return [f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}"]
        dumps.append(dump)
        result, met = compare.compare(dump, options.tolerance)
        complaints += result.failures
        if met["gap"] < 100 * options.tolerance:
            complaints.append(f"a choice hangs on a difference of {met['gap']:.2g} between scores: "
                              "change the seed")
        if met["stages"] != must_meet.get("stages", [1, 1]):
            complaints.append(f"stages {met['stages']}, {must_meet.get('stages', [1, 1])} meant")
        if bool(met["dropped"]) != must_meet.get("dropped", False):
            complaints.append(f"{met['dropped']} tokens dropped: not what the case is for")
        if bool(met["clipped"]) != must_meet.get("clipped", True):
            complaints.append(f"clipped in {met['clipped']} updates: not what the case is for")
        print(f"{name} at {ranks} ranks: {result.count} comparisons, worst {result.worst[0]:.2g} "
              f"({result.worst[1]}), {met['dropped']} dropped, narrowest choice {met['gap']:.2g}", flush=True)
    for other in dumps[1:]:
        complaints += [f"{os.path.basename(other)}: {what} has other bits than at {options.ranks[0]} ranks"
                       for what in compare.same_bits(dumps[0], other)]
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dump", required=True)
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--tolerance", type=float, required=True)
    parser.add_argument("--epsilon", type=float, required=True,
                        help="Adam's; far above rounding errors of gradients")
    parser.add_argument("--methods", action="store_true", help="also the cases of every routing method")
    parser.add_argument("--case", choices=ALL)
    parser.add_argument("--keep", help="directory for the files; a temporary one otherwise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or temporary
        os.makedirs(directory, exist_ok=True)
        write_corpus(os.path.join(directory, "corpus.h5"), np.random.default_rng(11), vocabulary=23,
                     n_tokens=600)
        failed = 0
        for name in [options.case] if options.case else ALL if options.methods else CASES:
            complaints = run_case(name, options, directory)
            failed += bool(complaints)
            for complaint in complaints:
                print(f"{name}: {complaint}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
