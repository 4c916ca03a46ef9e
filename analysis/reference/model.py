"""The language model: embedding, blocks with MoE layers between them, tied head; gates that skip sublayers."""

import numpy as np

from .call import Call
from .gates import block_backward, block_forward
from .layers import log_softmax, norm_backward, norm_forward
from .moe import moe_backward, moe_forward


def embedding_scale(params, config):
    return np.sqrt(params["embedding/table"].shape[1]) if config.scale_embedding else 1.0


def divergence(log_p, log_q):
    """(KL(p || q) + KL(q || p)) / 2 over the last axis."""
    return ((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q)).sum(axis=-1) / 2


def divergence_slope(log_p, log_q):
    """Its gradient by the logits of p."""
    p, d = np.exp(log_p), log_p - log_q
    return (p * (d - (p * d).sum(axis=-1, keepdims=True)) + p - np.exp(log_q)) / 2


def forward(params, tokens, targets, config, stage, training=True, update=0, micro_batch=0, recorded=None):
    """Loss terms of one micro-batch: sums over tokens, in nats; skip_loss of gates is no such sum.

    tokens, targets: [S, T]; -1 stands for no token, no target.
    In evaluation, as in stage 2, the distilled router chooses. In training each sequence has config.copies copies,
    one after another; the task's loss is the mean of theirs.
    update, micro_batch: zero-based, for what is drawn at random. recorded: [M, S T, K] for method replay.
    """
    table = params["embedding/table"]
    copies = config.copies if training else 1
    tokens, targets = np.repeat(tokens, copies, axis=0), np.repeat(targets, copies, axis=0)
    x = np.where(tokens[..., None] >= 0, embedding_scale(params, config) * table[tokens], 0.0)
    x = x + params["embedding/position"][: tokens.shape[1]]
    steps, terms, info, gates = [], {"task": 0.0, "balance": 0.0, "distill": 0.0}, [], []
    places, previous = config.moe_after(), None
    for i in range(config.blocks + 1):
        for m in (m for m, place in enumerate(places) if place == i):
            call = Call(config, params, f"moe{m}", m, tokens.ravel(), tokens.shape[1], stage, training, update,
                        micro_batch, None if recorded is None else recorded[m], previous)
            y, more, seen, cache = moe_forward(call, x.reshape(-1, x.shape[-1]))
            x, previous = y.reshape(x.shape), call
            steps.append((moe_backward, f"moe{m}", cache))
            info.append(seen)
            for name, value in more.items():
                terms[name] = terms.get(name, 0.0) + value
        if i < config.blocks:
            x, skip_loss, seen, cache = block_forward(x, tokens, params, i, config, training, update, micro_batch)
            steps.append((block_backward, i, cache))
            gates += seen
            if seen:
                terms["skip_loss"] = terms.get("skip_loss", 0.0) + skip_loss
    hidden, norm = norm_forward(x, params["norm/gamma"], params["norm/beta"])
    log_p = log_softmax(hidden @ table.T)
    real = targets >= 0
    target_log_p = np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    token_loss = np.where(real, -target_log_p, 0.0)
    terms["task"] = token_loss.sum() / copies
    terms["n_targets"] = int(real.sum()) // copies
    if copies > 1:
        terms["consistency"] = config.consistency * divergence(log_p[0::2], log_p[1::2])[real[0::2]].sum()
    return terms, {"tokens": tokens, "targets": targets, "steps": steps, "hidden": hidden, "norm": norm,
                   "log_p": log_p, "token_loss": token_loss, "moe": info, "gates": gates}


def backward(grads, params, cache, config, scale):
    """Add scale times the gradient of the task loss and all terms to grads; that of skip_loss as it is."""
    table = params["embedding/table"]
    tokens, targets = cache["tokens"], cache["targets"]
    s, t = np.nonzero(targets >= 0)
    dlogits = np.zeros_like(cache["log_p"])
    dlogits[s, t] = np.exp(cache["log_p"][s, t])
    dlogits[s, t, targets[s, t]] -= 1
    if len(cache["log_p"]) and config.copies > 1:
        for one, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            slope = divergence_slope(cache["log_p"][one], cache["log_p"][other])
            dlogits[one] += config.consistency * np.where(targets[one][..., None] >= 0, slope, 0.0)
    dlogits *= scale
    grads["embedding/table"] += np.tensordot(dlogits, cache["hidden"], axes=((0, 1), (0, 1)))
    dx, dgamma, dbeta = norm_backward(dlogits @ table, params["norm/gamma"], cache["norm"])
    grads["norm/gamma"] += dgamma
    grads["norm/beta"] += dbeta
    for step, prefix, step_cache in reversed(cache["steps"]):
        if step is moe_backward:
            rows = dx.reshape(-1, dx.shape[-1])
            dx = moe_backward(rows, grads, scale, step_cache).reshape(dx.shape)
        else:
            dx = block_backward(dx, grads, params, prefix, step_cache, config)
    s, t = np.nonzero(tokens >= 0)
    np.add.at(grads["embedding/table"], tokens[s, t], embedding_scale(params, config) * dx[s, t])
    grads["embedding/position"][: tokens.shape[1]] += dx.sum(axis=0)
