"""Initial values of every parameter, stated by name: where the paper is silent, those of its code and of fairseq
and PyTorch, which that is built on (doc/methods.md).

Element i of a parameter is drawn with index i and the hash of its name; expert e's begin at e times its size, or
all at 0 where moe.identical_experts is true.
"""

import numpy as np

from . import counter_random as random


def constant(value):
    return lambda seed, name, first, shape: np.full(shape, float(value))


def uniform(bound):
    def fill(seed, name, first, shape):
        index = first + np.arange(np.prod(shape))
        return bound * (2 * random.uniform(seed, random.INIT, random.hash_text(name), index) - 1).reshape(shape)
    return fill


def normal(deviation):
    def fill(seed, name, first, shape):
        index = first + np.arange(np.prod(shape))
        return deviation * random.normal(seed, random.INIT, random.hash_text(name), index).reshape(shape)
    return fill


def orthogonal(gain):
    """Orthonormal rows, or columns where there are more rows: Gram-Schmidt of normal numbers, in order."""
    def fill(seed, name, first, shape):
        drawn = normal(1)(seed, name, first, shape)
        vectors = drawn.reshape(min(shape), max(shape)) if shape[0] > shape[1] else drawn
        q, r = np.linalg.qr(vectors.T)
        vectors = (q * np.sign(np.diag(r))).T
        return gain * (vectors if shape[0] <= shape[1] else vectors.T)
    return fill


def rule(name, shape, config):
    """What fills one copy of a parameter of this shape."""
    last, fan_in = name.rpartition("/")[2], shape[-1]
    if last in ("gamma", "omega"):
        return constant(1)
    if name.startswith("moe/router/cell/"):
        return uniform(1 / np.sqrt(int(config.router["width"])))
    if name.endswith(("router/projection", "router/head")):
        return uniform(1 / np.sqrt(fan_in))
    if last in ("beta", "bias", "offset") or last == "gate" and name.startswith("block") or last in ("table", "visible") and "/router/" in name:
        return constant(0)
    if last == "gate_offset":
        start = float(config.router["gate_start"])
        return constant(np.log(start / (1 - start)))
    if name.endswith(("router/node", "router/place")):
        return orthogonal(0.1)
    if name.endswith("router/centroid"):
        if config.method == "switch" and config.router["init"] == "normal":
            return normal(np.sqrt(0.1 / fan_in))
        return orthogonal(0.1)
    if "/router/distilled/" in name:
        return {"embedding": normal(1), "centroid": orthogonal(0.1), "tap": uniform(1 / np.sqrt(5)),
                "position": normal(1 / np.sqrt(fan_in)), "b1": constant(0), "b2": constant(0)}.get(
                    last, uniform(1 / np.sqrt(fan_in)))
    if name in ("embedding/table", "embedding/position"):
        return normal(1 / np.sqrt(fan_in))
    if name.endswith("attention/qkv/weight"):
        return uniform(np.sqrt(6 / (2 * fan_in)) / np.sqrt(2))  # Xavier, gain 1 / sqrt 2
    if name.endswith("attention/proj/weight"):
        return uniform(np.sqrt(6 / (2 * fan_in)))  # Xavier
    if last == "w2" and "/expert/" in name:
        return constant(0)
    return None


def value(name, shapes, config):
    """The initial value of a parameter; shapes: of all parameters, by name.

    Tables of hash routers are prepared from the corpus: tables.py.
    """
    shape = shapes[name]
    experts = "/expert/" in name
    one = shape[1:] if experts else shape
    fill = rule(name, one, config)
    if fill is None:  # a feed-forward layer: PyTorch's default, 1 / sqrt(fan in), for weight and bias alike
        weight = shapes[name.rpartition("/")[0] + ("/w1" if name.endswith("1") else "/w2")]
        fill = uniform(1 / np.sqrt(weight[-1]))
    if not experts:
        return fill(config.seed, name, 0, one)
    size = 0 if config.identical_experts else int(np.prod(one))
    return np.stack([fill(config.seed, name, e * size, one) for e in range(shape[0])])
