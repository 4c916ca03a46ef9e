"""Experts made of the feed-forward layers of a dense model (moe.from: ffn; doc/from-a-model.md).

G slices: expert e is slice e modulo G of the inner units, and its second matrix has the factor G, for the G experts of a
copy share gates that sum to 1. Its second bias is whole in each: the gates add up to one of it.
"""

import re

import numpy as np

from . import counter_random as random


def source(name, layers):
    """(MoE layer, name in the dense model) of a parameter; None: it is not made of one.

    layers: the dense model's feed-forward layer in place of which each MoE layer is.
    """
    match = re.fullmatch(r"moe(\d+)/(?:expert/ffn0/(.+)|(norm/.+))", name)
    return match and (int(match[1]), f"{layers[int(match[1])]}/{match[2] or match[3]}")


def units(last, dense, halves):
    """The inner unit that each element of a dense parameter belongs to; -1: none."""
    inner = dense.shape[0] // halves if last in ("w1", "b1") else dense.shape[-1]
    if last in ("w1", "b1"):
        return np.broadcast_to((np.arange(dense.shape[0]) % inner).reshape(-1, *[1] * (dense.ndim - 1)), dense.shape)
    return np.broadcast_to(np.arange(inner), dense.shape) if last == "w2" else np.full(dense.shape, -1)


def part(last, dense, halves, g, slices):
    """Slice g of a dense parameter: some of the rows of each half, some of the columns, or all of it."""
    if last in ("w1", "b1"):
        return np.concatenate([np.split(half, slices)[g] for half in np.split(dense, halves)])
    return np.split(dense, slices, axis=1)[g] if last == "w2" else dense


def experts(name, layer, dense, n_experts, slices, halves, seed, noise, redrawn):
    """The values [E, ...] of a parameter of the experts. halves: 2 for SwiGLU, whose w1 has two rows for each unit."""
    last, out = name.rpartition("/")[2], []
    mean, deviation, rms = dense.mean(), dense.std(), np.sqrt((dense**2).mean())
    for e in range(n_experts):
        value = part(last, dense, halves, e % slices, slices)
        index = e * value.size + np.arange(value.size).reshape(value.shape)

        def normal(what):
            return random.normal(seed, random.INIT, random.hash_text(f"{name} {what}"), index)

        unit = units(last, value, halves)
        inner = unit.max() + 1
        drawn = random.uniform(seed, random.INIT, random.hash_text(f"moe{layer} units"), e * inner + unit.clip(0))
        again = (unit >= 0) & (drawn < redrawn)
        value = np.where(again, mean + deviation * normal("redrawn"), value + noise * rms * normal("noise"))
        out.append(value * (slices if last == "w2" else 1))
    return np.stack(out)


def tied(router, slices):
    """The rows of a router's parameter: those of a copy's slices are those of its first."""
    return router[np.arange(len(router)) // slices * slices]
