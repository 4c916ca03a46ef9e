"""The distilled router (StableMoE, equations 9 and 10): scores from token ids alone.

r_t = Ehat h_t, and h_t is, by `features`:
    word         e(w_t)
    bigram       (e(w_t) + e(w_{t-1})) / 2; w_{t-1} = w_t at the start of a sequence
    cnn          sum over j = 0 .. 4 of k_j e(w_{t-j}); zero before the sequence
    transformer  the last hidden state of a causal Transformer on e(w_t) + position
"""

import numpy as np

from .layers import block_backward, block_forward, log_softmax, norm_backward, norm_forward

TAPS = 5


def weighted_tokens(call, prefix):
    """Pairs (ids [N], weights [N]) whose weighted embeddings add up to h; an id of -1 counts as zero."""
    own = call.token
    if call.config.features == "word":
        return [(own, np.ones(len(own)))]
    if call.config.features == "bigram":
        before = call.before(1)
        return [(own, np.full(len(own), 0.5)), (np.where(before < 0, own, before), np.full(len(own), 0.5))]
    tap = call.params[f"{prefix}/tap"]
    return [(np.where(own < 0, -1, call.before(j)), np.full(len(own), tap[j])) for j in range(TAPS)]


def rows_of(table, token):
    return np.where(token[:, None] >= 0, table[np.maximum(token, 0)], 0.0)


def forward(call):
    """Scores [N, E] and the cache."""
    prefix = f"{call.prefix}/router/distilled"
    params, config, table = call.params, call.config, call.params[f"{prefix}/embedding"]
    steps = []
    if config.features == "transformer":
        x = rows_of(table, call.token).reshape(-1, call.context, table.shape[1])
        x = x + params[f"{prefix}/position"][: call.context]
        for layer in range(config.distill_layers):
            x, cache = block_forward(x, params, f"{prefix}/layer{layer}", config.distill_heads)
            steps.append(cache)
        h, norm = norm_forward(x, params[f"{prefix}/norm/gamma"], params[f"{prefix}/norm/beta"])
        h = h.reshape(len(call.token), -1)
        steps.append(norm)
    else:
        h = sum(weight[:, None] * rows_of(table, token) for token, weight in weighted_tokens(call, prefix))
    return h @ params[f"{prefix}/centroid"].T, (h, steps)


def loss(call, score, target):
    """-weight sum_t log softmax(r_t)[a_t] over the tokens that have a target."""
    rows = np.flatnonzero(target >= 0)
    return -call.config.distill_weight * log_softmax(score)[rows, target[rows]].sum()


def backward(call, score, target, cache, scale, grads):
    prefix = f"{call.prefix}/router/distilled"
    (h, steps), params, config = cache, call.params, call.config
    rows = np.flatnonzero(target >= 0)
    dscore = np.zeros_like(score)
    dscore[rows] = np.exp(log_softmax(score[rows]))
    dscore[rows, target[rows]] -= 1
    dscore *= scale * config.distill_weight
    grads[f"{prefix}/centroid"] += dscore.T @ h
    dh = dscore @ params[f"{prefix}/centroid"]
    if config.features == "transformer":
        dx, dgamma, dbeta = norm_backward(dh.reshape(-1, call.context, dh.shape[1]),
                                          params[f"{prefix}/norm/gamma"], steps[-1])
        grads[f"{prefix}/norm/gamma"] += dgamma
        grads[f"{prefix}/norm/beta"] += dbeta
        for layer in reversed(range(config.distill_layers)):
            dx = block_backward(dx, grads, params, f"{prefix}/layer{layer}", steps[layer])
        grads[f"{prefix}/position"][: call.context] += dx.sum(axis=0)
        real = call.real
        np.add.at(grads[f"{prefix}/embedding"], call.token[real], dx.reshape(dh.shape)[real])
        return
    table = params[f"{prefix}/embedding"]
    for j, (token, weight) in enumerate(weighted_tokens(call, prefix)):
        used = token >= 0
        np.add.at(grads[f"{prefix}/embedding"], token[used], (weight[:, None] * dh)[used])
        if config.features == "cnn":
            grads[f"{prefix}/tap"][j] += (dh * rows_of(table, token))[used].sum()
