#!/usr/bin/env python3
"""Run the dump program on the cases of cases.py at several rank counts and compare with the reference.

    run.py --dump PROGRAM --tolerance 1e-10 --epsilon 1e-6 [--ranks 1,2] [--case NAME] [--keep DIRECTORY]

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
    print(f"skipped: {missing}; jobs/install.sh brings python3-numpy and python3-h5py", file=sys.stderr)
    sys.exit(77)

import compare
from cases import ALL, BASE
from tiny_corpus import write_corpus

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
        if met.get("skipped", False) != must_meet.get("skipped", False):
            complaints.append("not some of the rows behind gates ran, and some not: not what the case is for")
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
    parser.add_argument("--case", choices=ALL, help="this one alone; plain ones and those of methods otherwise")
    parser.add_argument("--keep", help="directory for the files; a temporary one otherwise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or temporary
        os.makedirs(directory, exist_ok=True)
        write_corpus(os.path.join(directory, "corpus.h5"), np.random.default_rng(11), vocabulary=23,
                     n_tokens=600)
        failed = 0
        for name in [options.case] if options.case else ALL:
            complaints = run_case(name, options, directory)
            failed += bool(complaints)
            for complaint in complaints:
                print(f"{name}: {complaint}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
