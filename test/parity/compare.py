#!/usr/bin/env python3
"""Compare what the C program computed in a few updates with the reference of the equations.

    compare.py DUMP [--tolerance 1e-10]

DUMP is a file of test/parity/dump.c:

    /                    attributes updates, ranks, precision, config (the resolved configuration as text)
    /update<i>           attributes stage, task, balance, distill and further terms (mean losses), norm (before
                         clipping); of a model with gates skip_loss and the share that ran behind each, ran<k>
    /update<i>/param/..  parameters before update i, named as in a checkpoint; attributes decay, frozen
    /update<i>/grad/..   gradients before clipping, of what is not frozen
    /update<i>/micro<k>/input, target   [S, T], sequences in global order
    /update<updates>/param/..           parameters after the last update

Every update starts from the dumped parameters, the moments are the reference's own. An
error is the largest difference over the largest magnitude of the tensor in the reference.
"""

import argparse
import os
import sys

import h5py
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
from analysis import reference as ref


def read_arrays(group):
    """All datasets below a group, by path, in double precision."""
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()].astype(np.float64)

    group.visititems(visit)
    return arrays


def read_batches(update):
    batches = []
    while f"micro{len(batches)}" in update:
        micro = update[f"micro{len(batches)}"]
        batches.append((micro["input"][()].astype(np.int64), micro["target"][()].astype(np.int64)))
    return batches


def text_of(value):
    return value.decode() if isinstance(value, bytes) else str(value)


class Comparison:
    """Collects errors; a tensor is good where !(error > tolerance) could not even be NaN."""

    def __init__(self, tolerance):
        self.tolerance, self.worst, self.failures, self.count = tolerance, (0.0, ""), [], 0

    def check(self, what, got, expect):
        got, expect = np.asarray(got, dtype=np.float64), np.asarray(expect, dtype=np.float64)
        self.count += 1
        if got.shape != expect.shape:
            self.failures.append(f"{what}: shape {got.shape}, expected {expect.shape}")
            return
        size = np.abs(expect).max(initial=0.0)
        difference = np.abs(got - expect).max(initial=0.0)
        error = difference / size if size > 0 else difference
        if error > self.worst[0]:
            self.worst = (error, what)
        if not error <= self.tolerance:
            self.failures.append(f"{what}: error {error:.3g} of largest magnitude {size:.3g}")

    def same_names(self, what, got, expect):
        if set(got) != set(expect):
            self.failures.append(f"{what}: missing {sorted(set(expect) - set(got))}, "
                                 f"not expected {sorted(set(got) - set(expect))}")


def check_gates(result, met, what, attributes, info):
    """The share of rows that ran behind each gate; met["skipped"] is from 0 to 1 where some ran and some did not."""
    gates = [[layer for layer in micro if "ran" in layer] for micro in info]
    for k, parts in enumerate(zip(*gates)):
        ran, rows = sum(int(part["ran"].sum()) for part in parts), sum(part["rows"] for part in parts)
        result.check(f"{what} share behind gate {k}", attributes[f"ran{k}"], ran / rows)
        met["skipped"] = met.get("skipped", False) or 0 < ran < rows


def compare(path, tolerance):
    """Returns the comparison and what the case met: tokens dropped, clipping, the narrowest choice."""
    result = Comparison(tolerance)
    met = {"dropped": 0, "clipped": 0, "gap": np.inf, "balance": 0.0, "stages": []}
    with h5py.File(path, "r") as file:
        config = ref.Config.from_text(text_of(file.attrs["config"]))
        moments = {}
        for i in range(int(file.attrs["updates"])):
            group = file[f"update{i}"]
            stage = int(group.attrs["stage"])
            params, dumped = read_arrays(group["param"]), read_arrays(group["grad"])
            losses, grads, info = ref.gradients(params, read_batches(group), config, stage, i)
            for name, value in losses.items():
                result.check(f"update {i} {name} loss", group.attrs[name], value)
            frozen = {name for name in params if group["param"][name].attrs["frozen"]}
            result.same_names(f"update {i} frozen", frozen, {n for n in params if ref.is_frozen(n, stage) or ref.is_held(n, config)})
            result.same_names(f"update {i} gradients", dumped, grads)
            for name in sorted(set(grads) & set(dumped)):
                result.check(f"update {i} gradient of {name}", dumped[name], grads[name])
            check_gates(result, met, f"update {i}", group.attrs, info)
            norm = ref.gradient_norm(grads)
            result.check(f"update {i} gradient norm", group.attrs["norm"], norm)

            decayed = {name for name in params if ref.is_decayed(name)}
            result.same_names(f"update {i} decay", {n for n in params if group["param"][n].attrs["decay"]}, decayed)
            factor = ref.clip_factor(norm, config)
            ref.adam(params, grads, moments, decayed, config, i, factor)
            ref.after_update(params, config, info, stage)
            after = read_arrays(file[f"update{i + 1}/param"])
            result.same_names(f"update {i} parameters", after, params)
            for name in sorted(set(params) & set(after)):
                result.check(f"update {i} new {name}", after[name], params[name])

            layers = [layer for micro in info for layer in micro]
            met["dropped"] += sum(layer["dropped"] for layer in layers)
            met["clipped"] += factor < 1
            met["gap"] = min([met["gap"]] + [layer["gap"] for layer in layers])
            met["balance"] += abs(losses["balance"])
            met["stages"].append(stage)
    return result, met


def same_bits(path, other):
    """Names of datasets and attributes that differ between two dumps; the rank count aside."""
    different = []

    def attributes(item):
        return {k: v for k, v in item.attrs.items() if k != "ranks"}

    with h5py.File(path, "r") as a, h5py.File(other, "r") as b:
        def visit(name, item):
            if name not in b or attributes(item) != attributes(b[name]):
                different.append(name)
            elif isinstance(item, h5py.Dataset) and item[()].tobytes() != b[name][()].tobytes():
                different.append(name)

        a.visititems(visit)
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dump")
    parser.add_argument("--tolerance", type=float, default=1e-10)
    options = parser.parse_args()
    result, met = compare(options.dump, options.tolerance)
    for failure in result.failures:
        print(f"{options.dump}: {failure}", file=sys.stderr)
    print(f"{result.count} comparisons, worst {result.worst[0]:.2g} ({result.worst[1]}); {met}")
    return 1 if result.failures or not result.count else 0


if __name__ == "__main__":
    sys.exit(main())
