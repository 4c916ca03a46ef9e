"""The equations of sublayers that models other than the paper's are made of.

N rows, Tq queries and Tk keys of a sequence, Hkv heads of the keys.
"""

import math

import numpy as np

from . import counter_random

RMS_EPSILON = 1e-5


def rms_norm_forward(x, gamma):
    """x / sqrt(mean of x^2) over the last axis, times gamma."""
    rrms = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + RMS_EPSILON)
    return x * rrms * gamma, (x, rrms)


def rms_norm_backward(dy, gamma, cache):
    x, rrms = cache
    xhat = x * rrms
    dxhat = dy * gamma
    # The length of xhat is fixed: remove what dxhat has along it.
    dx = rrms * (dxhat - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    return dx, (dy * xhat).sum(axis=tuple(range(dy.ndim - 1)))


def normal_distribution(x):
    return np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[float])(x)


def gelu_forward(x):
    """x Phi(x), in the exact form."""
    return x * normal_distribution(x), x


def gelu_backward(dy, x):
    return dy * (normal_distribution(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


def swiglu_forward(ab):
    """silu(a) b for rows [a, b] of 2 F."""
    a, b = np.split(ab, 2, axis=-1)
    gate = 1 / (1 + np.exp(-a))
    return a * gate * b, (a, b, gate)


def swiglu_backward(dh, cache):
    a, b, gate = cache
    da = dh * b * (gate + a * gate * (1 - gate))
    return np.concatenate([da, dh * a * gate], axis=-1)


def rope_angles(position, d, base=10000.0):
    """[N, D / 2] for positions [N]."""
    return position[:, None] * base ** (-2 * np.arange(d // 2) / d)


def rope_forward(x, angles):
    """x [N, H, D] turned by angles [N, D / 2], number i of a head paired with i + D / 2.

    The gradient of x is the gradient of the result turned by -angles.
    """
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention_mask(queries, keys, causal, query_length, key_length, offset):
    """Which keys a query sees: [S, Tq, Tk], for lengths and the first query's position of each sequence."""
    i, j = np.arange(queries)[:, None], np.arange(keys)
    seen = (j < key_length[:, None, None]) & (i < query_length[:, None, None])
    return seen & (j <= offset[:, None, None] + i) if causal else seen


def attention_forward(q, k, v, mask):
    """softmax(q k^T / sqrt(D)) v over what the mask [S, Tq, Tk] lets through; zero where that is nothing.

    q [S, Tq, H, D]; k, v [S, Tk, Hkv, D]: query head h uses key head h // (H / Hkv).
    """
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    score = np.einsum("sihd,sjhd->shij", q, k) / np.sqrt(q.shape[-1])
    p = np.where(mask[:, None], np.exp(score - score.max(axis=-1, keepdims=True)), 0.0)
    total = p.sum(axis=-1, keepdims=True)
    p = np.divide(p, total, out=np.zeros_like(p), where=total > 0)
    return np.einsum("shij,sjhd->sihd", p, v), (q, k, v, p, group)


def attention_backward(dout, cache):
    q, k, v, p, group = cache
    dv = np.einsum("shij,sihd->sjhd", p, dout)
    dp = np.einsum("sihd,sjhd->shij", dout, v)
    dscore = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) / np.sqrt(q.shape[-1])
    dq = np.einsum("shij,sjhd->sihd", dscore, k)
    dk = np.einsum("shij,sihd->sjhd", dscore, q)

    def shared(x):  # over the query heads of a key head
        return x.reshape(*x.shape[:2], -1, group, x.shape[-1]).sum(axis=3)

    return dq, shared(dk), shared(dv)


DROPOUT = 4  # the purpose of its random numbers


def dropout_factor(share, seed, update, site, token, c):
    """What dropout multiplies rows [N, C] of tokens [N] by: 0, or 1 / (1 - p)."""
    threshold = round(share * 65536)
    token, j = np.asarray(token, dtype=np.int64)[:, None], np.arange(c)
    index = token * 2**20 + j // 128 * 16 + j % 16
    word = np.choose(j % 128 // 16 % 4, counter_random.philox(seed, DROPOUT + site * 256, update, index))
    bits = (word >> (16 * (j % 128 // 64)).astype(np.uint64)) % np.uint64(65536)
    return np.where(bits < threshold, 0.0, 65536 / (65536 - threshold))


def smoothed_cross_entropy(logits, target, epsilon):
    """Loss and -log p of the target of each row, and the gradient of the loss; zero where the target is -1.

    The target's weight is 1 - epsilon, every other id has epsilon / (V - 1).
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    weight = np.full_like(logits, epsilon / (logits.shape[-1] - 1))
    rows, real = np.arange(len(target)), target >= 0
    weight[rows, np.maximum(target, 0)] = 1 - epsilon
    loss, nll = -(weight * log_p).sum(axis=-1), -log_p[rows, np.maximum(target, 0)]
    return loss * real, nll * real, (np.exp(log_p) - weight) * real[:, None]
