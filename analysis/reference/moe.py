"""The MoE layer: route, keep what the experts have room for, experts, combine (equations 5 to 15)."""

import numpy as np

from .layers import ffn_arrays, ffn_backward, ffn_forward
from .methods import METHODS


def keep_first(expert, n_experts, capacity_factor):
    """Which slots [N, K] are kept: the first floor(factor T K / E) of every expert in order of token and slot, or one.

    T counts the tokens that have an expert; a vector is one slot per token.
    """
    if capacity_factor == 0:
        return expert >= 0
    slots = expert.reshape(len(expert), -1)
    flat = slots.ravel()
    capacity = max(1, int(np.floor(capacity_factor * (slots >= 0).any(axis=1).sum() * slots.shape[1] / n_experts)))
    kept = np.zeros(flat.shape, dtype=bool)
    for e in range(n_experts):
        kept[np.flatnonzero(flat == e)[:capacity]] = True
    return kept.reshape(expert.shape)


def moe_forward(call, x):
    """y = x + sum over slots of gate (f(x) - x) for rows x [N, C] of the whole micro-batch.

    Returns y, the loss terms (weighted sums over tokens), what the routing log shows, and the cache.
    """
    config, method = call.config, METHODS[call.config.method]
    routing = method.route(call, x)
    expert, gate = routing.expert, routing.gate
    load = np.bincount(expert[expert >= 0], minlength=config.experts)
    terms = {"balance": 0.0, "distill": 0.0, **method.losses(call, routing, load)}

    kept = keep_first(expert, config.experts, config.capacity_factor)
    delta, caches = np.zeros(expert.shape + x.shape[1:]), {}
    for e in range(config.experts):
        token, slot = np.nonzero(kept & (expert == e))
        z = x[token]
        for s in range(config.sublayers):
            z, caches[e, s] = ffn_forward(z, ffn_arrays(call.params, f"{call.prefix}/expert/ffn{s}", e))
        delta[token, slot] = z - x[token]
    info = {"load": load, "dropped": int((expert >= 0).sum() - kept.sum()), "expert": expert, "kept": kept,
            "gate": gate, "gap": routing.gap, "learned": routing.learned, "distilled": routing.distilled,
            "terms": terms, **terms}
    # A learned factor on each dimension of what experts add, of methods that have one.
    omega = call.params.get(f"{call.prefix}/router/omega", 1.0)
    return x + omega * np.einsum("tk,tkc->tc", gate, delta), terms, info, (call, x, routing, load, kept, delta, caches)


def moe_backward(dy, grads, scale, cache):
    call, x, routing, load, kept, delta, caches = cache
    expert, dx, name = routing.expert, dy.copy(), f"{call.prefix}/router/omega"
    method = METHODS[call.config.method]
    if name in grads:
        grads[name] += np.einsum("tk,tkc,tc->c", routing.gate, delta, dy)
        dy = call.params[name] * dy
    gate = method.expert_gates(call, routing) if hasattr(method, "expert_gates") else routing.gate
    for e in range(call.config.experts):
        token, slot = np.nonzero(kept & (expert == e))
        ddelta = gate[token, slot, None] * dy[token]
        dz = ddelta
        for s in reversed(range(call.config.sublayers)):
            name = f"{call.prefix}/expert/ffn{s}"
            dz = ffn_backward(dz, ffn_arrays(call.params, name, e), ffn_arrays(grads, name, e), caches[e, s])
        np.add.at(dx, token, dz - ddelta)  # delta = f(x) - x
    dgate = np.einsum("tc,tkc->tk", dy, delta)  # zero where the slot was dropped: delta is
    return dx + method.backward(call, x, routing, load, dgate, scale, grads)
