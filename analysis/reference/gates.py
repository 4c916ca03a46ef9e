"""Gates that let rows skip sublayers (MindSkip, Router-Tuning; doc/from-a-model.md).

    R = sigmoid(w . abar),   M = 1 if w . abar >= 0, else 0,   y = x + M F(x)

F is a sublayer without its residual, a = norm(x), abar what the gate looks at. The gradient of M is passed straight
through to R, dL/dR = <dL/dy, F(x)>, and M itself is a constant. The loss has weight times what the share of rows that
ran has above the target, over the micro-batch, divided by the number of micro-batches; it is not divided by targets.
"""

import numpy as np

from . import counter_random as random
from .layers import (attention_layer_backward, attention_layer_forward, ffn_layer_backward, ffn_layer_forward,
                     norm_backward, norm_forward, sigmoid)


def kind(config, block):
    """What may be skipped in a block: on the deepest ones but the last."""
    last, count = config.blocks - 1, config.skip_layers or config.blocks // 2
    return config.skip_what if last - count <= block < last else "none"


def names(config):
    """Names of the gated layers, in their order."""
    return [f"block{b}" + ("" if kind(config, b) == "block" else f"/{kind(config, b)}")
            for b in range(config.blocks) if kind(config, b) != "none"]


def is_whole(config):
    return config.skip_unit == "sequence" and config.skip_mean == "whole"


def pool_forward(a, real, config):
    """abar [S, T, C] of a; real [S, T]: which rows are tokens."""
    if config.skip_unit == "token":
        return a
    if is_whole(config):
        return np.repeat((a * real[..., None]).sum(axis=1) / np.maximum(real.sum(axis=1), 1)[:, None], a.shape[1],
                         axis=0).reshape(a.shape)
    return np.cumsum(a, axis=1) / np.arange(1, a.shape[1] + 1)[:, None]


def pool_backward(d, real, config):
    if config.skip_unit == "token":
        return d
    if is_whole(config):
        return real[..., None] * (d.sum(axis=1) / np.maximum(real.sum(axis=1), 1)[:, None])[:, None]
    # Row t is in the means of all rows from t on.
    return np.cumsum((d / np.arange(1, d.shape[1] + 1)[:, None])[:, ::-1], axis=1)[:, ::-1]


def chance(config, name, shape, training, update, micro_batch):
    """Whether rows [S, T] run where chance decides: one draw for each row, or for each sequence."""
    row = np.arange(np.prod(shape)).reshape(shape)
    if is_whole(config):
        row = np.repeat(row[:, :1], shape[1], axis=1)
    stream = random.hash_text(name) + (update if training else 0)
    return random.uniform(config.seed, random.ROUTER, stream, micro_batch * np.prod(shape) + row) >= config.skip_share


def gate_forward(x, tokens, params, name, norm, forward, config, training, update, micro_batch):
    """y of rows x [S, T, C] behind a gate. norm: name of F's norm; forward(x): x + F(x) and its cache.

    Returns y, the loss on the share that ran, what the routing log shows, and the cache.
    """
    real = tokens >= 0
    a, normed = norm_forward(x, params[f"{norm}/gamma"], params[f"{norm}/beta"])
    pooled, gap = pool_forward(a, real, config), np.inf
    if config.skip_choice == "gate":
        score = pooled @ params[f"{name}/gate"]
        ran = score >= 0
        if params[f"{name}/gate"].any():  # otherwise all are exactly zero
            gap = np.abs(score[real]).min(initial=np.inf)
    else:
        score = np.zeros(real.shape)
        ran = chance(config, name, real.shape, training, update, micro_batch) & (config.skip_choice == "random")
    ran = ran & real
    y, inner = forward(x)
    share = ran.sum() / max(1, real.sum())
    loss = config.skip_weight * max(0, share - config.skip_target) / config.micro_batches
    info = {"name": name, "dropped": 0, "gap": gap, "ran": ran, "rows": int(real.sum()), "share": share}
    return np.where(ran[..., None], y, x), loss, info, (name, norm, x, normed, pooled, sigmoid(score), real, ran, y - x, inner)


def gate_backward(dy, grads, params, cache, config, backward):
    """backward(dy, inner cache): the gradient of x + F(x)."""
    name, norm, _, normed, pooled, r, real, ran, delta, inner = cache
    dx = np.where(ran[..., None], 0, dy) + backward(np.where(ran[..., None], dy, 0), inner)
    if config.skip_choice != "gate":
        return dx
    task = {"full": real, "active": ran, "masked": ran & (ran.sum() < real.sum())}[config.skip_gradient]
    above = ran.sum() > config.skip_target * real.sum()
    capacity = config.skip_weight / (real.sum() * config.micro_batches) if above else 0.0
    dr = np.where(task, (dy * delta).sum(axis=-1), 0.0) + capacity * real
    dscore = dr * r * (1 - r)
    if f"{name}/gate" in grads:
        grads[f"{name}/gate"] += np.einsum("st,stc->c", dscore, pooled)
    da = pool_backward(dscore[..., None] * params[f"{name}/gate"], real, config)
    da, dgamma, dbeta = norm_backward(da, params[f"{norm}/gamma"], normed)
    grads[f"{norm}/gamma"] += dgamma
    grads[f"{norm}/beta"] += dbeta
    return dx + da


def block_forward(x, tokens, params, block, config, training, update, micro_batch):
    """A block whose attention, feed-forward layer, or both, may be behind a gate.

    Returns x, the losses of its gate, a list of what the routing log shows, and the cache.
    """
    what, prefix, loss, infos, caches = kind(config, block), f"block{block}", 0.0, [], []

    def sublayer(part):
        if part == "attention":
            return lambda rows: attention_layer_forward(rows, params, f"{prefix}/attention", config.heads)
        return lambda rows: ffn_layer_forward(rows, params, f"{prefix}/ffn")

    def both(rows):
        mid, attention = sublayer("attention")(rows)
        y, ffn = sublayer("ffn")(mid)
        return y, (attention, ffn)

    steps = [(prefix, both, "attention")] if what == "block" else \
        [(f"{prefix}/{part}", sublayer(part), part) for part in ("attention", "ffn")]
    for name, forward, part in steps:
        if what == "block" or what == part:
            x, more, info, cache = gate_forward(x, tokens, params, name, f"{prefix}/{part}/norm", forward, config,
                                                training, update, micro_batch)
            loss += more
            infos.append(info)
        else:
            x, cache = forward(x)
        caches.append(cache)
    return x, loss, infos, caches


def block_backward(dy, grads, params, block, caches, config):
    what, prefix = kind(config, block), f"block{block}"
    backward = {
        "attention": lambda d, cache: attention_layer_backward(d, grads, params, f"{prefix}/attention", cache),
        "ffn": lambda d, cache: ffn_layer_backward(d, grads, params, f"{prefix}/ffn", cache)}
    backward["block"] = lambda d, cache: backward["attention"](backward["ffn"](d, cache[1]), cache[0])
    parts = ["block"] if what == "block" else ["attention", "ffn"]
    for part, cache in zip(reversed(parts), reversed(caches)):
        dy = gate_backward(dy, grads, params, cache, config, backward[part]) if what == part else backward[part](dy, cache)
    return dy
