"""Hash tables of experts, as doc/methods/hash.md states them."""

import numpy as np

from . import counter_random as random


def stream(layer, segment=0, name="router/hash"):
    """Random numbers of each MoE layer and segment are its own."""
    return (random.hash_text(name) + layer + 0x10000 * segment) & 0xFFFFFFFF


def drawn(n, experts, seed, layer, segment=0, name="router/hash"):
    """A random table: each entry uniform."""
    draw = random.bits(seed, random.INIT, stream(layer, segment, name), np.arange(n))
    return (draw % np.uint64(experts)).astype(int)


def pair(before, own, vocabulary, experts, seed, layer, segment=0):
    """A random number of the pair of ids, modulo the experts."""
    index = before.astype(np.uint64) * np.uint64(vocabulary) + own.astype(np.uint64)
    return (random.bits(seed, random.INIT, stream(layer, segment), index) % np.uint64(experts)).astype(int)


def by_falling_count(count):
    return np.argsort(-np.asarray(count), kind="stable")


def balanced(count, experts, seed, layer):
    """Tokens by falling count, each to the expert that carries least; tokens that never occur are drawn."""
    table, load = drawn(len(count), experts, seed, layer), np.zeros(experts, dtype=np.int64)
    for token in by_falling_count(count):
        if count[token] > 0:
            table[token] = np.argmin(load)
            load[table[token]] += count[token]
    return table


def clusters(x, k, seed, layer, rounds=50):
    """k-means, begun as k-means++ with the numbers u_0 .. u_{k-1} of this layer's stream."""
    u = random.uniform(seed, random.INIT, stream(layer), np.arange(k))
    mean, distance = np.empty((k, x.shape[1])), np.full(len(x), np.inf)
    for j in range(k):
        # The row in which u times the sum of squared distances is passed.
        row = int(u[0] * len(x)) if j == 0 else \
            min(int(np.searchsorted(np.cumsum(distance), u[j] * distance.sum(), side="right")), len(x) - 1)
        mean[j] = x[row]
        distance = np.minimum(distance, ((x - mean[j])**2).sum(axis=1))
    cluster = np.full(len(x), -1)
    for _ in range(rounds):
        nearest = ((x[:, None] - mean[None])**2).sum(axis=2).argmin(axis=1)
        if (nearest == cluster).all():
            break
        cluster = nearest
        for j in range(k):
            if (cluster == j).any():
                mean[j] = x[cluster == j].mean(axis=0)
    return cluster


def dispersed(count, cluster, experts):
    """Tokens by falling count, each to an expert that has fewest of its cluster, then to the lightest."""
    table, load = np.zeros(len(count), dtype=int), np.zeros(experts, dtype=np.int64)
    members = np.zeros((cluster.max() + 1, experts), dtype=int)
    for token in by_falling_count(count):
        here = members[cluster[token]]
        table[token] = min(range(experts), key=lambda e: (here[e], load[e], e))
        here[table[token]] += 1
        load[table[token]] += count[token]
    return table


def table_of(config, layer, vocabulary, count, embedding=None):
    """What a new run begins with in moe<layer>/router/table; None for variant bigram, which has no table."""
    variant, segments = config.router["variant"], int(config.router.get("segments", 1))
    experts, seed = config.experts // segments, config.seed
    if variant == "bigram":
        return None
    if variant == "balanced":
        return balanced(count, experts, seed, layer)
    if variant == "clustered":
        return clusters(embedding, experts, seed, layer)
    if variant == "dispersed":
        return dispersed(count, clusters(embedding, experts, seed, layer), experts)
    n = config.context if variant == "position" else vocabulary
    table = np.stack([drawn(n, experts, seed, layer, segment) for segment in range(segments)])
    return table[0] if segments == 1 else table


def visible(config, layer, count):
    """The experts that each token id sees in a layer, [V, most]; -1: fewer. As doc/methods/mask.md states it."""
    router, experts, seed, v = config.router, config.experts, config.seed, len(count)
    first = balanced(count, experts, seed, layer) if router["draw"] == "balanced" else drawn(v, experts, seed, layer)
    many = min(int(router["frequent_visible"]), experts), min(int(router["rare_visible"]), experts)
    frequent, total, least = np.zeros(v, dtype=bool), float(sum(count)), int(router["frequent_count"])
    so_far = 0.0
    for token in by_falling_count(count):
        share = count[token] > 0 and so_far < float(router["frequent_share"]) * total
        frequent[token] = count[token] >= least if least > 0 else share
        so_far += float(count[token])
    table = np.full((v, max(many)), -1)
    for token in range(v):
        purpose = (stream(layer) + token * 0x9E3779B1) & 0xFFFFFFFF
        others = [random.permute(seed, random.ROUTER, purpose, experts, j) for j in range(experts)]
        seen = [first[token]] + [e for e in others if e != first[token]]
        n = many[0] if frequent[token] else many[1]
        table[token, :n] = seen[:n]
    return table


def replayed(token, expert, vocabulary, experts, seed, layer):
    """The K experts that a log has most often for each token id, [V, K]; ids that it does not have get some.

    token: [n] ids of the log; expert: [n, K] their choices, dropped or not; -1: slot unused.
    """
    k = expert.shape[1]
    table = (drawn(vocabulary, experts, seed, layer, name="router/replay")[:, None] + np.arange(k)) % experts
    for v in np.unique(token):
        chosen = expert[token == v]
        count = np.bincount(chosen[chosen >= 0], minlength=experts)
        order = np.argsort(-count, kind="stable")[:k]
        table[v] = np.where(count[order] > 0, order, -1)
    return table
