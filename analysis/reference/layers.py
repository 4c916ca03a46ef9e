"""Pieces of a Transformer, each backward function behind its forward function."""

import numpy as np

NORM_EPSILON = 1e-5


def sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def norm_forward(x, gamma, beta):
    """Layer norm over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPSILON)
    return centred * rstd * gamma + beta, (centred * rstd, rstd)


def norm_backward(dy, gamma, cache):
    xhat, rstd = cache
    dxhat = dy * gamma
    # xhat has mean 0 and length fixed: remove what dxhat has along those two directions.
    dx = rstd * (dxhat - dxhat.mean(axis=-1, keepdims=True)
                 - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    rows = tuple(range(dy.ndim - 1))
    return dx, (dy * xhat).sum(axis=rows), dy.sum(axis=rows)


FFN = ("norm/gamma", "norm/beta", "w1", "b1", "w2", "b2")


def ffn_arrays(params, prefix, expert=None):
    """Parameters of one FFN sublayer, or their views of one expert."""
    arrays = [params[f"{prefix}/{name}"] for name in FFN]
    return arrays if expert is None else [a[expert] for a in arrays]


def ffn_forward(z, arrays):
    """z + W2 relu(W1 LN(z) + b1) + b2, for rows z [N, C]."""
    gamma, beta, w1, b1, w2, b2 = arrays
    u, norm = norm_forward(z, gamma, beta)
    h = np.maximum(u @ w1.T + b1, 0)
    return z + h @ w2.T + b2, (u, norm, h)


def ffn_backward(dy, arrays, grads, cache):
    """The gradient of z; the parameters' are added to grads, arrays in the same order."""
    gamma, _, w1, _, w2, _ = arrays
    u, norm, h = cache
    dpre = (dy @ w2) * (h > 0)
    dx, dgamma, dbeta = norm_backward(dpre @ w1, gamma, norm)
    for grad, value in zip(grads, (dgamma, dbeta, dpre.T @ u, dpre.sum(0), dy.T @ h, dy.sum(0))):
        grad += value
    return dy + dx


def attention_forward(qkv, heads):
    """Causal softmax(q k^T / sqrt(D)) v; qkv [S, T, 3 C], the result [S, T, C]."""
    s, t, c = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = np.moveaxis(qkv.reshape(s, t, 3, heads, c // heads), 2, 0)
    score = np.einsum("sihd,sjhd->shij", q, k) / np.sqrt(c // heads)
    score = np.where(np.tri(t, dtype=bool), score, -np.inf)
    p = np.exp(log_softmax(score))
    return np.einsum("shij,sjhd->sihd", p, v).reshape(s, t, c), (q, k, v, p)


def attention_backward(dout, cache):
    q, k, v, p = cache
    s, t, heads, d = q.shape
    dout = dout.reshape(s, t, heads, d)
    dv = np.einsum("shij,sihd->sjhd", p, dout)
    dp = np.einsum("sihd,sjhd->shij", dout, v)
    dscore = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) / np.sqrt(d)
    dq = np.einsum("shij,sjhd->sihd", dscore, k)
    dk = np.einsum("shij,sihd->sjhd", dscore, q)
    return np.stack([dq, dk, dv], axis=2).reshape(s, t, 3 * heads * d)


def attention_layer_forward(x, params, prefix, heads):
    """x + proj(attention(LN(x))); x [S, T, C]. The bias of q, k and v may be absent."""
    gamma, beta = (params[f"{prefix}/norm/{name}"] for name in ("gamma", "beta"))
    u, norm = norm_forward(x, gamma, beta)
    qkv = u @ params[f"{prefix}/qkv/weight"].T + params.get(f"{prefix}/qkv/bias", 0.0)
    a, attention = attention_forward(qkv, heads)
    return x + a @ params[f"{prefix}/proj/weight"].T + params[f"{prefix}/proj/bias"], (u, norm, a, attention)


def attention_layer_backward(dx, grads, params, prefix, cache):
    u, norm, a, attention = cache
    grads[f"{prefix}/proj/weight"] += np.tensordot(dx, a, axes=((0, 1), (0, 1)))
    grads[f"{prefix}/proj/bias"] += dx.sum(axis=(0, 1))
    dqkv = attention_backward(dx @ params[f"{prefix}/proj/weight"], attention)
    grads[f"{prefix}/qkv/weight"] += np.tensordot(dqkv, u, axes=((0, 1), (0, 1)))
    if f"{prefix}/qkv/bias" in grads:
        grads[f"{prefix}/qkv/bias"] += dqkv.sum(axis=(0, 1))
    dnorm, dgamma, dbeta = norm_backward(dqkv @ params[f"{prefix}/qkv/weight"], params[f"{prefix}/norm/gamma"], norm)
    grads[f"{prefix}/norm/gamma"] += dgamma
    grads[f"{prefix}/norm/beta"] += dbeta
    return dx + dnorm


def ffn_layer_forward(x, params, prefix):
    """x + FFN(LN(x)); x [S, T, C]."""
    y, cache = ffn_forward(x.reshape(-1, x.shape[-1]), ffn_arrays(params, prefix))
    return y.reshape(x.shape), cache


def ffn_layer_backward(dy, grads, params, prefix, cache):
    rows = dy.reshape(-1, dy.shape[-1])
    return ffn_backward(rows, ffn_arrays(params, prefix), ffn_arrays(grads, prefix), cache).reshape(dy.shape)


def block_forward(x, params, prefix, heads):
    """x += proj(attention(LN(x))); x += FFN(LN(x)); x [S, T, C]."""
    x, attention = attention_layer_forward(x, params, f"{prefix}/attention", heads)
    y, ffn = ffn_layer_forward(x, params, f"{prefix}/ffn")
    return y, (attention, ffn)


def block_backward(dy, grads, params, prefix, cache):
    dx = ffn_layer_backward(dy, grads, params, f"{prefix}/ffn", cache[1])
    return attention_layer_backward(dx, grads, params, f"{prefix}/attention", cache[0])
