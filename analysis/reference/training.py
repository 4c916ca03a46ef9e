"""One update: batches, gradients, clipping, Adam, and which parameters they concern."""

from fnmatch import fnmatchcase

import numpy as np

from . import counter_random as random
from .model import backward, forward


def sequences(split, context):
    """Inputs and targets [S, T] of all tokens of a split in their order; -1 behind the end of the text."""
    count = -(-(len(split) - 1) // context)
    padded = np.full(count * context + 1, -1)
    padded[: len(split)] = split
    return padded[:-1].reshape(count, context), padded[1:].reshape(count, context)


def batch(split, config, update):
    """The update's micro-batches, a list of (tokens, targets): an epoch is a permutation of the whole sequences."""
    context, size = config.context, config.batch_sequences
    n = (len(split) - 1) // context
    chosen = []
    for place in range(update * size, (update + 1) * size):
        s = random.permute(config.seed, random.ORDER, place // n, n, place % n)
        chosen.append(np.asarray(split[s * context: (s + 1) * context + 1], dtype=np.int64))
    chosen = np.stack(chosen).reshape(config.micro_batches, -1, context + 1)
    return [(micro[:, :-1], micro[:, 1:]) for micro in chosen]


def is_frozen(name, stage):
    """Tables and the bias of balancing are never trained; stage 2 freezes the distilled router: no gradient, no step, no part in the norm."""
    fixed = "/router/table", "/router/visible", "/router/bias"
    return name.endswith(fixed) or (stage == 2 and "/router/distilled/" in name)


def is_held(name, config):
    """Whether train.only and train.frozen hold a parameter at its value; * stands for any text, slashes included."""
    def hit(patterns):
        return any(fnmatchcase(name, pattern) for pattern in patterns.split(",") if pattern)
    return bool(config.only) and not hit(config.only) or hit(config.frozen)


def is_decayed(name):
    """Weight decay pulls at matrices, embeddings and the convolution's taps, not at gains, biases and tables."""
    return name.rpartition("/")[2] not in ("gamma", "beta", "bias", "b1", "b2", "omega", "offset", "gate", "gate_offset") and \
        not name.endswith(("/router/table", "/router/visible"))


def gradients(params, micro_batches, config, stage, update=0, recorded=None):
    """Mean losses and gradients of one update; micro_batches is a list of (tokens, targets).

    recorded: [M, N, K] of all tokens of the update, for method replay. The gradient is of the sum over the copies.
    Returns losses, gradients of what learns, and for each micro-batch what its MoE layers did, then its gates.
    """
    n_targets = sum(int((targets >= 0).sum()) for _, targets in micro_batches)
    grads = {name: np.zeros_like(value) for name, value in params.items() if not is_frozen(name, stage)}
    losses, info, first = {"task": 0.0, "balance": 0.0, "distill": 0.0}, [], 0
    for number, (tokens, targets) in enumerate(micro_batches):
        part = None if recorded is None else recorded[:, first: first + tokens.size]
        first += tokens.size
        terms, cache = forward(params, tokens, targets, config, stage, True, update, number, part)
        backward(grads, params, cache, config, 1 / n_targets)
        info.append(cache["moe"] + cache["gates"])
        for name in terms.keys() - {"n_targets"}:
            losses[name] = losses.get(name, 0.0) + terms[name] / (1 if name == "skip_loss" else n_targets)
    for name, grad in grads.items():
        if "/expert/" in name:
            grad *= config.expert_gradient_factor
    return losses, {name: grad for name, grad in grads.items() if not is_held(name, config)}, info


def learning_rate(config, update):
    """Of the zero-based update."""
    if update < config.warmup:
        return config.lr * (update + 1) / config.warmup
    if config.schedule == "linear":
        return config.lr * (config.updates - update) / (config.updates - config.warmup)
    if config.schedule == "inverse_sqrt":
        return config.lr * np.sqrt(max(config.warmup, 1) / (update + 1))
    if config.schedule == "cosine":
        progress = (update - config.warmup) / (config.updates - config.warmup)
        return config.lr * (config.floor + (1 - config.floor) * (1 + np.cos(np.pi * progress)) / 2)
    if config.schedule == "wsd":
        decay = min(np.floor(config.decay_share * config.updates + 0.5), config.updates - config.warmup)
        left = min((config.updates - update) / decay, 1) if decay else 1
        return config.lr * (config.floor + (1 - config.floor) * left)
    return config.lr


def gradient_norm(grads):
    return np.sqrt(sum((grad**2).sum() for grad in grads.values()))


def clip_factor(norm, config):
    return min(1.0, config.clip / norm) if config.clip > 0 and norm > 0 else 1.0


def adam(params, grads, moments, decayed, config, update, factor):
    """One Adam step in place, with decoupled decay of the parameters named in decayed.

    moments: dict of (m, v) by name, begun empty; factor: of the gradients, from clipping.
    """
    step = update + 1
    for name, grad in grads.items():
        lr = learning_rate(config, update) * (config.router_lr_factor if "/router/" in name else 1)
        w, g = params[name], factor * grad
        m, v = moments.setdefault(name, (np.zeros_like(w), np.zeros_like(w)))
        m[...] = config.beta1 * m + (1 - config.beta1) * g
        v[...] = config.beta2 * v + (1 - config.beta2) * g**2
        decay = lr * config.decay * w if name in decayed else 0.0
        mhat, vhat = m / (1 - config.beta1**step), v / (1 - config.beta2**step)
        w -= lr * mhat / (np.sqrt(vhat) + config.epsilon) + decay


def after_update(params, config, info, stage):
    """What routers change by the loads of an update, in place; info: of gradients."""
    balances = config.method in ("topk", "recurrent") or config.method == "stable" and stage == 1
    rate = float(config.router.get("bias_rate", 0)) if balances else 0.0
    for m in range(config.moe_layers if rate else 0):
        load = sum(micro[m]["load"] for micro in info)
        params[f"moe{m}/router/bias"] += rate * np.sign(load.mean() - load)
