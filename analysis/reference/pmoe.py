"""The two-layer CNN of pMoE's analysis (Chowdhury et al. 2023, equations 1 and 5): plain, joint and separate.

Letters: B images, n patches of d numbers, E experts with F filters each, O logits, l patches that an expert takes.
patches [B, n, d], label [B]. With one logit classes are 0 and 1, and the loss is logistic.
"""

import numpy as np


def objective(logits, label):
    """Losses [B] and dloss / dlogits [B, O]."""
    if logits.shape[1] == 1:
        sign = np.where(label == 1, 1.0, -1.0)[:, None]
        return np.logaddexp(0, -sign * logits)[:, 0], -sign / (1 + np.exp(sign * logits))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(label))
    one = np.zeros_like(p)
    one[rows, label] = 1
    return -np.log(p[rows, label]), p - one


def choose(score, l):
    """The l best patches [B, E, l] of each image for each expert, from scores [B, n, E]; the lower one on ties."""
    return np.argsort(-score, axis=1, kind="stable")[:, :l].transpose(0, 2, 1)


def filters(patches, w, a):
    """sum over filters of a relu(<w, x>): [B, n, O], and what the backward pass needs."""
    h = np.maximum(patches @ w.T, 0)
    return h @ a.T, h


def filters_backward(dout, patches, h, a):
    """The gradient of w [F, d]; a is fixed."""
    return np.einsum("bnf,bnd->fd", (dout @ a) * (h > 0), patches)


def cnn(params, patches, label):
    """Loss, accuracy and gradients of the plain CNN."""
    w, a = params["filters/w1"], params["filters/w2"]
    out, h = filters(patches, w, a)
    logits = out.mean(axis=1)
    loss, dlogits = objective(logits, label)
    dout = np.repeat(dlogits[:, None] / len(label) / patches.shape[1], patches.shape[1], axis=1)
    return loss.mean(), logits, {"filters/w1": filters_backward(dout, patches, h, a)}


def pmoe(params, patches, label, l, divisor, joint=True, learns_router=False):
    """Loss, logits, gradients and the router's loss of pMoE. divisor: l, or all patches.

    learns_router: stage 1 of separate training, in which the experts' gates are 0.
    """
    w_s, w, a = (params[f"moe0/{name}"] for name in ("router/centroid", "expert/ffn0/w1", "expert/ffn0/w2"))
    b, n_experts = len(label), len(w_s)
    score = patches @ w_s.T
    chosen = choose(score, l)
    logits, kept = np.zeros((b, a.shape[1])), []
    for e in range(n_experts):
        x = np.take_along_axis(patches, chosen[:, e, :, None], 1)  # [B, l, d]
        z = np.take_along_axis(score[:, :, e], chosen[:, e], 1)
        gate = np.ones_like(z)
        if joint:
            gate = np.exp(z - z.max(axis=1, keepdims=True))
            gate /= gate.sum(axis=1, keepdims=True)
        if learns_router:
            gate = np.zeros_like(z)
        out, h = filters(x, w[e], a[e])
        logits += np.einsum("bl,blo->bo", gate, out) / divisor
        kept.append((x, gate, out, h))
    loss, dlogits = objective(logits, label)
    dlogits = dlogits / b / divisor
    grads = {"moe0/router/centroid": np.zeros_like(w_s), "moe0/expert/ffn0/w1": np.zeros_like(w)}
    for e, (x, gate, out, h) in enumerate(kept):
        dout = gate[..., None] * dlogits[:, None]
        grads["moe0/expert/ffn0/w1"][e] = filters_backward(dout, x, h, a[e])
        if joint:
            dgate = np.einsum("bo,blo->bl", dlogits, out)
            dz = gate * (dgate - (gate * dgate).sum(axis=1, keepdims=True))
            grads["moe0/router/centroid"][e] = np.einsum("bl,bld->d", dz, x)
    router = 0.0
    if learns_router:  # -<w_c - w_other, sum of the patches>, classes in pairs
        total = patches.sum(axis=1)
        rows = np.arange(b)
        router = -((w_s[label] - w_s[label ^ 1]) * total).sum() / b
        np.subtract.at(grads["moe0/router/centroid"], label, total[rows] / b)
        np.add.at(grads["moe0/router/centroid"], label ^ 1, total[rows] / b)
    return loss.mean(), logits, grads, router
